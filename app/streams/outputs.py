"""What streams write beside their rows: ids, headers, late references; and the topics they need."""

from collections.abc import Iterable, Mapping
from datetime import UTC, datetime, timedelta
from functools import reduce
from operator import or_

from app.broker.topics import TopicSpec, dead_letters_of, late_references_of
from app.core.codec import encode
from app.core.record import Headers, Record
from app.streams.graph import AlertPipeline, LivePipeline, Pipeline, Source, TumblingPipeline

DAY_MS = 86_400_000
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def derived_id(rule: str, key: str, natural_key: str) -> str:
    """`rule:key:natural key`, the same for the same event on every engine; `:` and `%` inside a part are escaped."""
    return f"{rule}:{_escaped(key)}:{_escaped(natural_key)}"


def _escaped(part: str) -> str:
    if "%" in part or ":" in part:
        return part.replace("%", "%25").replace(":", "%3A")
    return part


def instant(time_ms: int) -> datetime:
    """Exact UTC datetime of epoch milliseconds."""
    return _EPOCH + timedelta(milliseconds=time_ms)


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


def state_topic(name: str) -> str:
    """The table of a pipeline on the asyncio engine."""
    return f"state.{name}"


def topics_of(
    sources: Iterable[Source], pipelines: Mapping[str, Pipeline], alert_partitions: int = 6
) -> list[TopicSpec]:
    """Every topic that these streams read or write."""
    specs: dict[str, TopicSpec] = {}
    for source in sources:
        for spec in (source.spec, dead_letters_of(source.spec), late_references_of(source.spec)):
            specs[spec.name] = spec
    for name, pipeline in pipelines.items():
        partitions = pipeline.stream.source.spec.partitions
        if isinstance(pipeline, LivePipeline):
            specs[pipeline.topic] = TopicSpec(
                name=pipeline.topic,
                partitions=partitions,
                cleanup="compact,delete",
                retention_ms=DAY_MS,
                min_compaction_lag_ms=3_600_000,
            )
        elif isinstance(pipeline, TumblingPipeline):
            specs[pipeline.topic] = TopicSpec(name=pipeline.topic, partitions=partitions, retention_ms=30 * DAY_MS)
            specs[state_topic(name)] = TopicSpec(
                name=state_topic(name),
                partitions=partitions,
                cleanup="compact",
                retention_ms=None,
                min_compaction_lag_ms=3_600_000,
            )
    for topic in {pipeline.topic for pipeline in pipelines.values() if isinstance(pipeline, AlertPipeline)}:
        types = [p.alert_type for p in pipelines.values() if isinstance(p, AlertPipeline) and p.topic == topic]
        spec = TopicSpec(name=topic, partitions=alert_partitions, type=reduce(or_, types))
        specs[topic] = spec
        specs[f"{topic}.dead"] = dead_letters_of(spec)
    return list(specs.values())
