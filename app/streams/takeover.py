"""Where a job on Flink begins that takes over from somebody: from another declaration, or from the asyncio engine.

It reads its topics back by time and says nothing, as far as its pipelines need it; from the offsets on where the one before it
ended it goes on in its place.
"""

import msgspec

from app.streams.pipelines import FinalPipeline, JoinPipeline, Pipeline

ByPartition = dict[str, list[int]]
"""By topic, and there by partition from 0 on."""


class Takeover(msgspec.Struct, frozen=True, kw_only=True):
    """What such a job leaves to the one before it. All times are event times in ms.

    read: the offsets at which it begins to read. whole_ms: windows and tiles that begin earlier are not all in what it reads.
    offsets: where the one before it ended; what lies before them has raised its alerts. reached_ms: the largest time that it may have read.
    closed_ms: windows that end then or earlier have had their row. changed: pipelines that nobody computed like that before. begun_ms: of
    the others, by name and partition: windows that begin then or earlier were cut by an earlier change, and have a row of before or none.
    holds: the one before it still runs: it says nothing yet but tiles, and `offsets` are those that it has to reach.
    """

    read: ByPartition
    whole_ms: ByPartition
    offsets: ByPartition
    reached_ms: ByPartition
    closed_ms: ByPartition
    changed: list[str]
    begun_ms: dict[str, list[int]] = {}
    holds: bool


def goes_by_all_partitions(pipeline: Pipeline, is_changed: bool) -> bool:
    """Whether what it has open on Flink goes as far back as the quietest partition of its topics."""
    return isinstance(pipeline, JoinPipeline) or (isinstance(pipeline, FinalPipeline) and not is_changed)
