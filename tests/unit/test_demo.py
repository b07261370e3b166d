"""The whole path under the virtual clock against a brute-force reading of the same events."""

from collections import Counter
from decimal import Decimal

from agents import app, fraud
from app.core.clock import Clock, run_virtual
from app.core.instants import instant
from app.core.settings import Settings
from app.demo import Demo, Summary
from app.models.rules import RulesModel
from app.serving.base import Features, Freshness, OwnEvent
from features.fraud import HighValueOrder
from features.scenario import scenario
from tests.reference import AlertSeen, Rules, as_records, read_all

START_MS = 1_800_000_000_000
SETTINGS = Settings(broker="memory://", store="memory://", model="rules")


def run_demo(events: int, seed: int) -> Summary:
    async def main(clock: Clock) -> Summary:
        demo = Demo(app, SETTINGS, RulesModel(app.rules), clock)
        return await demo.run(scenario, events, seed, "virtual")

    return run_virtual(main, START_MS)


def action_by_rules(seen: AlertSeen) -> str:
    """The agent's rules and policy for what brute force says that it saw."""
    assert seen.features is not None
    alert = HighValueOrder(
        alert_id=seen.alert_id,
        triggered_at=instant(seen.triggered_ms),
        order_id=seen.order_id,
        user_id=seen.user_id,
        amount_usd=Decimal(seen.cents) / 100,
    )
    late = "user_features" in seen.late_for
    user = Features(
        view="user_features",
        entity=seen.user_id,
        values={"order_count_5m": seen.features.orders, "order_value_5m": Decimal(seen.features.cents) / 100},
        window_end_ms=0,
        as_of_ms=0,
        age_ms=0,
        freshness=Freshness.FRESH,
        own_event=OwnEvent.LATE if late else OwnEvent.SEEN,
    )
    decision = fraud.judge_by_rules(alert, user)
    for rule in (fraud.very_large_orders_are_seen, fraud.blocks_need_a_risk):
        decided = rule(alert, decision)
        if decided is not None:
            return decided
    return "review" if late and decision.action == "approve" else decision.action


def test_demo_any_run_counts_what_brute_force_counts() -> None:
    """20,000 events give the counts of a plain reading, in every run the same."""
    reading = read_all(as_records(scenario(20_000, 7, START_MS)))
    actions = Counter(reading.decisions(action_by_rules).values())
    expected = Summary(
        clock="virtual",
        seconds=0.0,
        events=20_000,
        malformed=len(reading.malformed),
        late={"order_rate": reading.late["order_rate"], "user_features": reading.late["user_features"]},
        alerts=len(reading.alerts),
        decisions={"approve": actions["approve"], "review": actions["review"], "block": actions["block"]},
        effects={
            "block_transaction": actions["block"],
            "notify_fraud_team": actions["block"],
            "queue_for_manual_review": actions["review"],
        },
        dead_letters=len(reading.malformed),
    )
    summary = run_demo(20_000, 7)
    expected.seconds = summary.seconds
    assert expected == summary
    assert all(count > 0 for count in summary.decisions.values())


def test_demo_wrong_feature_changes_the_counts() -> None:
    """Ablation: were the window half a minute shorter, or repeats counted, the decisions would be others."""
    records = list(as_records(scenario(20_000, 7, START_MS)))
    right = Counter(read_all(records).decisions(action_by_rules).values())
    for wrong in (Rules(live_ms=270_000), Rules(once_within_ms=None)):
        assert right != Counter(read_all(records, wrong).decisions(action_by_rules).values())


def test_demo_same_seed_gives_the_same_summary() -> None:
    """Two runs of one seed are one run, down to the virtual seconds; another seed is another run."""
    assert run_demo(1_500, 3) == run_demo(1_500, 3)
    assert run_demo(1_500, 3) != run_demo(1_500, 4)
