"""Publications at their moments: spacing, order, playing."""

from itertools import islice, pairwise
from random import Random

import pytest

from app.broker.memory import MemoryBroker
from app.broker.topics import TopicSpec
from app.core.clock import Clock, run_virtual
from app.core.errors import RecordTooEarly
from app.core.record import TopicPartition
from app.sources.generator import Agenda, Publication, moments, play, told

START_MS = 1_700_000_000_000


def publication(at_ms: int, value: bytes = b"{}") -> Publication:
    return Publication(at_ms, "raw.orders", b"u-1", value, at_ms)


def test_agenda_act_before_its_time_waits() -> None:
    """An act is not taken before its moment."""
    agenda = Agenda(spacing_ms=50)
    agenda.add(100, "u-1", publication)
    assert agenda.take(99) is None
    assert publication(100) == agenda.take(100)
    assert agenda.take(101) is None


def test_agenda_equal_times_keeps_order() -> None:
    """Acts that are due together come in the order in which they were added."""
    agenda = Agenda(spacing_ms=0)
    for name in ("b", "a", "c"):
        agenda.add(10, name, lambda at_ms, name=name: publication(at_ms, name.encode()))  # type: ignore[misc]
    taken = [agenda.take(10) for _ in range(3)]
    assert [b"b", b"a", b"c"] == [one.value for one in taken if one]


def test_agenda_busy_entity_lets_others_pass() -> None:
    """An entity that has just acted waits out its spacing; another one's act comes first."""
    agenda = Agenda(spacing_ms=50)
    for entity in ("u-1", "u-1", "u-2"):
        agenda.add(0, entity, lambda at_ms, entity=entity: publication(at_ms, entity.encode()))  # type: ignore[misc]
    taken = [agenda.take(at_ms) for at_ms in (0, 10, 20, 49, 50)]
    assert [b"u-1", b"u-2", None, None, b"u-1"] == [one.value if one else None for one in taken]


def test_told_begins_a_story_only_where_nothing_is_due() -> None:
    """What is scheduled comes first, and nothing is made before it is asked for."""
    agenda, begun = Agenda(spacing_ms=0), list[int]()

    def begin(at_ms: int) -> None:
        begun.append(at_ms)
        agenda.add(at_ms, "u-1", publication)
        agenda.add(at_ms + 15, "u-1", publication)

    telling = told(agenda, range(0, 100, 10), begin)
    assert [] == begun
    assert [0, 10, 20, 30] == [one.at_ms for one in islice(telling, 4)]
    assert [0, 10] == begun


def test_moments_any_start_keeps_gaps_and_quiet() -> None:
    """Moments keep their distance from each other and from the boundaries."""
    for start_ms in (START_MS, START_MS + 29_990, START_MS + 7):
        found = list(islice(moments(Random(1), start_ms, range(5, 36), 30_000, 50), 5_000))
        assert all(later - earlier >= 5 for earlier, later in pairwise(found))
        assert all(50 <= at_ms % 30_000 < 29_950 for at_ms in found)


def test_play_publishes_at_the_planned_moments() -> None:
    """Each record is written when the clock shows its moment, one in the past at once."""

    async def main(clock: Clock) -> None:
        broker = MemoryBroker(clock)
        await broker.admin().create([TopicSpec(name="raw.orders", partitions=1, time="written")])
        plan = [publication(START_MS + wait_ms) for wait_ms in (-5, 0, 20, 3_600_000)]
        assert 4 == await play(plan, broker.producer(), clock)
        written_ms = [record.timestamp_ms - START_MS for record in broker.log(TopicPartition("raw.orders", 0))]
        assert [0, 0, 20, 3_600_000] == written_ms

    run_virtual(main, START_MS)


def test_play_refused_record_raises() -> None:
    """A plan whose record the broker refuses does not go on as if nothing had been."""

    async def main(clock: Clock) -> None:
        broker = MemoryBroker(clock)
        await broker.admin().create([TopicSpec(name="raw.orders", partitions=1, time="event", max_ahead_ms=1_000)])
        far = Publication(START_MS, "raw.orders", b"u-1", b"{}", START_MS + 2_000)
        with pytest.raises(RecordTooEarly):
            await play([far], broker.producer(), clock)

    run_virtual(main, START_MS)
