"""An alert ends in exactly one acknowledged decision; what fails ends in the fallback, never in an approval."""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from typing import Any

import msgspec
import pytest

from app.broker.memory import Fault
from app.core.clock import Clock, run_virtual
from app.core.codec import encode
from app.core.errors import BadRecord, Rejected, SetupError, Unavailable
from app.decisions.agent import Agent
from app.decisions.context import Context
from app.decisions.decision import Fallback, Reason, review
from app.decisions.policy import Policy
from app.decisions.record import Mode
from app.models.base import FailureCode, ModelFailure, ModelRequest
from app.serving.base import Freshness, OwnEvent
from app.streams.graph import Alert
from tests.decisions_kit import (
    ALERTS,
    DECISIONS,
    START_MS,
    LargeOrder,
    OrderDecision,
    World,
    answering,
    ask_model,
    large_order,
    make_agent,
    until,
    with_actions,
)


class LongDecision(OrderDecision, frozen=True, kw_only=True):
    """A decision that can be of any length."""

    notes: str = ""


class OtherAlert(Alert, frozen=True):
    """Declared, but not this agent's."""


async def approve(alert: LargeOrder, context: Context) -> OrderDecision:
    return OrderDecision(action="approve", risk_level="LOW", reason="fine")


def decide_one(
    handler: Callable[[Any, Context], Awaitable[Any]] = ask_model,
    *,
    prepare: Callable[[World], None] = lambda world: None,
    text: Callable[[ModelRequest], str] | None = None,
    fallback: Fallback | None = review,
    policy: Policy | None = None,
    max_age: str = "15m",
    wait_ms: int = 0,
) -> World:
    """One alert through an agent under a dispatcher, to its end."""

    async def main(clock: Clock) -> World:
        world = await World.create(clock, text or answering("approve"))
        prepare(world)
        agent = make_agent(handler, fallback=fallback, policy=policy, max_age=max_age)
        world.send(large_order())
        await asyncio.sleep(wait_ms / 1000)
        async with world.running(world.agent_work(agent)):
            await until(lambda: bool(world.records("agent.decisions")) or bool(world.dead()))
        return world

    return run_virtual(main, START_MS)


def outcome(world: World) -> tuple[str, tuple[str, ...]]:
    """Action and reasons of the one decision."""
    (record,) = world.decisions()
    return world.decided()[0], record.reasons


def test_handle_answer_is_recorded_with_what_was_shown() -> None:
    """The record holds the exact context, model, usage, raw answer, place, origin and hops."""
    world = decide_one()
    (record,) = world.decisions()
    (use,) = record.models
    (request,) = world.model.requests
    assert ("approve", ()) == outcome(world)
    assert (request.context_text, "fake-1", 7, 3) == (use.context, use.model, use.input_tokens, use.output_tokens)
    assert use.answer is not None
    assert "approve" == msgspec.json.decode(use.answer.text)["action"]
    assert ("processed.alerts", 1, 0) == (record.alert_topic, record.alert_partition, record.alert_offset)
    assert "raw.orders/1/17" == record.origin
    assert large_order() == msgspec.json.decode(record.alert, type=LargeOrder)
    assert 2 == record.features[0].values["order_count_5m"]
    assert (START_MS - 20, START_MS - 10) == (record.hops.event_ms, record.hops.received_ms)
    assert ("live", 1, "") == (record.mode, record.attempt, record.previous)


def test_handle_asks_features_with_the_alerts_origin() -> None:
    """Features are read for the event that raised the alert."""
    world = decide_one()
    (origin,) = world.features.origins
    assert origin is not None
    assert ("raw.orders", 1, 17, "u-1") == (origin.topic, origin.partition, origin.offset, origin.key)


async def raises(alert: LargeOrder, context: Context) -> OrderDecision:
    raise KeyError("user")


async def raises_unspeakably(alert: LargeOrder, context: Context) -> OrderDecision:
    raise OSError("no file\nnamed \udcff")


async def hangs(alert: LargeOrder, context: Context) -> OrderDecision:
    await asyncio.sleep(3_600)
    raise AssertionError


async def swallows_its_deadline(alert: LargeOrder, context: Context) -> OrderDecision:
    with contextlib.suppress(asyncio.CancelledError):
        await asyncio.sleep(3_600)
    return OrderDecision(action="approve", risk_level="LOW", reason="late, but fine")


async def returns_text(alert: LargeOrder, context: Context) -> str:
    return "approve"


async def returns_invalid(alert: LargeOrder, context: Context) -> OrderDecision:
    return OrderDecision(action="let it go", risk_level="LOW", reason="r")  # type: ignore[arg-type]


async def cancels_itself(alert: LargeOrder, context: Context) -> OrderDecision:
    raise asyncio.CancelledError


async def is_refused(alert: LargeOrder, context: Context) -> OrderDecision:
    raise Rejected("the account is closed")


async def asks_for_unknown_view(alert: LargeOrder, context: Context) -> OrderDecision:
    raise SetupError("user_feature", "no such view is served")


async def finds_bad_record(alert: LargeOrder, context: Context) -> OrderDecision:
    raise BadRecord("its own decoding failed")


async def approves_without_answer(alert: LargeOrder, context: Context) -> OrderDecision:
    with contextlib.suppress(ModelFailure):
        await context.decide("judge", alert=alert)
    return OrderDecision(action="approve", risk_level="LOW", reason="no answer, so fine")


@pytest.mark.parametrize(
    ("handler", "reasons"),
    [
        (raises, ("handler_failed",)),
        (raises_unspeakably, ("handler_failed",)),
        (hangs, ("deadline",)),
        (swallows_its_deadline, ("deadline",)),
        (returns_text, ("wrong_answer",)),
        (returns_invalid, ("wrong_answer",)),
        (cancels_itself, ("handler_failed",)),
        (is_refused, ("handler_failed",)),
        (asks_for_unknown_view, ("handler_failed",)),
        (finds_bad_record, ("handler_failed",)),
    ],
)
def test_handle_failing_handler_ends_in_fallback(
    handler: Callable[[Any, Context], Awaitable[Any]], reasons: tuple[str, ...]
) -> None:
    """However a handler fails, its alert is reviewed, with the reason."""
    assert ("review", reasons) == outcome(decide_one(handler))


def test_handle_fallback_is_said_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    """Whoever runs a worker with a wrong key sees it, and not only a growing queue of reviews."""
    decide_one(raises)
    (line,) = [line for line in caplog.messages if "fallback" in line]
    assert "raises: its fallback decides large_order:u-1:o-1: handler_failed: KeyError: 'user'" in line


def test_handle_handler_that_ignores_failed_model_does_not_approve() -> None:
    """A handler may catch the model's failure; its approval is raised all the same."""
    world = decide_one(approves_without_answer, text=lambda request: "not JSON")
    assert ("review", ("model_failed",)) == outcome(world)


def failing(code: FailureCode) -> Callable[[ModelRequest], str]:
    def text(request: ModelRequest) -> str:
        raise ModelFailure(code, "no answer")

    return text


@pytest.mark.parametrize("code", list(FailureCode))
def test_handle_every_model_failure_ends_in_fallback(code: FailureCode) -> None:
    """Each failure is reviewed under its code; only retriable ones are tried three times."""
    world = decide_one(text=failing(code))
    action, reasons = outcome(world)
    assert ("review", code.value) == (action, reasons[0])
    assert (3 if code.retriable else 1) == len(world.model.requests)


def test_handle_failed_calls_stay_in_the_record() -> None:
    """Every call is evidence, also those of attempts before the last one."""
    world = decide_one(text=failing(FailureCode.OVERLOADED))
    (record,) = world.decisions()
    assert ["overloaded"] * 3 == [use.failure for use in record.models]
    assert 3 == record.attempt
    assert record.hops.agent_ms < record.hops.decided_ms, (
        "it began with the first attempt, of which the deadline counts"
    )


def test_handle_second_attempt_may_succeed() -> None:
    """A passing failure costs one retry and no decision."""
    failures = [ModelFailure(FailureCode.OVERLOADED, "no capacity")]

    def text(request: ModelRequest) -> str:
        if failures:
            raise failures.pop()
        return answering("block")(request)

    world = decide_one(text=text)
    assert ("block", ()) == outcome(world)
    assert 2 == world.decisions()[0].attempt


def test_handle_unavailable_features_end_in_fallback() -> None:
    """A store that stays away is retried, then the alert is reviewed."""

    def take_store_away(world: World) -> None:
        world.features.error = Unavailable("redis://127.0.0.1:6379: does not answer")

    assert ("review", ("unavailable", "features_failed")) == outcome(decide_one(prepare=take_store_away))


@pytest.mark.parametrize(
    ("freshness", "own_event", "reason"),
    [
        (Freshness.STALE, OwnEvent.SEEN, "features_stale"),
        (Freshness.MISSING, OwnEvent.SEEN, "features_missing"),
        (Freshness.FRESH, OwnEvent.NOT_SEEN, "own_event_not_seen"),
        (Freshness.FRESH, OwnEvent.LATE, "own_event_late"),
    ],
)
def test_handle_unfit_features_raise_approval(freshness: Freshness, own_event: OwnEvent, reason: str) -> None:
    """An approval on features that are old, absent or without the own event is raised to the fallback."""

    def spoil(world: World) -> None:
        world.features.freshness, world.features.own_event = freshness, own_event

    world = decide_one(prepare=spoil)
    (record,) = world.decisions()
    assert ("review", (reason,)) == outcome(world)
    assert record.policy is not None
    assert ("approve", "review") == (record.policy.answered, record.policy.action)
    assert "approve" == msgspec.json.decode(record.answered)["action"]


@pytest.mark.parametrize("tolerated", [False, True])
def test_handle_alert_of_unknown_origin_is_not_approved(tolerated: bool) -> None:
    """Without the header nobody knows whether the features hold the alert's own event; policy may say it is no matter."""

    async def main(clock: Clock) -> World:
        world = await World.create(clock, answering("approve"))
        world.send(large_order(), headers={"origin": "somewhere"})
        policy = Policy(tolerates=frozenset({Reason.ORIGIN_UNKNOWN}) if tolerated else frozenset())
        async with world.running(world.agent_work(make_agent(policy=policy))):
            await until(lambda: bool(world.records("agent.decisions")))
        return world

    expected = ("approve", ()) if tolerated else ("review", ("origin_unknown",))
    assert expected == outcome(run_virtual(main, START_MS))


def test_handle_alert_older_than_max_age_is_not_asked(caplog: pytest.LogCaptureFixture) -> None:
    """A backlog that is too old is reviewed without a model call; each alert is counted, and one notice given."""

    async def main(clock: Clock) -> None:
        world = await World.create(clock)
        for number in range(5):
            world.send(large_order(order=f"o-{number}"))
        await asyncio.sleep(61)
        work = world.agent_work(make_agent(max_age="1m"))
        async with world.running(work):
            await until(lambda: work.statistics.fallbacks["too_old"] == 5)
            world.send(large_order(order="o-now"))
            await until(lambda: len(world.records("agent.decisions")) == 6)
        assert ["review"] * 5 + ["block"] == world.decided()
        assert 1 == len(world.model.requests)

    run_virtual(main, START_MS)
    assert 1 == sum("older than max_age" in record.message for record in caplog.records)


@pytest.mark.parametrize("mode", ["shadow", "dry-run"])
def test_handle_agent_that_is_not_live_passes_over_what_is_too_old(
    mode: Mode, caplog: pytest.LogCaptureFixture
) -> None:
    """At its first start that is the whole topic: counted, told once, and nothing is written about it."""

    async def main(clock: Clock) -> None:
        world = await World.create(clock)
        for number in range(300):
            world.send(large_order(order=f"o-{number}"))
        await asyncio.sleep(3_600)
        world.send(large_order(order="o-now"))
        work = world.agent_work(make_agent(), mode=mode)
        async with world.running(work):
            await until(lambda: bool(world.decisions()))
        assert (["block"], 300) == (world.decided(), work.statistics.too_old)
        assert [] == world.dead()

    run_virtual(main, START_MS)
    assert 1 == sum("older than max_age" in record.message for record in caplog.records)


def broken_rule(alert: object, decision: object) -> str | None:
    raise KeyError("country")


def test_handle_rule_that_fails_is_told_once_with_its_traceback(caplog: pytest.LogCaptureFixture) -> None:
    """Each alert is reviewed; the rule's author sees where, and not a traceback an alert."""

    async def main(clock: Clock) -> list[str]:
        world = await World.create(clock, answering("approve"))
        for number in range(50):
            world.send(large_order(order=f"o-{number}"))
        async with world.running(world.agent_work(make_agent(policy=Policy(rules=(broken_rule,))))):
            await until(lambda: len(world.decisions()) == 50)
        return world.decided()

    assert ["review"] * 50 == run_virtual(main, START_MS)
    (line,) = [record for record in caplog.records if "rule" in record.getMessage()]
    assert (
        "ask_model: rule broken_rule of its policy failed, which is a concern: KeyError: 'country'" in line.getMessage()
    )
    assert line.exc_info is not None


async def writes_volumes(alert: LargeOrder, context: Context) -> OrderDecision:
    return LongDecision(action="approve", risk_level="LOW", reason="r", notes="x" * 4 * DECISIONS.max_message_bytes)


def test_handle_decision_too_large_for_its_topic_is_the_bare_fallback() -> None:
    """An alert that has a fallback is never buried: what does not fit is left out, with its length and hash."""

    async def main(clock: Clock) -> World:
        world = await World.create(clock)
        agent: Agent[Any] = Agent(writes_volumes, ALERTS.name, alert=LargeOrder, decides=LongDecision, fallback=review)
        with_actions(agent)
        world.send(large_order())
        async with world.running(world.agent_work(agent), world.actions_work(agent)):
            await until(lambda: bool(world.states()) and set(world.states().values()) == {"failed"})
        return world

    world = run_virtual(main, START_MS)
    (record,) = world.decisions()
    assert ("review", ("too_large", "alert_cut")) == outcome(world)
    assert len(encode(large_order())) == msgspec.json.decode(record.alert)["bytes"]
    assert [] == world.dead()
    assert "the alert did not fit; it is processed.alerts/1/0" in world.reviews()[0].reason


def test_handle_without_fallback_failure_is_dead_letter() -> None:
    """An agent that declares no fallback has nothing to decide: the alert's bytes are kept with the reason."""
    world = decide_one(returns_text, fallback=None)
    ((reason, value),) = world.dead()
    assert reason.startswith("wrong_answer: ")
    assert encode(large_order()) == value


def test_handle_without_fallback_unspeakable_error_is_dead_letter() -> None:
    """An error whose text nothing can encode is buried like any other, on one line."""
    world = decide_one(raises_unspeakably, fallback=None)
    assert "handler_failed: OSError: no file named ? (attempt 3)" == world.dead()[0][0]


def test_handle_without_fallback_unsafe_approval_is_dead_letter() -> None:
    """Nor does it approve on features that policy objects to."""

    def spoil(world: World) -> None:
        world.features.freshness = Freshness.STALE

    world = decide_one(prepare=spoil, fallback=None)
    assert [] == world.decisions()
    assert "features_stale" in world.dead()[0][0]


BAD = [
    (b"{not json", "u-1", {"alert_type": "large_order"}, "is no large_order"),
    (b"\xff\xfe", "u-1", {"alert_type": "large_order"}, "is no large_order"),
    (encode({"alert_type": "large_order"}), "u-1", {"alert_type": "large_order"}, "is no large_order"),
    (encode({"alert_type": "unheard_of"}), "u-1", {"alert_type": "unheard_of"}, "unknown alert type 'unheard_of'"),
    (encode({"alert_type": "unheard_of"}), "u-1", {}, "unknown alert type 'unheard_of'"),
    (b"[" * 100_000, "u-1", {}, "has no alert_type"),
    (b"{}", "u-1", {}, "has no alert_type"),
    (None, "u-1", {}, "has no alert_type"),
    (encode(large_order()), None, {}, "has no key"),
]


@pytest.mark.parametrize(("value", "key", "headers", "reason"), BAD)
def test_handle_undecodable_alert_is_dead_letter(
    value: bytes | None, key: str | None, headers: dict[str, str], reason: str
) -> None:
    """Each keeps its original bytes and says why, and its neighbour is decided."""

    async def main(clock: Clock) -> World:
        world = await World.create(clock)
        world.send_bytes(value, key=key, headers=headers)
        world.send(large_order())
        async with world.running(world.agent_work(make_agent())):
            await until(lambda: bool(world.records("agent.decisions")) and bool(world.dead()))
        return world

    world = run_virtual(main, START_MS)
    ((found, kept),) = world.dead()
    assert reason in found
    assert value == kept
    assert ["block"] == world.decided()


def test_handle_other_declared_type_is_passed_over() -> None:
    """Another agent's alert is neither decided nor buried, with the header or without it."""

    async def main(clock: Clock) -> World:
        world = await World.create(clock)
        other = OtherAlert(alert_id="other_alert:u-1:x", triggered_at=large_order().triggered_at)
        world.send(other)
        world.send_bytes(encode(other), headers={})
        world.send(large_order())
        async with world.running(world.agent_work(make_agent())):
            await until(lambda: bool(world.records("agent.decisions")))
        return world

    world = run_virtual(main, START_MS)
    assert (["block"], []) == (world.decided(), world.dead())


def test_handle_unavailable_broker_writes_the_same_answer_later() -> None:
    """While the broker takes nothing the answer waits; the model is not asked again."""

    def plan(world: World) -> None:
        for _ in range(3):
            world.broker.plan(Fault("confirm", "fail"))

    world = decide_one(prepare=plan)
    assert ("approve", ()) == outcome(world)
    assert 1 == len(world.model.requests)


def test_handle_rule_of_policy_is_in_the_record() -> None:
    """What policy changed, and by which rule."""

    def large_is_seen(alert: LargeOrder, decision: OrderDecision) -> str | None:
        return "review" if alert.amount_usd > 10_000 else None

    world = decide_one(approve, policy=Policy(rules=(large_is_seen,)))
    assert ("review", ("policy_rule:large_is_seen",)) == outcome(world)


def test_handle_alerts_of_one_key_are_decided_in_order() -> None:
    """The decisions of one key stand in the order of its alerts, whatever each took."""

    async def main(clock: Clock) -> World:
        world = await World.create(clock)
        seconds = [3.0, 0.0, 1.0]

        async def slow_first(alert: LargeOrder, context: Context) -> OrderDecision:
            await asyncio.sleep(seconds[int(alert.order_id[2:])])
            return await approve(alert, context)

        for number in range(3):
            world.send(large_order(order=f"o-{number}"))
        async with world.running(world.agent_work(make_agent(slow_first))):
            await until(lambda: len(world.records("agent.decisions")) == 3)
        return world

    world = run_virtual(main, START_MS)
    assert [f"large_order:u-1:o-{number}" for number in range(3)] == [one.alert_id for one in world.decisions()]
    assert [0, 1, 2] == [one.number for one in world.decisions()]
