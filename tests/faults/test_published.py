"""What RELIABILITY.md is written from: newer results replace older ones, nothing else is lost, and the page is theirs."""

from pathlib import Path

import msgspec

from app.local.process import ROOT
from tests.faults import soak
from tests.faults.published import PUBLISHED, page, publish
from tests.faults.results import AblationResult, Result, keep, latest
from tests.faults.rows import Ablation, Row, all_rows
from tests.faults.test_fault_results import result_of, soaked

REPORT = "written by `python -m tests.faults --report`, also after a row has changed"


async def _never(*arguments: object) -> None:
    raise AssertionError("it is not run here")


ROW = Row("a row", "It holds.", _never, {}, {}, (Ablation("one", {}, ("lost",)), Ablation("two", {}, ("lost",))))  # type: ignore[arg-type]


def result(at: str, verdict: str = "held", **ablations: str) -> Result:
    """Of that time; ablations: when each was run."""
    tried = [
        AblationResult(name, "not held", noticed=True, found={}, seconds=1, at=when) for name, when in ablations.items()
    ]
    return result_of(ROW, at=at, commit=at, verdict=verdict, ablations=tried)


def _published(folder: Path) -> Result | None:
    return latest(folder / "published", ROW, small=False, protocol="consumer")


def _publish(folder: Path, measured: Result) -> Result | None:
    keep(folder / "measured", measured)
    publish([ROW], folder / "measured", folder / "published")
    return _published(folder)


def test_page_is_that_of_the_published_results() -> None:
    """A figure that nobody measured, and a row that has changed since, both show."""
    assert page(list(all_rows().values())) == (ROOT / "RELIABILITY.md").read_text(), REPORT


def test_published_results_are_of_rows_that_there_are() -> None:
    """No result of a row that was renamed stays behind."""
    rows = [*all_rows().values(), soak.SHORTENED]
    kinds = [(row, *kind) for row in rows for kind in ((False, "consumer"), (True, "classic"))]
    known = [one for row, small, protocol in kinds if (one := latest(PUBLISHED, row, small=small, protocol=protocol))]
    there = [path for path in PUBLISHED.iterdir() if path.name != soak.KEPT_IN]
    assert len(known) == len(there)


def test_publish_newer_result_replaces_the_older(tmp_path: Path) -> None:
    """Also one that does not hold: what was measured last counts. What was measured before changes nothing."""
    assert _publish(tmp_path, first := result("2026-01-01")) == first
    assert _publish(tmp_path, failed := result("2026-01-02", "not held")) == failed
    assert _publish(tmp_path, first) == failed


def test_publish_ablations_that_were_not_run_again_stay(tmp_path: Path) -> None:
    """Each has its own time; one that was run alone, after its row, is taken over too."""
    _publish(tmp_path, result("2026-01-01", one="2026-01-01", two="2026-01-01"))
    found = _publish(tmp_path, result("2026-01-02", two="2026-01-02"))
    assert found is not None
    assert {"one": "2026-01-01", "two": "2026-01-02"} == {one.name: one.at for one in found.ablations}
    found = _publish(tmp_path, result("2026-01-02", one="2026-01-03", two="2026-01-02"))
    assert found is not None
    assert {"one": "2026-01-03", "two": "2026-01-02"} == {one.name: one.at for one in found.ablations}


def test_publish_newer_soak_replaces_the_older(tmp_path: Path) -> None:
    """As a row does."""
    measured, published = tmp_path / "measured", tmp_path / "published"
    for at, failures, expected in (("2026-01-02", ["it leaks"], ["it leaks"]), ("2026-01-01", [], ["it leaks"])):
        soak.keep(measured, msgspec.structs.replace(soaked(failures=failures), environment={"at": at}))
        publish([ROW], measured, published)
        found = soak.latest(published)
        assert found is not None
        assert expected == found.failures
