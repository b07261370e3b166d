"""Records that may take their process with them: which are under suspicion, and when they may run.

Nobody can tell from inside why a process died. So after an unclean end of an epoch the next owner is careful, in steps:

- The first unfinished records, and the first of each of the first keys, are suspects: one crash. As many of them run as
  ever could have run, but only `SUSPECTS_AT_ONCE` at a time, and each is announced in a commit before it runs.
- An unclean end counts against those that were announced, and no others. At two crashes a record runs on trial: announced,
  and with nothing else of its partition beside it.
- The one that was on trial at an unclean end has three crashes: it is given up without running.

So innocents beside a culprit, or under a process that is killed from outside, never get further than a trial, unless the
kill hits just that. Nothing of a partition runs before the first commit of its epoch, which is what makes a later end
recognizable as unclean.
"""

from app.dispatch.marks import WINDOW
from app.dispatch.offsets import OffsetTracker

SUSPECTS_AT_ONCE = 4
"""Of one partition. It bounds how many an unclean end can bring to their trial, and so how long trials hold up the
partition: four deadlines."""

CONDEMNED = 3
"""Crashes after which a record is given up."""


class Caution:
    """Decides for one partition in one epoch whether a record may start. No I/O, no clock.

    A version is a value of the tracker's `changes`; `committed`, where it is asked for, the last version committed.
    """

    def __init__(self, tracker: OffsetTracker, concurrency: int) -> None:
        self._tracker = tracker
        self._concurrency = concurrency
        self._received = self._keys = 0
        self._on_trial: int | None = None
        self._waiting: dict[int, int] = {}  # announced, and not started yet: in which version
        self._barrier = 1  # the version that must be committed before anything starts
        self._uncommitted = 0

    def receive(self, offset: int, *, is_first_of_key: bool) -> None:
        """Takes notice of an unfinished record, in order. After an unclean end it may become a suspect."""
        if not self._tracker.unclean:
            return
        self._received += 1
        self._keys += is_first_of_key
        among_first_keys = is_first_of_key and self._keys <= self._concurrency
        if self._received <= self._concurrency or among_first_keys:
            self._tracker.suspect(offset)

    def is_condemned(self, offset: int) -> bool:
        return self._tracker.crashes(offset) >= CONDEMNED

    def may_start(self, offset: int, committed: int, *, others_run: bool) -> bool:
        """Whether the head of a lane may run now. When not, it is to be asked for again after the next commit and after
        the next end of a record of this partition; `wants_commit` says whether a commit is needed at once."""
        if committed < self._barrier:
            return False
        crashes = self._tracker.crashes(offset)
        if crashes >= 2 and self._on_trial is None:
            self._begin_trial(offset)
        if self._on_trial is not None and (self._on_trial != offset or others_run):
            return False
        if crashes in (0, CONDEMNED):  # a condemned one runs no handler, and was announced by those before
            return True
        if offset not in self._waiting:
            if self._tracker.announced >= SUSPECTS_AT_ONCE:
                return False
            self._tracker.announce(offset)
            self._waiting[offset] = self._tracker.changes
        if committed < self._waiting[offset]:
            return False
        del self._waiting[offset]
        return True

    def _begin_trial(self, offset: int) -> None:
        self._on_trial = offset
        for waiting in self._waiting:
            self._tracker.withdraw(waiting)
        self._waiting.clear()

    def wants_commit(self, committed: int) -> bool:
        return committed < max(self._barrier, *self._waiting.values(), 0)

    def stopped(self, offset: int, *, is_done: bool) -> None:
        """A record that ran does so no more: it is done, or waits for its retry."""
        self._tracker.withdraw(offset)
        if self._on_trial == offset:
            self._on_trial = None
            self._barrier = self._tracker.changes  # or its neighbour's crash would be laid to its charge
        # A culprit behind many quick ones would not be among the first unfinished, if none of those were committed.
        if self._tracker.unclean and self._received <= WINDOW and is_done:
            self._uncommitted += 1
            if self._uncommitted >= self._concurrency:
                self._barrier = self._tracker.changes

    def was_committed(self) -> None:
        self._uncommitted = 0
