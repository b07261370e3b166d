"""Writes records to Kafka through aiokafka: idempotent, acknowledged by all in-sync replicas, nothing lost without a word.

Records wait in the lane of their partition. Each lane has one batch on its way: what comes meanwhile is the next one, so
a busy lane sends large batches and an idle one sends at once. The lanes end by themselves when they are empty.

The library never gives a batch up, so the delivery timeout is ours. A refused batch is halved until only the bad records
are left: its neighbours arrive, in order.
"""

import asyncio
import logging
from collections import deque
from collections.abc import Iterable, Sequence
from functools import lru_cache
from itertools import count, islice

from aiokafka import AIOKafkaProducer
from aiokafka.errors import KafkaError

from app.broker.aiokafka.admin import topic_configs
from app.broker.aiokafka.cluster import Cluster
from app.broker.aiokafka.errors import WHOLE_BATCH, translate
from app.broker.aiokafka.sessions import Outgoing, Sessions
from app.broker.base import Confirmation, DeliveryFailure, ProducerStatistics
from app.broker.limits import Limits, limits_of
from app.broker.topics import partition_of
from app.core.clock import Clock
from app.core.errors import HeadraceError, RecordError, Rejected, Unavailable
from app.core.record import Headers

logger = logging.getLogger(__name__)

QUEUED_RECORDS = 100_000
QUEUED_BYTES = 134_217_728
BATCH_RECORDS = 5_000
BATCH_BYTES = 262_144
RECORD_OVERHEAD_BYTES = 40
"""Lengths, deltas of offset and time: never more."""
CHUNK_RECORDS = 500
"""Records that `send_many` queues before it lets other tasks run."""
REOPEN_SECONDS = 0.2
CLOSE_SECONDS = 10.0
DELIVERY_TIMEOUT_MS = 60_000
"""A record that no broker has taken for so long has failed."""

_partition_of = lru_cache(65_536)(partition_of)


class Lane:
    """The records of one partition, in order. queued, settled: counts since the start."""

    def __init__(self, topic: str, partition: int, limits: Limits) -> None:
        self.topic = topic
        self.partition = partition
        self.waiting: deque[Outgoing] = deque()
        self.again: deque[list[Outgoing]] = deque()
        self.queued = 0
        self.settled = 0
        self.pump: asyncio.Task[None] | None = None
        self._batch_bytes = min(BATCH_BYTES, limits.max_bytes)

    def next_batch(self) -> list[Outgoing]:
        """As much of what waits as one batch may hold, or half a batch that was refused."""
        if self.again:
            return self.again.popleft()
        batch = [self.waiting.popleft()]
        size = 2 * RECORD_OVERHEAD_BYTES + bytes_of(batch[0])
        while self.waiting and len(batch) < BATCH_RECORDS:
            size += bytes_of(self.waiting[0])
            if size > self._batch_bytes:
                break
            batch.append(self.waiting.popleft())
        return batch

    def halve(self, batch: list[Outgoing]) -> None:
        """They are the next batches."""
        half = len(batch) // 2
        self.again.extendleft((batch[half:], batch[:half]))


class Topic:
    """What a topic takes, and its lanes."""

    def __init__(self, name: str, limits: Limits, partitions: int) -> None:
        self.name = name
        self.limits = limits
        self.lanes = [Lane(name, partition, limits) for partition in range(partitions)]
        self._turns = count()

    def lane(self, key: bytes | None, partition: int) -> Lane:
        """Raises: Rejected for a partition that is not there."""
        if partition == -1:
            turn = next(self._turns) if key is None else _partition_of(key, len(self.lanes))
            return self.lanes[turn % len(self.lanes)]
        if not 0 <= partition < len(self.lanes):
            raise Rejected(f"{self.name}/{partition}: unknown partition, the topic has {len(self.lanes)}")
        return self.lanes[partition]


class AioKafkaProducer:
    """Keeps the contract of `base.Producer`. Belongs to the loop that started it."""

    def __init__(self, cluster: Cluster, clock: Clock, delivery_timeout_ms: int = DELIVERY_TIMEOUT_MS) -> None:
        self._cluster = cluster
        self._clock = clock
        self._delivery_seconds = delivery_timeout_ms / 1000
        self._sessions = Sessions(self._open)
        self._topics: dict[str, Topic] = {}
        self._learning: dict[str, asyncio.Task[Topic]] = {}
        self._failures: list[DeliveryFailure] = []
        self._broken: HeadraceError | None = None
        self._sent = 0
        self._failed = 0
        self._queued = 0
        self._queued_bytes = 0
        self._settled = asyncio.Event()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._closed = False

    async def _open(self) -> AIOKafkaProducer:
        settings = self._cluster.settings(enable_idempotence=True, acks="all", max_batch_size=100_000_000)
        return await self._cluster.open(AIOKafkaProducer(**settings))

    async def start(self) -> None:
        self._loop = asyncio.get_running_loop()
        await self._sessions.current()

    def try_send(
        self,
        topic: str,
        value: bytes | None,
        key: bytes | None = None,
        *,
        partition: int = -1,
        timestamp_ms: int = 0,
        headers: Headers = (),
    ) -> bool:
        known = self._topics.get(topic)
        if known is None:
            return False
        known.limits.check(self._clock, topic, value, key, timestamp_ms, headers)
        if self._is_full():
            return False
        self._queue(known, value, key, partition, timestamp_ms, headers)
        return True

    def _is_full(self) -> bool:
        return self._queued >= QUEUED_RECORDS or self._queued_bytes >= QUEUED_BYTES

    def _queue(
        self,
        topic: Topic,
        value: bytes | None,
        key: bytes | None,
        partition: int,
        timestamp_ms: int,
        headers: Headers = (),
        answer: asyncio.Future[Confirmation] | None = None,
    ) -> None:
        assert self._loop is not None, "not started"
        assert not self._closed, "closed"
        lane = topic.lane(key, partition)
        due_s = self._loop.time() + self._delivery_seconds
        record = Outgoing(value, key, timestamp_ms or self._clock.now_ms(), headers, answer, due_s)
        lane.waiting.append(record)
        lane.queued += 1
        self._sent += 1
        self._queued += 1
        self._queued_bytes += bytes_of(record)
        if lane.pump is None:
            lane.pump = self._loop.create_task(self._pump(lane))

    async def send(
        self,
        topic: str,
        value: bytes | None,
        key: bytes | None = None,
        *,
        partition: int = -1,
        timestamp_ms: int = 0,
        headers: Headers = (),
    ) -> None:
        if topic not in self._topics:
            await self._learn(topic)
        while not self.try_send(topic, value, key, partition=partition, timestamp_ms=timestamp_ms, headers=headers):
            await self._settled.wait()

    async def send_many(
        self, topic: str, records: Iterable[tuple[bytes | None, bytes | None, int]], partition: int = -1
    ) -> int:
        known = self._topics.get(topic) or await self._learn(topic)
        source = iter(records)
        queued = 0
        while True:
            empty = True
            latest_ms, surely_small = known.limits.latest_ms(self._clock.now_ms()), known.limits.surely_small_bytes
            for value, key, timestamp_ms in islice(source, CHUNK_RECORDS):
                empty = False
                doubtful = timestamp_ms > latest_ms or len(value or b"") + len(key or b"") > surely_small
                if doubtful and not self._fits(known, value, key, timestamp_ms):
                    continue
                while self._is_full():
                    await self._settled.wait()
                self._queue(known, value, key, partition, timestamp_ms)
                queued += 1
            if empty:
                return queued
            await asyncio.sleep(0)

    def _fits(self, topic: Topic, value: bytes | None, key: bytes | None, timestamp_ms: int) -> bool:
        """Whether the topic takes it; if not, the next flush says so."""
        try:
            topic.limits.check(self._clock, topic.name, value, key, timestamp_ms)
        except RecordError as error:
            self._failures.append(DeliveryFailure(error, key, value))
            return False
        return True

    async def confirm(
        self,
        topic: str,
        value: bytes | None,
        key: bytes | None = None,
        *,
        partition: int = -1,
        timestamp_ms: int = 0,
        headers: Headers = (),
    ) -> Confirmation:
        known = self._topics.get(topic) or await self._learn(topic)
        known.limits.check(self._clock, topic, value, key, timestamp_ms, headers)
        while self._is_full():
            await self._settled.wait()
        answer: asyncio.Future[Confirmation] = asyncio.get_running_loop().create_future()
        self._queue(known, value, key, partition, timestamp_ms, headers, answer)
        return await answer

    async def flush(self) -> list[DeliveryFailure]:
        sent = [(lane, lane.queued) for lane in self._lanes()]
        for lane, queued in sent:
            while lane.settled < queued:
                await self._settled.wait()
        if self._broken is not None:
            error, self._broken = self._broken, None
            raise error
        failures, self._failures = self._failures, []
        return failures

    def statistics(self) -> ProducerStatistics:
        return ProducerStatistics(self._sent, self._sent - self._failed - self._queued, self._failed, self._queued)

    async def close(self) -> None:
        if self._closed or self._loop is None:
            self._closed = True
            return
        try:
            async with asyncio.timeout(CLOSE_SECONDS):
                for failure in await self.flush():
                    logger.error("not delivered: %s", failure.error)
        except TimeoutError:
            message = f"{self._cluster.address}: {self._queued} records were not acknowledged before the end"
            raise Unavailable(message) from None
        finally:
            self._closed = True
            await self._end()

    async def _end(self) -> None:
        tasks = [*self._learning.values(), *(lane.pump for lane in self._lanes() if lane.pump is not None)]
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)
        lost = Unavailable(f"{self._cluster.address}: the producer has ended")
        for lane in self._lanes():
            while lane.again or lane.waiting:
                self._settle(lane, lane.next_batch(), -1, lost)
        await self._sessions.close()

    async def _learn(self, topic: str) -> Topic:
        """Asks once a topic, for all who wait. Raises: Unavailable; Rejected for an unknown topic."""
        asked = self._learning.get(topic)
        if asked is None:
            asked = self._learning[topic] = asyncio.create_task(self._ask(topic))
            asked.add_done_callback(lambda _: self._learning.pop(topic))
        return await asyncio.shield(asked)

    async def _ask(self, topic: str) -> Topic:
        partitions = await self._cluster.require_topics([topic])
        config = await topic_configs(self._cluster, [topic])
        self._topics[topic] = Topic(topic, limits_of(config[topic]), partitions[topic])
        return self._topics[topic]

    def _lanes(self) -> Iterable[Lane]:
        return [lane for topic in self._topics.values() for lane in topic.lanes]

    # Delivery

    async def _pump(self, lane: Lane) -> None:
        try:
            while lane.again or lane.waiting:
                await self._deliver(lane, lane.next_batch())
        finally:
            lane.pump = None

    async def _deliver(self, lane: Lane, records: list[Outgoing]) -> None:
        place = f"{lane.topic}/{lane.partition}"
        offset, failure = -1, None
        try:
            async with asyncio.timeout_at(records[-1].due_s):
                offset = await self._sessions.send(lane.topic, lane.partition, records)
        except WHOLE_BATCH as error:
            if len(records) > 1:
                return lane.halve(records)
            failure = translate(error, lane.topic)
        except TimeoutError:
            failure = Unavailable(f"{place}: no broker took {len(records)} records for {self._delivery_seconds:.0f} s")
        except (KafkaError, OSError) as error:
            failure = translate(error, lane.topic)
        except Unavailable:  # no new session could be opened: until they are due
            lane.again.appendleft(records)
            return await asyncio.sleep(REOPEN_SECONDS)
        except Rejected as error:
            failure = error
        except Exception as error:  # noqa: BLE001  whatever the library did not expect: told, or a flush would wait for ever
            failure = Rejected(f"{place}: {error!r}")
        except BaseException:  # the producer ends
            lane.again.appendleft(records)
            raise
        return self._settle(lane, records, offset, failure)

    def _settle(self, lane: Lane, records: Sequence[Outgoing], offset: int, failure: HeadraceError | None) -> None:
        lane.settled += len(records)
        self._queued -= len(records)
        for index, record in enumerate(records):
            self._queued_bytes -= bytes_of(record)
            if failure is not None:
                self._fail(record, failure)
            elif record.answer is not None and not record.answer.done():
                record.answer.set_result(Confirmation(lane.partition, -1 if offset < 0 else offset + index))
        self._settled.set()
        self._settled = asyncio.Event()

    def _fail(self, record: Outgoing, failure: HeadraceError) -> None:
        self._failed += 1
        if record.answer is not None:
            if not record.answer.done():
                record.answer.set_exception(failure)
        elif isinstance(failure, RecordError):
            self._failures.append(DeliveryFailure(failure, record.key, record.value))
        else:
            self._broken = self._broken or failure


def bytes_of(record: Outgoing) -> int:
    """What it takes in a batch at most."""
    size = len(record.value or b"") + len(record.key or b"") + RECORD_OVERHEAD_BYTES
    return size + sum(len(name) * 4 + len(text) + 10 for name, text in record.headers)
