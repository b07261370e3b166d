"""What every row demands beside the zeros: nobody is asked for no reason, a freeze costs its worker something, and no worker
dies by itself."""

from pathlib import Path

import msgspec
import pytest

from tests.faults.checker import check
from tests.faults.history import Decided, EffectEntry, Ended, Fault, Held, History, Owned, Published
from tests.faults.judging import TIMEOUT_MS, condemned_beyond, not_taken_over, reported_beyond
from tests.faults.workers import Workers

OTHERS = [Fault("SIGSTOP", "worker-9", 2_500), Fault("healed", "network", 2_500, breaks=False)]
DECIDED = Decided(
    alert_id="a-0", partition=0, offset=0, at_ms=1_500, mode="live", action="block", reason="r", is_fallback=False
)
BEFORE = Fault("killed at: effects not yet entered", "worker-1", 1_800)
KILLED, GONE = Fault("kill -9", "worker-1", 2_500), Fault("kill of Kafka", "kafka", 2_500)
HELD = [Held("worker-1", "agent.decisions", 0, 1_000), Held("worker-9", "agent.decisions", 1, 1_000)]
MOVED = [*HELD, Held("worker-9", "agent.decisions", 0, 2_500)]


@pytest.mark.parametrize(
    ("state", "name", "faults", "held", "end_ms", "is_wrong"),
    [
        ("unknown", "hold_payment", [KILLED], HELD, 5_000, False),
        ("unknown", "hold_payment", [GONE], HELD, 5_000, False),
        ("unknown", "hold_payment", [], MOVED, 5_000, False),
        ("unknown", "hold_payment", [], HELD, 5_000, True),
        ("unknown", "hold_payment", [], HELD, 2_100 + TIMEOUT_MS, False),
        ("unknown", "block_order", [KILLED], HELD, 5_000, True),
        ("withheld", "hold_payment", [KILLED], HELD, 5_000, True),
        ("failed", "block_order", [KILLED] * 2, HELD, 5_000, True),
        ("failed", "block_order", [KILLED] * 3, HELD, 5_000, False),
        ("failed", "block_order", [BEFORE, KILLED, KILLED], HELD, 5_000, False),
    ],
)
def test_reported_effects_are_explained_by_what_was_done_to_their_owner(
    state: str, name: str, faults: list[Fault], held: list[Held], end_ms: int, *, is_wrong: bool
) -> None:
    """A call that was claimed is broken off by one thing, or ends by its time limit; three deaths make a decision that is
    given up; what is done to others is no reason."""
    entry = EffectEntry("a-0", 0, 0, 2_000, 0, {name: "intended"}, ended=False)
    effects = [entry] + [
        msgspec.structs.replace(entry, at_ms=at_ms, states={name: reached})
        for reached, at_ms in {"called": 2_100, state: end_ms}.items()
    ]
    history = History(decisions=[DECIDED], effects=effects, faults=[*faults, *OTHERS], held=held)
    assert is_wrong is bool(reported_beyond(history))


CONDEMNED = msgspec.structs.replace(DECIDED, at_ms=6_000, is_fallback=True, codes=("crashed",))
DIED = [Owned("worker-1", 0, 1_000, 0), Owned("worker-2", 0, 3_000, 0), Owned("worker-3", 0, 5_000, 9_000, 8_000)]
DEATHS = [Fault("kill -9", "worker-1", 2_500), Fault("kill -9", "worker-2", 4_500)]
LOST = Owned("worker-9", 0, 1_000, 2_500)
KILLED_IN_ITS_DRAIN, FROZEN = Owned("worker-1", 0, 1_000, 0, 2_400), Owned("worker-9", 0, 1_000, 9_000, 8_900)


@pytest.mark.parametrize(
    ("published_ms", "owned", "faults", "number", "is_wrong"),
    [
        (1_500, DIED, DEATHS, 1, False),
        (1_500, DIED, DEATHS, 2, False),
        (1_500, DIED, DEATHS, 3, True),
        (3_100, DIED, DEATHS, 1, True),
        (1_500, [KILLED_IN_ITS_DRAIN, *DIED[1:]], DEATHS, 2, False),
        (1_500, [FROZEN, *DIED[1:]], DEATHS, 2, False),
        (1_500, [LOST, *DIED[1:]], DEATHS, 1, False),
        (1_500, [msgspec.structs.replace(LOST, revoked_ms=2_400), *DIED[1:]], DEATHS, 1, True),
    ],
)
def test_condemned_alerts_are_explained_by_unclean_ends(
    published_ms: int, owned: list[Owned], faults: list[Fault], number: int, *, is_wrong: bool
) -> None:
    """Two at least since it was published, killed or lost, of owners of its partition; each end condemns one at the most."""
    ids = [f"a-{one}" for one in range(number)]
    history = History(
        published=[Published(alert_id, 0, offset, published_ms) for offset, alert_id in enumerate(ids)],
        decisions=[
            msgspec.structs.replace(CONDEMNED, alert_id=alert_id, offset=offset) for offset, alert_id in enumerate(ids)
        ],
        owned=owned,
        faults=faults,
    )
    assert is_wrong is bool(condemned_beyond(history))


@pytest.mark.parametrize(("taken_ms", "shows"), [(2_999, False), (4_000, True), (7_001, False)])
def test_freeze_shows_something_when_another_worker_took_over_meanwhile(taken_ms: int, *, shows: bool) -> None:
    """Before it the partition was none of the frozen worker's, and after it the worker may have given it up."""
    faults = [Fault("SIGSTOP", "worker-1", 3_000), Fault("SIGCONT", "worker-1", 7_000, breaks=False)]
    held = [*HELD, Held("worker-9", "agent.decisions", 0, taken_ms)]
    assert shows is (not_taken_over(faults, held) == [])
    assert not_taken_over(faults, HELD) == ["worker-1 was frozen at 3000, and lost nothing by it"]


async def test_endings_tell_what_died_by_itself_from_what_was_killed(tmp_path: Path) -> None:
    """A worker that does not know its arguments ends with 2, and killing it afterwards is no excuse; one that waits is
    killed."""
    workers = Workers(tmp_path, ["--no-such-option"], {})
    broken, waiting = workers.start(), workers.start(waits=True)
    assert await workers.ended(broken, 30)
    workers.kill(broken)
    workers.kill(waiting)
    assert [
        Ended("worker-1", 2, "", str(tmp_path / "worker-1.log")),
        Ended("worker-2", -9, "kill", str(tmp_path / "worker-2.log")),
    ] == workers.endings()
    (problem,) = check(History(ended=workers.endings())).problems
    assert (
        f"workers_died: worker-1 ended with 2 after nothing was done to it: see {tmp_path / 'worker-1.log'}" == problem
    )
