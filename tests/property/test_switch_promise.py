"""Whatever is cut off and switched when: two seconds after a switch was written nobody begins an effect against it."""

import asyncio
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.core.clock import Clock, run_virtual
from app.decisions.switches import STEADY_SECONDS, ModeSwitch, Switch, Switches
from tests.decisions_kit import START_MS, World, answering, large_order, make_agent, until, with_actions
from tests.examples import examples
from tests.switches_kit import Cut, following, in_mode, off, write

Step = tuple[int, str]
"""Ms to wait, and what happens then."""

ROUND_MS = 10
"""A call is noted a moment after it began."""

steps_of_operators = st.lists(
    st.tuples(st.integers(0, 3_000), st.sampled_from(["cut", "heal", "off", "on", "decide", "decide"])), max_size=16
)


class Call(NamedTuple):
    """When an effect was called, and when its alert was written, ms since the start."""

    at_ms: int
    alert_ms: int


Play = tuple[list[Call], list[tuple[int, bool]], dict[str, str]]
"""Calls; when something was switched, ms since the start, and whether on; how each effect ended."""


def block_is(state: str) -> Switch | ModeSwitch:
    return off("block", state)


def agent_is(state: str) -> Switch | ModeSwitch:
    return in_mode("ask_model", "live" if state == "on" else "shadow")


def calls_and_switches(steps: list[Step], switch: Callable[[str], Switch | ModeSwitch] = block_is) -> Play:
    """What an executor does whose line is cut and heals, of an agent that hears of nothing and decides live for ever."""

    async def main(clock: Clock) -> Play:
        world, called, switched = await World.create(clock, answering("block")), list[Call](), [(0, True)]
        sent: dict[str, int] = {}
        agent, reader = with_actions(make_agent()), Cut(world.broker)
        deciding, post = world.agent_work(agent), world.receiver.post_json

        async def noted(*arguments: Any) -> object:
            order = arguments[2]["idempotency-key"].rsplit(":", 1)[1]
            called.append(Call(clock.now_ms() - START_MS, sent[order]))
            return await post(*arguments)

        world.receiver.post_json = noted  # type: ignore[method-assign, assignment]
        async with following(world, reader=reader), world.running(deciding, world.actions_work(agent)):
            for number, (wait_ms, what) in enumerate(steps):
                await asyncio.sleep(wait_ms / 1000)
                if what == "decide":
                    sent[f"o-{number}"] = clock.now_ms() - START_MS
                    world.send(large_order(f"u-{number}", f"o-{number}"), key=f"u-{number}")
                elif what == "cut":
                    reader.open.clear()
                elif what == "heal":
                    reader.open.set()
                else:
                    await write(world, switch(what))
                    switched.append((clock.now_ms() - START_MS, what == "on"))
            await asyncio.sleep(5)
            reader.open.set()
            decided = sum(what == "decide" for _, what in steps)
            await until(lambda: len({entry.alert_id for entry in world.effects()}) == decided)
            await until(lambda: all(state in ("done", "withheld") for state in last_states(world).values()))
        return called, switched, last_states(world)

    return run_virtual(main, START_MS)


def last_states(world: World) -> dict[str, str]:
    """Of each effect, by its key."""
    return {status.key: status.state.value for entry in world.effects() for status in entry.effects.values()}


def calls_against_a_switch(
    called: list[Call], switched: list[tuple[int, bool]], *, is_about_later: bool = False
) -> list[Call]:
    """Calls at times when something had been off for longer than an executor may not know it. is_about_later: what was
    decided before it was off may be done."""
    found = []
    for call in called:
        off_since_ms: int | None = None
        for switched_ms, is_on in switched:
            if switched_ms <= call.at_ms:
                off_since_ms = None if is_on else switched_ms if off_since_ms is None else off_since_ms
        if off_since_ms is None or (is_about_later and call.alert_ms <= off_since_ms):
            continue
        if call.at_ms - off_since_ms > STEADY_SECONDS * 1000 + ROUND_MS:
            found.append(call)
    return found


@settings(max_examples=examples(100))
@given(steps=steps_of_operators)
def test_no_effect_begins_two_seconds_after_it_was_switched_off(steps: list[Step]) -> None:
    """And every effect comes to an end: made, or withheld."""
    called, switched, states = calls_and_switches(steps)
    assert [] == calls_against_a_switch(called, switched)
    assert len(called) == sum(state == "done" for state in states.values())


@settings(max_examples=examples(60))
@given(steps=steps_of_operators)
def test_no_effect_begins_two_seconds_after_its_agents_mode_was_switched(steps: list[Step]) -> None:
    """Of what was decided behind the switch, by a worker that never hears of it."""
    called, switched, states = calls_and_switches(steps, agent_is)
    assert [] == calls_against_a_switch(called, switched, is_about_later=True)
    assert len(called) == sum(state == "done" for state in states.values())


CUT_THEN_OFF: list[Step] = [(1_500, "cut"), (500, "off"), (2_500, "decide"), (0, "decide")]


def test_no_effect_begins_two_seconds_after_it_was_switched_off_without_the_hold(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Ablation: an executor that does not ask whether it knows calls against the switch."""
    assert [] == calls_against_a_switch(*calls_and_switches(CUT_THEN_OFF)[:2])
    monkeypatch.setattr(Switches, "steady", True)
    assert [] != calls_against_a_switch(*calls_and_switches(CUT_THEN_OFF)[:2])


def test_no_effect_begins_two_seconds_after_it_was_switched_off_without_the_check(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Ablation: an executor that knows and does not look calls against the switch."""
    steps: list[Step] = [(1_500, "off"), (2_500, "decide")]
    monkeypatch.setattr(Switches, "withholds", lambda *arguments, **more: "")
    assert [] != calls_against_a_switch(*calls_and_switches(steps)[:2])


def test_no_effect_begins_two_seconds_after_its_agents_mode_was_switched_without_its_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Ablation: an executor that does not know since when acts on what was decided behind the switch."""
    steps: list[Step] = [(1_500, "off"), (2_500, "decide")]
    assert [] == calls_against_a_switch(*calls_and_switches(steps, agent_is)[:2], is_about_later=True)
    monkeypatch.setattr(Switches, "_set_mode", lambda self, switch, written_ms: None)
    assert [] != calls_against_a_switch(*calls_and_switches(steps, agent_is)[:2], is_about_later=True)
