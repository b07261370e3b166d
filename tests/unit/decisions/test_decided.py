"""A look-back finds in the log what was decided, and reads no more of it than it must."""

from collections.abc import AsyncIterator

import pytest

from app.broker.base import Assignment
from app.broker.memory import MemoryReader
from app.core.clock import Clock, ManualClock, run_virtual
from app.core.record import Headers, Record, TopicPartition
from app.decisions import decided as decided_module
from app.decisions.decided import LOOK_BACK_MS, look_back, written_ms
from app.decisions.record import forgotten_headers
from app.decisions.remembered import Remembered
from tests.decisions_kit import ALERTS, START_MS, World, large_order

MINUTE_MS = 60_000


def known(decided: Remembered[str, bool], alert_id: str) -> bool:
    return decided.get(1, alert_id) is not None


def look(entries: list[tuple[int, Headers]], offset: int, alert_ages_ms: list[int]) -> Remembered[str, bool]:
    """What a look-back learns from decisions written so many ms ago."""

    async def main(_: Clock) -> Remembered[str, bool]:
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
        decided: Remembered[str, bool] = Remembered()
        assignment = Assignment(ALERTS.name, 1, 1)
        await look_back(world.broker.reader(), clock, "judge", "live", assignment, offset, decided)
        return decided

    return run_virtual(main, START_MS)


def headers(alert_id: str, agent: str = "judge", mode: str = "live") -> Headers:
    return (("agent", agent.encode()), ("alert_id", alert_id.encode()), ("mode", mode.encode()))


def test_look_back_reaches_ten_minutes_before_the_first_unfinished_alert() -> None:
    """What was decided since then is known, what was decided earlier is not needed."""
    day_ms = 86_400_000
    entries = [(day_ms + LOOK_BACK_MS + 1, headers("too:old")), (day_ms + LOOK_BACK_MS - 1, headers("in:time"))]
    decided = look(entries, offset=1, alert_ages_ms=[2 * day_ms, day_ms])
    assert (False, True) == (known(decided, "too:old"), known(decided, "in:time"))


def test_look_back_without_unfinished_alert_reaches_back_from_now() -> None:
    """With nothing to do, repeats of the last ten minutes are known."""
    entries = [(LOOK_BACK_MS + 1, headers("too:old")), (MINUTE_MS, headers("in:time"))]
    decided = look(entries, offset=2, alert_ages_ms=[2 * MINUTE_MS, 2 * MINUTE_MS])
    assert (False, True) == (known(decided, "too:old"), known(decided, "in:time"))


def test_look_back_counts_own_live_decisions() -> None:
    """Decisions of other agents and of shadows say nothing about a live agent."""
    entries = [
        (MINUTE_MS, headers("a:1", agent="another")),
        (MINUTE_MS, headers("a:2", mode="shadow")),
        (MINUTE_MS, headers("a:3")),
    ]
    decided = look(entries, offset=0, alert_ages_ms=[])
    assert [False, False, True] == [known(decided, f"a:{number}") for number in (1, 2, 3)]


def test_look_back_reads_a_bounded_part_of_the_log(monkeypatch: pytest.MonkeyPatch) -> None:
    """However long the log since the first unfinished alert is, only its last part is read."""
    monkeypatch.setattr(decided_module, "LOOK_BACK_OFFSETS", 2)
    decided = look([(MINUTE_MS, headers(f"a:{number}")) for number in range(4)], offset=0, alert_ages_ms=[])
    assert [False, False, True, True] == [known(decided, f"a:{number}") for number in range(4)]


def test_look_back_foreign_headers_stop_nothing() -> None:
    """A record whose id is no text says nothing, and the next one counts."""
    foreign = (("agent", b"judge"), ("alert_id", b"\xff\xfe"), ("mode", b"live"))
    decided = look([(MINUTE_MS, foreign), (MINUTE_MS, headers("a:1"))], offset=0, alert_ages_ms=[])
    assert known(decided, "a:1")


def test_written_ms_reads_over_a_gap() -> None:
    """Where the offset itself holds no record (compaction, a transaction's mark), the next one's time counts."""

    class Gapped(MemoryReader):
        async def read(self, place: TopicPartition, start: int, stop: int) -> AsyncIterator[list[Record]]:
            async for batch in super().read(place, start, stop):
                yield [record for record in batch if record.offset != 0]

    async def main(clock: Clock) -> None:
        manual = ManualClock(START_MS - 5)
        world = await World.create(manual)
        world.send(large_order())
        world.send(large_order())
        manual.time_ms = START_MS
        (record, _) = world.records(ALERTS.name)
        place = TopicPartition(ALERTS.name, record.partition)
        assert START_MS - 5 == await written_ms(Gapped(world.broker), manual, place, 0)

    run_virtual(main, START_MS)


def test_look_back_finds_nobody_in_a_forgotten_decision() -> None:
    """What stands in its place names no alert, whatever else its headers say."""
    decided = look([(MINUTE_MS, forgotten_headers(headers("a:1"), 1))], offset=0, alert_ages_ms=[0])
    assert 0 == len(decided)
