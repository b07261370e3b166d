"""The gate when the model's side fails, refuses or limits, and when there is no money: who is told what, and when it
ends."""

import asyncio
import contextlib
import time
from typing import Any

import msgspec
import pytest

from app.core.clock import Clock, run_virtual
from app.models.base import FailureCode, ModelFailure, ModelRequest, RateLimit, RateLimits
from app.models.breaker import FAILURES_IN_A_ROW
from app.models.buckets import LONGEST_REFILL_S, Buckets
from app.models.budget import Budget, Budgets
from app.models.gate import LONGEST_PAUSE_S, ModelGate
from app.models.pricing import KNOWN_PRICES
from tests.models_kit import ScriptedModel, code_of, request, virtual


def failing(code: FailureCode, **context: Any) -> ModelRequest:
    return request(0.01, fails=code, **context)


async def open_breaker(gate: ModelGate, loop: asyncio.AbstractEventLoop) -> None:
    for _ in range(FAILURES_IN_A_ROW):
        await code_of(gate.decide(failing(FailureCode.UNAVAILABLE), loop.time() + 60))


def test_gate_open_breaker_fails_at_once_and_says_until_when() -> None:
    """No call, no waiting; whoever has time comes again when it may be over."""
    model = ScriptedModel()

    async def main(loop: asyncio.AbstractEventLoop) -> tuple[float, int | None, str]:
        gate = ModelGate(model, concurrency=4, attempt_ms=1_000)
        await open_breaker(gate, loop)
        opened = loop.time()
        with pytest.raises(ModelFailure) as caught:
            await gate.decide(request(), loop.time() + 60)
        assert FailureCode.BREAKER_OPEN is caught.value.code
        assert "breaker_open: scripted is not called for 1.0 s, after unavailable: scripted" == str(caught.value)
        return loop.time() - opened, caught.value.retry_after_ms, gate.statistics().breaker

    assert (0.0, 1_000, "open") == virtual(main)
    assert FAILURES_IN_A_ROW == len(model.started)


def test_gate_opening_breaker_sends_away_who_waits() -> None:
    """They would only meet the same."""
    model = ScriptedModel()

    async def main(loop: asyncio.AbstractEventLoop) -> tuple[dict[str, int], float]:
        gate = ModelGate(model, concurrency=1, attempt_ms=1_000)
        await asyncio.gather(
            *(code_of(gate.decide(failing(FailureCode.UNAVAILABLE), loop.time() + 60)) for _ in range(50))
        )
        return gate.statistics().failures, loop.time()

    failures, took = virtual(main)
    assert {"unavailable": FAILURES_IN_A_ROW, "breaker_open": 50 - FAILURES_IN_A_ROW} == failures
    assert took < 0.2


def test_gate_after_a_good_probe_begins_with_one_call() -> None:
    """Sixty-four calls at once could fell again what has just got up."""
    model = ScriptedModel()

    async def main(loop: asyncio.AbstractEventLoop) -> tuple[int, int]:
        gate = ModelGate(model, concurrency=64, attempt_ms=1_000)
        for _ in range(20):
            await gate.decide(request(0.01), loop.time() + 60)
        before = gate.statistics().permits
        await open_breaker(gate, loop)
        await asyncio.sleep(1.0)
        await gate.decide(request(0.01), loop.time() + 60)
        assert "closed" == gate.statistics().breaker
        return before, gate.statistics().permits

    assert (21, 1) == virtual(main)


def test_gate_call_with_too_little_time_does_not_try_an_open_breaker() -> None:
    """An alert that has waited until the breaker lets one call through may have a moment left: its end would tell nothing,
    and keep the breaker open for longer. The next one tries."""
    model = ScriptedModel()

    async def main(loop: asyncio.AbstractEventLoop) -> tuple[FailureCode, int, str]:
        gate = ModelGate(model, concurrency=4, attempt_ms=1_000)
        await open_breaker(gate, loop)
        await asyncio.sleep(1.0)
        code = await code_of(gate.decide(request(0.1), loop.time() + 0.05))
        await gate.decide(request(0.1), loop.time() + 60)
        return code, gate.statistics().breaker_openings, gate.statistics().breaker

    assert (FailureCode.BREAKER_OPEN, 1, "closed") == virtual(main)
    assert FAILURES_IN_A_ROW + 1 == len(model.started)


def test_gate_hanging_model_is_noticed_by_few_callers() -> None:
    """Two handlers whose model hangs, eight seconds an attempt: after half a minute the breaker is open."""
    model = ScriptedModel()

    async def main(loop: asyncio.AbstractEventLoop) -> None:
        gate = ModelGate(model, concurrency=64, attempt_ms=8_000)

        async def handler() -> None:
            while loop.time() < 600:
                with contextlib.suppress(ModelFailure):
                    await gate.decide(request(3_600), loop.time() + 20)
                await asyncio.sleep(0.5)

        await asyncio.gather(handler(), handler())

    virtual(main)
    assert len(model.started) < 25


def test_gate_pause_that_was_asked_for_holds_for_everybody() -> None:
    """Who can wait waits, who cannot fails at once with the reason; it is bounded, whatever a header says."""
    model = ScriptedModel()

    async def main(loop: asyncio.AbstractEventLoop) -> tuple[FailureCode, float, float, float]:
        gate = ModelGate(model, concurrency=4, attempt_ms=1_000)
        asked = failing(FailureCode.OVERLOADED, retry_after_ms=5_000)
        waiting = asyncio.ensure_future(code_of(gate.decide(asked, loop.time() + 60)))
        await asyncio.sleep(0.02)
        await waiting
        hurried = await code_of(gate.decide(request(), loop.time() + 3))
        hurried_at = loop.time()
        await gate.decide(request(0.5), loop.time() + 60)
        patient_at = loop.time()
        await code_of(gate.decide(failing(FailureCode.OVERLOADED, retry_after_ms=10**9), loop.time() + 60))
        return hurried, hurried_at, patient_at, gate.statistics().paused_ms / 1000

    hurried, hurried_at, patient_at, paused_s = virtual(main)
    assert FailureCode.OVERLOADED is hurried
    assert hurried_at < 0.1
    assert 5.5 == pytest.approx(patient_at, abs=0.1)
    assert LONGEST_PAUSE_S == paused_s


@pytest.mark.parametrize("code", [FailureCode.UNAUTHORIZED, FailureCode.SPEND_LIMIT])
def test_gate_refused_account_tries_once_in_five_minutes_and_recovers(
    code: FailureCode, caplog: pytest.LogCaptureFixture
) -> None:
    """Nobody restarts anything: after it has been put right the next try succeeds."""
    model = ScriptedModel()

    async def main(loop: asyncio.AbstractEventLoop) -> list[float]:
        gate = ModelGate(model, concurrency=4, attempt_ms=1_000)
        at = []
        while loop.time() < 3_000:
            asked = failing(code) if loop.time() < 1_000 else request(0.01)
            calls = gate.statistics().calls
            with contextlib.suppress(ModelFailure):
                await gate.decide(asked, loop.time() + 20)
            if gate.statistics().calls > calls and loop.time() < 1_300:
                at.append(round(loop.time(), -1))
            await asyncio.sleep(5)
        assert "closed" == gate.statistics().breaker
        return at[:5]

    assert [0, 300, 600, 900, 1_200] == virtual(main)
    assert 1 == sum(record.levelname == "ERROR" for record in caplog.records)


def test_gate_without_budget_calls_nothing() -> None:
    """The reason is the agent's own, and no permit was waited for."""
    model = ScriptedModel()

    async def main(clock: Clock) -> tuple[FailureCode, int]:
        loop = asyncio.get_running_loop()
        budgets = Budgets(clock, KNOWN_PRICES, "rules")
        gate = ModelGate(model, concurrency=1, attempt_ms=1_000, budgets=budgets)
        gate.declare("agent", 1, Budget(tokens_a_day=5_000))
        gate.assigned("agent", 0, None)
        for _ in range(21):
            await gate.decide(request(0.01, partition=0), loop.time() + 60)
        return await code_of(gate.decide(request(0.01, partition=0), loop.time() + 60)), gate.statistics().waiting

    assert (FailureCode.NO_BUDGET, 0) == run_virtual(main, 0)
    assert 21 == len(model.started)  # of twenty tokens each: 420, and the next could take 4,596


def test_gate_charges_what_may_have_been_paid() -> None:
    """Tokens that came back with a failure, and the input of a call that broke off; nothing for an error's answer."""

    async def main(clock: Clock) -> list[int]:
        loop = asyncio.get_running_loop()
        budgets = Budgets(clock, KNOWN_PRICES, "rules")
        gate = ModelGate(ScriptedModel(), concurrency=1, attempt_ms=1_000, budgets=budgets)
        gate.declare("agent", 1, Budget(tokens_a_day=100_000))
        gate.assigned("agent", 0, None)
        seen = []
        for asked in (
            request(0.01, fails=FailureCode.INVALID_ANSWER, partition=0),
            request(0.01, fails=FailureCode.OVERLOADED, bare=True, partition=0),
            request(3_600, partition=0),
        ):
            await code_of(gate.decide(asked, loop.time() + 60))
            spent = gate.spent("agent", 0)
            assert spent is not None
            seen.append(spent.tokens)
        return seen

    assert [20, 20, 520] == run_virtual(main, 0)


def test_gate_tokens_reserved_by_estimate_come_back() -> None:
    """Five hundred of the thousand a minute are reserved for each call, and twelve are used."""

    async def main(loop: asyncio.AbstractEventLoop) -> list[float]:
        gate = ModelGate(ScriptedModel(), concurrency=8, attempt_ms=1_000, buckets=Buckets(0, 1_000, 0))
        ends = []
        for _ in range(4):
            await gate.decide(request(0.01), loop.time() + 100)
            ends.append(loop.time())
        await asyncio.gather(*(gate.decide(request(0.01), loop.time() + 100) for _ in range(4)))
        return [*ends, loop.time()]

    ends = virtual(main)
    assert ends[3] < 0.1
    assert ends[4] < 1.0


def test_gate_model_that_raises_something_else_leaves_nothing_behind() -> None:
    """A broken invariant propagates, and the next call is served."""

    async def main(loop: asyncio.AbstractEventLoop) -> tuple[int, int, str]:
        gate = ModelGate(ScriptedModel(), concurrency=1, attempt_ms=1_000)
        with pytest.raises(KeyError):
            await gate.decide(msgspec.structs.replace(request(), context={}), loop.time() + 60)
        await gate.decide(request(0.5), loop.time() + 60)
        statistics = gate.statistics()
        return statistics.in_flight, statistics.waiting, statistics.breaker

    assert (0, 0, "closed") == virtual(main)


def test_gate_share_follows_the_owned_partitions() -> None:
    """Half of the partitions: half of the limits."""

    async def main(loop: asyncio.AbstractEventLoop) -> list[int | None]:
        gate = ModelGate(ScriptedModel(), concurrency=1, attempt_ms=1_000, buckets=Buckets(1_200, 0, 0))
        gate.declare("agent", 4, None)
        seen = []
        for owned in range(2):
            gate.assigned("agent", owned, None)
            seen.append(gate.statistics().buckets["requests"].a_minute)
        gate.ended("agent", 0)
        seen.append(gate.statistics().buckets["requests"].a_minute)
        assert 0.25 == gate.statistics().share
        return seen

    assert [300, 600, 300] == virtual(main)


def test_gate_takes_no_more_than_the_headers_say_is_left() -> None:
    """Seven hundred output tokens: one call of the usual five hundred, and not a second, though the first call gives
    most of its own reservation back."""

    async def main(loop: asyncio.AbstractEventLoop) -> int:
        gate = ModelGate(ScriptedModel(), concurrency=8, attempt_ms=1_000)
        for _ in range(4):
            await gate.decide(request(0.01), loop.time() + 60)
        told = RateLimits(output_tokens=RateLimit(10_000, 700))
        await gate.decide(request(0.01, rates=told), loop.time() + 60)
        async with asyncio.TaskGroup() as tasks:
            for _ in range(3):
                tasks.create_task(gate.decide(request(0.5), loop.time() + 60))
            await asyncio.sleep(0.3)
            return gate.statistics().in_flight

    assert 1 == virtual(main)


def test_gate_line_that_is_far_too_long_is_not_joined() -> None:
    """One call a second and fifty that wait: who has twenty seconds is told at once, and who has sixty waits."""

    async def main(loop: asyncio.AbstractEventLoop) -> tuple[FailureCode, float, float]:
        gate = ModelGate(ScriptedModel(), concurrency=1, attempt_ms=2_000)
        async with asyncio.TaskGroup() as tasks:
            for _ in range(60):
                tasks.create_task(gate.decide(request(1.0), 100))
            await asyncio.sleep(10.5)
            code, told_at = await code_of(gate.decide(request(1.0), loop.time() + 20)), loop.time()
            await gate.decide(request(1.0), loop.time() + 60)
            served_at = loop.time()
        return code, told_at, served_at

    assert (FailureCode.DEADLINE, 10.5, 61.0) == virtual(main)


def test_gate_malformed_request_does_not_keep_the_probe() -> None:
    """What raises before there is anything to send leaves the breaker as it was: the next call tries it."""

    async def main(loop: asyncio.AbstractEventLoop) -> str:
        gate = ModelGate(ScriptedModel(), concurrency=4, attempt_ms=1_000)
        await open_breaker(gate, loop)
        await asyncio.sleep(1.0)
        with pytest.raises(AttributeError):
            await gate.decide(msgspec.structs.replace(request(), instructions=b"Judge this."), loop.time() + 20)
        await gate.decide(request(0.01), loop.time() + 20)
        return gate.statistics().breaker

    assert "closed" == virtual(main)


def test_gate_header_whose_reset_is_far_away_holds_it_back_for_minutes_only(caplog: pytest.LogCaptureFixture) -> None:
    """Nothing is left and all of it is back in thirty days, a header says: calls are tried all the same, and the log says
    what the header did."""

    async def main(loop: asyncio.AbstractEventLoop) -> int:
        gate = ModelGate(ScriptedModel(), concurrency=4, attempt_ms=1_000)
        told = RateLimits(requests=RateLimit(50, 0, 30 * 86_400_000))
        await gate.decide(request(0.01, rates=told), loop.time() + 20)
        served = 0
        for _ in range(24):
            await asyncio.sleep(LONGEST_REFILL_S / 50)
            await gate.decide(request(0.01), loop.time() + 1)
            served += 1
        return served

    assert 24 == virtual(main)
    assert ["scripted says that a limit is whole again in 2592000 s; the gate reckons with 300 s"] == caplog.messages


def test_gate_agent_with_little_time_is_served_beside_a_long_backlog() -> None:
    """One call a second; sixty-four alerts of one agent wait for up to a minute, and one of another for five seconds."""

    async def main(loop: asyncio.AbstractEventLoop) -> int:
        gate = ModelGate(ScriptedModel(), concurrency=64, attempt_ms=4_000, buckets=Buckets(60, 0, 0))

        async def patient() -> None:
            while loop.time() < 600:
                with contextlib.suppress(ModelFailure):
                    await gate.decide(request(0.3, "patient"), loop.time() + 60)
                await asyncio.sleep(0.1)

        served = 0
        async with asyncio.TaskGroup() as tasks:
            for _ in range(64):
                tasks.create_task(patient())
            await asyncio.sleep(120)
            for _ in range(40):
                await gate.decide(request(0.3, "hurried"), loop.time() + 5)
                served += 1
                await asyncio.sleep(10)
        return served

    assert 40 == virtual(main)


async def one_failure_short_of_open(gate: ModelGate, loop: asyncio.AbstractEventLoop) -> None:
    for _ in range(FAILURES_IN_A_ROW - 1):
        await code_of(gate.decide(request(0.0, fails=FailureCode.UNAVAILABLE), loop.time() + 60))


async def test_gate_call_given_up_at_its_deadline_from_outside_is_a_failure() -> None:
    """A handler keeps the same deadline outside: on a busy loop both limits are noticed in one step, and the call is
    cancelled. A model that hangs is a model that hangs."""
    loop = asyncio.get_running_loop()
    gate = ModelGate(ScriptedModel(), concurrency=4, attempt_ms=40)
    await one_failure_short_of_open(gate, loop)
    deadline = loop.time() + 0.04
    loop.call_at(deadline - 0.01, time.sleep, 0.02)
    with pytest.raises(TimeoutError):
        async with asyncio.timeout_at(deadline):
            await gate.decide(request(3_600), deadline)
    assert ("open", 1) == (gate.statistics().breaker, gate.statistics().breaker_openings)


def test_gate_call_given_up_before_its_deadline_tells_nothing() -> None:
    """A partition went, or a handler had its own reasons."""

    async def main(loop: asyncio.AbstractEventLoop) -> str:
        gate = ModelGate(ScriptedModel(), concurrency=4, attempt_ms=400)
        await one_failure_short_of_open(gate, loop)
        call = asyncio.ensure_future(gate.decide(request(3_600), loop.time() + 0.4))
        loop.call_later(0.3, call.cancel)
        await asyncio.wait([call])
        return gate.statistics().breaker

    assert "closed" == virtual(main)


def test_gate_refusals_say_that_nothing_was_tried() -> None:
    """They use up no attempt of the alert; a call that failed does."""

    async def main(loop: asyncio.AbstractEventLoop) -> list[tuple[str, bool]]:
        gate = ModelGate(ScriptedModel(), concurrency=4, attempt_ms=1_000)
        failures = []

        async def failure_of(asked: ModelRequest, seconds: float) -> None:
            with pytest.raises(ModelFailure) as caught:
                await gate.decide(asked, loop.time() + seconds)
            failures.append((caught.value.code.value, caught.value.was_tried))

        await failure_of(failing(FailureCode.RATE_LIMITED, retry_after_ms=5_000), 60)
        await failure_of(request(), 3)
        await open_breaker(gate, loop)
        await failure_of(request(), 60)
        await gate.close()
        await failure_of(request(), 60)
        return failures

    assert [
        ("rate_limited", True),
        ("rate_limited", False),
        ("breaker_open", False),
        ("gate_closed", False),
    ] == virtual(main)


def test_gate_budget_that_a_prompt_does_not_fit_into_says_so(caplog: pytest.LogCaptureFixture) -> None:
    """How long a prompt is shows at its first call only: then the line says that no day's budget pays it."""

    async def main(clock: Clock) -> None:
        budgets = Budgets(clock, KNOWN_PRICES, "rules")
        gate = ModelGate(ScriptedModel(), concurrency=1, attempt_ms=1_000, budgets=budgets)
        gate.declare("agent", 2, Budget(tokens_a_day=10_000))
        gate.assigned("agent", 0, None)
        asked = msgspec.structs.replace(request(partition=0), instructions="Judge. " * 300)
        with pytest.raises(ModelFailure, match="pays no such call, however little is spent: it may take 1200 tokens"):
            await gate.decide(asked, asyncio.get_running_loop().time() + 20)

    run_virtual(main, 0)
    assert 1 == len(caplog.messages)
