"""Decisions decided again from their records: the same where nothing has changed, and what has changed where it has."""

from collections.abc import Callable, Sequence
from decimal import Decimal
from typing import Any, Literal

import msgspec
import pytest

from app.core.clock import Clock, run_virtual
from app.core.errors import Unavailable
from app.decisions import replay as replaying
from app.decisions.agent import Agent
from app.decisions.context import Context
from app.decisions.decision import Reason
from app.decisions.history import Found, PassedOver, Wanted, newest
from app.decisions.policy import Limit, Policy, nothing_barred
from app.decisions.replay import CONTEXT_CHANGED, PROMPT_CHANGED, Replayed, Replayer, Summary, replay_all
from app.models.base import FailureCode, ModelFailure, ModelRequest
from app.models.gate import ModelGate
from app.models.rules import RulesModel
from app.serving.base import Features, Freshness, OwnEvent
from tests.decisions_kit import (
    START_MS,
    FakeModel,
    LargeOrder,
    OrderDecision,
    World,
    answering,
    ask_model,
    large_order,
    make_agent,
    until,
)

Text = Callable[[ModelRequest], str]


def failing(code: FailureCode) -> Text:
    def text(request: ModelRequest) -> str:
        raise ModelFailure(code, "planned")

    return text


async def recorded(world: World) -> list[Found]:
    return [one async for one in newest(world.broker.reader(), 2, Wanted(), 1_000, PassedOver())]


async def decide(world: World, agent: Agent[OrderDecision], orders: int = 1) -> list[Found]:
    """What stands on record after the agent has decided so many orders."""
    for number in range(orders):
        world.send(large_order(order=f"o-{number}", amount=f"{12_000 + number}.50"))
    async with world.running(world.agent_work(agent)):
        await until(lambda: len(world.records("agent.decisions")) == orders)
    return await recorded(world)


async def replayed(found: Sequence[Found], agent: Agent[OrderDecision], model: Any = None) -> list[Replayed]:
    gate = ModelGate(model, concurrency=4, attempt_ms=8_000) if model is not None else None
    replayer = Replayer({agent.name: agent}, gate)
    return [await replayer.replay(one) for one in found]


def run(
    text: Text,
    then: Agent[OrderDecision],
    now: Agent[OrderDecision] | None = None,
    *,
    model: Any = None,
    prepare: Callable[[World], None] = lambda world: None,
) -> Replayed:
    """One order decided by one declaration, and replayed by another."""

    async def main(clock: Clock) -> Replayed:
        world = await World.create(clock, text)
        prepare(world)
        found = await decide(world, then)
        (one,) = await replayed(found, now or then, model)
        return one

    return run_virtual(main, START_MS)


class NarrowDecision(OrderDecision, frozen=True, kw_only=True):
    """A decision that blocks no more."""

    action: Literal["approve", "review"]


def never(alert: LargeOrder, decision: OrderDecision) -> str | None:
    """A policy that lets no block stand."""
    return "review" if decision.action == "block" else None


LOWERING = Policy(rules=(never,), may_lower=frozenset({("block", "review")}))


@pytest.mark.parametrize("code", list(FailureCode))
def test_replay_of_a_models_failure_is_identical(code: FailureCode) -> None:
    """Whichever way a model failed, the fallback stands again with the same reason."""
    one = run(failing(code), make_agent())
    assert ("review", ()) == (one.action, one.differences)


@pytest.mark.parametrize(
    "text", [answering("approve"), answering("block"), lambda request: "no JSON", lambda request: '{"action":"sing"}']
)
@pytest.mark.parametrize("own_event", list(OwnEvent))
@pytest.mark.parametrize("freshness", list(Freshness))
def test_replay_of_an_answer_is_identical(text: Text, own_event: OwnEvent, freshness: Freshness) -> None:
    """The recorded answer passes validation and policy with the recorded features and comes out as it did."""

    def prepare(world: World) -> None:
        world.features.freshness, world.features.own_event = freshness, own_event

    one = run(text, make_agent(policy=LOWERING), prepare=prepare)
    assert ("", (), ()) == (one.skipped, one.differences, one.changed)


def limited(orders: int, model: Any = None) -> list[Replayed]:
    """Replays of decisions of an agent that may block one order of a person a minute; newest first."""

    async def main(clock: Clock) -> list[Replayed]:
        world = await World.create(clock, answering("block"))
        agent = make_agent(policy=Policy(limits=(Limit("block", an_entity=1),)))
        return await replayed(await decide(world, agent, orders), agent, model)

    return run_virtual(main, START_MS)


def test_replay_of_what_a_limit_has_changed_is_identical() -> None:
    """Limits are not counted anew: the one that had a say has it again, and it alone."""
    again = limited(2)
    assert ["review", "block"] == [one.action for one in again]
    assert [(), ()] == [one.differences for one in again]


def test_replay_by_another_model_is_limited_only_in_what_was() -> None:
    """Of an action that nobody had limited it is not on record whether it would have been."""
    assert ["review", "block"] == [one.action for one in limited(2, FakeModel(answering("block")))]
    assert ["approve", "approve"] == [one.action for one in limited(2, FakeModel(answering("approve")))]


def test_replay_without_the_recorded_bar_is_not_identical(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ablation: a replay that forgets what limits said blocks what was not blocked."""
    monkeypatch.setattr(replaying, "_barred", lambda *recorded: nothing_barred)
    assert ["block", "block"] == [one.action for one in limited(2)]


def test_replay_of_features_that_failed_is_identical() -> None:
    """What could not be read then cannot be read now."""

    def prepare(world: World) -> None:
        world.features.error = Unavailable("redis: away")

    one = run(answering("block"), make_agent(), prepare=prepare)
    assert ("review", ()) == (one.action, one.differences)
    assert {Reason.UNAVAILABLE, Reason.FEATURES_FAILED} == set(one.found.record.reasons)


async def slow(alert: LargeOrder, context: Context) -> OrderDecision:
    await context.features("user_features", alert.user_id)
    raise ValueError("a bug")


def test_replay_of_a_handler_that_failed_is_identical() -> None:
    """The fallback is reproduced by its recorded reason; whether the handler would fail again is not asked."""
    one = run(answering("block"), make_agent(slow))
    assert ("review", ()) == (one.action, one.differences)
    assert (Reason.HANDLER_FAILED,) == one.found.record.reasons


def test_replay_after_failed_attempts_is_identical() -> None:
    """Attempts that failed are on record too, and are gone through again."""
    failures = [FailureCode.OVERLOADED, FailureCode.RATE_LIMITED]

    def text(request: ModelRequest) -> str:
        if failures:
            raise ModelFailure(failures.pop(), "planned")
        return answering("block")(request)

    one = run(text, make_agent())
    assert ("block", (), 3) == (one.action, one.differences, len(one.found.record.models))


def test_replay_shows_the_features_as_they_were() -> None:
    """Money is the same Decimal, counts the same integers, and each says how old it was."""
    told: list[Features] = []

    async def listening(alert: LargeOrder, context: Context) -> OrderDecision:
        told.append(await context.features("user_features", alert.user_id))
        return await context.decide("judge this order", alert=alert, user=told[-1])

    one = run(answering("block"), make_agent(listening))
    assert ((), ()) == (one.differences, one.changed)
    then, now = told
    assert then == now
    assert (int, Decimal) == tuple(type(value) for value in now.values.values())
    assert Decimal("24000.50") == now.values["order_value_5m"]


def test_replay_with_features_that_are_not_the_recorded_is_no_replay(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ablation: features of now, in place of those on record, change the context, and policy's concerns with it."""

    class Now:
        def __init__(self, seen: Sequence[Features]) -> None:
            self._seen = seen[0]

        async def read(self, view: str, entity: str) -> Features:
            return msgspec.structs.replace(self._seen, age_ms=99_000, freshness=Freshness.STALE)

        async def read_with_own_event(self, view: str, entity: str, origin: object, wait_ms: int) -> Features:
            return await self.read(view, entity)

    monkeypatch.setattr(replaying, "_RecordedFeatures", Now)
    one = run(answering("approve"), make_agent())
    assert ("review", (CONTEXT_CHANGED,)) == (one.action, one.changed)
    assert one.differences


def test_replay_under_another_policy_shows_what_it_changes() -> None:
    """Policy is that of today: a rule that was added lowers what it is allowed to."""
    one = run(answering("block"), make_agent(), make_agent(policy=LOWERING))
    assert ("block", "review") == (one.before, one.action)
    assert ("action: block -> review", "reasons: none -> policy_rule:never") == one.differences


def test_replay_with_another_prompt_says_so_and_keeps_the_answer() -> None:
    """A prompt is recorded by its hash; another one is named, and so is another context."""

    async def other(alert: LargeOrder, context: Context) -> OrderDecision:
        await context.features("user_features", alert.user_id)
        return await context.decide("judge it well", alert=alert)

    other.__name__ = ask_model.__name__
    one = run(answering("block"), make_agent(), make_agent(other))
    assert ((), (PROMPT_CHANGED, CONTEXT_CHANGED)) == (one.differences, one.changed)


def test_replay_of_an_answer_that_no_type_takes_any_more_shows_the_fallback() -> None:
    """Answers are validated by the type of today."""

    agent, now = make_agent(), make_agent()
    now.decides = NarrowDecision
    one = run(answering("block"), agent, now)
    assert "review" == one.action
    assert "reasons: none -> invalid_answer, model_failed" in one.differences


def test_replay_by_another_model_shows_known_differences() -> None:
    """The other model blocks odd amounts and approves even ones: exactly the odd half comes out otherwise."""

    def by_amount(request: ModelRequest) -> str:
        amount = int(request.context["alert"].amount_usd)
        return answering("block" if amount % 2 else "approve")(request)

    async def main(clock: Clock) -> None:
        world = await World.create(clock, answering("approve"))
        agent = make_agent()
        found = await decide(world, agent, 6)
        model = FakeModel(by_amount, name="other-1")
        results: list[Replayed] = []
        gate = ModelGate(model, concurrency=2, attempt_ms=8_000)

        async def each() -> Any:
            for one in found:
                yield one

        summary = await replay_all(Replayer({agent.name: agent}, gate), each(), 2, results.append)
        assert found == [one.found for one in results]
        assert {("approve", "approve"): 3, ("approve", "block"): 3} == summary.actions
        assert (6, 3, 3) == (summary.replayed, summary.identical, summary.different)
        assert (6, 42, 18) == (summary.calls, summary.input_tokens, summary.output_tokens)
        assert {("action: approve -> block",), ()} == {one.differences for one in results}
        shown = {request.context_text for request in model.requests}
        assert {one.record.models[0].context for one in found} == shown
        assert 6 == len(world.records("agent.decisions"))

    run_virtual(main, START_MS)


def test_replay_by_rules_gives_them_the_typed_context() -> None:
    """Rules take the objects that the handler shows, not their text."""

    def rule(alert: LargeOrder, user: Features) -> OrderDecision:
        assert isinstance(user.values["order_value_5m"], Decimal)
        return OrderDecision(
            action="block" if alert.amount_usd == Decimal("12000.50") else "approve", risk_level="LOW", reason="by rule"
        )

    agent = make_agent()
    one = run(answering("approve"), agent, model=RulesModel({agent.name: rule}))
    assert ("block", "rules") == (one.action, one.uses[0].model)


def test_replay_of_a_fallback_by_another_model_asks_it() -> None:
    """Where the first model gave no answer the other one may."""
    one = run(failing(FailureCode.REFUSED), make_agent(), model=FakeModel(answering("block")))
    assert ("review", "block") == (one.before, one.action)


def test_replay_by_a_model_that_fails_ends_in_the_fallback() -> None:
    """It is tried again as in a worker, and then the agent's fallback stands."""
    one = run(answering("block"), make_agent(), model=FakeModel(failing(FailureCode.OVERLOADED)))
    assert ("review", 3) == (one.action, len(one.uses))


def test_replay_without_what_it_needs_is_skipped_with_the_reason() -> None:
    """Agents that are gone, alerts of another form and evidence that was cut are counted, not guessed."""

    async def main(clock: Clock) -> None:
        world = await World.create(clock)
        agent = make_agent()
        (found,) = await decide(world, agent)
        summary = Summary()
        for changes in (
            {"agent": "somebody"},
            {"alert": msgspec.Raw(b"{}")},
            {"alert_type": "gone"},
            {"reasons": ("evidence_cut",)},
        ):
            one = found._replace(record=msgspec.structs.replace(found.record, **changes))
            summary.count((await replayed([one], agent))[0])
        assert (0, 4) == (summary.replayed, summary.skipped.total())

    run_virtual(main, START_MS)


def test_replay_where_nothing_may_stand_says_dead_letter() -> None:
    """An agent that has lost its fallback decides nothing where it had one to fall back to."""
    one = run(failing(FailureCode.REFUSED), make_agent(), make_agent(fallback=None))
    assert (None, ("decision: a dead letter now",)) == (one.action, one.differences)
