"""Committed offsets, asked for every 50 ms from outside the groups: what was committed when, with what beyond it."""

import threading
from collections.abc import Mapping

from confluent_kafka import Consumer, KafkaException
from confluent_kafka import TopicPartition as Place

from app.broker.kafka.errors import translate
from app.core.clock import SystemClock
from app.core.errors import Unavailable
from tests.faults.history import Committed

EVERY_S = 0.05
ANSWER_S = 5.0
QUIET = 0
"""Of librdkafka's log levels: in an outage it would say twenty times a second that nobody answers."""


class CommitSampler:
    """A thread of its own, from `start` to `stop`. `changes` is every change that it has seen.

    Consumers that never join ask: librdkafka's admin client crashes now and then while a group has no coordinator yet.
    """

    def __init__(self, servers: str, groups: Mapping[str, tuple[str, str, int]]) -> None:
        """groups: by the history's name for it, the group, its topic and the number of partitions."""
        self.changes: list[Committed] = []
        self.largest_gap_ms = 0
        """Longest time between two answers about one group: so much later than it was made a commit may have been seen."""
        self._answered: dict[str, int] = {}
        self._latest: dict[tuple[str, int], tuple[int, str]] = {}
        self._clock = SystemClock()
        self._asking = {
            name: (
                Consumer({"bootstrap.servers": servers, "group.id": group, "log_level": QUIET}),
                [Place(topic, partition) for partition in range(partitions)],
            )
            for name, (group, topic, partitions) in groups.items()
        }
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._follow, name="commits", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Takes one more sample of each group, and ends."""
        self._stopping.set()
        self._thread.join()
        for consumer, _ in self._asking.values():
            consumer.close()

    def committed(self, name: str, partition: int) -> int:
        """The latest offset known; 0 where nothing was committed yet."""
        return self._latest.get((name, partition), (0, ""))[0]

    def _follow(self) -> None:
        is_last = False
        while not is_last:
            is_last = self._stopping.wait(EVERY_S)
            for name in self._asking:
                self._sample(name)

    def _sample(self, name: str) -> None:
        consumer, places = self._asking[name]
        try:
            found = consumer.committed(places, timeout=ANSWER_S)
        except KafkaException as error:
            if isinstance(translate(error, name), Unavailable):
                return
            raise
        if any(at.error is not None for at in found):
            return
        now_ms = self._clock.now_ms()
        self.largest_gap_ms = max(self.largest_gap_ms, now_ms - self._answered.get(name, now_ms))
        self._answered[name] = now_ms
        for at in found:
            offset, metadata = max(at.offset, 0), at.metadata or ""
            if self._latest.get((name, at.partition), (0, "")) != (offset, metadata):
                self._latest[name, at.partition] = offset, metadata
                self.changes.append(Committed(name, at.partition, offset, metadata, now_ms))
