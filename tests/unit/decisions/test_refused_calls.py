"""A model that is away for seconds: alerts whose calls were refused meanwhile are decided by it when it is back."""

import asyncio

from app.core.clock import Clock, run_virtual
from app.decisions.history import PassedOver, Wanted, newest
from app.decisions.record import DecisionRecord
from app.decisions.replay import Replayed, Replayer
from app.models.base import FailureCode, ModelFailure, ModelRequest
from tests.decisions_kit import START_MS, World, action_of, answering, large_order, make_agent, until

ALERTS = 200


def through_an_outage(seconds: float) -> tuple[list[DecisionRecord], list[Replayed], int]:
    """Twenty alerts a second for ten seconds, of a model that is away so long after three: decisions, each replayed, and
    calls."""

    async def main(clock: Clock) -> tuple[list[DecisionRecord], list[Replayed], int]:
        loop = asyncio.get_running_loop()
        begins = loop.time() + 3

        def text(request: ModelRequest) -> str:
            if begins < loop.time() < begins + seconds:
                raise ModelFailure(FailureCode.UNAVAILABLE, "away")
            return answering("block")(request)

        world, agent = await World.create(clock, text), make_agent()
        world.model.seconds = 0.2
        async with world.running(world.agent_work(agent)):
            for number in range(ALERTS):
                world.send(large_order(f"u-{number}", f"o-{number}"), key=f"u-{number}")
                await asyncio.sleep(0.05)
            await until(lambda: len(world.decisions()) == ALERTS)
        replayer = Replayer({agent.name: agent}, None)
        found = [one async for one in newest(world.broker.reader(), 2, Wanted(), 1_000, PassedOver())]
        return world.decisions(), [await replayer.replay(one) for one in found], len(world.model.requests)

    return run_virtual(main, START_MS)


def test_agent_model_away_for_two_seconds_costs_no_fallback() -> None:
    """Alerts have twenty seconds; that the breaker was open for some of them uses up no attempt. None is repeated in vain:
    some calls more than alerts."""
    decisions, _, calls = through_an_outage(2)
    assert ["block"] * ALERTS == [action_of(record) for record in decisions]
    assert calls <= ALERTS + 20


def test_agent_refused_calls_do_not_fill_records() -> None:
    """What was refused unseen stands in no record, but as the last word; each decision replays as it was."""
    decisions, replays, _ = through_an_outage(5)
    assert ALERTS == len(replays)
    assert 3 >= max(len(record.models) for record in decisions)
    assert set() == {difference for one in replays for difference in one.differences}
