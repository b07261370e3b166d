"""What is off falls back at the decision, and is withheld before the effect; a person is asked."""

import pytest

from app.decisions.agent import Agent
from app.decisions.decision import Fallback
from app.decisions.switches import (
    Switches,
)
from tests.decisions_kit import OrderDecision, World, large_order, make_agent, until, with_actions
from tests.switches_kit import decide_and_act, following, in_world, off, write


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


@pytest.mark.parametrize("name", ["ask_model", "all"])
def test_switched_off_agent_whose_fallback_blocks_blocks_nobody(name: str) -> None:
    """Only a fallback that leaves the matter to a person is acted on in its place; any other is withheld."""

    async def main(world: World) -> None:
        await write(world, off(name))
        async with following(world):
            await decide_and_act(world, with_actions(make_agent(fallback=Fallback("block"))), orders=3)
        assert (["block"] * 3, []) == (world.decided(), world.receiver.calls)
        assert {"block_order": "withheld", "notify": "withheld"} == world.states()
        assert {"effect"} == {asked.kind for asked in world.reviews()}

    in_world(main, "approve")


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
    monkeypatch.setattr(Switches, "withholds", lambda *arguments, **more: "")

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
