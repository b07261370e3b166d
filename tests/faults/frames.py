"""Calls of Kafka's protocol on their way through a proxy, known by the heads of their frames: which of them get lost."""

from collections.abc import Iterator, Set

PRODUCE, OFFSET_COMMIT = 0, 8
"""API keys."""

EXECUTED_EVERY = 6
"""Clients repeat a call by themselves, a commit twice: so that they have to give up, too, most are lost."""

LENGTH_BYTES, HEAD_BYTES = 4, 8


class LostCalls:
    """One connection, from its first byte on. Of the calls of some kinds one in `EXECUTED_EVERY` is executed and its reply
    lost; the others are lost before the server hears of them. A network loses either together with the connection."""

    def __init__(self, kinds: Set[int], number: Iterator[int]) -> None:
        """kinds: API keys. number: of the calls so far, over all connections."""
        self._kinds = kinds
        self._number = number
        self._requests, self._replies = _Heads(), _Heads()
        self._unanswered: set[bytes] = set()

    def loses_request(self, chunk: bytes) -> bool:
        """Whether the connection breaks before this chunk of requests has arrived."""
        for head in self._requests.feed(chunk):
            if int.from_bytes(head[:2], "big") in self._kinds:
                if next(self._number) % EXECUTED_EVERY:
                    return True
                self._unanswered.add(head[4:8])
        return False

    def loses_reply(self, chunk: bytes) -> bool:
        """Whether the connection breaks before this chunk of replies has arrived."""
        return any(head[:4] in self._unanswered for head in self._replies.feed(chunk))


class _Heads:
    """A stream of frames, each behind its length."""

    def __init__(self) -> None:
        self._bytes = bytearray()
        self._passing = 0
        """So many bytes of a frame whose head is known are still to come, or to be dropped."""

    def feed(self, chunk: bytes) -> Iterator[bytes]:
        """The heads that this chunk completes."""
        self._bytes += chunk
        while True:
            dropped = min(self._passing, len(self._bytes))
            del self._bytes[:dropped]
            self._passing -= dropped
            if len(self._bytes) < LENGTH_BYTES + HEAD_BYTES:
                return
            self._passing = LENGTH_BYTES + int.from_bytes(self._bytes[:LENGTH_BYTES], "big")
            yield bytes(self._bytes[LENGTH_BYTES : LENGTH_BYTES + HEAD_BYTES])
