"""Dead letters: a record that cannot be handled ends in `<topic>.dead` with its original bytes and the reason.

After a crash a letter may be written again; topic, partition, offset and group in its headers make it recognizable.
"""

import logging
from collections.abc import AsyncIterator
from hashlib import sha256
from typing import NamedTuple

import msgspec

from app.broker.base import Confirmation, Producer, Reader
from app.broker.topics import DEAD_EXTRA_BYTES
from app.core.errors import RecordTooLarge, SetupError
from app.core.notices import Notices
from app.core.record import Headers, Record, TopicPartition
from app.core.text import one_line

logger = logging.getLogger(__name__)

MAX_REASON_CHARACTERS = 1_000
KEPT_KEY_BYTES = 8_192
SUFFIX = ".dead"
KNOWN_HEADERS = ("reason", "topic", "partition", "offset", "group", "timestamp_ms", "length", "sha256")
ORIGINAL = "original."
"""Before the names of the record's own headers."""

REPLAY_OF = "replay_of"
"""Header of a note in a dead-letter topic: it is about the letter at that offset, and no letter itself."""

COUNTED = "counted; but "
"""Begins the reason of a letter whose record took its part in everything else, so that it must not come a second time."""

PUBLISHED = "published"
"""State in a note that no later one takes back."""

REPLAYS = "replays"
"""Header of a record that was published again out of a letter: how often by now."""


class DeadLetter(NamedTuple):
    """A record for a dead-letter topic."""

    topic: str
    key: bytes | None
    value: bytes | None
    headers: Headers


def dead_letter(record: Record, reason: str, group: str, *, takes_bytes: int | None = None) -> DeadLetter:
    """The letter for a record, with the record's own headers; `group` is who could not handle it.

    takes_bytes: what the dead-letter topic takes; a larger value keeps its first 64 KiB, with length and hash, a long
    key its first 8 KiB, with its length, and longer headers than that are left out and counted.
    """
    headers: Headers = (
        ("reason", one_line(reason, MAX_REASON_CHARACTERS).encode()),
        ("topic", record.topic.encode()),
        ("partition", b"%d" % record.partition),
        ("offset", b"%d" % record.offset),
        ("group", group.encode()),
        ("timestamp_ms", b"%d" % record.timestamp_ms),
    )
    key, value = record.key, record.value
    if takes_bytes is not None and value is not None and len(value) + DEAD_EXTRA_BYTES // 2 > takes_bytes:
        cut = (("length", b"%d" % len(value)), ("sha256", sha256(value).hexdigest().encode()))
        value, headers = value[:DEAD_EXTRA_BYTES], headers + cut
    if takes_bytes is not None and key is not None and len(key) > KEPT_KEY_BYTES:
        key, headers = key[:KEPT_KEY_BYTES], (*headers, ("key_length", b"%d" % len(key)))
    own = tuple((f"{ORIGINAL}{name}", text) for name, text in record.headers)
    if takes_bytes is not None and sum(len(name) + len(text) for name, text in own) > KEPT_KEY_BYTES:
        own = (("headers_left_out", b"%d" % len(own)),)
    headers += own
    return DeadLetter(f"{record.topic}{SUFFIX}", key, value, headers)


def said(record: Record, reason: str) -> str:
    """What a log says about one dead letter."""
    place = f"{record.topic}/{record.partition}/{record.offset}"
    return f"{place} went to {record.topic}{SUFFIX}: {one_line(reason)}"


class DeadLetters:
    """Writes dead letters of one consumer group and awaits their acknowledgement."""

    def __init__(self, producer: Producer, group: str) -> None:
        self._producer = producer
        self._group = group
        self._notices = Notices(logger, logging.INFO)
        self.written = 0

    async def write(self, record: Record, reason: str) -> Confirmation:
        """To the record's own partition number; a value that the topic does not take is cut.

        On cancellation the letter may or may not be written. Raises: Unavailable, Rejected.
        """
        try:
            confirmation = await self._confirm(dead_letter(record, reason, self._group), record.partition)
        except RecordTooLarge:
            cut = dead_letter(record, reason, self._group, takes_bytes=0)
            confirmation = await self._confirm(cut, record.partition)
        self.written += 1
        self._notices.tell(record.topic, said(record, reason))
        return confirmation

    async def _confirm(self, letter: DeadLetter, partition: int) -> Confirmation:
        return await self._producer.confirm(
            letter.topic, letter.value, letter.key, partition=partition, headers=letter.headers
        )


class Letter(msgspec.Struct, frozen=True, kw_only=True):
    """A dead letter as it is read back.

    lies_at: where the letter itself is. topic, partition, offset: of the original record, -1 where it never had one.
    length, sha256: of the original value where only its first 64 KiB were kept, else None. headers: the original
    record's own. more: of the letter, beside these. replay: what came of publishing it again, in the words of the notes;
    `begun` where that broke off, empty where nobody tried.
    """

    lies_at: tuple[str, int, int]
    written_ms: int
    reason: str
    topic: str
    partition: int
    offset: int
    group: str
    timestamp_ms: int
    key: bytes | None
    value: bytes | None
    length: int | None = None
    sha256: str | None = None
    headers: Headers = ()
    more: dict[str, str] = {}
    replay: str = ""

    @property
    def identity(self) -> tuple[str, int, int, str]:
        """Equal for letters about one record by one group; a letter without an original place stands for itself."""
        if self.offset < 0:
            return (*self.lies_at, self.group)
        return self.topic, self.partition, self.offset, self.group

    @property
    def replays(self) -> int:
        """How often its record had been published out of a letter when it failed again."""
        counts = [_number(text.decode(errors="replace")) for name, text in self.headers if name == REPLAYS]
        return max([0, *counts])

    @property
    def is_ours(self) -> bool:
        """Whether `dead_letter` made it: anybody may write into the topic, and what others wrote names no group."""
        return bool(self.group)

    @property
    def is_counted(self) -> bool:
        return self.reason.startswith(COUNTED)

    @property
    def is_whole(self) -> bool:
        """Whether the original record is here as it was."""
        return self.length is None and "key_length" not in self.more and "headers_left_out" not in self.more


def letter_of(record: Record) -> Letter:
    """The letter that a record of a dead-letter topic holds; headers that are missing or odd are shown as empty."""
    headers = {name: text.decode(errors="replace") for name, text in record.headers if not name.startswith(ORIGINAL)}
    own = [(name.removeprefix(ORIGINAL), text) for name, text in record.headers if name.startswith(ORIGINAL)]
    known = {name: headers.pop(name, "") for name in KNOWN_HEADERS}
    return Letter(
        lies_at=(record.topic, record.partition, record.offset),
        written_ms=record.timestamp_ms,
        reason=known["reason"],
        topic=known["topic"] or record.topic.removesuffix(SUFFIX),
        partition=_number(known["partition"]),
        offset=_number(known["offset"]),
        group=known["group"],
        timestamp_ms=_number(known["timestamp_ms"]),
        key=record.key,
        value=record.value,
        length=_number(known["length"]) if known["length"] else None,
        sha256=known["sha256"] or None,
        headers=tuple(own),
        more=headers,
    )


def noted_offset(record: Record) -> int | None:
    """The offset of the letter that a record of a dead-letter topic is a note about; None for a letter."""
    header = record.header(REPLAY_OF)
    return None if header is None else _number(header.decode(errors="replace"))


async def read_letters(reader: Reader, topic: str, partitions: int, newest: int) -> AsyncIterator[Letter]:
    """The `newest` letters of each partition of a dead-letter topic, oldest first; of several letters about one record by
    one group, the last.

    Raises: Unavailable, Rejected.
    """
    places = [TopicPartition(topic, partition) for partition in range(partitions)]
    ends = await reader.end_offsets(places)
    for place in places:
        letters: dict[tuple[str, int, int, str], Letter] = {}
        replays: dict[int, str] = {}
        async for records in reader.read(place, 0, ends[place]):
            for record in records:
                noted = noted_offset(record)
                if noted is not None:
                    _remember(replays, noted, record)
                    continue
                letter = letter_of(record)
                letters.pop(letter.identity, None)
                letters[letter.identity] = letter
                if len(letters) > newest:
                    del letters[next(iter(letters))]
        for letter in letters.values():
            yield msgspec.structs.replace(letter, replay=replays.get(letter.lies_at[2], ""))


async def read_letter(reader: Reader, place: TopicPartition, offset: int) -> Letter | None:
    """The letter at that offset; None where none lies.

    Raises: SetupError where a note lies, Unavailable, Rejected.
    """
    end = (await reader.end_offsets([place]))[place]
    letter: Letter | None = None
    replays: dict[int, str] = {}
    async for records in reader.read(place, offset, end):
        for record in records:
            noted = noted_offset(record)
            if noted is not None:
                _remember(replays, noted, record)
            if record.offset == offset:
                if noted is not None:
                    about = f"the note of a replay about {place.topic}/{place.partition}/{noted}"
                    raise SetupError("LETTER", f"{place.topic}/{place.partition}/{offset} is no letter, but {about}")
                letter = letter_of(record)
        if letter is None:
            return None
    return letter and msgspec.structs.replace(letter, replay=replays.get(offset, ""))


def _remember(replays: dict[int, str], offset: int, note: Record) -> None:
    if replays.get(offset) != PUBLISHED:
        replays[offset] = (note.header("state") or b"").decode(errors="replace")


def _number(text: str) -> int:
    """A whole number, or -1 for what is none."""
    digits = text.removeprefix("-")
    return int(text) if digits.isascii() and digits.isdigit() else -1
