"""Abandoned carts: a reminder for a shopper who has left something in the cart."""

from collections.abc import Mapping
from typing import ClassVar, Literal

from agents.registry import app
from app.decisions.context import Context
from app.decisions.decision import Decision, Fallback, Severity
from app.decisions.effects import Effects
from app.decisions.policy import Limit, Policy
from app.models.budget import Budget
from app.serving.base import Features
from features.carts import AbandonedCart

PROMPT = """\
You decide whether a shopper of an online shop is reminded of a cart, for its customer service.

You are shown the alert (`alert`: half an hour ago the shopper put something into the cart, and has bought nothing since) and the
shopper's last two hours (`clicks`: `views_2h`, `searches_2h`, `cart_adds_2h`, `cart_removes_2h`, `checkouts_2h`).

Decide one action:
- remind: the shopper meant to buy; several items in the cart, or much interest before, are typical of it. One short message is
  sent.
- leave: one item that was put there in passing, a cart out of which much was taken again, or a shopper who has bought something
  in these two hours. Nobody likes to be followed.

When you are unsure, leave. Give the reason in one sentence, and name the figures that decided it."""

INTERESTED = 3


class CartDecision(Decision, frozen=True, kw_only=True):
    """Whether a shopper is written to. The mild end is that at which one is: nothing that failed ends there."""

    action: Literal["remind", "leave"]
    severities: ClassVar[Mapping[str, Severity]] = {"remind": Severity.APPROVE, "leave": Severity.REVIEW}


def judge_by_rules(alert: AbandonedCart, clicks: Features) -> CartDecision:
    """The offline stand-in for a model: what is left in the cart, and the interest before."""
    left = clicks.values["cart_adds_2h"] - clicks.values["cart_removes_2h"]
    looked = clicks.values["views_2h"] + clicks.values["searches_2h"]
    figures = f"{left} in the cart after {looked} views and searches"
    if clicks.values["checkouts_2h"] == 0 and (left > 1 or looked >= INTERESTED):
        return CartDecision(action="remind", risk_level="LOW", reason=f"meant to buy: {figures}")
    return CartDecision(action="leave", risk_level="LOW", reason=f"in passing, or bought something: {figures}")


@app.agent(
    "processed.alerts",
    alert=AbandonedCart,
    decides=CartDecision,
    fallback=Fallback("leave", "LOW"),
    policy=Policy(limits=(Limit("remind", an_entity=1, within="12h", a_minute=600),)),
    budget=Budget(usd_a_day=10),
    concurrency=32,
    max_age="1h",  # later than that a reminder comes out of nowhere
    rules=judge_by_rules,
)
async def judge_cart(alert: AbandonedCart, context: Context) -> CartDecision:
    """Asks the model whether to remind; a cart out of which everything was taken again needs no model."""
    clicks = await context.features("user_clicks", alert.user_id)
    adds, removes = clicks.values["cart_adds_2h"], clicks.values["cart_removes_2h"]
    if removes >= adds:
        reason = f"nothing is left in the cart: {adds} put in, {removes} taken out"
        return CartDecision(action="leave", risk_level="LOW", reason=reason)
    return await context.decide(PROMPT, alert=alert, clicks=clicks)


@judge_cart.action("remind")
async def remind(decision: CartDecision, effects: Effects) -> None:
    """Has customer service remind the shopper; what is in the cart, and whether the shopper agreed to be written to, is theirs."""
    alert: AbandonedCart = effects.alert
    await effects.post({"user_id": alert.user_id, "alert_id": alert.alert_id})
