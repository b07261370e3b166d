"""Declared streams: a topic, what happens to its records, and where the result goes. Frozen data, no code runs here.

    orders = Topic("raw.orders", OrderEvent, key="user_id", out_of_orderness="5s").once("order_id", within="1m")
    large = orders.where(col.amount_usd > 10_000).alert(HighValueOrder, id="order_id")
    series = orders.burst(count=5, within="5m").alert(OrderBurst, id="order_id")
    per_user = orders.live("5m", tile="30s").aggregate(order_count_5m=count()).serve("user_features")
    rate = orders.tumbling("5m").aggregate(order_count_5m=count()).to("features.order_rate_5m")
    unpaid = orders.join(payments, on="order_id", within=("0s", "1h"), prefix="payment_").missing().alert(...)

A mistake in a declaration is a `SetupError` on the line that makes it.
"""

import re
from dataclasses import dataclass, replace
from typing import Literal, NoReturn

import msgspec

from app.broker.topics import MAX_AHEAD_MS, TopicSpec
from app.core.durations import parse_duration_ms
from app.core.errors import SetupError
from app.streams.aggregates import Aggregate, count, maximum, mean, minimum, total
from app.streams.declaring import (
    RESERVED,
    aggregates_of,
    raised_by_records,
    raised_of,
    require_bounded,
    signed_ms,
    with_derived,
    with_where,
)
from app.streams.expressions import (
    Expression,
    Kind,
    columns_of,
    field_kinds,
    kind_of,
    literal,
)
from app.streams.pipelines import (
    Aggregates,
    Alert,
    AlertPipeline,
    Burst,
    FinalPipeline,
    Hopping,
    Join,
    JoinPipeline,
    LivePipeline,
    Once,
    Records,
    Session,
    Source,
    Steps,
    fields_after,
)

__all__ = ["Alert", "Stream", "Topic", "count", "maximum", "mean", "minimum", "total"]

MAX_BURST = 1_000
"""Records of a key that a burst remembers."""

MOST_STEPS = 1_440
"""Steps in a hopping window: each is merged into each of its windows."""

ALERTS = "processed.alerts"


@dataclass(frozen=True, eq=False)
class Stream(Records):
    """Records of one source after some steps. Every method returns a new one."""

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
        return Stream(self.source, self.once_rule, with_where(self.steps, condition, self.fields()))

    def derive(self, **values: Expression) -> "Stream":
        """New fields, in the order given; a later one may use an earlier one."""
        known, taken = field_kinds(self.source.spec.type), self.source.spec.type.__struct_fields__
        return Stream(self.source, self.once_rule, with_derived(self.steps, values, known, taken))

    def alert(
        self,
        alert_type: type[Alert],
        *,
        id: str | None = None,
        at_most_once_per: str | None = None,
        rule: str | None = None,
        to: str = ALERTS,
        **values: Expression,
    ) -> AlertPipeline:
        """One alert a record, `alert_id` = rule:key:id. Its other fields come from the record's of the same name, or
        from `values`. rule: the alert type's tag unless given; unique in an application.

        at_most_once_per: instead of `id`, only the first record of a key in each slice of that length (aligned to the
        epoch) raises one, `alert_id` = rule:key:start of the slice in ms.
        """
        return AlertPipeline(self, raised_by_records(self, alert_type, id, at_most_once_per, rule, to, values))

    def burst(self, *, count: int, within: str) -> "Bursts":
        """The records at which the last `count` of their key have come within the given event time, and one record
        earlier they had not."""
        within_ms = parse_duration_ms(within, "burst(within=...)")
        if not 2 <= count <= MAX_BURST:
            raise SetupError(f"burst(count={count})", f"takes 2 to {MAX_BURST:,} records")
        return Bursts(self, Burst(count, within_ms))

    def live(self, size: str, *, tile: str) -> "Live":
        """The last `size` up to now, kept as tiles; fresh on every event, decays by itself."""
        size_ms, tile_ms = parse_duration_ms(size, "live(size)"), parse_duration_ms(tile, "live(tile=...)")
        if tile_ms <= 0 or size_ms % tile_ms or size_ms < tile_ms:
            raise SetupError(f"live({size!r}, tile={tile!r})", "the window must be a whole number of tiles")
        return Live(self, size_ms, tile_ms)

    def tumbling(self, size: str) -> "Windowed":
        """Windows of `size` side by side, aligned to the epoch in UTC."""
        size_ms = parse_duration_ms(size, "tumbling(size)")
        if size_ms <= 0:
            raise SetupError(f"tumbling({size!r})", "must be longer than nothing")
        return Windowed(self, Hopping(size_ms, size_ms))

    def hopping(self, size: str, *, step: str) -> "Windowed":
        """Windows of `size` that begin every `step`, aligned to the epoch in UTC. A record late for its step is late for all
        of its windows."""
        size_ms, step_ms = parse_duration_ms(size, "hopping(size)"), parse_duration_ms(step, "hopping(step=...)")
        if step_ms <= 0 or size_ms % step_ms or size_ms < step_ms:
            raise SetupError(f"hopping({size!r}, step={step!r})", "the window must be a whole number of steps")
        if size_ms > MOST_STEPS * step_ms:
            raise SetupError(
                f"hopping({size!r}, step={step!r})", f"has more than {MOST_STEPS:,} steps; take longer ones"
            )
        return Windowed(self, Hopping(size_ms, step_ms))

    def session(self, *, gap: str) -> "Windowed":
        """From a key's first record to `gap` after its last one; a record at the very end still belongs to it."""
        gap_ms = parse_duration_ms(gap, "session(gap=...)")
        if gap_ms <= 0:
            raise SetupError(f"session(gap={gap!r})", "must be longer than nothing")
        return Windowed(self, Session(gap_ms))

    def join(
        self,
        right: "Stream",
        *,
        within: tuple[str, str],
        prefix: str,
        on: str | tuple[str, ...] = (),
        how: Literal["inner", "left"] = "inner",
    ) -> "Joined":
        """Pairs with records of `right`, of the same key and the same `on` fields, whose event time lies within the two
        bounds after this one's: ("-5m", "30m") is from 5 minutes before to 30 minutes after.

        prefix: stands before the names of the right record's fields. how: `left` also gives each record of this stream
        without a partner, its right fields null, once no partner can come any more.
        """
        lower_ms, upper_ms = (signed_ms(bound) for bound in within)
        where = f"join({right.source.spec.name})"
        if lower_ms > upper_ms:
            raise SetupError(where, f"within={within!r}: the first bound lies behind the second")
        mine, theirs = self.source.spec, right.source.spec
        if mine.partitions != theirs.partitions:
            raise SetupError(
                where,
                f"{mine.name} has {mine.partitions} partitions and {theirs.name} {theirs.partitions}: records of one key "
                "meet only where both topics have the same number",
            )
        names = (on,) if isinstance(on, str) else on
        for name in names:
            kinds = self.fields().get(name), right.fields().get(name)
            if kinds[0] is None or kinds[0] is not kinds[1]:
                raise SetupError(where, f"on={name!r}: it is not a field of both sides, of one kind")
            if kinds[0] is Kind.NUMBER:
                raise SetupError(
                    where,
                    f"on={name!r}: fractions are not told apart alike by all engines; join on a text or a whole number",
                )
        pairs = tuple((name, name) for name in names)
        taken = {prefix + name for name in right.fields()} & self.fields().keys()
        if not prefix.isidentifier() or taken:
            raise SetupError(where, f"prefix={prefix!r}: is no name, or makes a field that is there: {sorted(taken)}")
        copied = Stream(right.source, right.once_rule, right.steps)  # may be this very stream
        return Joined(Join(self, copied, pairs, lower_ms, upper_ms, how, prefix))


@dataclass(frozen=True, eq=False)
class Bursts:
    """The records that complete a burst."""

    stream: Stream
    rule: Burst

    def alert(
        self,
        alert_type: type[Alert],
        *,
        id: str | None = None,
        at_most_once_per: str | None = None,
        rule: str | None = None,
        to: str = ALERTS,
        **values: Expression,
    ) -> AlertPipeline:
        """As `Stream.alert`, of the records that complete a burst."""
        raised = raised_by_records(self.stream, alert_type, id, at_most_once_per, rule, to, values)
        return AlertPipeline(self.stream, raised, self.rule)


@dataclass(frozen=True, eq=False)
class Live:
    """A stream cut into tiles; `aggregate` says what is computed of each."""

    stream: Stream
    size_ms: int
    tile_ms: int

    def aggregate(self, **aggregates: Aggregate) -> "LiveAggregated":
        return LiveAggregated(self, aggregates_of(self.stream, aggregates))


@dataclass(frozen=True, eq=False)
class LiveAggregated:
    live: Live
    aggregates: Aggregates

    def serve(self, view: str) -> LivePipeline:
        """Serves live tiles as features: agents read `view`, Redis holds `view:{entity}`."""
        if view == "headrace" or not re.fullmatch(r"[A-Za-z0-9._-]+", view):
            raise SetupError(
                f"serve({view!r})",
                "a view's name has letters, digits, '.', '_' and '-', and 'headrace' is the store's own",
            )
        return LivePipeline(self.live.stream, self.live.size_ms, self.live.tile_ms, self.aggregates, view)

    def to(self, topic: str) -> NoReturn:
        """Raises: SetupError."""
        raise SetupError(f"to({topic!r})", "live windows have no final row; serve(...) them")


@dataclass(frozen=True, eq=False)
class Windowed:
    """A stream cut into windows; `aggregate` says what is computed of each."""

    stream: Stream
    window: Hopping | Session

    def aggregate(self, **aggregates: Aggregate) -> "Aggregated":
        return Aggregated(self.stream, self.window, aggregates_of(self.stream, aggregates))


@dataclass(frozen=True, eq=False)
class Aggregated:
    """Final rows of windows."""

    stream: Stream
    window: Hopping | Session
    aggregates: Aggregates
    condition: Expression | None = None

    def fields(self) -> dict[str, Kind]:
        """Of a row. Aggregates that may be null are not among them."""
        own = {"window_start": Kind.TIME, "window_end": Kind.TIME, self.stream.source.key: Kind.TEXT}
        return own | {name: kind for name, aggregate, kind in self.aggregates.named if not aggregate.may_be_nothing}

    def having(self, condition: Expression) -> "Aggregated":
        """Only the rows for which the condition on key, window and aggregates holds."""
        condition = literal(condition)
        self._require_certain(f"having{condition}", condition)
        if kind_of(condition, self.fields(), f"having{condition}") is not Kind.BOOLEAN:
            raise SetupError(f"having({condition})", "is not true or false")
        return replace(self, condition=condition if self.condition is None else self.condition & condition)

    def to(self, topic: str) -> FinalPipeline:
        """Writes one final row a key and window."""
        return FinalPipeline(self.stream, self.window, self.aggregates, self.condition, topic)

    def serve(self, view: str) -> NoReturn:
        """Raises: SetupError."""
        raise SetupError(f"serve({view!r})", "only live windows are served; write the others to(...) a topic")

    def alert(
        self, alert_type: type[Alert], *, rule: str | None = None, to: str = ALERTS, **values: Expression
    ) -> FinalPipeline:
        """One alert a row, `alert_id` = rule:key:start of the window in ms, `triggered_at` the window's end. Its other fields
        come from the row's of the same name, or from `values`."""
        for name, value in values.items():
            self._require_certain(f"alert {alert_type.__name__}, field {name}", value)
        raised = raised_of(alert_type, (), None, rule, to, values, self.fields(), {})
        return FinalPipeline(self.stream, self.window, self.aggregates, self.condition, raised)

    def _require_certain(self, where: str, expression: Expression) -> None:
        for name, aggregate, _ in self.aggregates.named:
            if aggregate.may_be_nothing and name in columns_of(expression):
                raise SetupError(where, f"{name} may be null; without when= it is not, and count(when=...) never is")


@dataclass(frozen=True, eq=False)
class Joined:
    """Pairs of records of two streams."""

    pairs: Join
    steps: Steps = ()

    def fields(self) -> dict[str, Kind]:
        """Fields that the next step may use: of a `left` join only the left record's are there for sure."""
        certain = self.pairs.left.fields() if self.pairs.how == "left" else self.pairs.fields()
        return fields_after(self.steps, certain)

    def where(self, condition: Expression) -> "Joined":
        """Only the pairs for which the condition holds."""
        return replace(self, steps=with_where(self.steps, condition, self.fields()))

    def derive(self, **values: Expression) -> "Joined":
        """New fields, in the order given; a later one may use an earlier one."""
        return replace(self, steps=with_derived(self.steps, values, self.fields(), tuple(self.pairs.fields())))

    def missing(self) -> "Joined":
        """Only the left records that have no partner, once no partner can come any more."""
        if self.pairs.how != "inner" or self.steps:
            raise SetupError("missing()", "stands directly behind join(...), which gives pairs unless it does")
        return Joined(replace(self.pairs, how="missing"))

    def alert(
        self,
        alert_type: type[Alert],
        *,
        id: str | tuple[str, ...],
        rule: str | None = None,
        to: str = ALERTS,
        **values: Expression,
    ) -> JoinPipeline:
        """One alert a pair, `alert_id` = rule:key:id, or rule:key:id:id for two fields: a pair is named by an id of each
        side. `triggered_at` is the time of the later record; of a left record without a partner, the time from which none
        can match. Its other fields come from the pair's of the same name, or from `values`."""
        names = (id,) if isinstance(id, str) else id
        join = self.pairs
        optional = {} if join.how != "left" else {n: k for n, k in join.fields().items() if n not in join.left.fields()}
        if join.how == "inner" and not any(name.startswith(join.prefix) for name in names):
            raise SetupError(f"alert {alert_type.__name__}", f"id={id!r} names no pair; give an id of either side")
        if join.how != "inner" and any(name in optional for name in names):
            raise SetupError(f"alert {alert_type.__name__}", f"id={id!r}: of {optional} one may be null")
        raised = raised_of(alert_type, names, None, rule, to, values, self.fields(), optional)
        for name in names:
            side, own = (
                (join.right, name.removeprefix(join.prefix)) if name.startswith(join.prefix) else (join.left, name)
            )
            require_bounded(raised.rule, name, side, own, len(names))
        return JoinPipeline(join, self.steps, raised)


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


def parse_retention_ms(text: str, setting: str) -> int | None:
    """Milliseconds, or None for `forever`."""
    return None if text == "forever" else parse_duration_ms(text, setting)
