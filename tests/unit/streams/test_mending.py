"""What lies behind an owner's newer values is found by a table's end alone, and written again."""

import asyncio
from collections.abc import Iterable, Mapping

import pytest

from app.broker.base import Assignment, CommittedOffset
from app.broker.memory import MemoryBroker, MemoryConsumer, MemoryReader
from app.core.clock import Clock, run_virtual
from app.core.errors import Fenced, SetupError
from app.core.record import TopicPartition
from app.streams import engine as engine_module
from app.streams.aggregates import Accumulator
from app.streams.engine import Engine
from app.streams.expressions import Kind
from app.streams.mending import mend
from app.streams.tables import PartitionState, Slices
from features.records import order_events
from tests.unit.streams.test_restore import GROUP, MINUTE_MS, START_MS, new_broker, publish, rate, view

TABLE = TopicPartition("state.rate", 0)
OLD = b'{"version":0,"n":1,"usd":2.50}'


def key(start_ms: int = START_MS) -> bytes:
    return b'{"user_id":"u1","window_start":%d}' % start_ms


def state_of(*, emits_rows: bool) -> tuple[PartitionState, Slices]:
    slices = Slices(TABLE, 60, 60, [Accumulator("n", "sum", Kind.INTEGER)], emits_rows=emits_rows)
    return PartitionState(TopicPartition("raw.orders", 0), 5, {"rate": slices}, {}), slices


def test_mend_older_value_behind_an_open_entry_is_a_change() -> None:
    """Once, however many; what is as new or newer, and what is changed anyhow, needs nothing."""
    state, slices = state_of(emits_rows=True)
    slices.open_slice(60).update({"older": [7, False, 1], "same": [7, False, 1], "changed": [7, True, 1]})
    slices.changed.append((60, "changed", slices.open[60]["changed"]))
    assert 2 == mend(state, "rate", {(60, "older"): 3, (60, "same"): 7, (60, "changed"): 3, (60, "ahead"): 9})
    assert 0 == mend(state, "rate", {(60, "same"): 8})
    assert ["changed", "older"] == sorted(name for _, name, _ in slices.changes())
    assert not slices.over


def test_mend_value_of_a_window_that_is_over_waits_for_its_tombstone() -> None:
    """It is over by the partition's time, not by what is open; tiles go by themselves."""
    for emits_rows, expected in ((True, [0]), (False, [])):
        state, slices = state_of(emits_rows=emits_rows)
        state.reached_ms, state.position = 65, 4
        assert 0 == mend(state, "rate", {(0, "over"): 3, (60, "ahead"): 3, (-60, "gone"): None})
        assert expected == [place[0] for over in slices.over for place in over.entries]
        assert all(3 == over.closed_at for over in slices.over)


async def run_with(broker: MemoryBroker, clock: Clock, writes: list[tuple[bytes, bytes]]) -> Engine:
    """An engine that runs while somebody else writes into its table."""
    stopping = asyncio.Event()
    engine = Engine(broker, [order_events.source], {"rate": rate()}, clock, GROUP)
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(engine.run(stopping))
        await asyncio.sleep(3)
        for written, value in writes:
            broker.append(TABLE.topic, value, written, TABLE.partition, 0, ())
        await asyncio.sleep(2 * engine_module.CHECK_S)
        stopping.set()
    return engine


def test_engine_value_written_behind_its_own_is_written_again_on_a_quiet_partition() -> None:
    """No event and no commit is needed; the next check finds nothing more."""

    async def main(clock: Clock) -> None:
        broker = await new_broker({"rate": rate()})
        publish(broker, 1, START_MS)
        publish(broker, 2, START_MS + 1)
        engine = await run_with(broker, clock, [(key(), OLD), (key(), OLD)])
        assert 1 == engine.statistics.mended
        (last,) = [record.value for record in broker.logs[TABLE] if record.key == key()][-1:]
        assert b'{"version":1,"n":2,"usd":5.00}' == last

    run_virtual(main, START_MS)


def test_engine_value_behind_a_tombstone_gets_another_one() -> None:
    """Or the key of a window long over would stay for ever."""

    async def main(clock: Clock) -> None:
        broker = await new_broker({"rate": rate()})
        publish(broker, 1, START_MS)
        publish(broker, 2, START_MS + 3 * MINUTE_MS)
        await run_with(broker, clock, [(key(), OLD)])
        assert [OLD, None] == [record.value for record in broker.logs[TABLE] if record.key == key()][-2:]

    run_virtual(main, START_MS)


def test_engine_that_owns_nothing_any_more_mends_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Expelled, and not told since nothing moves: its commit is refused, so it does not write against the real owner."""

    async def refuse(self: MemoryConsumer, offsets: Mapping[Assignment, CommittedOffset]) -> None:
        if offsets and len(self._broker.logs[TABLE]) > 3:
            raise Fenced("another's")
        await commit(self, offsets)

    async def main(clock: Clock) -> None:
        broker = await new_broker({"rate": rate()})
        publish(broker, 1, START_MS)
        publish(broker, 2, START_MS + 1)
        engine = await run_with(broker, clock, [(key(), OLD), (key(), OLD)])
        assert (0, OLD) == (engine.statistics.mended, broker.logs[TABLE][-1].value)

    commit = MemoryConsumer.commit
    monkeypatch.setattr(MemoryConsumer, "commit", refuse)
    run_virtual(main, START_MS)


def test_engine_goes_on_while_the_ends_of_its_tables_are_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    """A broker that answers slowly halts no stream, and what it says is not confused with what is written meanwhile."""

    async def ask(self: MemoryReader, places: Iterable[TopicPartition]) -> dict[TopicPartition, int]:
        places = list(places)
        if TABLE in places:
            await asyncio.sleep(0.9)
        return await end_offsets(self, places)

    async def main(clock: Clock) -> None:
        pipelines = {"rate": rate(), "user_view": view()}
        broker = await new_broker(pipelines)
        stopping = asyncio.Event()
        engine = Engine(broker, [order_events.source], pipelines, clock, GROUP)
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(engine.run(stopping))
            await asyncio.sleep(3)
            behind = []
            for number in range(200):
                publish(broker, number, START_MS + number * 100)
                await asyncio.sleep(0.1)
                behind.append(number + 1 - engine.statistics.events)
            stopping.set()
        assert max(behind) <= 2

    end_offsets = MemoryReader.end_offsets
    monkeypatch.setattr(MemoryReader, "end_offsets", ask)
    monkeypatch.setattr(engine_module, "read_tails", None)
    monkeypatch.setattr(engine_module, "CHECK_S", 2.0)
    run_virtual(main, START_MS)


def test_engine_whose_table_was_made_anew_says_so() -> None:
    """As a restore does: what was written is gone."""

    async def main(clock: Clock) -> None:
        broker = await new_broker({"rate": rate()})
        publish(broker, 1, START_MS)
        engine = Engine(broker, [order_events.source], {"rate": rate()}, clock, GROUP)
        running = asyncio.create_task(engine.run(asyncio.Event()))
        await asyncio.sleep(3)
        spec = broker.specs[TABLE.topic]
        await broker.admin().delete([TABLE.topic])
        await broker.admin().create([spec])
        with pytest.raises(SetupError, match="state is gone"):
            await asyncio.wait_for(running, 2 * engine_module.CHECK_S)

    run_virtual(main, START_MS)


def test_engine_alone_reads_none_of_its_tables(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its own records are counted, so a table's end says that there is nothing to look for."""

    async def main(clock: Clock) -> None:
        pipelines = {"rate": rate(), "user_view": view()}
        broker = await new_broker(pipelines)
        stopping = asyncio.Event()
        engine = Engine(broker, [order_events.source], pipelines, clock, GROUP)
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(engine.run(stopping))
            for number in range(300):
                publish(broker, number, START_MS + number * 700)
                await asyncio.sleep(0.7)
            stopping.set()
        assert 300 == engine.statistics.events

    monkeypatch.setattr(engine_module, "read_tails", None)
    monkeypatch.setattr(engine_module, "CHECK_S", 2.0)
    run_virtual(main, START_MS)
