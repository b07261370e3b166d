"""Generated pipelines over generated events, the engine killed in between, against a plain reading of the same graph.

The reading evaluates expressions as trees over Decimal dollars; nothing that compiles them is used.
"""

from collections.abc import Mapping
from datetime import UTC, datetime
from decimal import Decimal
from typing import Annotated, Any

import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st

from app.core.clock import Clock, run_virtual
from app.core.codec import Usd, encode
from app.streams.aggregates import Aggregate
from app.streams.expressions import Binary, Column, Expression, Kind, Literal, col, literal
from app.streams.graph import Alert, Stream, Topic, count, maximum, mean, minimum, total
from app.streams.pipelines import (
    Pipeline,
)
from tests.examples import examples
from tests.killed_broker import run_killed
from tests.plain_reading import PlainReading, written
from tests.reference import SourceRecord

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


class Crowd(Alert, frozen=True):
    shop: str
    sum0: int
    window_start: Annotated[datetime, msgspec.Meta(tz=True)]
    window_end: Annotated[datetime, msgspec.Meta(tz=True)]


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
    make = draw(st.sampled_from([count, total, minimum, maximum, mean]))
    if make is count:
        return count(when=when)
    return make(draw(expressions(draw(st.sampled_from([Kind.INTEGER, Kind.MONEY])), fields)), when=when)  # type: ignore[operator, no-any-return]


@st.composite
def steps_behind(draw: st.DrawFn, topic: Topic) -> Stream:
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
    return stream


@st.composite
def pipelines_of(draw: st.DrawFn, topic: Topic, number: int) -> Pipeline:
    stream = draw(steps_behind(topic))
    fields = stream.fields()
    end = draw(st.sampled_from(["alert", "burst", "live", "tumbling", "hopping", "session"]))
    if end in ("alert", "burst"):
        kinds = {"price": Kind.MONEY, "items": Kind.INTEGER, "note": Kind.TEXT, "gift": Kind.BOOLEAN}
        shown: dict[str, Any] = {
            name: draw(expressions(kind, fields)) for name, kind in kinds.items() if draw(st.booleans())
        }
        named: dict[str, Any] = draw(st.sampled_from([{"id": "sale_id"}, {"at_most_once_per": "20s"}]))
        source: Any = stream
        if end == "burst":
            source = stream.burst(count=draw(st.integers(2, 4)), within=draw(st.sampled_from(["5s", "1m", "10m"])))
        return source.alert(Flag, rule=f"rule{number}", **named, **shown)  # type: ignore[no-any-return]
    sums = {f"sum{index}": draw(aggregates(fields)) for index in range(draw(st.integers(1, 3)))}
    if end == "live":
        size, tile = draw(st.sampled_from([("1m", "10s"), ("30s", "30s"), ("5m", "1m")]))
        return stream.live(size, tile=tile).aggregate(**sums).serve(f"view{number}")
    if end == "tumbling":
        windowed = stream.tumbling(draw(st.sampled_from(["10s", "1m", "7s"])))
    elif end == "hopping":
        size, step = draw(st.sampled_from([("30s", "10s"), ("10s", "5s"), ("2m", "30s"), ("7s", "7s")]))
        windowed = stream.hopping(size, step=step)
    else:
        windowed = stream.session(gap=draw(st.sampled_from(["1ms", "5s", "20s", "1m"])))
    if draw(st.booleans()):
        sums["sum0"] = count()
        raised = windowed.aggregate(**sums)
        if draw(st.booleans()):
            raised = raised.having(col.sum0 > draw(st.integers(0, 2)))
        return raised.alert(Crowd, rule=f"rule{number}")
    final = windowed.aggregate(**sums)
    if sums["sum0"].may_be_nothing or draw(st.booleans()):
        return final.to(f"rows{number}")
    edge = 2 if final.aggregates.outputs[0].kind is Kind.INTEGER else Decimal(20)
    return final.having(col.sum0 > edge).to(f"rows{number}")


@st.composite
def graphs(draw: st.DrawFn) -> tuple[Topic, dict[str, Pipeline]]:
    lateness = draw(st.sampled_from(["1ms", "5s", "5s", "20s"]))
    topic = Topic("sales", Sale, key="shop", out_of_orderness=lateness, partitions=2)
    return topic, {f"p{number}": draw(pipelines_of(topic, number)) for number in range(draw(st.integers(1, 4)))}


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
