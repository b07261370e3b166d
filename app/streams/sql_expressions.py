"""Expressions, aggregates and constants as Flink SQL.

Whole numbers and cents are BIGINT as long as their limits prove that they fit, else DECIMAL(38, 0); beyond 38 digits the
declaration is refused, since Flink would give NULL. So no sum or product ever overflows unseen.
"""

from collections.abc import Mapping
from decimal import Decimal
from typing import NamedTuple

from app.core.errors import SetupError
from app.streams.aggregates import Accumulator, OutputField
from app.streams.expressions import Binary, Column, Expression, Kind, Literal, Not, OneOf, literal_cents
from app.streams.pipelines import Aggregates

LONG = 2**63 - 1
MOST = 10**38 - 1
"""Of DECIMAL(38, 0)."""

MOST_RECORDS = 9 * 10**6
"""In one slice of one key: so many of the largest values must fit into a total, in 64 bits or else in 38 digits."""

MOST_DAYS = 999

DECIMAL = "DECIMAL(38, 0)"
DOLLARS = "DECIMAL(38, 2)"


class Typed(NamedTuple):
    """A piece of SQL with its kind; low and high: what its value lies between, for whole numbers and cents."""

    text: str
    kind: Kind
    low: int = 0
    high: int = 0

    @property
    def limit(self) -> int:
        return max(-self.low, self.high)

    @property
    def type(self) -> str:
        """Its SQL type."""
        match self.kind:
            case Kind.MONEY | Kind.INTEGER:
                return "BIGINT" if fits(self) else DECIMAL
            case Kind.NUMBER:
                return "DOUBLE"
            case Kind.TEXT:
                return "STRING"
            case Kind.BOOLEAN:
                return "BOOLEAN"
        return "TIMESTAMP_LTZ(6)"


def fits(*values: Typed) -> bool:
    """Whether they are whole numbers of 64 bits, with sign."""
    return all(value.low >= -LONG - 1 and value.high <= LONG for value in values)


Columns = Mapping[str, Typed]
"""What an expression may read, by name."""


def name_of(*words: str) -> str:
    """An identifier in backticks, made of any text."""
    return "`" + " ".join(words).replace("`", "``") + "`"


def named(text: str, name: str) -> str:
    """A column of a query."""
    return text if text == name_of(name) else f"{text} AS {name_of(name)}"


def text_of(value: str) -> str:
    """A text constant. Raises: SetupError for half a surrogate pair, which nothing can encode."""
    try:
        value.encode()
    except UnicodeEncodeError:
        raise SetupError(repr(value), "is no text that can be written in UTF-8") from None
    return "'" + value.replace("'", "''") + "'"


def interval(duration_ms: int) -> str:
    """A constant of milliseconds, 0 or more. In days, since Flink takes no more than three digits before the first colon.

    Raises: SetupError for more than 999 days.
    """
    days, rest_ms = divmod(duration_ms, 86_400_000)
    if days > MOST_DAYS:
        raise SetupError(f"{days}d", f"Flink takes no time of more than {MOST_DAYS} days")
    minutes, seconds_ms = divmod(rest_ms, 60_000)
    shown = f"{days} {minutes // 60:02}:{minutes % 60:02}:{seconds_ms // 1_000:02}.{seconds_ms % 1_000:03}"
    return f"INTERVAL '{shown}' DAY({max(2, len(str(days)))}) TO SECOND(3)"


def milliseconds(timestamp: str) -> str:
    """A timestamp as milliseconds since 1970. (TIMESTAMPDIFF counts in 32 bits, which end in 2038.)"""
    return f"EXTRACT(EPOCH FROM {timestamp}) * 1000 + EXTRACT(MILLISECOND FROM {timestamp})"


def timestamp(time_ms: str) -> str:
    return f"TO_TIMESTAMP_LTZ({time_ms}, 3)"


def sql_of(expression: Expression, columns: Columns, beside: Kind | None = None) -> Typed:
    """An expression over columns, money in cents. beside: the kind of what it is compared with or added to.

    Raises: SetupError for a number that may have more than 38 digits.
    """
    match expression:
        case Column(name):
            return columns[name]
        case Literal():
            return _constant(expression, beside)
        case Not(inner):
            return Typed(f"(NOT {sql_of(inner, columns).text})", Kind.BOOLEAN)
        case OneOf(inner, choices):
            tested = sql_of(inner, columns)
            shown = ", ".join(_constant(choice, tested.kind).text for choice in choices)
            return Typed(f"({tested.text} IN ({shown}))", Kind.BOOLEAN)
        case Binary("*", left, right):
            return _combined(expression, sql_of(left, columns), sql_of(right, columns))
        case Binary(_, left, right):
            first, second = sql_of(left, columns), sql_of(right, columns)
            if first.kind is not second.kind:
                first, second = sql_of(left, columns, second.kind), sql_of(right, columns, first.kind)
            return _combined(expression, first, second)
    raise AssertionError(expression)


def _constant(constant: Literal, beside: Kind | None) -> Typed:
    value = constant.value
    if isinstance(value, bool):
        return Typed(str(value).upper(), Kind.BOOLEAN)
    if isinstance(value, str):
        return Typed(text_of(value), Kind.TEXT)
    if isinstance(value, Decimal) or beside is Kind.MONEY:
        return _whole(literal_cents(constant), Kind.MONEY)
    if isinstance(value, float):
        shown = repr(value).upper()
        return Typed(f"({shown if 'E' in shown else shown + 'E0'})", Kind.NUMBER)
    return _whole(value, Kind.INTEGER)


def _whole(value: int, kind: Kind) -> Typed:
    shown = f"CAST('{value}' AS {DECIMAL})" if abs(value) > LONG else f"({value})" if value < 0 else str(value)
    return Typed(shown, kind, value, value)


_SIGNS = {"==": "=", "!=": "<>", "and": "AND", "or": "OR"}


def _combined(expression: Binary, left: Typed, right: Typed) -> Typed:
    sign = _SIGNS.get(expression.operator, expression.operator)
    if sign not in "+-*":
        return Typed(f"({left.text} {sign} {right.text})", Kind.BOOLEAN)
    kinds = {left.kind, right.kind}
    if Kind.NUMBER in kinds:
        return Typed(f"({left.text} {sign} {right.text})", Kind.NUMBER)
    kind = Kind.MONEY if Kind.MONEY in kinds else Kind.INTEGER
    low, high = _limits(sign, left, right)
    if max(-low, high) > MOST:
        raise SetupError(
            str(expression),
            "may have more than 38 digits, which Flink does not take; bound its fields, as Meta(le=...)",
        )
    exact = "BIGINT" if fits(left, right, Typed("", kind, low, high)) else DECIMAL
    constants = left.low == left.high and right.low == right.high  # of two small ones Flink makes 32 bits
    texts = [
        side.text if side.type == exact and not constants else f"CAST({side.text} AS {exact})" for side in (left, right)
    ]
    return Typed(f"({texts[0]} {sign} {texts[1]})", kind, low, high)


def _limits(sign: str, left: Typed, right: Typed) -> tuple[int, int]:
    if sign == "+":
        return left.low + right.low, left.high + right.high
    if sign == "-":
        return left.low - right.high, left.high - right.low
    corners = [a * b for a in (left.low, left.high) for b in (right.low, right.high)]
    return min(corners), max(corners)


class Accumulated(NamedTuple):
    """The SQL of an accumulator, a whole number or cents, and its type. added: by one record; NULL is no value."""

    name: str
    text: str
    added: str
    type: str


def accumulated(aggregates: Aggregates, columns: Columns) -> list[Accumulated]:
    """How each accumulator is computed.

    Raises: SetupError for a total that may have more than 38 digits.
    """
    found = []
    for accumulator, (value, when) in zip(aggregates.accumulators, aggregates.amounts, strict=True):
        condition = "" if when is None else sql_of(when, columns).text
        only = f" FILTER (WHERE {condition})" if condition else ""
        if value is None:
            text, amount, type_ = f"COUNT(*){only}", "CAST(1 AS BIGINT)", "BIGINT"
        else:
            typed = sql_of(value, columns, accumulator.kind)
            if typed.low == typed.high:  # of a small constant Flink makes 32 bits
                typed = typed._replace(text=f"CAST({typed.text} AS {typed.type})")
            if accumulator.how == "sum" and typed.limit * MOST_RECORDS > MOST:
                raise SetupError(
                    accumulator.name, "may have more than 38 digits, which Flink does not take; bound what is summed"
                )
            text, amount, type_ = _folded(accumulator, typed, only)
        nothing = " ELSE 0" if accumulator.how == "sum" else ""
        added = f"CASE WHEN {condition} THEN {amount}{nothing} END" if condition else amount
        found.append(Accumulated(accumulator.name, text, added, type_))
    return found


def _folded(accumulator: Accumulator, amount: Typed, only: str) -> tuple[str, str, str]:
    if accumulator.how != "sum":
        return f"{accumulator.how.upper()}({amount.text}){only}", amount.text, amount.type
    fits_in_64 = amount.limit * MOST_RECORDS <= LONG
    exact = amount.text if fits_in_64 else f"CAST({amount.text} AS {DECIMAL})"
    summed = f"SUM({exact}){only}"
    return f"COALESCE({summed}, 0)" if only else summed, exact, "BIGINT" if fits_in_64 else DECIMAL


def output_value(output: OutputField) -> str:
    """What others see, in whole units or cents, of the columns of the accumulators."""
    columns = [name_of(accumulator.name) for accumulator in output.accumulators]
    if output.function != "mean":
        return columns[0]
    summed, number = (
        f"CAST({column} AS {DECIMAL})" for column in columns
    )  # MOD by a BIGINT would be one, and overflow
    twice, doubled = f"(2 * {summed} + {number})", f"(2 * {number})"
    rest = f"MOD({twice}, {doubled})"
    floored = f"CAST(({twice} - {rest}) / {doubled} AS {DECIMAL}) - CASE WHEN {rest} < 0 THEN 1 ELSE 0 END"
    return f"CASE WHEN {columns[1]} > 0 THEN {floored} END"


def dollars(cents: str, type: str = DECIMAL) -> tuple[str, str]:
    """Cents as dollars with two decimals, and their type. type: of the cents."""
    if type == "BIGINT":
        return f"dollars({cents})", "DECIMAL(19, 2)"
    return f"CAST(CAST({cents} AS {DECIMAL}) * 0.01 AS {DOLLARS})", DOLLARS
