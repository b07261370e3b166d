"""Switches as a process knows them, modes, and who has heard of what."""

import asyncio
import logging
from typing import Any, ClassVar, Literal

import pytest

from app.application import App
from app.broker.memory import Fault
from app.core.codec import compact_key, encode
from app.core.errors import SetupError
from app.core.record import TopicPartition
from app.decisions.decision import Decision, Severity, review
from app.decisions.record import SWITCHES
from app.decisions.switches import (
    PLACE,
    Switches,
    heard,
    switch_names,
)
from features import fraud, records
from tests.decisions_kit import (
    LargeOrder,
    OrderDecision,
    World,
    ask_model,
    large_order,
    make_agent,
    until,
    with_actions,
)
from tests.switches_kit import Cut, following, in_mode, in_world, off, write


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


def test_switches_read_at_the_start_are_told_as_they_stand_now(caplog: pytest.LogCaptureFixture) -> None:
    """History is not told as if it happened now; what happens from then on is, with no colon where nobody said why."""
    caplog.set_level(logging.INFO)

    async def main(world: World) -> None:
        await write(world, off("block"), off("review", reason="odd"), off("block", "on"), in_mode("judge", "shadow"))
        await write(world, in_mode("other", "dry-run"), in_mode("other", "live"))
        async with following(world):
            assert [
                "review is off since 2023-11-14 22:13:20 UTC, by ada: odd",
                "agent judge is in mode shadow since 2023-11-14 22:13:20 UTC, by ada",
            ] == caplog.messages
            assert {"WARNING"} == {record.levelname for record in caplog.records}
            caplog.clear()
            await write(world, off("block"), in_mode("judge", "live"))
            await asyncio.sleep(1)
        assert ["block is off, by ada", "agent judge is in mode live, by ada"] == caplog.messages

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
            unsaid = await heard(world.broker.reader(), -1, 2.0)
        assert {"one": True, "two": True, "cut": False} == found
        assert {"one": True, "two": True, "cut": False} == unsaid  # the broker did not say where the switch stands
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


async def block(alert: object, context: object) -> object:
    """An agent with the name of an action."""


async def all(alert: object, context: object) -> object:
    """An agent with the name of everything."""


class Everything(Decision, frozen=True, kw_only=True):
    """Has an action with the name of everything."""

    action: Literal["review", "all"]
    severities: ClassVar = {"review": Severity.REVIEW, "all": Severity.BLOCK}


@pytest.mark.parametrize(
    ("handler", "decides", "said"),
    [
        (block, OrderDecision, "agent block: 'block' names an agent and an action"),
        (all, OrderDecision, "agent all: `switch off all` means everything"),
        (ask_model, Everything, "agent ask_model: `switch off all` means everything"),
    ],
)
def test_agent_that_would_share_a_switch_is_refused(handler: Any, decides: Any, said: str) -> None:
    """One name, one meaning: whoever switches it off must know what stops."""
    app = App(features=[records, fraud])
    with pytest.raises(SetupError, match=said):
        app.agent("processed.alerts", alert=LargeOrder, decides=decides, fallback=review)(handler)
    assert {} == app.agents


def test_agent_called_like_the_action_of_another_is_refused() -> None:
    """In whichever order they are declared."""
    app = App(features=[records, fraud])
    app.agent("processed.alerts", alert=LargeOrder, decides=OrderDecision, fallback=review)(ask_model)
    with pytest.raises(SetupError, match="'block' names an agent and an action"):
        app.agent("processed.alerts", alert=LargeOrder, decides=Everything, fallback=review)(block)
