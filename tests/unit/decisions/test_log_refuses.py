"""A topic that may not be written ends the part that writes it, before anything else is made of that."""

import asyncio

import pytest

from app.broker.memory import Fault
from app.core.clock import Clock, run_virtual
from app.core.errors import Rejected
from tests.decisions_kit import START_MS, World, answering, large_order, make_agent, until, with_actions


def test_handle_that_may_not_write_ends_at_once(caplog: pytest.LogCaptureFixture) -> None:
    """The log has refused and will again: nobody's fallback decides, and whoever runs the agent hears why."""

    async def main(clock: Clock) -> World:
        world = await World.create(clock)
        world.broker.plan(Fault("confirm", "fail", Rejected("agent.decisions: may not be written")))
        world.send(large_order())
        with pytest.raises(ExceptionGroup) as ended:
            async with world.running(world.agent_work(make_agent())):
                await asyncio.sleep(60)
        assert ended.group_contains(Rejected, match="may not be written")
        return world

    assert [] == run_virtual(main, START_MS).decisions()
    assert [] == [line for line in caplog.messages if "fallback" in line]


def test_effect_whose_log_refuses_ends_at_once() -> None:
    """No effect is failed for it, and nobody is asked: whoever runs the actions hears why."""

    async def main(clock: Clock) -> World:
        world, agent = await World.create(clock, answering("block")), with_actions(make_agent())
        world.send(large_order())
        async with world.running(world.agent_work(agent)):
            await until(lambda: bool(world.decisions()))
        world.broker.plan(Fault("confirm", "fail", Rejected("agent.effects: may not be written")))
        with pytest.raises(ExceptionGroup) as ended:
            async with world.running(world.actions_work(agent)):
                await asyncio.sleep(60)
        assert ended.group_contains(Rejected, match="may not be written")
        return world

    world = run_virtual(main, START_MS)
    assert ({}, [], []) == (world.states(), world.reviews(), world.receiver.calls)
