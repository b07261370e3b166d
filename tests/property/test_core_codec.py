"""Money survives every form it takes."""

from decimal import Decimal

import msgspec
import pytest
from hypothesis import given
from hypothesis.strategies import decimals, integers, text

from app.core.codec import MAX_CENTS, cents_to_json, compact_key, encode, to_cents, to_dollars

amounts_in_cents = integers(0, MAX_CENTS)


@given(cents=amounts_in_cents)
def test_money_as_dollars_and_back_is_the_same(cents: int) -> None:
    """Cents, dollars, cents."""
    assert cents == to_cents(to_dollars(cents))


@given(cents=amounts_in_cents)
def test_money_over_the_wire_is_the_same(cents: int) -> None:
    """Cents, JSON number, Decimal, cents; and both writers of JSON agree."""
    wire = cents_to_json(cents)
    assert wire == encode(to_dollars(cents))
    assert cents == to_cents(msgspec.json.decode(wire, type=Decimal))


@given(dollars=decimals(allow_nan=True, allow_infinity=True))
def test_to_cents_is_exact_or_refuses(dollars: Decimal) -> None:
    """Whatever the number, the answer is equal to it or there is none."""
    try:
        cents = to_cents(dollars)
    except ValueError:
        return
    assert dollars == Decimal(cents) / 100
    assert 0 <= cents <= MAX_CENTS


@given(digits=integers(29, 200), place=integers(3, 28))
def test_to_cents_of_many_digits_is_refused(digits: int, place: int) -> None:
    """More digits than the arithmetic holds are never rounded away."""
    with pytest.raises(ValueError):
        to_cents(Decimal("1" * (digits - place) + "." + "0" * (place - 1) + "1"))


@given(zeros=integers(1, 200))
def test_to_cents_of_trailing_zeros_is_refused_or_right(zeros: int) -> None:
    """Zeros behind the cents change nothing about the amount."""
    try:
        cents = to_cents(Decimal("10.50" + "0" * zeros))
    except ValueError:
        return
    assert 1_050 == cents


@given(key=text(), number=integers(0, 2**53))
def test_compact_key_is_json_that_reads_back(key: str, number: int) -> None:
    """Every key is compact JSON of its fields, in order."""
    written = compact_key(user_id=key, tile=number)
    assert {"user_id": key, "tile": number} == msgspec.json.decode(written)
    assert written.startswith(b'{"user_id":"')
