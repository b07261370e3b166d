"""A record as it is read from a topic, and the place it was read from."""

from typing import NamedTuple

import msgspec

from app.core.errors import BadRecord

Headers = tuple[tuple[str, bytes], ...]


class TopicPartition(NamedTuple):
    """One partition of one topic."""

    topic: str
    partition: int

    def __str__(self) -> str:
        return f"{self.topic}/{self.partition}"


class Record(msgspec.Struct, frozen=True, gc=False):
    """One record. `timestamp_ms` is milliseconds since 1970-01-01 UTC: event time where the topic keeps the
    publisher's time, time of writing where the broker stamps it."""

    topic: str
    partition: int
    offset: int
    timestamp_ms: int
    key: bytes | None
    value: bytes | None
    headers: Headers = ()

    def bad(self, reason: str) -> BadRecord:
        """The error that names this record and says what is wrong with it."""
        return BadRecord(reason, topic=self.topic, partition=self.partition, offset=self.offset)

    def header(self, name: str) -> bytes | None:
        """The last header of that name, or None."""
        found = None
        for key, value in self.headers:
            if key == name:
                found = value
        return found
