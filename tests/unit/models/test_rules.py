"""The offline model answers through the same text as a real one."""

import asyncio
import statistics
from collections.abc import Callable
from typing import Any

import msgspec
import pytest

from app.core.clock import Clock, run_virtual
from app.core.errors import SetupError
from app.models.base import FailureCode, ModelAnswer, ModelFailure, ModelRequest, parse_answer
from app.models.rules import RulesModel, lognormal_seconds


class Verdict(msgspec.Struct, frozen=True):
    action: str


def request(agent: str = "fraud", timeout_ms: int = 1_000, **context: Any) -> ModelRequest:
    return ModelRequest(
        agent=agent, instructions="", context_text="", context=context, answer_type=Verdict, timeout_ms=timeout_ms
    )


def judge(amount: int) -> Verdict:
    return Verdict("block" if amount > 10 else "approve")


def decide(
    rule: Callable[..., msgspec.Struct], asked: ModelRequest, seconds: float | Callable[[], float] = 0.0
) -> ModelAnswer:
    async def main(clock: Clock) -> ModelAnswer:
        return await RulesModel({"fraud": rule}, seconds=seconds).decide(asked)

    return run_virtual(main, 0)


def failure_of(rule: Callable[..., msgspec.Struct], asked: ModelRequest, seconds: float = 0.0) -> ModelFailure:
    with pytest.raises(ModelFailure) as caught:
        decide(rule, asked, seconds)
    return caught.value


def test_rules_model_context_reaches_the_rule() -> None:
    """The rule's arguments are the context's entries by name."""
    answer = decide(judge, request(amount=11))
    assert Verdict("block") == parse_answer(answer, Verdict)
    assert "rules" == answer.model


def test_rules_model_set_latency_is_kept_and_measured() -> None:
    """A set latency passes on the loop's clock."""
    assert 250 == decide(judge, request(amount=1), 0.25).model_ms


def test_rules_model_drawn_latency_is_drawn_for_each_call() -> None:
    """A distribution is asked anew."""
    draws = iter([0.1, 0.2])
    took_ms = [decide(judge, request(amount=1), lambda: next(draws)).model_ms for _ in range(2)]
    assert [100, 200] == took_ms


def test_rules_model_slower_than_the_limit_times_out() -> None:
    """A latency beyond the attempt's limit ends at the limit."""
    failure = failure_of(judge, request(timeout_ms=100, amount=1), 60.0)
    assert FailureCode.TIMEOUT is failure.code


def test_rules_model_agent_without_rule_is_a_setup_error() -> None:
    """The error names the agent and what to declare."""
    with pytest.raises(SetupError, match=r"--model: .* other "):
        decide(judge, request("other"))


def test_rules_model_failing_rule_is_an_invalid_answer() -> None:
    """A bug in a rule ends in the fallback, with what was raised."""
    failure = failure_of(judge, request(amount="many"))
    assert FailureCode.INVALID_ANSWER is failure.code
    assert "TypeError" in str(failure)


def test_rules_model_rule_may_fail_as_a_model_does() -> None:
    """A rule plays a failing model by raising its failure."""

    def overloaded(amount: int) -> Verdict:
        raise ModelFailure(FailureCode.OVERLOADED, "played")

    assert FailureCode.OVERLOADED is failure_of(overloaded, request(amount=1)).code


def test_rules_model_cancelled_call_ends_at_once() -> None:
    """Cancellation passes through the set latency."""

    async def main(clock: Clock) -> int:
        call = asyncio.ensure_future(RulesModel({"fraud": judge}, seconds=60.0).decide(request(timeout_ms=90_000)))
        await asyncio.sleep(1)
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        return clock.now_ms()

    assert 1_000 == run_virtual(main, 0)


def test_lognormal_seconds_has_the_median_and_tail_asked_for() -> None:
    """Half the draws lie below the median, one in a hundred above p99, and a seed repeats them."""
    draw, again = lognormal_seconds(0.8, 3.0, seed=7), lognormal_seconds(0.8, 3.0, seed=7)
    draws = [draw() for _ in range(20_000)]
    assert [again() for _ in range(20_000)] == draws
    assert 0.8 == pytest.approx(statistics.median(draws), rel=0.05)
    assert 0.01 == pytest.approx(sum(seconds > 3.0 for seconds in draws) / len(draws), abs=0.003)
