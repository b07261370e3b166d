"""The whole path under the virtual clock against a brute-force reading of the same events."""

from collections import Counter
from collections.abc import Mapping
from decimal import Decimal
from functools import cache
from typing import Any

from agents import app, carts, churn, fraud
from app.core.clock import Clock, run_virtual
from app.core.instants import instant
from app.core.settings import Settings
from app.demo import Demo, Summary
from app.models.rules import RulesModel
from app.serving.base import Features, Freshness, OwnEvent
from app.sources.generator import Publication
from features.carts import AbandonedCart
from features.churn import LeftEmptyHanded
from features.demo import scenario
from features.fraud import HighValueOrder
from tests.cases_reference import Cases, read_cases
from tests.reference import AlertSeen, Rules, as_records, read_all

START_MS = 1_800_000_000_000
EVENTS = 40_000
SETTINGS = Settings(broker="memory://", store="memory://", model="rules")


def run_demo(events: int, seed: int) -> Summary:
    async def main(clock: Clock) -> Summary:
        demo = Demo(app, SETTINGS, RulesModel(app.rules), clock)
        return await demo.run(scenario, events, seed, "virtual")

    return run_virtual(main, START_MS)


@cache
def long_run() -> Summary:
    """Long enough for a window of five minutes to lose what it held."""
    return run_demo(EVENTS, 7)


@cache
def published(events: int, seed: int) -> list[Publication]:
    return list(scenario(events, seed, START_MS))


def orders_of(publications: list[Publication]) -> list[Publication]:
    return [publication for publication in publications if publication.topic == "raw.orders"]


def features_of(view: str, entity: str, values: Mapping[str, Any], own_event: OwnEvent = OwnEvent.SEEN) -> Features:
    return Features(
        view=view,
        entity=entity,
        values=dict(values),
        window_end_ms=0,
        as_of_ms=0,
        age_ms=0,
        freshness=Freshness.FRESH,
        own_event=own_event,
    )


def clicks_of(cases: Cases, user: str) -> Features:
    """What the live view shows once a shopper's only visit is over: all of it."""
    kinds = ("view", "search", "cart_add", "cart_remove", "checkout")
    names = ("views_2h", "searches_2h", "cart_adds_2h", "cart_removes_2h", "checkouts_2h")
    clicks = cases.clicks[user]
    values = {name: clicks[kind] for name, kind in zip(names, kinds, strict=True)}
    return features_of("user_clicks", user, values)


def reminders(cases: Cases) -> int:
    """Carts whose shoppers are reminded: not of one out of which everything was taken again."""
    reminded = 0
    for add in cases.abandoned_carts:
        alert = AbandonedCart(alert_id="a", triggered_at=add.timestamp, user_id=add.user_id)
        clicks = clicks_of(cases, add.user_id)
        is_empty = clicks.values["cart_removes_2h"] >= clicks.values["cart_adds_2h"]
        reminded += not is_empty and carts.judge_by_rules(alert, clicks).action == "remind"
    return reminded


def offers(cases: Cases) -> int:
    """Visits after which help is offered."""
    alerts = [
        LeftEmptyHanded(alert_id="a", triggered_at=instant(row.start_ms), user_id=row.key, **row.values)
        for row in cases.empty_handed_visits
    ]
    return sum(churn.judge_by_rules(alert, clicks_of(cases, alert.user_id)).action == "offer" for alert in alerts)


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
    values = {"order_count_5m": seen.features.orders, "order_value_5m": Decimal(seen.features.cents) / 100}
    user = features_of("user_features", seen.user_id, values, OwnEvent.LATE if late else OwnEvent.SEEN)
    decision = fraud.judge_by_rules(alert, user)
    for rule in (fraud.very_large_orders_are_seen, fraud.blocks_need_a_risk):
        decided = rule(alert, decision)
        if decided is not None:
            return decided
    return "review" if late and decision.action == "approve" else decision.action


def test_demo_any_run_counts_what_brute_force_counts() -> None:
    """40,000 events give the counts of a plain reading: every alert, what is late, and each decision that hangs on no moment."""
    publications = published(EVENTS, 7)
    reading, cases = read_all(as_records(orders_of(publications))), read_cases(publications)
    actions = Counter(reading.decisions(action_by_rules).values())
    reminded, offered = reminders(cases), offers(cases)
    carts_left, visits = len(cases.abandoned_carts) - reminded, len(cases.empty_handed_visits) - offered
    summary = long_run()
    assert {"high_value_order": len(reading.alerts), **cases.alerts} == summary.alerts
    assert {**reading.late, **{name: count for name, count in cases.late.items() if count}} == summary.late
    assert (EVENTS, len(reading.malformed)) == (summary.events, summary.malformed)
    assert len(reading.malformed) == summary.dead_letters
    assert {
        "judge_order": {"approve": actions["approve"], "review": actions["review"], "block": actions["block"]},
        "judge_visit": {"offer": offered, "leave": visits},
        "judge_cart": {"remind": reminded, "leave": carts_left},
    } == {name: summary.decisions[name] for name in ("judge_order", "judge_visit", "judge_cart")}
    assert all(count > 0 for decided in summary.decisions.values() for count in decided.values())


def test_demo_every_alert_is_decided_and_every_decision_acted_on() -> None:
    """Each alert has one decision of its agent, what ends an incident is a recovery, and each action has its effects."""
    summary = long_run()
    for agent in app.agents.values():
        decided = summary.decisions[agent.name]
        assert sum(summary.alerts[tag] for tag in agent.alert_types) == sum(decided.values())
        for action, count in decided.items():
            assert all(count == summary.effects[effect.name] for effect in agent.actions(action))
    assert 0 < summary.decisions["judge_outage"]["resolve"] <= summary.alerts["service_recovered"]


def test_demo_wrong_feature_changes_the_counts() -> None:
    """Ablation: were the window half a minute shorter, or repeats counted, the decisions would be others."""
    records = list(as_records(orders_of(published(EVENTS, 7))))
    right = Counter(read_all(records).decisions(action_by_rules).values())
    for wrong in (Rules(live_ms=270_000), Rules(once_within_ms=None)):
        assert right != Counter(read_all(records, wrong).decisions(action_by_rules).values())


def test_demo_same_seed_gives_the_same_summary() -> None:
    """Two runs of one seed are one run, down to the virtual seconds; another seed is another run."""
    assert run_demo(1_500, 3) == run_demo(1_500, 3)
    assert run_demo(1_500, 3) != run_demo(1_500, 4)
