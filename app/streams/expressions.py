"""Expressions over a record's fields: data, not code, so that every engine can compile them.

`col.amount_usd > 10_000` builds a tree. Comparisons, `&`, `|`, `~`, `+`, `-`, `*` and `is_in` are all there is; what a tree
means is fixed by the kinds of its fields, and money is compared and added in whole cents.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal
from enum import Enum
from typing import Any, NoReturn

import msgspec

from app.core.codec import to_cents
from app.core.errors import SetupError


class Kind(Enum):
    """What a value is: decides which operations make sense and how engines store it."""

    MONEY = "money"
    INTEGER = "integer"
    NUMBER = "number"
    TEXT = "text"
    BOOLEAN = "boolean"
    TIME = "time"


@dataclass(frozen=True, eq=False)
class Expression:
    """Base of all nodes. Two expressions are the same when their `str` is."""

    def __gt__(self, other: Any) -> "Binary":
        return Binary(">", self, literal(other))

    def __ge__(self, other: Any) -> "Binary":
        return Binary(">=", self, literal(other))

    def __lt__(self, other: Any) -> "Binary":
        return Binary("<", self, literal(other))

    def __le__(self, other: Any) -> "Binary":
        return Binary("<=", self, literal(other))

    def __eq__(self, other: Any) -> "Binary":  # type: ignore[override]
        return Binary("==", self, literal(other))

    def __ne__(self, other: Any) -> "Binary":  # type: ignore[override]
        return Binary("!=", self, literal(other))

    __hash__ = None  # type: ignore[assignment]

    def __add__(self, other: Any) -> "Binary":
        return Binary("+", self, literal(other))

    def __sub__(self, other: Any) -> "Binary":
        return Binary("-", self, literal(other))

    __radd__ = __add__

    def __mul__(self, other: Any) -> "Binary":
        return Binary("*", self, literal(other))

    __rmul__ = __mul__

    def __and__(self, other: Any) -> "Binary":
        return Binary("and", self, literal(other))

    def __or__(self, other: Any) -> "Binary":
        return Binary("or", self, literal(other))

    def __invert__(self) -> "Not":
        return Not(self)

    def is_in(self, *values: Any) -> "OneOf":
        """True where the value is one of the given constants. Raises: TypeError for none, and for anything else."""
        choices = tuple(literal(value) for value in values)
        if not choices or not all(isinstance(choice, Literal) for choice in choices):
            raise TypeError("is_in takes constants, one at least")
        return OneOf(self, choices)

    def __bool__(self) -> NoReturn:
        raise TypeError("an expression has no truth of its own; combine with &, | and ~, not with and, or and not")


@dataclass(frozen=True, eq=False)
class Column(Expression):
    """The value of one field."""

    name: str

    def __str__(self) -> str:
        return self.name


@dataclass(frozen=True, eq=False)
class Literal(Expression):
    """A constant: text, number, Decimal or truth value."""

    value: str | int | float | Decimal | bool

    def __str__(self) -> str:
        return repr(str(self.value)) if isinstance(self.value, Decimal) else repr(self.value)


@dataclass(frozen=True, eq=False)
class Binary(Expression):
    """`left op right`; op is one of `> >= < <= == != + - * and or`."""

    operator: str
    left: Expression
    right: Expression

    def __str__(self) -> str:
        return f"({self.left} {self.operator} {self.right})"


@dataclass(frozen=True, eq=False)
class Not(Expression):
    """True where the inner one is false."""

    inner: Expression

    def __str__(self) -> str:
        return f"(not {self.inner})"


@dataclass(frozen=True, eq=False)
class OneOf(Expression):
    """True where the inner value is one of the literals."""

    inner: Expression
    values: tuple[Literal, ...]

    def __str__(self) -> str:
        return f"({self.inner} in ({', '.join(map(str, self.values))}))"


_LITERALS = {str: Kind.TEXT, int: Kind.INTEGER}


class _Columns:
    """`col.amount_usd` is `Column("amount_usd")`."""

    def __getattr__(self, name: str) -> Column:
        if name.startswith("__"):
            raise AttributeError(name)
        return Column(name)


col = _Columns()


def literal(value: Any) -> Any:
    """An expression as it is, a constant as a `Literal`. Raises: TypeError for any other value."""
    if isinstance(value, Expression):
        return value
    if isinstance(value, float | Decimal) and not math.isfinite(value):
        raise TypeError(f"{value!r} cannot stand in an expression; it compares with nothing")
    if isinstance(value, str | int | float | Decimal):
        return Literal(value)
    raise TypeError(f"{value!r} cannot stand in an expression; text, numbers, Decimals and truth values can")


def field_kinds(record_type: type) -> dict[str, Kind]:
    """Kind of each field of a struct that an expression may use; others (optional, nested) are left out."""
    kinds = {}
    info = msgspec.inspect.type_info(record_type)
    assert isinstance(info, msgspec.inspect.StructType)
    for field in info.fields:
        kind = kind_of_type(field.type)
        if kind is not None:
            kinds[field.name] = kind
    return kinds


def optional_kinds(record_type: type) -> dict[str, Kind]:
    """Kind of each field of a struct that may also be None."""
    info = msgspec.inspect.type_info(record_type)
    assert isinstance(info, msgspec.inspect.StructType)
    kinds = {}
    for field in info.fields:
        if isinstance(field.type, msgspec.inspect.UnionType) and field.type.includes_none:
            inner = [one for one in field.type.types if not isinstance(one, msgspec.inspect.NoneType)]
            kind = kind_of_type(inner[0]) if len(inner) == 1 else None
            if kind is not None:
                kinds[field.name] = kind
    return kinds


def kind_of_type(info: msgspec.inspect.Type) -> Kind | None:
    if isinstance(info, msgspec.inspect.Metadata):
        if (info.extra or {}).get("unit") == "usd":
            return Kind.MONEY
        return kind_of_type(info.type)
    if isinstance(info, msgspec.inspect.LiteralType):
        return next((kind for of, kind in _LITERALS.items() if all(type(value) is of for value in info.values)), None)
    if isinstance(info, msgspec.inspect.DateTimeType):
        return Kind.TIME if info.tz else None  # with and without a zone do not compare
    simple: dict[type, Kind] = {
        msgspec.inspect.BoolType: Kind.BOOLEAN,
        msgspec.inspect.IntType: Kind.INTEGER,
        msgspec.inspect.FloatType: Kind.NUMBER,
        msgspec.inspect.StrType: Kind.TEXT,
    }
    return simple.get(type(info))


def kind_of(expression: Expression, fields: Mapping[str, Kind], where: str = "expression") -> Kind:
    """Kind of an expression's value.

    Raises: SetupError naming `where` for an unknown field or an operation that makes no sense.
    """
    match expression:
        case Column(name):
            if name not in fields:
                raise SetupError(where, f"no usable field {name!r}; there are {', '.join(fields)}")
            return fields[name]
        case Literal(value):
            return _literal_kind(value)
        case Not(inner):
            _require_boolean(inner, fields, where)
            return Kind.BOOLEAN
        case OneOf(inner, choices):
            for choice in choices:
                _common_kind(inner, choice, fields, where, str(expression))
            return Kind.BOOLEAN
        case Binary("and" | "or", left, right):
            _require_boolean(left, fields, where)
            _require_boolean(right, fields, where)
            return Kind.BOOLEAN
        case Binary("==" | "!=", left, right):
            _common_kind(left, right, fields, where, str(expression))
            return Kind.BOOLEAN
        case Binary("<" | "<=" | ">" | ">=", left, right):
            if _common_kind(left, right, fields, where, str(expression)) is Kind.BOOLEAN:
                raise SetupError(where, f"{expression}: truth values have no order")
            return Kind.BOOLEAN
        case Binary("+" | "-", left, right):
            kind = _common_kind(left, right, fields, where, str(expression))
            if kind not in (Kind.MONEY, Kind.INTEGER, Kind.NUMBER):
                raise SetupError(where, f"{expression}: only numbers and money can be added")
            return kind
        case Binary("*", left, right):
            kinds = {kind_of(left, fields, where), kind_of(right, fields, where)}
            if kinds == {Kind.MONEY, Kind.INTEGER}:
                return Kind.MONEY
            if kinds <= {Kind.INTEGER, Kind.NUMBER}:
                return Kind.NUMBER if Kind.NUMBER in kinds else Kind.INTEGER
            raise SetupError(where, f"{expression}: only numbers, or money and a whole number, can be multiplied")
    raise AssertionError(expression)


def _literal_kind(value: str | int | float | Decimal | bool) -> Kind:
    if isinstance(value, bool):
        return Kind.BOOLEAN
    if isinstance(value, int):
        return Kind.INTEGER
    if isinstance(value, float):
        return Kind.NUMBER
    return Kind.MONEY if isinstance(value, Decimal) else Kind.TEXT


def _require_boolean(expression: Expression, fields: Mapping[str, Kind], where: str) -> None:
    if kind_of(expression, fields, where) is not Kind.BOOLEAN:
        raise SetupError(where, f"{expression} is not true or false")


def _common_kind(left: Expression, right: Expression, fields: Mapping[str, Kind], where: str, shown: str) -> Kind:
    """The kind in which two sides meet; a constant takes the kind of the other side where that loses nothing."""
    kinds = kind_of(left, fields, where), kind_of(right, fields, where)
    for side in (left, right):
        if isinstance(side, Literal) and isinstance(side.value, Decimal):
            literal_cents(side, where)
    if kinds[0] is kinds[1]:
        return kinds[0]
    for side, other in ((left, kinds[1]), (right, kinds[0])):
        if isinstance(side, Literal) and other is Kind.MONEY:
            literal_cents(side, where)
            return Kind.MONEY
    if set(kinds) == {Kind.INTEGER, Kind.NUMBER}:
        return Kind.NUMBER
    raise SetupError(where, f"{shown}: {kinds[0].value} and {kinds[1].value} do not go together")


def literal_cents(constant: Literal, where: str = "expression") -> int:
    """A constant that stands beside money, in cents. Raises: SetupError when it is not an exact amount."""
    try:
        return to_cents(Decimal(str(constant.value)))
    except (ValueError, ArithmeticError):
        raise SetupError(where, f"{constant} is not an amount of whole cents, 0 or more") from None


def columns_of(expression: Expression) -> set[str]:
    """Names of the fields that an expression reads."""
    match expression:
        case Column(name):
            return {name}
        case Binary(_, left, right):
            return columns_of(left) | columns_of(right)
        case Not(inner) | OneOf(inner, _):
            return columns_of(inner)
    return set()
