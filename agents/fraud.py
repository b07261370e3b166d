"""Fraud: what is done about an order of unusual value.

An order above the limit is looked at together with what its shopper has ordered in the last five minutes, the order
itself included.
"""

from decimal import Decimal
from typing import Literal

from agents.registry import app
from app.decisions.context import Context
from app.decisions.decision import Decision, RiskLevel, review
from app.decisions.effects import Effects
from app.decisions.policy import Limit, Policy
from app.models.budget import Budget
from app.serving.base import Features
from features.fraud import HighValueOrder

PROMPT = """\
You judge orders of unusually high value in an online shop, for its fraud team.

You are shown the alert (`alert`: the order that raised it) and the shopper's recent activity (`user`: how many orders
the shopper placed in the last five minutes, `order_count_5m`, and their total in US dollars, `order_value_5m`; the order
of the alert is among them when `own_event` is "seen").

Decide one action:
- approve: the order looks like an ordinary large purchase.
- review: there is reason for doubt, and a person should look before the order ships.
- block: the pattern is that of fraud; several orders in quick succession, or a very large total, are typical of it.

Weigh the number of orders and their total more than the single amount. When you are unsure, review. Give the reason in
one or two sentences that a member of the fraud team can act on, and name the figures that decided it."""

BLOCK_COUNT = 5
REVIEW_COUNT = 3
REVIEW_VALUE_USD = Decimal(25_000)
BLOCK_VALUE_USD = Decimal(60_000)
NEVER_UNSEEN_USD = Decimal(50_000)


class FraudDecision(Decision, frozen=True, kw_only=True):
    """What is done about one order."""

    action: Literal["approve", "review", "block"]


def judge_by_rules(alert: HighValueOrder, user: Features) -> FraudDecision:
    """The offline stand-in for a model: thresholds on the shopper's last five minutes."""
    orders = int(user.values["order_count_5m"])
    value = Decimal(user.values["order_value_5m"])
    counted = "1 order" if orders == 1 else f"{orders} orders"
    figures = f"{counted} of {value:.2f} dollars in five minutes, this one {alert.amount_usd:.2f}"
    if orders >= BLOCK_COUNT or value >= BLOCK_VALUE_USD:
        return FraudDecision(
            action="block", risk_level="CRITICAL", reason=f"a series, or a very large total: {figures}"
        )
    if orders >= REVIEW_COUNT or value >= REVIEW_VALUE_USD:
        return FraudDecision(action="review", risk_level="HIGH", reason=f"more than usual: {figures}")
    return FraudDecision(action="approve", risk_level="LOW", reason=f"a single large order: {figures}")


def very_large_orders_are_seen(alert: HighValueOrder, decision: FraudDecision) -> str | None:
    """Nothing above 50,000 dollars is approved without a person."""
    if decision.action == "approve" and alert.amount_usd > NEVER_UNSEEN_USD:
        return "review"
    return None


def blocks_need_a_risk(alert: HighValueOrder, decision: FraudDecision) -> str | None:
    """An answer that blocks at a low risk contradicts itself: a person looks at it."""
    if decision.action == "block" and decision.risk <= RiskLevel.MEDIUM:
        return "review"
    return None


@app.agent(
    "processed.alerts",
    alert=HighValueOrder,
    decides=FraudDecision,
    fallback=review,
    policy=Policy(
        rules=(very_large_orders_are_seen, blocks_need_a_risk),
        may_lower=frozenset({("block", "review")}),
        limits=(Limit("block", an_entity=10, within="1h", a_minute=120),),
    ),
    budget=Budget(usd_a_day=50),
    rules=judge_by_rules,
)
async def judge_order(alert: HighValueOrder, context: Context) -> FraudDecision:
    """Looks at the shopper's last five minutes and asks the model."""
    user = await context.features("user_features", alert.user_id)
    return await context.decide(PROMPT, alert=alert, user=user)


@judge_order.action("block")
async def block_transaction(decision: FraudDecision, effects: Effects) -> None:
    """Stops the order at the payment service."""
    alert: HighValueOrder = effects.alert
    await effects.post(
        {"order_id": alert.order_id, "user_id": alert.user_id, "alert_id": alert.alert_id, "reason": decision.reason}
    )


@judge_order.action("block")
async def notify_fraud_team(decision: FraudDecision, effects: Effects) -> None:
    """Tells the fraud team what was blocked and why."""
    alert: HighValueOrder = effects.alert
    await effects.post(
        {
            "alert_id": alert.alert_id,
            "order_id": alert.order_id,
            "user_id": alert.user_id,
            "amount_usd": alert.amount_usd,
            "risk_level": decision.risk_level,
            "reason": decision.reason,
        }
    )


@judge_order.action("review")
async def queue_for_manual_review(decision: FraudDecision, effects: Effects) -> None:
    """Puts the order before a person."""
    await effects.request_review(decision.reason)
