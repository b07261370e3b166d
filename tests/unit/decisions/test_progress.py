"""How far the effects of decisions are is found in step with the decisions, whatever came of them."""

from contextlib import aclosing
from random import Random

import msgspec
import pytest

from app.broker.memory import MemoryBroker
from app.core.clock import Clock, ManualClock, run_virtual
from app.core.codec import encode
from app.decisions import history, progress
from app.decisions.history import Found, PassedOver, Wanted, effects_of, newest
from app.decisions.progress import NONE, OPEN, REPEATED, STATES, Progressed, newest_with_effects, states_of
from app.decisions.record import (
    DECISIONS,
    EFFECTS,
    DecisionRecord,
    EffectRecord,
    EffectState,
    EffectStatus,
    decision_headers,
    decision_key,
    effect_topic,
    sha256,
)
from tests.decisions_kit import DECISIONS as SPEC
from tests.decisions_kit import START_MS, World, answering, large_order, make_agent, until, with_actions
from tests.unit.decisions.test_history import written


def entry(one: DecisionRecord, offset: int, **states: EffectState) -> EffectRecord:
    statuses = {name: EffectStatus(state, "key", "keyed", 0) for name, state in states.items()}
    return EffectRecord(
        alert_id=one.alert_id,
        agent=one.agent,
        action="block",
        decision_offset=offset,
        decision_sha256=sha256(encode(one)),
        effects=statuses,
        writer="w",
    )


@pytest.mark.parametrize(
    ("states", "expected"),
    [
        ({}, (NONE,)),
        ({"a": EffectState.INTENDED}, (OPEN,)),
        ({"a": EffectState.CALLED, "b": EffectState.INTENDED}, (OPEN,)),
        ({"a": EffectState.DONE, "b": EffectState.CALLED, "c": EffectState.FAILED}, ("failed", OPEN, "done")),
        (
            {"a": EffectState.LOGGED, "b": EffectState.WITHHELD, "c": EffectState.UNKNOWN},
            ("unknown", "withheld", "logged"),
        ),
    ],
)
def test_states_name_first_what_a_person_must_look_at(
    states: dict[str, EffectState], expected: tuple[str, ...]
) -> None:
    """Each state once; nothing begun is open, and an action without effects says so."""
    one = written(0)
    found = Found(1, 0, 0, sha256(encode(one)), one)
    assert expected == states_of(found, entry(one, 0, **states))


def test_states_of_what_does_not_stand_or_act() -> None:
    """Another decision's effects are not its own; nobody acts on a shadow."""
    one, other = written(0), written(1)
    found = Found(1, 0, 0, sha256(encode(one)), one)
    assert (OPEN,) == states_of(found, None)
    assert (REPEATED,) == states_of(found, entry(other, 1))
    assert () == states_of(found._replace(record=written(0, mode="shadow")), None)


async def log_of(count: int, random: Random) -> MemoryBroker:
    """Decisions, some repeated, some in shadow, and their effects in any state and some time later, one forgotten."""
    clock = ManualClock(START_MS)
    broker = MemoryBroker(clock)
    await broker.admin().create([SPEC, effect_topic(SPEC)])
    waiting: list[EffectRecord] = []
    decided: set[str] = set()
    for number in range(count):
        partition = random.randrange(2)
        alert = f"a-{random.randrange(number + 1)}-{partition}"
        mode = random.choice(["live", "live", "live", "shadow"])
        one = written(number, alert_id=alert, alert_partition=partition, mode=mode)
        key = decision_key(one.writer, one.number)
        offset = broker.append(DECISIONS, encode(one), key, partition, 0, decision_headers(one)).offset
        clock.advance(random.choice([0, 10, 40_000]))
        is_first = mode == "live" and alert not in decided
        decided |= {alert} if is_first else set()
        if is_first and random.random() < 0.8:
            waiting.append(entry(one, offset, notify=random.choice(list(EffectState)), block=EffectState.INTENDED))
        for known in random.sample(waiting, min(2, len(waiting))):
            further = msgspec.structs.replace(known.effects["block"], state=random.choice(list(EffectState)))
            value = encode(msgspec.structs.replace(known, effects={**known.effects, "block": further}))
            forgotten = random.random() < 0.05
            place = int(known.alert_id.rpartition("-")[2])
            broker.append(EFFECTS, None if forgotten else value, known.key, place, 0, ())
    return broker


async def listed(broker: MemoryBroker, state: str | None, limit: int = 1_000) -> list[Progressed]:
    found = newest_with_effects(broker.reader(), 2, Wanted(), state, limit, PassedOver())
    async with aclosing(found):
        return [one async for one in found]


@pytest.mark.parametrize("seed", range(10))
async def test_newest_with_effects_says_what_the_whole_log_says(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Read in step and pruned, it is what everything that was written about each decision comes to; filters too."""
    monkeypatch.setattr(history, "FIRST_PIECE", 3)
    monkeypatch.setattr(progress, "PRUNED_EACH", 0)
    broker = await log_of(60, Random(seed))
    expected = []
    async for found in newest(broker.reader(), 2, Wanted(), 1_000, PassedOver()):
        record = found.record
        entered = await effects_of(broker.reader(), found.partition, record.alert_id, record.agent)
        expected.append(Progressed(found, states_of(found, entered)))
    assert expected == await listed(broker, None)
    assert expected[:7] == await listed(broker, None, 7)
    for state in STATES:
        assert [one for one in expected if state in one.states][:5] == await listed(broker, state, 5)


def test_newest_with_effects_finds_what_a_worker_left_open() -> None:
    """The receiver is away: what it has not taken is open, and the others are done."""

    async def main(clock: Clock) -> None:
        world = await World.create(clock, answering("block"))
        agent = with_actions(make_agent())
        async with world.running(world.agent_work(agent), world.actions_work(agent)):
            world.send(large_order())
            await until(lambda: "done" == world.states().get("notify") == world.states().get("block_order"))
        async with world.running(world.agent_work(agent)):
            world.send(large_order(order="o-2"))
            await until(lambda: len(world.records(DECISIONS)) == 2)
        assert [(OPEN,), ("done",)] == [one.states for one in await listed(world.broker, None)]
        (one,) = await listed(world.broker, OPEN)
        assert "large_order:u-1:o-2" == one.found.record.alert_id

    run_virtual(main, START_MS)
