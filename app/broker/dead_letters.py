"""Dead letters: a record that cannot be handled ends in `<topic>.dead` with its original bytes and the reason.

After a crash a letter may be written again; topic, partition, offset and group in its headers make it recognizable.
"""

from hashlib import sha256
from typing import NamedTuple

from app.broker.base import Confirmation, Producer
from app.broker.topics import DEAD_EXTRA_BYTES
from app.core.record import Headers, Record

MAX_REASON_CHARACTERS = 1_000


class DeadLetter(NamedTuple):
    """A record for a dead-letter topic."""

    topic: str
    key: bytes | None
    value: bytes | None
    headers: Headers


def dead_letter(record: Record, reason: str, group: str, *, takes_bytes: int | None = None) -> DeadLetter:
    """The letter for a record; `group` is who could not handle it.

    takes_bytes: what the dead-letter topic takes; a larger value keeps its first 64 KiB, with length and hash.
    """
    headers: Headers = (
        ("reason", " ".join(reason.split())[:MAX_REASON_CHARACTERS].encode()),
        ("topic", record.topic.encode()),
        ("partition", b"%d" % record.partition),
        ("offset", b"%d" % record.offset),
        ("group", group.encode()),
        ("timestamp_ms", b"%d" % record.timestamp_ms),
    )
    value = record.value
    if takes_bytes is not None and value is not None and len(value) + DEAD_EXTRA_BYTES // 2 > takes_bytes:
        cut = (("length", b"%d" % len(value)), ("sha256", sha256(value).hexdigest().encode()))
        value, headers = value[:DEAD_EXTRA_BYTES], headers + cut
    return DeadLetter(f"{record.topic}.dead", record.key, value, headers)


class DeadLetters:
    """Writes dead letters of one consumer group and awaits their acknowledgement."""

    def __init__(self, producer: Producer, group: str) -> None:
        self._producer = producer
        self._group = group
        self.written = 0

    async def write(self, record: Record, reason: str) -> Confirmation:
        """To the record's own partition number. On cancellation the letter may or may not be written."""
        letter = dead_letter(record, reason, self._group)
        confirmation = await self._producer.confirm(
            letter.topic, letter.value, letter.key, partition=record.partition, headers=letter.headers
        )
        self.written += 1
        return confirmation
