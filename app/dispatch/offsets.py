"""Which offset of a partition may be committed, while its records end in any order.

One tracker lives as long as one assignment of one partition. The committed position is the first offset that is not
done, never anything derived from the highest offset seen; what is done beyond it travels in the commit's metadata, so a
clean restart repeats nothing. Records are taken only within a window from that position, so the metadata always fits.

Offsets may have gaps (compaction, transactions): a gap is nothing to wait for, and nothing to store.
"""

from collections import deque

from app.broker.base import CommittedOffset
from app.dispatch.marks import WINDOW, Mark, decode_marks, encode_marks


class OffsetTracker:
    """Offsets of one partition in one epoch: received, unfinished, done. O(1) a record, amortised. No I/O, no clock.

    A received offset is unfinished until `finish`. After `end` nothing changes any more: what ends late belongs to
    an epoch that is over.
    """

    def __init__(self, start: CommittedOffset | None) -> None:
        """start: what the group has committed; None where it never did."""
        self._next = start.offset if start else 0
        self._committed = start is not None
        self._first = 0
        self.started = False
        """Whether a record was received."""
        self.vanished = 0
        """Offsets between the committed one and the first record: what they held is gone (retention)."""
        self._received: deque[int] = deque()  # from the first unfinished one on, in order
        self._unfinished: set[int] = set()
        marks = decode_marks(start.offset, start.metadata) if start else {}
        self.foreign_metadata = marks is None
        self._marks = marks or {}
        self._ended = False
        self.changes = 0
        """Grows with every change of what `committable` answers."""

    @property
    def position(self) -> int:
        """The offset to commit: the first received one that is not done, else the one after the last received."""
        return self._received[0] if self._received else self._next

    @property
    def unfinished(self) -> int:
        """How many received offsets are not done."""
        return len(self._unfinished)

    @property
    def span(self) -> int:
        """How much of the window is taken, in offsets: 0 when everything received is done, at most WINDOW."""
        return self._next - self.position

    @property
    def ended(self) -> bool:
        return self._ended

    def has_room(self, offset: int) -> bool:
        """Whether the window reaches this coming offset. Always so when nothing is unfinished."""
        return not self._received or offset - self._received[0] < WINDOW

    def begins_anew(self, offset: int) -> bool:
        """Whether this coming offset says that the log is another one now (its topic was deleted and made again): it is
        no later than the first one received, and no record of a log is read twice."""
        return self.started and offset <= self._first

    def receive(self, offset: int) -> bool:
        """Takes the next offset of the partition. False when it is done already: an earlier owner recorded it."""
        assert not self._ended, "the epoch has ended"
        assert self.has_room(offset), f"offset {offset} lies beyond the window of {self.position}"
        if not self.started:
            self.started = True
            self._first = offset
            if offset < self._next:  # the log begins anew below what was committed: old marks say nothing about it
                self._marks.clear()
            elif self._committed:
                self.vanished = offset - self._next
        else:
            assert offset >= self._next, f"offset {offset} after {self._next - 1}"
        self._next = offset + 1
        if self._marks.get(offset) is Mark.DONE:
            self.changes += 1
            if self._received:
                self._received.append(offset)
            else:
                del self._marks[offset]
            return False
        self._received.append(offset)
        self._unfinished.add(offset)
        return True

    def finish(self, offset: int) -> bool:
        """The record of that offset has reached its end. False, and nothing changes, when the epoch has ended."""
        if self._ended:
            return False
        assert offset in self._unfinished, f"offset {offset} was not received, or is done already"
        self._unfinished.remove(offset)
        self._marks[offset] = Mark.DONE
        self.changes += 1
        received, marks, unfinished = self._received, self._marks, self._unfinished
        while received and received[0] not in unfinished:
            del marks[received.popleft()]
        assert bool(received) == bool(unfinished)
        return True

    def committable(self) -> CommittedOffset:
        """The position, and what is done beyond it: every offset before it is done or does not exist."""
        position = self.position
        # Marks of offsets that were never received stay until the position has passed them.
        behind = [offset for offset in self._marks if offset < position]
        for offset in behind:
            del self._marks[offset]
        return CommittedOffset(position, encode_marks(position, self._marks))

    def end(self) -> None:
        """The epoch is over: completions change nothing from here on."""
        self._ended = True
