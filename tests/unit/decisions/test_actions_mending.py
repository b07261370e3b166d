"""The actions consumer looks every minute for what was written behind its states."""

import asyncio

from app.broker.base import Assignment
from app.core.clock import Clock, run_virtual
from app.decisions.actions import MEND_S
from app.decisions.record import DECISIONS, EffectState
from tests.decisions_kit import START_MS, World, make_agent, with_actions
from tests.unit.decisions.test_ledger import entry, last_state, ledger_of


def test_mend_overwrites_an_older_state_within_a_minute() -> None:
    """Whatever partition it is in, with nothing to decide; what was given away is left alone."""

    async def main(clock: Clock) -> None:
        world = await World.create(clock)
        work = world.actions_work(with_actions(make_agent()))
        await ledger_of(world).enter(entry("a:1", EffectState.DONE))
        assignment = Assignment(DECISIONS, 0, 1)
        await work.assigned(assignment, 0)
        mending = asyncio.create_task(work.mend())
        await ledger_of(world, "frozen").enter(entry("a:1", writer="frozen"))
        await asyncio.sleep(MEND_S + 1)
        assert EffectState.DONE is last_state(world)
        await work.ended([assignment])
        await ledger_of(world, "frozen").enter(entry("a:1", writer="frozen"))
        await asyncio.sleep(MEND_S + 1)
        assert EffectState.INTENDED is last_state(world)
        mending.cancel()

    run_virtual(main, START_MS)
