"""An alert that was decided is not decided again: by this owner, or by one before it."""

from typing import Any

import pytest

from app.broker.base import Assignment
from app.core.clock import Clock, run_virtual
from app.models.base import FailureCode, ModelFailure, ModelRequest
from tests.decisions_kit import (
    ALERTS,
    START_MS,
    World,
    large_order,
    make_agent,
    until,
)


def overloaded(request: ModelRequest) -> str:
    raise ModelFailure(FailureCode.OVERLOADED, "no capacity")


def test_handle_repeated_alert_leaves_no_context_behind() -> None:
    """What an attempt had asked is forgotten when another one turns out to have decided."""

    async def main(clock: Clock) -> None:
        world = await World.create(clock, overloaded)
        world.send(large_order())
        (record,) = world.records("processed.alerts")
        work = world.agent_work(make_agent())
        await work.assigned(Assignment(ALERTS.name, record.partition, 1), 0)
        with pytest.raises(ModelFailure):
            await work.handle(record, 1)
        work._decided.put(record.partition, large_order().alert_id, True, clock.now_ms())
        await work.handle(record, 2)
        assert {} == work._contexts

    run_virtual(main, START_MS)


def test_handle_repeated_alert_is_decided_once() -> None:
    """The same id twice is one model call and one decision."""

    async def main(clock: Clock) -> World:
        world = await World.create(clock)
        work = world.agent_work(make_agent())
        async with world.running(work):
            world.send(large_order())
            world.send(large_order())
            await until(lambda: work.statistics.repeated == 1)
        return world

    world = run_virtual(main, START_MS)
    assert (1, 1) == (len(world.decisions()), len(world.model.requests))


@pytest.mark.parametrize("mode", ["live", "shadow"])
def test_assigned_looks_back_and_does_not_decide_again(mode: Any) -> None:
    """A new owner whose predecessor decided without committing asks no model again; shadows count for shadows."""

    async def main(clock: Clock) -> World:
        world = await World.create(clock)
        agent = make_agent()
        world.send(large_order())
        (record,) = world.records("processed.alerts")
        for epoch in (1, 2):
            work = world.agent_work(agent, mode=mode)
            assignment = Assignment(ALERTS.name, record.partition, epoch)
            await work.assigned(assignment, 0)
            await work.handle(record, 1)
            await work.ended([assignment])
        return world

    world = run_virtual(main, START_MS)
    assert (1, 1) == (len(world.decisions()), len(world.model.requests))


def test_assigned_shadow_decision_does_not_count_for_live() -> None:
    """What only a shadow has decided is still to be decided."""

    async def main(clock: Clock) -> World:
        world = await World.create(clock)
        agent = make_agent()
        world.send(large_order())
        async with world.running(world.agent_work(agent, mode="shadow")):
            await until(lambda: bool(world.records("agent.decisions")))
        world.broker.groups.clear()
        async with world.running(world.agent_work(agent)):
            await until(lambda: len(world.records("agent.decisions")) == 2)
        return world

    world = run_virtual(main, START_MS)
    assert ["shadow", "live"] == [record.mode for record in world.decisions()]
