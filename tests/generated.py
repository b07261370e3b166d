"""Generated declarations over generated events: of everything that can be declared, in every combination that makes sense."""

from collections.abc import Mapping
from datetime import datetime
from decimal import Decimal
from typing import Annotated, Any, NamedTuple
from typing import Literal as OneOf

import msgspec
from hypothesis import strategies as st

from app.core.codec import Usd
from app.streams.aggregates import Aggregate
from app.streams.expressions import Binary, Column, Expression, Kind, Literal, col, literal
from app.streams.graph import Alert, Stream, Topic, count, maximum, mean, minimum, total
from app.streams.pipelines import Pipeline

START_MS = 1_800_000_000_000

Id = Annotated[str, msgspec.Meta(max_length=100)]
Moment = Annotated[datetime, msgspec.Meta(tz=True)]


class Sale(msgspec.Struct):
    sale_id: Id
    shop: str
    price: Usd
    items: Annotated[int, msgspec.Meta(ge=-1_000, le=1_000)]
    note: str
    gift: bool
    weight: Annotated[float, msgspec.Meta(ge=-1e6, le=1e6)]
    state: OneOf["new", "old", "it's"]
    at: Moment
    due: Moment
    place: str = "here"


class Flag(Alert, frozen=True):
    price: Usd
    items: int
    note: str
    gift: bool
    weight: float
    at: Moment


class Crowd(Alert, frozen=True):
    shop: str
    sum0: int
    window_start: Moment
    window_end: Moment


class Met(Alert, frozen=True):
    price: Usd
    other: Usd
    note: str


class Maybe(Alert, frozen=True):
    price: Usd
    other: Usd | None
    other_note: str | None


TEXTS = ("", "a", "b", "it's", 'say "x"', "back\\slash", "zażółć", "line\nend", "{x}%s")
DOLLARS = (0, 1, 20, 0.1, 12.5, Decimal("0.50"), Decimal("99.99"), Decimal(10_000))

NUMBERS = (0, 1.5, -0.25, 1e-3, 12)
MOMENTS = ("2026-11-30T10:00:00Z", "2026-11-30T10:00:00.5Z", "2026-11-30T10:00:00.500001Z", "1999-12-31T23:59:59Z")

KINDS = {
    "price": Kind.MONEY,
    "items": Kind.INTEGER,
    "note": Kind.TEXT,
    "gift": Kind.BOOLEAN,
    "weight": Kind.NUMBER,
    "at": Kind.TIME,
}
"""Of what alerts show."""


class Planned(NamedTuple):
    """One record of a generated log. step_ms: after the one before. sale: None for a heartbeat."""

    topic: int
    step_ms: int
    sale: dict[str, Any] | None


shops, sale_ids = st.sampled_from(["s1", "s:2", 'ş"3']), st.sampled_from(["1", "2", "a:b", "%3A", "\u0007"])
sales = st.builds(
    lambda *fields: {n: v for n, v in zip(Sale.__struct_fields__, fields, strict=True) if v is not None},
    sale_ids,
    shops,
    st.sampled_from(["0", "0.01", "1", "12.5", "20.00", "99.99", "10000", "250000.07"]).map(Decimal),
    st.integers(-3, 40),
    st.sampled_from(TEXTS),
    st.booleans(),
    st.sampled_from([0, 1, -1, 0.1, 0.25, 1e-7, 123456.789, -1e6]),
    st.sampled_from(["new", "old", "it's"]),
    st.sampled_from(MOMENTS),
    st.sampled_from(MOMENTS),
    st.sampled_from([None, "here", "there", ""]),
)
steps_ms = st.one_of(st.integers(0, 4_000), st.integers(-20_000, 60_000))
edges_ms = st.sampled_from([0, 5_000, 5_000, 5_000, 10_000, 15_000, -5_000, -10_000, -15_000, 60_000, -60_000, 1])
contents = st.one_of(sales, sales, sales, st.none())


def logs(topics: int, least: int = 5) -> st.SearchStrategy[list[Planned]]:
    """Records of the first so many topics: jitter, late ones, repeats, equal times, edges of slices, heartbeats."""
    which = st.integers(0, topics - 1)
    return st.one_of(
        st.lists(st.builds(Planned, which, steps_ms, contents), min_size=least, max_size=8 * least),
        st.lists(st.builds(Planned, which, edges_ms, contents), min_size=least, max_size=8 * least),
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
        case Kind.NUMBER:
            of = draw(st.sampled_from([Kind.NUMBER, Kind.NUMBER, Kind.INTEGER]))
            if of is Kind.INTEGER:
                return inner(Kind.NUMBER) * inner(of)
            number = literal(float(draw(st.sampled_from(NUMBERS)))) if draw(st.booleans()) else inner(of)
            return Binary(draw(st.sampled_from("+-*")), inner(of), number)
        case Kind.TEXT:
            return Literal(draw(st.sampled_from(TEXTS)))
        case Kind.TIME:  # there are no constants, and nothing is computed of them
            return inner(kind)
    return draw(conditions(fields, depth))


COMPARISONS = ["<", "<=", ">", ">=", "==", "!="]


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
    kind = draw(st.sampled_from([Kind.MONEY, Kind.INTEGER, Kind.TEXT, Kind.NUMBER, Kind.TIME]))
    if kind is Kind.TIME:
        return Binary(draw(st.sampled_from(COMPARISONS)), inner(kind), inner(kind))
    numbers = tuple(map(float, NUMBERS))
    choices = {Kind.MONEY: DOLLARS, Kind.INTEGER: (-2, 0, 3, 12), Kind.TEXT: TEXTS, Kind.NUMBER: numbers}[kind]
    constants: st.SearchStrategy[Any] = st.sampled_from(choices)
    if way == "in":
        return inner(kind).is_in(*draw(st.lists(constants, min_size=1, max_size=3)))
    right = literal(draw(constants)) if draw(st.booleans()) else inner(kind)
    return Binary(draw(st.sampled_from(COMPARISONS)), inner(kind), right)


@st.composite
def aggregates(draw: st.DrawFn, fields: Mapping[str, Kind]) -> Aggregate:
    when = draw(st.one_of(st.none(), expressions(Kind.BOOLEAN, fields)))
    function = draw(st.sampled_from(["count", "total", "minimum", "maximum", "mean"]))
    if function == "count":
        return count(when=when)
    value = draw(expressions(draw(st.sampled_from([Kind.INTEGER, Kind.MONEY])), fields))
    return {"total": total, "minimum": minimum, "maximum": maximum, "mean": mean}[function](value, when=when)


Onces = list[tuple[str, str]]

ONCES: Onces = [("sale_id", "20s"), ("sale_id", "2m"), ("note", "20s")]


@st.composite
def streams(draw: st.DrawFn, topic: Topic, onces: Onces = ONCES) -> Stream:
    """Some steps of any kind."""
    stream: Stream = topic
    once = draw(st.sampled_from([None, None, *onces]))
    if once is not None:
        stream = stream.once(once[0], within=once[1])
    for step in range(draw(st.integers(0, 3))):
        kind = draw(st.sampled_from(list(KINDS.values())))
        if draw(st.booleans()):
            stream = stream.where(draw(expressions(Kind.BOOLEAN, stream.fields())))
        else:
            stream = stream.derive(**{f"derived{step}": draw(expressions(kind, stream.fields()))})
    return stream


@st.composite
def alerts(draw: st.DrawFn, stream: Stream, number: int) -> Pipeline:
    """Of single records, or of bursts."""
    fields = stream.fields()
    shown: dict[str, Any] = {n: draw(expressions(kind, fields)) for n, kind in KINDS.items() if draw(st.booleans())}
    named: dict[str, Any] = draw(st.sampled_from([{"id": "sale_id"}, {"at_most_once_per": "20s"}]))
    source: Any = stream
    if draw(st.booleans()):
        source = stream.burst(count=draw(st.integers(2, 4)), within=draw(st.sampled_from(["5s", "1m", "10m"])))
    pipeline: Pipeline = source.alert(Flag, rule=f"rule{number}", **named, **shown)
    return pipeline


@st.composite
def windows(draw: st.DrawFn, stream: Stream, number: int) -> Pipeline:
    """Live ones, and final ones to a topic or as alerts."""
    fields = stream.fields()
    sums = {f"sum{index}": draw(aggregates(fields)) for index in range(draw(st.integers(1, 3)))}
    kind = draw(st.sampled_from(["live", "tumbling", "hopping", "session"]))
    if kind == "live":
        size, tile = draw(st.sampled_from([("1m", "10s"), ("30s", "30s"), ("5m", "1m")]))
        return stream.live(size, tile=tile).aggregate(**sums).serve(f"view{number}")
    if kind == "tumbling":
        windowed = stream.tumbling(draw(st.sampled_from(["10s", "1m", "7s"])))
    elif kind == "hopping":
        size, step = draw(st.sampled_from([("30s", "10s"), ("10s", "5s"), ("2m", "30s"), ("7s", "7s")]))
        windowed = stream.hopping(size, step=step)
    else:
        windowed = stream.session(gap=draw(st.sampled_from(["1ms", "5s", "20s", "1m"])))
    if draw(st.booleans()):
        final = windowed.aggregate(**{**sums, "sum0": count()})
        if draw(st.booleans()):
            final = final.having(col.sum0 > draw(st.integers(0, 2)))
        return final.alert(Crowd, rule=f"rule{number}")
    final = windowed.aggregate(**sums)
    if sums["sum0"].may_be_nothing or draw(st.booleans()):
        return final.to(f"rows{number}")
    edge = 2 if final.aggregates.outputs[0].kind is Kind.INTEGER else Decimal(20)
    return final.having(col.sum0 > edge).to(f"rows{number}")


BOUNDS = [("0s", "10s"), ("-5s", "5s"), ("1ms", "20s"), ("-10s", "-1s"), ("0s", "0s"), ("-1m", "1m")]


@st.composite
def joins(draw: st.DrawFn, left: Stream, right: Stream, number: int) -> Pipeline:
    """Pairs, pairs and lone ones, lone ones."""
    how = draw(st.sampled_from(["inner", "left", "missing"]))
    on: Any = draw(st.sampled_from([(), "note", ("note", "gift")]))
    within = draw(st.sampled_from(BOUNDS))
    pairs = left.join(right, on=on, within=within, prefix="other_", how="left" if how == "left" else "inner")
    rule = f"rule{number}"
    if how == "missing":
        return pairs.missing().alert(Flag, id="sale_id", rule=rule)
    if how == "left":
        return pairs.alert(Maybe, id="sale_id", rule=rule, other=col.other_price, other_note=col.other_note)
    if draw(st.booleans()):
        pairs = pairs.where(col.price != col.other_price)
    return pairs.alert(Met, id=("sale_id", "other_sale_id"), rule=rule, other=col.other_price)


def sales_topic(draw: st.DrawFn, name: str, partitions: int) -> Topic:
    lateness = draw(st.sampled_from(["1ms", "5s", "5s", "20s"]))
    return Topic(name, Sale, key="shop", out_of_orderness=lateness, partitions=partitions)


@st.composite
def graphs(draw: st.DrawFn, partitions: int = 2) -> tuple[Topic, dict[str, Pipeline]]:
    """Pipelines on one topic."""
    topic = sales_topic(draw, "sales", partitions)
    pipelines = {}
    for number in range(draw(st.integers(1, 4))):
        stream = draw(streams(topic))
        kind = draw(st.sampled_from([alerts, windows, windows]))
        pipelines[f"p{number}"] = draw(kind(stream, number))
    return topic, pipelines


@st.composite
def joined_graphs(
    draw: st.DrawFn,
    partitions: int = 2,
    names: tuple[str, str] = ("sales", "others"),
    most: int = 4,
    onces: Onces = ONCES,
) -> tuple[list[str], dict[str, Pipeline]]:
    """Pipelines on two topics, each read by one of them at least, and joins between them and of one with itself. As a rule
    rules and outputs are told apart by the pipeline's number."""
    topics = [sales_topic(draw, name, partitions) for name in names]
    pipelines: dict[str, Pipeline] = {
        "first": topics[0].alert(Flag, id="sale_id", rule="first"),
        "second": topics[1].alert(Flag, id="sale_id", rule="second"),
    }
    for number in range(draw(st.integers(1, most))):
        stream = draw(streams(draw(st.sampled_from(topics)), onces))
        kind = draw(st.sampled_from(["alerts", "windows", "windows", "joins"]))
        if kind == "joins":
            other = draw(streams(draw(st.sampled_from(topics)), onces))
            pipelines[f"p{number}"] = draw(joins(stream, other, number))
        else:
            pipelines[f"p{number}"] = draw((alerts if kind == "alerts" else windows)(stream, number))
    return [topic.source.spec.name for topic in topics], pipelines
