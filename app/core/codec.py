"""Bytes on the wire: JSON by msgspec, exact money, compact keys.

Money is a JSON number of dollars with at most two decimals on the wire, a `Decimal` of dollars in handlers and an
integer of cents inside engine and store. It is never a float.
"""

from decimal import Context, Decimal, Inexact, InvalidOperation
from typing import Annotated, Any

import msgspec

Usd = Annotated[Decimal, msgspec.Meta(extra={"unit": "usd"}, description="US dollars, at most two decimals")]
"""Type of a money field in a record."""

MAX_CENTS = 10**12

_ZERO, _HUNDRED = Decimal(0), Decimal(100)
_MAX_DOLLARS = Decimal(MAX_CENTS // 100)
_MAX_INTEGER = 2**63 - 1
_EXACT = Context(prec=28, traps=[Inexact, InvalidOperation])
_multiply, _to_whole = _EXACT.multiply, _EXACT.to_integral_exact

_encoder = msgspec.json.Encoder(decimal_format="number")


def encode(value: Any) -> bytes:
    """Compact JSON. Decimals become numbers, datetimes ISO-8601 ending in Z."""
    return _encoder.encode(value)


def to_cents(dollars: Decimal) -> int:
    """Exact cents of an amount of 0 to 10^12 cents.

    Raises: ValueError for a negative, non-finite, too large or finer amount.
    """
    try:
        if _ZERO <= dollars <= _MAX_DOLLARS:  # first: int() of 1e999999 would fill the memory
            return int(_to_whole(_multiply(dollars, _HUNDRED)))
    except Inexact:
        raise ValueError(f"{dollars} has more than two decimals") from None
    except InvalidOperation:
        raise ValueError(f"{dollars} is not an amount") from None
    raise ValueError(f"{dollars} is not between 0 and {_MAX_DOLLARS}")


def sum_to_cents(dollars: Decimal) -> int:
    """Exact cents of a sum of amounts, of any sign, as our own topics hold it.

    Raises: ValueError for what is non-finite, beyond 64 bits, or finer than a cent.
    """
    if not dollars.is_finite() or abs(dollars) > _MAX_INTEGER:  # first: int() of 1e999999 would fill the memory
        raise ValueError(f"{dollars} is no amount")
    try:
        return int(_to_whole(_multiply(dollars, _HUNDRED)))
    except Inexact:
        raise ValueError(f"{dollars} has more than two decimals") from None


def to_dollars(cents: int) -> Decimal:
    """Dollars with two decimals: 1050 -> Decimal('10.50')."""
    return Decimal(cents).scaleb(-2)


def cents_to_json(cents: int) -> bytes:
    """The wire form of an amount: 1050 -> `10.50`, -5 -> `-0.05`."""
    if cents >= 0:
        return b"%d.%02d" % divmod(cents, 100)
    return b"-%d.%02d" % divmod(-cents, 100)


def compact_key(**fields: str | int) -> bytes:
    """Key of a compacted topic: a compact JSON object of the key fields, in the order given.

    Source: the form Flink's JSON key format writes, so both engines' keys are the same bytes.
    """
    return _encoder.encode(fields)
