"""How much of a topic's past a pipeline must have read to go on as if it had always been there: one rule for both engines."""

from collections.abc import Iterable

from app.broker.topics import MAX_AHEAD_MS
from app.streams.memories import memories_of
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

SETTLED_MS = 10_000
"""Flink says its watermark five times a second, so a job that was stopped may not have closed what its last records allowed."""

SESSION_GAPS = 20
"""So many gaps long is the longest session that a job finds whole when it reads back."""


def read_back_ms(pipeline: Pipeline, is_changed: bool) -> int:
    """How far before the largest event time its windows, tiles, pairs or memories must be whole; of what the quietest topic has
    reached, where it joins two. is_changed: what was open belongs to nobody."""
    late_ms = max(stream.source.out_of_orderness_ms for stream in streams_of(pipeline))
    match pipeline:
        case LivePipeline():
            return pipeline.size_ms + pipeline.tile_ms + MAX_AHEAD_MS
        case JoinPipeline(join=join):
            return max(join.upper_ms, 0) - min(join.lower_ms, 0) + late_ms + SETTLED_MS
        case AlertPipeline():  # what a memory holds depends on what the one before it has let pass
            return max(sum(memory.reads_back_ms for memory in memories_of("", pipeline).values()), late_ms)
        case FinalPipeline() if is_changed:
            return 0
        case FinalPipeline(window=Hopping(size_ms=size_ms)):
            return size_ms + late_ms + SETTLED_MS
        case FinalPipeline(window=Session(gap_ms=gap_ms)):
            return (SESSION_GAPS + 1) * gap_ms + late_ms + SETTLED_MS
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
