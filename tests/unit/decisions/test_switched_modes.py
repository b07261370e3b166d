"""A mode is about decisions to come: what is decided live behind its switch, by who has not heard of it, is withheld."""

import asyncio
from collections.abc import Sequence
from typing import Any

import pytest

from app.decisions.switches import ModeSwitch, Switches
from tests.decisions_kit import World, large_order, make_agent, until, with_actions
from tests.switches_kit import Cut, following, in_mode, in_world, write


async def decide_unheard(world: World, *modes: Any) -> None:
    """A worker of agents whose line is cut decides live, a minute after each of these modes was set; a steady executor
    applies that."""
    agent, reader = with_actions(make_agent()), Cut(world.broker)
    async with (
        following(world, reader=reader, process="agents") as unheard,
        following(world, process="actions") as known,
    ):
        await asyncio.sleep(3)
        reader.open.clear()
        for mode in modes:
            await write(world, in_mode("ask_model", mode))
            await asyncio.sleep(60)
        assert ("live", False, True) == (unheard.mode("ask_model"), unheard.steady, known.steady)
        world.switches = unheard
        agents = world.agent_work(agent, mode=unheard.mode("ask_model"))
        world.switches = known
        async with world.running(agents, world.actions_work(agent)):
            world.send(large_order())
            await until(lambda: bool(world.effects()) and {"intended", "called"}.isdisjoint(world.states().values()))
        reader.open.set()


@pytest.mark.parametrize("modes", [["shadow"], ["dry-run"], ["live", "shadow"]])
def test_switched_mode_withholds_what_is_decided_live_behind_it(modes: Sequence[str]) -> None:
    """Nothing is called, however long the worker hears nothing, and a person is asked about each effect."""

    async def main(world: World) -> None:
        await decide_unheard(world, *modes)
        assert (["live"], []) == ([record.mode for record in world.decisions()], world.receiver.calls)
        assert {"block_order": "withheld", "notify": "withheld"} == world.states()
        said = f"ask_model had been set to {modes[-1]} by ada before this was decided"
        assert f"effect block_order is withheld: {said}" == world.reviews()[0].reason

    in_world(main)


def test_switched_mode_without_its_time_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ablation: an executor that knows the mode alone makes the effects."""

    def forgetful(self: Switches, switch: ModeSwitch, written_ms: int) -> None:
        self.modes[switch.agent] = switch

    monkeypatch.setattr(Switches, "_set_mode", forgetful)

    async def main(world: World) -> None:
        await decide_unheard(world, "shadow")
        assert 2 == len(world.receiver.calls)

    in_world(main)


def test_switched_mode_back_to_live_withholds_nothing() -> None:
    """Who has not heard of either decides as who has."""

    async def main(world: World) -> None:
        await decide_unheard(world, "shadow", "live")
        assert {"block_order": "done", "notify": "done"} == world.states()

    in_world(main)


@pytest.mark.parametrize("modes", [["shadow"], ["shadow", "dry-run"]])
def test_switched_mode_leaves_what_was_decided_before_it(modes: Sequence[str]) -> None:
    """Effects of decisions that were live are stopped by switches, not by a mode."""

    async def main(world: World) -> None:
        agent = with_actions(make_agent())
        world.send(large_order())
        async with following(world):
            async with world.running(world.agent_work(agent)):
                await until(lambda: bool(world.decisions()))
            for mode in modes:
                await asyncio.sleep(1)
                await write(world, in_mode("ask_model", mode))
            await asyncio.sleep(1)
            async with world.running(world.actions_work(agent)):
                await until(lambda: {"block_order": "done", "notify": "done"} == world.states())

    in_world(main)


def test_switched_mode_counts_from_the_first_that_is_not_live() -> None:
    """Between shadow and dry-run nothing was to be live either; live, and what is taken back, begin anew."""

    async def main(world: World) -> None:
        async with following(world) as switches:

            async def since(mode: Any) -> int | None:
                await asyncio.sleep(1)
                await write(world, in_mode("a", mode))
                await asyncio.sleep(1)
                return switches._not_live_since.get("a")

            shadow, dry_run, live, again = [await since(mode) for mode in ("shadow", "dry-run", "live", "shadow")]
            assert shadow == dry_run
            assert (None, True) == (live, again is not None and shadow is not None and again > shadow)

    in_world(main)
