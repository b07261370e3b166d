"""The generated text of one topic, loaded: the function that walks a batch, and the encoders of its tables and rows."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from typing import Any

import msgspec

from app.core.codec import cents_to_json, encode, sum_to_cents, to_cents, to_dollars
from app.core.instants import instant
from app.core.record import Headers, Record, TopicPartition
from app.streams.aggregates import Accumulator, mean_of
from app.streams.expressions import Kind
from app.streams.gate import DECODE_ERRORS, is_heartbeat, reason_of_incomplete
from app.streams.joins import JoinSide, JoinTable, Side, offset_of, place_of, side_of
from app.streams.memories import Memory, OnceMemory, memories_of
from app.streams.outputs import alert_headers, derived_id, window_headers
from app.streams.pipelines import (
    AlertPipeline,
    FinalPipeline,
    Hopping,
    JoinPipeline,
    LivePipeline,
    Pipeline,
    Records,
    Session,
    Source,
    WindowedPipeline,
    fingerprint,
    kept_of,
    raised_by,
    streams_of,
    table_of,
)
from app.streams.python import compile_topic, once_name, once_rules, streams_on
from app.streams.sessions import Sessions
from app.streams.tables import Entry, PartitionState, Place, Slices, Table

RowEncoder = Callable[[Any, str, int], tuple[bytes, bytes, Headers] | None]
"""Of a `Row` or `Pair`, the place of its partition as text, and the moment in ms: key, value and headers, None where it does not count."""


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
    new: Callable[[TopicPartition], Table] | None


@dataclass(frozen=True)
class CompiledTopic:
    """All pipelines of one source."""

    source: Source
    text: str
    process: Callable[[Sequence[Record], PartitionState, int], None]
    tables: Mapping[str, TableCodec]
    pipelines: Mapping[str, Pipeline]

    def new_state(self, place: TopicPartition, joins: dict[str, JoinTable] | None = None) -> PartitionState:
        """joins: what the topics share that are joined with each other, by pipeline, of this partition; filled as needed.
        Without it, a join stands on this topic alone and its pairs mean nothing."""
        tables: dict[str, Table] = {}
        for name, codec in self.tables.items():
            table_place = TopicPartition(codec.topic, place.partition)
            tables[name] = codec.new(table_place) if codec.new is not None else self._side(name, table_place, joins)
        state = PartitionState(place, self.source.out_of_orderness_ms, tables, self._new_memories())
        for table in tables.values():
            if isinstance(table, JoinSide):
                table.part = state
        return state

    def _side(self, name: str, place: TopicPartition, joins: dict[str, JoinTable] | None) -> JoinSide:
        pipeline = self.pipelines[name]
        assert isinstance(pipeline, JoinPipeline)
        sides: list[Side] = ["left", "right"]
        if joins is None:
            joins = {}
        else:
            streams = {"left": pipeline.join.left, "right": pipeline.join.right}
            sides = [side for side in sides if streams[side].source.spec.name == self.source.spec.name]
        shared = joins.setdefault(name, JoinTable(pipeline.join, place))
        return shared.side(sides, self.source.out_of_orderness_ms)

    def _new_memories(self) -> dict[str, Memory]:
        memories: dict[str, Memory] = {
            once_name(r): OnceMemory(r.within_ms) for r in once_rules(self.source, self.pipelines)
        }
        for name, pipeline in self.pipelines.items():
            if isinstance(pipeline, AlertPipeline):
                memories |= memories_of(name, pipeline)
        return memories

    @property
    def remembered_ms(self) -> int:
        """How far back in event time the source must be read for all memories to be as they were."""
        return max(map(self.remembered_by, self.pipelines), default=0)

    def remembered_by(self, name: str) -> int:
        """The same for one pipeline: what a memory of it holds depends on what the one before it has let pass."""
        memories, pipeline, longest_ms = self._new_memories(), self.pipelines[name], 0
        for _, stream in streams_on(self.source, {name: pipeline}):
            names = [once_name(stream.once_rule)] if stream.once_rule else []
            names += memories_of(name, pipeline) if isinstance(pipeline, AlertPipeline) else []
            longest_ms = max(longest_ms, sum(memories[name].reads_back_ms for name in names))
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
    tables |= {n: _join_table(n, p, namespace) for n, p in pipelines.items() if isinstance(p, JoinPipeline)}
    return CompiledTopic(source, text, namespace["process"], tables, dict(pipelines))


def _table(name: str, pipeline: WindowedPipeline, namespace: Mapping[str, Any]) -> TableCodec:
    live = isinstance(pipeline, LivePipeline)
    parse_key, parse_value = _parsers(pipeline)
    return TableCodec(
        name=name,
        topic=_topic_of(name, pipeline),
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


def _topic_of(name: str, pipeline: WindowedPipeline | JoinPipeline) -> str:
    topic = table_of(name, pipeline)
    assert topic is not None
    return topic


def _join_table(name: str, pipeline: JoinPipeline, namespace: Mapping[str, Any]) -> TableCodec:
    """Keys are `{"user_id":"u-1","left":17}`, the number being the source offset; values hold what is kept of the record
    under its side's name."""
    key_field = pipeline.stream.source.key
    sides: dict[Side, Records] = {"left": pipeline.join.left, "right": pipeline.join.right}
    kept: dict[str, Any] = {}
    for side, stream in sides.items():
        kinds = [_KEPT_TYPES[stream.fields()[field]] for field in kept_of(pipeline, stream)]
        kept[side] = tuple.__class_getitem__(tuple(kinds)) | None
    numbers = [("left", int | None, None), ("right", int | None, None)]
    key_type = msgspec.defstruct("Key", [(key_field, str), *numbers], omit_defaults=True)
    fields = [("version", int), ("time", int), ("matched", bool)]
    value_type = msgspec.defstruct(
        "Value", [*fields, ("left", kept["left"], None), ("right", kept["right"], None)], omit_defaults=True
    )
    decode_key, decode_value = msgspec.json.Decoder(key_type).decode, msgspec.json.Decoder(value_type).decode

    def key(number: int, entity: str, partition: int) -> bytes:
        place = (number, entity)
        return encode(key_type(**{key_field: entity, side_of(place): offset_of(place)}))

    def value(entry: Entry) -> bytes:
        version, _, time_ms, matched, values, side, _ = entry
        return encode(value_type(version=version, time=time_ms, matched=matched, **{side: values}))

    def parse_key(data: bytes) -> Place:
        found: Any = decode_key(data)
        side: Side = "left" if found.left is not None else "right"
        if getattr(found, side) is None:
            raise ValueError("names neither side")
        return place_of(side, getattr(found, side), getattr(found, key_field))

    def parse_value(data: bytes) -> Entry:
        found: Any = decode_value(data)
        side: Side = "left" if found.left is not None else "right"
        if getattr(found, side) is None:
            raise ValueError("holds neither side")
        return [found.version, False, found.time, found.matched, getattr(found, side), side, 0]

    return TableCodec(
        name=name,
        topic=_topic_of(name, pipeline),
        fingerprint=fingerprint(pipeline),
        key=key,
        value=value,
        row=namespace[f"row_{name}"],
        row_topic=pipeline.topic,
        raises=True,
        window_ms=0,
        parse_key=parse_key,
        parse_value=parse_value,
        new=None,
    )


_KEPT_TYPES: dict[Kind, Any] = {
    Kind.MONEY: int,
    Kind.INTEGER: int,
    Kind.NUMBER: float,
    Kind.TEXT: str,
    Kind.BOOLEAN: bool,
    Kind.TIME: datetime,
}
"""Of fields in generated text: money is cents."""


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


def joined_topics(topics: Mapping[str, CompiledTopic]) -> dict[str, tuple[str, ...]]:
    """For each topic those that are joined with it, at first or second hand, and itself: they are read together."""
    groups = {topic: {topic} for topic in topics}
    for compiled in topics.values():
        for pipeline in compiled.pipelines.values():
            together = set().union(*(groups[stream.source.spec.name] for stream in streams_of(pipeline)))
            for topic in together:
                groups[topic] = together
    return {topic: tuple(sorted(group)) for topic, group in groups.items()}
