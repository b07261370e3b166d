"""Reads partitions outside any group through aiokafka."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Iterable, Mapping
from contextlib import aclosing

from aiokafka import AIOKafkaConsumer, OffsetAndTimestamp
from aiokafka import TopicPartition as ClientPartition
from aiokafka.errors import KafkaError

from app.broker.aiokafka.cluster import READING, Cluster, client_places, end
from app.broker.aiokafka.errors import translate
from app.broker.aiokafka.records import record_of
from app.core.errors import Unavailable
from app.core.record import Record, TopicPartition

BATCH_RECORDS = 1_000
QUIET_SECONDS = 10.0
"""A partition that gives neither a record nor its end for so long is unavailable."""
WAIT_MS = 50
"""How long a client waits for records in one call: so long a read may wait at an end that lies behind the last record, and
a follower's end may take."""


class AioKafkaReader:
    """Keeps the contract of `base.Reader`. Every `read` and `follow` has a client of its own while it lasts."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self._closed = False

    async def beginning_offsets(self, places: Iterable[TopicPartition]) -> dict[TopicPartition, int]:
        asked = client_places(places)
        return await self._cluster.look_up(map(_place, asked), lambda client: client.beginning_offsets(asked))

    async def end_offsets(self, places: Iterable[TopicPartition]) -> dict[TopicPartition, int]:
        asked = client_places(places)
        return await self._cluster.look_up(map(_place, asked), lambda client: client.end_offsets(asked))

    async def offsets_for_times(self, times_ms: Mapping[TopicPartition, int]) -> dict[TopicPartition, int]:
        ends = await self.end_offsets(times_ms)  # first: a record that comes in between is not passed over
        asked = {ClientPartition(*place): max(time_ms, 0) for place, time_ms in times_ms.items()}
        found: Mapping[TopicPartition, OffsetAndTimestamp | None]
        found = await self._cluster.look_up(times_ms, lambda client: client.offsets_for_times(asked))
        return {place: ends[place] if at is None else at.offset for place, at in found.items()}

    async def read(self, place: TopicPartition, start: int, stop: int) -> AsyncIterator[list[Record]]:
        first = (await self.beginning_offsets([place]))[place]
        stop = min(stop, (await self.end_offsets([place]))[place])
        start = max(start, first)
        if start >= stop or self._closed:
            return
        async with aclosing(self._batches(place, start, stop)) as batches:
            async for records in batches:
                yield records

    async def follow(self, place: TopicPartition, start: int) -> AsyncIterator[list[Record]]:
        first = (await self.beginning_offsets([place]))[place]
        async with aclosing(self._batches(place, max(start, first), None)) as batches:
            async for records in batches:
                yield records

    async def _batches(self, place: TopicPartition, start: int, stop: int | None) -> AsyncGenerator[list[Record]]:
        """stop: without one it never ends by itself."""
        client = await self._cluster.open(AIOKafkaConsumer(**self._cluster.settings(**READING)))
        try:
            at = ClientPartition(*place)
            client.assign([at])
            client.seek(at, start)
            loop = asyncio.get_running_loop()
            position, moved_s = start, loop.time()
            while not self._closed and (stop is None or position < stop):
                found = await client.getmany(at, timeout_ms=WAIT_MS, max_records=BATCH_RECORDS)
                records = [record_of(each) for each in found.get(at, ()) if stop is None or each.offset < stop]
                if records:
                    yield records
                before, position = position, await client.position(at)  # it passes over gaps too
                if position > before or stop is None:
                    moved_s = loop.time()
                elif loop.time() - moved_s > QUIET_SECONDS:
                    raise Unavailable(f"{place}: nothing could be read for {QUIET_SECONDS:.0f} s")
        except (KafkaError, OSError) as error:
            raise translate(error, str(place)) from None
        finally:
            await end(client)

    async def close(self) -> None:
        """Reads that are going on end with their next batch."""
        self._closed = True


def _place(at: ClientPartition) -> TopicPartition:
    return TopicPartition(at.topic, at.partition)
