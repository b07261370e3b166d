"""The client whose every record calls back, polled by a thread of its own.

The thread gathers what came back and wakes the loop once for all of it, so a confirmation waits for no timer.
"""

import asyncio
import threading
from collections.abc import Callable
from functools import partial
from typing import Generic, NamedTuple, TypeVar

from confluent_kafka import KafkaError, Message

from app.broker.kafka.clients import LastingClient
from app.broker.kafka.threads import call_loop

T = TypeVar("T")

POLL_SECONDS = 0.1


class Settled(NamedTuple, Generic[T]):
    """What became of one record. Partition and offset are -1 where `error` is not None."""

    token: T
    error: KafkaError | None
    partition: int
    offset: int


class ConfirmingClient(Generic[T]):
    """settle: called on the loop with everything that came back since its last call, in order."""

    def __init__(self, client: LastingClient, settle: Callable[[list[Settled[T]]], None]) -> None:
        self._client = client
        self._settle = settle
        self._loop = asyncio.get_running_loop()
        self._waiting = 0
        self._settled: list[Settled[T]] = []
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="kafka-confirm", daemon=True)
        self._thread.start()

    def produce(
        self,
        token: T,
        topic: str,
        value: bytes | None,
        key: bytes | None,
        partition: int,
        timestamp_ms: int,
        headers: list[tuple[str, str | bytes | None]] | None,
    ) -> None:
        """Raises: BufferError when the queue is full; KafkaException."""
        callback = partial(self._report, token)
        self._client.produce(topic, value, key, partition, callback, None, timestamp_ms, headers)
        self._waiting += 1

    def waiting(self) -> int:
        """Records whose answer `settle` has not been given."""
        return self._waiting

    def stop(self) -> None:
        """Records without an answer by now get none."""
        self._stopping.set()

    def _report(self, token: T, error: KafkaError | None, message: Message) -> None:
        partition, offset = message.partition(), message.offset()
        self._settled.append(
            Settled(token, error, -1 if partition is None else partition, -1 if offset is None else offset)
        )

    def _run(self) -> None:
        alive = True
        while alive and not self._stopping.is_set():
            self._client.poll(POLL_SECONDS)
            if self._settled:
                settled, self._settled = self._settled, []
                alive = call_loop(self._loop, self._hand_over, settled)

    def _hand_over(self, settled: list[Settled[T]]) -> None:
        """On the loop."""
        self._waiting -= len(settled)
        self._settle(settled)
