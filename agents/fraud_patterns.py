"""Fraud patterns: what is done about a shopper whose orders and payments, taken together, look wrong.

`agents/fraud.py` stops an order; here the account is held, since the next order would be as bad as this one.
"""

from collections.abc import Mapping
from decimal import Decimal
from typing import ClassVar, Literal

from agents.registry import app
from app.decisions.context import Context
from app.decisions.decision import Decision, RiskLevel, Severity, review
from app.decisions.effects import Effects
from app.decisions.policy import Limit, Policy
from app.models.budget import Budget
from app.serving.base import Features
from features.fraud_patterns import FailedPayments, OrderBurst, PaidOtherAmount

PROMPT = """\
You judge accounts of shoppers in an online shop, for its fraud team.

You are shown the alert (`alert`; its `alert_type` says which pattern it is):
- order_burst: five orders within five minutes; `order_id` and `amount_usd` are those of the last one.
- failed_payments: three failed payments within ten minutes; the fields are those of the last one.
- paid_other_amount: an order over `amount_usd` of which `paid_usd` was paid.
You are shown, too, what the shopper has done of late: `orders` (`order_count_5m`, and their total in US dollars,
`order_value_5m`) and `payments` of the last half hour (`authorized_30m`, `failed_30m`, and the largest amount that failed,
`largest_failed_usd_30m`, null where none did).

Decide one action:
- clear: there is an ordinary explanation, such as a card that was declined and then accepted, or small orders one by one.
- review: there is reason for doubt, and a person should look at the account.
- hold: the pattern is that of fraud; a card that is tried with amount after amount, an order of which a small part is paid,
  and many orders whose payments fail are typical of it. The shopper cannot order until a person has looked.

When you are unsure, review. Give the reason in one or two sentences that a member of the fraud team can act on, and name the
figures that decided it."""

HOLD_FAILED = 6
HOLD_VALUE_USD = Decimal(2_500)

Pattern = OrderBurst | FailedPayments | PaidOtherAmount


class ShopperDecision(Decision, frozen=True, kw_only=True):
    """What is done about one account."""

    action: Literal["clear", "review", "hold"]
    severities: ClassVar[Mapping[str, Severity]] = {
        "clear": Severity.APPROVE,
        "review": Severity.REVIEW,
        "hold": Severity.BLOCK,
    }


def judge_by_rules(alert: Pattern, orders: Features, payments: Features) -> ShopperDecision:
    """The offline stand-in for a model: thresholds on what failed, what was ordered, and what was paid."""
    failed, authorized = payments.values["failed_30m"], payments.values["authorized_30m"]
    value = Decimal(orders.values["order_value_5m"])
    if isinstance(alert, PaidOtherAmount):
        is_worst, is_good = 2 * alert.paid_usd < alert.amount_usd, False
        figures = f"{alert.paid_usd:.2f} of {alert.amount_usd:.2f} dollars were paid"
    elif isinstance(alert, FailedPayments):
        is_worst, is_good = failed >= HOLD_FAILED, authorized > 0
        figures = f"{failed} payments failed in half an hour, {authorized} did not"
    else:
        is_worst, is_good = value >= HOLD_VALUE_USD or failed >= HOLD_FAILED, value < HOLD_VALUE_USD / 2
        figures = (
            f"{orders.values['order_count_5m']} orders of {value:.2f} dollars in five minutes, {failed} payments failed"
        )
    if is_worst:
        return ShopperDecision(action="hold", risk_level="CRITICAL", reason=f"the pattern of fraud: {figures}")
    if is_good:
        return ShopperDecision(action="clear", risk_level="LOW", reason=f"an ordinary explanation: {figures}")
    return ShopperDecision(action="review", risk_level="HIGH", reason=f"unusual: {figures}")


def holds_need_a_risk(alert: Pattern, decision: ShopperDecision) -> str | None:
    """An answer that holds an account at a low risk contradicts itself: a person looks at it."""
    if decision.action == "hold" and decision.risk <= RiskLevel.MEDIUM:
        return "review"
    return None


@app.agent(
    "processed.alerts",
    alert=Pattern,
    decides=ShopperDecision,
    fallback=review,
    policy=Policy(
        rules=(holds_need_a_risk,),
        may_lower=frozenset({("hold", "review")}),
        limits=(Limit("hold", an_entity=3, within="1h", a_minute=60),),
    ),
    budget=Budget(usd_a_day=25),
    rules=judge_by_rules,
)
async def judge_shopper(alert: Pattern, context: Context) -> ShopperDecision:
    """Looks at the shopper's last orders and payments, and asks the model."""
    orders = await context.features("user_features", alert.user_id)
    payments = await context.features("user_payments", alert.user_id)
    return await context.decide(PROMPT, alert=alert, orders=orders, payments=payments)


@judge_shopper.action("hold")
async def hold_account(decision: ShopperDecision, effects: Effects) -> None:
    """Lets the shopper order nothing more until a person has looked."""
    alert: Pattern = effects.alert
    await effects.post({"user_id": alert.user_id, "alert_id": alert.alert_id, "reason": decision.reason})


@judge_shopper.action("hold")
async def queue_held_account(decision: ShopperDecision, effects: Effects) -> None:
    """Puts a held account before a person, who alone can free it."""
    await effects.request_review(decision.reason)


@judge_shopper.action("review")
async def queue_account(decision: ShopperDecision, effects: Effects) -> None:
    """Puts the account before a person."""
    await effects.request_review(decision.reason)
