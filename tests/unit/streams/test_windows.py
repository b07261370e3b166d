"""Slices and tiles: where they start, and how long they count."""

from hypothesis import given
from hypothesis import strategies as st

from app.streams.aggregates import Accumulator
from app.streams.expressions import Kind
from app.streams.windows import Tile, merge_tiles, slice_start, tile_counts

times_ms = st.integers(-(10**13), 10**13)
sizes_ms = st.sampled_from([1, 1_000, 30_000, 300_000, 86_400_000])


@given(time_ms=times_ms, size_ms=sizes_ms)
def test_slice_start_any_time_lies_in_its_slice(time_ms: int, size_ms: int) -> None:
    """Also before 1970 a slice holds its record and is aligned to the epoch."""
    start_ms = slice_start(time_ms, size_ms)
    assert start_ms <= time_ms < start_ms + size_ms
    assert 0 == start_ms % size_ms


@given(tile=st.integers(0, 10**6), now_ms=st.integers(0, 4 * 10**10))
def test_tile_counts_error_is_at_most_one_tile_upwards(tile: int, now_ms: int) -> None:
    """A tile that counts overlaps the window; one that does not lies wholly before it."""
    start_ms, tile_ms, window_ms = tile * 30_000, 30_000, 300_000
    overlaps = start_ms + tile_ms > now_ms - window_ms
    assert overlaps == tile_counts(start_ms, tile_ms, now_ms, window_ms)
    if overlaps:
        assert start_ms > now_ms - window_ms - tile_ms


SUMS = [Accumulator("n", "sum", Kind.INTEGER), Accumulator("usd", "sum", Kind.MONEY)]


def test_merge_tiles_value_falls_without_new_events() -> None:
    """Time alone takes a tile out."""
    tiles = [Tile(0, 3, 10, (2, 500)), Tile(30_000, 3, 12, (1, 50))]
    assert [3, 550] == list(merge_tiles(tiles, 30_000, 329_999, 300_000, SUMS))
    assert [1, 50] == list(merge_tiles(tiles, 30_000, 330_000, 300_000, SUMS))
    assert [0, 0] == list(merge_tiles(tiles, 30_000, 360_000, 300_000, SUMS))
