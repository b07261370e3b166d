"""Clicks, orders and payments as the streams see them: what is an abandoned cart, an empty-handed visit, a pattern of fraud."""

from decimal import Decimal
from types import ModuleType
from typing import Any, Literal

import msgspec
import pytest

from app.core.instants import instant
from features import carts, churn, fraud_patterns
from features.records import OrderEvent, PaymentEvent, UserEvent
from tests.cases_kit import START_MS, alerts_of

MINUTE_MS = 60_000
KINDS: dict[str, Any] = {"v": "view", "s": "search", "+": "cart_add", "-": "cart_remove", "$": "checkout"}


def visit(kinds: str, every_ms: int = MINUTE_MS, user: str = "u-1") -> list[UserEvent]:
    """A click a minute, of `KINDS`; a space is a minute without one."""
    return [
        UserEvent(f"{user}-{n}", user, KINDS[kind], instant(START_MS + n * every_ms), f"i-{n}")
        for n, kind in enumerate(kinds)
        if kind != " "
    ]


def raised(module: ModuleType, events: list[Any], minutes: int = 90) -> list[dict[str, Any]]:
    return alerts_of(module, events, START_MS + minutes * MINUTE_MS)


def order(number: int, at_ms: int, usd: str = "50", status: Literal["placed", "paid"] = "placed") -> OrderEvent:
    return OrderEvent(f"o-{number}", "u-1", Decimal(usd), status, instant(START_MS + at_ms))


def payment(
    number: int, at_ms: int, usd: str = "50", status: Literal["authorized", "failed"] = "authorized", order: int = 0
) -> PaymentEvent:
    return PaymentEvent(f"p-{number}", f"o-{order}", "u-1", Decimal(usd), status, instant(START_MS + at_ms))


@pytest.mark.parametrize(
    ("kinds", "carts_left"),
    [
        ("v+", 1),
        ("+++", 1),
        ("++-", 1),
        ("vv", 0),
        ("+$", 0),
        ("+" + " " * 29 + "$", 0),
        ("+" + " " * 30 + "$", 1),
        ("+" + " " * 29 + "+", 1),
        ("+" + " " * 30 + "+", 2),
        ("+$+", 1),
        ("+vvvvvvv", 1),
    ],
)
def test_abandoned_cart_is_one_alert_a_cart(kinds: str, carts_left: int) -> None:
    """However many items: the last one that was added stands for them, unless there is a checkout within half an hour."""
    alerts = raised(carts, visit(kinds))
    last = max((n for n, kind in enumerate(kinds) if kind == "+"), default=None)
    assert carts_left == len(alerts)
    if carts_left:
        assert f"abandoned_cart:u-1:u-1-{last}" == alerts[-1]["alert_id"]
        assert {"alert_type", "alert_id", "triggered_at", "user_id"} == alerts[-1].keys()


def test_abandoned_cart_is_not_known_before_half_an_hour() -> None:
    """Nor is it another shopper's checkout that ends it."""
    clicks = [*visit("+"), *visit(" $", user="u-2")]
    assert [] == raised(carts, clicks, minutes=30)
    assert 1 == len(raised(carts, clicks, minutes=31))


@pytest.mark.parametrize(
    ("kinds", "expected"),
    [
        ("vvvvvvvv", (8, 0, 0)),
        ("vvvvvsss", (5, 3, 0)),
        ("vvvvvvv", None),
        ("vvvvvvvv+", None),
        ("vvvvvvvv+-", (8, 0, 1)),
        ("vvvvvvvv+$", None),
        ("vvvv" + " " * 29 + "vvvv", (8, 0, 0)),
        ("vvvv" + " " * 30 + "vvvv", None),
    ],
)
def test_left_empty_handed_is_a_visit_with_interest_and_nothing_in_the_cart(
    kinds: str, expected: tuple[int, int, int] | None
) -> None:
    """One alert a visit; who leaves something in the cart is reminded of that instead."""
    alerts = raised(churn, visit(kinds))
    assert [expected] * (expected is not None) == [(one["views"], one["searches"], one["cart_adds"]) for one in alerts]


def test_order_burst_counts_placed_orders_once() -> None:
    """Neither repeats nor changes of status are orders."""
    five = [order(n, n * MINUTE_MS) for n in range(5)]
    assert ["order_burst:u-1:o-4"] == [one["alert_id"] for one in raised(fraud_patterns, five)]
    four = [*five[:4], five[3], order(0, 4 * MINUTE_MS, status="paid")]
    assert [] == raised(fraud_patterns, four)


def test_failed_payments_are_three_within_ten_minutes() -> None:
    """Those that succeed do not count, nor does the same one twice."""
    failed = [payment(n, n * MINUTE_MS, status="failed") for n in range(3)]
    assert ["failed_payments:u-1:p-2"] == [one["alert_id"] for one in raised(fraud_patterns, failed)]
    assert [] == raised(fraud_patterns, [*failed[:2], failed[1], payment(3, 2 * MINUTE_MS)])
    assert [] == raised(
        fraud_patterns, [*failed[:2], msgspec.structs.replace(failed[2], timestamp=instant(START_MS + 600_001))]
    )


@pytest.mark.parametrize(
    ("paid", "expected"),
    [
        (payment(1, 1_000, "49.99"), [49.99]),
        (payment(1, -60_000, "50.01"), [50.01]),
        (payment(1, 10 * MINUTE_MS, "5"), [5]),
        (payment(1, 1_000, "50"), []),
        (payment(1, 1_000, "5", "failed"), []),
        (payment(1, 1_000, "5", order=7), []),
        (payment(1, 10 * MINUTE_MS + 1, "5"), []),
    ],
)
def test_paid_other_amount_compares_an_order_with_its_payments(paid: PaymentEvent, expected: list[float]) -> None:
    """To the cent, by order, from a minute before it until ten minutes after."""
    alerts = raised(fraud_patterns, [order(0, 0), paid])
    assert [(50, usd, "o-0", "p-1") for usd in expected] == [
        (one["amount_usd"], one["paid_usd"], one["order_id"], one["payment_id"]) for one in alerts
    ]
