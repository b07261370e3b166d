"""Expressions: trees that know their kinds, and the Python they become."""

from collections.abc import Callable
from datetime import datetime
from decimal import Decimal
from typing import Annotated, Any, Literal

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.core.codec import Usd, to_dollars
from app.core.errors import SetupError
from app.streams.expressions import Expression, Kind, col, columns_of, field_kinds, kind_of
from app.streams.python import expression_text


class Event(msgspec.Struct):
    amount: Usd
    items: int
    weight: float
    name: str
    status: Literal["a", "b"]
    gift: bool
    at: Annotated[datetime, msgspec.Meta(tz=True)]
    local: datetime
    mixed: Literal["x", 1]
    note: str | None = None


KINDS = field_kinds(Event)


def value_of(expression: Expression, **fields: Any) -> Any:
    names = {f"f_{name}": value for name, value in fields.items()}
    return eval(expression_text(expression, KINDS), {}, names)


def test_field_kinds_struct_gives_what_expressions_may_use() -> None:
    """Optional fields are left out, and times with and without a zone: what they mean in a comparison is no guess."""
    expected = {
        "amount": Kind.MONEY,
        "items": Kind.INTEGER,
        "weight": Kind.NUMBER,
        "name": Kind.TEXT,
        "status": Kind.TEXT,
        "gift": Kind.BOOLEAN,
        "at": Kind.TIME,
    }
    assert expected == KINDS


@given(cents=st.integers(0, 10**12), limit=st.decimals(0, 10**9, places=2))
def test_expression_money_compares_in_whole_cents(cents: int, limit: Decimal) -> None:
    """A constant beside money is an amount of dollars, never a float."""
    assert (to_dollars(cents) > limit) == value_of(col.amount > limit, amount=cents)


@given(items=st.integers(-5, 5), gift=st.booleans(), name=st.sampled_from(["x", "y", "it's", '"']))
def test_expression_logic_means_what_python_means(items: int, gift: bool, name: str) -> None:
    """And, or, not, sums and choices agree with plain Python."""
    expression = (col.items + 1 > 2) & ~(col.gift == True) | col.name.is_in("x", "it's")  # noqa: E712
    expected = (items + 1 > 2 and not gift) or name in ("x", "it's")
    assert expected == value_of(expression, items=items, gift=gift, name=name)


def test_expression_sum_of_money_stays_money() -> None:
    """Money can be added to money and multiplied by whole numbers."""
    assert Kind.MONEY is kind_of((col.amount + Decimal("0.50")) * col.items, KINDS)
    assert 3 * 1050 == value_of((col.amount + Decimal("0.50")) * col.items, amount=1000, items=3)


@pytest.mark.parametrize(
    ("expression", "complaint"),
    [
        (col.nothing > 1, "no usable field 'nothing'"),
        (col.note == "x", "no usable field 'note'"),
        (col.amount > Decimal("1.005"), "whole cents"),
        (col.amount > "x", "whole cents"),
        (col.amount > col.items, "do not go together"),
        (col.name > 1, "do not go together"),
        (col.gift < False, "no order"),
        (col.name + "x", "only numbers and money"),
        (col.amount * col.amount, "can be multiplied"),
        (col.items & (col.items > 1), "not true or false"),
    ],
)
def test_expression_without_meaning_is_refused_with_its_reason(expression: Expression, complaint: str) -> None:
    """A wrong expression is an error where it is declared, not in a running stream."""
    with pytest.raises(SetupError, match=complaint):
        kind_of(expression, KINDS, "test")


def test_expression_as_truth_value_is_refused() -> None:
    """`a and b` would silently drop a; it raises instead."""
    with pytest.raises(TypeError, match="combine with"):
        bool(col.items > 1)
    with pytest.raises(TypeError, match="cannot stand"):
        col.items == [1]  # noqa: B015


@pytest.mark.parametrize(
    "make",
    [
        lambda: col.weight < float("inf"),
        lambda: col.amount > Decimal("NaN"),
        lambda: col.name.is_in(),
        lambda: col.name.is_in(col.status),
    ],
)
def test_expression_constant_that_compares_with_nothing_is_refused(make: Callable[[], object]) -> None:
    """What could not be compiled is refused where it is written."""
    with pytest.raises(TypeError):
        make()


def test_expression_constant_on_the_left_means_the_same() -> None:
    """`2 * n + 1` is an expression too."""
    assert 7 == value_of(1 + 2 * col.items, items=3)


def test_columns_of_expression_names_every_field_it_reads() -> None:
    """The compiler loads only these."""
    assert {"items", "name", "gift"} == columns_of((col.items > 1) & ~col.gift | col.name.is_in("a"))
