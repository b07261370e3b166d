"""The fraud agent: its rules look at the features, and its effects reach real receivers with key and schema."""

from datetime import UTC, datetime
from decimal import Decimal
from typing import Literal

import msgspec
import pytest
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from agents.fraud import (
    FraudDecision,
    blocks_need_a_risk,
    judge_by_rules,
    judge_order,
    very_large_orders_are_seen,
)
from app.core.clock import SystemClock
from app.core.codec import encode
from app.decisions.actions import ActionsWork
from app.decisions.effects import Receivers
from app.decisions.handling import AgentWork
from app.decisions.policy import judge
from app.decisions.record import ReviewRequest
from app.http.client import HttpClient
from app.models.gate import ModelGate
from app.models.prompt import answer_schema
from app.models.rules import RulesModel
from app.serving.base import Features, Freshness, OwnEvent
from features.fraud import HighValueOrder
from tests.cases_kit import listening
from tests.decisions_kit import START_MS, World, until


def order(amount: str = "12000", number: int = 1) -> HighValueOrder:
    return HighValueOrder(
        alert_id=f"high_value_order:u-1:o-{number}",
        triggered_at=datetime.fromtimestamp(START_MS / 1000, UTC),
        order_id=f"o-{number}",
        user_id="u-1",
        amount_usd=Decimal(amount),
    )


def activity(orders: int, value: str) -> Features:
    return Features(
        view="user_features",
        entity="u-1",
        values={"order_count_5m": orders, "order_value_5m": Decimal(value)},
        window_end_ms=START_MS,
        as_of_ms=START_MS,
        age_ms=0,
        freshness=Freshness.FRESH,
        own_event=OwnEvent.SEEN,
    )


@pytest.mark.parametrize(
    ("orders", "value", "action"),
    [
        (1, "12000.00", "approve"),
        (2, "24999.99", "approve"),
        (3, "12000.00", "review"),
        (1, "25000.00", "review"),
        (4, "59999.99", "review"),
        (5, "12000.00", "block"),
        (1, "60000.00", "block"),
    ],
)
def test_judge_by_rules_looks_at_count_and_value(orders: int, value: str, action: str) -> None:
    """One more order or cent can change the action: a wrong feature changes the answer."""
    assert action == judge_by_rules(order(), activity(orders, value)).action


def test_very_large_orders_are_seen_by_a_person() -> None:
    """An approval above 50,000 dollars becomes a review; a block stays one."""
    large = order("50000.01")
    approved = FraudDecision(action="approve", risk_level="LOW", reason="r")
    blocked = FraudDecision(action="block", risk_level="HIGH", reason="r")
    assert "review" == very_large_orders_are_seen(large, approved)
    assert very_large_orders_are_seen(order("50000"), approved) is None
    assert very_large_orders_are_seen(large, blocked) is None


def test_block_at_low_risk_is_reviewed() -> None:
    """The one lowering that the agent declares: an answer that contradicts itself goes to a person."""
    blocked = FraudDecision(action="block", risk_level="LOW", reason="r")
    assert "review" == blocks_need_a_risk(order(), blocked)
    judged = judge(judge_order.policy, order(), blocked, (), judge_order.fallback)
    assert ("review", ("policy_rule:blocks_need_a_risk",)) == (judged.decision.action, judged.reasons)


def test_judge_order_is_bounded_in_dollars_blocks_and_age() -> None:
    """What most are copied from leaves none of the three without a bound."""
    (limit,) = judge_order.policy.limits
    assert judge_order.budget is not None
    assert (50_000_000, 900_000) == (judge_order.budget.micro_usd_a_day, judge_order.max_age_ms)
    assert ("block", 10, 3_600_000, 120) == (limit.action, limit.an_entity, limit.within_ms, limit.a_minute)


def test_fraud_decision_has_a_schema_for_models() -> None:
    """Structured output can express the decision, with its three actions."""
    schema = answer_schema(FraudDecision)
    assert {"approve", "review", "block"} == set(schema["properties"]["action"]["enum"])


class BlockedTransaction(msgspec.Struct, forbid_unknown_fields=True):
    """What the payment service takes."""

    order_id: str
    user_id: str
    alert_id: str
    reason: str


class FraudNotice(msgspec.Struct, forbid_unknown_fields=True):
    """What the fraud team's service takes."""

    alert_id: str
    order_id: str
    user_id: str
    amount_usd: Decimal
    risk_level: Literal["LOW", "MEDIUM", "HIGH", "CRITICAL"]
    reason: str


SCHEMAS = {"/block": BlockedTransaction, "/notify": FraudNotice}


class PaymentsAndTeam:
    """A service that checks schema and token, applies each key once, and can refuse its first calls."""

    def __init__(self, unavailable: int = 0) -> None:
        self.unavailable = unavailable
        self.calls: list[tuple[str, str]] = []
        self.applied: dict[tuple[str, str], msgspec.Struct] = {}
        self.refused: list[str] = []

    async def receive(self, request: Request) -> Response:
        key, path = request.headers.get("idempotency-key", ""), request.url.path
        self.calls.append((path, key))
        try:
            body = msgspec.json.decode(await request.body(), type=SCHEMAS[path])
        except msgspec.ValidationError as error:
            self.refused.append(str(error))
            return JSONResponse({"error": str(error)}, 422)
        if not key or request.headers.get("authorization") != "Bearer secret":
            self.refused.append("no key or no token")
            return JSONResponse({}, 401)
        if self.unavailable > 0:
            self.unavailable -= 1
            return JSONResponse({}, 503)
        self.applied.setdefault((path, key), body)
        return JSONResponse({})


async def world_with_rules(features: Features) -> tuple[World, AgentWork]:
    world = await World.create(SystemClock())
    world.addresses.clear()
    rules = RulesModel({"judge_order": lambda alert, user: judge_by_rules(alert, features)})
    work = AgentWork(
        judge_order,
        producer=world.broker.producer(),
        reader=world.broker.reader(),
        features=world.features,
        gate=ModelGate(rules, concurrency=4, attempt_ms=1_000),
        clock=world.clock,
        declared=("high_value_order",),
        partitions=1,
        switches=world.switches,
    )
    return world, work


def actions_work(world: World, client: HttpClient, addresses: dict[str, str]) -> ActionsWork:
    return ActionsWork(
        [judge_order],
        producer=world.broker.producer(),
        reader=world.broker.reader(),
        poster=client,
        receivers=Receivers(addresses, "secret", 2_000),
        clock=world.clock,
        switches=world.switches,
    )


async def test_block_reaches_both_receivers_with_key_and_schema() -> None:
    """Over real HTTP, through a receiver that is away at first: each key is applied once and fits the schema."""
    service = PaymentsAndTeam(unavailable=1)
    world, agent = await world_with_rules(activity(6, "70000.00"))
    async with listening(dict.fromkeys(SCHEMAS, service.receive)) as base, HttpClient() as client:
        addresses = {"block_transaction": f"{base}/block", "notify_fraud_team": f"{base}/notify"}
        async with world.running(agent, actions_work(world, client, addresses)):
            world.send(order("12345.67"))
            await until(lambda: len(service.applied) == 2, 30)
            await until(lambda: set(world.states().values()) == {"done"}, 30)
    block_key = "judge_order:block_transaction:high_value_order:u-1:o-1"
    notify_key = "judge_order:notify_fraud_team:high_value_order:u-1:o-1"
    assert [] == service.refused
    assert {("/block", block_key), ("/notify", notify_key)} == set(service.applied)
    assert 3 == len(service.calls)
    blocked = service.applied["/block", block_key]
    notice = service.applied["/notify", notify_key]
    assert isinstance(blocked, BlockedTransaction)
    assert isinstance(notice, FraudNotice)
    assert ("o-1", "u-1") == (blocked.order_id, blocked.user_id)
    assert (Decimal("12345.67"), "CRITICAL") == (notice.amount_usd, notice.risk_level)


async def test_review_is_queued_for_a_person() -> None:
    """A review is one request on `agent.reviews`, and nobody is called."""
    world, agent = await world_with_rules(activity(3, "30000.00"))
    async with HttpClient() as client, world.running(agent, actions_work(world, client, {})):
        world.send(order())
        await until(lambda: world.states() == {"queue_for_manual_review": "done"}, 30)
    (request,) = world.reviews()
    assert isinstance(request, ReviewRequest)
    assert ("decision", "judge_order", "u-1") == (request.kind, request.agent, request.entity)
    assert "3 orders of 30000.00 dollars" in request.reason
    assert encode(order()) == bytes(request.alert)
