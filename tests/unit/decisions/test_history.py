"""What was decided is found again: newest first, by what one looks for, in bounded pieces; and which decision stands."""

import msgspec
import pytest

from app.broker.memory import MemoryBroker
from app.core.clock import Clock, ManualClock, run_virtual
from app.core.codec import encode
from app.core.record import TopicPartition
from app.decisions import history
from app.decisions.history import Found, PassedOver, Wanted, about_alert, at_place, effects_of, newest, standing
from app.decisions.log import Link
from app.decisions.record import DECISIONS, DecisionRecord, decision_headers, decision_key, forgotten_headers
from tests.decisions_kit import (
    DECISIONS as SPEC,
)
from tests.decisions_kit import START_MS, World, answering, large_order, make_agent, until, with_actions
from tests.unit.decisions.test_log import record


def written(number: int, **changes: object) -> DecisionRecord:
    return msgspec.structs.replace(record(Link("judge/1/1/0", number, "")), **changes)


async def log_of(records: list[DecisionRecord], clock: ManualClock) -> MemoryBroker:
    """A log of these decisions, one a second, each in the partition it names."""
    broker = MemoryBroker(clock)
    await broker.admin().create([SPEC])
    for one in records:
        key = decision_key(one.writer, one.number)
        broker.append(DECISIONS, encode(one), key, one.alert_partition, 0, decision_headers(one))
        clock.advance(1_000)
    return broker


async def found_in(broker: MemoryBroker, wanted: Wanted, limit: int = 1_000) -> list[int]:
    found = newest(broker.reader(), 2, wanted, limit, PassedOver())
    return [one.record.number async for one in found]


async def test_newest_of_all_partitions_comes_first() -> None:
    """Partitions are merged by the time of writing, and no more are given than were asked for."""
    records = [written(number, alert_partition=number % 3 % 2) for number in range(300)]
    broker = await log_of(records, ManualClock(START_MS))
    assert list(range(299, -1, -1)) == await found_in(broker, Wanted())
    assert [299, 298, 297] == await found_in(broker, Wanted(), 3)


@pytest.mark.parametrize(
    ("wanted", "expected"),
    [
        (Wanted(agent="other"), [1]),
        (Wanted(entity="u-2"), [2]),
        (Wanted(action="allow"), [3]),
        (Wanted(reason="policy_rule"), [4]),
        (Wanted(reason="policy_rule:limit"), [4]),
        (Wanted(reason="policy"), []),
        (Wanted(mode="shadow"), [5]),
        (Wanted(mode="live", entity="u-2"), [2]),
        (Wanted(since_ms=START_MS + 4_000), [5, 4]),
        (Wanted(until_ms=START_MS + 2_000), [1, 0]),
        (Wanted(since_ms=START_MS + 1_000, until_ms=START_MS + 3_000), [2, 1]),
        (Wanted(since_ms=START_MS + 60_000), []),
    ],
)
async def test_newest_finds_what_is_wanted(wanted: Wanted, expected: list[int]) -> None:
    """By agent, entity, action, reason with or without its detail, mode and time."""
    records = [
        written(0),
        written(1, agent="other"),
        written(2, entity="u-2"),
        written(3, decision=msgspec.Raw(b'{"action":"allow"}')),
        written(4, reasons=("policy_rule:limit",)),
        written(5, mode="shadow"),
    ]
    assert expected == await found_in(await log_of(records, ManualClock(START_MS)), wanted)


async def test_newest_passes_over_what_is_forgotten_or_no_decision() -> None:
    """Both are counted, the one by its header alone."""
    broker = await log_of([written(0)], ManualClock(START_MS))
    broker.append(DECISIONS, b"\xff", b"k", 1, 0, forgotten_headers((), 1))
    broker.append(DECISIONS, b"\xff", b"k", 1, 0, ())
    broker.append(DECISIONS, encode(written(1, decision=msgspec.Raw(b"[]"))), b"k", 1, 0, ())
    passed_over = PassedOver()
    assert [0] == [one.record.number async for one in newest(broker.reader(), 2, Wanted(), 9, passed_over)]
    assert PassedOver(1, 2) == passed_over


async def test_newest_reads_pieces_by_their_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the pieces, the order is the same; large records are read in small pieces."""
    monkeypatch.setattr(history, "FIRST_PIECE", 2)
    monkeypatch.setattr(history, "PIECE_BYTES", 5_000)
    broker = await log_of([written(number) for number in range(50)], ManualClock(START_MS))
    asked: list[int] = []
    read = broker.reader

    class Watched:
        def __getattr__(self, name: str) -> object:
            return getattr(read(), name)

        def read(self, place: TopicPartition, start: int, stop: int) -> object:
            asked.append(stop - start)
            return read().read(place, start, stop)

    found = newest(Watched(), 2, Wanted(), 1_000, PassedOver())  # type: ignore[arg-type]
    assert list(range(49, -1, -1)) == [one.record.number async for one in found]
    assert max(asked) <= 5_000 // len(encode(written(0))) + 2


async def forgotten_log(clock: ManualClock) -> MemoryBroker:
    """Three decisions about one alert, of which the second, written twice, is forgotten at the end; its bytes are still
    there."""
    records = [written(number, alert_id="a-1") for number in (0, 1, 1, 2)]
    broker = await log_of(records, clock)
    key = decision_key(records[1].writer, 1)
    broker.append(DECISIONS, b"{}", key, 1, 0, forgotten_headers(decision_headers(records[1]), START_MS))
    return broker


@pytest.mark.parametrize(
    "wanted", [Wanted(), Wanted(entity="u-1"), Wanted(until_ms=START_MS + 3_500), Wanted(until_ms=START_MS + 4_000)]
)
async def test_newest_hides_what_was_forgotten_later(wanted: Wanted) -> None:
    """The old bytes lie before what replaces them, until compaction; also where only older ones are asked for."""
    broker = await forgotten_log(ManualClock(START_MS))
    assert [2, 0] == await found_in(broker, wanted)


async def test_about_alert_and_at_place_hide_what_was_forgotten_later() -> None:
    """Whoever knows the alert or the place sees no more than who lists."""
    broker = await forgotten_log(ManualClock(START_MS))
    passed_over = PassedOver()
    found = await about_alert(broker.reader(), 2, "a-1", passed_over)
    assert ([0, 2], PassedOver(1, 0)) == ([one.record.number for one in found], passed_over)
    places = [await at_place(broker.reader(), 1, offset, PassedOver()) for offset in range(5)]
    assert [True, False, False, True, False] == [one is not None for one in places]


async def test_without_the_later_record_the_forgotten_would_be_shown() -> None:
    """Ablation: nothing else hides them, since every byte is there."""
    broker = await forgotten_log(ManualClock(START_MS))
    del broker.logs[TopicPartition(DECISIONS, 1)][-1]
    assert [2, 1, 1, 0] == await found_in(broker, Wanted())
    assert 4 == len(await about_alert(broker.reader(), 2, "a-1", PassedOver()))


async def test_at_place_finds_the_one_decision() -> None:
    """None where there is none (any more)."""
    broker = await log_of([written(0), written(1)], ManualClock(START_MS))
    one = await at_place(broker.reader(), 1, 1, PassedOver())
    assert one is not None
    assert (1, "1/1") == (one.record.number, one.place)
    assert await at_place(broker.reader(), 1, 2, PassedOver()) is None


def test_standing_is_what_effects_came_from() -> None:
    """The entry on agent.effects says it; its state is the furthest of all that was written."""

    async def main(clock: Clock) -> None:
        world = await World.create(clock, answering("block"))
        agent = with_actions(make_agent())
        shadow = world.agent_work(agent, mode="shadow")
        async with world.running(shadow, world.agent_work(agent), world.actions_work(agent)):
            world.send(large_order())
            await until(lambda: len(world.receiver.calls) == 2 and len(world.records(DECISIONS)) == 2)
        decisions = await about_alert(world.broker.reader(), 2, large_order().alert_id, PassedOver())
        entered = await effects_of(world.broker.reader(), 1, large_order().alert_id, agent.name)
        assert entered is not None
        assert {"block_order": "done", "notify": "done"} == {
            name: status.state.value for name, status in entered.effects.items()
        }
        stands = standing(decisions, agent.name, entered)
        assert stands is not None
        assert ("live", entered.decision_sha256) == (stands.record.mode, stands.sha256)

    run_virtual(main, START_MS)


def test_standing_without_an_entry_is_the_first_live_one() -> None:
    """Until the actions have come to it; other modes and other agents never stand."""
    records = [written(0, mode="shadow"), written(1, agent="other"), written(2), written(3)]
    decisions = [Found(1, number, 0, f"{number}", one) for number, one in enumerate(records)]
    assert decisions[2] == standing(decisions, "judge", None)
    assert standing(decisions, "nobody", None) is None
