"""The gate under arbitrary callers: nothing is lost, no bound is passed, nobody overtakes within an agent; and what
shows if a part of it is taken out."""

import asyncio
import contextlib
import math
from collections import deque
from dataclasses import dataclass, field
from itertools import product
from typing import Any, NamedTuple

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.core.clock import Clock, run_virtual
from app.models import gate as gate_module
from app.models import line as line_module
from app.models.base import FailureCode, ModelAnswer, ModelFailure, ModelRequest, RateLimit, RateLimits, StopReason
from app.models.breaker import FAILURES_IN_A_ROW, REFUSED_OPEN_S, Breaker
from app.models.buckets import Buckets
from app.models.budget import Budget, Budgets, Reservation
from app.models.gate import ModelGate
from app.models.line import Line, Place
from app.models.permits import Permits
from app.models.pricing import KNOWN_PRICES

START_MS = 1_700_000_000_000
MODEL = "claude-sonnet-4-6"
LARGE_BUDGET, SMALL_BUDGET = 1_000_000, 12_000
REQUESTS_A_MINUTE = 12
ONLY_REQUESTS = (REQUESTS_A_MINUTE, 0, 0)
TOKENS_TOO = (REQUESTS_A_MINUTE, 5_000, 2_500)
INPUT_USED, OUTPUT_USED = 900, 300
AGENTS = ("agent", "other")
LONG_S = 3_600.0


class Verdict(msgspec.Struct, frozen=True):
    action: str


class Caller(NamedTuple):
    """comes, takes, left: tenths of a second. ends: how its call ends. cancelled: after tenths, and so many steps.
    outer: whether the caller keeps the deadline itself too, as handlers do."""

    comes: int
    takes: int
    left: int
    ends: str
    cancelled: tuple[int, int] | None
    agent: str = "agent"
    outer: bool = False


ENDS = {
    "overloaded": FailureCode.OVERLOADED,
    "limited": FailureCode.RATE_LIMITED,
    "pause": FailureCode.RATE_LIMITED,
    "unavailable": FailureCode.UNAVAILABLE,
    "spend_limit": FailureCode.SPEND_LIMIT,
}

callers = st.lists(
    st.builds(
        Caller,
        st.integers(0, 20),
        st.integers(0, 6),
        st.integers(0, 60),
        st.sampled_from(["answer", "answer", "answer", "told", "raises", "malformed", *ENDS]),
        st.none() | st.tuples(st.integers(0, 15), st.integers(0, 5)),
        st.sampled_from(AGENTS),
        st.booleans(),
    ),
    max_size=25,
)


@dataclass
class Model:
    """Does what a request's context says, and notes what the properties are about."""

    name: str = MODEL
    started: list[tuple[float, int]] = field(default_factory=list)
    """When, and whose."""
    answered: list[float] = field(default_factory=list)
    """When the calls began that had an answer."""
    running: int = 0
    most_running: int = 0

    async def decide(self, request: ModelRequest) -> ModelAnswer:
        began = asyncio.get_running_loop().time()
        self.started.append((began, request.context["index"]))
        self.running += 1
        self.most_running = max(self.most_running, self.running)
        try:
            await asyncio.sleep(request.context["takes"] / 10)
        finally:
            self.running -= 1
        ends = request.context["ends"]
        if ends == "raises":
            raise ZeroDivisionError
        if ends in ENDS:
            raise ModelFailure(ENDS[ends], "scripted", retry_after_ms=700 if ends == "pause" else None)
        self.answered.append(began)
        rates = RateLimits(requests=RateLimit(100, 3, 20_000)) if ends == "told" else None
        return ModelAnswer(
            text="{}",
            model=self.name,
            stop_reason=StopReason.COMPLETE,
            input_tokens=INPUT_USED,
            output_tokens=OUTPUT_USED,
            rates=rates,
        )

    async def close(self) -> None:
        """Nothing is open."""


@dataclass
class Run:
    """A gate with its model, who came in which order, and from when to when an agent had no partition."""

    gate: ModelGate
    model: Model
    came: list[int] = field(default_factory=list)
    lost: tuple[str, float, float] = ("", 0.0, 0.0)

    @classmethod
    def create(
        cls,
        clock: Clock,
        concurrency: int,
        tokens_a_day: int = LARGE_BUDGET,
        a_minute: tuple[int, int, int] = ONLY_REQUESTS,
    ) -> "Run":
        model = Model()
        budgets = Budgets(clock, KNOWN_PRICES, MODEL)
        buckets = Buckets(*a_minute)
        gate = ModelGate(model, concurrency=concurrency, attempt_ms=400, buckets=buckets, budgets=budgets)
        for agent in AGENTS:
            gate.declare(agent, 1, Budget(tokens_a_day=tokens_a_day))
            gate.assigned(agent, 0, None)
        return cls(gate, model)

    async def call(self, caller: Caller, index: int) -> ModelAnswer:
        await asyncio.sleep(caller.comes / 10)
        self.came.append(index)
        deadline = asyncio.get_running_loop().time() + caller.left / 10
        question = ask(caller.takes, caller.ends, index, caller.agent)
        if caller.ends == "malformed":
            question = msgspec.structs.replace(question, instructions=b"no text")
        try:
            async with asyncio.timeout_at(deadline if caller.outer else None):
                return await self.gate.decide(question, deadline)
        finally:
            assert asyncio.get_running_loop().time() <= deadline + 0.001

    async def lose(self, agent: str, after: int) -> None:
        """Its partition is revoked after so many tenths, goes half a second later, and comes back after a second with what
        was spent."""
        await asyncio.sleep(after / 10)
        began = asyncio.get_running_loop().time()
        self.gate.revoked(agent, 0)
        self.lost = (agent, began, began + 1.5)
        await asyncio.sleep(0.5)
        spent = self.gate.spent(agent, 0)
        self.gate.ended(agent, 0)
        await asyncio.sleep(1)
        self.gate.assigned(agent, 0, spent)

    def nothing_held(self) -> bool:
        gate = self.gate
        buckets, budgets = gate._buckets, gate._budgets
        assert budgets is not None
        return (0, 0, 0, 0, (0, 0)) == (
            gate._permits.taken,
            len(gate._line),
            gate.statistics().in_flight,
            buckets.requests.reserved + buckets.input_tokens.reserved + buckets.output_tokens.reserved,
            budgets.reserved,
        )


def ask(takes: int = 1, ends: str = "answer", index: int = -1, agent: str = "agent") -> ModelRequest:
    return ModelRequest(
        agent=agent,
        instructions="",
        context_text="",
        context={"takes": takes, "ends": ends, "index": index},
        answer_type=Verdict,
        timeout_ms=1,
        partition=0,
    )


async def cancel_after(task: asyncio.Task[ModelAnswer], tenths: int, steps: int) -> None:
    await asyncio.sleep(tenths / 10)
    for _ in range(steps):
        await asyncio.sleep(0)
    task.cancel()


async def play(run: Run, script: list[Caller]) -> None:
    """All callers, to their ends."""
    tasks = [asyncio.ensure_future(run.call(caller, index)) for index, caller in enumerate(script)]
    await asyncio.gather(
        *(cancel_after(t, *caller.cancelled) for t, caller in zip(tasks, script, strict=True) if caller.cancelled)
    )
    outcomes = await asyncio.gather(*tasks, return_exceptions=True)
    expected = (ModelAnswer, ModelFailure, asyncio.CancelledError, ZeroDivisionError, TimeoutError, AttributeError)
    assert [] == [outcome for outcome in outcomes if not isinstance(outcome, expected)]


async def still_serves(run: Run) -> None:
    """A day later, when nothing that passes can stand in the way: one answer."""
    await asyncio.sleep(86_400)
    answer = await run.gate.decide(ask(), asyncio.get_running_loop().time() + LONG_S)
    assert "{}" == answer.text


def check_limits(run: Run, concurrency: int, a_minute: tuple[int, int, int]) -> None:
    """The estimate of the input is short by a part of what an answer takes: of as many calls as there are at once."""
    requests, input_tokens, output_tokens = (limit or math.inf for limit in a_minute)
    times = [time_s for time_s, _ in run.model.started]
    for count, (first, last) in enumerate(product(times[:1], times), start=1):
        assert count <= requests * (1 + (last - first) / 60) + 0.001, "more than the limit a minute"
    times = sorted(run.model.answered)
    for count, (first, last) in enumerate(product(times[:1], times), start=1):
        minutes = 1 + (last - first) / 60
        assert count * OUTPUT_USED <= output_tokens * minutes + OUTPUT_USED, "more output than the limit a minute"
        assert (count - concurrency) * INPUT_USED <= input_tokens * minutes, "more input than the limit a minute"


def check(
    script: list[Caller],
    concurrency: int,
    tokens_a_day: int = LARGE_BUDGET,
    loses: tuple[str, int] | None = None,
    a_minute: tuple[int, int, int] = ONLY_REQUESTS,
) -> None:
    """Every promise about one script of callers, while an agent may lose its partition for a second."""

    async def main(clock: Clock) -> None:
        run = Run.create(clock, concurrency, tokens_a_day, a_minute)
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(play(run, script))
            if loses is not None:
                tasks.create_task(run.lose(*loses))
        assert run.nothing_held(), "something is not given back"
        assert concurrency >= run.model.most_running, "too many at once"
        started_at = {index: time_s for time_s, index in run.model.started}
        for agent in AGENTS:
            came = [index for index in run.came if script[index].agent == agent]
            in_order = [started_at[index] for index in came if index in started_at]
            assert sorted(in_order) == in_order, "somebody overtook"
            spent = run.gate.spent(agent, 0)
            assert spent is not None
            assert tokens_a_day >= spent.tokens, "more than the budget"
            lost, from_s, to_s = run.lost
            within = [
                s for index, s in started_at.items() if script[index].agent == lost == agent and from_s < s < to_s
            ]
            assert [] == within, "a call about a partition that is revoked"
        check_limits(run, concurrency, a_minute)
        await still_serves(run)

    run_virtual(main, START_MS)


@settings(max_examples=400)
@given(
    script=callers,
    concurrency=st.integers(1, 4),
    tokens_a_day=st.sampled_from([LARGE_BUDGET, SMALL_BUDGET]),
    loses=st.none() | st.tuples(st.sampled_from(AGENTS), st.integers(0, 30)),
    a_minute=st.sampled_from([ONLY_REQUESTS, TOKENS_TOO]),
)
def test_gate_after_any_callers_is_as_before_and_serves(
    script: list[Caller],
    concurrency: int,
    tokens_a_day: int,
    loses: tuple[str, int] | None,
    a_minute: tuple[int, int, int],
) -> None:
    """Whoever comes, waits, fails, asks nonsense, is late, is cancelled at whatever step or loses its partition meanwhile:
    permits and reservations return to zero, no bound is passed, nobody overtakes within an agent, no call outlives its
    deadline, and the gate still serves."""
    check(script, concurrency, tokens_a_day, loses, a_minute)


@pytest.mark.parametrize("code", ["overloaded", "unavailable", "limited", "pause", "spend_limit"])
def test_gate_under_total_failure_calls_seldom_and_recovers(code: str) -> None:
    """A thousand alerts in ten minutes, every call fails: few calls, and after the end of it the gate serves by itself."""

    async def main(clock: Clock) -> int:
        run = Run.create(clock, 64)
        run.gate._buckets = Buckets(0, 0, 0)
        script = [Caller(index * 6, 1, 200, code, None) for index in range(1_000)]
        tasks = [asyncio.ensure_future(run.call(caller, index)) for index, caller in enumerate(script)]
        await asyncio.gather(*tasks, return_exceptions=True)
        calls = len(run.model.started)
        await asyncio.sleep(REFUSED_OPEN_S)
        await run.gate.decide(ask(), asyncio.get_running_loop().time() + 60)
        assert "closed" == run.gate.statistics().breaker
        return calls

    assert run_virtual(main, START_MS) <= (3 if code == "spend_limit" else 60)


# Ablations: each takes one safeguard out; `check`, or the figure beside it, must then find something.


def _full_of_callers(ends: str, count: int = 12, **changes: Any) -> list[Caller]:
    return [Caller(0, 2, 50, ends, None)._replace(**changes) for _ in range(count)]


def test_ablation_permit_not_given_back_on_cancellation_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without release in `finally`: a cancelled call keeps its permit and its reservations."""

    async def leaky(self: ModelGate, request: ModelRequest, deadline: float) -> ModelAnswer:
        call = gate_module._Call(self._enter(deadline), 0)
        call.place = await self._wait(request, call, deadline)
        call.given_ms = 400
        call.answer = await self._attempt(request, FailureCode.TIMEOUT)
        self._settle(call)
        return call.answer

    monkeypatch.setattr(ModelGate, "_decide", leaky)
    with pytest.raises(AssertionError, match="not given back"):
        check(_full_of_callers("answer", cancelled=(1, 0)), 2)


def test_ablation_place_kept_by_a_waiter_that_is_cancelled_as_its_turn_comes_is_found(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The narrow moment: the permit is assigned, and the waiter is cancelled before it has run again."""

    async def enter(self: Line, agent: str, partition: int, amounts: Any, deadline: float) -> Place:
        place = Place(agent, partition, amounts, deadline, asyncio.get_running_loop().create_future())
        self._waiting.setdefault(agent, deque()).append(place)
        self.tick()
        try:
            async with asyncio.timeout_at(deadline):
                await place.goes
        except BaseException:
            if place in self._waiting.get(agent, ()):
                self._remove(place)
            raise
        return place

    monkeypatch.setattr(Line, "enter", enter)
    found = 0
    for steps in range(8):
        try:
            check([*_full_of_callers("answer", 1), *_full_of_callers("answer", 1, cancelled=(2, steps))], 1)
        except (AssertionError, TimeoutError):
            found += 1
    assert found > 0


def test_ablation_line_that_lets_the_last_go_first_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """Last come, first served."""

    class Stack(deque[Place]):
        def append(self, place: Place) -> None:
            self.appendleft(place)

    monkeypatch.setattr(line_module, "deque", Stack)
    with pytest.raises(AssertionError, match="overtook"):
        check(_full_of_callers("answer", 5), 1)


def test_ablation_permits_without_bound_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """Permits that do not look at how many are out."""
    monkeypatch.setattr(Permits, "wait_s", lambda self, now: 0.0)
    with pytest.raises(AssertionError, match="too many at once"):
        check(_full_of_callers("answer", 5), 2)


def test_ablation_budget_without_reservation_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only what is settled counts: calls at once pass the bound together."""

    def unreserved(self: Budgets, agent: str, partition: int, input_tokens: int) -> Reservation | None:
        account = self._agents[agent].accounts[partition]
        return Reservation(account, 0, 0) if account.tokens < SMALL_BUDGET else None

    monkeypatch.setattr(Budgets, "reserve", unreserved)
    with pytest.raises(AssertionError, match="more than the budget"):
        check(_full_of_callers("answer", 12), 64, SMALL_BUDGET)


def test_ablation_buckets_that_nobody_waits_for_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """More calls than the configured requests a minute."""
    monkeypatch.setattr(Buckets, "wait_s", lambda self, now, amounts: 0.0)
    with pytest.raises(AssertionError, match="more than the limit a minute"):
        check(_full_of_callers("answer", 25), 64)


def calls_at_total_failure() -> int:
    async def main(clock: Clock) -> int:
        run = Run.create(clock, 64)
        run.gate._line._buckets = Buckets(0, 0, 0)
        script = [Caller(index, 1, 200, "unavailable", None) for index in range(300)]
        tasks = [asyncio.ensure_future(run.call(caller, index)) for index, caller in enumerate(script)]
        await asyncio.gather(*tasks, return_exceptions=True)
        return len(run.model.started)

    return run_virtual(main, START_MS)


def test_ablation_breaker_that_never_opens_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """With it some twenty calls for three hundred alerts, without it one each."""
    assert FAILURES_IN_A_ROW <= calls_at_total_failure() <= 25
    monkeypatch.setattr(Breaker, "failed", lambda self, ticket, now: False)
    assert 300 == calls_at_total_failure()


def refused_of_a_side_that_takes(capacity: int) -> float:
    """The part of calls that a model's side refuses which serves so many at once, under more load than that."""

    @dataclass
    class Side(Model):
        refused: int = 0
        served: int = 0

        async def decide(self, request: ModelRequest) -> ModelAnswer:
            self.running += 1
            try:
                if self.running > capacity:
                    self.refused += 1
                    await asyncio.sleep(0.02)
                    raise ModelFailure(FailureCode.OVERLOADED, "full")
                await asyncio.sleep(0.2)
                self.served += 1
            finally:
                self.running -= 1
            return ModelAnswer(text="{}", model=self.name, stop_reason=StopReason.COMPLETE)

    async def main(clock: Clock) -> float:
        side = Side()
        gate = ModelGate(side, concurrency=64, attempt_ms=1_000)

        async def handler() -> None:
            loop = asyncio.get_running_loop()
            while loop.time() < 15:
                with contextlib.suppress(ModelFailure):
                    await gate.decide(ask(), loop.time() + 20)
                await asyncio.sleep(0.001)

        await asyncio.gather(*(handler() for _ in range(64)))
        return side.refused / (side.refused + side.served)

    return run_virtual(main, START_MS)


def test_ablation_calls_begun_about_a_revoked_partition_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """Callers that come one after another, of whom most wait when the partition is revoked."""
    script = [Caller(index, 4, 60, "answer", None) for index in range(12)]
    check(script, 1, loses=("agent", 6))
    monkeypatch.setattr(ModelGate, "revoked", lambda self, agent, partition: None)
    with pytest.raises(AssertionError, match="a partition that is revoked"):
        check(script, 1, loses=("agent", 6))


def test_ablation_additive_increase_alone_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """A side that takes eight at once refuses few calls of permits that are halved, and most of such that only grow."""
    assert 0.08 > refused_of_a_side_that_takes(8)
    monkeypatch.setattr(Permits, "overloaded", lambda self, epoch, now: None)
    monkeypatch.setattr(Breaker, "failed", lambda self, ticket, now: False)
    assert 0.5 < refused_of_a_side_that_takes(8)
