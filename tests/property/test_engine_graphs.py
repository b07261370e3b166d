"""Generated pipelines over generated events, the engine killed in between, against a plain reading of the same graph.

The reading evaluates expressions as trees over Decimal dollars; nothing that compiles them is used.
"""

import json
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Annotated, Any

import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st

from app.broker.memory import MemoryBroker
from app.core.clock import Clock, run_virtual
from app.core.codec import Usd, encode
from app.core.record import Record
from app.streams.expressions import Binary, Column, Expression, Kind, Literal, Not, OneOf, literal
from app.streams.graph import (
    Aggregate,
    Alert,
    AlertPipeline,
    LivePipeline,
    Pipeline,
    Stream,
    Topic,
    TumblingPipeline,
    Where,
    count,
    total,
)
from tests.examples import examples
from tests.killed_broker import run_killed
from tests.reference import SourceRecord, escaped

START_MS = 1_800_000_000_000
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


class Sale(msgspec.Struct):
    sale_id: Annotated[str, msgspec.Meta(max_length=200)]
    shop: str
    price: Usd
    items: int
    note: str
    gift: bool


class Flag(Alert, frozen=True):
    price: Usd
    items: int
    note: str
    gift: bool


TEXTS = ("", "a", "b", "it's", 'say "x"', "back\\slash", "zażółć", "line\nend", "{x}%s")
DOLLARS = (0, 1, 20, 0.1, 12.5, Decimal("0.50"), Decimal("99.99"), Decimal(10_000))

shops, sale_ids = st.sampled_from(["s1", "s:2", 'ş"3']), st.sampled_from(["1", "2", "a:b", "%3A", "\u0007"])
values = st.builds(
    lambda *fields: dict(zip(Sale.__struct_fields__, fields, strict=True)),
    sale_ids,
    shops,
    st.sampled_from(["0", "0.01", "1", "12.5", "20.00", "99.99", "10000", "250000.07"]).map(Decimal),
    st.integers(-3, 40),
    st.sampled_from(TEXTS),
    st.booleans(),
)
steps_ms = st.one_of(st.integers(0, 4_000), st.integers(-20_000, 60_000))
edges_ms = st.sampled_from([0, 5_000, 5_000, 5_000, 10_000, 15_000, -5_000, -10_000, -15_000, 60_000, -60_000, 1])
contents = st.one_of(values, values, values, st.none())
events = st.one_of(
    st.lists(st.tuples(steps_ms, contents), min_size=5, max_size=40),
    st.lists(st.tuples(edges_ms, contents), min_size=5, max_size=40),
)


@st.composite
def expressions(draw: st.DrawFn, kind: Kind, fields: Mapping[str, Kind], depth: int = 2) -> Expression:
    """Trees of one kind over the fields."""

    def inner(kind: Kind) -> Expression:
        return draw(expressions(kind, fields, depth - 1))

    if depth == 0 or draw(st.integers(0, 3)) == 0:
        return Column(draw(st.sampled_from([name for name, found in fields.items() if found is kind])))
    match kind:
        case Kind.MONEY:
            way = draw(st.sampled_from(["+", "-", "constant", "times", "amount"]))
            if way == "amount":
                return Literal(draw(st.sampled_from([Decimal("0.50"), Decimal("7.10")])))
            if way == "times":
                return inner(Kind.MONEY) * inner(Kind.INTEGER)
            amount = literal(draw(st.sampled_from(DOLLARS))) if way == "constant" else inner(Kind.MONEY)
            return Binary("-" if way == "-" else "+", inner(Kind.MONEY), amount)
        case Kind.INTEGER:
            number = literal(draw(st.integers(-3, 9))) if draw(st.booleans()) else inner(Kind.INTEGER)
            return Binary(draw(st.sampled_from("+-*")), inner(Kind.INTEGER), number)
        case Kind.TEXT:
            return Literal(draw(st.sampled_from(TEXTS)))
    return draw(conditions(fields, depth))


@st.composite
def conditions(draw: st.DrawFn, fields: Mapping[str, Kind], depth: int) -> Expression:
    """Comparisons and their combinations."""

    def inner(kind: Kind) -> Expression:
        return draw(expressions(kind, fields, depth - 1))

    way = draw(st.sampled_from(["compare", "compare", "in", "and", "or", "not", "same"]))
    if way in ("and", "or"):
        left, right = inner(Kind.BOOLEAN), inner(Kind.BOOLEAN)
        return left & right if way == "and" else left | right
    if way == "not":
        return ~inner(Kind.BOOLEAN)
    if way == "same":
        return inner(Kind.BOOLEAN) == draw(st.one_of(st.booleans(), st.builds(inner, st.just(Kind.BOOLEAN))))
    kind = draw(st.sampled_from([Kind.MONEY, Kind.INTEGER, Kind.TEXT]))
    constants = st.sampled_from({Kind.MONEY: DOLLARS, Kind.INTEGER: (-2, 0, 3, 12), Kind.TEXT: TEXTS}[kind])
    if way == "in":
        return inner(kind).is_in(*draw(st.lists(constants, min_size=1, max_size=3)))
    right = literal(draw(constants)) if draw(st.booleans()) else inner(kind)
    return Binary(draw(st.sampled_from(["<", "<=", ">", ">=", "==", "!="])), inner(kind), right)


@st.composite
def aggregates(draw: st.DrawFn, fields: Mapping[str, Kind]) -> Aggregate:
    when = draw(st.one_of(st.none(), expressions(Kind.BOOLEAN, fields)))
    if draw(st.booleans()):
        return count(when=when)
    return total(draw(expressions(draw(st.sampled_from([Kind.INTEGER, Kind.MONEY])), fields)), when=when)


@st.composite
def pipelines_of(draw: st.DrawFn, topic: Topic, number: int) -> Pipeline:
    stream: Stream = topic
    once = draw(st.sampled_from([None, None, ("sale_id", "20s"), ("sale_id", "2m"), ("note", "20s")]))
    if once is not None:
        stream = stream.once(once[0], within=once[1])
    for step in range(draw(st.integers(0, 3))):
        kind = draw(st.sampled_from([Kind.MONEY, Kind.INTEGER, Kind.TEXT, Kind.BOOLEAN]))
        if draw(st.booleans()):
            stream = stream.where(draw(expressions(Kind.BOOLEAN, stream.fields())))
        else:
            stream = stream.derive(**{f"derived{step}": draw(expressions(kind, stream.fields()))})
    fields = stream.fields()
    end = draw(st.sampled_from(["alert", "live", "tumbling", "tumbling"]))
    if end == "alert":
        kinds = {"price": Kind.MONEY, "items": Kind.INTEGER, "note": Kind.TEXT, "gift": Kind.BOOLEAN}
        shown: dict[str, Any] = {
            name: draw(expressions(kind, fields)) for name, kind in kinds.items() if draw(st.booleans())
        }
        return stream.alert(Flag, id="sale_id", rule=f"rule{number}", **shown)
    sums = {f"sum{index}": draw(aggregates(fields)) for index in range(draw(st.integers(1, 3)))}
    if end == "live":
        size, tile = draw(st.sampled_from([("1m", "10s"), ("30s", "30s"), ("5m", "1m")]))
        return stream.live(size, tile=tile).aggregate(**sums).serve(f"view{number}")
    return stream.tumbling(draw(st.sampled_from(["10s", "10s", "1m", "7s"]))).aggregate(**sums).to(f"rows{number}")


@st.composite
def graphs(draw: st.DrawFn) -> tuple[Topic, dict[str, Pipeline]]:
    lateness = draw(st.sampled_from(["1ms", "5s", "5s", "20s"]))
    topic = Topic("sales", Sale, key="shop", out_of_orderness=lateness, partitions=2)
    return topic, {f"p{number}": draw(pipelines_of(topic, number)) for number in range(draw(st.integers(1, 4)))}


def value_of(expression: Expression, row: Mapping[str, Any]) -> Any:
    """What a tree means; money is Decimal dollars."""
    match expression:
        case Column(name):
            return row[name]
        case Literal(value):
            return Decimal(str(value)) if isinstance(value, float) else value
        case Not(inner):
            return not value_of(inner, row)
        case OneOf(inner, choices):
            return any(value_of(inner, row) == value_of(choice, row) for choice in choices)
        case Binary(operator, left, right):
            return combined(operator, value_of(left, row), value_of(right, row))
    raise AssertionError(expression)


def combined(operator: str, left: Any, right: Any) -> Any:
    return {
        "and": lambda: left and right,
        "or": lambda: left or right,
        "+": lambda: left + right,
        "-": lambda: left - right,
        "*": lambda: left * right,
        "<": lambda: left < right,
        "<=": lambda: left <= right,
        ">": lambda: left > right,
        ">=": lambda: left >= right,
        "==": lambda: left == right,
        "!=": lambda: left != right,
    }[operator]()


@dataclass
class Outputs:
    """What pipelines give, by where it comes from: alerts by rule and source record, rows and tiles by pipeline, shop,
    start and partition."""

    alerts: dict[tuple[str, str], Any] = field(default_factory=dict)
    rows: dict[tuple[str, str, int, int], Any] = field(default_factory=dict)
    tiles: dict[tuple[str, str, int, int], Any] = field(default_factory=dict)
    late: set[tuple[str, int, int]] = field(default_factory=set)


class PlainReading:
    """Reads the records one after another, each pipeline by itself."""

    def __init__(self, topic: Topic, pipelines: Mapping[str, Pipeline]) -> None:
        self.outputs = Outputs()
        self._lateness_ms = topic.source.out_of_orderness_ms
        # live ones first, so that an alert knows for which it is late
        self._pipelines = sorted(pipelines.items(), key=lambda item: not isinstance(item[1], LivePipeline))
        self._reached: dict[int, int] = {}
        self._sightings: dict[Any, int] = {}
        self._windows: dict[tuple[str, str, int, int], tuple[int, list[Any]]] = {}

    def read(self, record: SourceRecord) -> None:
        t, partition = record.timestamp_ms, record.partition
        m = self._reached[partition] = max(t, self._reached.get(partition, t))
        if record.key is None:
            return
        event = json.loads(record.value or b"", parse_float=Decimal)
        event["price"] = Decimal(event["price"])
        repeats, late_for = self._repeats(event, partition, t, m), list[str]()
        for name, pipeline in self._pipelines:
            rule = pipeline.stream.once_rule
            row = None if rule and repeats[str(rule)] else passed(pipeline.stream, event)
            if row is None:
                continue
            if isinstance(pipeline, AlertPipeline):
                self.outputs.alerts[pipeline.rule, f"sales/{partition}/{record.offset}"] = {
                    "alert_id": f"{pipeline.rule}:{escaped(row['shop'])}:{escaped(row['sale_id'])}",
                    "triggered_at": EPOCH + timedelta(milliseconds=t),
                    "late_for": ",".join(late_for),
                    **{name: value_of(shown, row) for name, shown in pipeline.fields},
                }
            elif not self._count(name, pipeline, row, record, m):
                self.outputs.late.add((name, partition, record.offset))
                late_for += [name] if isinstance(pipeline, LivePipeline) else []

    def _repeats(self, event: Mapping[str, Any], partition: int, t: int, m: int) -> dict[str, bool]:
        """By rule: whether the id was seen, and is not forgotten yet."""
        found = {}
        for rule in {str(p.stream.once_rule): p.stream.once_rule for _, p in self._pipelines}.values():
            if rule is not None:
                sighting = (str(rule), partition, event["shop"], event[rule.field])
                last = self._sightings.get(sighting)
                self._sightings[sighting] = t if last is None else max(t, last)
                found[str(rule)] = last is not None and m - last <= rule.within_ms
        return found

    def _count(self, name: str, pipeline: Any, row: Mapping[str, Any], record: SourceRecord, m: int) -> bool:
        """False for a late one."""
        live = isinstance(pipeline, LivePipeline)
        size_ms = pipeline.tile_ms if live else pipeline.size_ms
        start = record.timestamp_ms - record.timestamp_ms % size_ms
        if start + size_ms - 1 <= m - self._lateness_ms - 1:
            return False
        slices = self.outputs.tiles if live else self._windows
        where = (name, row["shop"], start, record.partition)
        _, sums = slices.get(where, (0, [0] * len(pipeline.aggregates)))
        added = list(sums)
        for index, (_, aggregate) in enumerate(pipeline.aggregates):
            if aggregate.when is None or value_of(aggregate.when, row):
                added[index] += 1 if aggregate.value is None else value_of(aggregate.value, row)
        slices[where] = (record.offset, added)
        return True

    def close(self) -> None:
        """Rows of the windows that are over."""
        sizes_ms = {name: p.size_ms for name, p in self._pipelines if isinstance(p, TumblingPipeline)}
        for where, (_, sums) in self._windows.items():
            name, _, start, partition = where
            if start + sizes_ms[name] - 1 <= self._reached[partition] - self._lateness_ms - 1:
                self.outputs.rows[where] = sums


def passed(stream: Stream, event: Mapping[str, Any]) -> dict[str, Any] | None:
    """The event with what is derived, or None when a condition does not hold."""
    row = dict(event)
    for step in stream.steps:
        if isinstance(step, Where):
            if not value_of(step.condition, row):
                return None
        else:
            row[step.name] = value_of(step.value, row)
    return row


def written(broker: MemoryBroker, pipelines: Mapping[str, Pipeline]) -> Outputs:
    """What the engine has left in the topics; what came twice must be the same."""
    found, logs = Outputs(), defaultdict[str, list[Record]](list)
    for place, log in broker.logs.items():
        logs[place.topic] += log
    for record in logs["processed.alerts"]:
        alert = json.loads(record.value or b"", parse_float=Decimal)
        assert "flag" == alert.pop("alert_type")
        alert["triggered_at"] = datetime.fromisoformat(alert["triggered_at"])
        alert["late_for"] = (record.header("late_for") or b"").decode()
        rule, origin = alert["alert_id"].split(":")[0], (record.header("origin") or b"").decode()
        assert alert == found.alerts.setdefault((rule, origin), alert)
    for name, pipeline in pipelines.items():
        for record in logs[pipeline.topic] if not isinstance(pipeline, AlertPipeline) else []:
            key, value = json.loads(record.key or b""), json.loads(record.value or b"", parse_float=Decimal)
            if "progress" in key:
                continue
            sums = [value[output] for output, _ in getattr(pipeline, "aggregates", ())]
            where = (name, key["shop"], key.get("tile", key.get("window_start")), record.partition)
            if isinstance(pipeline, LivePipeline):
                found.tiles[where] = max(found.tiles.get(where, (-1, [])), (value["version"], sums), key=lambda v: v[0])
            else:
                assert (key["window_start"] + pipeline.size_ms, key["shop"]) == (value["window_end"], value["shop"])  # type: ignore[union-attr]
                assert sums == found.rows.setdefault(where, sums)
    for record in logs["sales.late"]:
        late = json.loads(record.value or b"")
        found.late.add((late["pipeline"], late["partition"], late["offset"]))
    assert [] == logs["sales.dead"]
    return found


@given(graph=graphs(), plan=events, kills=st.lists(st.integers(0, 40), max_size=2), seed=st.integers(0, 99))
@settings(max_examples=examples(300))
def test_engine_any_graph_gives_what_its_plain_reading_gives(
    graph: tuple[Topic, dict[str, Pipeline]], plan: list[Any], kills: list[int], seed: int
) -> None:
    """Whatever is declared, over whatever events: the same alerts, rows, tiles and late references."""
    topic, pipelines = graph
    records, reading, time_ms, ends = [], PlainReading(topic, pipelines), START_MS, [0, 0]
    for step_ms, value in plan:
        time_ms += step_ms
        partition = sum(value["shop"].encode()) % 2 if value else time_ms % 2
        key, data = (value["shop"].encode(), encode(value)) if value else (None, b'{"heartbeat":true}')
        records.append(SourceRecord(partition, ends[partition], time_ms, key, data))
        ends[partition] += 1
    for record in records:
        reading.read(record)
    reading.close()

    async def main(clock: Clock) -> None:
        broker = await run_killed(clock, topic.source, pipelines, records, kills, seed)
        assert reading.outputs == written(broker, pipelines)

    run_virtual(main, START_MS)
