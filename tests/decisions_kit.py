"""What tests of decisions share: a small agent, a world of memory broker and fakes, and readers of what was written."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from decimal import Decimal
from random import Random
from typing import Any, Literal

import msgspec

from app.broker.base import Producer
from app.broker.memory import MemoryBroker
from app.broker.topics import TopicSpec, dead_letters_of
from app.core.clock import Clock
from app.core.codec import Usd, encode
from app.core.errors import Unavailable
from app.core.record import Record, TopicPartition
from app.decisions.actions import ActionsWork
from app.decisions.agent import Agent
from app.decisions.context import Context
from app.decisions.decision import Decision, Fallback, review
from app.decisions.effects import Effects, Receivers
from app.decisions.handling import AgentWork
from app.decisions.policy import Policy
from app.decisions.record import (
    DecisionRecord,
    EffectRecord,
    Mode,
    ReviewRequest,
    decision_topic,
    effect_topic,
    review_topic,
    switch_topic,
)
from app.decisions.switches import Switches
from app.decisions.verify import ChainCheck
from app.dispatch.consumer import Dispatcher
from app.dispatch.retries import RetryPolicy
from app.dispatch.work import DispatchConfig, Work
from app.models.base import ModelAnswer, ModelRequest, StopReason
from app.models.gate import ModelGate
from app.serving.base import Features, Freshness, OwnEvent
from app.serving.features import Origin
from app.streams.graph import Alert

START_MS = 1_700_000_000_000
ALERTS = TopicSpec(name="processed.alerts", partitions=2)
DECISIONS = decision_topic([ALERTS])


class LargeOrder(Alert, frozen=True):
    """The alert that the tests' agent decides."""

    order_id: str
    user_id: str
    amount_usd: Usd


class OrderDecision(Decision, frozen=True, kw_only=True):
    """What the tests' agent answers."""

    action: Literal["approve", "review", "block"]


def large_order(user: str = "u-1", order: str = "o-1", amount: str = "12000") -> LargeOrder:
    return LargeOrder(
        alert_id=f"large_order:{user}:{order}",
        triggered_at=datetime.fromtimestamp(START_MS / 1000, UTC),
        order_id=order,
        user_id=user,
        amount_usd=Decimal(amount),
    )


async def ask_model(alert: LargeOrder, context: Context) -> OrderDecision:
    """The usual handler: features, then the model."""
    user = await context.features("user_features", alert.user_id)
    return await context.decide("judge this order", alert=alert, user=user)


def make_agent(
    handler: Callable[[Any, Context], Awaitable[OrderDecision]] = ask_model,
    *,
    fallback: Fallback | None = review,
    policy: Policy | None = None,
    deadline: str = "20s",
    max_age: str = "15m",
) -> Agent[OrderDecision]:
    return Agent(
        handler,
        ALERTS.name,
        alert=LargeOrder,
        decides=OrderDecision,
        fallback=fallback,
        policy=policy,
        deadline=deadline,
        max_age=max_age,
    )


def with_actions(agent: Agent[OrderDecision], *, at_most_once: bool = False) -> Agent[OrderDecision]:
    """Adds the actions of the fraud agent: two posts for a block, a request for a review."""

    @agent.action("block", at_most_once=at_most_once)
    async def block_order(decision: OrderDecision, effects: Effects) -> None:
        await effects.post({"order_id": effects.alert.order_id, "reason": decision.reason})

    @agent.action("block")
    async def notify(decision: OrderDecision, effects: Effects) -> None:
        await effects.post({"alert_id": effects.alert.alert_id, "risk_level": decision.risk_level})

    @agent.action("review")
    async def queue(decision: OrderDecision, effects: Effects) -> None:
        await effects.request_review(decision.reason)

    return agent


def answering(action: str) -> Callable[[ModelRequest], str]:
    """A model that always decides `action`."""
    return lambda request: encode({"action": action, "risk_level": "HIGH", "reason": "so it was decided"}).decode()


@dataclass
class FakeModel:
    """Answers with what `text` returns or raises, after `seconds`."""

    text: Callable[[ModelRequest], str]
    seconds: float = 0.0
    name: str = "fake-1"
    requests: list[ModelRequest] = field(default_factory=list)

    async def decide(self, request: ModelRequest) -> ModelAnswer:
        self.requests.append(request)
        await asyncio.sleep(self.seconds)
        return ModelAnswer(
            text=self.text(request), model=self.name, stop_reason=StopReason.COMPLETE, input_tokens=7, output_tokens=3
        )

    async def close(self) -> None:
        """Nothing is open."""


@dataclass
class FakeFeatures:
    """Features that are fresh and hold the own event unless told otherwise."""

    freshness: Freshness = Freshness.FRESH
    own_event: OwnEvent = OwnEvent.SEEN
    error: BaseException | None = None
    origins: list[Origin | None] = field(default_factory=list)

    async def read(self, view: str, entity: str) -> Features:
        return self._answer(view, entity, None)

    async def read_with_own_event(self, view: str, entity: str, origin: Origin, wait_ms: int) -> Features:
        return self._answer(view, entity, origin)

    def _answer(self, view: str, entity: str, origin: Origin | None) -> Features:
        if self.error is not None:
            raise self.error
        self.origins.append(origin)
        return Features(
            view=view,
            entity=entity,
            values={"order_count_5m": 2, "order_value_5m": Decimal("24000.50")},
            window_end_ms=START_MS,
            as_of_ms=START_MS - 5,
            age_ms=5,
            freshness=self.freshness,
            own_event=self.own_event if origin else OwnEvent.NOT_COMPARABLE,
        )


@dataclass
class Receiver:
    """The other side of effects: notes each call; `failures` of its address are raised first, one a call."""

    failures: dict[str, list[Exception]] = field(default_factory=dict)
    calls: list[tuple[str, str, dict[str, Any]]] = field(default_factory=list)

    async def post_json(self, url: str, body: bytes, headers: Mapping[str, str], timeout_ms: int) -> object:
        await asyncio.sleep(0.001)
        self.calls.append((url, headers["idempotency-key"], msgspec.json.decode(body)))
        await asyncio.sleep(0.001)
        if failures := self.failures.get(url):
            raise failures.pop(0)
        return None

    def called_keys(self) -> list[str]:
        return [key for _, key, _ in self.calls]


ADDRESSES = {"block_order": "http://pay.test/block", "notify": "http://team.test/notify"}


class SteadySwitches(Switches):
    """Switches that nobody needs to follow: everything is on, and known."""

    @property
    def steady(self) -> bool:
        return True


@dataclass
class World:
    """One memory broker with the topics of decisions, and what stands around an agent."""

    clock: Clock
    broker: MemoryBroker
    model: FakeModel
    features: FakeFeatures
    receiver: Receiver
    addresses: dict[str, str]
    switches: Switches

    @classmethod
    async def create(cls, clock: Clock, text: Callable[[ModelRequest], str] | None = None) -> "World":
        broker = MemoryBroker(clock)
        specs = [ALERTS, DECISIONS, effect_topic(DECISIONS), review_topic(DECISIONS), switch_topic()]
        await broker.admin().create([*specs, dead_letters_of(ALERTS), dead_letters_of(DECISIONS)])
        model = FakeModel(text or answering("block"))
        switches = SteadySwitches(broker.producer(), broker.reader(), process="test")
        return cls(clock, broker, model, FakeFeatures(), Receiver(), dict(ADDRESSES), switches)

    def agent_work(self, agent: Agent[Any], *, mode: Mode = "live", producer: Producer | None = None) -> AgentWork:
        return AgentWork(
            agent,
            producer=producer or self.broker.producer(),
            reader=self.broker.reader(),
            features=self.features,
            gate=ModelGate(self.model, concurrency=8, attempt_ms=8_000),
            clock=self.clock,
            declared=("large_order", "other_alert"),
            partitions=ALERTS.partitions,
            switches=self.switches,
            mode=mode,
        )

    def actions_work(self, agent: Agent[Any], *, producer: Producer | None = None) -> ActionsWork:
        return ActionsWork(
            [agent],
            producer=producer or self.broker.producer(),
            reader=self.broker.reader(),
            poster=self.receiver,
            receivers=Receivers(self.addresses, "secret"),
            clock=self.clock,
            switches=self.switches,
        )

    def send(self, alert: Alert, *, key: str | None = "u-1", headers: Mapping[str, str] | None = None) -> None:
        """An alert as the engine writes it."""
        given = {
            "alert_type": str(type(alert).__struct_config__.tag),
            "origin": "raw.orders/1/17",
            "event_ms": str(START_MS - 20),
            "received_ms": str(START_MS - 10),
            **(headers or {}),
        }
        self.send_bytes(encode(alert), key=key, headers=given)

    def send_bytes(self, value: bytes | None, *, key: str | None = "u-1", headers: Mapping[str, str]) -> None:
        encoded = tuple((name, text.encode()) for name, text in headers.items())
        self.broker.append(ALERTS.name, value, key.encode() if key else None, -1 if key else 0, 0, encoded)

    def records(self, topic: str) -> list[Record]:
        partitions = self.broker.specs[topic].partitions
        return [record for number in range(partitions) for record in self.broker.logs[TopicPartition(topic, number)]]

    def decisions(self) -> list[DecisionRecord]:
        return [
            msgspec.json.decode(record.value or b"", type=DecisionRecord) for record in self.records("agent.decisions")
        ]

    def decided(self) -> list[str]:
        return [action_of(record) for record in self.decisions()]

    def effects(self) -> list[EffectRecord]:
        return [msgspec.json.decode(record.value or b"", type=EffectRecord) for record in self.records("agent.effects")]

    def states(self) -> dict[str, str]:
        """Where each effect stands in the end."""
        return {name: status.state.value for entry in self.effects() for name, status in entry.effects.items()}

    def reviews(self) -> list[ReviewRequest]:
        return [
            msgspec.json.decode(record.value or b"", type=ReviewRequest) for record in self.records("agent.reviews")
        ]

    def dead(self, topic: str = "processed.alerts") -> list[tuple[str, bytes | None]]:
        """Reason and value of each dead letter."""
        return [((record.header("reason") or b"").decode(), record.value) for record in self.records(f"{topic}.dead")]

    @asynccontextmanager
    async def running(self, *works: Work, max_attempts: int = 3) -> AsyncIterator[None]:
        """The works under dispatchers of their own; stopped and drained at the end."""
        stopping = asyncio.Event()
        async with asyncio.TaskGroup() as tasks:
            for work in works:
                within_ms = work.agent.deadline_ms if isinstance(work, AgentWork) else None
                retry = RetryPolicy(max_attempts=max_attempts, within_ms=within_ms)
                config = DispatchConfig(retry=retry, drain_ms=25_000)
                tasks.create_task(Dispatcher(self.broker, work, config, Random(7)).run(stopping))
            try:
                yield
            finally:
                stopping.set()


def broken_links(records: Iterable[Record], beginning: int = 0) -> list[str]:
    """What is wrong with the chains in the records of one partition; empty when nothing is."""
    check = ChainCheck(TopicPartition("agent.decisions", 1), beginning, {})
    for record in records:
        check.take(record)
    check.finish()
    return check.broken


def action_of(record: DecisionRecord) -> str:
    action: str = msgspec.json.decode(record.decision)["action"]
    return action


async def until(condition: Callable[[], bool], seconds: float = 600.0) -> None:
    """Waits for a condition, in the loop's time."""
    async with asyncio.timeout(seconds):
        while not condition():  # noqa: ASYNC110 - the fakes have no events to wait for
            await asyncio.sleep(0.01)


UNAVAILABLE = Unavailable("receiver: does not answer")
