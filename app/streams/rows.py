"""Final rows of windows and pairs of joins, as they go out."""

from typing import NamedTuple

from app.core.record import Headers
from app.streams.compiled import CompiledTopic
from app.streams.tables import PartitionState


class ClosedRows(NamedTuple):
    """What windows give that have closed. rows: by topic; value, key and time (none). alerts: topic, key, value, headers."""

    rows: dict[str, list[tuple[bytes, bytes, int]]]
    alerts: list[tuple[str, bytes, bytes, Headers]]


def closed_rows(topic: CompiledTopic, state: PartitionState, now_ms: int) -> ClosedRows:
    """The rows of windows that have closed since the last call."""
    closed = ClosedRows({}, [])
    for name, table in topic.tables.items():
        rows, target = state.tables[name].rows, table.row_topic
        if not rows or table.row is None:
            continue
        encoded = [one for row in rows if (one := table.row(row, state.place_text, now_ms)) is not None]
        rows.clear()
        if table.raises:
            closed.alerts.extend((target, key, value, headers) for key, value, headers in encoded)
        else:
            closed.rows.setdefault(target, []).extend((value, key, 0) for key, value, _ in encoded)
    return closed
