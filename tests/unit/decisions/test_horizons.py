"""What is promised of repeats ends at a horizon: within it the first decision stands, beyond it a repeated alert is a new one."""

import asyncio
from collections.abc import Callable

import pytest

from app.broker.base import Assignment
from app.core.clock import Clock, run_virtual
from app.core.record import Record
from app.decisions import ledger
from app.decisions.actions import ActionsWork
from app.decisions.agent import Agent
from app.decisions.handling import AgentWork
from app.decisions.record import DECISIONS
from app.decisions.remembered import HORIZON_MS, Remembered
from app.models.base import ModelRequest
from tests.decisions_kit import (
    ALERTS,
    START_MS,
    OrderDecision,
    World,
    answering,
    large_order,
    make_agent,
    with_actions,
)

DAY_S = HORIZON_MS / 1_000
BLOCKED = ["ask_model:block_order:large_order:u-1:o-1", "ask_model:notify:large_order:u-1:o-1"]


def first_and_later(first: str, later: str) -> Callable[[ModelRequest], str]:
    """A model that decides about o-1 first the one, and when it is asked again the other; about the rest `approve`."""
    actions = [first, later]

    def text(request: ModelRequest) -> str:
        action = actions.pop(0) if request.context["alert"].order_id == "o-1" else "approve"
        return answering(action)(request)

    return text


async def agent_of(world: World, agent: Agent[OrderDecision], capacity: int = 1_000_000) -> AgentWork:
    """The owner of every partition of the alerts, that remembers so many."""
    work = world.agent_work(agent)
    work._decided = Remembered(capacity)
    for partition in range(ALERTS.partitions):
        await work.assigned(Assignment(ALERTS.name, partition, 1), 0)
    return work


async def actions_of(
    world: World, agent: Agent[OrderDecision], capacity: int = 1_000_000, epoch: int = 1
) -> ActionsWork:
    """The owner of every partition of the decisions, that remembers so many that have ended. Nothing is unfinished."""
    actions = world.actions_work(agent)
    actions._ended = Remembered(capacity)
    ends = {record.partition: record.offset + 1 for record in world.records(DECISIONS)}
    for partition in range(ALERTS.partitions):
        await actions.assigned(Assignment(DECISIONS, partition, epoch), ends.get(partition, 0))
    return actions


async def handled(world: World, work: AgentWork, actions: ActionsWork, order: str) -> None:
    """One more alert about an order comes, and goes all the way."""
    world.send(large_order(order=order))
    await work.handle(newest(world, ALERTS.name), 1)
    await actions.handle(newest(world, DECISIONS), 1)


def newest(world: World, topic: str) -> Record:
    return max(world.records(topic), key=lambda record: record.offset)


async def repeated(
    clock: Clock,
    later: str,
    *,
    waits_s: float = 0,
    agent_remembers: int = 1_000_000,
    actions_remember: int = 1_000_000,
    at_most_once: bool = False,
) -> World:
    """o-1 is blocked; then another alert comes, and what is too old or too many goes; then o-1 again, which is now decided
    `later`."""
    world = await World.create(clock, first_and_later("block", later))
    agent = with_actions(make_agent(), at_most_once=at_most_once)
    work, actions = await agent_of(world, agent, agent_remembers), await actions_of(world, agent, actions_remember)
    await handled(world, work, actions, "o-1")
    await asyncio.sleep(waits_s)
    await handled(world, work, actions, "o-2")
    await handled(world, work, actions, "o-1")
    return world


def made(world: World) -> tuple[int, list[str], int]:
    """Model calls; the keys that the receiver was called with, in order; requests to people."""
    return len(world.model.requests), world.receiver.called_keys(), len(world.reviews())


def test_repeat_within_the_horizon_is_not_decided_again() -> None:
    """Up to a day it costs nothing."""
    world = run_virtual(lambda clock: repeated(clock, "review", waits_s=DAY_S - 1), START_MS)
    assert (2, BLOCKED, 0) == made(world)


def test_another_answer_within_the_horizon_does_nothing() -> None:
    """An agent that has forgotten it asks again. The first decision stands all the same, though the second is another."""
    world = run_virtual(lambda clock: repeated(clock, "review", agent_remembers=1), START_MS)
    assert ["block", "approve", "review"] == world.decided()
    assert (3, BLOCKED, 0) == made(world)


@pytest.mark.parametrize("beyond", [{"waits_s": DAY_S + 1}, {"agent_remembers": 1, "actions_remember": 1}])
def test_another_answer_beyond_the_horizon_is_acted_upon_beside_the_first(beyond: dict[str, float]) -> None:
    """A day later, or a number of alerts and of ended decisions later: other effects under other keys."""
    world = run_virtual(lambda clock: repeated(clock, "review", **beyond), START_MS)  # type: ignore[arg-type]
    assert (3, BLOCKED, 1) == made(world)


@pytest.mark.parametrize("at_most_once", [False, True])
@pytest.mark.parametrize("beyond", [{"waits_s": DAY_S + 1}, {"agent_remembers": 1, "actions_remember": 1}])
def test_the_same_answer_beyond_the_horizon_calls_again_under_the_same_keys(
    beyond: dict[str, float], at_most_once: bool
) -> None:
    """A receiver that knows them longer applies them once all the same; one that is called at most once is called again."""
    world = run_virtual(
        lambda clock: repeated(clock, "block", at_most_once=at_most_once, **beyond),  # type: ignore[arg-type]
        START_MS,
    )
    assert (3, BLOCKED * 2, 0) == made(world)


@pytest.mark.parametrize(("offsets", "people"), [(1, 1), (ledger.RESTORE_OFFSETS, 0)])
def test_another_answer_to_a_new_owner_counts_where_the_first_is_too_many_offsets_back(
    offsets: int, people: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A new owner of the actions that does not read as far back as the first decision acts upon the second one."""
    monkeypatch.setattr(ledger, "RESTORE_OFFSETS", offsets)

    async def main(clock: Clock) -> World:
        world = await World.create(clock, first_and_later("block", "review"))
        agent = with_actions(make_agent())
        work, actions = await agent_of(world, agent, capacity=1), await actions_of(world, agent)
        await handled(world, work, actions, "o-1")
        await handled(world, work, actions, "o-2")
        await handled(world, work, await actions_of(world, agent, epoch=2), "o-1")
        return world

    assert (3, BLOCKED, people) == made(run_virtual(main, START_MS))
