"""Switches: what is off falls back or is withheld, and nobody acts who does not know."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest

from app.broker.memory import Fault, MemoryBroker, MemoryProducer, MemoryReader
from app.core.clock import Clock, run_virtual
from app.core.codec import compact_key, encode
from app.core.errors import Unavailable
from app.core.record import Record, TopicPartition
from app.decisions.agent import Agent
from app.decisions.decision import review
from app.decisions.record import EFFECTS, SWITCHES
from app.decisions.switches import (
    HEARTBEAT_KEY,
    PLACE,
    ModeSwitch,
    Switch,
    Switches,
    heard,
    switch_names,
    write_switch,
)
from tests.decisions_kit import START_MS, OrderDecision, World, answering, large_order, make_agent, until, with_actions


def off(name: str, state: Any = "off", reason: str = "") -> Switch:
    return Switch(name=name, state=state, who="ada", reason=reason, at_ms=START_MS)


def in_mode(agent: str, mode: Any) -> ModeSwitch:
    return ModeSwitch(agent=agent, mode=mode, who="ada", reason="", at_ms=START_MS)


async def write(world: World, *written: Switch | ModeSwitch) -> int:
    offset = -1
    for one in written:
        offset = await write_switch(world.broker.producer(), one)
    return offset


class Cut(MemoryReader):
    """A reader whose line may be cut: nothing that is written after that comes through."""

    def __init__(self, broker: MemoryBroker) -> None:
        super().__init__(broker)
        self.open = asyncio.Event()
        self.open.set()

    async def follow(self, place: TopicPartition, start: int) -> AsyncIterator[list[Record]]:
        async for batch in super().follow(place, start):
            await self.open.wait()
            yield batch


@asynccontextmanager
async def following(world: World, kind: type[Switches] = Switches, **arguments: Any) -> AsyncIterator[Switches]:
    """Switches of a process, loaded and followed."""
    arguments = {"producer": world.broker.producer(), "reader": world.broker.reader(), "process": "one", **arguments}
    switches, stopping = kind(arguments.pop("producer"), arguments.pop("reader"), **arguments), asyncio.Event()
    await switches.load()
    world.switches = switches
    async with asyncio.TaskGroup() as tasks:
        running = tasks.create_task(switches.run(stopping))
        try:
            yield switches
        finally:
            stopping.set()
            await running


def in_world(main: Callable[[World], Awaitable[Any]], answer: str = "block") -> Any:
    """Runs `main(world)` under virtual time."""

    async def run(clock: Clock) -> Any:
        return await main(await World.create(clock, answering(answer)))

    return run_virtual(run, START_MS)


async def decide_and_act(world: World, agent: Agent[OrderDecision], orders: int = 1) -> None:
    """Alerts through agent and actions, until each of their effects has come to its end."""
    for number in range(orders):
        world.send(large_order(order=f"o-{len(world.decisions())}-{number}"))
    works = world.agent_work(agent), world.actions_work(agent)
    decided = len(world.decisions()) + orders
    async with world.running(*works):
        await until(lambda: len(world.decisions()) == decided)
        await until(lambda: len({entry.alert_id for entry in world.effects()}) == decided)
        await until(lambda: all(state not in ("intended", "called") for state in world.states().values()))


def reasons_of(world: World) -> list[tuple[str, ...]]:
    return [record.reasons for record in world.decisions()]


@pytest.mark.parametrize("name", ["block", "ask_model.block"])
def test_switched_off_action_goes_to_the_fallback(name: str) -> None:
    """Also where the fallback is milder: a person sees it instead; the reason says so, and nothing is called."""

    async def main(world: World) -> None:
        await write(world, off(name))
        async with following(world):
            await decide_and_act(world, with_actions(make_agent()))
        assert (["review"], [("switched_off",)]) == (world.decided(), reasons_of(world))
        assert ({"queue": "done"}, []) == (world.states(), world.receiver.calls)

    in_world(main)


def test_switched_off_action_of_another_agent_is_on_here() -> None:
    """A name with an agent in front is that agent's alone."""

    async def main(world: World) -> None:
        await write(world, off("other.block"))
        async with following(world):
            await decide_and_act(world, with_actions(make_agent()))
        assert (["block"], 2) == (world.decided(), len(world.receiver.calls))

    in_world(main)


def test_switched_off_action_without_a_fallback_is_a_dead_letter() -> None:
    """What may not stand, and nothing may stand in for, waits where it can be replayed from."""

    async def main(world: World) -> None:
        await write(world, off("block"))
        world.send(large_order())
        async with following(world), world.running(world.agent_work(make_agent(fallback=None))):
            await until(lambda: bool(world.dead()))
        assert "block may not stand: switched_off; there is no fallback" == world.dead()[0][0]

    in_world(main)


def test_switched_off_approval_ends_with_a_person() -> None:
    """Approving can be switched off like everything else."""

    async def main(world: World) -> None:
        await write(world, off("approve"))
        async with following(world):
            await decide_and_act(world, with_actions(make_agent()))
        assert (["review"], {"queue": "done"}) == (world.decided(), world.states())

    in_world(main, "approve")


def test_switched_off_agent_asks_no_model() -> None:
    """Its fallback decides, and the fallback's effects are made: that is how a person hears of it."""

    async def main(world: World) -> None:
        await write(world, off("ask_model"))
        async with following(world):
            await decide_and_act(world, with_actions(make_agent()))
        assert (["review"], [("switched_off",)], []) == (world.decided(), reasons_of(world), world.model.requests)
        assert ({"queue": "done"}, 1) == (world.states(), len(world.reviews()))

    in_world(main)


def test_switched_off_agent_during_the_call_has_no_say() -> None:
    """What the model answers after the switch is not what is decided."""

    async def main(world: World) -> None:
        world.model.seconds = 5.0
        world.send(large_order())
        async with following(world), world.running(world.agent_work(make_agent())):
            await until(lambda: bool(world.model.requests))
            await write(world, off("ask_model"))
            await until(lambda: bool(world.decisions()))
        assert (["review"], [("switched_off",)]) == (world.decided(), reasons_of(world))

    in_world(main, "approve")


def test_switched_off_everything_falls_back_and_withholds() -> None:
    """No model is asked, nothing is called, and a person is asked about each alert."""

    async def main(world: World) -> None:
        await write(world, off("all", reason="incident 7"))
        async with following(world):
            await decide_and_act(world, with_actions(make_agent()), orders=3)
        assert (["review"] * 3, []) == (world.decided(), world.model.requests)
        assert ({"queue": "withheld"}, []) == (world.states(), world.receiver.calls)
        expected = "effect queue is withheld: all was switched off by ada: incident 7"
        assert [("effect", expected)] * 3 == [(asked.kind, asked.reason) for asked in world.reviews()]

    in_world(main)


def test_switched_off_fallback_still_decides_and_asks() -> None:
    """Nothing is safer than the fallback, so it stands; its effects are withheld, and a person is asked all the same."""

    async def main(world: World) -> None:
        await write(world, off("review"))
        async with following(world):
            await decide_and_act(world, with_actions(make_agent()))
        assert (["review"], [("switched_off",)]) == (world.decided(), reasons_of(world))
        assert ({"queue": "withheld"}, ["effect"]) == (world.states(), [asked.kind for asked in world.reviews()])

    in_world(main, "review")


async def decide_then_switch_off(world: World, agent: Agent[OrderDecision], name: str) -> None:
    """A block is decided; before it is applied, something is switched off, and known."""
    world.send(large_order())
    async with following(world) as switches:
        async with world.running(world.agent_work(agent)):
            await until(lambda: bool(world.decisions()))
        await write(world, off(name))
        await until(lambda: switches.is_off(name))
        async with world.running(world.actions_work(agent)):
            await until(lambda: {"intended", "called"}.isdisjoint(world.states().values()) and bool(world.effects()))


@pytest.mark.parametrize("at_most_once", [False, True])
@pytest.mark.parametrize("name", ["block", "ask_model.block", "ask_model", "all"])
def test_switched_off_between_decision_and_effect_is_withheld(name: str, at_most_once: bool) -> None:
    """Nothing is called, each effect ends in a state of its own, and a person is asked about each."""

    async def main(world: World) -> None:
        agent = with_actions(make_agent(), at_most_once=at_most_once)
        await decide_then_switch_off(world, agent, name)
        assert (["block"], []) == (world.decided(), world.receiver.calls)
        assert {"block_order": "withheld", "notify": "withheld"} == world.states()
        assert ["effect", "effect"] == [asked.kind for asked in world.reviews()]
        assert f"effect block_order is withheld: {name} was switched off by ada" == world.reviews()[0].reason

    in_world(main)


def test_effect_without_the_check_before_it_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ablation: without the second look a decided action is taken although it is off by then."""
    monkeypatch.setattr(Switches, "withholds", lambda *arguments: "")

    async def main(world: World) -> None:
        await decide_then_switch_off(world, with_actions(make_agent()), "block")
        assert ({"block_order": "done", "notify": "done"}, 2) == (world.states(), len(world.receiver.calls))

    in_world(main)


def test_withheld_effect_stays_withheld_when_switched_on() -> None:
    """It is a person's by then; what comes after is made again."""

    async def main(world: World) -> None:
        agent = with_actions(make_agent())
        await decide_then_switch_off(world, agent, "block")
        await write(world, off("block", "on"))
        async with following(world):
            await decide_and_act(world, agent)
        assert {"block_order", "notify"} == {key.split(":")[1] for key in world.receiver.called_keys()}
        assert 2 == len(world.receiver.calls)

    in_world(main)


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


def test_executor_that_hears_nothing_holds_its_effects() -> None:
    """Once it hears again it learns what was switched off before anything is called, and no attempt was counted."""

    async def main(world: World) -> None:
        assert [] == await act_behind_a_cut_line(world, 600)
        assert {"block_order": "withheld", "notify": "withheld"} == world.states()

    in_world(main)


def test_executor_without_the_hold_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ablation: one that does not wait for its heartbeat calls what is off."""

    async def go_on(self: Switches) -> None:
        return None

    monkeypatch.setattr(Switches, "hold", go_on)

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


def test_switches_are_read_before_anything_starts_and_followed() -> None:
    """The last word on each name counts, of those before the start and of those behind it."""

    async def main(world: World) -> None:
        await write(world, off("block"), off("review"), off("block", "on"))
        async with following(world) as switches:
            assert ("review",) == switches.statistics().off
            await write(world, off("judge"), off("review", "on"))
            await until(lambda: switches.statistics().off == ("judge",), 0.1)
            world.broker.append(SWITCHES, None, off("judge").key, 0, 0, ())
            await until(lambda: switches.statistics().off == (), 0.1)

    in_world(main)


def test_switch_that_cannot_be_read_is_off() -> None:
    """Somebody meant to stop something; a mode that cannot be read does not act; anything else is passed over."""

    async def main(world: World) -> None:
        world.broker.append(SWITCHES, b"{", compact_key(switch="block"), 0, 0, ())
        world.broker.append(SWITCHES, encode(off("block", "on")), compact_key(switch="review"), 0, 0, ())
        world.broker.append(SWITCHES, b"[]", compact_key(mode="judge"), 0, 0, ())
        world.broker.append(SWITCHES, b"?", b"?", 0, 0, ())
        world.broker.append(SWITCHES, b"?", None, 0, 0, ())
        switches = Switches(world.broker.producer(), world.broker.reader(), process="one")
        await switches.load()
        assert (("block", "review"), {"judge": "dry-run"}) == (switches.statistics().off, switches.statistics().modes)
        assert 3 == switches.statistics().unreadable

    in_world(main)


def test_mode_is_the_more_careful_of_process_and_switch() -> None:
    """No switch makes a shadow worker act; one makes a live worker's agent stop acting."""
    order = ["live", "shadow", "dry-run"]

    async def main(world: World) -> None:
        for own in order:
            for switched in order:
                await write(world, in_mode("judge", switched))
                switches = Switches(
                    world.broker.producer(),
                    world.broker.reader(),
                    process="one",
                    mode=own,  # type: ignore[arg-type]
                )
                assert own == switches.mode("judge")
                await switches.load()
                assert order[max(order.index(own), order.index(switched))] == switches.mode("judge")
                assert own == switches.mode("another")

    in_world(main)


def test_shadow_decides_beside_the_live_agent_and_is_never_applied() -> None:
    """Both decide each alert, each in a group of its own; only the live decision acts."""

    async def main(world: World) -> None:
        agent = with_actions(make_agent())
        works = world.agent_work(agent, mode="shadow"), world.agent_work(agent, mode="dry-run")
        for number in range(5):
            world.send(large_order(order=f"o-{number}"))
        async with world.running(*works):
            await until(lambda: len(world.decisions()) == 10)
        async with world.running(world.agent_work(agent), world.actions_work(agent)):
            await until(lambda: len(world.decisions()) == 15)
            await until(lambda: len(world.receiver.calls) == 10)
        assert ["dry-run"] * 5 + ["live"] * 5 + ["shadow"] * 5 == sorted(record.mode for record in world.decisions())
        committed = {name: group.committed for name, group in world.broker.groups.items() if "agent" in name}
        base = "headrace.agent.ask_model"
        assert {base, f"{base}.shadow", f"{base}.dry-run"} == committed.keys()
        assert 1 == len({frozenset(offsets) for offsets in committed.values()})

    in_world(main)


def test_watcher_is_told_of_changes_while_it_watches() -> None:
    """Heartbeats are no changes."""

    async def main(world: World) -> None:
        told: list[str] = []
        async with following(world) as switches:
            with switches.watched(lambda: told.append("changed")):
                await asyncio.sleep(3)
                await write(world, in_mode("judge", "shadow"))
                await asyncio.sleep(0.1)
            await write(world, off("block"))
            await asyncio.sleep(0.1)
        assert ["changed"] == told

    in_world(main)


def test_heard_counts_who_has_read_the_switch() -> None:
    """Two that follow know it; one that is cut off beats without knowing."""

    async def main(world: World) -> None:
        cut = Cut(world.broker)
        async with following(world), following(world, process="two"), following(world, process="cut", reader=cut):
            await asyncio.sleep(3.5)
            cut.open.clear()
            offset = await write(world, off("block"))
            found = await heard(world.broker.reader(), offset, 2.0)
        assert {"one": True, "two": True, "cut": False} == found
        assert {} == await heard(world.broker.reader(), (await write(world, off("block"))), 2.0)

    in_world(main)


def test_heartbeats_go_on_after_an_outage_and_follow_again() -> None:
    """A beat that the broker does not take is not the last one."""

    async def main(world: World) -> None:
        world.broker.plan(Fault("confirm", "fail"))
        async with following(world) as switches:
            await asyncio.sleep(0.1)
            assert not switches.steady
            await asyncio.sleep(1)
            assert switches.steady

    in_world(main)


def test_switch_names_are_all_that_is_declared() -> None:
    """Everything, agents, actions of all, actions of each."""
    names = switch_names({"judge": make_agent()})
    assert ("all", "judge", "approve", "block", "review", "judge.approve", "judge.review", "judge.block") == names
    assert review.action in names
    assert PLACE == TopicPartition(SWITCHES, 0)
