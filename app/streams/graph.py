"""Declared streams: a topic, what happens to its records, and where the result goes. Frozen data, no code runs here.

    orders = Topic("raw.orders", OrderEvent, key="user_id", out_of_orderness="5s").once("order_id", within="1m")
    large = orders.where(col.amount_usd > 10_000).alert(HighValueOrder, id="order_id")
    per_user = orders.live("5m", tile="30s").aggregate(order_count_5m=count()).serve("user_features")
    rate = orders.tumbling("5m").aggregate(order_count_5m=count()).to("features.order_rate_5m")

A mistake in a declaration is a `SetupError` on the line that makes it. Two declarations that compute the same have the
same `fingerprint`; state made by one is never read by another.
"""

import hashlib
import keyword
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from types import ModuleType
from typing import Literal

import msgspec

from app.broker.topics import MAX_AHEAD_MS, TopicSpec
from app.core.durations import format_duration, parse_duration_ms
from app.core.errors import SetupError
from app.core.text import longest
from app.streams.expressions import Column, Expression, Kind, columns_of, field_kinds, kind_of, literal

MAX_ID_CHARACTERS = 400
"""Of what an alert's id is made of, beside its rule and key: whoever chooses ids must not choose to be left unjudged."""


def _tag(class_name: str) -> str:
    """HighValueOrder -> high_value_order."""
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", class_name).lower()


class Alert(msgspec.Struct, frozen=True, kw_only=True, tag_field="alert_type", tag=_tag):
    """Base of all alerts; `alert_type` is the class name in snake case unless `tag=` says otherwise. `alert_id` is derived, so the same event gives the same id whenever it is read;
    `triggered_at` is the event's time."""

    alert_id: str
    triggered_at: datetime


@dataclass(frozen=True)
class Once:
    """Lets the first record of an id pass, per key; forgets it when event time has moved on by `within_ms`."""

    field: str
    within_ms: int

    def __str__(self) -> str:
        return f"once({self.field}, within={format_duration(self.within_ms)})"


@dataclass(frozen=True, eq=False)
class Where:
    condition: Expression

    def __str__(self) -> str:
        return f"where{self.condition}"


@dataclass(frozen=True, eq=False)
class Derive:
    """A new field, computed from the ones before it."""

    name: str
    value: Expression

    def __str__(self) -> str:
        return f"derive({self.name}={self.value})"


@dataclass(frozen=True, eq=False)
class Aggregate:
    """count: records. total: sum of `value`, money in cents. Only records where `when` holds, if given."""

    function: Literal["count", "total"]
    value: Expression | None = None
    when: Expression | None = None

    def __str__(self) -> str:
        inside = [str(self.value)] if self.value is not None else []
        inside += [f"when={self.when}"] if self.when is not None else []
        return f"{self.function}({', '.join(inside)})"


def count(*, when: Expression | None = None) -> Aggregate:
    """How many records."""
    return Aggregate("count", None, when)


def total(value: Expression, *, when: Expression | None = None) -> Aggregate:
    """Sum of a whole number or of money."""
    return Aggregate("total", value, when)


@dataclass(frozen=True)
class OutputField:
    """One aggregate as others see it: its name, and whether its integer is a count or cents."""

    name: str
    kind: Kind


@dataclass(frozen=True, eq=False)
class Source:
    """A topic of events. `spec.key` is the field that every record is keyed and grouped by."""

    spec: TopicSpec
    out_of_orderness_ms: int

    @property
    def key(self) -> str:
        assert self.spec.key is not None
        return self.spec.key

    def __str__(self) -> str:
        return f"{self.spec.name} by {self.key}, out of orderness {format_duration(self.out_of_orderness_ms)}"


@dataclass(frozen=True, eq=False)
class Stream:
    """Records of one source after some steps. Every method returns a new one."""

    source: Source
    once_rule: Once | None = None
    steps: tuple[Where | Derive, ...] = ()

    def fields(self) -> dict[str, Kind]:
        """Fields that the next step may use."""
        fields = field_kinds(self.source.spec.type)
        for step in self.steps:
            if isinstance(step, Derive):
                fields[step.name] = kind_of(step.value, fields, step.name)
        return fields

    def once(self, id: str, *, within: str) -> "Stream":
        """Lets the first record of an id pass and drops its repeats, per key, within the given event time.

        It comes before every other step, and its memory holds all ids of `within`.
        """
        if self.once_rule or self.steps:
            raise SetupError(f"once({id!r})", "stands once, directly behind the topic")
        if self.fields().get(id) is not Kind.TEXT:
            raise SetupError(f"once({id!r})", f"{id} is not a text field of {self.source.spec.name}")
        return Stream(self.source, once_rule=Once(id, parse_duration_ms(within, f"once({id!r}, within=...)")))

    def where(self, condition: Expression) -> "Stream":
        """Only the records for which the condition holds."""
        condition = literal(condition)
        if kind_of(condition, self.fields(), f"where{condition}") is not Kind.BOOLEAN:
            raise SetupError(f"where({condition})", "is not true or false")
        return Stream(self.source, self.once_rule, (*self.steps, Where(condition)))

    def derive(self, **values: Expression) -> "Stream":
        """New fields, in the order given; a later one may use an earlier one."""
        stream = self
        for name, value in values.items():
            _require_name(f"derive({name}=...)", name)
            known = stream.fields()
            if name in known or name in self.source.spec.type.__struct_fields__:
                raise SetupError(f"derive({name}=...)", "the record has this field already")
            kind_of(value, known, f"derive({name}=...)")
            stream = Stream(stream.source, stream.once_rule, (*stream.steps, Derive(name, value)))
        return stream

    def alert(
        self,
        alert_type: type[Alert],
        *,
        id: str,
        rule: str | None = None,
        to: str = "processed.alerts",
        **values: Expression,
    ) -> "AlertPipeline":
        """One alert a record, `alert_id` = rule:key:id. Its other fields come from the record's of the same name, or
        from `values`. rule: the alert type's tag unless given; unique in an application."""
        tag = alert_type.__struct_config__.tag
        name = rule or str(tag)
        known = self.fields()
        if known.get(id) is not Kind.TEXT:
            raise SetupError(f"alert {name}", f"id {id!r} is not a text field")
        bound = longest(self.source.spec.type, self._field_behind(id))
        if bound is None or bound > MAX_ID_CHARACTERS:
            raise SetupError(
                f"alert {name}",
                f"id {id!r} may have any length; bound it to {MAX_ID_CHARACTERS} characters or fewer, such as "
                "Annotated[str, msgspec.Meta(max_length=200)]: agents take no longer ids",
            )
        target = field_kinds(alert_type)
        fields: list[tuple[str, Expression]] = []
        for field in msgspec.structs.fields(alert_type):
            if field.name in ("alert_id", "triggered_at"):
                continue
            value = values.get(field.name, Column(field.name))
            kind = kind_of(value, known, f"alert {name}, field {field.name}")
            if target.get(field.name) is not kind:
                raise SetupError(f"alert {name}", f"field {field.name} is not {kind.value} in {alert_type.__name__}")
            fields.append((field.name, value))
        unknown = values.keys() - {name for name, _ in fields}
        if unknown:
            raise SetupError(f"alert {name}", f"{alert_type.__name__} has no field {', '.join(sorted(unknown))}")
        return AlertPipeline(self, alert_type, name, id, tuple(fields), to)

    def _field_behind(self, name: str) -> str:
        """The record's field that a name stands for."""
        for step in reversed(self.steps):
            if isinstance(step, Derive) and step.name == name and isinstance(step.value, Column):
                name = step.value.name
        return name

    def live(self, size: str, *, tile: str) -> "Windowed":
        """The last `size` up to now, kept as tiles; fresh on every event, decays by itself."""
        size_ms, tile_ms = parse_duration_ms(size, "live(size)"), parse_duration_ms(tile, "live(tile=...)")
        if tile_ms <= 0 or size_ms % tile_ms or size_ms < tile_ms:
            raise SetupError(f"live({size!r}, tile={tile!r})", "the window must be a whole number of tiles")
        return Windowed(self, "live", size_ms, tile_ms)

    def tumbling(self, size: str) -> "Windowed":
        """Windows of `size` side by side, aligned to the epoch in UTC."""
        size_ms = parse_duration_ms(size, "tumbling(size)")
        if size_ms <= 0:
            raise SetupError(f"tumbling({size!r})", "must be longer than nothing")
        return Windowed(self, "tumbling", size_ms, size_ms)

    def __str__(self) -> str:
        parts = [str(self.source), *([str(self.once_rule)] if self.once_rule else []), *map(str, self.steps)]
        return " -> ".join(parts)


@dataclass(frozen=True, eq=False)
class Windowed:
    """A stream cut into slices; `aggregate` says what is computed of each."""

    stream: Stream
    window: Literal["live", "tumbling"]
    size_ms: int
    slice_ms: int

    def aggregate(self, **aggregates: Aggregate) -> "Aggregated":
        if not aggregates:
            raise SetupError("aggregate()", "needs at least one aggregate, such as n=count()")
        fields = self.stream.fields()
        outputs = []
        for name, aggregate in aggregates.items():
            where = f"aggregate({name}=...)"
            _require_name(where, name)
            if name in (self.stream.source.key, *RESERVED):
                raise SetupError(where, "this name is taken; choose another one")
            if aggregate.when is not None and kind_of(aggregate.when, fields, where) is not Kind.BOOLEAN:
                raise SetupError(where, "when= is not true or false")
            kind = Kind.INTEGER if aggregate.value is None else kind_of(aggregate.value, fields, where)
            if kind not in (Kind.INTEGER, Kind.MONEY):
                raise SetupError(where, f"total of {kind.value} is not exact; only whole numbers and money are summed")
            outputs.append(OutputField(name, kind))
        return Aggregated(self, tuple(aggregates.items()), tuple(outputs))


@dataclass(frozen=True, eq=False)
class Aggregated:
    windowed: Windowed
    aggregates: tuple[tuple[str, Aggregate], ...]
    outputs: tuple[OutputField, ...]

    def serve(self, view: str) -> "LivePipeline":
        """Serves live tiles as features: agents read `view`, Redis holds `view:{entity}`."""
        if self.windowed.window != "live":
            raise SetupError(f"serve({view!r})", "only live windows are served; write the others to(...) a topic")
        if view == "headrace" or not re.fullmatch(r"[A-Za-z0-9._-]+", view):
            raise SetupError(
                f"serve({view!r})",
                "a view's name has letters, digits, '.', '_' and '-', and 'headrace' is the store's own",
            )
        return LivePipeline(
            self.windowed.stream, self.windowed.size_ms, self.windowed.slice_ms, self.aggregates, self.outputs, view
        )

    def to(self, topic: str) -> "TumblingPipeline":
        """Writes one final row an entity and window."""
        if self.windowed.window != "tumbling":
            raise SetupError(f"to({topic!r})", "live windows have no final row; serve(...) them")
        return TumblingPipeline(self.windowed.stream, self.windowed.size_ms, self.aggregates, self.outputs, topic)


@dataclass(frozen=True, eq=False)
class AlertPipeline:
    """One alert a record that passes."""

    stream: Stream
    alert_type: type[Alert]
    rule: str
    id_field: str
    fields: tuple[tuple[str, Expression], ...]
    topic: str

    def __str__(self) -> str:
        fields = ", ".join(f"{name}={value}" for name, value in self.fields)
        return f"{self.stream} -> alert({self.rule}, id={self.id_field}, {fields}) -> {self.topic}"


@dataclass(frozen=True, eq=False)
class LivePipeline:
    """Tiles of one view."""

    stream: Stream
    size_ms: int
    tile_ms: int
    aggregates: tuple[tuple[str, Aggregate], ...]
    outputs: tuple[OutputField, ...]
    view: str

    @property
    def topic(self) -> str:
        return f"features.{self.view}"

    @property
    def comparable(self) -> bool:
        """Whether every valid record of the source shows in the view, so that a reader can wait for its own event."""
        return not any(isinstance(step, Where) for step in self.stream.steps)

    def __str__(self) -> str:
        window = f"live({format_duration(self.size_ms)}, tile={format_duration(self.tile_ms)})"
        return f"{self.stream} -> {window} -> {_shown(self.aggregates)} -> {self.topic}"


@dataclass(frozen=True, eq=False)
class TumblingPipeline:
    """Final rows of tumbling windows."""

    stream: Stream
    size_ms: int
    aggregates: tuple[tuple[str, Aggregate], ...]
    outputs: tuple[OutputField, ...]
    topic: str

    def __str__(self) -> str:
        return (
            f"{self.stream} -> tumbling({format_duration(self.size_ms)}) -> {_shown(self.aggregates)} -> {self.topic}"
        )


WindowedPipeline = LivePipeline | TumblingPipeline
Pipeline = AlertPipeline | WindowedPipeline


RESERVED = ("version", "window_start", "window_end", "tile", "partition", "progress")
"""Names that keys and values of tables use themselves."""


class Topic(Stream):
    """A topic of events as a stream.

    key: text field that every record is keyed by. out_of_orderness: how far behind the newest record of its partition
    a record may be and still count. retention: a duration, or `forever`.
    """

    def __init__(
        self,
        name: str,
        record_type: type[msgspec.Struct],
        *,
        key: str,
        out_of_orderness: str,
        partitions: int = 12,
        retention: str = "7d",
    ) -> None:
        if field_kinds(record_type).get(key) is not Kind.TEXT:
            raise SetupError(f"Topic({name!r})", f"key {key!r} is not a text field of {record_type.__name__}")
        if key in RESERVED:
            raise SetupError(f"Topic({name!r})", f"key {key!r}: this name is taken; choose another one")
        spec = TopicSpec(
            name=name,
            partitions=partitions,
            type=record_type,
            key=key,
            retention_ms=parse_retention_ms(retention, f"Topic({name!r}, retention=...)"),
            time="event",
            max_ahead_ms=MAX_AHEAD_MS,
        )
        out_of_orderness_ms = parse_duration_ms(out_of_orderness, f"Topic({name!r}, out_of_orderness=...)")
        super().__init__(Source(spec, out_of_orderness_ms))


def _require_name(where: str, name: str) -> None:
    if not name.isidentifier() or keyword.iskeyword(name):
        raise SetupError(where, f"{name!r} is no name; letters, digits and _ are")


def parse_retention_ms(text: str, setting: str) -> int | None:
    """Milliseconds, or None for `forever`."""
    return None if text == "forever" else parse_duration_ms(text, setting)


def pipelines_in(module: ModuleType) -> dict[str, Pipeline]:
    """The pipelines that a module declares, by the names of their variables."""
    found = {name: value for name, value in vars(module).items() if isinstance(value, Pipeline)}
    return found


def fingerprint(pipeline: Pipeline) -> str:
    """16 hex digits that change when what the pipeline computes changes, the kinds of the fields it reads among it."""
    kinds = field_kinds(pipeline.stream.source.spec.type)
    read = sorted(f"{name} {kinds[name].value}" for name in columns_used(pipeline) if name in kinds)
    return hashlib.sha256("; ".join([str(pipeline), *read]).encode()).hexdigest()[:16]


def columns_used(pipeline: Pipeline) -> set[str]:
    """Names of the fields that a pipeline reads, derived ones among them."""
    used: set[str] = set()
    for step in pipeline.stream.steps:
        used |= columns_of(step.condition if isinstance(step, Where) else step.value)
    if isinstance(pipeline, AlertPipeline):
        return used | {pipeline.id_field}.union(*(columns_of(value) for _, value in pipeline.fields))
    for _, aggregate in pipeline.aggregates:
        for expression in (aggregate.value, aggregate.when):
            used |= columns_of(expression) if expression is not None else set()
    return used


def unique_names(pipelines: Mapping[str, Pipeline]) -> None:
    """Raises: SetupError when two pipelines write alerts under one rule, tiles of one view, or one topic of rows."""
    seen: dict[str, str] = {}
    for name, pipeline in pipelines.items():
        target = f"rule {pipeline.rule}" if isinstance(pipeline, AlertPipeline) else f"topic {pipeline.topic}"
        if target in seen:
            raise SetupError(name, f"{target} is written by {seen[target]} already")
        seen[target] = name


def _shown(aggregates: tuple[tuple[str, Aggregate], ...]) -> str:
    return ", ".join(f"{name}={aggregate}" for name, aggregate in aggregates)
