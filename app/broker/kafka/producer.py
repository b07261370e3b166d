"""Writes records to Kafka: idempotent, acknowledged by all in-sync replicas, nothing lost without a word.

Two clients: the *counting* one takes `send`; only failures call back, and a short timer on the loop collects them. The
*confirming* one takes `confirm`; each record calls back, on a thread of its own (see `confirming`). Both are opened at
the start, since a client needs up to half a second until it may write. Records of refused batches go out once more: see
`refused`.

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

from app.broker.base import Confirmation, DeliveryFailure, ProducerStatistics
from app.broker.kafka.admin import topic_configs
from app.broker.kafka.clients import LastingClient
from app.broker.kafka.cluster import Cluster
from app.broker.kafka.confirming import ConfirmingClient, Settled
from app.broker.kafka.errors import WHOLE_BATCH_CODES, translate
from app.broker.kafka.refused import RefusedRecords
from app.broker.kafka.threads import BlockingCalls
from app.broker.limits import Limits, limits_of
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
Token = tuple[Outgoing, Answer | None]
"""A record, and who waits for its own acknowledgement."""


class KafkaProducer:
    """Keeps the contract of `base.Producer`. Belongs to the loop that started it."""

    def __init__(self, cluster: Cluster, clock: Clock, delivery_timeout_ms: int = DELIVERY_TIMEOUT_MS) -> None:
        self._cluster = cluster
        self._clock = clock
        self._delivery_timeout_ms = delivery_timeout_ms
        self._counting: LastingClient | None = None
        self._confirming: ConfirmingClient[Token] | None = None
        self._refused = RefusedRecords[Token](partial(self._open, linger_ms=0, batch_num_messages=1))
        self._opened: list[LastingClient] = []
        self._calls = BlockingCalls("kafka-flush")
        self._limits: dict[str, Limits] = {}
        self._learning: dict[str, asyncio.Task[Limits]] = {}
        self._reports: deque[tuple[Outgoing, KafkaError]] = deque()
        self._failures: list[DeliveryFailure] = []
        self._broken: HeadraceError | None = None
        self._sent = 0
        self._failed = 0
        self._draining = 0
        self._ticker: asyncio.TimerHandle | None = None
        self._closed = False

    async def start(self) -> None:
        await self._cluster.require_topics([])
        self._counting = self._open(linger_ms=LINGER_MS, delivery_report_only_error=True)
        self._confirming = ConfirmingClient(self._open(linger_ms=0), self._settle_confirmed)

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
        limits = self._limits.get(topic)
        if self._draining or limits is None:
            return False
        limits.check(self._clock, topic, value, key, timestamp_ms, headers)
        return self._queue(Outgoing(topic, value, key, partition, timestamp_ms, list(headers) or None))

    def _queue(self, record: Outgoing) -> bool:
        assert self._counting is not None, "not started, or closed"
        topic, value, key, partition, timestamp_ms, headers = record
        try:
            self._counting.produce(
                topic, value, key, partition, partial(self._report, record), None, timestamp_ms, headers
            )
        except BufferError:
            return False
        except KafkaException as error:
            raise translate(error, topic, "Write") from None
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
        counting = self._counting
        assert counting is not None, "not started, or closed"
        counting.poll()
        produce, report = counting.current.produce, partial(self._report_of_chunk, topic, list(chunk))
        surely_small, latest_ms = limits.surely_small_bytes, limits.latest_ms(self._clock.now_ms())
        queued = 0
        try:
            for value, key, timestamp_ms in chunk:
                doubtful = timestamp_ms > latest_ms or len(value or b"") + len(key or b"") > surely_small
                if doubtful and not self._fits(limits, topic, value, key, timestamp_ms):
                    continue
                try:
                    produce(topic, value, key, partition, report, None, timestamp_ms)
                except (BufferError, KafkaException):  # full, or at its end: `counting` knows what then
                    again = partial(counting.produce, topic, value, key, partition, report, None, timestamp_ms)
                    await self._produce_when_room(again)
                    produce = counting.current.produce
                queued += 1
        except KafkaException as error:
            raise translate(error, topic, "Write") from None
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
            try:
                return produce()
            except BufferError:
                await self._wait_for_room()

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
        assert self._confirming is not None, "not started, or closed"
        record = Outgoing(topic, value, key, partition, timestamp_ms, list(headers) or None)
        answer: Answer = asyncio.get_running_loop().create_future()
        try:
            await self._produce_when_room(partial(self._confirming.produce, (record, answer), *record))
        except KafkaException as error:
            raise translate(error, topic, "Write") from None
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
        if self._counting is not None:
            self._counting.flush(DRAIN_SECONDS)
        self._refused.drain(DRAIN_SECONDS)

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
                while self.statistics().queued:  # what was confirmed, and what of that was refused with its batch
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
        for task in self._learning.values():
            task.cancel()
        if self._confirming is not None:
            self._confirming.stop()
        clients = [client for client in (self._counting, self._refused.take_client()) if client is not None]
        self._counting = self._confirming = None

        def drop() -> None:
            while clients:
                clients.pop().purge()

        self._calls.submit(drop)
        self._calls.stop()

    def _open(self, **more: Any) -> LastingClient:
        settings = self._cluster.settings(
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
        try:
            client = LastingClient(self._cluster.address, partial(Client, settings))
        except KafkaException as error:
            raise translate(error, self._cluster.address) from None
        self._opened.append(client)
        return client

    async def _learn(self, topic: str) -> Limits:
        """Asks once a topic, for all who wait. Raises: Unavailable; Rejected for an unknown topic."""
        asked = self._learning.get(topic)
        if asked is None:
            asked = self._learning[topic] = asyncio.create_task(self._ask_limits(topic))
            asked.add_done_callback(lambda _: self._learning.pop(topic))
        return await asyncio.shield(asked)

    async def _ask_limits(self, topic: str) -> Limits:
        config = await self._cluster.ask(lambda admin: topic_configs(admin, [topic]))
        self._limits[topic] = limits_of(config[topic])
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

    # On the loop

    def _waiting(self) -> int:
        """Sent or refused records without an answer that was dealt with."""
        counting = len(self._counting) if self._counting is not None else 0
        return counting + len(self._reports) + len(self._refused)

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
        if self._counting is not None:
            self._counting.poll()
        while self._reports:
            record, error = self._reports.popleft()
            self._settle(record, None, error)
        for (record, answer), failed, partition, offset in self._refused.serve():
            if failed is None:
                _answer(answer, partition, offset)
            else:
                self._fail(record, answer, failed)

    def _settle_confirmed(self, settled: list[Settled[Token]]) -> None:
        for (record, answer), error, partition, offset in settled:
            if error is None:
                _answer(answer, partition, offset)
            else:
                self._settle(record, answer, error)

    def _settle(self, record: Outgoing, answer: Answer | None, error: KafkaError) -> None:
        if error.code() in WHOLE_BATCH_CODES:
            self._refused.add((record, answer), record)
            self._tick_soon()
        else:
            self._fail(record, answer, error)

    def _fail(self, record: Outgoing, answer: Answer | None, error: KafkaError) -> None:
        if not all(client.may_write for client in self._opened):  # or it would say that it gave up what it held
            error = KafkaError(KafkaError.TOPIC_AUTHORIZATION_FAILED)
        failure = translate(error, record.topic, "Write")
        self._failed += 1
        if answer is not None:
            if not answer.done():
                answer.set_exception(failure)
        elif isinstance(failure, RecordError):
            self._failures.append(DeliveryFailure(failure, record.key, record.value))
        else:
            self._broken = self._broken or failure


def _answer(answer: Answer | None, partition: int, offset: int) -> None:
    if answer is not None and not answer.done():
        answer.set_result(Confirmation(partition, offset))
