"""What comes of a row: no verdict means failed, an ablation must be noticed as expected, and results are kept."""

import dataclasses
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import msgspec
import pytest

from tests.faults import ablations, soak
from tests.faults.checker import ZEROS, check
from tests.faults.cluster import Cluster
from tests.faults.failpoints import FAILPOINTS
from tests.faults.history import History, Published
from tests.faults.report import COLUMNS, document, legend
from tests.faults.results import (
    AblationResult,
    Result,
    ablated,
    ablation_defined,
    code_of,
    definition_of,
    keep,
    kept,
    latest,
    measured,
    try_ablation,
    unnoticed,
)
from tests.faults.rows import COUNTS, Ablation, Bench, Outcome, Row, Size, all_rows

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
        (Outcome(NOTHING_WRONG, ["writes lost: lag not 0"]), ("lost",), False),
        (Outcome(LOST, ["writes lost: lag not 0"]), ("early_commits", "lag not 0"), True),
        (Outcome(None, ["3 lost"]), ("lost",), False),
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


async def test_ablated_evidence_is_what_was_expected(tmp_path: Path) -> None:
    """Beside the count stand the failures that are meant, not those that came first."""
    others = ["a worker ended with 1", "lag 0 after 70 s", "a part is not at work"]
    result = await ran(row(Outcome(LOST, [*others, "3 were too slow"]), "lost", "too slow"), tmp_path)
    assert ["3 were too slow"] == result.ablations[0].said
    assert "lost 1; 3 were too slow" == result.ablations[0].evidence


async def test_ablated_again_runs_only_what_nobody_noticed(tmp_path: Path) -> None:
    """Of a row that held, what was noticed is kept, in the row's order; what was defined anew is run again."""
    tried: list[str] = []

    async def run(bench: Bench, size: Size, ablate: Sequence[str]) -> Outcome:
        tried.extend(ablate)
        return Outcome(LOST if ablate else NOTHING_WRONG)

    names = "commit_highest_seen", "no_drain", "failures_are_done"
    one, two, three = (Ablation(name, SIZE, ("lost",)) for name in names)
    a_row = Row("r", "p.", run, SIZE, SIZE, (one, two, three))
    held = await ran(a_row, tmp_path)
    held.ablations = [msgspec.structs.replace(held.ablations[0], noticed=False), *held.ablations[1:2]]
    tried.clear()
    assert [one, three] == unnoticed(a_row, held)
    again = await ablated(bench(tmp_path), a_row, held, limit_s=1)
    assert [one.name, three.name] == tried
    assert [*names] == [ablation.name for ablation in again.ablations]
    assert again.holds
    larger = dataclasses.replace(two, size={"alerts": 2})
    assert [larger] == unnoticed(dataclasses.replace(a_row, ablations=(one, larger, three)), again)
    assert [one, two, three] == unnoticed(dataclasses.replace(a_row, promise="More holds."), again)


@pytest.mark.parametrize("holds", [True, False])
async def test_ablation_that_a_slow_machine_may_bring_needs_a_run_that_holds(tmp_path: Path, *, holds: bool) -> None:
    """What is red with its safeguard, too, shows nothing about it."""

    async def run(bench: Bench, size: Size, ablate: Sequence[str]) -> Outcome:
        return Outcome(LOST if ablate else NOTHING_WRONG, [] if ablate or holds else ["lag not 0 8 s later"])

    ablation = Ablation("commit_highest_seen", SIZE, ("lost",), needs_control=True)
    a_row = Row("a row", "It holds.", run, SIZE, None, (ablation,))
    tried = await try_ablation(bench(tmp_path), a_row, ablation, limit_s=1)
    assert (holds, "not held") == (tried.noticed, tried.verdict)
    assert holds or ["not held with it either: lag not 0 8 s later"] == tried.said


async def test_measured_run_breaks_off_verdict_is_failed(tmp_path: Path) -> None:
    """No verdict means failed, and the reason is told."""

    async def run(bench: Bench, size: Size, ablate: Sequence[str]) -> Outcome:
        raise RuntimeError("the broker did not start")

    result = await measured(bench(tmp_path), Row("r", "p", run, SIZE, SIZE), small=True, limit_s=1)
    assert ("failed", False) == (result.verdict, result.holds)
    assert ["broke off: RuntimeError: the broker did not start"] == result.failures
    assert "failed" == result.as_row()["verdict"]


async def test_violations_are_what_must_not_be(tmp_path: Path) -> None:
    """A partition that two workers held is described, and is no reason unless the row says so."""
    lost, two = "lost: a-1 has no decision", "two_owners: partition 3"
    result = msgspec.structs.replace(await ran(row(Outcome(LOST), "lost"), tmp_path), problems=[lost, two])
    assert [] == result.violations
    assert [lost] == msgspec.structs.replace(result, verdict="not held").violations
    failed = msgspec.structs.replace(result, verdict="not held", problems=[two], failures=[])
    assert ["not held"] == failed.violations


@pytest.mark.parametrize("change", [{"promise": "More holds."}, {"full": {"alerts": 2}}, {"run": pytest.fixture}])
async def test_kept_not_when_the_row_was_defined_otherwise(tmp_path: Path, change: dict[str, Any]) -> None:
    """Other words, another size or another judgement is another row."""
    keep(tmp_path, await ran(a_row := row(Outcome(LOST), "lost"), tmp_path))
    assert kept(tmp_path, dataclasses.replace(a_row, **change), 7, small=True, protocol="consumer") is None


def test_code_of_a_docstring_counts_for_nothing() -> None:
    """Everything else does, a string that is used too."""
    source = '"""One."""\nLIMIT = "2"\n"""Two\nlines."""\n\ndef f() -> str:\n    """Three."""\n    return "4"\n'
    assert 'LIMIT = "2"\n\ndef f() -> str:\n    return "4"\n' == code_of(source)


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


async def full(a_row: Row, folder: Path) -> Result:
    result = await measured(bench(folder), a_row, small=False, limit_s=1)
    return await ablated(bench(folder), a_row, result, limit_s=1)


async def test_document_says_what_does_not_hold(tmp_path: Path) -> None:
    """Rows that fail, ablations that nobody noticed and rows that were not run are named."""
    a_row = row(Outcome(NOTHING_WRONG), "lost")
    text = document(
        [a_row, Row("never run", "It would hold.", a_row.run, SIZE, None)], [await full(a_row, tmp_path)], [], None, 2
    )
    assert "- **a row: of tests**: ablation commit_highest_seen was not noticed" in text
    assert "- **never run**: not run at full size" in text
    assert "- **a row: of tests**, small, classic protocol: not run" in text
    assert "- **never run**, small" not in text
    assert "- **soak**: not run" in text
    assert "session's end (2 s" in text


async def test_document_everything_holds_only_when_all_was_run(tmp_path: Path) -> None:
    """Each thing that is missing is said by itself: ablations, the classic rows, the soak, a definition of before."""
    a_row = row(Outcome(LOST), "lost")
    held, small = await full(a_row, tmp_path), await ran(a_row, tmp_path)

    def open_still(result: Result, small: Result, soaked: soak.Soaked) -> list[str]:
        text = document([a_row], [result], [small], soaked, 2)
        section = text.partition("### What does not hold, or was not measured\n\n")[2].partition("\n\n")[0]
        return section.splitlines()

    assert ["Every row holds, and every ablation was noticed."] == open_still(held, small, soaked())
    replace = msgspec.structs.replace
    (said,) = open_still(replace(held, ablations=[]), small, soaked())
    assert "ablation commit_highest_seen was not run" in said
    assert "| 0 of 1 run |" in document([a_row], [replace(held, ablations=[])], [], None, 2)
    (said,) = open_still(replace(held, definition=""), small, soaked())
    assert "a row: of tests**: measured before its definition changed" in said
    (said,) = open_still(held, replace(small, definition=""), soaked())
    assert "classic protocol: measured before its definition changed" in said
    (said,) = open_still(held, replace(small, verdict="not held", failures=["lag 0 after 70 s"]), soaked())
    assert "classic protocol: lag 0 after 70 s" in said
    (said,) = open_still(held, small, soaked(failures=["3 lanes were never given back"]))
    assert "- **soak**: 3 lanes were never given back" == said
    (said,) = open_still(held, small, soaked(load=soak.Load(1, 10, 1, 10, 0)))
    assert "ran for 1 minutes" in said
    (said,) = open_still(held, small, replace(soaked(), shortened=None))
    assert "- **soak**: its ablations were not run" == said
    (said,) = open_still(held, small, replace(soaked(), shortened=shortened(noticed=False)))
    assert "- **soak, shortened**: ablation lanes_are_not_given_back was not noticed" == said
    (said,) = open_still(held, small, replace(soaked(), shortened=replace(shortened(), definition="")))
    assert "measured before its definition changed" in said


def shortened(*, noticed: bool = True) -> Result:
    """The shortened soak; of its ablations the first one noticed or not."""
    row = soak.SHORTENED
    tried = [
        AblationResult(
            ablation.name,
            "not held",
            noticed or bool(number),
            {},
            1,
            ["3 lanes"],
            definition=ablation_defined(row, ablation),
        )
        for number, ablation in enumerate(row.ablations)
    ]
    return result_of(row, promise=row.promise, definition=definition_of(row), ablations=tried)


def result_of(row: Row, **said: Any) -> Result:
    """A row that held at full size, and nothing more but what is said."""
    nothing: dict[str, Any] = {
        "figures": {},
        "more": {},
        "failures": [],
        "problems": [],
        "at": "",
        "commit": "",
        "machine": "",
    }
    held: dict[str, Any] = {"verdict": "held", "small": False, "seed": 1, "seconds": 1, "protocol": "consumer"}
    return Result(**{"fault": row.name, "size": dict(row.full), **nothing, **held, **said})


def soaked(load: soak.Load = soak.FULL, failures: Sequence[str] = ()) -> soak.Soaked:
    return soak.Soaked(
        load=load,
        published=1,
        alerts=1,
        decisions=1,
        behind=0,
        grown={},
        rss_mb={},
        left={},
        redis_keys_left=0,
        failures=list(failures),
        environment={},
        shortened=shortened(),
    )


async def test_document_shows_the_promise_and_the_commit_that_were_measured(tmp_path: Path) -> None:
    """A result speaks for what ran then."""
    a_row = row(Outcome(LOST), "lost")
    held = msgspec.structs.replace(await full(a_row, tmp_path), commit="abc1234*", promise="It held.")
    text = document([a_row], [held], [], None, 2)
    assert "It held." in text
    assert f"| {held.at[:10]} abc1234* |" in text


def test_legend_explains_every_column() -> None:
    """In the checker's words, under the names that the table has."""
    told = {name for names, _ in legend() for name in names.split(", ")}
    assert {column for column in COLUMNS if column not in OWN_COLUMNS} <= told
    assert "faults" in COLUMNS
    assert "kills" not in COLUMNS


OWN_COLUMNS = ("fault", "verdict", "ablations noticed", "measured")


def test_order_alerts_are_spread_evenly() -> None:
    """Every tenth event is an alert, not the first five hundred of each second."""
    load, chance = soak.Load(1, 5_000, 500, 10, 0), random.Random(1)
    alerts = [b"12000" in soak.order(number, load, chance, 0)[0] for number in range(100)]
    assert [index for index, is_alert in enumerate(alerts) if is_alert] == list(range(0, 100, 10))


WITHOUT_ABLATIONS = ("kill -9 of workers, slow model",)
"""'kill -9 of workers' with another model."""


def test_rows_are_sound() -> None:
    """Every row says what it promises and has a safeguard whose removal it notices; every ablation that it names exists, and
    looks for no count that is there without any fault."""
    for a_row in [*all_rows().values(), soak.SHORTENED]:
        assert a_row.promise.endswith(".")
        assert bool(a_row.ablations) is (a_row.name not in WITHOUT_ABLATIONS), a_row.name
        for ablation in a_row.ablations:
            assert callable(ablations.named(ablation.name))
            assert {word for word in ablation.wrong if word in COUNTS} <= {*ZEROS, "repeated", "two_owners"}


def test_failpoints_are_at_least_ten_places() -> None:
    """Each at a function that exists."""
    assert len(FAILPOINTS) >= 10
    for point in FAILPOINTS.values():
        assert callable(getattr(point.owner, point.function))
