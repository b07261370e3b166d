"""The generated text of one topic, loaded: the function that walks a batch, and the encoders of its tables."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

import msgspec

from app.core.codec import cents_to_json, encode, sum_to_cents, to_cents, to_dollars
from app.core.instants import instant
from app.core.record import Record, TopicPartition
from app.streams.expressions import Kind
from app.streams.gate import DECODE_ERRORS, is_heartbeat, reason_of_incomplete
from app.streams.graph import AlertPipeline, LivePipeline, Pipeline, Source, WindowedPipeline, fingerprint
from app.streams.outputs import alert_headers, derived_id, state_topic
from app.streams.python import compile_topic, once_name, once_rules
from app.streams.tables import Entry, OnceMemory, PartitionState, Slices


@dataclass(frozen=True)
class TableCodec:
    """Bytes of one pipeline's table: `key(start_ms, key, partition)`, `value(entry)`, `row(start_ms, key, entry)`.

    `parse_key` and `parse_value` raise one of `DECODE_ERRORS`, or ValueError, for what those did not write.
    """

    name: str
    topic: str
    slice_ms: int
    fingerprint: str
    key: Callable[[int, str, int], bytes]
    value: Callable[[Entry], bytes]
    row: Callable[[int, str, Entry], bytes] | None
    row_topic: str
    window_ms: int
    parse_key: Callable[[bytes], tuple[int, str]]
    parse_value: Callable[[bytes], Entry]


@dataclass(frozen=True)
class CompiledTopic:
    """All pipelines of one source."""

    source: Source
    text: str
    process: Callable[[Sequence[Record], PartitionState, int], None]
    tables: Mapping[str, TableCodec]
    pipelines: Mapping[str, Pipeline]

    def new_state(self, place: TopicPartition) -> PartitionState:
        slices = {
            name: Slices(name, table.slice_ms, TopicPartition(table.topic, place.partition), table.row is not None)
            for name, table in self.tables.items()
        }
        once = {once_name(rule): OnceMemory(rule.within_ms) for rule in once_rules(self.pipelines)}
        return PartitionState(place, self.source.out_of_orderness_ms, slices, once)


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
        "quote": json.encoder.encode_basestring,
        "reason_of_incomplete": reason_of_incomplete,
        "to_cents": to_cents,
        "to_dollars": to_dollars,
    }
    for name, pipeline in pipelines.items():
        if isinstance(pipeline, AlertPipeline):
            namespace[f"alert_{name}"] = pipeline.alert_type
    exec(compile(text, f"<streams of {source.spec.name}>", "exec"), namespace)
    tables = {
        name: _table(name, pipeline, namespace)
        for name, pipeline in pipelines.items()
        if not isinstance(pipeline, AlertPipeline)
    }
    return CompiledTopic(source, text, namespace["process"], tables, dict(pipelines))


def _table(name: str, pipeline: WindowedPipeline, namespace: Mapping[str, Any]) -> TableCodec:
    live = isinstance(pipeline, LivePipeline)
    key_field, start_field = pipeline.stream.source.key, "tile" if live else "window_start"
    key_type = msgspec.defstruct("Key", [(key_field, str), (start_field, int)])
    fields: list[tuple[str, Any]] = [("version", int)]
    fields += [(output.name, Decimal if output.kind is Kind.MONEY else int) for output in pipeline.outputs]
    value_type = msgspec.defstruct("Value", fields)
    decode_key, decode_value = msgspec.json.Decoder(key_type).decode, msgspec.json.Decoder(value_type).decode

    def parse_key(data: bytes) -> tuple[int, str]:
        key = decode_key(data)
        return getattr(key, start_field), getattr(key, key_field)

    def parse_value(data: bytes) -> Entry:
        version, *amounts = msgspec.structs.astuple(decode_value(data))
        entry: Entry = [version, False]
        for output, amount in zip(pipeline.outputs, amounts, strict=True):
            entry.append(sum_to_cents(amount) if output.kind is Kind.MONEY else amount)
        return entry

    return TableCodec(
        name=name,
        topic=pipeline.topic if live else state_topic(name),
        slice_ms=pipeline.tile_ms if isinstance(pipeline, LivePipeline) else pipeline.size_ms,
        fingerprint=fingerprint(pipeline),
        key=namespace[f"key_{name}"],
        value=namespace[f"value_{name}"],
        row=namespace.get(f"row_{name}"),
        row_topic="" if live else pipeline.topic,
        window_ms=pipeline.size_ms,
        parse_key=parse_key,
        parse_value=parse_value,
    )
