"""Tables: the memory of ids seen against a plain dict, and what slices say of themselves."""

from hypothesis import given, settings
from hypothesis import strategies as st

from app.core.record import TopicPartition
from app.streams.aggregates import Accumulator
from app.streams.expressions import Kind
from app.streams.memories import OnceMemory
from app.streams.tables import FOREVER_MS, PartitionState, Slices
from tests.examples import examples

WITHIN_MS = 100
PLACE = TopicPartition("raw.orders", 3)
TABLE = TopicPartition("state.rate", 3)

sightings = st.lists(
    st.tuples(st.sampled_from([("u1", "a"), ("u1", "b"), ("u2", "a")]), st.integers(-150, 120)), max_size=80
)


@given(sightings)
@settings(max_examples=examples(300))
def test_once_memory_any_sightings_answers_like_a_dict_that_forgets_nothing(
    found: list[tuple[tuple[str, str], int]],
) -> None:
    """Two generations forget only what `within` has made void already."""
    memory, newest, reached_ms, time_ms = OnceMemory(WITHIN_MS), dict[tuple[str, str], int](), 0, 0
    for key, step_ms in found:
        time_ms = max(0, time_ms + step_ms)
        reached_ms = max(reached_ms, time_ms)
        expected = key in newest and reached_ms - newest[key] <= WITHIN_MS
        newest[key] = max(newest.get(key, 0), time_ms)
        assert expected == memory.is_repeat(key, time_ms, reached_ms)


def test_once_memory_repeat_at_exactly_within_is_one() -> None:
    """The bound belongs to the promise; one millisecond later it is over."""
    memory = OnceMemory(WITHIN_MS)
    assert not memory.is_repeat(("u1", "a"), 0, 0)
    assert memory.is_repeat(("u1", "a"), WITHIN_MS, WITHIN_MS)
    assert not memory.is_repeat(("u1", "a"), 2 * WITHIN_MS + 1, 2 * WITHIN_MS + 1)


def state_of(*, emits_rows: bool) -> tuple[PartitionState, Slices]:
    slices = Slices(TABLE, 60, 60, [Accumulator("n", "sum", Kind.INTEGER)], emits_rows=emits_rows)
    return PartitionState(PLACE, 5, {"rate": slices}, {}), slices


def test_partition_state_slice_closes_when_its_end_and_the_out_of_orderness_are_reached() -> None:
    """One millisecond before, it is open; the next closing is that of the slice that is left."""
    state, slices = state_of(emits_rows=True)
    slices.open_slice(0)["u1"] = [3, False, 1]
    assert 65 == state.closes_at(60)
    slices.open_slice(60)
    assert 65 == state.closes_at(120), "the earliest one counts"
    assert 65 == state.advance(64, 7)
    assert [0, 60] == sorted(slices.open)
    assert 125 == state.advance(65, 8)
    assert [60] == sorted(slices.open)
    assert [(0, 60, "u1", 3)] == [row[:4] for row in slices.rows]
    assert [8] == [over.closed_at for over in slices.over]
    assert FOREVER_MS == state.advance(1_000, 9)


def test_slices_restore_position_is_that_of_the_oldest_slice_that_is_not_over() -> None:
    """Open, or closed by an event that no commit has passed; else as far as the table is checked."""
    state, slices = state_of(emits_rows=True)
    slices.checked = 20
    slices.table_position = 10
    slices.open_slice(0)
    slices.table_position = 20
    slices.open_slice(60)
    assert 10 == slices.restore_position(0)
    state.advance(65, 8)
    assert 10 == slices.restore_position(0), "its row may have to be written again"
    slices.over.popleft()
    assert 20 == slices.restore_position(0)
    slices.open.clear()
    slices.opened_at.clear()
    slices.checked = 15
    assert 15 == slices.restore_position(0)


def test_slices_changes_leaves_out_windows_that_closed_meanwhile() -> None:
    """Their row is out; tiles have no row, so their last change is always written. Each change is given once."""
    for emits_rows, expected in ((True, ["open"]), (False, ["open", "over"])):
        state, slices = state_of(emits_rows=emits_rows)
        for start_ms, key in ((0, "over"), (60, "open")):
            entries = slices.open_slice(start_ms)
            entries[key] = [1, True, 1]
            slices.changed.append((start_ms, key, entries[key]))
        state.advance(65, 8)
        changed = slices.changes()
        assert expected == sorted(key for _, key, _ in changed)
        assert {False} == {entry[1] for _, _, entry in changed}
        assert [] == slices.changes()
