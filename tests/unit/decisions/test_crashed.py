"""An alert, or a decision, that took its process with it three times."""

import pytest

from app.broker.base import Assignment
from app.core.clock import Clock, run_virtual
from app.decisions.decision import Reason
from app.decisions.outcome import failure_of
from app.dispatch.work import Crashed
from tests.decisions_kit import START_MS, World, answering, large_order, make_agent, until, with_actions


def test_failure_of_crashed_alert_names_the_reason() -> None:
    """The fallback decides it under a reason of its own, and no attempt of this process is counted."""
    failure = failure_of(Crashed("the process ended uncleanly, 3 times"), 0)
    assert (Reason.CRASHED, "the process ended uncleanly, 3 times") == (failure.code, failure.detail)


@pytest.mark.parametrize(
    ("at_most_once", "said"),
    [
        (True, "not called: ended uncleanly"),
        (False, "not called again, and it may have been called before: ended uncleanly"),
    ],
)
def test_effect_given_up_after_crashes_says_whether_it_was_called(at_most_once: bool, said: str) -> None:
    """Who is asked must know: a call that is made once was not begun, any other may have been made."""

    async def main(clock: Clock) -> World:
        world = await World.create(clock, answering("block"))
        agent = with_actions(make_agent(), at_most_once=at_most_once)
        world.send(large_order())
        async with world.running(world.agent_work(agent)):
            await until(lambda: bool(world.decisions()))
        (record,) = world.records("agent.decisions")
        actions = world.actions_work(agent)
        await actions.assigned(Assignment(record.topic, record.partition, 1), record.offset)
        await actions.give_up(record, Crashed("ended uncleanly, 3 times"), 0)
        return world

    world = run_virtual(main, START_MS)
    assert {"block_order": "failed", "notify": "failed"} == world.states()
    assert f"effect block_order is failed: {said}, 3 times" == world.reviews()[0].reason
    assert [] == world.receiver.calls
