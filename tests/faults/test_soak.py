"""The judgement of the soak, on planted samples: what it must find, one thing at a time; and results of before."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import msgspec
import pytest

from agents import app
from tests.faults import results, soak
from tests.faults.gauges import Gauges
from tests.faults.test_fault_results import shortened, soaked

LOAD = soak.Load(1, 100, 10, 50, 0.2)
MIDDLE_MS, END_MS, OVER_MS = 30_000, 60_000, 72_000
FLAT = 100 * 2**20
KEYS = 50 + len(app.views)


def gauges(rss_bytes: Callable[[int], int] = lambda at_ms: FLAT, lanes: int = 0, entries: int = 0) -> list[Gauges]:
    """One a second, with nothing left at the end but these."""
    busy = [Gauges(at_ms, rss_bytes(at_ms), 5, 7, 90, 100) for at_ms in range(0, OVER_MS, 1_000)]
    return [*busy, Gauges(OVER_MS, rss_bytes(OVER_MS), lanes, 0, entries, 100)]


def failures(
    agents: Sequence[Gauges] | None = None, streams: Sequence[Gauges] | None = None, **changed: Any
) -> list[str]:
    """Of a run that held but for this."""
    seen = soak.Seen(
        gauges={"agents+actions": agents or gauges(), "streams+features": streams or gauges()},
        middle_ms=MIDDLE_MS,
        end_ms=END_MS,
        published=6_000,
        alerts=598,
        decisions=590,
        in_all=600,
        final=600,
        keys=51,
        lasting=0,
        elapsed_s=60.5,
        codes=[0, 0],
    )
    return soak.judged(LOAD, msgspec.structs.replace(seen, **changed), {}).failures


def test_judged_everything_given_back_holds() -> None:
    """Lanes and entries while the load lasts are no leak, nor is memory that grows before the middle or in a moment; and the
    last alerts may be raised after the last event."""
    assert [] == failures()
    assert [] == failures(gauges(lambda at_ms: FLAT if at_ms > 20_000 else FLAT // 2))
    assert [] == failures(gauges(lambda at_ms: 2 * FLAT if at_ms == END_MS else FLAT))


@pytest.mark.parametrize(
    ("expected", "changed"),
    [
        (
            "agents+actions: 100 MB in the middle, 118 MB at the end",
            {"agents": gauges(lambda at_ms: FLAT + at_ms * 2**20 // 1_500 - 20 * 2**20)},
        ),
        ("3 agents+actions lanes were never given back", {"agents": gauges(lanes=3)}),
        ("90 streams+features entries were never given back", {"streams": gauges(entries=90)}),
        ("published in 62 s what was meant for 60 s", {"elapsed_s": 61.7}),
        ("51 alerts without a decision when the load ended", {"decisions": 547}),
        ("600 alerts, 599 decisions", {"final": 599}),
        ("2 keys of the store have no end", {"lasting": 2}),
        (f"{KEYS + 1} keys in the store of 50 shoppers", {"keys": KEYS + 1}),
        ("a worker ended with -9", {"codes": [0, -9]}),
    ],
)
def test_judged_one_thing_wrong_is_named(expected: str, changed: dict[str, Any]) -> None:
    """That thing alone."""
    assert [expected] == failures(**changed)


def test_latest_result_of_before_is_read_without_ablations(tmp_path: Path) -> None:
    """Whose load had fewer settings, and is still the full one; ablations are found beside it once they are kept."""
    assert soak.latest(tmp_path) is None
    before = msgspec.to_builtins(soaked())
    del before["shortened"], before["load"]["remember"], before["load"]["past_minutes"]
    (tmp_path / soak.KEPT_IN).write_bytes(msgspec.json.encode(before))
    found = soak.latest(tmp_path)
    assert found is not None
    assert (soak.FULL, None) == (found.load, found.shortened)
    results.keep(tmp_path, shortened())
    soak.keep(tmp_path, found)
    found = soak.latest(tmp_path)
    assert found is not None
    assert shortened() == found.shortened
