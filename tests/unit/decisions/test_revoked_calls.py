"""A partition that is taken away: the calls about its alerts end within the drain, and those not begun are the next owner's."""

from collections import Counter

import pytest

from app.core.clock import Clock, run_virtual
from app.models.gate import ModelGate
from tests.decisions_kit import START_MS, World, large_order, make_agent, until

ALERTS = 24


def calls_when_a_worker_joins() -> tuple[list[str], Counter[str]]:
    """Decisions, and calls by alert: eight calls at once of four seconds each; a second worker comes after one second."""

    async def main(clock: Clock) -> tuple[list[str], Counter[str]]:
        world, agent = await World.create(clock), make_agent()
        world.model.seconds = 4
        for number in range(ALERTS):
            world.send(large_order(f"u-{number}", f"o-{number}"), key=f"u-{number}")
        async with world.running(world.agent_work(agent)):
            await until(lambda: len(world.model.requests) == 8)
            async with world.running(world.agent_work(agent)):
                await until(lambda: len(world.decisions()) == ALERTS)
        return world.decided(), Counter(request.context["alert"].order_id for request in world.model.requests)

    return run_virtual(main, START_MS)


def test_agent_begins_no_call_about_a_partition_that_is_taken_away() -> None:
    """Nobody pays a call that will be cut off: each alert costs one."""
    decided, calls = calls_when_a_worker_joins()
    assert ["block"] * ALERTS == decided
    assert {1} == set(calls.values())


def test_ablation_calls_that_begin_in_the_drain_are_paid_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the refusal those who wait begin a call within the drain, which is cut off."""
    monkeypatch.setattr(ModelGate, "revoked", lambda self, agent, partition: None)
    decided, calls = calls_when_a_worker_joins()
    assert ["block"] * ALERTS == decided
    assert 2 in calls.values()
