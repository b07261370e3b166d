"""The producing client, replaced after every failure.

The library numbers the batches of an idempotent session, and does not take the number of a refused batch back: the broker
refuses all that follow in that partition. So after any failure the next batch goes out in a new session, from a new
client; the old one ends when the batches it still has are answered.

A batch that is given up without an answer is still in the old client, which would deliver it whenever it can, behind what
comes after it. So that client is ended first, whoever else uses it: batches of others that it has not delivered in a
moment have failed too, and may or may not be written.
"""

import asyncio
import logging
from collections import Counter, defaultdict
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, NamedTuple

from aiokafka import AIOKafkaProducer
from aiokafka.errors import KafkaError, KafkaTimeoutError

from app.broker.base import Confirmation
from app.core.record import Headers

logger = logging.getLogger(__name__)

END_SECONDS = 2.0


class Outgoing(NamedTuple):
    """A record on its way. answer: for who waits for its acknowledgement. due_s: loop time after which it has failed."""

    value: bytes | None
    key: bytes | None
    timestamp_ms: int
    headers: Headers
    answer: asyncio.Future[Confirmation] | None
    due_s: float


class Sessions:
    """`make` opens a client."""

    def __init__(self, make: Callable[[], Awaitable[AIOKafkaProducer]]) -> None:
        self._make = make
        self._opening = asyncio.Lock()
        self._current: AIOKafkaProducer | None = None
        self._busy: Counter[AIOKafkaProducer] = Counter()
        self._unanswered: defaultdict[AIOKafkaProducer, set[asyncio.Future[Any]]] = defaultdict(set)
        self._ending = asyncio.Lock()

    async def current(self) -> AIOKafkaProducer:
        """The client that takes batches now. Raises: what opening one raises."""
        async with self._opening:
            if self._current is None:
                self._current = await self._make()
            return self._current

    async def send(self, topic: str, partition: int, records: Sequence[Outgoing]) -> int:
        """Writes one batch; the offset of its first record, or -1 where the broker does not know it any more.

        On cancellation, or after KafkaError, it may or may not be written; nothing more of it is sent after that.
        """
        client = await self.current()
        self._busy[client] += 1
        try:
            batch = client.create_batch()
            for record in records:
                batch.append(
                    timestamp=record.timestamp_ms, key=record.key, value=record.value, headers=list(record.headers)
                )
            answer = await client.send_batch(batch, topic, partition=partition)
            self._unanswered[client].add(answer)
            try:
                return int((await answer).offset)
            finally:
                self._unanswered[client].discard(answer)
        except BaseException as error:
            if self._current is client:
                self._current = None
            if not isinstance(error, Exception):
                await self._end(client)
            raise
        finally:
            self._busy[client] -= 1
            if self._current is not client and not self._busy[client]:
                del self._busy[client]
                self._unanswered.pop(client, None)
                await self._end(client)

    async def _end(self, client: AIOKafkaProducer) -> None:
        """Afterwards it sends nothing."""
        async with self._ending:
            if client._closed:
                return
            others = self._unanswered.get(client, ())
            if others:
                await asyncio.wait([*others], timeout=END_SECONDS)
            await _abandon(client)
            for answer in [*others]:
                if not answer.done():
                    answer.set_exception(KafkaTimeoutError("its session ended"))

    async def close(self) -> None:
        """Ends the client; what it has not delivered by now is lost."""
        client, self._current = self._current, None
        if client is not None and not self._busy[client]:
            await _abandon(client)


async def _abandon(client: AIOKafkaProducer) -> None:
    """The library's own end waits for the broker to take everything, for ever."""
    client._closed = True
    try:
        async with asyncio.timeout(END_SECONDS):
            await client._sender.close()
    except (KafkaError, TimeoutError) as error:
        logger.debug("%r", error)
    finally:
        await client.client.close()
