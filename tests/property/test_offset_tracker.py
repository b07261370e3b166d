"""The offset tracker against a model of plain sets, over restarts, hand-overs and late completions."""

from random import Random

import pytest
from hypothesis import Phase, settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test
from hypothesis.strategies import booleans, integers, sampled_from

from app.broker.base import MAX_METADATA_CHARACTERS, CommittedOffset
from app.dispatch.marks import WINDOW, Mark, decode_marks
from app.dispatch.offsets import OffsetTracker
from tests.examples import examples


class HighestSeen(OffsetTracker):
    """The tracker without its safeguard: commits after the highest offset that is done, as many consumers do."""

    def committable(self, *, names_all: bool = False) -> CommittedOffset:
        done = [offset for offset in self._received if offset not in self._unfinished]
        return CommittedOffset(max(done) + 1) if done else super().committable()


class Forgetful(OffsetTracker):
    """The tracker that forgets what an earlier owner recorded as soon as something else is done."""

    def finish(self, offset: int) -> bool:
        for recorded in [mark for mark in self._marks if mark not in self._received]:
            del self._marks[recorded]
        return super().finish(offset)


class TrackerMachine(RuleBasedStateMachine):
    """One partition: a log with gaps, what truly ended, what the group has committed, and one tracker an epoch."""

    tracker_type: type[OffsetTracker] = OffsetTracker

    @initialize(start=integers(0, 2**40), seed=integers(0, 2**32), gap_share=sampled_from([0.0, 0.05, 0.5]))
    def write_log(self, start: int, seed: int, gap_share: float) -> None:
        random = Random(seed)
        self.log = [start]
        for _ in range(random.randrange(400)):
            self.log.append(self.log[-1] + (random.randrange(2, 5_000) if random.random() < gap_share else 1))
        self.ended: set[int] = set()
        self.committed: CommittedOffset | None = None
        self.late: list[tuple[OffsetTracker, int]] = []
        self.begin()

    def begin(self) -> None:
        self.tracker = self.tracker_type(self.committed)
        position = self.committed.offset if self.committed else 0
        self.unread = [offset for offset in self.log if offset >= position]
        self.received: list[int] = []
        self.running: set[int] = set()
        self.finished: set[int] = self.recorded()

    @rule(count=integers(1, 100))
    def receive(self, count: int) -> None:
        while count and self.unread:
            offset = self.unread[0]
            first = min(self.running, default=None)
            assert self.tracker.has_room(offset) == (first is None or offset - first < WINDOW)
            if not self.tracker.has_room(offset):
                return
            self.unread.pop(0)
            self.received.append(offset)
            if self.tracker.receive(offset):
                self.running.add(offset)
            else:
                assert offset in self.ended, f"{offset} was passed over, and never ended"
                self.finished.add(offset)
            count -= 1

    @rule(seed=integers(0, 2**32), share=sampled_from([0.02, 0.3, 0.9]))
    def finish(self, seed: int, share: float) -> None:
        random = Random(seed)
        for offset in random.sample(sorted(self.running), round(len(self.running) * share)):
            self.running.remove(offset)
            self.finished.add(offset)
            self.ended.add(offset)
            assert self.tracker.finish(offset)

    @rule()
    def commit(self) -> None:
        self.committed = self.tracker.committable()

    @rule(clean=booleans())
    def hand_over(self, clean: bool) -> None:
        """A clean one commits last; after a kill the last commit stands. What runs completes late, for nobody."""
        if clean:
            self.tracker.close()
            self.commit()
            assert self.finished <= self.recorded(), "a clean restart would repeat what was done"
        self.tracker.end()
        self.late += [(self.tracker, offset) for offset in self.running]
        self.begin()

    @rule()
    def complete_late(self) -> None:
        for tracker, offset in self.late:
            before = tracker.committable()
            assert not tracker.finish(offset)
            assert before == tracker.committable()
        self.late.clear()

    def recorded(self) -> set[int]:
        """The offsets of the log that the committed offset and its metadata say are done."""
        if self.committed is None:
            return set()
        known = decode_marks(*self.committed)
        assert known is not None
        done = {offset for offset, mark in known.marks.items() if mark is Mark.DONE}
        return {offset for offset in self.log if offset < self.committed.offset or offset in done}

    @invariant()
    def never_commits_past_an_unfinished_record(self) -> None:
        assert self.recorded() <= self.ended
        if self.committed is not None:
            assert len(self.committed.metadata) <= MAX_METADATA_CHARACTERS

    @invariant()
    def agrees_with_the_model(self) -> None:
        unfinished = [offset for offset in self.received if offset in self.running]
        if self.received:
            assert (unfinished[0] if unfinished else self.received[-1] + 1) == self.tracker.position
        assert len(unfinished) == self.tracker.unfinished
        assert self.tracker.span <= WINDOW

    def teardown(self) -> None:
        """Whatever happened: once everything is read and done, everything has ended, and nothing is left to say."""
        while self.unread or self.running:
            self.receive(len(self.log))
            for offset in sorted(self.running, reverse=True):
                self.running.remove(offset)
                self.ended.add(offset)
                self.tracker.finish(offset)
        assert set(self.log) == self.ended
        self.tracker.close()
        assert CommittedOffset(self.log[-1] + 1) == self.tracker.committable() or not self.received


TestOffsetTracker = TrackerMachine.TestCase
TestOffsetTracker.settings = settings(max_examples=examples(400), stateful_step_count=60)


@pytest.mark.parametrize("broken", [HighestSeen, Forgetful])
def test_offset_tracker_machine_without_safeguard_fails(broken: type[OffsetTracker]) -> None:
    """The model notices a tracker that commits past unfinished records, and one that forgets recorded ones."""

    class Broken(TrackerMachine):
        tracker_type = broken

    first_failure = settings(
        TestOffsetTracker.settings,
        max_examples=400,
        database=None,
        print_blob=False,
        phases=[Phase.generate],
        report_multiple_bugs=False,
    )
    with pytest.raises(AssertionError):
        run_state_machine_as_test(Broken, settings=first_failure)
