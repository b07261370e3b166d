"""What is kept about a person goes, on request, as far as it can; the chain holds, others' stay, what is open is awaited."""

from collections.abc import Sequence

import msgspec
import pytest

from app.broker.topics import TopicSpec
from app.core.clock import Clock, run_virtual
from app.core.codec import compact_key
from app.core.errors import RecordTooLarge, Rejected
from app.core.record import Record, TopicPartition
from app.decisions import actions
from app.decisions.forget import Plan, Remains, carry_out, final_after_ms, find, remaining
from app.decisions.record import DECISIONS, EFFECTS, REVIEWS, is_forgotten
from app.serving.base import Progress, TileChange, View
from app.serving.memory import MemoryStore
from app.streams.aggregates import OutputField
from app.streams.expressions import Kind
from app.streams.windows import Tile
from tests.decisions_kit import (
    ALERTS,
    START_MS,
    World,
    answering,
    broken_links,
    large_order,
    make_agent,
    until,
    with_actions,
)

MINUTE_MS = 60_000
VIEW = View(
    "user_features", "user_id", "features.user_features", "raw.orders", 2, 5 * MINUTE_MS, 30_000,
    (OutputField("order_count_5m", Kind.INTEGER), OutputField("order_value_5m", Kind.MONEY)), True, "print-1",
)  # fmt: skip
VIEWS = {VIEW.name: VIEW}
PERSONAL = (b"u-1", b"o-1", b"large_order:u-1")


async def world_of(clock: Clock, action: str = "block") -> World:
    """Decisions about u-1 and u-2, all effects at their end."""
    world = await World.create(clock, answering(action))
    await world.broker.admin().create([TopicSpec(name=VIEW.topic, partitions=2, cleanup="compact,delete")])
    agent = with_actions(make_agent())
    for user, order in (("u-1", "o-1"), ("u-2", "o-2"), ("u-1", "o-3")):
        world.send(large_order(user, order), key=user)
    async with world.running(world.agent_work(agent), world.actions_work(agent)):
        await until(lambda: len(world.effects()) >= 3 and all(ended(world)))
    return world


def ended(world: World) -> list[bool]:
    last = {record.key: record for record in world.records(EFFECTS)}
    return [b'"intended"' not in (record.value or b"") for record in last.values()]


async def planned(world: World, entity: str = "u-1") -> Plan:
    return await find(entity, world.broker.reader(), world.clock, 2, VIEWS)


def compacted(world: World, topic: str) -> list[Record]:
    """What compaction leaves, tombstones gone too."""
    newest_of = {(record.partition, record.key): record for record in world.records(topic)}
    return [record for record in newest_of.values() if record.value is not None]


def test_forgotten_person_is_in_no_topic_that_can_lose_it_once_compacted() -> None:
    """Keys, values and headers name nobody any more; the other person's are all there, and the chain holds."""

    async def main(clock: Clock) -> None:
        world = await world_of(clock, "review")
        before = {topic: len(compacted(world, topic)) for topic in (DECISIONS, EFFECTS, REVIEWS)}
        plan = await planned(world)
        assert [] == plan.waits
        assert (2, 2, 2) == (plan.count(DECISIONS), plan.count(EFFECTS), plan.count(REVIEWS))
        store = MemoryStore(clock)
        await carry_out(plan, world.broker.producer(), store)
        for topic in (DECISIONS, EFFECTS, REVIEWS):
            left = compacted(world, topic)
            for record in left:
                text = b"".join([record.key or b"", record.value or b"", *(value for _, value in record.headers)])
                assert not any(person in text for person in PERSONAL)
            assert before[topic] - (0 if topic == DECISIONS else 2) == len(left)
        assert 2 == sum(is_forgotten(record) for record in compacted(world, DECISIONS))
        for partition in range(2):
            log = [record for record in world.records(DECISIONS) if record.partition == partition]
            assert [] == broken_links(log)
            assert [] == broken_links(record for record in compacted(world, DECISIONS) if record.partition == partition)

    run_virtual(main, START_MS)


def test_forgetting_by_tombstones_would_break_the_chain() -> None:
    """Ablation: a decision that is taken back, not replaced, leaves a gap that nobody can tell from a crime."""

    async def main(clock: Clock) -> list[str]:
        world = await world_of(clock)
        plan = await planned(world)
        for write in plan.writes:
            if write.topic == DECISIONS:
                world.broker.append(write.topic, None, write.key, write.partition, 0, ())
        records = [record for record in compacted(world, DECISIONS) if record.partition == 1]
        return broken_links([*records, *(one for one in world.records(DECISIONS) if one.value is None)])

    assert run_virtual(main, START_MS)


def test_forgotten_decisions_are_passed_over_by_all_who_read_them() -> None:
    """Neither listed nor acted upon again; an agent that looks back finds nobody."""

    async def main(clock: Clock) -> None:
        world = await world_of(clock)
        await carry_out(await planned(world), world.broker.producer(), MemoryStore(clock))
        calls = len(world.receiver.calls)
        place = TopicPartition(DECISIONS, 1)
        forgotten = [record for record in world.broker.logs[place] if is_forgotten(record)]
        work = world.actions_work(with_actions(make_agent()))
        assert forgotten
        assert all(work.passes_over(record) for record in forgotten)
        async with world.running(work):
            await until(
                lambda: world.broker.groups["headrace.actions"].committed[place].offset == len(world.broker.logs[place])
            )
        assert (calls, []) == (len(world.receiver.calls), world.dead(DECISIONS))

    run_virtual(main, START_MS)


def test_alert_repeated_after_forgetting_makes_its_effect_under_the_same_key() -> None:
    """It is decided again, since nobody remembers it; a receiver that honours keys applies nothing twice."""

    async def main(clock: Clock) -> list[str]:
        world = await world_of(clock)
        before = set(world.receiver.called_keys())
        await carry_out(await planned(world), world.broker.producer(), MemoryStore(clock))
        for topic in (DECISIONS, EFFECTS):  # as compaction would leave them
            for partition in range(2):
                log = world.broker.logs[TopicPartition(topic, partition)]
                log[:] = [
                    msgspec.structs.replace(one, key=None, value=b"{}", headers=(("forgotten", b"1"),)) for one in log
                ]
        agent = with_actions(make_agent())
        world.send(large_order("u-1", "o-1"), key="u-1")
        calls = len(world.receiver.calls)
        async with world.running(world.agent_work(agent), world.actions_work(agent)):
            await until(lambda: len(world.receiver.calls) == calls + 2)
        assert set(world.receiver.called_keys()) == before
        return world.receiver.called_keys()[calls:]

    keys = run_virtual(main, START_MS)
    assert {"ask_model:block_order:large_order:u-1:o-1", "ask_model:notify:large_order:u-1:o-1"} == set(keys)


def test_forgetting_waits_for_effects_that_are_open() -> None:
    """What is intended and not done is named; nothing may be removed."""

    async def main(clock: Clock) -> None:
        world = await World.create(clock, answering("block"))
        await world.broker.admin().create([TopicSpec(name=VIEW.topic, partitions=2)])
        agent = with_actions(make_agent())
        world.send(large_order())
        async with world.running(world.agent_work(agent)):
            await until(lambda: bool(world.records(DECISIONS)))
        (wait,) = (await planned(world)).waits
        assert "the actions have not come to its decision yet" in wait
        world.receiver.failures = {world.addresses["notify"]: [TimeoutError()] * 1_000}
        async with world.running(world.actions_work(agent)):
            await until(lambda: len(world.effects()) >= 2)
            plan = await planned(world)
            assert ["large_order:u-1:o-1, ask_model: effects are not at their end: notify"] == plan.waits
            with pytest.raises(AssertionError):
                await carry_out(plan, world.broker.producer(), MemoryStore(clock))

    run_virtual(main, START_MS)


def test_forgetting_does_not_wait_for_a_decision_that_is_a_dead_letter() -> None:
    """The actions could not read it, and it never gets effects."""

    async def main(clock: Clock) -> Plan:
        world = await World.create(clock, answering("block"))
        await world.broker.admin().create([TopicSpec(name=VIEW.topic, partitions=2)])
        agent = make_agent()
        world.send(large_order())
        async with world.running(world.agent_work(agent)):
            await until(lambda: bool(world.records(DECISIONS)))
        other = with_actions(make_agent())
        other.name = "somebody_else"
        async with world.running(world.actions_work(other)):
            await until(lambda: bool(world.dead(DECISIONS)))
        return await planned(world)

    plan = run_virtual(main, START_MS)
    assert ([], 1) == (plan.waits, plan.count(DECISIONS))


def test_forgetting_does_not_wait_for_effects_that_nothing_could_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """Their decision became a dead letter when not even their end could be written: no effect of it is made any more."""

    async def refuse(*arguments: object) -> None:
        raise RecordTooLarge("a request that nothing takes")

    monkeypatch.setattr(actions, "write_review", refuse)

    async def main(clock: Clock) -> tuple[set[str], Plan]:
        world = await World.create(clock, answering("block"))
        await world.broker.admin().create([TopicSpec(name=VIEW.topic, partitions=2)])
        world.receiver.failures = {world.addresses["notify"]: [Rejected("http://team.test: answered 400")] * 1_000}
        agent = with_actions(make_agent())
        world.send(large_order())
        async with world.running(world.agent_work(agent), world.actions_work(agent)):
            await until(lambda: bool(world.dead(DECISIONS)))
        return set(world.states().values()), await planned(world)

    states, plan = run_virtual(main, START_MS)
    assert ({"done", "intended"}, [], 1) == (states, plan.waits, plan.count(DECISIONS))


def test_forgetting_again_repeats_nothing_and_says_what_awaits_compaction() -> None:
    """A second run finds the old bytes beside their replacement, and leaves both."""

    async def main(clock: Clock) -> Plan:
        world = await world_of(clock)
        await carry_out(await planned(world), world.broker.producer(), MemoryStore(clock))
        return await planned(world)

    plan = run_virtual(main, START_MS)
    assert ([], [], 2) == (plan.writes, plan.waits, plan.awaiting)


@pytest.mark.parametrize("done", range(1, 6))
def test_forgetting_that_broke_off_can_be_done_again(done: int) -> None:
    """Wherever it stopped, the next run removes the rest and waits for nothing."""

    async def main(clock: Clock) -> None:
        world = await world_of(clock, "review")
        plan = await planned(world)
        assert len(plan.writes) > done
        broken_off = sorted(plan.writes, key=lambda write: write.topic == DECISIONS)[:done]
        plan.writes[:] = broken_off
        await carry_out(plan, world.broker.producer(), MemoryStore(clock))
        again = await planned(world)
        assert [] == again.waits
        assert 6 == done + len(again.writes)
        await carry_out(again, world.broker.producer(), MemoryStore(clock))
        assert [] == (await planned(world)).writes

    run_virtual(main, START_MS)


def put_tile(world: World, start_ms: int, entity: str = "u-1") -> bytes:
    key = compact_key(user_id=entity, tile=start_ms, partition=0)
    value = b'{"version":7,"order_count_5m":1,"order_value_5m":10.50}'
    world.broker.append(VIEW.topic, value, key, VIEW.partition_of(entity), 0, ())
    return key


def test_forgetting_takes_back_tiles_and_empties_the_store() -> None:
    """Tiles that no longer count get tombstones, the entity leaves the store; a neighbour keeps both."""

    async def main(clock: Clock) -> None:
        world = await world_of(clock)
        old_ms = START_MS - 10 * MINUTE_MS
        key = put_tile(world, old_ms)
        put_tile(world, old_ms, "u-2")
        store = MemoryStore(clock)
        partition = VIEW.partition_of("u-1")
        changes = [TileChange(user, Tile(old_ms, 0, 7, (1, 1050))) for user in ("u-1", "u-2")]
        await store.apply(VIEW, partition, None, Progress(1, 0), changes)
        plan = await planned(world)
        assert [key] == [write.key for write in plan.writes if write.topic == VIEW.topic]
        assert 1 == await carry_out(plan, world.broker.producer(), store)
        assert () == (await store.read(VIEW, "u-1")).tiles
        assert 1 == len((await store.read(VIEW, "u-2")).tiles)
        assert 0 == (await planned(world)).count(VIEW.topic)

    run_virtual(main, START_MS)


def test_forgetting_waits_while_features_count_for_the_next_decision() -> None:
    """Whoever could empty them would be judged as if nothing had been done."""

    async def main(clock: Clock) -> Sequence[str]:
        world = await world_of(clock)
        put_tile(world, clock.now_ms() // 30_000 * 30_000)
        return (await planned(world)).waits

    (wait,) = run_virtual(main, START_MS)
    assert "user_features of u-1: counts what was done lately, for 3" in wait


def test_remaining_topics_are_named_with_their_retention_and_bounds_of_compaction() -> None:
    """Nobody is promised more than the cluster's settings keep."""

    async def main(clock: Clock) -> None:
        world = await world_of(clock)
        admin = world.broker.admin()
        table = TopicSpec(name="state.rate", partitions=1, cleanup="compact", retention_ms=None)
        await admin.create([table])
        specs = [*world.broker.specs.values()]
        await admin.create([TopicSpec(name="features.rate.2", partitions=1, cleanup="compact", retention_ms=None)])
        found = await remaining(admin, specs, VIEWS, {"features.rate.2", "features.rate.3"})
        names = {one.topic: one for one in found}
        assert Remains(ALERTS.name, 7 * 86_400_000) == names[ALERTS.name]
        assert Remains("state.rate", None) == names["state.rate"]
        assert Remains("features.rate.2", None, is_left=True) == names["features.rate.2"]
        assert "features.rate.3" not in names, "it was pruned"
        assert not names.keys() & {DECISIONS, EFFECTS, REVIEWS, VIEW.topic}
        await admin.configure(EFFECTS, {"max.compaction.lag.ms": str(2**63 - 1)})
        assert {DECISIONS: 86_400_000, EFFECTS: None} == await final_after_ms(admin, [DECISIONS, EFFECTS])

    run_virtual(main, START_MS)
