"""Standing decisions become effects; what fails is tried again, and what cannot be made is a person's task."""

import asyncio
from collections.abc import Callable, Mapping
from typing import Any

import msgspec
import pytest

from app.broker.base import Assignment
from app.broker.memory import Fault
from app.core.clock import Clock, run_virtual
from app.core.errors import BadRecord, Fenced, Rejected, Unavailable
from app.core.record import Record
from app.decisions.actions import RETRY
from app.decisions.agent import Agent
from app.decisions.effects import Effects
from app.decisions.record import EffectState, sha256
from tests.decisions_kit import (
    ADDRESSES,
    START_MS,
    OrderDecision,
    Receiver,
    World,
    answering,
    large_order,
    make_agent,
    until,
    with_actions,
)


def apply_one(
    agent: Agent[Any],
    *,
    prepare: Callable[[World], None] = lambda world: None,
    action: str = "block",
    max_attempts: int = 3,
) -> World:
    """One alert decided and applied, until every effect has ended."""

    async def main(clock: Clock) -> World:
        world = await World.create(clock, answering(action))
        prepare(world)
        world.send(large_order())
        works = world.agent_work(agent), world.actions_work(agent)
        async with world.running(*works, max_attempts=max_attempts):
            await until(
                lambda: bool(world.effects()) and all(EffectState(state).ended for state in world.states().values())
            )
        return world

    return run_virtual(main, START_MS)


def failing(*failures: Exception) -> Callable[[World], None]:
    """The first calls of `block_order` fail."""

    def prepare(world: World) -> None:
        world.receiver.failures[ADDRESSES["block_order"]] = list(failures)

    return prepare


AWAY = Unavailable("http://pay.test: does not answer")


def test_effect_that_fails_is_repeated_under_its_key() -> None:
    """A receiver that was away is called again with the same key; the other effect is made once."""
    world = apply_one(with_actions(make_agent()), prepare=failing(AWAY))
    block, notify = "ask_model:block_order:large_order:u-1:o-1", "ask_model:notify:large_order:u-1:o-1"
    assert [block, notify, block] == world.receiver.called_keys()
    assert {"block_order": "done", "notify": "done"} == world.states()


def test_effect_that_stays_away_fails_visibly() -> None:
    """At the bound the effect is failed, a person is asked, and its neighbour is done."""
    world = apply_one(with_actions(make_agent()), prepare=failing(AWAY, AWAY, AWAY))
    (request,) = world.reviews()
    assert {"block_order": "failed", "notify": "done"} == world.states()
    assert ("effect", "ask_model:block_order:large_order:u-1:o-1") == (request.kind, request.review_id)
    assert "block_order is failed" in request.reason


def test_effect_whose_receiver_is_away_is_one_line_of_the_log(caplog: pytest.LogCaptureFixture) -> None:
    """However often it is tried: no traceback, since nobody has made a mistake here."""
    apply_one(with_actions(make_agent()), prepare=failing(AWAY, AWAY))
    (line,) = [record for record in caplog.records if "failed" in record.getMessage()]
    assert "block_order:large_order:u-1:o-1 failed, and is tried again: http://pay.test" in line.getMessage()
    assert line.exc_info is None


def test_effect_whose_handler_has_a_mistake_is_told_once_with_its_traceback(caplog: pytest.LogCaptureFixture) -> None:
    """However often it is tried."""
    apply_one(with_actions(make_agent()), prepare=failing(*(KeyError("iban") for _ in range(3))))
    (line,) = [record for record in caplog.records if "is tried again" in record.getMessage()]
    assert "KeyError" in caplog.text
    assert line.exc_info is not None


def test_effect_that_is_refused_fails_at_once() -> None:
    """A refusal is not repeated."""
    world = apply_one(with_actions(make_agent()), prepare=failing(Rejected("http://pay.test: answered 400")))
    assert 2 == len(world.receiver.calls)
    assert {"block_order": "failed", "notify": "done"} == world.states()
    assert "answered 400" in world.reviews()[0].reason


def test_at_most_once_effect_that_breaks_off_is_unknown() -> None:
    """A receiver without keys is not called again, whatever the failure; a person looks."""
    agent = with_actions(make_agent(), at_most_once=True)
    world = apply_one(agent, prepare=failing(AWAY))
    assert 1 == world.receiver.called_keys().count("ask_model:block_order:large_order:u-1:o-1")
    assert {"block_order": "unknown", "notify": "done"} == world.states()
    assert "block_order is unknown" in world.reviews()[0].reason


def test_at_most_once_effect_is_called_before_it_is_done() -> None:
    """Its state says `called` before anybody is called."""
    world = apply_one(with_actions(make_agent(), at_most_once=True))
    states = [one.effects["block_order"].state.value for one in world.effects()]
    assert ["intended", "called", "done"] == list(dict.fromkeys(states))


def test_at_most_once_effect_that_was_made_is_done_whatever_the_broker_does() -> None:
    """Its end is offered again until it is taken; a further attempt would not know what became of it."""

    async def main(clock: Clock) -> World:
        world = await World.create(clock)
        agent = with_actions(make_agent(), at_most_once=True)

        class Broken(Receiver):
            async def post_json(self, url: str, body: bytes, headers: Mapping[str, str], timeout_ms: int) -> object:
                await super().post_json(url, body, headers, timeout_ms)
                for _ in range(3):
                    world.broker.plan(Fault("confirm", "fail"))
                return None

        world.receiver = Broken()
        world.send(large_order())
        async with world.running(world.agent_work(agent), world.actions_work(agent)):
            await until(lambda: set(world.states().values()) == {"done"})
        return world

    world = run_virtual(main, START_MS)
    assert ([], 2) == (world.reviews(), len(world.receiver.calls))


async def hangs(decision: OrderDecision, effects: Effects) -> None:
    await asyncio.sleep(3_600)


async def hangs_behind_its_effect(decision: OrderDecision, effects: Effects) -> None:
    await effects.post({})
    await asyncio.sleep(3_600)


def test_handler_that_hangs_is_ended_and_fails_visibly() -> None:
    """A handler has its time, like a receiver; then the lane goes on."""
    world = apply_one(with_action(hangs))
    assert {"hangs": "failed"} == world.states()
    assert "did not end within 20 s" in world.reviews()[0].reason


def test_handler_that_hangs_behind_its_effect_has_made_it() -> None:
    """What is made is not made again."""
    world = apply_one(with_action(hangs_behind_its_effect))
    assert {"hangs_behind_its_effect": "logged"} == world.states()


def test_approval_without_actions_is_entered() -> None:
    """A standing decision is written down also where nothing is to be done: no later one may act."""
    world = apply_one(with_actions(make_agent()), action="approve")
    (entry,) = world.effects()
    assert ("approve", {}) == (entry.action, entry.effects)


def test_entry_names_the_decision_by_offset_and_hash() -> None:
    """What stands can be checked against the log of decisions."""
    world = apply_one(with_actions(make_agent()))
    (record,) = world.records("agent.decisions")
    assert {(record.offset, sha256(record.value or b""))} == {
        (one.decision_offset, one.decision_sha256) for one in world.effects()
    }


def with_action(handler: Any) -> Agent[OrderDecision]:
    agent = make_agent()
    agent.action("block")(handler)
    return agent


async def does_nothing(decision: OrderDecision, effects: Effects) -> None:
    """An action that forgot its effect."""


async def does_two(decision: OrderDecision, effects: Effects) -> None:
    """An action that makes two effects under one key."""
    await effects.post({})
    await effects.request_review("and look at it")


async def breaks(decision: OrderDecision, effects: Effects) -> None:
    raise KeyError("reason")


async def breaks_unspeakably(decision: OrderDecision, effects: Effects) -> None:
    raise OSError("no file\nnamed \udcff")


@pytest.mark.parametrize(
    ("handler", "detail"),
    [
        (does_nothing, "without making its effect"),
        (does_two, "second effect"),
        (breaks, "reason"),
        (breaks_unspeakably, "no file named ?"),
    ],
)
def test_action_with_mistake_fails_visibly(handler: Any, detail: str) -> None:
    """A handler's mistake ends as a failed effect with its reason, in front of a person."""
    world = apply_one(with_action(handler))
    assert {handler.__name__: "failed"} == world.states()
    assert any(detail in request.reason for request in world.reviews())


@pytest.mark.parametrize("mode", ["shadow", "dry-run"])
def test_decision_that_is_not_live_does_nothing(mode: Any) -> None:
    """Neither effect nor entry comes of it, with the header or without it."""

    async def main(clock: Clock) -> None:
        world = await World.create(clock)
        agent = with_actions(make_agent())
        world.send(large_order())
        actions = world.actions_work(agent)
        async with world.running(world.agent_work(agent, mode=mode), actions):
            await until(lambda: actions.statistics.not_live == 1)
            (record,) = world.records("agent.decisions")
            world.broker.append("agent.decisions", record.value, record.key, record.partition, 0, ())
            await until(lambda: actions.statistics.not_live == 2)
        assert ([], []) == (world.effects(), world.receiver.calls)

    run_virtual(main, START_MS)


@pytest.mark.parametrize("value", [b"{not json", b"{}", None, b"[]"])
def test_undecodable_decision_is_dead_letter(value: bytes | None) -> None:
    """It is kept with its reason, and the next decision is applied."""

    async def main(clock: Clock) -> None:
        world = await World.create(clock)
        agent = with_actions(make_agent())
        world.broker.append("agent.decisions", value, b"u-1", 1, 0, ())
        world.send(large_order())
        async with world.running(world.agent_work(agent), world.actions_work(agent)):
            await until(lambda: set(world.states().values()) == {"done"})
        ((reason, kept),) = world.dead("agent.decisions")
        assert reason.startswith("is no decision")
        assert value == kept

    run_virtual(main, START_MS)


def test_decision_of_unknown_agent_is_dead_letter() -> None:
    """A decision that no declared agent made is not acted on."""

    async def main(clock: Clock) -> None:
        world = await World.create(clock)
        agent = with_actions(make_agent())
        world.send(large_order())
        async with world.running(world.agent_work(agent)):
            await until(lambda: bool(world.records("agent.decisions")))
        (record,) = world.records("agent.decisions")
        foreign = (record.value or b"").replace(b'"ask_model"', b'"somebody"')
        world.broker.append("agent.decisions", foreign, record.key, record.partition, 0, ())
        async with world.running(world.actions_work(agent)):
            await until(lambda: bool(world.dead("agent.decisions")))
        assert "unknown agent 'somebody'" in world.dead("agent.decisions")[0][0]

    run_virtual(main, START_MS)


def test_entered_effect_that_is_declared_no_more_fails_visibly() -> None:
    """A deployment that removes an action leaves no effect open, and one that adds an action adds none to what stands."""

    async def main(clock: Clock) -> None:
        world = await World.create(clock)
        old, new = with_actions(make_agent()), make_agent()

        @new.action("block")
        async def block_order(decision: OrderDecision, effects: Effects) -> None:
            await effects.post({})

        @new.action("block")
        async def tell_everybody(decision: OrderDecision, effects: Effects) -> None:
            await effects.post({})

        world.send(large_order())
        async with world.running(world.agent_work(old)):
            await until(lambda: bool(world.records("agent.decisions")))
        (record,) = world.records("agent.decisions")
        assignment = Assignment("agent.decisions", record.partition, 1)
        world.receiver.failures = {url: [AWAY] for url in ADDRESSES.values()}
        before = world.actions_work(old)
        await before.assigned(assignment, 0)
        with pytest.raises(Unavailable):
            await before.handle(record, 1)
        after = world.actions_work(new)
        await after.assigned(assignment, 0)
        await after.handle(record, 1)
        assert {"block_order": "done", "notify": "failed"} == world.states()
        assert "declares it no more" in world.reviews()[0].reason

    run_virtual(main, START_MS)


def test_decision_beside_another_partitions_alerts_is_dead_letter() -> None:
    """Its effects would be entered where no owner of its alert looks."""

    async def main(clock: Clock) -> None:
        world = await World.create(clock)
        agent = with_actions(make_agent())
        world.send(large_order())
        async with world.running(world.agent_work(agent), world.actions_work(agent)):
            await until(lambda: bool(world.records("agent.decisions")))
            (record,) = world.records("agent.decisions")
            world.broker.append("agent.decisions", record.value, record.key, 1 - record.partition, 0, ())
            await until(lambda: bool(world.dead("agent.decisions")))
        assert "another partition" in world.dead("agent.decisions")[0][0]

    run_virtual(main, START_MS)


def test_handle_without_partition_is_fenced() -> None:
    """Work that comes after its partition has gone changes nothing."""

    async def main(clock: Clock) -> None:
        world = await World.create(clock)
        agent = with_actions(make_agent())
        world.send(large_order())
        async with world.running(world.agent_work(agent)):
            await until(lambda: bool(world.records("agent.decisions")))
        (record,) = world.records("agent.decisions")
        work = world.actions_work(agent)
        assignment = Assignment("agent.decisions", record.partition, 1)
        await work.assigned(assignment, 0)
        await work.ended([assignment])
        with pytest.raises(Fenced):
            await work.handle(record, 1)
        assert ([], []) == (world.effects(), world.receiver.calls)

    run_virtual(main, START_MS)


def test_broker_away_before_the_entry_calls_nobody() -> None:
    """No effect is made before its intention is acknowledged."""

    async def main(clock: Clock) -> None:
        world = await World.create(clock)
        agent = with_actions(make_agent())
        world.send(large_order())
        async with world.running(world.agent_work(agent)):
            await until(lambda: bool(world.records("agent.decisions")))
        (record,) = world.records("agent.decisions")
        work = world.actions_work(agent)
        assignment = Assignment("agent.decisions", record.partition, 1)
        await work.assigned(assignment, 0)
        world.broker.plan(Fault("confirm", "fail"))
        with pytest.raises(Unavailable):
            await work.handle(record, 1)
        assert [] == world.receiver.calls
        await work.handle(record, 2)
        assert {"block_order": "done", "notify": "done"} == world.states()

    run_virtual(main, START_MS)


def test_target_comes_from_the_alert_whatever_the_model_writes() -> None:
    """A decision that names another order changes nothing about whom the effect concerns."""

    async def main(clock: Clock) -> None:
        text = '{"action":"block","risk_level":"HIGH","reason":"block o-9 of u-9","order_id":"o-9","user_id":"u-9"}'
        world = await World.create(clock, lambda request: text)
        agent = with_actions(make_agent())
        world.send(large_order())
        async with world.running(world.agent_work(agent), world.actions_work(agent)):
            await until(lambda: set(world.states().values()) == {"done"})
        assert {"o-1"} == {body["order_id"] for _, _, body in world.receiver.calls if "order_id" in body}

    run_virtual(main, START_MS)


def test_foreign_bytes_on_effects_are_passed_over(caplog: pytest.LogCaptureFixture) -> None:
    """What is no state of effects is reported and does not keep a partition from starting."""

    async def main(clock: Clock) -> None:
        world = await World.create(clock)
        agent = with_actions(make_agent())
        world.broker.append("agent.effects", b"{not json", b"{}", 1, 0, ())
        world.broker.append("agent.effects", None, b"{}", 1, 0, ())
        work = world.actions_work(agent)
        assignment = Assignment("agent.decisions", 1, 1)
        await asyncio.wait_for(work.assigned(assignment, 0), 10)

    run_virtual(main, START_MS)
    (told,) = [line for line in caplog.messages if "passed over" in line]
    assert "2 records are no states of effects: passed over, first offset 0: " in told


def test_retry_of_actions_lasts_minutes() -> None:
    """A receiver that restarts loses nothing to people's queues."""
    longest_ms = sum(min(RETRY.first_delay_ms * 2**n, RETRY.longest_delay_ms) for n in range(RETRY.max_attempts - 1))
    assert longest_ms * (1 - RETRY.jitter) > 120_000


def test_bad_record_names_its_place() -> None:
    """The reason of a dead letter says which record it was."""

    async def main(clock: Clock) -> None:
        world = await World.create(clock)
        world.broker.append("agent.decisions", msgspec.json.encode({}), b"u-1", 1, 0, ())
        (record,) = world.records("agent.decisions")
        with pytest.raises(BadRecord, match=r"agent\.decisions/1/0: is no decision"):
            await world.actions_work(make_agent()).handle(record, 1)

    run_virtual(main, START_MS)


def test_forgotten_decision_is_passed_over_by_its_header() -> None:
    """What stands in the place of a forgotten decision costs no decoding and is no dead letter."""

    async def main(clock: Clock) -> None:
        world = await World.create(clock)
        work = world.actions_work(with_actions(make_agent()))
        assert work.passes_over(Record("agent.decisions", 1, 3, 0, b"k", b"{}", (("forgotten", b"1"),)))

    run_virtual(main, START_MS)


def test_decisions_of_one_entity_share_a_lane() -> None:
    """Keys of decisions are all different; the order of effects is that of the entity."""

    async def main(clock: Clock) -> set[bytes | None]:
        world = await World.create(clock)
        agent = make_agent()
        for number in range(3):
            world.send(large_order(order=f"o-{number}"))
        async with world.running(world.agent_work(agent)):
            await until(lambda: len(world.records("agent.decisions")) == 3)
        work = world.actions_work(agent)
        assert 3 == len({record.key for record in world.records("agent.decisions")})
        return {work.lane(record) for record in world.records("agent.decisions")}

    assert {b"u-1"} == run_virtual(main, START_MS)
