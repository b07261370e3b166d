"""Bytes on the wire."""

import time
from datetime import UTC, datetime, timedelta, timezone
from decimal import Decimal

import msgspec
import pytest

from app.core.codec import MAX_CENTS, Usd, cents_to_json, compact_key, encode, sum_to_cents, to_cents, to_dollars


class Payment(msgspec.Struct):
    amount_usd: Usd


@pytest.mark.parametrize(
    ("dollars", "expected_cents"),
    [
        ("0", 0),
        ("0.01", 1),
        ("10.5", 1_050),
        ("10.500", 1_050),
        ("1e3", 100_000),
        ("-0", 0),
        ("10000000000", MAX_CENTS),
    ],
)
def test_to_cents_amount_is_exact(dollars: str, expected_cents: int) -> None:
    """Dollars of up to two decimals, however written, are whole cents."""
    assert expected_cents == to_cents(Decimal(dollars))


@pytest.mark.parametrize(
    "dollars",
    [
        "-0.01",
        "0.001",
        "10.005",
        "10000000000.01",
        "1e999999",
        "-1e999999",
        "1e-999999",
        "Infinity",
        "-Infinity",
        "0." + "1" * 40,
    ],
)
def test_to_cents_other_amounts_are_refused(dollars: str) -> None:
    """Negative, finer, larger and endless amounts are a ValueError."""
    with pytest.raises(ValueError, match=r"is not between|has more than two decimals"):
        to_cents(Decimal(dollars))


@pytest.mark.parametrize("dollars", ["NaN", "-NaN", "sNaN"])
def test_to_cents_of_no_number_is_refused(dollars: str) -> None:
    """What is not a number is a ValueError too."""
    with pytest.raises(ValueError, match="is not an amount"):
        to_cents(Decimal(dollars))


@pytest.mark.parametrize("dollars", ["1e999999", "1e-999999"])
def test_to_cents_of_a_huge_exponent_is_quick(dollars: str) -> None:
    """Ten bytes of input cannot take the processor or the memory."""
    began = time.process_time()
    with pytest.raises(ValueError):
        to_cents(Decimal(dollars))
    assert time.process_time() - began < 0.1


@pytest.mark.parametrize(
    ("cents", "expected"), [(0, b"0.00"), (5, b"0.05"), (1_050, b"10.50"), (-5, b"-0.05"), (-1_050, b"-10.50")]
)
def test_cents_to_json_always_has_two_decimals(cents: int, expected: bytes) -> None:
    """The wire form is the same for the same amount."""
    assert expected == cents_to_json(cents)


@pytest.mark.parametrize(
    ("dollars", "expected_cents"), [("-1.50", -150), ("0", 0), ("92233720368547758.07", 2**63 - 1), ("1e3", 100_000)]
)
def test_sum_to_cents_takes_sums_beyond_one_amount(dollars: str, expected_cents: int) -> None:
    """A sum may be negative, and larger than any order."""
    assert expected_cents == sum_to_cents(Decimal(dollars))


@pytest.mark.parametrize("dollars", ["1.005", "NaN", "Infinity", "1e999999", "-1e999999", "1e-999999"])
def test_sum_to_cents_of_no_sum_is_refused(dollars: str) -> None:
    """Whatever is no whole number of cents is a ValueError, and quick."""
    with pytest.raises(ValueError, match=r"no amount|decimals"):
        sum_to_cents(Decimal(dollars))


def test_to_dollars_has_two_decimals() -> None:
    """A handler sees cents as dollars."""
    assert "10.50" == str(to_dollars(1_050))


def test_encode_money_is_a_number() -> None:
    """Money is a JSON number that any reader understands."""
    assert b'{"amount_usd":10.50}' == encode(Payment(Decimal("10.50")))


def test_encode_money_reads_back_exactly() -> None:
    """No float takes part on the way back."""
    text = b'{"amount_usd":9999999999.99}'
    assert Decimal("9999999999.99") == msgspec.json.decode(text, type=Payment).amount_usd


def test_encode_time_ends_in_z() -> None:
    """Times are UTC in ISO-8601."""
    assert b'"2026-01-02T03:04:05Z"' == encode(datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC))


def test_encode_time_of_another_zone_names_it() -> None:
    """A zone is never dropped."""
    assert b'"2026-01-02T03:04:05+02:00"' == encode(datetime(2026, 1, 2, 3, 4, 5, tzinfo=timezone(timedelta(hours=2))))


def test_compact_key_keeps_the_order_given() -> None:
    """Keys are the same bytes on every engine."""
    assert b'{"user_id":"u-7","tile":30000,"partition":3}' == compact_key(user_id="u-7", tile=30_000, partition=3)


def test_compact_key_escapes_as_json_does() -> None:
    """Quotes, backslashes and other alphabets are valid JSON."""
    assert '{"user_id":"a\\"\\\\é"}'.encode() == compact_key(user_id='a"\\é')
