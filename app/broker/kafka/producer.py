"""Writes records to Kafka: idempotent, acknowledged by all in-sync replicas, nothing lost without a word.

Three clients, each made when it is first needed:

- the *counting* one takes `send`; only failures call back, and a short timer on the loop collects them;
- the *confirming* one takes `confirm`; each record calls back, on a thread of its own (see `confirming`);
- the *lone* one sends every record in a batch of its own. A broker refuses a whole batch for one record that is too large
  or too early; each record of such a batch is sent once more here, so that its neighbours arrive (behind records that
  were sent after them).

While a flush drains the counting client, `try_send` says that the queue is full: the client knows how much is outstanding
and not what, so this is how a flush ends under a steady stream.
"""

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Iterable
from functools import partial
from itertools import islice
from typing import Any, NamedTuple

from confluent_kafka import KafkaError, KafkaException, Message
from confluent_kafka import Producer as Client
from confluent_kafka.admin import AdminClient

from app.broker.base import Confirmation, DeliveryFailure, ProducerStatistics
from app.broker.kafka.admin import topic_configs
from app.broker.kafka.cluster import Cluster
from app.broker.kafka.confirming import ConfirmingClient, Settled
from app.broker.kafka.errors import WHOLE_BATCH_CODES, translate
from app.broker.kafka.limits import Limits, limits_of
from app.broker.kafka.threads import BlockingCalls
from app.core.clock import Clock
from app.core.errors import HeadraceError, RecordError, Unavailable
from app.core.record import Headers

logger = logging.getLogger(__name__)

LINGER_MS = 1
"""How long `send` may wait for company. 0 saves a millisecond at 1,000 records a second (0.4 instead of 1.6 for a hop) and
costs a third of the most that can be sent (517,000 instead of 870,000 a second)."""

TICK_SECONDS = 0.005
FULL_SECONDS = 0.002
DRAIN_SECONDS = 0.1
CLOSE_SECONDS = 10.0
CHUNK_RECORDS = 500
"""Records that `send_many` queues before it lets other tasks run: half a millisecond."""

DELIVERY_TIMEOUT_MS = 60_000
"""A record that no broker has taken for so long has failed."""


class Outgoing(NamedTuple):
    """A record on its way, as the client wants it."""

    topic: str
    value: bytes | None
    key: bytes | None
    partition: int
    timestamp_ms: int
    headers: list[tuple[str, str | bytes | None]] | None


Answer = asyncio.Future[Confirmation]


class KafkaProducer:
    """Keeps the contract of `base.Producer`. Belongs to the loop that started it."""

    def __init__(self, cluster: Cluster, clock: Clock, delivery_timeout_ms: int = DELIVERY_TIMEOUT_MS) -> None:
        self._cluster = cluster
        self._clock = clock
        self._delivery_timeout_ms = delivery_timeout_ms
        self._counting: Client | None = None
        self._lone: Client | None = None
        self._confirming: ConfirmingClient[tuple[Outgoing, Answer]] | None = None
        self._calls = BlockingCalls("kafka-flush")
        self._limits: dict[str, Limits] = {}
        self._reports: deque[tuple[Outgoing, KafkaError]] = deque()
        self._again: deque[tuple[Outgoing, Answer | None]] = deque()
        self._lone_reports: deque[tuple[Outgoing, Answer | None, KafkaError | None, Message]] = deque()
        self._failures: list[DeliveryFailure] = []
        self._broken: HeadraceError | None = None
        self._sent = 0
        self._failed = 0
        self._draining = 0
        self._ticker: asyncio.TimerHandle | None = None
        self._closed = False

    async def start(self) -> None:
        await self._cluster.require_topics([])

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
        if self._draining:
            return False
        limits = self._limits.get(topic)
        if limits is None:
            limits = self._learn_later(topic)
        limits.check(self._clock, topic, value, key, timestamp_ms, headers)
        return self._queue(Outgoing(topic, value, key, partition, timestamp_ms, list(headers) or None))

    def _queue(self, record: Outgoing) -> bool:
        counting = self._counting or self._open_counting()
        topic, value, key, partition, timestamp_ms, headers = record
        try:
            counting.produce(topic, value, key, partition, partial(self._report, record), None, timestamp_ms, headers)
        except BufferError:
            return False
        except KafkaException as error:
            raise translate(error, topic) from None
        self._sent += 1
        self._tick_soon()
        return True

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
        if topic not in self._limits:
            await self._learn(topic)
        while not self.try_send(topic, value, key, partition=partition, timestamp_ms=timestamp_ms, headers=headers):
            await self._wait_for_room()

    async def _wait_for_room(self) -> None:
        self._serve()
        await asyncio.sleep(FULL_SECONDS)

    async def send_many(
        self, topic: str, records: Iterable[tuple[bytes | None, bytes | None, int]], partition: int = -1
    ) -> int:
        limits = self._limits.get(topic) or await self._learn(topic)
        source = iter(records)
        queued = 0
        while True:
            chunk: list[tuple[bytes | None, bytes | None, int]] = []
            try:
                chunk.extend(islice(source, CHUNK_RECORDS))
            finally:  # where the source raises, what it gave before is sent
                while self._draining:
                    await self._wait_for_room()
                queued += await self._send_chunk(topic, chunk, limits, partition)
            if not chunk:
                return queued
            await asyncio.sleep(0)

    async def _send_chunk(
        self, topic: str, chunk: list[tuple[bytes | None, bytes | None, int]], limits: Limits, partition: int
    ) -> int:
        """The inner loop of publishing: about 0.1 us a record beside the client's own time."""
        counting = self._counting or self._open_counting()
        counting.poll(0)
        produce, report = counting.produce, partial(self._report_of_chunk, topic, list(chunk))
        surely_small, latest_ms = limits.surely_small_bytes, limits.latest_ms(self._clock.now_ms())
        queued = 0
        try:
            for value, key, timestamp_ms in chunk:
                doubtful = timestamp_ms > latest_ms or len(value or b"") + len(key or b"") > surely_small
                if doubtful and not self._fits(limits, topic, value, key, timestamp_ms):
                    continue
                try:
                    produce(topic, value, key, partition, report, None, timestamp_ms)
                except BufferError:
                    await self._produce_when_room(
                        partial(produce, topic, value, key, partition, report, None, timestamp_ms)
                    )
                queued += 1
        except KafkaException as error:
            raise translate(error, topic) from None
        finally:
            self._sent += queued
            self._tick_soon()
        return queued

    def _fits(self, limits: Limits, topic: str, value: bytes | None, key: bytes | None, timestamp_ms: int) -> bool:
        """Whether the topic takes it; if not, the next flush says so."""
        try:
            limits.check(self._clock, topic, value, key, timestamp_ms)
        except RecordError as error:
            self._failures.append(DeliveryFailure(error, key, value))
            return False
        return True

    async def _produce_when_room(self, produce: Callable[[], None]) -> None:
        while True:
            await self._wait_for_room()
            try:
                return produce()
            except BufferError:
                continue

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
        limits = self._limits.get(topic) or await self._learn(topic)
        limits.check(self._clock, topic, value, key, timestamp_ms, headers)
        confirming = self._confirming or self._open_confirming()
        record = Outgoing(topic, value, key, partition, timestamp_ms, list(headers) or None)
        answer: Answer = asyncio.get_running_loop().create_future()
        produce = partial(confirming.produce, (record, answer), *record)
        try:
            try:
                produce()
            except BufferError:
                await self._produce_when_room(produce)
        except KafkaException as error:
            raise translate(error, topic) from None
        self._sent += 1
        return await answer

    async def flush(self) -> list[DeliveryFailure]:
        self._draining += 1
        try:
            while self._waiting():
                self._serve()
                await self._calls.run(self._drain)
            self._serve()
        finally:
            self._draining -= 1
        if self._broken is not None:
            error, self._broken = self._broken, None
            raise error
        failures, self._failures = self._failures, []
        return failures

    def _drain(self) -> None:
        """On a thread: sends at once what lingers, and waits a moment for the answers."""
        for client in (self._counting, self._lone):
            if client is not None and len(client):
                client.flush(DRAIN_SECONDS)

    def statistics(self) -> ProducerStatistics:
        queued = self._waiting() + (self._confirming.waiting() if self._confirming else 0)
        return ProducerStatistics(self._sent, max(self._sent - self._failed - queued, 0), self._failed, queued)

    async def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        try:
            async with asyncio.timeout(CLOSE_SECONDS):
                failures = await self.flush()
                while self._confirming is not None and self._confirming.waiting():
                    self._serve()
                    await asyncio.sleep(TICK_SECONDS)
        except TimeoutError:
            left = self.statistics().queued
            raise Unavailable(f"{self._cluster.address}: {left} records were not acknowledged before the end") from None
        else:
            for failure in failures:
                logger.error("not delivered: %s", failure.error)
        finally:
            self._drop_clients()

    def _drop_clients(self) -> None:
        """Clients are destroyed on the other thread, since that may take a while."""
        if self._ticker is not None:
            self._ticker.cancel()
            self._ticker = None
        if self._confirming is not None:
            self._confirming.stop()
        clients = [client for client in (self._counting, self._lone) if client is not None]
        self._counting = self._lone = self._confirming = None

        def drop() -> None:
            while clients:
                clients.pop().purge()

        self._calls.submit(drop)
        self._calls.stop()

    # Clients

    def _open(self, **more: Any) -> Client:
        assert not self._closed, "closed"
        try:
            return Client(
                self._cluster.settings(
                    enable_idempotence=True,
                    acks="all",
                    partitioner="murmur2_random",
                    message_timeout_ms=self._delivery_timeout_ms,
                    message_max_bytes=100_000_000,  # each topic's own limit counts
                    queue_buffering_max_messages=100_000,
                    queue_buffering_max_kbytes=131_072,
                    topic_metadata_propagation_max_ms=5_000,
                    **more,
                )
            )
        except KafkaException as error:
            raise translate(error, self._cluster.address) from None

    def _open_counting(self) -> Client:
        self._counting = self._open(linger_ms=LINGER_MS, delivery_report_only_error=True)
        return self._counting

    def _open_lone(self) -> Client:
        self._lone = self._open(linger_ms=0, batch_num_messages=1)
        return self._lone

    def _open_confirming(self) -> ConfirmingClient[tuple[Outgoing, Answer]]:
        self._confirming = ConfirmingClient(self._open(linger_ms=0), self._settle_confirmed)
        return self._confirming

    # Limits of topics

    async def _learn(self, topic: str) -> Limits:
        """Raises: Unavailable; Rejected for an unknown topic."""
        config = await self._cluster.ask(lambda admin: topic_configs(admin, [topic]))
        self._limits[topic] = limits_of(config[topic])
        return self._limits[topic]

    def _learn_later(self, topic: str) -> Limits:
        """Kafka's defaults, until the topic's own limits are known."""

        def learn(admin: AdminClient) -> None:
            self._limits.pop(topic, None)  # asked again by the next record if this fails
            self._limits[topic] = limits_of(topic_configs(admin, [topic])[topic])

        self._limits[topic] = Limits()
        self._cluster.ask_later(learn)
        return self._limits[topic]

    # Reports: called by the clients, on the loop or on the flushing thread

    def _report(self, record: Outgoing, error: KafkaError | None, _: Message) -> None:
        assert error is not None
        self._reports.append((record, error))

    def _report_of_chunk(
        self,
        topic: str,
        sent: list[tuple[bytes | None, bytes | None, int] | None],
        error: KafkaError | None,
        message: Message,
    ) -> None:
        """The client gives key and value back but not the time: that is the first such record not yet reported."""
        assert error is not None
        wanted = (message.value() or b"", message.key() or b"")
        for index, record in enumerate(sent):
            if record is not None and wanted == (record[0] or b"", record[1] or b""):
                value, key, timestamp_ms = record
                sent[index] = None
                partition = message.partition()
                place = -1 if partition is None else partition
                self._reports.append((Outgoing(topic, value, key, place, timestamp_ms, None), error))
                return
        raise AssertionError("the client reported a record that was not sent")

    def _report_lone(self, record: Outgoing, answer: Answer | None, error: KafkaError | None, message: Message) -> None:
        self._lone_reports.append((record, answer, error, message))

    # On the loop

    def _waiting(self) -> int:
        """Records of the counting and the lone client without an answer that was dealt with."""
        clients = sum(len(client) for client in (self._counting, self._lone) if client is not None)
        return clients + len(self._reports) + len(self._again) + len(self._lone_reports)

    def _tick_soon(self) -> None:
        if self._ticker is None:
            self._ticker = asyncio.get_running_loop().call_later(TICK_SECONDS, self._tick)

    def _tick(self) -> None:
        self._ticker = None
        self._serve()
        if self._waiting():
            self._tick_soon()

    def _serve(self) -> None:
        """Takes the clients' reports and deals with them."""
        for client in (self._counting, self._lone):
            if client is not None:
                client.poll(0)
        while self._reports:
            record, error = self._reports.popleft()
            if error.code() in WHOLE_BATCH_CODES:
                self._again.append((record, None))
            else:
                self._fail(record, None, error)
        while self._lone_reports:
            record, answer, failed, message = self._lone_reports.popleft()
            if failed is not None:
                self._fail(record, answer, failed)
            elif answer is not None and not answer.done():
                answer.set_result(Confirmation(message.partition() or 0, message.offset() or 0))
        self._send_again()

    def _send_again(self) -> None:
        while self._again:
            record, answer = self._again[0]
            topic, value, key, partition, timestamp_ms, headers = record
            report = partial(self._report_lone, record, answer)
            lone = self._lone or self._open_lone()
            try:
                lone.produce(topic, value, key, partition, report, None, timestamp_ms, headers)
            except BufferError:
                return
            self._again.popleft()
            self._tick_soon()

    def _settle_confirmed(self, settled: list[Settled[tuple[Outgoing, Answer]]]) -> None:
        for (record, answer), error, partition, offset in settled:
            if error is None:
                if not answer.done():
                    answer.set_result(Confirmation(partition, offset))
            elif error.code() in WHOLE_BATCH_CODES:
                self._again.append((record, answer))
                self._send_again()
            else:
                self._fail(record, answer, error)

    def _fail(self, record: Outgoing, answer: Answer | None, error: KafkaError) -> None:
        failure = translate(error, record.topic)
        self._failed += 1
        if answer is not None:
            if not answer.done():
                answer.set_exception(failure)
        elif isinstance(failure, RecordError):
            self._failures.append(DeliveryFailure(failure, record.key, record.value))
        else:
            self._broken = self._broken or failure
