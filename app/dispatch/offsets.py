"""Which offset of a partition may be committed, while its records end in any order.

One tracker lives as long as one assignment of one partition. The committed position is the first offset that is not
done, never anything derived from the highest offset seen; what is done beyond it travels in the commit's metadata, so a
clean restart repeats nothing. Records are taken only within a window from that position, so the metadata always fits.

Offsets may have gaps (compaction, transactions): a gap is nothing to wait for, and nothing to store.

It also keeps how often an unfinished record may have taken its process with it. Which records come under suspicion, and
what that means for them, is decided in `caution`.
"""

from collections import deque

from app.broker.base import CommittedOffset
from app.dispatch.marks import MAX_ANNOUNCED, WINDOW, Known, Mark, decode_marks, encode_marks


class OffsetTracker:
    """Offsets of one partition in one epoch: received, unfinished, done. O(1) a record, amortised. No I/O, no clock.

    A received offset is unfinished until `finish`. After `end` nothing changes any more: what ends late belongs to
    an epoch that is over.
    """

    def __init__(self, start: CommittedOffset | None, *, unclean: bool = False) -> None:
        """start: what the group has committed; None where it never did. unclean: how an epoch ended is unclear, whatever
        the start says."""
        self._next = start.offset if start else 0
        self._committed = start is not None
        self._first = 0
        self.started = False
        """Whether a record was received."""
        self.vanished = 0
        """Offsets between the committed one and the first record: what they held is gone (retention)."""
        self._received: deque[int] = deque()  # from the first unfinished one on, in order
        self._unfinished: set[int] = set()
        known = decode_marks(start.offset, start.metadata) if start else Known({})
        self.foreign_metadata = known is None
        known = known or Known({})
        self.unclean = unclean or known.is_open
        """Whether the epoch before ended without its last commit."""
        self.all_named = known.names_all
        """Whether that epoch had announced whatever was running."""
        self._marks = known.marks
        self._announced: set[int] = set()
        self._condemned = {at for at in known.announced if self._marks.get(at) is Mark.TWO_CRASHES}
        for at in known.announced - self._condemned:
            self._marks[at] = Mark.TWO_CRASHES if at in self._marks else Mark.ONE_CRASH
        self._closed = False
        self._ended = False
        self.changes = 0
        """Grows with every change of what `committable` answers; the first record is one."""

    @property
    def position(self) -> int:
        """The offset to commit: the first received one that is not done, else the one after the last received."""
        return self._received[0] if self._received else self._next

    @property
    def received_to(self) -> int:
        """The offset behind the last one received."""
        return self._next

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
            self.changes += 1
            if offset < self._next:  # the log begins anew below what was committed: old marks say nothing about it
                self._marks.clear()
                self._condemned.clear()
                self.unclean = False
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
        self._announced.discard(offset)
        self._condemned.discard(offset)
        self.changes += 1
        received, marks, unfinished = self._received, self._marks, self._unfinished
        while received and received[0] not in unfinished:
            del marks[received.popleft()]
        assert bool(received) == bool(unfinished)
        return True

    def crashes(self, offset: int) -> int:
        """In how many unclean ends the unfinished record may have had a part: 0 to 3."""
        if offset in self._condemned:
            return 3
        mark = self._marks.get(offset)
        assert mark is not Mark.DONE
        return int(mark or 0)

    def suspect(self, offset: int) -> None:
        """The record may have been running when the epoch before ended uncleanly."""
        self._marks.setdefault(offset, Mark.ONE_CRASH)
        self.changes += 1

    @property
    def announced(self) -> int:
        """How many records the next commit says may be running, and lays an unclean end to the charge of."""
        return len(self._announced)

    def announce(self, offset: int) -> None:
        """The record runs once this is committed; an unclean end from then on counts against it."""
        assert offset in self._unfinished
        self._announced.add(offset)
        self.changes += 1

    def withdraw(self, offset: int) -> None:
        """The announced record does not run now."""
        if offset in self._announced and not self._ended:
            self._announced.remove(offset)
            self.changes += 1

    def committable(self, *, names_all: bool = False) -> CommittedOffset:
        """The position, and what is known beyond it: every offset before it is done or does not exist. names_all: whether
        nothing runs but what is announced."""
        position = self.position
        # What is said of offsets that were never received stays until the position has passed them.
        for offset in [offset for offset in self._marks if offset < position]:
            del self._marks[offset]
        self._condemned = {offset for offset in self._condemned if offset >= position}
        announced = [*(() if self._closed else self._announced), *self._condemned][:MAX_ANNOUNCED]
        is_open = not self._closed
        return CommittedOffset(
            position, encode_marks(position, self._marks, announced, is_open=is_open, names_all=is_open and names_all)
        )

    def close(self) -> None:
        """The next commit is the last one, and says that the epoch ended cleanly. Without a record there is none: how the
        epoch before ended is then left for the next owner to read."""
        if self.started and not self._closed:
            self._closed = True
            self.changes += 1

    def end(self) -> None:
        """The epoch is over: completions change nothing from here on."""
        self._ended = True
