"""Event time: which slice holds a record, which records are late, which tiles still count.

Late is decided by a partition's own order and by nothing else: no wall clock and no other partition takes part, so one
log gives one answer on every engine, at every speed, after every restart. (`python` compiles the rule: a slice that ends
at or before m - B is late, m being the largest event time seen so far and B the declared out-of-orderness.)
"""

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from app.streams.aggregates import Accumulator, Amounts, merge_into, of_nothing

NEVER_MS = -(2**63)


def slice_start(timestamp_ms: int, size_ms: int) -> int:
    """Start of the epoch-aligned slice (window or tile) that holds a record.

    Args:    timestamp_ms: event time, ms since 1970-01-01 UTC, also before it. size_ms: > 0.
    Returns: ms, <= timestamp_ms, a multiple of size_ms.
    Source:  Flink TimeWindow.getWindowStartWithOffset, offset 0.
    """
    return timestamp_ms - timestamp_ms % size_ms


class Tile(NamedTuple):
    """What happened to one entity in one tile, as seen by one source partition.

    version: source offset of its last change. values: its accumulators (counts, cents, None for
    the smallest and largest of nothing), in declared order.
    """

    start_ms: int
    partition: int
    version: int
    values: tuple[Any, ...]


def tile_counts(tile_start_ms: int, tile_ms: int, now_ms: int, window_ms: int) -> bool:
    """Whether a tile still counts at `now_ms`: its end lies after the window's start.

    So a value falls by itself, and errs by at most one tile, upwards.
    """
    return tile_start_ms + tile_ms > now_ms - window_ms


def merge_tiles(
    tiles: Iterable[Tile], tile_ms: int, now_ms: int, window_ms: int, accumulators: Sequence[Accumulator]
) -> Amounts:
    """What the tiles hold together that count at `now_ms`; when none does, what is kept of no record."""
    merged = of_nothing(accumulators)
    for tile in tiles:
        if tile_counts(tile.start_ms, tile_ms, now_ms, window_ms):
            merge_into(merged, tile.values, accumulators)
    return merged
