"""What comes of a row: no verdict means failed, an ablation must be noticed as expected, and results are kept."""

from collections.abc import Sequence
from pathlib import Path
from typing import cast

import msgspec
import pytest

from tests.faults import ablations
from tests.faults.checker import check
from tests.faults.cluster import Cluster
from tests.faults.failpoints import FAILPOINTS
from tests.faults.history import History, Published
from tests.faults.report import document
from tests.faults.results import Result, ablated, keep, kept, latest, measured
from tests.faults.rows import Ablation, Bench, Outcome, Row, Size, all_rows

SIZE = {"alerts": 1}
LOST = check(History(published=[Published("a-1", 0, 0, 1_000)]))
NOTHING_WRONG = check(History())


def bench(folder: Path) -> Bench:
    return Bench(cast(Cluster, None), folder, 7, lambda text: None)


def row(outcome: Outcome | Exception, *wrong: str) -> Row:
    """A row that comes to this when its safeguard is removed, and holds otherwise."""

    async def run(bench: Bench, size: Size, ablate: Sequence[str]) -> Outcome:
        if not ablate:
            return Outcome(NOTHING_WRONG)
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    return Row("a row: of tests", "It holds.", run, SIZE, SIZE, (Ablation("commit_highest_seen", SIZE, wrong),))


async def ran(row: Row, folder: Path) -> Result:
    result = await measured(bench(folder), row, small=True, limit_s=1)
    return await ablated(bench(folder), row, result, limit_s=1)


@pytest.mark.parametrize(
    ("outcome", "wrong", "noticed"),
    [
        (Outcome(LOST), ("lost",), True),
        (Outcome(LOST), ("effects_twice",), False),
        (Outcome(NOTHING_WRONG), ("lost",), False),
        (Outcome(NOTHING_WRONG, ["3 were too slow"]), ("too slow",), True),
        (Outcome(NOTHING_WRONG, ["3 were too slow"]), ("too many",), False),
        (RuntimeError("broke off"), ("lost",), False),
    ],
)
async def test_ablated_outcome_noticed_only_as_expected(
    outcome: Outcome | Exception, wrong: tuple[str, ...], noticed: bool, tmp_path: Path
) -> None:
    """An ablation counts as noticed when what it removes is what was missed; a run that broke off proves nothing."""
    result = await ran(row(outcome, *wrong), tmp_path)
    assert ("held", noticed, noticed) == (result.verdict, result.ablations[0].noticed, result.holds)


async def test_measured_run_breaks_off_verdict_is_failed(tmp_path: Path) -> None:
    """No verdict means failed, and the reason is told."""

    async def run(bench: Bench, size: Size, ablate: Sequence[str]) -> Outcome:
        raise RuntimeError("the broker did not start")

    result = await measured(bench(tmp_path), Row("r", "p", run, SIZE, SIZE), small=True, limit_s=1)
    assert ("failed", False) == (result.verdict, result.holds)
    assert ["broke off: RuntimeError: the broker did not start"] == result.failures
    assert "failed" == result.as_row()["verdict"]


async def test_kept_only_what_held_with_this_seed_and_size(tmp_path: Path) -> None:
    """A run goes on behind what is finished; another seed, another size or a failure is run again."""
    held = await ran(a_row := row(Outcome(LOST), "lost"), tmp_path)
    keep(tmp_path, held)
    assert held == kept(tmp_path, a_row, 7, small=True, protocol="consumer")
    assert kept(tmp_path, a_row, 8, small=True, protocol="consumer") is None
    assert kept(tmp_path, a_row, 7, small=False, protocol="consumer") is None
    assert kept(tmp_path, a_row, 7, small=True, protocol="classic") is None
    keep(tmp_path, msgspec.structs.replace(held, verdict="not held"))
    assert kept(tmp_path, a_row, 7, small=True, protocol="consumer") is None
    assert latest(tmp_path, a_row, small=True, protocol="consumer") is not None


async def test_document_says_what_does_not_hold(tmp_path: Path) -> None:
    """Rows that fail, ablations that nobody noticed and rows that were not run are named."""
    a_row = row(Outcome(NOTHING_WRONG), "lost")
    other = msgspec.structs.replace(await ran(a_row, tmp_path), size=SIZE)
    text = document([a_row, Row("never run", "It would hold.", a_row.run, SIZE, None)], [other], [], None, 2)
    assert "- **a row: of tests**: ablation commit_highest_seen was not noticed" in text
    assert "- **never run**: not run at full size" in text
    assert "session's end (2 s" in text


def test_rows_are_sound() -> None:
    """Every row says what it promises, and every ablation that it names exists."""
    for a_row in all_rows().values():
        assert a_row.promise.endswith(".")
        for ablation in a_row.ablations:
            assert callable(ablations.named(ablation.name))


def test_failpoints_are_at_least_ten_places() -> None:
    """Each at a function that exists."""
    assert len(FAILPOINTS) >= 10
    for point in FAILPOINTS.values():
        assert callable(getattr(point.owner, point.function))
