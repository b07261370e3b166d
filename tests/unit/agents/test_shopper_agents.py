"""The agents of fraud patterns, visits and carts: their rules, and that doing nothing is what a failure ends in."""

from collections.abc import Callable
from decimal import Decimal
from typing import Any

import pytest

from agents import carts, churn, fraud_patterns
from agents.carts import judge_cart
from agents.churn import judge_visit
from agents.fraud_patterns import ShopperDecision, holds_need_a_risk, judge_shopper
from app.core.clock import Clock, SystemClock, run_virtual
from app.core.instants import instant
from app.decisions.actions import ActionsWork
from app.decisions.agent import Agent
from app.decisions.decision import Reason, Severity
from app.decisions.effects import Receivers
from app.decisions.handling import AgentWork
from app.decisions.policy import judge
from app.models.base import FailureCode, ModelFailure
from app.models.gate import ModelGate
from app.models.rules import RulesModel
from app.serving.base import Features
from app.streams.graph import Alert
from features.carts import AbandonedCart
from features.churn import LeftEmptyHanded
from features.fraud_patterns import FailedPayments, OrderBurst, PaidOtherAmount
from tests.cases_kit import features_of
from tests.decisions_kit import START_MS, World, until

AT = instant(START_MS)
BURST = OrderBurst(
    alert_id="order_burst:u-1:o-5", triggered_at=AT, order_id="o-5", user_id="u-1", amount_usd=Decimal(50)
)
FAILED = FailedPayments(
    alert_id="failed_payments:u-1:p-3",
    triggered_at=AT,
    payment_id="p-3",
    order_id="o-1",
    user_id="u-1",
    amount_usd=Decimal(50),
)
CART = AbandonedCart(alert_id="abandoned_cart:u-1:e-1", triggered_at=AT, user_id="u-1")


def paid(usd: str) -> PaidOtherAmount:
    return PaidOtherAmount(
        alert_id="paid_other_amount:u-1:o-1:p-1",
        triggered_at=AT,
        order_id="o-1",
        payment_id="p-1",
        user_id="u-1",
        amount_usd=Decimal(100),
        paid_usd=Decimal(usd),
    )


def visit(searches: int = 0, adds: int = 0) -> LeftEmptyHanded:
    return LeftEmptyHanded(
        alert_id="left_empty_handed:u-1:1", triggered_at=AT, user_id="u-1", views=8, searches=searches, cart_adds=adds
    )


def clicks(adds: int = 0, removes: int = 0, checkouts: int = 0, views: int = 0) -> Features:
    return features_of(
        "user_clicks",
        "u-1",
        views_2h=views,
        searches_2h=0,
        cart_adds_2h=adds,
        cart_removes_2h=removes,
        checkouts_2h=checkouts,
    )


@pytest.mark.parametrize(
    ("alert", "value", "failed", "authorized", "action"),
    [
        (BURST, "1249.99", 0, 5, "clear"),
        (BURST, "1250", 0, 5, "review"),
        (BURST, "2500", 0, 5, "hold"),
        (BURST, "100", 6, 0, "hold"),
        (FAILED, "0", 3, 1, "clear"),
        (FAILED, "0", 5, 0, "review"),
        (FAILED, "0", 6, 1, "hold"),
        (paid("110"), "0", 0, 1, "review"),
        (paid("50"), "0", 0, 1, "review"),
        (paid("49.99"), "0", 0, 1, "hold"),
    ],
)
def test_judge_shopper_by_rules_looks_at_orders_and_payments(
    alert: fraud_patterns.Pattern, value: str, failed: int, authorized: int, action: str
) -> None:
    """One more failed payment, or a cent, can change the action."""
    orders = features_of("user_features", "u-1", order_count_5m=5, order_value_5m=Decimal(value))
    payments = features_of("user_payments", "u-1", authorized_30m=authorized, failed_30m=failed)
    assert action == fraud_patterns.judge_by_rules(alert, orders, payments).action


def test_hold_at_low_risk_is_reviewed() -> None:
    """An answer that contradicts itself goes to a person."""
    held = ShopperDecision(action="hold", risk_level="LOW", reason="r")
    assert "review" == holds_need_a_risk(BURST, held)
    assert "review" == judge(judge_shopper.policy, BURST, held, (), judge_shopper.fallback).decision.action


@pytest.mark.parametrize(
    ("alert", "checkouts", "action"),
    [(visit(2), 0, "leave"), (visit(3), 0, "offer"), (visit(0, 1), 0, "offer"), (visit(3, 1), 1, "leave")],
)
def test_judge_visit_by_rules_offers_help_to_who_looked_for_something(
    alert: LeftEmptyHanded, checkouts: int, action: str
) -> None:
    """Not to who has bought something in the meantime."""
    assert action == churn.judge_by_rules(alert, clicks(checkouts=checkouts)).action


@pytest.mark.parametrize(
    ("seen", "action"),
    [
        (clicks(adds=1, views=2), "leave"),
        (clicks(adds=1, views=3), "remind"),
        (clicks(adds=2), "remind"),
        (clicks(adds=2, removes=1), "leave"),
        (clicks(adds=3, checkouts=1), "leave"),
    ],
)
def test_judge_cart_by_rules_reminds_who_meant_to_buy(seen: Features, action: str) -> None:
    """One item in passing is left alone."""
    assert action == carts.judge_by_rules(CART, seen).action


@pytest.mark.parametrize("agent", [judge_visit, judge_cart], ids=lambda agent: agent.name)
@pytest.mark.parametrize("concern", [Reason.FEATURES_STALE, Reason.FEATURES_MISSING, Reason.MODEL_FAILED])
def test_nobody_is_written_to_where_something_failed(agent: Agent[Any], concern: Reason) -> None:
    """Doing nothing is the safe end, and a policy may only move there."""
    (writes,) = (name for name, severity in agent.decides.severities.items() if severity is Severity.APPROVE)
    answered = agent.decides(action=writes, risk_level="LOW", reason="r")
    judged = judge(agent.policy, CART, answered, (concern,), agent.fallback)
    assert ("leave", "leave") == (judged.decision.action, agent.fallback and agent.fallback.action)


def test_shoppers_are_written_to_once_in_twelve_hours() -> None:
    """By each agent, however many carts and visits there are; and spend is bounded."""
    for agent in (judge_visit, judge_cart):
        (limit,) = agent.policy.limits
        assert (1, 43_200_000) == (limit.an_entity, limit.within_ms)
        assert agent.budget is not None


class _Views:
    """A feature reader of whatever it is given, by view."""

    def __init__(self, *features: Features) -> None:
        self._features = {one.view: one for one in features}

    async def read(self, view: str, entity: str) -> Features:
        return self._features[view]

    async def read_with_own_event(self, view: str, entity: str, origin: object, wait_ms: int) -> Features:
        return self._features[view]


def decided(
    agent: Agent[Any], rule: Callable[..., Any], alert: Alert, *features: Features
) -> tuple[list[str], list[int], list[tuple[str, dict[str, Any]]]]:
    """Actions, how many model calls each took, and what was posted where."""

    async def main(clock: Clock) -> Any:
        world = await World.create(clock)
        work = AgentWork(
            agent,
            producer=world.broker.producer(),
            reader=world.broker.reader(),
            features=_Views(*features),
            gate=ModelGate(RulesModel({agent.name: rule}), concurrency=4, attempt_ms=1_000),
            clock=clock,
            declared=tuple(agent.alert_types),
            partitions=1,
            switches=world.switches,
        )
        urls = {name: f"http://{name}.test/" for name in agent.action_names}
        actions = ActionsWork(
            [agent],
            producer=world.broker.producer(),
            reader=world.broker.reader(),
            poster=world.receiver,
            receivers=Receivers(urls),
            clock=clock,
            switches=world.switches,
        )
        async with world.running(work, actions):
            world.send(alert)
            await until(lambda: bool(world.effects()))
            await until(lambda: set(world.states().values()) <= {"done"})
        posted = [(url, body) for url, _, body in world.receiver.calls]
        return world.decided(), [len(one.models) for one in world.decisions()], posted

    return run_virtual(main, SystemClock().now_ms())  # type: ignore[no-any-return]


def test_judge_cart_asks_no_model_about_an_empty_cart() -> None:
    """What was put in was taken out again."""
    assert (["leave"], [0], []) == decided(judge_cart, carts.judge_by_rules, CART, clicks(adds=2, removes=2, views=9))


def test_reminder_says_who_and_nothing_of_what() -> None:
    """Which items a shopper looked at leaves the shop with no effect."""
    body = {"user_id": "u-1", "alert_id": CART.alert_id}
    expected = (["remind"], [1], [("http://remind.test/", body)])
    assert expected == decided(judge_cart, carts.judge_by_rules, CART, clicks(adds=2))


def test_offer_says_who() -> None:
    """The message is customer service's."""
    alert = visit(3)
    body = {"user_id": "u-1", "alert_id": alert.alert_id}
    expected = (["offer"], [1], [("http://offer_help.test/", body)])
    assert expected == decided(judge_visit, churn.judge_by_rules, alert, clicks())


def test_model_that_does_not_answer_reminds_nobody() -> None:
    """The fallback has no effect."""

    def refuse(alert: object, clicks: object) -> Any:
        raise ModelFailure(FailureCode.BAD_REQUEST, "refused")

    assert (["leave"], [1], []) == decided(judge_cart, refuse, CART, clicks(adds=2))


def test_held_account_is_stopped_and_seen_by_a_person() -> None:
    """One post, and one request for a person who alone can free it."""
    orders = features_of("user_features", "u-1", order_count_5m=5, order_value_5m=Decimal(9_000))
    payments = features_of("user_payments", "u-1", authorized_30m=0, failed_30m=0)
    actions, calls, posted = decided(judge_shopper, fraud_patterns.judge_by_rules, BURST, orders, payments)
    assert (["hold"], [1]) == (actions, calls)
    ((url, body),) = posted
    assert ("http://hold_account.test/", "u-1", BURST.alert_id) == (url, body["user_id"], body["alert_id"])
