"""Records that may take their process with them: which are under suspicion, and when they may run.

Nobody can tell from inside why a process died. So after an unclean end of an epoch the next owner is careful, in steps:

- Of the records that may have been running in that epoch the first unfinished ones, and the first of each of the first
  keys, are suspects: one crash. Only `SUSPECTS_AT_ONCE` of them run at a time, and each is announced in a commit before it
  runs. Until all that may have been running then have ended, so is every other record, whenever it came: a few run ahead
  of the suspects, and an unclean end makes those that were announced suspects, wherever in the partition they stand.
  Those alone, where the epoch had been careful to its end: nothing else ran.
- An unclean end counts against the suspects that were announced, and no others. At two crashes a record runs on trial:
  announced, and with nothing else of its partition beside it.
- The one that was on trial at an unclean end has three crashes: it is given up without running.

So innocents beside a culprit, or under a process that is killed from outside, never get further than a trial, unless the
kill hits just that. Nothing of a partition runs before the first commit of its epoch, which is what makes a later end
recognizable as unclean.
"""

from app.dispatch.marks import MAX_ANNOUNCED, WINDOW
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

    def __init__(self, tracker: OffsetTracker, concurrency: int, reach: int | None = None) -> None:
        self._tracker = tracker
        self._concurrency = concurrency
        self._ahead = min(max(1, concurrency // 4), MAX_ANNOUNCED // 2)
        """While careful: records without a crash that run at once. With the suspects and some condemned ones they fit into a
        commit."""
        self.reach = reach
        """After an unclean end: who may have been running then is below this offset. None until `suspect_up_to` is called."""
        self._received = self._keys = self._fresh = 0
        self._is_free = not tracker.unclean
        """Whether what is not announced may run, too."""
        self._barrier = 1  # the version that must be committed before anything starts
        self._waiting: dict[int, int] = {}  # announced, and not started yet: in which version
        self._on_trial: int | None = None
        self._others: set[int] = set()  # those without a crash that are announced

    def suspect_up_to(self, start: int, end: int) -> None:
        """Suspects nobody beyond `end`, where the log ends now: who comes later was not there; nor beyond a window from
        `start`, the committed offset: where the commits of an owner failed for long it may have run those too, and a first
        crash of theirs goes uncounted. To be called before the first record."""
        self.reach = min(start + WINDOW, end)

    def _may_have_run(self, offset: int) -> bool:
        """Whether the record may have been running when the epoch before ended uncleanly."""
        if not self._tracker.unclean:
            return False
        assert self.reach is not None, "records came before the end of the log was asked for"
        return offset < self.reach

    @property
    def _is_careful(self) -> bool:
        """Whether not all that may have been running have ended. Until then who came later is announced too: it runs ahead
        of suspects, and would not be among the first after its crash."""
        return self._may_have_run(self._tracker.position)

    def receive(self, offset: int, *, is_first_of_key: bool) -> None:
        """Takes notice of an unfinished record, in order. After an unclean end it may become a suspect."""
        if self._tracker.all_named or not self._may_have_run(offset):
            return
        is_fresh = self._tracker.crashes(offset) == 0
        self._received += 1
        self._keys += is_first_of_key
        self._fresh += is_fresh
        among_first = self._received <= self._concurrency or (is_first_of_key and self._keys <= self._concurrency)
        if is_fresh and (among_first or self._fresh <= 2 * self._ahead):
            self._tracker.suspect(offset)

    @property
    def names_all(self) -> bool:
        """Whether nothing runs but what is announced, and all suspects of the epoch before are known as such."""
        if self._is_free or self.reach is None or not self._is_careful:
            return False
        return self._tracker.all_named or self._knows_suspects

    @property
    def _knows_suspects(self) -> bool:
        """Whether whoever comes from here on is none."""
        assert self.reach is not None
        are_enough = min(self._received, self._keys) >= self._concurrency and self._fresh >= 2 * self._ahead
        return are_enough or self._tracker.received_to >= self.reach

    def step(self, offset: int) -> int:
        """Which of the three ways to run is the record's: 0 free, 1 as a suspect, 2 on trial or given up."""
        return min(self._tracker.crashes(offset), 2)

    def is_condemned(self, offset: int) -> bool:
        return self._tracker.crashes(offset) >= CONDEMNED

    def may_start(self, offset: int, committed: int, *, others_run: bool) -> bool:
        """Whether the head of a lane may run now. When not, it is to be asked for again after each commit and each end of a
        record of this partition, in the order in which it was asked for first; of each step the first `most_at_once` are
        enough. `wants_commit` says whether a commit is needed at once."""
        if (
            not self._is_free and not self._is_careful
        ):  # what the next commit says of those that run is another thing now
            self._is_free = True
            self._tracker.changes += 1
            self._barrier = self._tracker.changes
        if committed < self._barrier:
            return False
        crashes = self._tracker.crashes(offset)
        if crashes >= 2 and self._on_trial is None:
            self._begin_trial(offset)
        if self._on_trial is not None and (self._on_trial != offset or others_run):
            return False
        if crashes == CONDEMNED:  # it runs no handler
            return True
        return (crashes == 0 and not self._is_careful) or self._is_announced(offset, committed)

    def most_at_once(self, step: int) -> int:
        """How many of a step are announced at a time."""
        return SUSPECTS_AT_ONCE if step else self._ahead

    def _begin_trial(self, offset: int) -> None:
        self._on_trial = offset
        for waiting in self._waiting:
            self._tracker.withdraw(waiting)
        self._others -= self._waiting.keys()
        self._waiting.clear()

    def _is_announced(self, offset: int, committed: int) -> bool:
        if offset not in self._waiting:
            step, others = self.step(offset), len(self._others)
            if (self._tracker.announced - others if step else others) >= self.most_at_once(step):
                return False
            if step == 0:
                self._others.add(offset)
            self._tracker.announce(offset)
            self._waiting[offset] = self._tracker.changes
        if committed < self._waiting[offset]:
            return False
        del self._waiting[offset]
        return True

    def wants_commit(self, committed: int) -> bool:
        """Whether something waits for one."""
        return committed < max(self._barrier, *self._waiting.values(), 0)

    def stopped(self, offset: int) -> None:
        """A record that ran does so no more: it is done, or waits for its retry."""
        self._others.discard(offset)
        self._waiting.pop(offset, None)  # its time may have been up while it waited
        self._tracker.withdraw(offset)
        if self._on_trial == offset:
            self._on_trial = None
            self._barrier = self._tracker.changes  # or its neighbour's crash would be laid to its charge
