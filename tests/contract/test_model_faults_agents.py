"""An agent whose model always fails, over real HTTP: every alert ends in the fallback by its deadline and a second, with
few calls, and the agent decides again by itself when the model is back."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import msgspec
import pytest

from app.core.clock import SystemClock
from app.decisions.decision import Decision
from app.decisions.handling import AgentWork
from app.local.messages_api import FAULTS, MessagesApi, at_share, messages_api
from app.models.anthropic import AnthropicModel
from app.models.breaker import BreakerState
from app.models.gate import ModelGate
from tests.decisions_kit import ALERTS, World, large_order, make_agent, until

ALERT_COUNT = 60
DEADLINE_MS = 3_000
REASONS = {
    "hang": {"timeout", "deadline", "breaker_open"},
    "reset": {"unavailable", "breaker_open"},
    "huge": {"unavailable", "breaker_open"},
    "rate-limited-2s": {"rate_limited"},
    "spend-limit": {"spend_limit", "breaker_open"},
    "not-json": {"invalid_answer"},
}


@asynccontextmanager
async def agent_of(api: MessagesApi, attempt_ms: int = 2_500) -> AsyncIterator[tuple[World, AgentWork]]:
    world = await World.create(SystemClock())
    model = AnthropicModel("claude-sonnet-4-6", api_key="any", address=api.address)
    gate = ModelGate(model, concurrency=16, attempt_ms=attempt_ms)
    work = AgentWork(
        make_agent(deadline=f"{DEADLINE_MS}ms"),
        producer=world.broker.producer(),
        reader=world.broker.reader(),
        features=world.features,
        gate=gate,
        clock=world.clock,
        declared=("large_order",),
        partitions=ALERTS.partitions,
        switches=world.switches,
    )
    try:
        yield world, work
    finally:
        await gate.close()


def attempts_ms(fault: str) -> int:
    """Enough for an answer on a busy machine; and for a fault that never answers."""
    return 300 if fault == "hang" else 2_500


def send(world: World, first: int, count: int) -> None:
    for number in range(first, first + count):
        world.send(large_order(f"u-{number}", f"o-{number}"), key=f"u-{number}")


@pytest.mark.parametrize("name", REASONS)
async def test_agent_whose_model_always_fails_ends_every_alert_in_time(name: str) -> None:
    """Sixty alerts of sixty users at once; the reasons say what it was."""
    async with (
        messages_api(faults=at_share(FAULTS[name], 1.0, 5)) as api,
        agent_of(api, attempts_ms(name)) as (world, work),
    ):
        send(world, 0, ALERT_COUNT)
        async with world.running(work):
            await until(lambda: len(world.records("agent.decisions")) == ALERT_COUNT, seconds=20)
        decisions = world.decisions()
        assert {"review"} == {msgspec.json.decode(one.decision, type=Decision).action for one in decisions}
        assert {reason for one in decisions for reason in one.reasons} - {"model_failed"} <= REASONS[name]
        assert max(one.hops.decided_ms - one.hops.agent_ms for one in decisions) <= DEADLINE_MS + 1_000
        assert len(api.requests) <= (1 if name == "spend-limit" else 1.3 * ALERT_COUNT)


async def test_agent_decides_again_when_its_model_is_back() -> None:
    """The breaker is open; when it may be tried one call tries, and the next alerts are decided, without anybody's help."""
    async with messages_api(faults=at_share(FAULTS["server-error"], 1.0, 5)) as api, agent_of(api) as (world, work):
        async with world.running(work):
            send(world, 0, ALERT_COUNT)
            await until(lambda: len(world.records("agent.decisions")) == ALERT_COUNT, seconds=20)
            api.play()
            breaker, loop = work._gate._breaker, asyncio.get_running_loop()
            assert breaker.state is not BreakerState.CLOSED
            await until(lambda: breaker.wait_s(loop.time()) == 0, seconds=20)
            send(world, ALERT_COUNT, 1)
            await until(lambda: len(world.records("agent.decisions")) == ALERT_COUNT + 1, seconds=20)
            send(world, ALERT_COUNT + 1, 20)
            await until(lambda: len(world.records("agent.decisions")) == ALERT_COUNT + 21, seconds=20)
        answered = [one for one in world.decisions() if not one.reasons]
        assert 20 <= len(answered) <= 21
