"""Records that may take their process with them: which are under suspicion, and when they may run.

Nobody can tell from inside why a process died. So after an unclean end of an epoch the next owner is careful, in steps:

- Of the records that may have been running in that epoch the first unfinished ones, and the first of each of the first
  keys, are suspects: one crash. Only `SUSPECTS_AT_ONCE` of them run at a time, and each is announced in a commit before it
  runs. Others run beside them, a few ahead of what is committed, so that a culprit among them is among the first after the
  next unclean end.
- An unclean end counts against the suspects that were announced, and no others. At two crashes a record runs on trial:
  announced, and with nothing else of its partition beside it.
- The one that was on trial at an unclean end has three crashes: it is given up without running.

So innocents beside a culprit, or under a process that is killed from outside, never get further than a trial, unless the
kill hits just that. Nothing of a partition runs before the first commit of its epoch, which is what makes a later end
recognizable as unclean.
"""

from app.dispatch.marks import WINDOW
from app.dispatch.offsets import OffsetTracker

SUSPECTS_AT_ONCE = 8
"""Of one partition. It bounds how many an unclean end can bring to their trial, and so how long trials hold up the
partition; fewer hold up the suspects themselves."""

CONDEMNED = 3
"""Crashes after which a record is given up."""


class Caution:
    """Decides for one partition in one epoch whether a record may start. No I/O, no clock.

    A version is a value of the tracker's `changes`; `committed`, where it is asked for, the last version committed.
    """

    def __init__(self, tracker: OffsetTracker, concurrency: int) -> None:
        self._tracker = tracker
        self._concurrency = concurrency
        self._ahead = max(1, concurrency // 4)
        """While careful: records without a crash that run at once, and again so many that are done and not committed."""
        self.reach = 0
        """Offsets from here on were not there yet when this epoch began, so no earlier owner can have been running them."""
        self._received = self._keys = self._fresh = 0
        self._barrier = 1  # the version that must be committed before anything starts
        self._waiting: dict[int, int] = {}  # announced, and not started yet: in which version
        self._on_trial: int | None = None
        self._others: set[int] = set()  # while careful: those without a crash that run
        self._uncommitted = 0

    def look_back(self, start: int, end: int) -> None:
        """Of a log that ends at `end` an earlier owner, who had committed `start`, may have been running no more than a
        window. To be called before the first record."""
        self.reach = min(start + WINDOW, end)

    def _is_careful(self, offset: int) -> bool:
        """Whether a record may have been running when the epoch before ended uncleanly."""
        return self._tracker.unclean and offset < self.reach

    def receive(self, offset: int, *, is_first_of_key: bool) -> None:
        """Takes notice of an unfinished record, in order. After an unclean end it may become a suspect."""
        if not self._is_careful(offset):
            return
        is_fresh = self._tracker.crashes(offset) == 0
        self._received += 1
        self._keys += is_first_of_key
        self._fresh += is_fresh
        among_first = self._received <= self._concurrency or (is_first_of_key and self._keys <= self._concurrency)
        if is_fresh and (among_first or self._fresh <= 2 * self._ahead):
            self._tracker.suspect(offset)

    def step(self, offset: int) -> int:
        """Which of the three ways to run is the record's: 0 free, 1 as a suspect, 2 on trial or given up."""
        return min(self._tracker.crashes(offset), 2)

    def is_condemned(self, offset: int) -> bool:
        return self._tracker.crashes(offset) >= CONDEMNED

    def may_start(self, offset: int, committed: int, *, others_run: bool) -> bool:
        """Whether the head of a lane may run now. When not, it is to be asked for again after each commit and each end of a
        record of this partition, in the order in which it was asked for first; of each step the first `SUSPECTS_AT_ONCE`
        are enough. `wants_commit` says whether a commit is needed at once."""
        if committed < self._barrier:
            return False
        crashes = self._tracker.crashes(offset)
        if crashes >= 2 and self._on_trial is None:
            self._begin_trial(offset)
        if self._on_trial is not None and (self._on_trial != offset or others_run):
            return False
        if crashes == 0:
            return self._may_run_ahead(offset)
        return crashes == CONDEMNED or self._is_announced(offset, committed)  # that one runs no handler

    def _begin_trial(self, offset: int) -> None:
        self._on_trial = offset
        for waiting in self._waiting:
            self._tracker.withdraw(waiting)
        self._waiting.clear()

    def _may_run_ahead(self, offset: int) -> bool:
        if self._is_careful(offset):
            if len(self._others) >= self._ahead:
                return False
            self._others.add(offset)
        return True

    def _is_announced(self, offset: int, committed: int) -> bool:
        if offset not in self._waiting:
            if self._tracker.announced >= SUSPECTS_AT_ONCE:
                return False
            self._tracker.announce(offset)
            self._waiting[offset] = self._tracker.changes
        if committed < self._waiting[offset]:
            return False
        del self._waiting[offset]
        return True

    def wants_commit(self, committed: int) -> bool:
        """Whether something waits for one."""
        return committed < max(self._barrier, *self._waiting.values(), 0)

    def stopped(self, offset: int, *, is_done: bool) -> None:
        """A record that ran does so no more: it is done, or waits for its retry."""
        self._others.discard(offset)
        self._waiting.pop(offset, None)  # its time may have been up while it waited
        self._tracker.withdraw(offset)
        if self._on_trial == offset:
            self._on_trial = None
            self._barrier = self._tracker.changes  # or its neighbour's crash would be laid to its charge
        if is_done and self._is_careful(offset):
            self._uncommitted += 1
            if self._uncommitted >= self._ahead:
                self._barrier = self._tracker.changes

    def was_committed(self) -> None:
        self._uncommitted = 0
