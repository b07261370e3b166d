"""A broker whose client dies at one of its calls, and whose producer keeps records back until they are flushed."""

import asyncio
from collections import defaultdict
from collections.abc import AsyncIterator, Mapping, Sequence, Set
from random import Random
from typing import Any

from app.broker.base import Assignment, CommittedOffset, Confirmation, DeliveryFailure, RebalanceListener
from app.broker.memory import MemoryBroker, MemoryConsumer, MemoryProducer
from app.broker.topics import partition_of
from app.core.clock import Clock, ManualClock
from app.core.record import Headers, Record
from app.streams import restore
from app.streams.compiled import TableCodec
from app.streams.engine import Engine
from app.streams.outputs import topics_of
from app.streams.pipelines import Pipeline, Source
from tests.reference import SourceRecord

GROUP = "test.streams"
NEVER = 10**9


class Killed(Exception):
    """The process is gone: no call after this one has any effect."""


class KilledBroker(MemoryBroker):
    """A memory broker whose client dies at its n-th call. seed: decides which of its unacknowledged records arrive."""

    def __init__(self, clock: Clock, seed: int = 0) -> None:
        super().__init__(clock)
        self.calls_left = NEVER
        self.chance = Random(seed)
        self.arrived = self.lost = 0

    def producer(self) -> "HoldingProducer":
        return HoldingProducer(self)

    def consumer(self, group: str, topics: Sequence[str], listener: RebalanceListener) -> "KilledConsumer":
        return KilledConsumer(self, group, topics, listener)

    def call(self) -> None:
        self.calls_left -= 1
        if self.calls_left < 0:
            raise Killed


class HoldingProducer(MemoryProducer):
    """Nothing arrives before `flush`, and then all of it. Of what it holds when the process dies, some first part
    arrives in each partition; the rest is lost."""

    def __init__(self, broker: KilledBroker) -> None:
        super().__init__(broker)
        self._killer = broker
        self._held: list[tuple[str, bytes | None, bytes | None, int, int, Headers]] = []

    def _append(
        self, topic: str, value: bytes | None, key: bytes | None, partition: int, timestamp_ms: int, headers: Headers
    ) -> Confirmation:
        self._call()
        if partition < 0:
            assert key is not None
            partition = partition_of(key, self._killer.specs[topic].partitions)
        self._held.append((topic, value, key, partition, timestamp_ms, headers))
        return Confirmation(partition, -1)

    async def flush(self) -> list[DeliveryFailure]:
        self._call()
        self.deliver({record[0] for record in self._held})
        return []

    def deliver(self, topics: Set[str]) -> None:
        """What is held for these topics arrives."""
        held, self._held = self._held, []
        for record in held:
            if record[0] in topics:
                super()._append(*record)
            else:
                self._held.append(record)

    async def close(self) -> None:
        if self._killer.calls_left < 0:
            self._die()
        else:
            self.deliver({record[0] for record in self._held})

    def _call(self) -> None:
        try:
            self._killer.call()
        except Killed:
            self._die()
            raise

    def _die(self) -> None:
        held, self._held = self._held, []
        by_place = defaultdict(list)
        for record in held:
            by_place[record[0], record[3]].append(record)
        for records in by_place.values():
            arriving = self._killer.chance.randint(0, len(records))
            self._killer.arrived += arriving
            self._killer.lost += len(records) - arriving
            for record in records[:arriving]:
                super()._append(*record)


class KilledConsumer(MemoryConsumer):
    def __init__(self, broker: KilledBroker, group: str, topics: Sequence[str], listener: RebalanceListener) -> None:
        super().__init__(broker, group, topics, listener)
        self._killer = broker

    async def commit(self, offsets: Mapping[Assignment, CommittedOffset]) -> None:
        self._killer.call()
        await super().commit(offsets)


async def run_killed(
    clock: Clock,
    source: Source,
    pipelines: Mapping[str, Pipeline],
    records: list[SourceRecord],
    kills: list[int],
    seed: int,
    other: Source | None = None,
) -> KilledBroker:
    """Publishes the records in as many parts as there are lives; runs one engine after another, each killed after so
    many calls, the last one until everything is committed. other: of the records whose partition is negative, -1 for 0."""
    broker = KilledBroker(ManualClock(clock.now_ms() + NEVER), seed)
    sources = [source, *([other] if other else [])]
    await broker.admin().create(topics_of(sources, pipelines))
    lives = len(kills) + 1
    for index in range(lives):
        for record in records[index * len(records) // lives : (index + 1) * len(records) // lives]:
            place = (source.spec.name, record.partition)
            if record.partition < 0:
                assert other is not None
                place = (other.spec.name, -1 - record.partition)
            broker.append(place[0], record.value, record.key, place[1], record.timestamp_ms, ())
        broker.calls_left = kills[index] if index < len(kills) else NEVER
        stopping = asyncio.Event()
        task = asyncio.create_task(Engine(broker, sources, pipelines, clock, GROUP).run(stopping))
        await asyncio.sleep(3.5)
        stopping.set()
        try:
            await task
        except Killed:
            assert index < len(kills)
    return broker


original_newest_entries = restore._newest_entries


async def newest_after_compaction(table: TableCodec, batches: AsyncIterator[list[Record]]) -> Any:
    """Of a key whose last record is a tombstone nothing is left."""
    records = [record async for batch in batches for record in batch]
    last = {record.key: record.value for record in records}

    async def left() -> AsyncIterator[list[Record]]:
        yield [record for record in records if last[record.key] is not None]

    return await original_newest_entries(table, left())
