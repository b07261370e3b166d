"""A plain reading of any declared graph: expressions as trees over Decimal dollars, all records kept, nothing compiled."""

import json
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from fractions import Fraction
from math import floor
from typing import Any

from app.broker.memory import MemoryBroker
from app.core.record import Record
from app.streams.aggregates import Aggregate
from app.streams.expressions import Binary, Column, Expression, Kind, Literal, Not, OneOf
from app.streams.graph import Topic
from app.streams.pipelines import (
    AlertPipeline,
    FinalPipeline,
    Hopping,
    LivePipeline,
    Pipeline,
    Records,
    Session,
    Where,
)
from tests.reference import SourceRecord, escaped

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


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
    """What pipelines give, by where it comes from: alerts by rule and source record (or window), rows and tiles by pipeline,
    shop, start and partition."""

    alerts: dict[tuple[str, str], Any] = field(default_factory=dict)
    rows: dict[tuple[str, str, int, int], Any] = field(default_factory=dict)
    tiles: dict[tuple[str, str, int, int], Any] = field(default_factory=dict)
    late: set[tuple[str, int, int]] = field(default_factory=set)


Taken = list[tuple[int, int, dict[str, Any]]]
"""Time, offset and fields of records."""


class PlainReading:
    """Reads the records one after another, each pipeline by itself, and keeps all that counts."""

    def __init__(self, topic: Topic, pipelines: Mapping[str, Pipeline]) -> None:
        self.outputs = Outputs()
        self._lateness_ms = topic.source.out_of_orderness_ms
        # live ones first, so that an alert knows for which it is late
        self._pipelines = sorted(pipelines.items(), key=lambda item: not isinstance(item[1], LivePipeline))
        self._reached: dict[int, int] = {}
        self._sightings: dict[Any, int] = {}
        self._taken: dict[tuple[str, str, int], Taken] = defaultdict(list)
        self._raised_in: dict[tuple[str, str], int] = {}

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
            if not self._take(name, pipeline, row, record, m, late_for):
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

    def _take(
        self, name: str, pipeline: Any, row: dict[str, Any], record: SourceRecord, m: int, late_for: list[str]
    ) -> bool:
        """False for a late one."""
        t, passed_ms = record.timestamp_ms, m - self._lateness_ms
        taken = self._taken[name, row["shop"], record.partition]
        if isinstance(pipeline, AlertPipeline):
            if pipeline.burst is not None:
                if t <= passed_ms:
                    return False
                taken.append((t, record.offset, row))
                if not self._begins(pipeline, taken):
                    return True
            return self._alert(name, pipeline, row, record, passed_ms, late_for)
        if isinstance(pipeline, FinalPipeline) and isinstance(pipeline.window, Session):
            if t <= passed_ms:
                return False
        else:
            size_ms = pipeline.tile_ms if isinstance(pipeline, LivePipeline) else pipeline.window.step_ms
            if t - t % size_ms + size_ms <= passed_ms:
                return False
        taken.append((t, record.offset, row))
        return True

    def _begins(self, pipeline: AlertPipeline, taken: Taken) -> bool:
        assert pipeline.burst is not None
        count, within_ms = pipeline.burst.count, pipeline.burst.within_ms

        def holds(until: int) -> bool:
            times = [t for t, _, _ in taken[max(0, until - count) : until]]
            return len(times) == count and max(times) - min(times) <= within_ms

        return holds(len(taken)) and not holds(len(taken) - 1)

    def _alert(
        self, name: str, pipeline: AlertPipeline, row: Any, record: SourceRecord, passed_ms: int, late_for: list[str]
    ) -> bool:
        raised, t = pipeline.raised, record.timestamp_ms
        natural = row["sale_id"]
        if raised.per_ms is not None:
            start = t - t % raised.per_ms
            if start + raised.per_ms <= passed_ms:
                return False
            if start <= self._raised_in.get((name, row["shop"]), -1):
                return True
            self._raised_in[name, row["shop"]] = start
            natural = str(start)
        self.outputs.alerts[raised.rule, f"sales/{record.partition}/{record.offset}"] = {
            "alert_id": f"{raised.rule}:{escaped(row['shop'])}:{escaped(natural)}",
            "triggered_at": EPOCH + timedelta(milliseconds=t),
            "late_for": ",".join(late_for),
            **{name: value_of(shown, row) for name, shown in raised.fields},
        }
        return True

    def close(self) -> None:
        """Tiles, and rows of the windows that are over."""
        for (name, shop, partition), taken in self._taken.items():
            pipeline = dict(self._pipelines)[name]
            if isinstance(pipeline, LivePipeline):
                size_ms = pipeline.tile_ms
                for start in {t - t % size_ms for t, _, _ in taken}:
                    held = [one for one in taken if start <= one[0] < start + size_ms]
                    values = [v for _, a, _ in pipeline.aggregates.named for v in accumulated(a, held)]
                    self.outputs.tiles[name, shop, start, partition] = max(o for _, o, _ in held), values
            elif isinstance(pipeline, FinalPipeline):
                for start, end, held in windows(pipeline.window, taken):
                    if end <= self._reached[partition] - self._lateness_ms:
                        self._row(name, pipeline, (shop, partition, start, end), held)

    def _row(self, name: str, pipeline: FinalPipeline, where: tuple[str, int, int, int], held: Taken) -> None:
        shop, partition, start, end = where
        values = {n: aggregated(a, k, held) for n, a, k in pipeline.aggregates.named}
        if pipeline.having is not None and not value_of(pipeline.having, values):
            return
        if isinstance(pipeline.target, str):
            self.outputs.rows[name, shop, start, partition] = list(values.values())
            return
        last = max(offset for _, offset, _ in held)
        self.outputs.alerts[pipeline.target.rule, f"{shop} {start}"] = {
            "alert_id": f"{pipeline.target.rule}:{escaped(shop)}:{start}",
            "triggered_at": EPOCH + timedelta(milliseconds=end),
            "origin": f"sales/{partition}/{last}",
            "shop": shop,
            "sum0": values["sum0"],
            "window_start": EPOCH + timedelta(milliseconds=start),
            "window_end": EPOCH + timedelta(milliseconds=end),
        }


def windows(window: Any, taken: Taken) -> Iterator[tuple[int, int, Taken]]:
    """Start, end and records of every window that holds any."""
    if isinstance(window, Session):
        session: Taken = []
        for one in [*sorted(taken, key=lambda one: one[0]), None]:
            if session and (one is None or one[0] - session[-1][0] > window.gap_ms):
                yield session[0][0], session[-1][0] + window.gap_ms, session
                session = []
            session += [one] if one else []
        return
    step_ms, size_ms = window.step_ms, window.size_ms
    slices = {t - t % step_ms for t, _, _ in taken}
    for start in {first - back for first in slices for back in range(0, size_ms, step_ms)}:
        yield start, start + size_ms, [one for one in taken if start <= one[0] < start + size_ms]


def chosen(aggregate: Aggregate, held: Taken) -> list[Any]:
    rows = [row for _, _, row in held if aggregate.when is None or value_of(aggregate.when, row)]
    return [1 if aggregate.value is None else value_of(aggregate.value, row) for row in rows]


def aggregated(aggregate: Aggregate, kind: Kind, held: Taken) -> Any:
    values = chosen(aggregate, held)
    match aggregate.function:
        case "min" | "max":
            return (min if aggregate.function == "min" else max)(values, default=None)
        case "mean":
            unit = Decimal("0.01") if kind is Kind.MONEY else Decimal(1)
            exact = Fraction(sum(values)) / len(values) / Fraction(unit) if values else None
            return None if exact is None else floor(exact + Fraction(1, 2)) * unit
    return sum(values)


def accumulated(aggregate: Aggregate, held: Taken) -> list[Any]:
    if aggregate.function != "mean":
        return [aggregated(aggregate, Kind.INTEGER, held)]
    return [sum(chosen(aggregate, held)), len(chosen(aggregate, held))]


def passed(stream: Records, event: Mapping[str, Any]) -> dict[str, Any] | None:
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
        alert["triggered_at"] = datetime.fromisoformat(alert["triggered_at"])
        rule, origin = alert["alert_id"].split(":")[0], (record.header("origin") or b"").decode()
        if alert.pop("alert_type") == "crowd":
            assert b"1" == record.header("window")
            alert |= {name: datetime.fromisoformat(alert[name]) for name in ("window_start", "window_end")}
            alert["origin"] = origin
            origin = f"{alert['shop']} {alert['alert_id'].rsplit(':', 1)[1]}"
        else:
            alert["late_for"] = (record.header("late_for") or b"").decode()
        assert alert == found.alerts.setdefault((rule, origin), alert)
    for name, pipeline in pipelines.items():
        if isinstance(pipeline, LivePipeline | FinalPipeline):
            read_rows(found, name, pipeline, logs[pipeline.topic])
    for record in logs["sales.late"]:
        late = json.loads(record.value or b"")
        found.late.add((late["pipeline"], late["partition"], late["offset"]))
    assert [] == logs["sales.dead"]
    return found


def read_rows(found: Outputs, name: str, pipeline: LivePipeline | FinalPipeline, log: list[Record]) -> None:
    """The last value of each tile, the only one of each row."""
    if isinstance(pipeline, FinalPipeline) and not isinstance(pipeline.target, str):
        return
    for record in log:
        key, value = json.loads(record.key or b""), json.loads(record.value or b"", parse_float=Decimal)
        if "progress" in key:
            continue
        where = (name, key["shop"], key.get("tile", key.get("window_start")), record.partition)
        if isinstance(pipeline, LivePipeline):
            sums = [value[accumulator.name] for accumulator in pipeline.aggregates.accumulators]
            found.tiles[where] = max(found.tiles.get(where, (-1, [])), (value["version"], sums), key=lambda v: v[0])
            continue
        assert (key["window_start"], key["shop"]) == (value["window_start"], value["shop"])
        if isinstance(pipeline.window, Hopping):
            assert key["window_start"] + pipeline.window.size_ms == value["window_end"]
        sums = [value[output.name] for output in pipeline.aggregates.outputs]
        assert sums == found.rows.setdefault(where, sums)
