"""Which offset may be committed: the tracker case by case, with the known bugs of others among them."""

import pytest

from app.broker.base import MAX_METADATA_CHARACTERS, CommittedOffset
from app.dispatch.marks import WINDOW, Mark, decode_marks, encode_marks
from app.dispatch.offsets import OffsetTracker


def tracker_of(*offsets: int, start: CommittedOffset | None = None) -> OffsetTracker:
    """A tracker that has received these offsets."""
    tracker = OffsetTracker(start)
    for offset in offsets:
        tracker.receive(offset)
    return tracker


def done_beyond(committed: CommittedOffset) -> set[int]:
    known = decode_marks(committed.offset, committed.metadata)
    assert known is not None
    return {offset for offset, mark in known.marks.items() if mark is Mark.DONE}


def last_of(tracker: OffsetTracker) -> CommittedOffset:
    """What the epoch commits when it ends cleanly."""
    tracker.close()
    return tracker.committable()


def test_offset_tracker_all_done_commits_after_last() -> None:
    """When everything received is done, the position is the next offset to read, and nothing travels with it."""
    tracker = tracker_of(0, 1, 2)
    for offset in (2, 0, 1):
        assert tracker.finish(offset)
    assert CommittedOffset(3) == last_of(tracker)


def test_offset_tracker_first_unfinished_holds_position() -> None:
    """What is done beyond the first unfinished offset travels in the metadata."""
    tracker = tracker_of(0, 1, 2, 3)
    for offset in (0, 2, 3):
        tracker.finish(offset)
    committed = tracker.committable()
    assert 1 == committed.offset
    assert {2, 3} == done_beyond(committed)


def test_offset_tracker_received_not_begun_is_never_committed() -> None:
    """Parallel-consumer #826: a record that was polled, and not yet run when its partition went, was skipped, since
    the position came from the highest offset seen."""
    tracker = tracker_of(0, 1)
    tracker.finish(0)
    tracker.receive(2)
    tracker.end()
    assert 1 == tracker.committable().offset


def test_offset_tracker_late_completion_of_ended_epoch_changes_nothing() -> None:
    """Parallel-consumer #909: work of an ended epoch must not count in the next one, under the same offsets."""
    old = tracker_of(5, 6, start=CommittedOffset(5))
    old.end()
    new = tracker_of(5, 6, start=last_of(old))
    assert not old.finish(5)
    assert 5 == new.committable().offset
    assert new.finish(5)
    assert CommittedOffset(6) == last_of(new)
    assert CommittedOffset(5) == last_of(old)


def test_offset_tracker_position_is_one_that_can_be_fetched() -> None:
    """Parallel-consumer #894: with offsets unfinished, the position was once taken from the highest done plus one."""
    tracker = tracker_of(10, 11, 12, start=CommittedOffset(10))
    tracker.finish(12)
    assert 10 == tracker.committable().offset


def test_offset_tracker_restart_passes_over_what_was_done() -> None:
    """After a restart, what the metadata says is done does not run again, and what it does not say runs."""
    before = tracker_of(0, 1, 2, 3)
    for offset in (1, 3):
        before.finish(offset)
    after = OffsetTracker(last_of(before))
    assert [True, False, True, False] == [after.receive(offset) for offset in range(4)]
    after.finish(0)
    after.finish(2)
    assert CommittedOffset(4) == last_of(after)


def test_offset_tracker_records_not_yet_received_again_stay_recorded() -> None:
    """A restart that commits early does not forget what lies further on and was not received again so far."""
    before = tracker_of(0, 1, 2, 3, 4)
    for offset in (1, 4):
        before.finish(offset)
    after = tracker_of(0, start=last_of(before))
    after.finish(0)
    committed = after.committable()
    assert 1 == committed.offset
    assert {1, 4} == done_beyond(committed)


def test_offset_tracker_crash_counts_of_first_version_are_carried_on() -> None:
    """Marks of crashes stand for unfinished records: they run, and the counts stay until they are done."""
    marks = {4: Mark.TWO_CRASHES, 6: Mark.ONE_CRASH, 7: Mark.DONE}
    tracker = OffsetTracker(CommittedOffset(4, encode_marks(4, marks)))
    assert not tracker.unclean
    assert [True, True, True, False] == [tracker.receive(offset) for offset in (4, 5, 6, 7)]
    assert [2, 0, 1] == [tracker.crashes(offset) for offset in (4, 5, 6)]
    assert CommittedOffset(4, encode_marks(4, marks)) == last_of(tracker)
    for offset in (4, 5, 6):
        tracker.finish(offset)
    assert CommittedOffset(8) == last_of(tracker)


def test_offset_tracker_unclean_end_is_known_until_a_clean_one() -> None:
    """Every commit but the last says that its epoch is open; who finds that knows that the last one is missing."""
    tracker = tracker_of(0, 1)
    assert OffsetTracker(tracker.committable()).unclean
    assert not OffsetTracker(last_of(tracker)).unclean
    assert not OffsetTracker(None).unclean


def test_offset_tracker_without_a_record_leaves_how_the_epoch_before_ended() -> None:
    """An owner that received nothing has nothing to commit: who comes after it still counts the crash."""
    committed = tracker_of(0).committable()
    tracker = OffsetTracker(committed)
    tracker.close()
    assert 0 == tracker.changes
    assert committed == tracker.committable()


def test_offset_tracker_unclean_end_counts_against_the_announced_alone() -> None:
    """Of two suspects, the one that was announced has two crashes then; the other, which waited, still one. So has one that
    was announced without being a suspect."""
    metadata = encode_marks(4, {4: Mark.ONE_CRASH, 5: Mark.ONE_CRASH}, {5, 7}, is_open=True)
    tracker = tracker_of(4, 5, 6, 7, start=CommittedOffset(4, metadata))
    assert [1, 2, 0, 1] == [tracker.crashes(offset) for offset in (4, 5, 6, 7)]


def test_offset_tracker_on_trial_at_an_unclean_end_is_condemned_until_it_is_done() -> None:
    """Three crashes are remembered over further ends, clean or not, until the record has reached its end."""
    metadata = encode_marks(4, {4: Mark.TWO_CRASHES, 5: Mark.TWO_CRASHES}, {5}, is_open=True)
    first = tracker_of(4, 5, start=CommittedOffset(4, metadata))
    assert [2, 3] == [first.crashes(offset) for offset in (4, 5)]
    second = tracker_of(4, 5, start=first.committable())
    assert [2, 3] == [second.crashes(offset) for offset in (4, 5)]
    third = tracker_of(4, 5, start=last_of(second))
    assert [2, 3] == [third.crashes(offset) for offset in (4, 5)]
    third.finish(5)
    assert 2 == OffsetTracker(third.committable()).crashes(4)
    assert {5} == done_beyond(third.committable())


def test_offset_tracker_clean_end_counts_against_nobody() -> None:
    """What was announced and then left unfinished by a clean end has the crashes that it had."""
    metadata = encode_marks(4, {4: Mark.ONE_CRASH, 5: Mark.TWO_CRASHES})
    tracker = tracker_of(4, 5, start=CommittedOffset(4, metadata))
    tracker.announce(4)
    tracker.announce(5)
    after = tracker_of(4, 5, start=last_of(tracker))
    assert [1, 2] == [after.crashes(offset) for offset in (4, 5)]


def test_offset_tracker_gaps_are_nothing_to_wait_for() -> None:
    """Offsets that compaction or a transaction took away hold nothing back."""
    tracker = tracker_of(3, 900, 5_000)
    tracker.finish(900)
    assert {900} == done_beyond(tracker.committable())
    tracker.finish(3)
    assert CommittedOffset(5_000) == last_of(tracker)


def test_offset_tracker_recorded_offsets_that_vanished_are_forgotten() -> None:
    """What was recorded as done and then compacted away does not stay in the metadata for ever."""
    before = tracker_of(0, 1, 2)
    before.finish(1)
    after = tracker_of(0, 3, start=last_of(before))
    after.finish(0)
    assert CommittedOffset(3) == last_of(after)


def test_offset_tracker_window_bounds_span_not_count() -> None:
    """The window counts offsets from the first unfinished one: few records far apart fill it too."""
    tracker = tracker_of(100)
    assert tracker.has_room(100 + WINDOW - 1)
    assert not tracker.has_room(100 + WINDOW)
    tracker.finish(100)
    assert tracker.has_room(100 + WINDOW)


def test_offset_tracker_full_window_fits_metadata() -> None:
    """The worst pattern of done and unfinished offsets in a full window still fits."""
    tracker = tracker_of(*range(WINDOW))
    for offset in range(1, WINDOW):
        if offset * 2_654_435_761 % 7 < 3:
            tracker.finish(offset)
    assert len(tracker.committable().metadata) <= MAX_METADATA_CHARACTERS
    assert WINDOW == tracker.span


def test_offset_tracker_beyond_window_is_a_broken_invariant() -> None:
    """Whoever feeds the tracker must ask for room first."""
    with pytest.raises(AssertionError):
        tracker_of(0, WINDOW)


def test_offset_tracker_unknown_done_is_a_broken_invariant() -> None:
    """Only what was received can end."""
    with pytest.raises(AssertionError):
        tracker_of(0).finish(1)


def test_offset_tracker_done_twice_is_a_broken_invariant() -> None:
    """A record ends once."""
    tracker = tracker_of(0, 1)
    tracker.finish(1)
    with pytest.raises(AssertionError):
        tracker.finish(1)


def test_offset_tracker_backwards_is_a_broken_invariant() -> None:
    """A partition is read in order."""
    with pytest.raises(AssertionError):
        tracker_of(5, 4)


def test_offset_tracker_after_end_receives_nothing() -> None:
    """An ended epoch takes no more records."""
    tracker = OffsetTracker(None)
    tracker.end()
    with pytest.raises(AssertionError):
        tracker.receive(0)


def test_offset_tracker_log_that_begins_anew_ignores_old_marks() -> None:
    """A topic that was deleted and made again starts below the committed offset: nothing of it is passed over."""
    before = tracker_of(*range(10))
    for offset in range(9):
        before.finish(offset)
    before.receive(10)
    before.finish(10)
    after = OffsetTracker(last_of(before))
    assert all(after.receive(offset) for offset in range(12))


def test_offset_tracker_records_that_retention_removed_are_counted() -> None:
    """What was committed as the next to read, and is gone, is said; without a commit nothing is missed."""
    assert 3 == tracker_of(10, 11, start=CommittedOffset(7)).vanished
    assert 0 == tracker_of(7, 11, start=CommittedOffset(7)).vanished
    assert 0 == tracker_of(10).vanished


def test_offset_tracker_record_behind_the_first_begins_a_new_log() -> None:
    """No offset comes behind the first one of an epoch, unless the topic was made again."""
    tracker = tracker_of(5, 6, 7)
    assert [True, True, False, False] == [tracker.begins_anew(offset) for offset in (0, 5, 6, 8)]
    assert not OffsetTracker(CommittedOffset(5)).begins_anew(0)


def test_offset_tracker_foreign_metadata_counts_and_runs_everything() -> None:
    """Metadata of another client is said, and passes nothing over."""
    tracker = OffsetTracker(CommittedOffset(7, "somebody else's"))
    assert tracker.foreign_metadata
    assert tracker.receive(7)


def test_offset_tracker_nothing_received_keeps_what_was_committed() -> None:
    """A tracker that saw nothing would commit just what it found."""
    before = tracker_of(0, 1, 2)
    before.finish(1)
    committed = before.committable()
    untouched = OffsetTracker(committed)
    assert committed == untouched.committable()
    assert 0 == untouched.changes
