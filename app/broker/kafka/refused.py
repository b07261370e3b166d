"""Records of refused batches, each sent once more in a batch of its own.

A broker refuses a whole batch for one record that is too large or too early. So its neighbours arrive, behind records
that were sent after them, and only the bad one fails.
"""

from collections import deque
from collections.abc import Callable
from functools import partial
from typing import Any, Generic, TypeVar

from confluent_kafka import KafkaError, Message

from app.broker.kafka.clients import LastingClient
from app.broker.kafka.confirming import Settled

T = TypeVar("T")


class RefusedRecords(Generic[T]):
    """`make` opens the client, when the first record is refused. Belongs to the loop, but for `drain`."""

    def __init__(self, make: Callable[[], LastingClient]) -> None:
        self._make = make
        self._client: LastingClient | None = None
        self._again: deque[tuple[T, tuple[Any, ...]]] = deque()
        self._settled: deque[Settled[T]] = deque()

    def __len__(self) -> int:
        """Records that `serve` has not returned yet."""
        return len(self._again) + len(self._settled) + (len(self._client) if self._client is not None else 0)

    def add(self, token: T, record: tuple[Any, ...]) -> None:
        """record: topic, value, key, partition, time in ms, headers."""
        self._again.append((token, record))

    def serve(self) -> list[Settled[T]]:
        """Sends what was added as far as there is room; returns what became of records since the last call."""
        if self._client is not None:
            self._client.poll()
        while self._again:
            token, (*record, timestamp_ms, headers) = self._again[0]
            self._client = self._client or self._make()
            try:
                self._client.produce(*record, partial(self._report, token), None, timestamp_ms, headers)
            except BufferError:
                break
            self._again.popleft()
        settled = list(self._settled)
        self._settled.clear()
        return settled

    def drain(self, seconds: float) -> None:
        """On any thread: waits a moment for answers."""
        if self._client is not None:
            self._client.flush(seconds)

    def take_client(self) -> LastingClient | None:
        """The client, for its end."""
        client, self._client = self._client, None
        return client

    def _report(self, token: T, error: KafkaError | None, message: Message) -> None:
        """Called by the client, on the loop or on the thread that drains it."""
        partition, offset = message.partition(), message.offset()
        place = -1 if partition is None else partition
        self._settled.append(Settled(token, error, place, -1 if offset is None else offset))
