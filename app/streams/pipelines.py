"""What a declaration comes to: pipelines, frozen data. No code runs here, and `graph` makes them.

Two pipelines that compute the same have the same `fingerprint`; state made by one is never read by another.
"""

import hashlib
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from types import ModuleType
from typing import Literal

import msgspec

from app.broker.topics import TopicSpec
from app.core.durations import format_duration
from app.core.errors import SetupError
from app.streams.aggregates import Accumulator, Aggregate, OutputField, accumulators_of
from app.streams.expressions import Column, Expression, Kind, columns_of, field_kinds, kind_of


def _tag(class_name: str) -> str:
    """HighValueOrder -> high_value_order."""
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", class_name).lower()


class Alert(msgspec.Struct, frozen=True, kw_only=True, tag_field="alert_type", tag=_tag):
    """Base of all alerts; `alert_type` is the class name in snake case unless `tag=` says otherwise. `alert_id` is derived,
    so the same event gives the same id whenever it is read; `triggered_at` is the event's time."""

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


Steps = tuple[Where | Derive, ...]


def fields_after(steps: Steps, fields: Mapping[str, Kind]) -> dict[str, Kind]:
    """Fields that the next step may use."""
    known = dict(fields)
    for step in steps:
        if isinstance(step, Derive):
            known[step.name] = kind_of(step.value, known, step.name)
    return known


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
class Records:
    """Records of one source after some steps."""

    source: Source
    once_rule: Once | None = None
    steps: Steps = ()

    def fields(self) -> dict[str, Kind]:
        """Fields that the next step may use."""
        return fields_after(self.steps, field_kinds(self.source.spec.type))

    def __str__(self) -> str:
        parts = [str(self.source), *([str(self.once_rule)] if self.once_rule else []), *map(str, self.steps)]
        return " -> ".join(parts)


@dataclass(frozen=True)
class Burst:
    """`count` records of a key whose event times span at most `within_ms`."""

    count: int
    within_ms: int

    def __str__(self) -> str:
        return f"burst(count={self.count}, within={format_duration(self.within_ms)})"


@dataclass(frozen=True)
class Hopping:
    """Windows of `size_ms` that begin every `step_ms`; tumbling where both are the same. A step is the slice."""

    size_ms: int
    step_ms: int

    def __str__(self) -> str:
        if self.size_ms == self.step_ms:
            return f"tumbling({format_duration(self.size_ms)})"
        return f"hopping({format_duration(self.size_ms)}, step={format_duration(self.step_ms)})"


@dataclass(frozen=True)
class Session:
    """Records of a key that lie at most `gap_ms` apart."""

    gap_ms: int

    def __str__(self) -> str:
        return f"session(gap={format_duration(self.gap_ms)})"


@dataclass(frozen=True, eq=False)
class Raised:
    """The alerts of a pipeline. Their id is the rule, the key, and the values of `id_fields`; or, with `per_ms`, the start
    of the slice of that length in which the key has raised its first one. Of final rows it is the window's start."""

    alert_type: type[Alert]
    rule: str
    id_fields: tuple[str, ...]
    fields: tuple[tuple[str, Expression], ...]
    topic: str
    per_ms: int | None = None

    @property
    def tag(self) -> str:
        """Their `alert_type`."""
        return str(self.alert_type.__struct_config__.tag)

    def __str__(self) -> str:
        of = (
            f"id={'+'.join(self.id_fields)}"
            if self.per_ms is None
            else f"at_most_once_per={format_duration(self.per_ms)}"
        )
        fields = ", ".join(f"{name}={value}" for name, value in self.fields)
        return f"alert({self.rule}, {of}, {fields}) -> {self.topic}"


@dataclass(frozen=True, eq=False)
class Aggregates:
    """What is computed of each slice, by name, with the kind of each."""

    named: tuple[tuple[str, Aggregate, Kind], ...]

    @property
    def outputs(self) -> tuple[OutputField, ...]:
        """As others see them."""
        return tuple(OutputField(name, kind, aggregate.function) for name, aggregate, kind in self.named)

    @property
    def accumulators(self) -> tuple[Accumulator, ...]:
        """As they are kept."""
        return accumulators_of(self.outputs)

    @property
    def amounts(self) -> tuple[tuple[Expression | None, Expression | None], ...]:
        """Of each accumulator: what a record adds (None: 1), and when."""
        amounts: list[tuple[Expression | None, Expression | None]] = []
        for _, aggregate, _ in self.named:
            amounts.append((aggregate.value, aggregate.when))
            if aggregate.function == "mean":
                amounts.append((None, aggregate.when))
        return tuple(amounts)

    def __str__(self) -> str:
        return ", ".join(f"{name}={aggregate}" for name, aggregate, _ in self.named)


@dataclass(frozen=True, eq=False)
class AlertPipeline:
    """One alert a record that passes, or that completes a burst."""

    stream: Records
    raised: Raised
    burst: Burst | None = None

    @property
    def topic(self) -> str:
        return self.raised.topic

    def __str__(self) -> str:
        return " -> ".join(map(str, (self.stream, *([self.burst] if self.burst else []), self.raised)))


@dataclass(frozen=True, eq=False)
class LivePipeline:
    """Tiles of one view."""

    stream: Records
    size_ms: int
    tile_ms: int
    aggregates: Aggregates
    view: str
    generation: int = 1

    @property
    def topic(self) -> str:
        return of_generation(f"features.{self.view}", self.generation)

    @property
    def comparable(self) -> bool:
        """Whether every valid record of the source shows in the view, so that a reader can wait for its own event."""
        return not any(isinstance(step, Where) for step in self.stream.steps)

    def __str__(self) -> str:
        window = f"live({format_duration(self.size_ms)}, tile={format_duration(self.tile_ms)})"
        return f"{self.stream} -> {window} -> {self.aggregates} -> features.{self.view}"


@dataclass(frozen=True, eq=False)
class FinalPipeline:
    """One row a key and window, when it is over: written to a topic, or raised as an alert."""

    stream: Records
    window: Hopping | Session
    aggregates: Aggregates
    having: Expression | None
    target: str | Raised
    generation: int = 1

    @property
    def topic(self) -> str:
        return self.target if isinstance(self.target, str) else self.target.topic

    def __str__(self) -> str:
        having = [f"having{self.having}"] if self.having is not None else []
        return " -> ".join(map(str, (self.stream, self.window, self.aggregates, *having, self.target)))


@dataclass(frozen=True, eq=False)
class Join:
    """Pairs of records of one key, and equal `on` fields, in which the right one's event time lies `lower_ms` to `upper_ms`
    after the left one's (negative: before). `left` also gives each left record without a partner; `missing` those alone."""

    left: Records
    right: Records
    on: tuple[tuple[str, str], ...]
    lower_ms: int
    upper_ms: int
    how: Literal["inner", "left", "missing"]
    prefix: str

    def fields(self) -> dict[str, Kind]:
        """Of a pair: the left record's, and the right one's under their prefix."""
        right = {} if self.how == "missing" else self.right.fields()
        return {**self.left.fields(), **{self.prefix + name: kind for name, kind in right.items()}}

    def __str__(self) -> str:
        on = "".join(f", {left}={right}" for left, right in self.on)
        bounds = f"{_signed(self.lower_ms)} to {_signed(self.upper_ms)}"
        return f"{self.left} -> {self.how} join({self.right}{on}, within {bounds}, prefix={self.prefix!r})"


@dataclass(frozen=True, eq=False)
class JoinPipeline:
    """One alert a pair, or a left record without a partner."""

    join: Join
    steps: Steps
    raised: Raised
    generation: int = 1

    @property
    def stream(self) -> Records:
        """The left side: its key names the entity."""
        return self.join.left

    @property
    def topic(self) -> str:
        return self.raised.topic

    def __str__(self) -> str:
        return " -> ".join(map(str, (self.join, *self.steps, self.raised)))


WindowedPipeline = LivePipeline | FinalPipeline
Pipeline = AlertPipeline | LivePipeline | FinalPipeline | JoinPipeline


def of_generation(name: str, generation: int) -> str:
    """What the first generation calls plainly by its name, and a later one, see `generations`, with its number."""
    return name if generation == 1 else f"{name}.{generation}"


def table_of(name: str, pipeline: Pipeline) -> str | None:
    """The topic of its table on the asyncio engine; None where it has none. name: the pipeline's."""
    if isinstance(pipeline, AlertPipeline):
        return None
    return pipeline.topic if isinstance(pipeline, LivePipeline) else of_generation(f"state.{name}", pipeline.generation)


def raised_by(pipeline: Pipeline) -> Raised | None:
    """The alerts that a pipeline raises."""
    if isinstance(pipeline, FinalPipeline):
        return pipeline.target if isinstance(pipeline.target, Raised) else None
    return None if isinstance(pipeline, LivePipeline) else pipeline.raised


def kind_of_pipeline(pipeline: Pipeline) -> str:
    """One word for what it does."""
    match pipeline:
        case AlertPipeline(burst=burst):
            return "alert" if burst is None else "burst"
        case LivePipeline():
            return "live"
        case JoinPipeline(join=join):
            return f"{join.how} join"
        case FinalPipeline(window=window):
            return str(window).split("(")[0]


def streams_of(pipeline: Pipeline) -> tuple[Records, ...]:
    """What it reads: two streams where it joins."""
    return (pipeline.join.left, pipeline.join.right) if isinstance(pipeline, JoinPipeline) else (pipeline.stream,)


def sources_of(pipelines: Iterable[Pipeline], declared: Iterable[Source] = ()) -> dict[str, Source]:
    """The topics that are declared, and those that pipelines read, by name.

    Raises: SetupError when one is declared with two ideas of out-of-orderness or type.
    """
    found: dict[str, Source] = {}
    for source in [*declared, *(stream.source for pipeline in pipelines for stream in streams_of(pipeline))]:
        known = found.setdefault(source.spec.name, source)
        if (known.spec, known.out_of_orderness_ms) != (source.spec, source.out_of_orderness_ms):
            raise SetupError(source.spec.name, "the topic is declared twice, in different ways")
    return found


def slice_ms(pipeline: WindowedPipeline) -> int | None:
    """The length of the slices by which lateness is judged; None for sessions, where the record itself is."""
    if isinstance(pipeline, LivePipeline):
        return pipeline.tile_ms
    return pipeline.window.step_ms if isinstance(pipeline.window, Hopping) else None


def reads(pipeline: Pipeline, topic: str) -> bool:
    """Whether it reads that topic."""
    return any(stream.source.spec.name == topic for stream in streams_of(pipeline))


def pipelines_in(module: ModuleType) -> dict[str, Pipeline]:
    """The pipelines that a module declares, by the names of their variables."""
    return {name: value for name, value in vars(module).items() if isinstance(value, Pipeline)}


def fingerprint(pipeline: Pipeline) -> str:
    """16 hex digits that change when what the pipeline computes changes, the kinds of the fields it reads among it."""
    read: list[str] = []
    for stream in streams_of(pipeline):
        kinds = field_kinds(stream.source.spec.type)
        read += sorted(f"{name} {kinds[name].value}" for name in columns_used(pipeline, stream) if name in kinds)
    return hashlib.sha256("; ".join([str(pipeline), *read]).encode()).hexdigest()[:16]


def columns_used(pipeline: Pipeline, stream: Records | None = None) -> set[str]:
    """Names of the fields that a pipeline reads of a stream of its own, derived ones among them. stream: the only one
    unless given."""
    stream = stream or pipeline.stream
    return _columns_of_steps(stream.steps) | columns_after(pipeline, stream)


def columns_after(pipeline: Pipeline, stream: Records) -> set[str]:
    """Names of the fields that it reads behind the steps of that stream."""
    if isinstance(pipeline, JoinPipeline):
        return _columns_joined(pipeline, stream)
    if isinstance(pipeline, AlertPipeline):
        return _columns_raised(pipeline.raised)
    return _read(e for _, aggregate, _ in pipeline.aggregates.named for e in (aggregate.value, aggregate.when))


def _columns_joined(pipeline: JoinPipeline, stream: Records) -> set[str]:
    join = pipeline.join
    used = _columns_of_steps(pipeline.steps) | _columns_raised(pipeline.raised)
    if stream is join.right:
        own = {name.removeprefix(join.prefix) for name in used if name not in join.left.fields()}
        return own & stream.fields().keys() | {right for _, right in join.on}
    return used & stream.fields().keys() | {left for left, _ in join.on}


def _columns_raised(raised: Raised) -> set[str]:
    return set(raised.id_fields) | _read(value for _, value in raised.fields)


def _columns_of_steps(steps: Steps) -> set[str]:
    return _read(step.condition if isinstance(step, Where) else step.value for step in steps)


def _read(expressions: Iterable[Expression | None]) -> set[str]:
    return {name for expression in expressions if expression is not None for name in columns_of(expression)}


def kept_of(join: JoinPipeline, stream: Records) -> tuple[str, ...]:
    """Fields of a joined record that are kept, the `on` fields first."""
    on = tuple(dict.fromkeys(pair[stream is join.join.right] for pair in join.join.on))
    return (*on, *sorted(columns_after(join, stream) - {*on, stream.source.key}))


def field_behind(steps: Steps, name: str) -> str:
    """The record's field that a name stands for behind some steps."""
    for step in reversed(steps):
        if isinstance(step, Derive) and step.name == name and isinstance(step.value, Column):
            name = step.value.name
    return name


def unique_names(pipelines: Mapping[str, Pipeline]) -> None:
    """Raises: SetupError when two pipelines write alerts under one rule, tiles of one view, or one topic of rows."""
    seen: dict[str, str] = {}
    for name, pipeline in pipelines.items():
        raised = raised_by(pipeline)
        target = f"topic {pipeline.topic}" if raised is None else f"rule {raised.rule}"
        if target in seen:
            raise SetupError(name, f"{target} is written by {seen[target]} already")
        seen[target] = name


def _signed(duration_ms: int) -> str:
    return format_duration(duration_ms) if duration_ms >= 0 else f"-{format_duration(-duration_ms)}"
