"""A worker keeps to switches and modes: those from before its start, and those of its life."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from decimal import Decimal
from typing import Any, Literal

import msgspec
import pytest

from agents import app
from app.broker.memory import MemoryBroker
from app.core.clock import Clock, run_virtual
from app.core.errors import SetupError
from app.core.instants import instant
from app.core.record import TopicPartition
from app.core.settings import Settings
from app.decisions.record import DecisionRecord, EffectRecord
from app.decisions.switches import ModeSwitch, Switch, write_switch
from app.models.rules import RulesModel
from app.serving.memory import MemoryStore
from app.worker import PARTS, Worker
from features.records import OrderEvent

START_MS = 1_800_000_000_000
GROUP = "headrace.agent.judge_order"


def a_worker(
    broker: MemoryBroker,
    clock: Clock,
    mode: Literal["live", "shadow", "dry-run"] = "live",
    parts: Sequence[str] = PARTS,
    store: MemoryStore | None = None,
    urls: dict[str, str] | None = None,
) -> Worker:
    settings = Settings(broker="memory://", store="memory://", model="rules", mode=mode, action_urls=urls or {})
    model, store = RulesModel(app.rules), store or MemoryStore(clock)
    return Worker(app, settings, broker=broker, store=store, model=model, clock=clock, parts=parts)


async def a_broker(clock: Clock) -> MemoryBroker:
    broker = MemoryBroker(clock)
    await broker.admin().create(app.topics.all())
    return broker


@asynccontextmanager
async def running(worker: Worker) -> AsyncIterator[None]:
    """The worker, settled; stopped and drained at the end."""
    stopping, ready = asyncio.Event(), asyncio.Event()
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(worker.run(stopping, ready))
        await ready.wait()
        await asyncio.sleep(2)
        try:
            yield
        finally:
            stopping.set()


async def order(clock: Clock, order_id: str, amount: str = "99000.00") -> None:
    """One order, and time for what follows from it. By the rules so large a one is blocked."""
    await app.publish(OrderEvent(order_id, "u-1", Decimal(amount), "placed", instant(clock.now_ms())))
    await asyncio.sleep(3)


def read(broker: MemoryBroker, topic: str, kind: Any) -> list[Any]:
    return [
        msgspec.json.decode(record.value or b"", type=kind)
        for place, log in broker.logs.items()
        if place.topic == topic
        for record in log
    ]


def decided(broker: MemoryBroker) -> Counter[tuple[str, str]]:
    """How many decisions by mode and action."""
    found = read(broker, "agent.decisions", DecisionRecord)
    return Counter((one.mode, msgspec.json.decode(one.decision)["action"]) for one in found)


def applied(broker: MemoryBroker) -> set[tuple[str, str, str]]:
    """Alert, effect and the last state of each."""
    last = {entry.alert_id: entry for entry in read(broker, "agent.effects", EffectRecord)}
    return {(i, name, status.state.value) for i, one in last.items() for name, status in one.effects.items()}


async def switch(broker: MemoryBroker, name: str, state: Literal["on", "off"]) -> None:
    await write_switch(broker.producer(), Switch(name=name, state=state, who="ada", reason="", at_ms=START_MS))


async def set_mode(broker: MemoryBroker, mode: Literal["live", "shadow", "dry-run"]) -> None:
    switched = ModeSwitch(agent="judge_order", mode=mode, who="ada", reason="", at_ms=START_MS)
    await write_switch(broker.producer(), switched)


def test_worker_heeds_switches_from_before_its_start_and_of_its_life() -> None:
    """Off outlives the worker that was told, and on is heard while it runs."""

    async def main(clock: Clock) -> None:
        broker = await a_broker(clock)
        await switch(broker, "block", "off")
        async with running(a_worker(broker, clock)):
            await order(clock, "o-1")
            assert {("live", "review"): 1} == decided(broker)
        async with running(a_worker(broker, clock)):
            await order(clock, "o-2")
            assert {("live", "review"): 2} == decided(broker)
            await switch(broker, "block", "on")
            await order(clock, "o-3")
            assert {("live", "review"): 2, ("live", "block"): 1} == decided(broker)
        effects = {(name, state) for _, name, state in applied(broker)}
        assert {("queue_for_manual_review", "done"), ("block_transaction", "logged")} <= effects

    run_virtual(main, START_MS)


def test_worker_whose_agent_is_put_into_shadow_leaves_the_live_group_as_it_was() -> None:
    """What comes meanwhile is decided in shadow, acted on by nobody, and decided live once it is live again."""

    async def main(clock: Clock) -> None:
        broker = await a_broker(clock)
        async with running(a_worker(broker, clock)):
            await order(clock, "o-1")
            await set_mode(broker, "shadow")
            await asyncio.sleep(2)
            before = broker.groups[GROUP].committed.copy()
            await order(clock, "o-2")
            assert {("live", "block"): 1, ("shadow", "block"): 1} == decided(broker)
            assert before == broker.groups[GROUP].committed
            assert 1 == len({alert for alert, _, _ in applied(broker)})
            await set_mode(broker, "live")
            await asyncio.sleep(3)
            assert {("live", "block"): 2, ("shadow", "block"): 1} == decided(broker)
            assert 2 == len({alert for alert, _, _ in applied(broker)})
        assert f"{GROUP}.shadow" in broker.groups

    run_virtual(main, START_MS)


@pytest.mark.parametrize("mode", ["shadow", "dry-run"])
def test_worker_beside_a_live_one_decides_and_does_not_act(mode: Literal["shadow", "dry-run"]) -> None:
    """Both decide every alert; the live one's offsets, decisions and effects are as if it were alone."""

    async def main(clock: Clock) -> None:
        broker, store = await a_broker(clock), MemoryStore(clock)
        beside = a_worker(broker, clock, mode, ("features", "agents", "actions"), store)
        async with running(a_worker(broker, clock, store=store)), running(beside):
            await set_mode(broker, "live")
            for number in range(4):
                await order(clock, f"o-{number}")
            assert {("live", "block"): 4, (mode, "block"): 4} == decided(broker)
        assert beside.actions is None
        assert 8 == len(applied(broker))
        assert {f"{GROUP}.{mode}", GROUP} == {name for name in broker.groups if name.startswith(GROUP)}

    run_virtual(main, START_MS)


def test_worker_in_shadow_with_nothing_but_actions_is_refused() -> None:
    """Only what is live acts."""

    async def main(clock: Clock) -> None:
        with pytest.raises(SetupError, match="mode: a worker in mode shadow does not act"):
            a_worker(await a_broker(clock), clock, "shadow", ("actions",))

    run_virtual(main, START_MS)


def test_worker_without_agents_and_actions_beats_not() -> None:
    """Streams alone need no switches."""

    async def main(clock: Clock) -> None:
        broker = await a_broker(clock)
        async with running(a_worker(broker, clock, parts=("streams",))):
            pass
        assert [] == broker.logs[TopicPartition("agent.switches", 0)]

    run_virtual(main, START_MS)


def test_worker_effects_are_made_during_the_drain() -> None:
    """Heartbeats end last: the second effect of a decision is made by a worker that was told to stop during the first."""

    async def main(clock: Clock) -> None:
        broker, posted = await a_broker(clock), list[str]()
        urls = {name: f"http://pay.test/{name}" for name in ("block_transaction", "notify_fraud_team")}
        worker = a_worker(broker, clock, urls=urls)

        async def post(url: str, *arguments: object) -> None:
            posted.append(url)
            await asyncio.sleep(4)

        worker._http.post_json = post  # type: ignore[method-assign, assignment]
        async with running(worker):
            await order(clock, "o-1")
            assert 1 == len(posted)
        assert list(urls.values()) == posted
        assert {"done"} == {state for _, _, state in applied(broker)}

    run_virtual(main, START_MS)
