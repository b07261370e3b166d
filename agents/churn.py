"""Churn: help for a shopper who looked for something and left without it."""

from collections.abc import Mapping
from typing import ClassVar, Literal

from agents.registry import app
from app.decisions.context import Context
from app.decisions.decision import Decision, Fallback, Severity
from app.decisions.effects import Effects
from app.decisions.policy import Limit, Policy
from app.models.budget import Budget
from app.serving.base import Features
from features.churn import LeftEmptyHanded

PROMPT = """\
You decide whether a shopper who has left an online shop is offered help, for its customer service.

You are shown the alert (`alert`: how many pages the shopper has viewed in this visit, `views`, how often searched, `searches`,
and how often put something into the cart, `cart_adds`, all of which was taken out again) and the shopper's last two hours
(`clicks`: the same counts, and `checkouts_2h`).

Decide one action:
- offer: the shopper was looking for something and did not find it, or had doubts about it; many searches, or a cart that was
  filled and emptied, are typical of it. One short message is sent.
- leave: the shopper only looked around, or has bought something in these two hours. Nobody likes to be followed.

When you are unsure, leave. Give the reason in one sentence, and name the figures that decided it."""

SEARCHED = 3


class VisitDecision(Decision, frozen=True, kw_only=True):
    """Whether a shopper is written to. The mild end is that at which one is: nothing that failed ends there."""

    action: Literal["offer", "leave"]
    severities: ClassVar[Mapping[str, Severity]] = {"offer": Severity.APPROVE, "leave": Severity.REVIEW}


def judge_by_rules(alert: LeftEmptyHanded, clicks: Features) -> VisitDecision:
    """The offline stand-in for a model: searches, and a cart that was emptied."""
    figures = f"views {alert.views}, searches {alert.searches}, items put in and taken out {alert.cart_adds}"
    looked_for = alert.searches >= SEARCHED or alert.cart_adds > 0
    if looked_for and clicks.values["checkouts_2h"] == 0:
        return VisitDecision(action="offer", risk_level="LOW", reason=f"looked for something: {figures}")
    return VisitDecision(action="leave", risk_level="LOW", reason=f"needs no help: {figures}")


@app.agent(
    "processed.alerts",
    alert=LeftEmptyHanded,
    decides=VisitDecision,
    fallback=Fallback("leave", "LOW"),
    policy=Policy(limits=(Limit("offer", an_entity=1, within="12h", a_minute=600),)),
    budget=Budget(usd_a_day=10),
    concurrency=32,
    max_age="1h",  # later than that help is of no use
    rules=judge_by_rules,
)
async def judge_visit(alert: LeftEmptyHanded, context: Context) -> VisitDecision:
    """Looks at the shopper's last two hours and asks the model."""
    clicks = await context.features("user_clicks", alert.user_id)
    return await context.decide(PROMPT, alert=alert, clicks=clicks)


@judge_visit.action("offer")
async def offer_help(decision: VisitDecision, effects: Effects) -> None:
    """Has customer service write to the shopper; what they say, and whether the shopper agreed to be written to, is theirs."""
    alert: LeftEmptyHanded = effects.alert
    await effects.post({"user_id": alert.user_id, "alert_id": alert.alert_id})
