"""Whatever comes in: nothing that failed approves, policy keeps its limits, effects move forward only."""

import asyncio
import itertools
from typing import Any

import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st

from app.core.clock import Clock, run_virtual
from app.core.errors import Rejected, Unavailable
from app.decisions.context import Context
from app.decisions.decision import Reason, review
from app.decisions.ledger import merged
from app.decisions.policy import Policy, judge
from app.decisions.record import EffectRecord, EffectState, EffectStatus
from app.models.base import FailureCode, ModelFailure, ModelRequest
from tests.decision_lives import Offsets, SteppingProducer, Steps, die, live, lives
from tests.decisions_kit import (
    START_MS,
    LargeOrder,
    OrderDecision,
    World,
    answering,
    large_order,
    make_agent,
    until,
    with_actions,
)
from tests.examples import examples

ACTIONS = ("approve", "review", "block")
SEVERITIES = OrderDecision.severities
actions = st.sampled_from(ACTIONS)


def is_approval(text: str) -> bool:
    """Whether a text is, by chance, a whole and valid approval."""
    try:
        return msgspec.json.decode(text, type=OrderDecision).action == "approve"
    except (msgspec.MsgspecError, ValueError, RecursionError):
        return False


near_answers = st.fixed_dictionaries(
    {},
    optional={
        "action": st.sampled_from(["approve", "APPROVE", "approve ", "allow", "", None, 1, ["approve"]]),
        "risk_level": st.sampled_from(["LOW", "low", None, 0]),
        "reason": st.one_of(st.text(max_size=20), st.none(), st.just("x" * 5_000)),
        "approve": st.just(True),
    },
).map(lambda value: msgspec.json.encode(value).decode())
garbage = st.one_of(
    st.text(), near_answers, near_answers.map(lambda text: text[:-1]), near_answers.map("ok: {}".format)
)


@settings(max_examples=examples(200))
@given(text=garbage.filter(lambda text: not is_approval(text)))
def test_garbage_answer_never_approves(text: str) -> None:
    """Whatever a model writes that is no valid approval does not become one."""

    async def main(clock: Clock) -> list[str]:
        world = await World.create(clock, lambda request: text)
        world.send(large_order())
        work = world.agent_work(make_agent())
        async with world.running(work):
            await until(lambda: bool(world.records("agent.decisions")))
        return world.decided()

    (action,) = run_virtual(main, START_MS)
    assert "approve" != action


faults = st.sampled_from(
    [
        *[ModelFailure(code, "no answer") for code in FailureCode],
        Unavailable("model: away"),
        Rejected("model: refused"),
        KeyError("x"),
        RecursionError("deep"),
        TimeoutError("late"),
        OSError("no file named \udcff"),
        ExceptionGroup("several", [ValueError("x")]),
        asyncio.CancelledError(),
    ]
)


@given(fault=faults, caught=st.booleans(), of_features=st.booleans())
def test_failed_question_never_approves(fault: BaseException, caught: bool, of_features: bool) -> None:
    """However a model or a store fails, and even where the handler catches it and approves, the alert is not approved."""

    def text(request: ModelRequest) -> str:
        raise fault

    async def handler(alert: LargeOrder, context: Context) -> OrderDecision:
        try:
            if of_features:
                await context.features("user_features", alert.user_id)
            else:
                return await context.decide("judge", alert=alert)
        except BaseException:
            if not caught:
                raise
        return OrderDecision(action="approve", risk_level="LOW", reason="as if nothing had happened")

    async def main(clock: Clock) -> list[str]:
        world = await World.create(clock, text)
        world.features.error = fault
        world.send(large_order())
        async with world.running(world.agent_work(make_agent(handler))):
            await until(lambda: bool(world.records("agent.decisions")))
        return world.decided()

    assert ["review"] == run_virtual(main, START_MS)


def rule_wanting(wanted: str | None) -> Any:
    def rule(alert: object, decision: object) -> str | None:
        if wanted == "raises":
            raise ValueError("broken rule")
        return wanted

    return rule


@given(
    answered=actions,
    wanted=st.lists(st.one_of(st.none(), actions, st.just("raises"), st.just("unheard of")), max_size=4),
    limits=st.frozensets(st.tuples(actions, actions), max_size=3),
    concerns=st.lists(st.sampled_from(list(Reason)), max_size=2),
    may_lower=st.booleans(),
)
def test_policy_lowers_only_within_limits(
    answered: str,
    wanted: list[str | None],
    limits: frozenset[tuple[str, str]],
    concerns: list[Reason],
    may_lower: bool,
) -> None:
    """What stands is at least as severe as the answer, unless exactly that pair is declared; concerns never approve."""
    limits = frozenset(pair for pair in limits if SEVERITIES[pair[1]] < SEVERITIES[pair[0]])
    policy = Policy(rules=tuple(rule_wanting(one) for one in wanted), may_lower=limits)
    decision = OrderDecision(action=answered, risk_level="LOW", reason="r")  # type: ignore[arg-type]
    judged = judge(policy, large_order(), decision, concerns, review, may_lower=may_lower)
    lowered = SEVERITIES[judged.decision.action] < SEVERITIES[answered]
    assert not lowered or (may_lower and not concerns and (answered, judged.decision.action) in limits)
    if concerns or {"raises", "unheard of"} & set(wanted):
        assert "approve" != judged.decision.action


states = st.sampled_from(list(EffectState))


def entry(offset: int, writer: int, of_effects: dict[str, EffectState]) -> EffectRecord:
    effects = {name: EffectStatus(state, f"k:{name}", "keyed", 0) for name, state in of_effects.items()}
    return EffectRecord(
        alert_id="a",
        agent="judge",
        action="block",
        decision_offset=offset,
        decision_sha256="",
        effects=effects,
        writer=str(writer),
    )


entries = st.builds(
    entry,
    st.integers(0, 3),
    st.integers(0, 2),
    st.fixed_dictionaries({"stop": states, "tell": states}),
)


@given(log=st.lists(entries, min_size=1, max_size=6), data=st.data())
def test_merged_entries_do_not_depend_on_order(log: list[EffectRecord], data: st.DataObject) -> None:
    """Read back in whatever order, the earliest decision stands and each of its effects is at its furthest state."""

    def restored(records: list[EffectRecord]) -> tuple[int, dict[str, EffectState]]:
        together = records[0]
        for other in records[1:]:
            before, together = together, merged(together, other)
            if before.decision_offset == together.decision_offset:
                assert all(
                    together.effects[name].state.rank >= status.state.rank for name, status in before.effects.items()
                )
        return together.decision_offset, {name: status.state for name, status in together.effects.items()}

    assert restored(log) == restored(data.draw(st.permutations(log)))


@settings(max_examples=examples(60))
@given(
    modes=st.lists(st.sampled_from(["live", "shadow", "dry-run"]), min_size=1, max_size=6).filter(
        lambda modes: "live" in modes
    ),
    kills=st.lists(st.integers(1, 25), max_size=4),
)
def test_standing_decision_is_the_first_live_one(modes: list[Any], kills: list[int]) -> None:
    """Whatever duplicates and shadows the log holds, and however often actions are killed: the first live one acts."""
    numbers = itertools.count()

    def text(request: ModelRequest) -> str:
        return answering("block")(request).replace("so it was decided", f"answer {next(numbers)}")

    async def main(clock: Clock) -> None:
        world = await World.create(clock, text)
        agent = with_actions(make_agent())
        world.send(large_order())
        for mode in modes:
            work = world.agent_work(agent, mode=mode)
            work._is_repeated = lambda record, alert: False  # type: ignore[method-assign]
            await live(world.broker, work, Offsets(), Steps(0, die))
        await lives(
            world.broker,
            lambda steps: world.actions_work(agent, producer=SteppingProducer(world.broker, steps)),
            kills,
        )
        first = modes.index("live")
        assert {first} == {one.decision_offset for one in world.effects()}
        assert {f"answer {first}"} == {body["reason"] for _, _, body in world.receiver.calls if "reason" in body}
        assert {"block_order": "done", "notify": "done"} == world.states()
        assert 2 == len(set(world.receiver.called_keys()))

    run_virtual(main, START_MS)
