"""The generated text of one topic, loaded: the function that walks a batch, and the encoders of its tables and rows."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

import msgspec

from app.core.codec import cents_to_json, encode, sum_to_cents, to_cents, to_dollars
from app.core.instants import instant
from app.core.record import Headers, Record, TopicPartition
from app.streams.aggregates import Accumulator, mean_of
from app.streams.expressions import Kind
from app.streams.gate import DECODE_ERRORS, is_heartbeat, reason_of_incomplete
from app.streams.memories import BurstMemory, Memory, OnceMemory, SliceMemory
from app.streams.outputs import alert_headers, derived_id, state_topic, window_headers
from app.streams.pipelines import (
    AlertPipeline,
    FinalPipeline,
    Hopping,
    LivePipeline,
    Pipeline,
    Session,
    Source,
    WindowedPipeline,
    fingerprint,
    raised_by,
)
from app.streams.python import compile_topic, memories_of, once_name, once_rules
from app.streams.sessions import Sessions
from app.streams.tables import Entry, PartitionState, Place, Row, Slices, Table

RowEncoder = Callable[[Row, str, int], tuple[bytes, bytes, Headers] | None]
"""Of a row, the place of its partition as text, and the moment in ms: key, value and headers, None where it does not count."""


@dataclass(frozen=True)
class TableCodec:
    """One pipeline's table: bytes of its entries, `key(start_ms, key, partition)` and `value(entry)`, and of its final rows.

    `parse_key` and `parse_value` raise one of `DECODE_ERRORS`, or ValueError, for what those did not write. window_ms: how
    long what is counted may matter to readers of tiles.
    """

    name: str
    topic: str
    fingerprint: str
    key: Callable[[int, str, int], bytes]
    value: Callable[[Entry], bytes]
    row: RowEncoder | None
    row_topic: str
    raises: bool
    window_ms: int
    parse_key: Callable[[bytes], Place]
    parse_value: Callable[[bytes], Entry]
    new: Callable[[TopicPartition], Table]


@dataclass(frozen=True)
class CompiledTopic:
    """All pipelines of one source."""

    source: Source
    text: str
    process: Callable[[Sequence[Record], PartitionState, int], None]
    tables: Mapping[str, TableCodec]
    pipelines: Mapping[str, Pipeline]

    def new_state(self, place: TopicPartition) -> PartitionState:
        tables = {name: t.new(TopicPartition(t.topic, place.partition)) for name, t in self.tables.items()}
        return PartitionState(place, self.source.out_of_orderness_ms, tables, self._new_memories())

    def _new_memories(self) -> dict[str, Memory]:
        memories: dict[str, Memory] = {once_name(r): OnceMemory(r.within_ms) for r in once_rules(self.pipelines)}
        lateness_ms = self.source.out_of_orderness_ms
        for name, alert in self.pipelines.items():
            if isinstance(alert, AlertPipeline) and alert.burst is not None:
                memories[f"burst_{name}"] = BurstMemory(alert.burst.count, alert.burst.within_ms, lateness_ms)
            if isinstance(alert, AlertPipeline) and alert.raised.per_ms is not None:
                memories[f"slices_{name}"] = SliceMemory(alert.raised.per_ms, lateness_ms)
        return memories

    @property
    def remembered_ms(self) -> int:
        """How far back in event time the source must be read for all memories to be as they were: what one of a pipeline
        remembers depends on what the one before it has let pass."""
        memories, longest_ms = self._new_memories(), 0
        for name, pipeline in self.pipelines.items():
            names = [once_name(pipeline.stream.once_rule)] if pipeline.stream.once_rule else []
            names += memories_of(name, pipeline) if isinstance(pipeline, AlertPipeline) else []
            longest_ms = max(longest_ms, sum(memories[name].keeps_ms for name in names))
        return longest_ms


def load_topic(source: Source, pipelines: Mapping[str, Pipeline]) -> CompiledTopic:
    """Compiles the pipelines of one source; `pipelines` may be empty, then only the gate is left."""
    text = compile_topic(source, pipelines)
    namespace: dict[str, Any] = {
        "DECODE_ERRORS": DECODE_ERRORS,
        "alert_headers": alert_headers,
        "cents_to_json": cents_to_json,
        "decode": msgspec.json.Decoder(source.spec.type).decode,
        "derived_id": derived_id,
        "encode": encode,
        "instant": instant,
        "is_heartbeat": is_heartbeat,
        "mean_of": mean_of,
        "quote": json.encoder.encode_basestring,
        "reason_of_incomplete": reason_of_incomplete,
        "to_cents": to_cents,
        "to_dollars": to_dollars,
        "window_headers": window_headers,
    }
    for name, pipeline in pipelines.items():
        raised = raised_by(pipeline)
        if raised is not None:
            namespace[f"alert_{name}"] = raised.alert_type
    exec(compile(text, f"<streams of {source.spec.name}>", "exec"), namespace)
    tables = {
        name: _table(name, pipeline, namespace)
        for name, pipeline in pipelines.items()
        if isinstance(pipeline, WindowedPipeline)
    }
    return CompiledTopic(source, text, namespace["process"], tables, dict(pipelines))


def _table(name: str, pipeline: WindowedPipeline, namespace: Mapping[str, Any]) -> TableCodec:
    live = isinstance(pipeline, LivePipeline)
    parse_key, parse_value = _parsers(pipeline)
    return TableCodec(
        name=name,
        topic=pipeline.topic if live else state_topic(name),
        fingerprint=fingerprint(pipeline),
        key=namespace[f"key_{name}"],
        value=namespace[f"value_{name}"],
        row=namespace.get(f"row_{name}"),
        row_topic="" if live else pipeline.topic,
        raises=raised_by(pipeline) is not None,
        window_ms=pipeline.size_ms if isinstance(pipeline, LivePipeline) else 0,
        parse_key=parse_key,
        parse_value=parse_value,
        new=_new_table(pipeline),
    )


def _new_table(pipeline: WindowedPipeline) -> Callable[[TopicPartition], Table]:
    accumulators, lateness_ms = pipeline.aggregates.accumulators, pipeline.stream.source.out_of_orderness_ms

    def new(place: TopicPartition) -> Table:
        if isinstance(pipeline, LivePipeline):
            return Slices(place, pipeline.tile_ms, pipeline.tile_ms, accumulators, emits_rows=False)
        if isinstance(pipeline.window, Hopping):
            return Slices(place, pipeline.window.step_ms, pipeline.window.size_ms, accumulators, emits_rows=True)
        return Sessions(place, pipeline.window.gap_ms, lateness_ms, accumulators)

    return new


def _parsers(pipeline: WindowedPipeline) -> tuple[Callable[[bytes], Place], Callable[[bytes], Entry]]:
    accumulators, key_field = pipeline.aggregates.accumulators, pipeline.stream.source.key
    is_session = isinstance(pipeline, FinalPipeline) and isinstance(pipeline.window, Session)
    start_field = "" if is_session else "tile" if isinstance(pipeline, LivePipeline) else "window_start"
    key_type = msgspec.defstruct("Key", [(key_field, str), *([(start_field, int)] if start_field else [])])
    amounts: list[tuple[str, Any]] = [(one.name, _json_type(one)) for one in accumulators]
    value_type = msgspec.defstruct("Value", [("version", int), *amounts])
    if is_session:
        session_type = msgspec.defstruct("Session", [("first", int), ("last", int), ("offset", int), *amounts])
        value_type = msgspec.defstruct("Sessions", [("version", int), ("sessions", list[session_type])])  # type: ignore[valid-type]
    decode_key, decode_value = msgspec.json.Decoder(key_type).decode, msgspec.json.Decoder(value_type).decode

    def integers(values: Sequence[Any]) -> list[int | None]:
        pairs = zip(values, accumulators, strict=True)
        return [sum_to_cents(v) if a.kind is Kind.MONEY and v is not None else v for v, a in pairs]

    def parse_key(data: bytes) -> Place:
        key = decode_key(data)
        return getattr(key, start_field) if start_field else 0, getattr(key, key_field)

    def parse_value(data: bytes) -> Entry:
        version, *values = msgspec.structs.astuple(decode_value(data))
        if not is_session:
            return [version, False, *integers(values)]
        sessions = [msgspec.structs.astuple(session) for session in values[0]]
        return [version, False, *([*session[:3], *integers(session[3:])] for session in sessions)]

    return parse_key, parse_value


def _json_type(accumulator: Accumulator) -> Any:
    exact = Decimal if accumulator.kind is Kind.MONEY else int
    return exact if accumulator.how == "sum" else exact | None
