"""The materializer under virtual time: what reaches the store, how it heals, what it passes over."""

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any

import pytest

from app.broker.base import Consumer, RebalanceListener
from app.broker.memory import MemoryBroker
from app.broker.topics import TopicSpec
from app.core.clock import Clock, run_virtual
from app.core.codec import cents_to_json, compact_key
from app.core.errors import SetupError, Unavailable
from app.core.record import TopicPartition
from app.serving.base import Progress, StoredFeatures, TileChange, View
from app.serving.materializer import GROUP, Materializer
from app.serving.memory import MemoryStore
from app.streams.aggregates import OutputField
from app.streams.expressions import Kind
from app.streams.windows import Tile

START_MS = 1_700_000_010_000 - 1_700_000_010_000 % 30_000
FIELDS = (OutputField("orders", Kind.INTEGER), OutputField("value", Kind.MONEY))
VIEW = View(
    "per_user", "user_id", "features.per_user", "raw.orders", 2, 300_000, 30_000, FIELDS, True, "0123456789abcdef"
)
SPEC = TopicSpec(name=VIEW.topic, partitions=2, cleanup="compact,delete")


class FailingStore(MemoryStore):
    """A store that is away while `away` is set, and counts its calls."""

    def __init__(self, clock: Clock) -> None:
        super().__init__(clock)
        self.away = False
        self.error = Unavailable("store at memory:// does not answer")
        self.applied: list[Progress] = []

    async def progress(self, view: View) -> Mapping[int, Progress]:
        self._answer()
        return await super().progress(view)

    async def apply(
        self, view: View, partition: int, expected: int | None, progress: Progress, changes: Sequence[TileChange]
    ) -> bool:
        self._answer()
        self.applied.append(progress)
        return await super().apply(view, partition, expected, progress, changes)

    def _answer(self) -> None:
        if self.away:
            raise self.error


class OtherGroup:
    """The broker as a second cluster of workers sees it: its consumers are in another group."""

    def __init__(self, broker: MemoryBroker) -> None:
        self._broker = broker

    def consumer(self, group: str, topics: Sequence[str], listener: RebalanceListener) -> Consumer:
        return self._broker.consumer(f"other.{group}", topics, listener)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._broker, name)


class Bench:
    """A memory broker with the feature topic, a store, and what a test writes to and waits for."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.broker = MemoryBroker(clock)
        self.store = FailingStore(clock)

    def tile(self, version: int, entity: str = "u-1", *, start_ms: int = START_MS, partition: int = 0) -> None:
        key = compact_key(user_id=entity, tile=start_ms, partition=partition)
        value = b'{"version":%d,"orders":%d,"value":%s}' % (version, version, cents_to_json(version * 100))
        self.broker.append(VIEW.topic, value, key, partition, 0, ())

    def progress(self, as_of_ms: int, *, partition: int = 0, fingerprint: str = VIEW.fingerprint) -> None:
        value = b'{"as_of":%d,"offset":1}' % as_of_ms
        headers = (("fingerprint", fingerprint.encode()),)
        self.broker.append(VIEW.topic, value, b'{"progress":%d}' % partition, partition, 0, headers)

    def end(self, partition: int = 0) -> int:
        return sum(place.partition == partition and len(log) for place, log in self.broker.logs.items())

    async def stored(self, entity: str = "u-1") -> set[Tile]:
        return set((await MemoryStore.read(self.store, VIEW, entity)).tiles)

    async def caught_up(self) -> None:
        """Returns when the store stands at the end of both partitions, as it must within ten seconds."""
        async with asyncio.timeout(10):
            while True:
                progress = await MemoryStore.progress(self.store, VIEW)
                stands = {partition: progress[partition].offset for partition in progress}
                if stands == {partition: self.end(partition) for partition in (0, 1) if self.end(partition)}:
                    return
                await asyncio.sleep(0.001)

    @asynccontextmanager
    async def running(self, broker: Any = None) -> AsyncIterator[Materializer]:
        await self.broker.admin().create([SPEC])
        materializer = Materializer(broker or self.broker, self.store, {VIEW.name: VIEW})
        stopping = asyncio.Event()
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(materializer.run(stopping))
            await asyncio.sleep(0)
            yield materializer
            stopping.set()


def virtually(main: Callable[[Bench], Awaitable[None]]) -> None:
    async def run(clock: Clock) -> None:
        await main(Bench(clock))

    run_virtual(run, START_MS)


def tile(version: int, partition: int = 0) -> Tile:
    return Tile(START_MS, partition, version, (version, version * 100))


def test_materializer_change_is_in_the_store_within_a_millisecond() -> None:
    """Caught up, a change does not wait for anything."""

    async def main(bench: Bench) -> None:
        async with bench.running():
            await asyncio.sleep(0.05)
            bench.tile(1)
            written_ms = bench.clock.now_ms()
            await bench.caught_up()
            assert bench.clock.now_ms() - written_ms <= 1
            assert {tile(1)} == await bench.stored()

    virtually(main)


def test_materializer_says_where_partitions_begin_also_while_the_store_is_away() -> None:
    """Its group commits nothing: a client that had to look for that might wait for ever."""
    began: list[tuple[int, int]] = []

    class Watched(OtherGroup):
        def consumer(self, group: str, topics: Sequence[str], listener: RebalanceListener) -> Consumer:
            consumer = super().consumer(group, topics, listener)
            seek = consumer.seek

            async def noted(place: TopicPartition, offset: int) -> None:
                began.append((place.partition, offset))
                await seek(place, offset)

            consumer.seek = noted  # type: ignore[method-assign]
            return consumer

    async def main(bench: Bench) -> None:
        bench.store.away = True
        async with bench.running(Watched(bench.broker)):
            await asyncio.sleep(1)
            assert [(0, 0), (1, 0)] == sorted(began)

    virtually(main)


def test_materializer_outage_of_another_kind_is_told_too(caplog: pytest.LogCaptureFixture) -> None:
    """What it waits for may change; the same is not told again."""

    async def main(bench: Bench) -> None:
        async with bench.running():
            bench.store.away = True
            bench.tile(1)
            await asyncio.sleep(30)
            bench.store.error = Unavailable("kafka://127.0.0.1:9092 does not answer")
            await asyncio.sleep(30)

    virtually(main)
    waits = [record.getMessage() for record in caplog.records if record.getMessage().startswith("features wait")]
    assert [
        "features wait: store at memory:// does not answer",
        "features wait: kafka://127.0.0.1:9092 does not answer",
    ] == waits


def test_materializer_progress_record_moves_as_of_with_the_tiles_before_it() -> None:
    """`as_of` is stored with the position, and stays until a later one comes."""

    async def main(bench: Bench) -> None:
        async with bench.running():
            bench.tile(1)
            bench.progress(START_MS + 5)
            bench.tile(2)
            await bench.caught_up()
            assert {0: Progress(3, START_MS + 5)} == await bench.store.progress(VIEW)
            bench.tile(3)
            await bench.caught_up()
            assert {0: Progress(4, START_MS + 5)} == await bench.store.progress(VIEW)

    virtually(main)


def test_materializer_older_progress_sets_nothing_back() -> None:
    """An engine that was frozen and wakes says again how far it had come."""

    async def main(bench: Bench) -> None:
        async with bench.running():
            bench.progress(START_MS + 5)
            bench.progress(START_MS + 4)
            await bench.caught_up()
            assert {0: Progress(2, START_MS + 5)} == await bench.store.progress(VIEW)
            bench.progress(START_MS + 3)
            await bench.caught_up()
            assert {0: Progress(3, START_MS + 5)} == await bench.store.progress(VIEW)

    virtually(main)


def test_materializer_restart_goes_on_where_the_store_stands() -> None:
    """Nothing is applied twice after a restart, and `as_of` is not forgotten."""

    async def main(bench: Bench) -> None:
        async with bench.running():
            bench.tile(1)
            bench.progress(START_MS + 5)
            await bench.caught_up()
        bench.tile(2)
        async with bench.running() as second:
            await bench.caught_up()
            assert 1 == second.statistics().records
            assert {0: Progress(3, START_MS + 5)} == await bench.store.progress(VIEW)
            assert {tile(2)} == await bench.stored()

    virtually(main)


def test_materializer_batch_is_one_call_a_partition_with_the_newest_of_each_tile() -> None:
    """A backlog of one tile's changes is one change of the store."""

    async def main(bench: Bench) -> None:
        await bench.broker.admin().create([SPEC])
        for version in range(1, 101):
            bench.tile(version)
            bench.tile(version, "u-2", partition=1)
        async with bench.running() as materializer:
            await bench.caught_up()
            found = materializer.statistics()
            assert (200, 2, 2, 0) == (found.records, found.tiles, found.batches, found.lag)
            assert {tile(100)} == await bench.stored()
            assert {tile(100, 1)} == await bench.stored("u-2")

    virtually(main)


def test_materializer_emptied_store_heals_with_the_next_batch() -> None:
    """A change that meets an emptied store is not written alone: everything is read again first."""

    async def main(bench: Bench) -> None:
        async with bench.running() as materializer:
            bench.tile(1, "u-1")
            bench.tile(2, "u-2")
            await bench.caught_up()
            await bench.store.clear(VIEW)
            bench.tile(3, "u-3")
            await bench.caught_up()
            assert [{tile(1)}, {tile(2)}, {tile(3)}] == [await bench.stored(f"u-{n}") for n in (1, 2, 3)]
            assert 1 == materializer.statistics().rewinds

    virtually(main)


def test_materializer_emptied_store_heals_while_nothing_comes() -> None:
    """The idle check finds an emptied store within about a second."""

    async def main(bench: Bench) -> None:
        async with bench.running() as materializer:
            bench.tile(1)
            bench.tile(2, "u-2", partition=1)
            await bench.caught_up()
            await asyncio.sleep(5)
            await bench.store.clear(VIEW)
            emptied_ms = bench.clock.now_ms()
            await bench.caught_up()
            assert bench.clock.now_ms() - emptied_ms <= 1_200
            assert {tile(1)} == await bench.stored()
            assert 2 == materializer.statistics().rewinds

    virtually(main)


def test_materializer_store_that_was_set_back_heals() -> None:
    """A store restored from an older copy says its older position, and gets the rest again."""

    async def main(bench: Bench) -> None:
        async with bench.running():
            bench.tile(1)
            await bench.caught_up()
            for version in (2, 3, 4):
                bench.tile(version, f"u-{version}")
            await bench.caught_up()
            await bench.store.clear(VIEW)
            await MemoryStore.apply(bench.store, VIEW, 0, None, Progress(1, 7), [TileChange("u-1", tile(1))])
            await bench.caught_up()
            assert [{tile(n)} for n in (1, 2, 3, 4)] == [await bench.stored(f"u-{n}") for n in (1, 2, 3, 4)]

    virtually(main)


def test_materializer_topic_made_anew_is_read_from_its_beginning() -> None:
    """A position beyond the topic's end is of a topic that is gone: the new one is read from its beginning."""

    async def main(bench: Bench) -> None:
        await MemoryStore.apply(bench.store, VIEW, 0, None, Progress(1_000, 7), [])
        async with bench.running():
            bench.tile(1)
            bench.tile(2, "u-2")
            await bench.caught_up()
            assert [{tile(1)}, {tile(2)}] == [await bench.stored(f"u-{n}") for n in (1, 2)]

    virtually(main)


def test_materializer_store_away_is_waited_for_and_nothing_is_lost() -> None:
    """While the store is away nothing fails and nothing is skipped; it goes on by itself, within seconds."""

    async def main(bench: Bench) -> None:
        async with bench.running() as materializer:
            bench.tile(1)
            await bench.caught_up()
            bench.store.away = True
            for version in range(2, 20):
                bench.tile(version, f"u-{version}")
                await asyncio.sleep(0.5)
            assert materializer.statistics().away
            bench.store.away = False
            back_ms = bench.clock.now_ms()
            await bench.caught_up()
            assert bench.clock.now_ms() - back_ms <= 2_200
            assert [{tile(n)} for n in range(1, 20)] == [await bench.stored(f"u-{n}") for n in range(1, 20)]
            found = materializer.statistics()
            assert (1, False, 0) == (found.outages, found.away, found.lag)

    virtually(main)


def test_materializer_store_away_at_the_start_is_waited_for() -> None:
    """A store that is away when partitions are assigned is no reason to leave the group."""

    async def main(bench: Bench) -> None:
        bench.store.away = True
        async with bench.running() as materializer:
            bench.tile(1)
            await asyncio.sleep(30)
            assert 1 == len(bench.broker.groups[GROUP].members)
            bench.store.away = False
            await bench.caught_up()
            assert {tile(1)} == await bench.stored()
            assert 1 == materializer.statistics().outages

    virtually(main)


def test_materializer_two_members_share_the_partitions() -> None:
    """A second member takes a partition over where the store stands."""

    async def main(bench: Bench) -> None:
        async with bench.running() as first:
            for version in range(1, 6):
                bench.tile(version)
                bench.tile(version, "u-2", partition=1)
            await bench.caught_up()
            async with bench.running() as second:
                await asyncio.sleep(1)
                bench.tile(6)
                bench.tile(6, "u-2", partition=1)
                await bench.caught_up()
                assert [11, 1] == [member.statistics().records for member in (first, second)]
                assert [0, 0] == [member.statistics().rewinds for member in (first, second)]
            bench.tile(7, "u-2", partition=1)
            await bench.caught_up()
            assert {tile(7, 1)} == await bench.stored("u-2")

    virtually(main)


def test_materializer_second_writer_of_the_same_partitions_changes_no_result() -> None:
    """Two materializers that both think a partition theirs: every record arrives, positions only move forward."""

    async def main(bench: Bench) -> None:
        async with bench.running() as first, bench.running(OtherGroup(bench.broker)) as second:
            for version in range(1, 101):
                bench.tile(version, f"u-{version % 7}")
                if version % 10 == 0:
                    await asyncio.sleep(0.01)
            await bench.caught_up()
            for entity in range(7):
                newest = max(version for version in range(1, 101) if version % 7 == entity)
                assert {tile(newest)} == await bench.stored(f"u-{entity}")
            assert 100 == first.statistics().records + second.statistics().records
            assert first.statistics().rewinds + second.statistics().rewinds > 0

    virtually(main)


def test_materializer_expelled_member_comes_back_and_goes_on() -> None:
    """A member that lost its partitions takes them again from where the store stands."""

    async def main(bench: Bench) -> None:
        async with bench.running():
            bench.tile(1)
            await bench.caught_up()
            bench.broker.expel(bench.broker.groups[GROUP].members[0])
            bench.tile(2)
            await bench.caught_up()
            assert {tile(2)} == await bench.stored()

    virtually(main)


def test_materializer_bad_record_is_passed_over_counted_and_told_once(caplog: pytest.LogCaptureFixture) -> None:
    """Bad records stop nobody: their neighbours arrive, each is counted, the first of a partition is told."""

    async def main(bench: Bench) -> None:
        async with bench.running() as materializer:
            bench.tile(1)
            for value in (b"{", b"[]", b'{"version":"x"}'):
                bench.broker.append(VIEW.topic, value, b'{"user_id":"u-1"}', 0, 0, ())
            bench.broker.append(VIEW.topic, None, b"x", 0, 0, ())
            bench.tile(2, "u-2")
            await bench.caught_up()
            assert [{tile(1)}, {tile(2)}] == [await bench.stored(f"u-{n}") for n in (1, 2)]
            assert 3 == materializer.statistics().bad_records

    with caplog.at_level(logging.WARNING):
        virtually(main)
    assert 1 == len(caplog.messages)
    assert caplog.messages[0].startswith("features.per_user/0: passed over: features.per_user/0/1: neither a tile")


def test_materializer_other_declaration_stops_with_the_way_out() -> None:
    """Progress of another declaration ends the materializer with what to type; nothing of that batch is stored."""

    async def main(bench: Bench) -> None:
        await bench.broker.admin().create([SPEC])
        bench.tile(1)
        bench.progress(START_MS, fingerprint="f" * 16)
        with pytest.raises(ExceptionGroup) as caught:
            async with bench.running():
                await asyncio.sleep(10)
        (error,) = caught.value.exceptions
        assert isinstance(error, SetupError)
        assert str(error).endswith("type: python -m app streams reset per_user")
        assert StoredFeatures((), None) == await bench.store.read(VIEW, "u-1")

    virtually(main)
