"""Where a job on Flink begins that takes over from somebody: from another declaration, or from the asyncio engine.

It reads its topics back by time and says nothing, as far as its pipelines need it; from the offsets on where the one before it
ended it goes on in its place.
"""

from collections.abc import Iterable

import msgspec

from app.broker.topics import MAX_AHEAD_MS
from app.streams.pipelines import (
    AlertPipeline,
    FinalPipeline,
    Hopping,
    JoinPipeline,
    LivePipeline,
    Pipeline,
    Session,
    streams_of,
)

ByPartition = dict[str, list[int]]
"""By topic, and there by partition from 0 on."""

SESSION_GAPS = 20
"""So many gaps long is the longest session that a job finds whole when it reads back."""


class Takeover(msgspec.Struct, frozen=True, kw_only=True):
    """What such a job leaves to the one before it. All times are event times in ms.

    read: the offsets at which it begins to read. whole_ms: windows and tiles that begin earlier are not all in what it reads.
    offsets: where the one before it ended; what lies before them has raised its alerts. reached_ms: the largest time that it may have read.
    closed_ms: windows that end then or earlier have had their row. changed: pipelines that nobody computed like that before.
    holds: the one before it still runs: it says nothing yet but tiles, and `offsets` are those that it has to reach.
    """

    read: ByPartition
    whole_ms: ByPartition
    offsets: ByPartition
    reached_ms: ByPartition
    closed_ms: ByPartition
    changed: list[str]
    holds: bool


def read_back_ms(pipeline: Pipeline, is_changed: bool) -> int:
    """How far before the largest event time its windows, tiles or memories must be whole. is_changed: what was open belongs to nobody."""
    late_ms = max(stream.source.out_of_orderness_ms for stream in streams_of(pipeline))
    match pipeline:
        case LivePipeline():
            return pipeline.size_ms + pipeline.tile_ms + MAX_AHEAD_MS
        case JoinPipeline(join=join):
            return max(abs(join.lower_ms), abs(join.upper_ms)) + (join.upper_ms - join.lower_ms) + late_ms
        case AlertPipeline(burst=burst, raised=raised):
            return max(2 * burst.within_ms if burst else 0, raised.per_ms or 0) + late_ms
        case FinalPipeline(window=Hopping(size_ms=size_ms)):
            return 0 if is_changed else size_ms + late_ms
        case FinalPipeline(window=Session(gap_ms=gap_ms)):
            return 0 if is_changed else (SESSION_GAPS + 1) * gap_ms + late_ms
    raise AssertionError(pipeline)


def remembered_ms(pipelines: Iterable[Pipeline]) -> int:
    """How far before that `once` must know what it has seen."""
    return max(
        (
            stream.once_rule.within_ms + stream.source.out_of_orderness_ms
            for pipeline in pipelines
            for stream in streams_of(pipeline)
            if stream.once_rule
        ),
        default=0,
    )


def goes_by_all_partitions(pipeline: Pipeline, is_changed: bool) -> bool:
    """Whether what it has open on Flink goes as far back as the quietest partition of its topics."""
    return isinstance(pipeline, JoinPipeline) or (isinstance(pipeline, FinalPipeline) and not is_changed)
