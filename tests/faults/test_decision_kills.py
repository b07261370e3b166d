"""Agents and actions killed at every await, one after the other: nothing is lost, and nothing is done twice.

Each test of a safeguard has an ablation: without the safeguard the same checker must find something.
"""

import asyncio
import itertools
from collections import Counter
from collections.abc import Callable
from typing import Any

import msgspec
import pytest

from app.broker.base import Assignment
from app.core.clock import Clock, run_virtual
from app.core.codec import encode
from app.core.record import TopicPartition
from app.decisions.actions import ActionsWork
from app.decisions.agent import Agent
from app.decisions.ledger import Ledger
from app.decisions.record import EffectRecord, EffectState
from app.decisions.remembered import Remembered
from app.models.base import ModelRequest
from tests.decision_lives import Offsets, SteppingPoster, SteppingProducer, Steps, die, live, lives, without
from tests.decisions_kit import START_MS, World, large_order, make_agent, with_actions

ORDERS = 3
LEAST_STEPS = 20
"""Three decisions with their effects take more steps than this, or the driver no longer counts them."""
ALERT_IDS = {f"large_order:u-{number}:o-{number}" for number in range(ORDERS)}


def numbered_answers() -> Callable[[ModelRequest], str]:
    """A model that never answers the same twice: whatever acts on a later answer shows it."""
    numbers = itertools.count()

    def text(request: ModelRequest) -> str:
        return encode({"action": "block", "risk_level": "HIGH", "reason": f"answer {next(numbers)}"}).decode()

    return text


Ablate = Callable[[Any], Any]


def unharmed(work: Any) -> Any:
    return work


def actions_of(world: World, agent: Agent[Any], steps: Steps, ablate: Ablate = unharmed) -> ActionsWork:
    work = world.actions_work(agent, producer=SteppingProducer(world.broker, steps))
    work = without(work, _poster=SteppingPoster(world.receiver, steps))
    ablated: ActionsWork = ablate(work)
    return ablated


def first_live(world: World) -> dict[str, str]:
    """Reason of the first live decision of each alert, in log order."""
    standing: dict[str, str] = {}
    for record in world.decisions():
        if record.mode == "live":
            standing.setdefault(record.alert_id, msgspec.json.decode(record.decision)["reason"])
    return standing


def violations(world: World) -> list[str]:
    """What an operator would complain about, from the log of decisions and the receiver's own notes."""
    found = []
    standing = first_live(world)
    found += [f"{alert_id} was not decided" for alert_id in ALERT_IDS - standing.keys()]
    for effect in ("block_order", "notify"):
        called = {key for key in world.receiver.called_keys() if f":{effect}:" in key}
        wanted = {f"ask_model:{effect}:{alert_id}" for alert_id in ALERT_IDS}
        found += [f"{key} was not called" for key in wanted - called]
        found += [f"{key} is nobody's" for key in called - wanted]
    for _, key, body in world.receiver.calls:
        alert_id = key.split(":", 2)[2]
        if "reason" in body and body["reason"] != standing.get(alert_id):
            found.append(f"{key} acts on {body['reason']!r}, but {standing.get(alert_id)!r} stands")
    found += backward_moves(world)
    return found


def backward_moves(world: World) -> list[str]:
    """States that a writer moved back."""
    found = []
    reached: dict[tuple[str, str, str], int] = {}
    for entry in world.effects():
        for name, status in entry.effects.items():
            step = (entry.writer, entry.alert_id, name)
            if status.state.rank < reached.get(step, 0):
                found.append(f"{step} went back to {status.state.value}")
            reached[step] = status.state.rank
    return found


async def world_of_alerts(clock: Clock) -> World:
    world = await World.create(clock, numbered_answers())
    for number in range(ORDERS):
        world.send(large_order(f"u-{number}", f"o-{number}"), key=f"u-{number}")
    return world


async def whole_path(clock: Clock, agent: Agent[Any], kills: list[int], ablate: Ablate = unharmed) -> tuple[World, int]:
    """Agents and actions take turns, both killed at these steps of their lives. How many of all kills were met."""
    world = await world_of_alerts(clock)

    def agents(steps: Steps) -> Any:
        return world.agent_work(agent, producer=SteppingProducer(world.broker, steps))

    met = await lives(world.broker, agents, kills)
    met += await lives(world.broker, lambda steps: actions_of(world, agent, steps, ablate), kills)
    return world, met


def test_kill_at_every_step_loses_nothing() -> None:
    """Whatever the step: each alert has one standing decision, and each of its effects is made from that one."""
    for at in itertools.count(1):

        async def main(clock: Clock, at: int = at) -> tuple[list[str], int]:
            world, met = await whole_path(clock, with_actions(make_agent()), [at])
            return violations(world), met

        found, met = run_virtual(main, START_MS)
        assert [] == found, f"killed at step {at}"
        if not met:
            break
    assert at > LEAST_STEPS


@pytest.mark.parametrize("kills", [(1, 2, 3), (2, 2, 2, 2), (3, 5, 8, 13), (7, 4, 9, 1, 6), (12, 11, 10)])
def test_kill_again_and_again_loses_nothing(kills: tuple[int, ...]) -> None:
    """Several lives that all end early give what one life gives."""

    async def main(clock: Clock) -> tuple[list[str], int]:
        world, met = await whole_path(clock, with_actions(make_agent()), list(kills))
        return violations(world), met

    found, met = run_virtual(main, START_MS)
    assert [] == found
    assert met >= len(kills)


def test_duplicate_decisions_first_live_one_is_acted_on() -> None:
    """Two owners that both decided, shadows in between: the first live decision is the only one that acts."""

    async def main(clock: Clock, ablate: Ablate) -> list[str]:
        world = await world_of_alerts(clock)
        agent = with_actions(make_agent())
        for mode in ("shadow", "live", "live"):
            work = without(world.agent_work(agent, mode=mode), _is_repeated=lambda record, alert: False)
            await live(world.broker, work, Offsets(), Steps(0, die))
        await lives(world.broker, lambda steps: actions_of(world, agent, steps, ablate), [5, 9, 14])
        return violations(world)

    def acts_on_every_live_one(work: ActionsWork) -> ActionsWork:
        """Ablation: no memory of what stands."""
        entered = work._entered

        async def enter_anew(standing: Any) -> EffectRecord | None:
            work._ledger(standing)._open.clear()
            work._ended.forget(standing.record.alert_partition)
            return await entered(standing)

        return without(work, _entered=enter_anew)  # type: ignore[no-any-return]

    assert [] == run_virtual(lambda clock: main(clock, unharmed), START_MS)
    assert run_virtual(lambda clock: main(clock, acts_on_every_live_one), START_MS)


def test_restart_without_restored_ledger_is_caught() -> None:
    """Ablation: an owner that does not read `agent.effects` back acts on a later decision."""

    async def main(clock: Clock, ablate: Ablate) -> list[str]:
        world = await world_of_alerts(clock)
        agent = with_actions(make_agent())
        offsets = Offsets()
        for _ in range(2):
            work = without(world.agent_work(agent), _is_repeated=lambda record, alert: False)
            await live(world.broker, work, Offsets(), Steps(0, die))
            steps = Steps(0, die)
            await live(world.broker, actions_of(world, agent, steps, ablate), offsets, steps)
        return violations(world)

    def forgets(work: ActionsWork) -> ActionsWork:
        async def empty(assignment: Assignment, first_unfinished: int) -> Ledger:
            producer, reader, clock = work._producer, work._reader, work._clock
            return Ledger(producer, reader, clock, assignment.partition, "forgetful", Remembered(), set())

        return without(work, _restored=empty)  # type: ignore[no-any-return]

    assert [] == run_virtual(lambda clock: main(clock, unharmed), START_MS)
    assert run_virtual(lambda clock: main(clock, forgets), START_MS)


def test_decided_alert_is_not_asked_again_after_kill() -> None:
    """Killed between the decision and the commit, the next owner finds it; without the look-back it would ask again."""

    async def main(clock: Clock, ablate: Ablate) -> int:
        world = await world_of_alerts(clock)
        agent = make_agent()

        def agents(steps: Steps) -> Any:
            return ablate(world.agent_work(agent, producer=SteppingProducer(world.broker, steps)))

        await lives(world.broker, agents, [2])
        return len(world.model.requests)

    def never_looks_back(work: Any) -> Any:
        assigned = work.assigned

        async def without_look_back(assignment: Assignment, first_unfinished: int) -> None:
            await assigned(assignment, first_unfinished)
            work._decided.forget(assignment.partition)

        return without(work, assigned=without_look_back)

    assert ORDERS == run_virtual(lambda clock: main(clock, unharmed), START_MS)
    assert run_virtual(lambda clock: main(clock, never_looks_back), START_MS) > ORDERS


def twice(world: World) -> list[str]:
    """Keys under which the `at_most_once` receiver was called more than once."""
    counts = Counter(key for key in world.receiver.called_keys() if ":block_order:" in key)
    return [key for key, count in counts.items() if count > 1]


def unreported(world: World) -> list[str]:
    """Broken calls of the `at_most_once` receiver that nobody was told of."""
    told = {request.review_id for request in world.reviews() if request.kind == "effect"}
    last: dict[str, EffectState] = {}
    for entry in world.effects():
        last[entry.effects["block_order"].key] = entry.effects["block_order"].state
    open_ones = [key for key, state in last.items() if not state.ended]
    return open_ones + [key for key, state in last.items() if state is EffectState.UNKNOWN and key not in told]


def claims_after_the_call(work: ActionsWork) -> ActionsWork:
    """Ablation: the receiver is called as if it knew keys."""

    async def forgetful_claim(entry: EffectRecord, name: str, status: Any) -> EffectRecord:
        return entry

    make = work._restored

    async def restored(assignment: Assignment, first_unfinished: int) -> Ledger:
        return without(await make(assignment, first_unfinished), claim=forgetful_claim)  # type: ignore[no-any-return]

    return without(work, _restored=restored)  # type: ignore[no-any-return]


def test_kill_at_every_step_calls_at_most_once() -> None:
    """A receiver without keys is never called twice; a call that broke off ends `unknown`, and a person is told."""

    def found(ablate: Ablate) -> list[str]:
        all_found = []
        for at in itertools.count(1):

            async def main(clock: Clock, at: int = at) -> tuple[list[str], int]:
                agent = with_actions(make_agent(), at_most_once=True)
                world, met = await whole_path(clock, agent, [at, at], ablate)
                return twice(world) + unreported(world) + backward_moves(world), met

            of_step, met = run_virtual(main, START_MS)
            all_found += of_step
            if not met:
                break
        assert at > LEAST_STEPS
        return all_found

    assert [] == found(unharmed)
    assert found(claims_after_the_call)


def frozen_owner(at: int, ablate: Ablate = unharmed) -> World | None:
    """An owner that is frozen at a step, a new one that does everything, then the old one wakes up. None where the owner
    has fewer steps."""

    async def main(clock: Clock) -> World | None:
        world = await world_of_alerts(clock)
        agent = with_actions(make_agent(), at_most_once=True)
        await live(world.broker, world.agent_work(agent), Offsets(), Steps(0, die))
        awake, frozen = asyncio.Event(), asyncio.Event()

        async def freeze() -> None:
            frozen.set()
            await awake.wait()

        steps = Steps(at, freeze)
        old = asyncio.create_task(live(world.broker, actions_of(world, agent, steps, ablate), Offsets(), steps))
        waiting = asyncio.create_task(frozen.wait())
        await asyncio.wait([old, waiting], return_when=asyncio.FIRST_COMPLETED)
        waiting.cancel()
        if not frozen.is_set():
            return None
        fresh = Steps(0, die)
        await live(world.broker, actions_of(world, agent, fresh, ablate), Offsets(epoch=100), fresh)
        awake.set()
        await old
        return world

    return run_virtual(main, START_MS)


def claims_without_looking(work: ActionsWork) -> ActionsWork:
    """Ablation: the state is written before the call, but nobody looks who was first."""
    make = work._restored

    async def restored(assignment: Assignment, first_unfinished: int) -> Ledger:
        ledger = await make(assignment, first_unfinished)
        return without(ledger, claim=ledger.advance)  # type: ignore[no-any-return]

    return without(work, _restored=restored)  # type: ignore[no-any-return]


def test_frozen_owner_that_wakes_calls_at_most_once() -> None:
    """Whoever writes `called` first may call; the log says who that is, whatever an owner believes."""

    def found(ablate: Ablate) -> list[str]:
        worlds = list(itertools.takewhile(bool, (frozen_owner(at, ablate) for at in itertools.count(1))))
        assert len(worlds) > LEAST_STEPS
        return [key for world in worlds if world for key in twice(world)]

    assert [] == found(unharmed)
    assert found(claims_without_looking)


def test_checker_finds_planted_violations() -> None:
    """The checker itself is not blind: a lost effect, a foreign key and a wrong decision are found."""

    async def main(clock: Clock) -> World:
        world, _ = await whole_path(clock, with_actions(make_agent()), [])
        return world

    world = run_virtual(main, START_MS)
    assert [] == violations(world)
    world.receiver.calls[0][2]["reason"] = "another answer"
    assert 1 == len(violations(world))
    world.receiver.calls.append(("", "ask_model:notify:large_order:u-9:o-9", {}))
    assert 2 == len(violations(world))
    del world.receiver.calls[0]
    assert 2 == len(violations(world))
    del world.broker.logs[TopicPartition("agent.decisions", 0)][:]
    del world.broker.logs[TopicPartition("agent.decisions", 1)][:]
    assert ORDERS < len(violations(world))


def test_first_owner_commits_only_what_has_ended() -> None:
    """The driver starts where the last life committed."""

    async def main(clock: Clock) -> None:
        world = await world_of_alerts(clock)
        offsets = Offsets()
        await lives(world.broker, lambda steps: world.agent_work(make_agent()), [], offsets)
        ends = {place: len(world.broker.logs[place]) for place in offsets.committed}
        assert ends == offsets.committed

    run_virtual(main, START_MS)
