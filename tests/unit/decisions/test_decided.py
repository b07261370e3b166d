"""The memory of decided alerts is bounded, and a look-back fills it from the log."""

from app.broker.base import Assignment, CommittedOffset
from app.core.clock import Clock, ManualClock, run_virtual
from app.core.record import Headers
from app.decisions.decided import HORIZON_MS, LOOK_BACK_MS, DecidedAlerts, look_back
from tests.decisions_kit import ALERTS, START_MS, World, large_order

MINUTE_MS = 60_000


def test_decided_alerts_keeps_the_newest() -> None:
    """Beyond its capacity the oldest ids go, whichever partition they are of."""
    decided = DecidedAlerts(capacity=3)
    for number in range(5):
        decided.add(number % 2, f"a:{number}", 1_000 + number)
    assert 3 == len(decided)
    assert [False, False, True, True, True] == [decided.holds(number % 2, f"a:{number}") for number in range(5)]


def test_decided_alerts_old_ids_go() -> None:
    """After a day an id is forgotten."""
    decided = DecidedAlerts()
    decided.add(0, "a:1", 1_000)
    decided.add(0, "a:2", 1_001 + HORIZON_MS)
    assert (False, True) == (decided.holds(0, "a:1"), decided.holds(0, "a:2"))


def test_decided_alerts_forget_drops_one_partition() -> None:
    """A lost partition takes its ids along, and their places in the order do no harm when it comes back."""
    decided = DecidedAlerts(capacity=2)
    decided.add(0, "a:1", 1_000)
    decided.add(1, "a:1", 1_000)
    decided.forget(0)
    assert (False, True) == (decided.holds(0, "a:1"), decided.holds(1, "a:1"))
    decided.add(0, "a:1", 2_000)
    assert decided.holds(0, "a:1")


def look(entries: list[tuple[int, Headers]], offset: int, alert_ages_ms: list[int]) -> DecidedAlerts:
    """What a look-back learns from decisions written so many ms ago."""

    async def main(_: Clock) -> DecidedAlerts:
        clock = ManualClock(START_MS - 7 * 86_400_000)
        world = await World.create(clock)
        moments = [(age, None) for age in alert_ages_ms] + [(age, headers) for age, headers in entries]
        for age_ms, headers in sorted(moments, key=lambda one: -one[0]):
            clock.time_ms = START_MS - age_ms
            if headers is None:
                world.send(large_order())
            else:
                world.broker.append("agent.decisions", b"{}", b"u-1", 1, 0, headers)
        clock.time_ms = START_MS
        decided = DecidedAlerts()
        assignment = Assignment(ALERTS.name, 1, 1)
        committed = {assignment: CommittedOffset(offset)}
        await look_back(world.broker.reader(), clock, "judge", "live", committed, decided)
        return decided

    return run_virtual(main, START_MS)


def headers(alert_id: str, agent: str = "judge", mode: str = "live") -> Headers:
    return (("agent", agent.encode()), ("alert_id", alert_id.encode()), ("mode", mode.encode()))


def test_look_back_reaches_ten_minutes_before_the_first_unfinished_alert() -> None:
    """What was decided since then is known, what was decided earlier is not needed."""
    day_ms = 86_400_000
    entries = [(day_ms + LOOK_BACK_MS + 1, headers("too:old")), (day_ms + LOOK_BACK_MS - 1, headers("in:time"))]
    decided = look(entries, offset=1, alert_ages_ms=[2 * day_ms, day_ms])
    assert (False, True) == (decided.holds(1, "too:old"), decided.holds(1, "in:time"))


def test_look_back_without_unfinished_alert_reaches_back_from_now() -> None:
    """With nothing to do, repeats of the last ten minutes are known."""
    entries = [(LOOK_BACK_MS + 1, headers("too:old")), (MINUTE_MS, headers("in:time"))]
    decided = look(entries, offset=2, alert_ages_ms=[2 * MINUTE_MS, 2 * MINUTE_MS])
    assert (False, True) == (decided.holds(1, "too:old"), decided.holds(1, "in:time"))


def test_look_back_counts_own_live_decisions() -> None:
    """Decisions of other agents and of shadows say nothing about a live agent."""
    entries = [
        (MINUTE_MS, headers("a:1", agent="another")),
        (MINUTE_MS, headers("a:2", mode="shadow")),
        (MINUTE_MS, headers("a:3")),
    ]
    decided = look(entries, offset=0, alert_ages_ms=[])
    assert [False, False, True] == [decided.holds(1, f"a:{number}") for number in (1, 2, 3)]
