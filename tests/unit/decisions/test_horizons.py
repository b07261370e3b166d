"""What is promised of repeats ends at a horizon: within it nothing happens twice, beyond it a model may be asked again."""

import asyncio

import pytest

from app.broker.base import Assignment
from app.core.clock import Clock, run_virtual
from app.core.record import Record
from app.decisions.actions import ActionsWork
from app.decisions.handling import AgentWork
from app.decisions.record import DECISIONS
from app.decisions.remembered import HORIZON_MS, Remembered
from tests.decisions_kit import ALERTS, START_MS, World, answering, large_order, make_agent, with_actions

DAY_S = HORIZON_MS / 1_000


async def owners(world: World) -> tuple[AgentWork, ActionsWork]:
    """An agent and the actions consumer, which own every partition."""
    agent = with_actions(make_agent())
    work, actions = world.agent_work(agent), world.actions_work(agent)
    for partition in range(ALERTS.partitions):
        await work.assigned(Assignment(ALERTS.name, partition, 1), 0)
        await actions.assigned(Assignment(DECISIONS, partition, 1), 0)
    return work, actions


async def handled(world: World, work: AgentWork, actions: ActionsWork, order: str) -> None:
    """One more alert about an order comes, and goes all the way."""
    world.send(large_order(order=order))
    await work.handle(newest(world, ALERTS.name), 1)
    await actions.handle(newest(world, DECISIONS), 1)


def newest(world: World, topic: str) -> Record:
    return max(world.records(topic), key=lambda record: record.offset)


@pytest.mark.parametrize(("waits_s", "calls", "posts"), [(DAY_S - 1, 2, 4), (DAY_S + 1, 3, 6)])
def test_repeat_after_a_day_is_decided_again_under_the_same_effect_keys(waits_s: float, calls: int, posts: int) -> None:
    """Up to a day a repeat costs nothing. Later it is a second decision, and its effects carry the keys of the first: so
    a receiver that knows them longer than a day applies them once all the same."""

    async def main(clock: Clock) -> World:
        world = await World.create(clock, answering("block"))
        work, actions = await owners(world)
        await handled(world, work, actions, "o-1")
        await asyncio.sleep(waits_s)
        await handled(world, work, actions, "o-2")  # what is too old goes when something new comes
        await handled(world, work, actions, "o-1")
        return world

    world = run_virtual(main, START_MS)
    assert (calls, posts) == (len(world.model.requests), len(world.receiver.called_keys()))
    assert 4 == len(set(world.receiver.called_keys()))


def test_repeat_beyond_the_number_that_is_remembered_costs_a_model_call_and_no_effect() -> None:
    """An agent that has forgotten it asks again; the decision that stands is still the first, and so are its effects."""

    async def main(clock: Clock) -> World:
        world = await World.create(clock, answering("block"))
        work, actions = await owners(world)
        work._decided = Remembered(capacity=1)
        for order in ("o-1", "o-2", "o-1"):
            await handled(world, work, actions, order)
        assert 1 == actions.statistics.superseded
        return world

    world = run_virtual(main, START_MS)
    assert (3, 4) == (len(world.model.requests), len(world.receiver.called_keys()))
