"""What streams write beside their rows: ids, headers, late references; and the topics they need."""

from collections.abc import Iterable, Mapping
from functools import reduce
from operator import or_
from typing import Literal

import msgspec

from app.broker.topics import DEFAULT_MAX_MESSAGE_BYTES, MAX_AHEAD_MS, TopicSpec, dead_letters_of, late_references_of
from app.core.codec import encode
from app.core.errors import SetupError
from app.core.record import Headers, Record
from app.core.text import longest
from app.streams.expressions import Column, Kind
from app.streams.pipelines import (
    AlertPipeline,
    FinalPipeline,
    JoinPipeline,
    LivePipeline,
    Pipeline,
    Session,
    Source,
    field_behind,
    kept_of,
    raised_by,
    streams_of,
    table_of,
)

HOUR_MS, DAY_MS = 3_600_000, 86_400_000
SESSION_BYTES, NUMBER_BYTES, EXTRA_BYTES = 90, 30, 65_536
"""Of a session in its key's value, and of each accumulator beside its name; and beside what is kept of a record."""
ESCAPED_BYTES = 6
"""Of a character that JSON writes as its number."""
MOST_BYTES = 16_777_216
ALERT_PARTITIONS = 6

PROGRESS = b'{"progress":'
"""What the keys of progress records begin with."""


def derived_id(rule: str, *parts: str) -> str:
    """`rule:key:natural key`, the same for the same event on every engine; `:` and `%` inside a part are escaped."""
    return ":".join((rule, *map(_escaped, parts)))


def _escaped(part: str) -> str:
    if "%" in part or ":" in part:
        return part.replace("%", "%25").replace(":", "%3A")
    return part


def alert_headers(
    alert_type: str, place: str, offset: int, event_ms: int, received_ms: int, late_for: tuple[str, ...]
) -> Headers:
    """Where an alert comes from, so that an agent can wait for its own event: see decisions.context."""
    headers = (
        ("alert_type", alert_type.encode()),
        ("origin", f"{place}/{offset}".encode()),
        ("event_ms", b"%d" % event_ms),
        ("received_ms", b"%d" % received_ms),
    )
    return (*headers, ("late_for", ",".join(late_for).encode())) if late_for else headers


def window_headers(alert_type: str, place: str, version: int, end_ms: int, received_ms: int) -> Headers:
    """Of an alert that no single event raised: its origin is the last one that counts in the window, and `window` says so."""
    return (*alert_headers(alert_type, place, version, end_ms, received_ms, ()), ("window", b"1"))


def late_reference(pipeline: str, record: Record) -> bytes:
    """Names a record that came too late for a pipeline; the record itself stays where it is."""
    return encode(
        {
            "pipeline": pipeline,
            "topic": record.topic,
            "partition": record.partition,
            "offset": record.offset,
            "event_time_ms": record.timestamp_ms,
        }
    )


def progress_record(partition: int, as_of_ms: int, offset: int, fingerprint: str) -> tuple[bytes, bytes, Headers]:
    """Key, value and headers of what is said in a table's topic: every event published before `as_of_ms` is in what stands before
    it, as the source offset to read next was `offset`. fingerprint: of the pipeline."""
    value = b'{"as_of":%d,"offset":%d}' % (as_of_ms, offset)
    return PROGRESS + b"%d}" % partition, value, (("fingerprint", fingerprint.encode()),)


def topics_of(
    sources: Iterable[Source], pipelines: Mapping[str, Pipeline], alert_partitions: int = ALERT_PARTITIONS
) -> list[TopicSpec]:
    """Every topic that these streams read or write. alert_partitions: of each topic of alerts.

    Raises: SetupError for a topic that is used in two ways.
    """
    specs: dict[str, TopicSpec] = {}

    def add(spec: TopicSpec) -> None:
        if specs.setdefault(spec.name, spec) != spec:
            raise SetupError(spec.name, "the topic is used in two ways; give one of them another name")

    for source in sources:
        add(source.spec)
        add(dead_letters_of(source.spec))
        add(late_references_of(source.spec))
    for name, pipeline in pipelines.items():
        partitions = pipeline.stream.source.spec.partitions
        if isinstance(pipeline, LivePipeline):
            window_ms = pipeline.size_ms + pipeline.tile_ms
            retention_ms = window_ms + max(window_ms, DAY_MS)
            add(_table_topic(pipeline.topic, partitions, "compact,delete", retention_ms, window_ms))
        elif not isinstance(pipeline, AlertPipeline):
            if raised_by(pipeline) is None:
                add(TopicSpec(name=pipeline.topic, partitions=partitions, retention_ms=30 * DAY_MS))
            table = table_of(name, pipeline)
            assert table is not None
            spec = _table_topic(table, partitions, "compact", None)
            add(msgspec.structs.replace(spec, max_message_bytes=_largest_value(name, pipeline)))
    alerts = [raised for pipeline in pipelines.values() if (raised := raised_by(pipeline)) is not None]
    for topic in dict.fromkeys(raised.topic for raised in alerts):
        types = [raised.alert_type for raised in alerts if raised.topic == topic]
        largest = max(_largest_alert(one) for one in pipelines.values() if (r := raised_by(one)) and r.topic == topic)
        spec = TopicSpec(name=topic, partitions=alert_partitions, type=reduce(or_, types), max_message_bytes=largest)
        add(spec)
        add(dead_letters_of(spec))
    return list(specs.values())


def _largest_alert(pipeline: Pipeline) -> int:
    """Bytes that an alert may have: none must be larger than its topic takes, since on Flink it would stop its job again and again."""
    raised = raised_by(pipeline)
    if raised is None or isinstance(pipeline, FinalPipeline | LivePipeline):
        return DEFAULT_MAX_MESSAGE_BYTES  # numbers, times and one key
    steps = pipeline.steps if isinstance(pipeline, JoinPipeline) else ()
    shown = [field_behind(steps, value.name) for _, value in raised.fields if isinstance(value, Column)]
    return max(sum(_largest_text(pipeline, name) for name in shown) + EXTRA_BYTES, DEFAULT_MAX_MESSAGE_BYTES)


def _largest_text(pipeline: AlertPipeline | JoinPipeline, name: str) -> int:
    """Bytes that a field of a record, or of a pair, may have in JSON, where it is text."""
    stream = pipeline.stream
    if isinstance(pipeline, JoinPipeline) and name not in stream.fields():
        stream, name = pipeline.join.right, name.removeprefix(pipeline.join.prefix)
    if stream.fields().get(name) is not Kind.TEXT:
        return 0
    bound = longest(stream.source.spec.type, field_behind(stream.steps, name))
    record_bytes = stream.source.spec.max_message_bytes
    return record_bytes if bound is None else min(bound * ESCAPED_BYTES, record_bytes)


def _largest_value(name: str, pipeline: FinalPipeline | JoinPipeline) -> int:
    """Bytes that a value of the table may have: all open sessions of a key, or what is kept of a record.

    Raises: SetupError for sessions so short that a key may have more open ones than a record can say.
    """
    if isinstance(pipeline, JoinPipeline):
        sides = [(s.source.spec.max_message_bytes, len(kept_of(pipeline, s))) for s in streams_of(pipeline)]
        return max(size * max(fields, 1) for size, fields in sides) + EXTRA_BYTES
    if not isinstance(pipeline.window, Session):
        return DEFAULT_MAX_MESSAGE_BYTES
    most = pipeline.stream.source.out_of_orderness_ms // pipeline.window.gap_ms + 2
    each = SESSION_BYTES + sum(NUMBER_BYTES + len(one.name) for one in pipeline.aggregates.accumulators)
    size = most * each + EXTRA_BYTES
    if size > MOST_BYTES:
        raise SetupError(
            name,
            f"a key may have {most:,} open sessions; make their gap longer, or the topic's out_of_orderness shorter",
        )
    return max(size, DEFAULT_MAX_MESSAGE_BYTES)


def _table_topic(
    name: str,
    partitions: int,
    cleanup: Literal["compact", "compact,delete"],
    retention_ms: int | None,
    counts_ms: int = 0,
) -> TopicSpec:
    """A table keeps every version for an hour, so that a frozen writer that wakes cannot hide a newer one; and those of a
    tile as long as it counts, `counts_ms`, since its owner has soon forgotten it and cannot write it again. An event lies
    a minute in the future at most, so no tile is older than its first record by more."""
    return TopicSpec(
        name=name,
        partitions=partitions,
        cleanup=cleanup,
        retention_ms=retention_ms,
        min_compaction_lag_ms=max(HOUR_MS, counts_ms + MAX_AHEAD_MS),
    )
