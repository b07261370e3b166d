"""The application that is put under faults: one agent, one effect at a receiver, twelve partitions of alerts.

What an alert does to its handler stands in its order's id, `kind-run-number`: see `judge`.
"""

import os
import signal
from collections.abc import Mapping
from typing import ClassVar, Literal

from app.application import App
from app.decisions.context import Context
from app.decisions.decision import Decision, Severity, review
from app.decisions.effects import Effects
from features import fraud
from features.fraud import HighValueOrder

PARTITIONS = 12
POSTING = {"block": ("block_order",), "hold": ("hold_payment",)}
"""Which effects an action posts to the sink."""
REVIEWING = {"review": ("queue_for_review",)}
"""Which effects put the alert before a person."""

PROMPT = "You judge orders of unusual value. Answer approve, review, hold or block."
RAISES_ONCE, RAISES_ALWAYS, KILLS = "once", "always", "kills"
KILLED_BY = "killed by "
"""What the process says last, followed by the alert's id."""
RUN_VARIABLE = "FAULTS_RUN"
"""Which run this is: what another one left behind does its handlers no harm."""
DEADLINE_VARIABLE = "FAULTS_DEADLINE"
"""The agent's deadline where it is not 20 s."""

app = App(features=[fraud], alert_partitions=PARTITIONS)
_raised: set[str] = set()


class Judgement(Decision, frozen=True, kw_only=True):
    """What is done about one order."""

    action: Literal["approve", "review", "hold", "block"]
    severities: ClassVar[Mapping[str, Severity]] = {**Decision.severities, "hold": Severity.BLOCK}


@app.agent(
    "processed.alerts",
    alert=HighValueOrder,
    decides=Judgement,
    fallback=review,
    concurrency=64,
    deadline=os.environ.get(DEADLINE_VARIABLE, "20s"),
)
async def judge(alert: HighValueOrder, context: Context) -> Judgement:
    """Asks the model, unless the order is of those on which a handler fails."""
    kind, _, rest = alert.order_id.partition("-")
    if rest.rpartition("-")[0] != os.environ[RUN_VARIABLE]:
        kind = ""
    if kind == RAISES_ALWAYS or (kind == RAISES_ONCE and alert.order_id not in _raised):
        _raised.add(alert.order_id)
        raise RuntimeError(f"a handler that raises {kind}")
    if kind == KILLS:
        os.write(2, f"\n{KILLED_BY}{alert.alert_id}\n".encode())
        os.kill(os.getpid(), signal.SIGKILL)
    user = await context.features("user_features", alert.user_id)
    return await context.decide(PROMPT, alert=alert, user=user)


@judge.action("block")
async def block_order(decision: Judgement, effects: Effects) -> None:
    """Says which answer it acts on: the reason holds the number of the model call."""
    await effects.post({"alert_id": effects.alert.alert_id, "reason": decision.reason})


@judge.action("hold", at_most_once=True)
async def hold_payment(decision: Judgement, effects: Effects) -> None:
    """The same, at a receiver that knows no keys."""
    await effects.post({"alert_id": effects.alert.alert_id, "reason": decision.reason})


@judge.action("review")
async def queue_for_review(decision: Judgement, effects: Effects) -> None:
    """Puts the order before a person."""
    await effects.request_review(decision.reason)
