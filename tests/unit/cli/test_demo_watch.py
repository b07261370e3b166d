"""What the demo's view is told about a decision."""

import msgspec

from app.cli.demo_view import SeenDecision
from app.cli.demo_watch import seen
from app.decisions.policy import PolicyChange
from app.decisions.record import DecisionRecord, Hops

APPROVED = DecisionRecord(
    agent="judge_order",
    alert_id="high_value_order:u-1:o-1",
    alert_type="high_value_order",
    entity="u-1",
    alert_topic="processed.alerts",
    alert_partition=0,
    alert_offset=0,
    origin="raw.orders/0/0",
    mode="live",
    decision=msgspec.Raw(b'{"action":"approve","reason":"a single large order"}'),
    answered=msgspec.Raw(b'{"action":"approve","reason":"a single large order"}'),
    policy=None,
    reasons=(),
    attempt=1,
    features=(),
    models=(),
    hops=Hops(0, 0, 0, 0, 0, 0),
    alert=msgspec.Raw(b'{"amount_usd":12500.5}'),
    writer="w",
    number=0,
    previous="",
)


def test_seen_decision_left_alone_shows_its_own_reason() -> None:
    """What the model said is shown with the alert's amount in dollars."""
    assert SeenDecision("judge_order", "approve", "u-1", "$12,500.50", "a single large order") == seen(APPROVED)


def test_seen_decision_changed_by_policy_shows_why() -> None:
    """A reason that speaks for approval must not stand beside the word review."""
    raised = msgspec.structs.replace(
        APPROVED,
        decision=msgspec.Raw(b'{"action":"review","reason":"a single large order"}'),
        policy=PolicyChange("approve", "review", ("own_event_late",)),
    )
    assert "own_event_late, else approve" == seen(raised).reason
