"""A decision that was written twice, since the answer to its first writing was lost, makes its effects once and all of them."""

import msgspec
import pytest

from app.broker.base import Assignment
from app.core.clock import Clock, run_virtual
from app.core.errors import Unavailable
from app.core.record import Record, TopicPartition
from app.decisions.record import DECISIONS, EFFECTS
from tests.decisions_kit import (
    ADDRESSES,
    START_MS,
    UNAVAILABLE,
    World,
    large_order,
    make_agent,
    until,
    with_actions,
)

AGENT = with_actions(make_agent())


async def begun(clock: Clock) -> tuple[World, Record]:
    """A decision that was entered and whose effects have failed once."""
    world = await World.create(clock)
    world.send(large_order())
    async with world.running(world.agent_work(AGENT)):
        await until(lambda: bool(world.records(DECISIONS)))
    (record,) = world.records(DECISIONS)
    world.receiver.failures = {url: [UNAVAILABLE] for url in ADDRESSES.values()}
    before = world.actions_work(AGENT)
    await before.assigned(Assignment(DECISIONS, record.partition, 1), 0)
    with pytest.raises(Unavailable):
        await before.handle(record, 1)
    return world, record


def test_decision_written_twice_goes_on_where_only_the_second_is_left() -> None:
    """Compaction removed the record that was entered: the one that is left makes the open effects, and once."""

    async def main(clock: Clock) -> None:
        world, record = await begun(clock)
        second = msgspec.structs.replace(record, offset=7)
        after = world.actions_work(AGENT)
        await after.assigned(Assignment(DECISIONS, record.partition, 2), 0)
        await after.handle(second, 1)
        assert {"block_order": "done", "notify": "done"} == world.states()
        await after.handle(second, 1)
        assert 4 == len(world.receiver.calls)

    run_virtual(main, START_MS)


def test_decision_recognized_by_its_place_alone_leaves_effects_open() -> None:
    """Ablation: without its hash in the entry nobody goes on where only the second record is left."""

    async def main(clock: Clock) -> None:
        world, record = await begun(clock)
        log = world.broker.logs[TopicPartition(EFFECTS, record.partition)]
        name = b'"decision_sha256":"'
        log[:] = [msgspec.structs.replace(one, value=(one.value or b"").replace(name, name + b"0")) for one in log]
        after = world.actions_work(AGENT)
        await after.assigned(Assignment(DECISIONS, record.partition, 2), 0)
        await after.handle(msgspec.structs.replace(record, offset=7), 1)
        assert {"block_order": "intended", "notify": "intended"} == world.states()

    run_virtual(main, START_MS)
