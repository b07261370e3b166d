"""What expressions, aggregates and records mean, over plain values: money is Decimal dollars."""

import operator
from collections.abc import Iterable, Mapping
from decimal import Decimal
from typing import Any, NamedTuple

import msgspec

from app.streams.aggregates import Aggregate
from app.streams.expressions import Binary, Column, Expression, Literal, Not, OneOf
from app.streams.pipelines import Steps, Where

CENT = Decimal("0.01")
LONGEST_KEY, LATEST_MS = 1_000, 253_402_300_799_999


class SourceRecord(NamedTuple):
    """One record of a source topic."""

    topic: str
    partition: int
    offset: int
    timestamp_ms: int
    key: bytes | None
    value: bytes | None


def amounts_of(
    named: Iterable[tuple[str, Aggregate, Any]], held: list[dict[str, Any]], accumulators: bool
) -> dict[str, Any]:
    """What rows show of some records; or what tiles keep."""
    found: dict[str, Any] = {}
    for name, aggregate, _ in named:
        rows = [row for row in held if aggregate.when is None or value_of(aggregate.when, row)]
        values = [1 if aggregate.value is None else value_of(aggregate.value, row) for row in rows]
        match aggregate.function:
            case "count" | "total":
                found[name] = sum(values)
            case "min" | "max":
                found[name] = (min if aggregate.function == "min" else max)(values, default=None)
            case "mean" if accumulators:
                found |= {f"{name}_total": sum(values), f"{name}_count": len(values)}
            case "mean":
                found[name] = mean_of(values)
    return found


def mean_of(values: list[Any]) -> Any:
    """Halves upwards, in whole units or cents."""
    if not values:
        return None
    unit = CENT if isinstance(sum(values), Decimal) else 1
    total = int(sum(values) / unit)
    return (2 * total + len(values)) // (2 * len(values)) * unit


def passed(steps: Steps, event: Mapping[str, Any]) -> dict[str, Any] | None:
    """The event with what is derived, or None when a condition does not hold."""
    row = dict(event)
    for step in steps:
        if isinstance(step, Where):
            if not value_of(step.condition, row):
                return None
        else:
            row[step.name] = value_of(step.value, row)
    return row


OPERATORS = {
    "and": lambda left, right: left and right,
    "or": lambda left, right: left or right,
    "+": operator.add,
    "-": operator.sub,
    "*": operator.mul,
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
    "==": operator.eq,
    "!=": operator.ne,
}


def value_of(expression: Expression, row: Mapping[str, Any]) -> Any:
    """What a tree means; money is Decimal dollars."""
    match expression:
        case Column(name):
            return row[name]
        case Literal(value):
            return value
        case Not(inner):
            return not value_of(inner, row)
        case OneOf(inner, choices):
            return any(_together("==", value_of(inner, row), choice.value) for choice in choices)
        case Binary(sign, left, right):
            return _together(sign, value_of(left, row), value_of(right, row))
    raise AssertionError(expression)


def _together(sign: str, left: Any, right: Any) -> Any:
    """A fraction beside money is the amount that is written."""
    if isinstance(left, Decimal) and isinstance(right, float):
        right = Decimal(str(right))
    elif isinstance(left, float) and isinstance(right, Decimal):
        left = Decimal(str(left))
    return OPERATORS[sign](left, right)


def valid_row(record: SourceRecord, record_type: Any, key: str) -> dict[str, Any] | None:
    """The fields of a valid record: docs/validity.md."""
    if (
        not record.key
        or len(record.key) > LONGEST_KEY
        or record.value is None
        or not 0 <= record.timestamp_ms <= LATEST_MS
    ):
        return None
    try:
        row = msgspec.structs.asdict(msgspec.json.decode(record.value, type=record_type))
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
    for value in row.values():
        if isinstance(value, Decimal) and not (
            value.is_finite() and 0 <= value <= 10**10 and value.quantize(CENT) == value
        ):
            return None
        if type(value) is int and not -(2**63) <= value < 2**63:
            return None
    return row if row[key].encode() == record.key else None


def is_heartbeat(record: SourceRecord) -> bool:
    """Whether a record only says how late it is."""
    if record.key is not None or record.value is None or not 0 <= record.timestamp_ms <= LATEST_MS:
        return False
    try:
        said = msgspec.json.decode(record.value)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return False
    return isinstance(said, dict) and list(said) == ["heartbeat"] and said["heartbeat"] is True
