"""The gate: time first, permits in order, and every permit comes back."""

import asyncio

import pytest

from app.models.base import FailureCode, ModelFailure
from app.models.gate import LEAST_ATTEMPT_MS, GateStatistics, ModelGate
from tests.models_kit import ScriptedModel, code_of, request, steps, virtual


@pytest.mark.parametrize("left_seconds", [-5.0, 0.0, LEAST_ATTEMPT_MS / 1000 - 0.001])
def test_gate_deadline_that_no_call_fits_calls_no_model(left_seconds: float) -> None:
    """Passed, or so near that no round trip fits: the model is not asked."""
    model = ScriptedModel()

    async def main(loop: asyncio.AbstractEventLoop) -> FailureCode:
        gate = ModelGate(model, concurrency=1, attempt_ms=1_000)
        return await code_of(gate.decide(request(), loop.time() + left_seconds))

    assert FailureCode.DEADLINE is virtual(main)
    assert [] == model.started


def test_gate_passed_deadline_does_not_join_the_queue() -> None:
    """The deadline is judged before everything else, at once, also while all permits are taken."""

    async def main(loop: asyncio.AbstractEventLoop) -> None:
        gate = ModelGate(ScriptedModel(), concurrency=1, attempt_ms=10_000)
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(gate.decide(request(), loop.time() + 60))
            await steps(2)
            with pytest.raises(ModelFailure, match="deadline: 0 ms are left"):
                gate.decide(request(), loop.time() - 1).send(None)

    virtual(main)


@pytest.mark.parametrize(
    ("left_seconds", "timeout_ms", "code"),
    [(60.0, 1_000, FailureCode.TIMEOUT), (0.5, 500, FailureCode.DEADLINE)],
)
def test_gate_slow_call_ends_at_the_nearer_limit(left_seconds: float, timeout_ms: int, code: FailureCode) -> None:
    """An attempt's limit is a timeout, to be retried; the alert's own end is its deadline."""
    model = ScriptedModel()

    async def main(loop: asyncio.AbstractEventLoop) -> tuple[FailureCode, float]:
        gate = ModelGate(model, concurrency=1, attempt_ms=1_000)
        return await code_of(gate.decide(request(3_600), loop.time() + left_seconds)), loop.time()

    assert (code, timeout_ms / 1000) == virtual(main)
    assert [timeout_ms] == model.timeouts_ms


def test_gate_model_that_times_out_itself_at_the_deadline_is_a_deadline() -> None:
    """Who notices first does not change the reason."""

    async def main(loop: asyncio.AbstractEventLoop) -> FailureCode:
        gate = ModelGate(ScriptedModel(), concurrency=1, attempt_ms=1_000)
        return await code_of(gate.decide(request(0.1, fails=FailureCode.TIMEOUT), loop.time() + 0.5))

    assert FailureCode.DEADLINE is virtual(main)


def test_gate_more_callers_than_permits_run_in_order_of_coming() -> None:
    """First come, first served, and never more at once than agreed."""
    model = ScriptedModel()
    names = [f"a{i}" for i in range(20)]

    async def main(loop: asyncio.AbstractEventLoop) -> float:
        gate = ModelGate(model, concurrency=3, attempt_ms=10_000)
        await asyncio.gather(*(gate.decide(request(1.0, name), loop.time() + 60) for name in names))
        return loop.time()

    assert 8.0 == pytest.approx(virtual(main))  # one, two, and then three at once
    assert names == model.started
    assert 3 == model.most_running


def test_gate_newcomer_does_not_overtake_who_waits() -> None:
    """A caller that comes in the moment a permit is free still goes behind those who waited."""
    model = ScriptedModel()

    async def main(loop: asyncio.AbstractEventLoop) -> None:
        gate = ModelGate(model, concurrency=1, attempt_ms=10_000)

        async def first_then_again() -> None:
            await gate.decide(request(1.0, "first"), loop.time() + 60)
            await gate.decide(request(1.0, "again"), loop.time() + 60)

        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(first_then_again())
            tasks.create_task(gate.decide(request(1.0, "second"), loop.time() + 60))
            tasks.create_task(gate.decide(request(1.0, "third"), loop.time() + 60))

    virtual(main)
    assert ["first", "second", "third", "again"] == model.started


def test_gate_deadline_while_waiting_frees_the_place() -> None:
    """Who waits in vain fails in time, without a call, and those behind move up."""
    model = ScriptedModel()

    async def main(loop: asyncio.AbstractEventLoop) -> tuple[FailureCode, float]:
        gate = ModelGate(model, concurrency=1, attempt_ms=10_000)
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(gate.decide(request(5.0, "holder"), loop.time() + 60))
            await steps(2)
            hurried = tasks.create_task(code_of(gate.decide(request(1.0, "hurried"), loop.time() + 2)))
            await steps(2)
            tasks.create_task(gate.decide(request(1.0, "patient"), loop.time() + 60))
            code, gave_up = await hurried, loop.time()
        return code, gave_up

    code, gave_up = virtual(main)
    assert FailureCode.DEADLINE is code
    assert 2 - LEAST_ATTEMPT_MS / 1000 == pytest.approx(gave_up)
    assert ["holder", "patient"] == model.started


def test_gate_statistics_count_what_happened() -> None:
    """Calls, answers, failures by code, and the tokens of all that came back, also with a failure."""

    async def main(loop: asyncio.AbstractEventLoop) -> GateStatistics:
        gate = ModelGate(ScriptedModel(), concurrency=2, attempt_ms=2_000)
        await gate.decide(request(), loop.time() + 60)
        await code_of(gate.decide(request(fails=FailureCode.OVERLOADED), loop.time() + 60))
        await code_of(gate.decide(request(3_600), loop.time() + 60))
        await code_of(gate.decide(request(), loop.time()))
        return gate.statistics()

    statistics = virtual(main)
    assert (3, 1, 0, 0) == (statistics.calls, statistics.answers, statistics.in_flight, statistics.waiting)
    assert {"overloaded": 1, "timeout": 1, "deadline": 1} == statistics.failures
    assert (20, 10, 6, 4) == (
        statistics.input_tokens,
        statistics.output_tokens,
        statistics.cache_read_tokens,
        statistics.cache_write_tokens,
    )


def test_gate_statistics_show_who_runs_and_who_waits() -> None:
    """While calls run."""

    async def main(loop: asyncio.AbstractEventLoop) -> tuple[int, int]:
        gate = ModelGate(ScriptedModel(), concurrency=2, attempt_ms=10_000)
        await gate.decide(request(), loop.time() + 60)
        async with asyncio.TaskGroup() as tasks:
            for _ in range(5):
                tasks.create_task(gate.decide(request(), loop.time() + 60))
            await steps(3)
            statistics = gate.statistics()
        return statistics.in_flight, statistics.waiting

    assert (2, 3) == virtual(main)


def test_gate_closed_begins_no_call() -> None:
    """After closing, those who waited and those who come are refused, to be decided by the next process."""
    model = ScriptedModel()

    async def main(loop: asyncio.AbstractEventLoop) -> list[FailureCode]:
        gate = ModelGate(model, concurrency=1, attempt_ms=10_000)
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(gate.decide(request(1.0, "running"), loop.time() + 60))
            await steps(2)
            waiting = tasks.create_task(code_of(gate.decide(request(), loop.time() + 60)))
            await steps(2)
            await gate.close()
        return [await waiting, await code_of(gate.decide(request(), loop.time() + 60))]

    assert [FailureCode.GATE_CLOSED] * 2 == virtual(main)
    assert model.closed
    assert ["running"] == model.started


def test_gate_that_begins_turns_nobody_away_for_its_first_pace() -> None:
    """It begins with one call, and a few slow ones at first make the first turns far apart; then the number doubles, and all
    are served in half of their time."""

    async def main(loop: asyncio.AbstractEventLoop) -> list[float]:
        gate, ended = ModelGate(ScriptedModel(), concurrency=64, attempt_ms=10_000), list[float]()

        async def decide(number: int, after_s: float) -> None:
            await asyncio.sleep(after_s)
            seconds = 6.0 if 1 <= number <= 3 else 1.0
            await gate.decide(request(seconds), loop.time() + 20)
            ended.append(loop.time() - after_s)

        async with asyncio.TaskGroup() as tasks:
            for number in range(104):
                tasks.create_task(decide(number, 0 if number < 64 else 6 + 0.05 * (number - 64)))
        return ended

    ended = virtual(main)
    assert (104, True) == (len(ended), max(ended) < 14)
