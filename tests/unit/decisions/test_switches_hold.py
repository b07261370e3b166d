"""Nobody acts who does not know what is off: heartbeats, outages, frozen processes and drains."""

import asyncio
from typing import Any

import pytest

from app.broker.memory import MemoryProducer
from app.core.errors import Unavailable
from app.decisions.effects import Effects
from app.decisions.record import EFFECTS, SWITCHES
from app.decisions.switches import (
    HEARTBEAT_KEY,
    Switches,
)
from tests.decisions_kit import OrderDecision, World, large_order, make_agent, until, with_actions
from tests.switches_kit import Cut, following, in_world, off, write


async def act_behind_a_cut_line(world: World, seconds: float) -> list[int]:
    """A block is decided while its executor hears nothing for so long; `block` is switched off meanwhile. When it called,
    ms since the cut."""
    reader, agent = Cut(world.broker), with_actions(make_agent())
    async with following(world, reader=reader):
        await asyncio.sleep(5)
        reader.open.clear()
        cut_ms = world.clock.now_ms()
        await asyncio.sleep(1)
        await write(world, off("block"))
        await asyncio.sleep(2)
        world.switches, know = Switches(world.broker.producer(), world.broker.reader(), process="x"), world.switches
        async with world.running(world.agent_work(agent)):  # an agent that does not know it either
            world.send(large_order())
            await until(lambda: bool(world.decisions()))
        world.switches = know
        called: list[int] = []
        post = world.receiver.post_json

        async def timed(*arguments: Any) -> object:
            called.append(world.clock.now_ms() - cut_ms)
            return await post(*arguments)

        world.receiver.post_json = timed  # type: ignore[method-assign, assignment]
        async with world.running(world.actions_work(agent)):
            await asyncio.sleep(seconds - 3)
            assert called or 1 == know.statistics().held
            reader.open.set()
            await until(lambda: {"intended", "called"}.isdisjoint(world.states().values()))
        return called


@pytest.mark.parametrize("at_most_once", [False, True])
@pytest.mark.parametrize(("name", "expected"), [("block", "withheld"), ("approve", "done")])
def test_handler_that_waits_before_its_effect_is_held_to_the_switches_of_then(
    name: str, expected: str, *, at_most_once: bool
) -> None:
    """What was switched off while it waited is withheld; another switch is none of its business."""

    async def main(world: World) -> None:
        agent = make_agent()

        @agent.action("block", at_most_once=at_most_once)
        async def block_order(decision: OrderDecision, effects: Effects) -> None:
            await asyncio.sleep(10)
            await effects.post({})

        world.send(large_order())
        async with following(world), world.running(world.agent_work(agent), world.actions_work(agent)):
            await until(lambda: bool(world.states()))
            await asyncio.sleep(1)
            await write(world, off(name))
            await until(lambda: {"intended", "called"}.isdisjoint(world.states().values()))
        assert {"block_order": expected} == world.states()
        assert (expected == "done") == bool(world.receiver.calls)

    in_world(main)


def test_handler_that_waits_while_nothing_is_heard_is_begun_again() -> None:
    """Nobody knows what is off then; once it is known, it makes its effect, and no attempt was counted."""

    async def main(world: World) -> None:
        reader, agent = Cut(world.broker), make_agent()
        begun: list[int] = []

        @agent.action("block")
        async def block_order(decision: OrderDecision, effects: Effects) -> None:
            begun.append(world.clock.now_ms())
            await asyncio.sleep(10)
            await effects.post({})

        world.send(large_order())
        async with (
            following(world, reader=reader),
            world.running(world.agent_work(agent), world.actions_work(agent), max_attempts=1),
        ):
            await until(lambda: bool(begun))
            reader.open.clear()
            await asyncio.sleep(60)
            assert (1, []) == (len(begun), world.receiver.calls)
            reader.open.set()
            await until(lambda: world.states() == {"block_order": "done"})
        assert (2, 1) == (len(begun), len(world.receiver.calls))

    in_world(main)


def test_executor_that_hears_nothing_holds_its_effects() -> None:
    """Once it hears again it learns what was switched off before anything is called, and no attempt was counted."""

    async def main(world: World) -> None:
        assert [] == await act_behind_a_cut_line(world, 600)
        assert {"block_order": "withheld", "notify": "withheld"} == world.states()

    in_world(main)


def test_executor_without_the_hold_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ablation: one that does not wait for its heartbeat calls what is off."""
    monkeypatch.setattr(Switches, "steady", True)

    async def main(world: World) -> None:
        assert [] != await act_behind_a_cut_line(world, 10)

    in_world(main)


class Away(MemoryProducer):
    """A producer of a broker that may be away."""

    away = False

    async def confirm(self, *arguments: Any, **more: Any) -> Any:
        if self.away:
            await asyncio.sleep(3)
            raise Unavailable("broker: away")
        return await super().confirm(*arguments, **more)


def test_outage_of_the_broker_fails_no_held_effect() -> None:
    """Half a minute without a broker: effects wait, then are made once; agents went on deciding until it was away."""

    async def main(world: World) -> None:
        producer, agent = Away(world.broker), with_actions(make_agent())
        async with following(world, producer=producer):
            actions = world.actions_work(agent, producer=producer)
            await asyncio.sleep(3)
            producer.away = True
            await asyncio.sleep(3)
            async with world.running(world.agent_work(agent), actions):
                world.send(large_order())
                await asyncio.sleep(30)
                assert (["block"], []) == (world.decided(), world.receiver.calls)
                producer.away = False
                await until(lambda: {"block_order": "done", "notify": "done"} == world.states())
        assert (2, []) == (len(world.receiver.calls), world.reviews())

    in_world(main)


class SlowClaims(MemoryProducer):
    """A producer whose second write to `agent.effects`, a claim, takes ten seconds."""

    writes = 0

    async def confirm(self, topic: str, *arguments: Any, **more: Any) -> Any:
        self.writes += topic == EFFECTS
        if topic == EFFECTS and self.writes == 2:
            await asyncio.sleep(10)
        return await super().confirm(topic, *arguments, **more)


def test_effect_switched_off_while_it_was_claimed_is_withheld() -> None:
    """The claim of a call that is made at most once may have waited; what was switched off meanwhile is not called."""

    async def main(world: World) -> None:
        producer, agent = SlowClaims(world.broker), with_actions(make_agent(), at_most_once=True)
        world.send(large_order())
        async with following(world), world.running(world.agent_work(agent)):
            await until(lambda: bool(world.decisions()))
            async with world.running(world.actions_work(agent, producer=producer)):
                await until(lambda: producer.writes == 2)
                await write(world, off("block"))
                await until(lambda: {"block_order": "withheld", "notify": "withheld"} == world.states())
        assert [] == world.receiver.calls

    in_world(main)


def test_held_effect_does_not_outlast_the_drain() -> None:
    """A worker that is told to stop leaves what it holds to the next one, uncommitted."""

    async def main(world: World) -> None:
        agent = with_actions(make_agent())
        world.send(large_order())
        async with world.running(world.agent_work(agent)):
            await until(lambda: bool(world.decisions()))
        world.switches = Switches(world.broker.producer(), world.broker.reader(), process="mute")
        began_ms = world.clock.now_ms()
        async with world.running(world.actions_work(agent)):
            await until(lambda: world.switches.statistics().held == 1)
        assert world.clock.now_ms() - began_ms < 27_000
        assert {} == world.states()
        async with following(world), world.running(world.actions_work(agent)):
            await until(lambda: {"block_order": "done", "notify": "done"} == world.states())
        assert 2 == len(world.receiver.calls)

    in_world(main)


def test_heartbeats_keep_a_process_steady_and_leave_one_key() -> None:
    """One a second, each read back; another process's do not count for this one."""

    async def main(world: World) -> None:
        async with following(world) as one, following(world, process="two") as two:
            await asyncio.sleep(0.1)
            assert one.steady
            assert two.steady
            for _ in range(100):
                await asyncio.sleep(0.31)
                assert one.steady
            assert 30 <= one.statistics().heartbeats <= 33
        assert {HEARTBEAT_KEY} == {record.key for record in world.records(SWITCHES)}
        await asyncio.sleep(2)
        assert not one.steady

    in_world(main)


def test_frozen_process_is_not_steady_when_it_wakes() -> None:
    """What lies unread in its queue is old: only a heartbeat that it writes from then on says that it knows all."""

    async def main(world: World) -> None:
        reader = Cut(world.broker)
        async with following(world, reader=reader) as switches:
            await asyncio.sleep(1.5)
            reader.open.clear()
            await asyncio.sleep(10)
            assert not switches.steady
            reader.open.set()
            await asyncio.sleep(0.01)
            learned = switches.statistics()
            assert learned.heartbeat_age_ms is not None
            assert learned.steady is (learned.heartbeat_age_ms < 2_000)
            await asyncio.sleep(1.1)
            assert switches.steady

    in_world(main)


async def hold_an_hour(world: World) -> None:
    """An executor with one decision to apply hears nothing for an hour."""
    agent, reader = with_actions(make_agent()), Cut(world.broker)
    world.send(large_order())
    async with following(world, reader=reader):
        async with world.running(world.agent_work(agent)):
            await until(lambda: bool(world.decisions()))
        reader.open.clear()
        await asyncio.sleep(3)
        async with world.running(world.actions_work(agent)):
            await asyncio.sleep(3_600)
            assert 1 == world.switches.statistics().held
            reader.open.set()
            await until(lambda: {"block_order": "done", "notify": "done"} == world.states())


def test_holding_is_told_when_it_begins_and_when_it_ends(caplog: pytest.LogCaptureFixture) -> None:
    """One line each, however much is held and however long; why, and for how long."""
    in_world(hold_an_hour)
    lines = [line for line in caplog.messages if line.startswith("effects ")]
    begins = "effects are held: no heartbeat on agent.switches has come back for "
    assert [True, True] == [lines[0].startswith(begins), "came back, after 360" in lines[1]]
    assert 2 == len(lines)


def test_holding_within_a_second_is_not_told(caplog: pytest.LogCaptureFixture) -> None:
    """As at every start, before the first heartbeat has come back."""

    async def main(world: World) -> None:
        switches, stopping = Switches(world.broker.producer(), world.broker.reader(), process="new"), asyncio.Event()
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(switches.run(stopping))
            await switches.hold()
            stopping.set()
        assert switches.steady

    in_world(main)
    assert [] == caplog.messages


async def claim_for_ten_seconds(world: World, producer: SlowClaims, cut_s: float) -> None:
    """A claim outlasts the heartbeats, which come back that long after it began; the worker stops half a minute later, and
    another one follows."""
    agent, reader = with_actions(make_agent(), at_most_once=True), Cut(world.broker)
    world.send(large_order())
    async with following(world, reader=reader):
        async with world.running(world.agent_work(agent)):
            await until(lambda: bool(world.decisions()))
        async with world.running(world.actions_work(agent, producer=producer)):
            await until(lambda: producer.writes == 2)
            reader.open.clear()
            asyncio.get_running_loop().call_later(cut_s, reader.open.set)
            await asyncio.sleep(30)
    async with following(world), world.running(world.actions_work(agent)):
        await until(lambda: {"intended", "called"}.isdisjoint(world.states().values()))


def test_claimed_effect_waits_for_the_switches_and_is_made() -> None:
    """They are known again soon after the claim has come through."""

    async def main(world: World) -> None:
        await claim_for_ten_seconds(world, SlowClaims(world.broker), 12)
        assert ({"block_order": "done", "notify": "done"}, []) == (world.states(), world.reviews())
        assert ["block_order", "notify"] == sorted(key.split(":")[1] for key in world.receiver.called_keys())

    in_world(main)


def test_claimed_effect_that_nobody_called_is_not_unknown() -> None:
    """Where the switches stay unknown and the worker stops, it has said itself that nothing was called."""

    async def main(world: World) -> None:
        await claim_for_ten_seconds(world, SlowClaims(world.broker), 600)
        assert ({"block_order": "withheld", "notify": "done"}) == world.states()
        assert ["notify"] == [key.split(":")[1] for key in world.receiver.called_keys()]
        said = "effect block_order is withheld: not called: for 5 s it was not known what is switched off"
        assert [said] == [asked.reason for asked in world.reviews()]

    in_world(main)
