"""What a job that takes over leaves to the one before it, as conditions in SQL; without a takeover there is none.

While it holds, the text differs in constants alone, so that it finds its state again. One trap: Flink may judge what concerns a window's
start before it counts the window. So windows of a changed pipeline are asked for a time that never comes, and not for none: else
windows that the one before closes would stand in the state, behind a judgement that lets them out.
"""

from app.streams.pipelines import FinalPipeline, Hopping, Join, Source
from app.streams.sql_expressions import name_of
from app.streams.sql_job import Settings
from app.streams.sql_sources import OFFSET, PARTITION, TIME_MS
from app.streams.takeover import ByPartition

NEVER = 2**62
"""No offset and no time comes so far."""


def passes(*conditions: str) -> str:
    """A WHERE of those that are not empty."""
    said = [f"({condition})" for condition in conditions if condition]
    return f"\nWHERE {' AND '.join(said)}" if said else ""


def of_record(settings: Settings, topic: str, offset: str = OFFSET) -> str:
    """A record that the one before it has not read."""
    takeover = settings.takeover
    return f"{name_of(offset)} >= {_at(takeover.offsets, topic, takeover.holds)}" if takeover else ""


def of_tile(settings: Settings, source: Source, tile_ms: int) -> str:
    """A tile whose records are all read."""
    takeover, time = settings.takeover, name_of(TIME_MS)
    return f"{time} - MOD({time}, {tile_ms}) >= {_at(takeover.whole_ms, source.spec.name)}" if takeover else ""


def of_window(settings: Settings, name: str, pipeline: FinalPipeline) -> str:
    """A window that is the new one's to close: of a declaration that stayed what is still open, else what begins later."""
    takeover, topic = settings.takeover, pipeline.stream.source.spec.name
    if takeover is None:
        return ""
    gap = "" if isinstance(pipeline.window, Hopping) else f" + {pipeline.window.gap_ms}"
    if name in takeover.changed:
        return f"`$start_ms` > {_at(takeover.reached_ms, topic, takeover.holds)}{gap}"
    mine = [f"`$start_ms` >= {_at(takeover.whole_ms, topic)}{gap}", f"`$end_ms` > {_at(takeover.closed_ms, topic)}"]
    if name in takeover.begun_ms:
        mine.append(f"`$start_ms` > {_at({topic: takeover.begun_ms[name]}, topic)}{gap}")
    return " AND ".join(mine)


def of_pair(settings: Settings, join: Join) -> str:
    """A pair of which the one before it has not read both, and who is now known to stay alone."""
    takeover = settings.takeover
    if takeover is None:
        return ""
    left, right = (side.source.spec.name for side in (join.left, join.right))
    both = f"{of_record(settings, left)} OR {of_record(settings, right, '$right_offset')}"
    closed = {left: [min(two) for two in zip(takeover.closed_ms[left], takeover.closed_ms[right], strict=True)]}
    alone = f"{name_of(TIME_MS)} + {join.upper_ms} >= {_at(closed, left)}"
    match join.how:
        case "inner":
            return both
        case "missing":
            return alone
    return f"CASE WHEN `$right_ms` IS NULL THEN {alone} ELSE {both} END"


def _at(values: ByPartition, topic: str, never: bool = False) -> str:
    """The partition's own value."""
    cases = "".join(
        f" WHEN {partition} THEN {NEVER if never else value}" for partition, value in enumerate(values[topic])
    )
    return f"CASE {name_of(PARTITION)}{cases} ELSE {NEVER if never else 0} END"
