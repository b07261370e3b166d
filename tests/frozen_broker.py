"""Processes on one memory broker that are frozen at one of their calls, and go on from there when they are woken.

A producer holds its records back until they are flushed, so a frozen process wakes with a queue of old ones, and then
works on until it learns that it was expelled. Compaction keeps the last record of each key, as if the lag were over.
"""

import asyncio
from collections import defaultdict
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import NamedTuple

import msgspec

from app.broker.base import Assignment, CommittedOffset, Confirmation, DeliveryFailure, RebalanceListener
from app.broker.memory import MemoryAdmin, MemoryBroker, MemoryConsumer, MemoryProducer, MemoryReader
from app.broker.topics import partition_of
from app.core.clock import Clock, ManualClock
from app.core.record import Headers, Record, TopicPartition
from app.streams.engine import Engine
from app.streams.outputs import topics_of
from app.streams.pipelines import Pipeline, Source
from tests.reference import SourceRecord

GROUP = "test.streams"
NEVER = 10**9
LIFE_S = 6.0


class CompactedBroker(MemoryBroker):
    """history: whatever was written, by topic."""

    def __init__(self, clock: Clock) -> None:
        super().__init__(clock)
        self.history: dict[str, list[Record]] = defaultdict(list)

    def append(
        self, topic: str, value: bytes | None, key: bytes | None, partition: int, timestamp_ms: int, headers: Headers
    ) -> Confirmation:
        confirmation = super().append(topic, value, key, partition, timestamp_ms, headers)
        self.history[topic].append(self.logs[TopicPartition(topic, confirmation.partition)][-1])
        return confirmation

    def compact(self) -> None:
        """Of each key the last record stays, unless it is a tombstone; what goes leaves a gap."""
        for place, log in self.logs.items():
            if "compact" in self.specs[place.topic].cleanup:
                last = {record.key: record.offset for record in log}
                for offset, record in enumerate(log):
                    if last[record.key] != offset or record.value is None:
                        log[offset] = msgspec.structs.replace(record, key=None, value=None, headers=())

    def reader(self) -> MemoryReader:
        return _Reader(self)


class _Reader(MemoryReader):
    """Sees gaps where a record has neither key nor value."""

    async def read(self, place: TopicPartition, start: int, stop: int) -> AsyncIterator[list[Record]]:
        async for batch in super().read(place, start, stop):
            yield [record for record in batch if record.key is not None or record.value is not None]


class Process:
    """A broker as one process sees it. freeze_at: the step at which it is frozen, and expelled; 0 for never.

    A step is an await of the producer or the consumer: before it happens, or after it and before the answer.
    """

    def __init__(self, broker: MemoryBroker, freeze_at: int = 0) -> None:
        self.address = broker.address
        self.frozen = False
        self._broker = broker
        self._steps = freeze_at or NEVER
        self._wakened = asyncio.Event()
        self._members: list[MemoryConsumer] = []

    async def step(self) -> None:
        self._steps -= 1
        if self._steps == 0:
            self.frozen = True
            for member in self._members:
                self._broker.expel(member)
            await self._wakened.wait()

    def wake(self) -> None:
        """It goes on, and is not frozen (again)."""
        self.frozen, self._steps = False, NEVER
        self._wakened.set()

    def consumer(self, group: str, topics: Sequence[str], listener: RebalanceListener) -> MemoryConsumer:
        return _Consumer(self, self._broker, group, topics, listener)

    def producer(self) -> MemoryProducer:
        return _Producer(self, self._broker)

    def reader(self) -> MemoryReader:
        return self._broker.reader()

    def admin(self) -> MemoryAdmin:
        return self._broker.admin()

    def joins(self, member: MemoryConsumer) -> None:
        self._members.append(member)

    async def close(self) -> None:
        """The broker lives on."""


class _Producer(MemoryProducer):
    def __init__(self, process: Process, broker: MemoryBroker) -> None:
        super().__init__(broker)
        self._process = process
        self._cluster = broker
        self._held: list[tuple[str, bytes | None, bytes | None, int, int, Headers]] = []

    def _append(
        self, topic: str, value: bytes | None, key: bytes | None, partition: int, timestamp_ms: int, headers: Headers
    ) -> Confirmation:
        if partition < 0:
            assert key is not None
            partition = partition_of(key, self._cluster.specs[topic].partitions)
        self._held.append((topic, value, key, partition, timestamp_ms, headers))
        return Confirmation(partition, -1)

    async def flush(self) -> list[DeliveryFailure]:
        await self._process.step()
        held, self._held = self._held, []
        for record in held:
            super()._append(*record)
        await self._process.step()
        return []


class _Consumer(MemoryConsumer):
    def __init__(
        self, process: Process, broker: MemoryBroker, group: str, topics: Sequence[str], listener: RebalanceListener
    ) -> None:
        super().__init__(broker, group, topics, listener)
        self._process = process

    async def start(self) -> None:
        await super().start()
        self._process.joins(self)

    async def poll(self, max_records: int = 500, timeout_ms: int = 100) -> list[Record]:
        records = await super().poll(max_records, timeout_ms)
        if records:
            await self._process.step()
        return records

    async def commit(self, offsets: Mapping[Assignment, CommittedOffset]) -> None:
        await self._process.step()
        await super().commit(offsets)
        await self._process.step()


class Life(NamedTuple):
    """One process. freeze_at: see `Process`. wakes_after: so many lives later, and after `delay_s` of that one; 0: before
    it begins. compacts: at its end everything that was written has become old enough to be compacted."""

    freeze_at: int
    wakes_after: int
    delay_s: float
    compacts: bool


class _Sleeper(NamedTuple):
    at: int
    delay_s: float
    process: Process
    task: asyncio.Task[None]
    stopping: asyncio.Event


async def run_frozen(
    clock: Clock,
    source: Source,
    pipelines: Mapping[str, Pipeline],
    records: list[SourceRecord],
    lives: Sequence[Life],
) -> CompactedBroker:
    """Publishes the records in as many parts as there are lives; what is frozen wakes in a later one, beside its owner,
    and belongs to the group again. The last life is not frozen, and ends with everything committed."""
    broker = CompactedBroker(ManualClock(clock.now_ms() + NEVER))
    await broker.admin().create(topics_of([source], pipelines))
    sleeping: list[_Sleeper] = []
    lives = [*lives, Life(0, 0, 0.0, compacts=True)]
    for index, life in enumerate(lives):
        for record in records[index * len(records) // len(lives) : (index + 1) * len(records) // len(lives)]:
            broker.append(source.spec.name, record.value, record.key, record.partition, record.timestamp_ms, ())
        is_last = index == len(lives) - 1
        waking = sorted((one for one in sleeping if is_last or one.at <= index), key=lambda one: one.delay_s)
        sleeping = [one for one in sleeping if one not in waking]
        process, stopping, passed_s = Process(broker, life.freeze_at), asyncio.Event(), 0.0
        for one in waking:
            if one.delay_s == 0.0:
                one.process.wake()
        await asyncio.sleep(0.05)
        task = asyncio.create_task(Engine(process, [source], pipelines, clock, GROUP).run(stopping))
        for one in waking:
            await asyncio.sleep(one.delay_s - passed_s)
            passed_s = one.delay_s
            one.process.wake()
        await asyncio.sleep(LIFE_S - passed_s)
        ending = []
        if not process.frozen:
            process.wake()
            ending = [(task, stopping)]
        for running, end in [*((one.task, one.stopping) for one in waking), *ending]:
            end.set()
            await running
        if process.frozen:
            sleeping.append(_Sleeper(index + life.wakes_after, life.delay_s, process, task, stopping))
        if life.compacts:
            broker.compact()
    assert not sleeping
    return broker
