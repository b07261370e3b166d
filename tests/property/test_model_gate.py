"""The gate under arbitrary callers: nothing is lost, no bound is passed, nobody overtakes; and what shows if a part of it
is taken out."""

import asyncio
import contextlib
from collections import deque
from dataclasses import dataclass, field
from itertools import pairwise, product
from typing import Any, NamedTuple

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.core.clock import Clock, run_virtual
from app.models import gate as gate_module
from app.models.base import FailureCode, ModelAnswer, ModelFailure, ModelRequest, RateLimit, RateLimits, StopReason
from app.models.breaker import FAILURES_IN_A_ROW, REFUSED_OPEN_S, Breaker
from app.models.buckets import Buckets
from app.models.budget import Budget, Budgets, Reservation, Spent
from app.models.gate import ModelGate
from app.models.line import Line, Place
from app.models.permits import Permits
from app.models.pricing import KNOWN_PRICES

START_MS = 1_700_000_000_000
MODEL = "claude-sonnet-4-6"
LARGE_BUDGET, SMALL_BUDGET = 1_000_000, 12_000
REQUESTS_A_MINUTE = 12
LONG_S = 3_600.0


class Verdict(msgspec.Struct, frozen=True):
    action: str


class Caller(NamedTuple):
    """comes, takes, left: tenths of a second. ends: how its call ends. cancelled: after tenths, and so many steps."""

    comes: int
    takes: int
    left: int
    ends: str
    cancelled: tuple[int, int] | None


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
        st.sampled_from(["answer", "answer", "answer", "told", "raises", *ENDS]),
        st.none() | st.tuples(st.integers(0, 15), st.integers(0, 5)),
    ),
    max_size=25,
)


@dataclass
class Model:
    """Does what a request's context says, and notes what the properties are about."""

    name: str = MODEL
    started: list[tuple[float, int]] = field(default_factory=list)
    """When, and whose."""
    running: int = 0
    most_running: int = 0

    async def decide(self, request: ModelRequest) -> ModelAnswer:
        self.started.append((asyncio.get_running_loop().time(), request.context["index"]))
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
        rates = RateLimits(requests=RateLimit(100, 3, 20_000)) if ends == "told" else None
        return ModelAnswer(
            text="{}",
            model=self.name,
            stop_reason=StopReason.COMPLETE,
            input_tokens=900,
            output_tokens=300,
            rates=rates,
        )

    async def close(self) -> None:
        """Nothing is open."""


@dataclass
class Run:
    """A gate with its model, and who came in which order."""

    gate: ModelGate
    model: Model
    came: list[int] = field(default_factory=list)

    @classmethod
    def create(cls, clock: Clock, concurrency: int, tokens_a_day: int = LARGE_BUDGET) -> "Run":
        model = Model()
        budgets = Budgets(clock, KNOWN_PRICES, MODEL)
        buckets = Buckets(REQUESTS_A_MINUTE, 0, 0)
        gate = ModelGate(model, concurrency=concurrency, attempt_ms=400, buckets=buckets, budgets=budgets)
        gate.declare("agent", 1, Budget(tokens_a_day=tokens_a_day))
        gate.assigned("agent", 0, None)
        return cls(gate, model)

    async def call(self, caller: Caller, index: int) -> ModelAnswer:
        await asyncio.sleep(caller.comes / 10)
        self.came.append(index)
        deadline = asyncio.get_running_loop().time() + caller.left / 10
        try:
            return await self.gate.decide(ask(caller.takes, caller.ends, index), deadline)
        finally:
            assert asyncio.get_running_loop().time() <= deadline + 0.001

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


def ask(takes: int = 1, ends: str = "answer", index: int = -1) -> ModelRequest:
    return ModelRequest(
        agent="agent",
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
    expected = (ModelAnswer, ModelFailure, asyncio.CancelledError, ZeroDivisionError)
    assert [] == [outcome for outcome in outcomes if not isinstance(outcome, expected)]


async def still_serves(run: Run) -> None:
    """A day later, when nothing that passes can stand in the way: one answer."""
    await asyncio.sleep(86_400)
    answer = await run.gate.decide(ask(), asyncio.get_running_loop().time() + LONG_S)
    assert "{}" == answer.text


def check(script: list[Caller], concurrency: int, tokens_a_day: int = LARGE_BUDGET) -> None:
    """Every promise about one script of callers."""

    async def main(clock: Clock) -> None:
        run = Run.create(clock, concurrency, tokens_a_day)
        await play(run, script)
        assert run.nothing_held(), "something is not given back"
        assert concurrency >= run.model.most_running, "too many at once"
        started_at = {index: time_s for time_s, index in run.model.started}
        in_order = [started_at[index] for index in run.came if index in started_at]
        assert sorted(in_order) == in_order, "somebody overtook"
        times = [time_s for time_s, _ in run.model.started]
        for count, (first, last) in enumerate(product(times[:1], times), start=1):
            assert count <= REQUESTS_A_MINUTE * (1 + (last - first) / 60) + 0.001, "more than the limit a minute"
        spent = run.gate.spent("agent", 0)
        assert spent is not None
        assert tokens_a_day >= spent.tokens, "more than the budget"
        await still_serves(run)

    run_virtual(main, START_MS)


@settings(max_examples=400)
@given(script=callers, concurrency=st.integers(1, 4), tokens_a_day=st.sampled_from([LARGE_BUDGET, SMALL_BUDGET]))
def test_gate_after_any_callers_is_as_before_and_serves(
    script: list[Caller], concurrency: int, tokens_a_day: int
) -> None:
    """Whoever comes, waits, fails, is late or is cancelled at whatever step: permits and reservations return to zero, no
    bound is passed, nobody overtakes, no call outlives its deadline, and the gate still serves."""
    check(script, concurrency, tokens_a_day)


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
        call.place = await self._wait(call, deadline)
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

    async def enter(self: Line, amounts: Any, deadline: float) -> Place:
        place = Place(amounts, deadline, asyncio.get_running_loop().create_future())
        self._waiting.append(place)
        self.tick()
        try:
            async with asyncio.timeout_at(deadline):
                await place.goes
        except BaseException:
            if place in self._waiting:
                self._waiting.remove(place)
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

    init = Line.__init__

    def stacked(self: Line, permits: Permits, buckets: Buckets) -> None:
        init(self, permits, buckets)
        self._waiting = Stack()

    monkeypatch.setattr(Line, "__init__", stacked)
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


def test_ablation_additive_increase_alone_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """A side that takes eight at once refuses few calls of permits that are halved, and most of such that only grow."""
    assert 0.08 > refused_of_a_side_that_takes(8)
    monkeypatch.setattr(Permits, "overloaded", lambda self, epoch, now: None)
    monkeypatch.setattr(Breaker, "failed", lambda self, ticket, now: False)
    assert 0.5 < refused_of_a_side_that_takes(8)


@given(
    owners=st.lists(st.permutations([0, 0, 1, 1]), min_size=1, max_size=4),
    calls=st.lists(st.tuples(st.integers(0, 3), st.integers(1, 4_000)), max_size=60),
)
def test_budgets_under_any_change_of_owners_are_never_exceeded(
    owners: list[list[int]], calls: list[tuple[int, int]]
) -> None:
    """Two processes, four partitions that move between them with what was spent: the sum keeps below the budget."""
    budget = 60_000

    async def main(clock: Clock) -> None:
        processes = [Budgets(clock, KNOWN_PRICES, MODEL) for _ in range(2)]
        for process in processes:
            process.declare("agent", Budget(tokens_a_day=budget), 4)
        log: dict[int, Spent | None] = dict.fromkeys(range(4))
        total = 0
        share = len(calls) // len(owners) + 1
        for number, owned in enumerate(owners):
            for partition, owner in enumerate(owned):
                processes[owner].assigned("agent", partition, log[partition])
                processes[1 - owner].ended("agent", partition)
            for partition, output in calls[number * share : (number + 1) * share]:
                process = processes[owned[partition]]
                reservation = process.reserve("agent", partition, 100)
                assert process.reserve("other", partition, 100) is not None
                if reservation is not None:
                    process.settle(reservation, used(output))
                    total += 100 + output
                    log[partition] = process.spent("agent", partition)
        assert budget >= total
        assert all(one.tokens <= budget // 4 for one in log.values() if one is not None)

    run_virtual(main, START_MS)


def used(output: int) -> Any:
    return ModelAnswer(
        text="", model=MODEL, stop_reason=StopReason.COMPLETE, input_tokens=100, output_tokens=output
    ).usage


@given(st.lists(st.sampled_from(["take", "back", "good", "bad", "pause", "restart"]), max_size=80), st.integers(1, 9))
def test_permits_under_any_events_keep_their_bounds(events: list[str], most: int) -> None:
    """At least one, at most `most`; a decrease at most once an epoch."""
    permits = Permits(most)
    out: list[int] = []
    allowed: list[tuple[str, int]] = []
    for index, event in enumerate(events):
        now = index * 0.4
        epoch = out[0] if out else 0
        if event == "take" and permits.wait_s(now) == 0:
            out.append(permits.take(now))
        elif event == "back" and out:
            permits.give_back()
            out.pop(0)
        elif event == "good":
            permits.succeeded(epoch, now)
        elif event == "bad":
            permits.overloaded(epoch, now)
            before = permits.allowed(now)
            permits.overloaded(epoch, now)
            assert before == permits.allowed(now)
        elif event == "pause":
            permits.close(now + 1.0)
        elif event == "restart":
            permits.restart()
        allowed.append((event, permits.allowed(now)))
        assert 1 <= permits.allowed(now) <= most
    for (_, before), (event, after) in pairwise(allowed):
        assert after >= before or event in ("bad", "pause", "restart")
