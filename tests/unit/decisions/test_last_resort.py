"""What nobody foresaw ends as a dead letter, once, and its neighbours go on: nothing is tried for ever."""

from typing import Any

import msgspec
import pytest

from app.core.clock import Clock, run_virtual
from app.core.errors import RecordTooLarge
from app.decisions import handling, outcome
from app.decisions.actions import ActionsWork
from app.decisions.agent import Agent
from app.decisions.decision import review
from app.decisions.ledger import Ledger
from app.decisions.record import MAX_ID_BYTES, EffectRecord
from tests.decisions_kit import (
    ALERTS,
    START_MS,
    LargeOrder,
    OrderDecision,
    World,
    ask_model,
    large_order,
    make_agent,
    until,
    with_actions,
)


def test_alert_about_which_no_decision_can_be_made_is_a_dead_letter(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Its bytes are kept, the log has the traceback, and the next one is decided."""

    def fails_of_one(agent: object, alert: object, *arguments: object) -> object:
        if alert == large_order():
            raise KeyError("country")
        return outcome.conclude(agent, alert, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(handling, "conclude", fails_of_one)

    async def main(clock: Clock) -> World:
        world = await World.create(clock)
        world.send(large_order())
        world.send(large_order(order="o-2"))
        async with world.running(world.agent_work(make_agent())):
            await until(lambda: bool(world.dead()) and bool(world.decisions()))
        return world

    world = run_virtual(main, START_MS)
    assert ["no decision could be made: KeyError: 'country'"] == [reason for reason, _ in world.dead()]
    assert ["large_order:u-1:o-2"] == [record.alert_id for record in world.decisions()]
    assert any(record.exc_info for record in caplog.records)


class Fragile(LargeOrder, frozen=True, tag="fragile"):
    """An alert whose own code fails in a way that decoding does not expect."""

    def __post_init__(self) -> None:
        if self.order_id == "o-1":
            raise KeyError("country")


def test_alert_whose_own_code_fails_is_a_dead_letter() -> None:
    """Also where not even its decoding is safe."""

    async def main(clock: Clock) -> World:
        world = await World.create(clock)
        agent: Agent[Any] = Agent(ask_model, ALERTS.name, alert=Fragile, decides=OrderDecision, fallback=review)
        for order in ("o-1", "o-2"):
            value = msgspec.json.encode({**msgspec.to_builtins(large_order(order=order)), "alert_type": "fragile"})
            world.send_bytes(value, headers={"alert_type": "fragile"})
        async with world.running(world.agent_work(agent)):
            await until(lambda: bool(world.dead()) and bool(world.decisions()))
        return world

    world = run_virtual(main, START_MS)
    assert ["no decision could be made: KeyError: 'country'"] == [reason for reason, _ in world.dead()]
    assert ["large_order:u-1:o-2"] == [record.alert_id for record in world.decisions()]


def test_alert_whose_id_everybody_would_have_to_remember_is_a_dead_letter() -> None:
    """So is one with such a key: effects repeat both, and their topic would not take them."""

    async def main(clock: Clock) -> World:
        world = await World.create(clock)
        world.send(large_order(order="x" * MAX_ID_BYTES))
        world.send(large_order(), key="k" * (MAX_ID_BYTES + 1))
        world.send(large_order(order="o-2"))
        async with world.running(world.agent_work(make_agent())):
            await until(lambda: len(world.dead()) == 2 and bool(world.decisions()))
        return world

    world = run_virtual(main, START_MS)
    assert ["5,016 bytes; 5,000 are taken", "5,001 bytes; 5,000 are taken"] == sorted(
        (reason.rpartition(" has ")[2] for reason, _ in world.dead()), reverse=True
    )
    assert ["block"] == world.decided()


def test_decision_whose_effects_cannot_be_entered_is_a_dead_letter(monkeypatch: pytest.MonkeyPatch) -> None:
    """The partition's other effects are made."""
    enter = Ledger.enter

    async def refuse_one(self: Ledger, entry: EffectRecord) -> None:
        if entry.alert_id == large_order().alert_id:
            raise RecordTooLarge("agent.effects/0/0: too large")
        await enter(self, entry)

    monkeypatch.setattr(Ledger, "enter", refuse_one)

    async def main(clock: Clock) -> tuple[World, ActionsWork]:
        world, agent = await World.create(clock), with_actions(make_agent())
        world.send(large_order())
        world.send(large_order(order="o-2"))
        actions = world.actions_work(agent)
        async with world.running(world.agent_work(agent), actions):
            await until(lambda: set(world.states().values()) == {"done"} and bool(actions.statistics.dead_letters))
        return world, actions

    world, actions = run_virtual(main, START_MS)
    assert 1 == actions.statistics.dead_letters
    assert {"large_order:u-1:o-2"} == {call[2]["alert_id"] for call in world.receiver.calls if "alert_id" in call[2]}
