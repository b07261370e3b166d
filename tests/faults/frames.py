"""Calls of Kafka's protocol on their way through a proxy, known by the heads of their frames: what becomes of them."""

from collections.abc import Iterator, Set
from dataclasses import dataclass, field
from typing import Protocol

PRODUCE, METADATA, OFFSET_COMMIT = 0, 3, 8
"""API keys."""

EXECUTED_EVERY = 6
"""Clients repeat a call by themselves, a commit twice: so that they have to give up, too, most are lost."""

LENGTH_BYTES, HEAD_BYTES, REPLY_HEAD_BYTES = 4, 8, 4

METADATA_VERSIONS = range(9, 14)
"""Whose replies are laid out as `_without_brokers` reads them."""


@dataclass
class Tally:
    """Over all connections of a fault. seen: calls that it is about; changed: those that something became of; unknown:
    versions of calls whose replies cannot be read, so that their connections were broken instead."""

    seen: int = 0
    changed: int = 0
    unknown: set[int] = field(default_factory=set)


class Calls(Protocol):
    """One connection, from its first byte on, in chunks cut anywhere."""

    def requests(self, chunk: bytes) -> bytes | None:
        """What to pass on in place of these requests; None: the connection breaks before they have arrived."""

    def replies(self, chunk: bytes) -> bytes | None:
        """The same for the answers."""


class LostCalls:
    """Of the calls of some kinds one in `EXECUTED_EVERY` is executed and its reply lost; the others are lost before the
    server hears of them. A network loses either together with the connection."""

    def __init__(self, kinds: Set[int], tally: Tally) -> None:
        """kinds: API keys."""
        self._kinds = kinds
        self._tally = tally
        self._requests, self._replies = _Frames(HEAD_BYTES), _Frames(REPLY_HEAD_BYTES)
        self._unanswered: set[bytes] = set()

    def requests(self, chunk: bytes) -> bytes | None:
        for head in self._requests.feed(chunk):
            if _kind(head) in self._kinds:
                number, self._tally.seen = self._tally.seen, self._tally.seen + 1
                self._tally.changed += 1
                if number % EXECUTED_EVERY:
                    return None
                self._unanswered.add(_number(head))
        return chunk

    def replies(self, chunk: bytes) -> bytes | None:
        return None if any(head in self._unanswered for head in self._replies.feed(chunk)) else chunk


class NamesNoBrokers:
    """Answers about the cluster say that it has no brokers, as those of a broker that starts or ends may."""

    def __init__(self, tally: Tally) -> None:
        self._tally = tally
        self._requests, self._replies = _Frames(HEAD_BYTES), _Frames()
        self._asked: set[bytes] = set()

    def requests(self, chunk: bytes) -> bytes | None:
        for head in self._requests.feed(chunk):
            if _kind(head) == METADATA:
                self._tally.seen += 1
                if _version(head) not in METADATA_VERSIONS:
                    self._tally.unknown.add(_version(head))
                    return None
                self._asked.add(_number(head))
        return chunk

    def replies(self, chunk: bytes) -> bytes | None:
        passed = b""
        for frame in self._replies.feed(chunk):
            body = frame
            if (number := frame[:REPLY_HEAD_BYTES]) in self._asked:
                self._asked.remove(number)
                self._tally.changed += 1
                body = _without_brokers(frame)
            passed += len(body).to_bytes(LENGTH_BYTES, "big") + body
        return passed


def _kind(head: bytes) -> int:
    return int.from_bytes(head[:2], "big")


def _version(head: bytes) -> int:
    return int.from_bytes(head[2:4], "big")


def _number(head: bytes) -> bytes:
    """By which its reply, which begins with it, is known."""
    return head[4:8]


def _without_brokers(reply: bytes) -> bytes:
    """A metadata reply of version 9 to 13 (correlation id, tags, throttle time, brokers, ...) with an empty list of brokers."""
    brokers = at = 4 + 1 + 4
    count, at = _unsigned(reply, at)
    for _ in range(count - 1):
        at = _after_text(reply, at + 4)
        at = _after_text(reply, at + 4)
        at += 1
    return reply[:brokers] + b"\x01" + reply[at:]


def _after_text(reply: bytes, at: int) -> int:
    length, at = _unsigned(reply, at)
    return at + max(length - 1, 0)


def _unsigned(reply: bytes, at: int) -> tuple[int, int]:
    """A number of seven bits a byte, the lowest first, and where it ends."""
    value = shift = 0
    while True:
        value |= (reply[at] & 0x7F) << shift
        shift, at = shift + 7, at + 1
        if reply[at - 1] < 0x80:
            return value, at


class _Frames:
    """A stream of frames, each behind its length."""

    def __init__(self, head: int | None = None) -> None:
        """head: so many bytes of each are wanted, and as soon as they are there; None: all."""
        self._head = head
        self._bytes = bytearray()
        self._passing = 0
        """So many bytes of a frame whose head is known are still to come, or to be dropped."""

    def feed(self, chunk: bytes) -> Iterator[bytes]:
        """What this chunk completes."""
        self._bytes += chunk
        while True:
            dropped = min(self._passing, len(self._bytes))
            del self._bytes[:dropped]
            self._passing -= dropped
            if len(self._bytes) < LENGTH_BYTES:
                return
            length = int.from_bytes(self._bytes[:LENGTH_BYTES], "big")
            wanted = LENGTH_BYTES + (length if self._head is None else self._head)
            if len(self._bytes) < wanted:
                return
            self._passing = LENGTH_BYTES + length
            yield bytes(self._bytes[LENGTH_BYTES:wanted])
