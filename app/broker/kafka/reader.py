"""Reads partitions of a Kafka cluster outside any group: restores, look-backs, listings."""

from collections.abc import AsyncGenerator, AsyncIterator, Iterable, Mapping
from contextlib import aclosing

from confluent_kafka import Consumer as Client
from confluent_kafka import KafkaError, KafkaException
from confluent_kafka import TopicPartition as ClientPartition

from app.broker.kafka.cluster import EARLIEST, LATEST, Cluster
from app.broker.kafka.errors import translate
from app.broker.kafka.lost import Lookout
from app.broker.kafka.records import record_of
from app.broker.kafka.threads import BlockingCalls
from app.core.errors import Unavailable
from app.core.record import Record, TopicPartition

BATCH_RECORDS = 1_000
QUIET_SECONDS = 10.0
"""A partition that gives neither a record nor its end for so long is unavailable."""
FOLLOW_SECONDS = 0.2
"""How long a follower's client waits for records in one call, and so how long its end may take."""


class KafkaReader:
    """Keeps the contract of `base.Reader`. Every `read` and `follow` has a client and a thread of its own while it lasts."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self._closed = False

    async def beginning_offsets(self, places: Iterable[TopicPartition]) -> dict[TopicPartition, int]:
        return await self._cluster.offsets(dict.fromkeys(places, EARLIEST))

    async def end_offsets(self, places: Iterable[TopicPartition]) -> dict[TopicPartition, int]:
        return await self._cluster.offsets(dict.fromkeys(places, LATEST))

    async def offsets_for_times(self, times_ms: Mapping[TopicPartition, int]) -> dict[TopicPartition, int]:
        ends = await self.end_offsets(times_ms)  # first: a record that comes in between is not passed over
        wanted = {place: max(time_ms, 0) for place, time_ms in times_ms.items()}
        found = await self._cluster.offsets(wanted)
        return {place: offset if offset >= 0 else ends[place] for place, offset in found.items()}

    async def read(self, place: TopicPartition, start: int, stop: int) -> AsyncIterator[list[Record]]:
        first = (await self.beginning_offsets([place]))[place]
        end = (await self.end_offsets([place]))[place]
        start, stop = max(start, first), min(stop, end)
        if start >= stop or self._closed:
            return
        async with aclosing(self._batches(_Scan(self._cluster, place, start, stop))) as batches:
            async for records in batches:
                yield records

    async def follow(self, place: TopicPartition, start: int) -> AsyncIterator[list[Record]]:
        first = (await self.beginning_offsets([place]))[place]
        async with aclosing(self._batches(_Scan(self._cluster, place, max(start, first), None))) as batches:
            async for records in batches:
                yield records

    async def _batches(self, scan: "_Scan") -> AsyncGenerator[list[Record]]:
        calls = BlockingCalls(f"kafka-read-{scan.place}")
        try:
            while not scan.ended and not self._closed:
                records = await calls.run(scan.next_batch)
                if records:
                    yield records
        finally:
            calls.submit(scan.close)
            calls.stop()

    async def close(self) -> None:
        """Reads that are going on end with their next batch."""
        self._closed = True


class _Scan:
    """One pass over one partition, from `start` up to but not including `stop`; None: without end. Its methods block."""

    def __init__(self, cluster: Cluster, place: TopicPartition, start: int, stop: int | None) -> None:
        self.ended = False
        self.place = place
        self._start = start
        self._stop = stop
        self._cluster = cluster
        self._client: Client | None = None
        self._lookout = Lookout(cluster.probe) if stop is None else None  # else it ends by itself when it hears nothing

    def next_batch(self) -> list[Record]:
        """Raises: Unavailable, Rejected."""
        try:
            return self._next_batch()
        except KafkaException as error:
            raise translate(error, str(self.place), "Read") from None

    def _next_batch(self) -> list[Record]:
        if self._client is None:
            self._client = Client(
                self._cluster.settings(
                    group_id="headrace.reader",  # never joined: the client wants a name
                    enable_auto_commit=False,
                    enable_auto_offset_store=False,
                    enable_partition_eof=True,
                    auto_offset_reset="earliest",
                    fetch_queue_backoff_ms=5,
                    fetch_wait_max_ms=50,
                    queued_max_messages_kbytes=16_384,
                )
            )
            self._client.assign([ClientPartition(*self.place, self._start)])
        message = self._client.poll(FOLLOW_SECONDS if self._stop is None else QUIET_SECONDS)
        if message is None:
            if self._lookout is None:
                raise Unavailable(f"{self.place}: nothing could be read for {QUIET_SECONDS:.0f} s")
            if self._lookout.is_lost(self._client, self.place.topic):
                raise Unavailable(f"{self.place}: the client that followed it has lost the brokers")
            return []
        if self._lookout is not None:
            self._lookout.heard()
        records: list[Record] = []
        for found in [message, *self._client.consume(BATCH_RECORDS - 1, 0)]:
            error = found.error()
            if error is None:
                record = record_of(found)
                if self._stop is None or record.offset < self._stop:
                    records.append(record)
                self.ended = self.ended or (self._stop is not None and record.offset >= self._stop - 1)
            elif error.code() == KafkaError._PARTITION_EOF:
                self.ended = self._stop is not None
            elif error.code() == KafkaError.GROUP_AUTHORIZATION_FAILED:
                continue  # the client looks for the coordinator of the group that it never joins
            elif not isinstance(failure := translate(error, str(self.place), "Read"), Unavailable):
                raise failure
        return records

    def close(self) -> None:
        if self._client is not None:
            self._client.close()
            self._client = None
