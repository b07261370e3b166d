"""The offline model: rules in plain Python answer, through the same text and the same validation as a real one."""

import asyncio
import math
import random
from collections.abc import Callable, Iterable, Mapping

import msgspec

from app.core.codec import encode
from app.core.errors import SetupError
from app.core.text import one_line
from app.models.base import FailureCode, ModelAnswer, ModelFailure, ModelRequest, StopReason

Rule = Callable[..., msgspec.Struct]

_P99_DEVIATIONS = 2.326
"""How many standard deviations the 99th percentile of a normal distribution lies above its middle."""


def require_rules(rules: Mapping[str, Rule], agents: Iterable[str]) -> None:
    """Raises: SetupError for agents that have no rule to answer them."""
    missing = sorted(set(agents) - rules.keys())
    if missing:
        raise SetupError("--model", f"rules needs a rule of every agent; declare {', '.join(missing)} with rules=...")


class RulesModel:
    """Answers each agent by its rule, `rule(**context)`, which returns the decision's struct.

    seconds: how long an answer takes, fixed or drawn anew for each call, so that benchmarks have a model of known
    latency. A rule may raise ModelFailure; whatever else it raises is an invalid answer.
    """

    name = "rules"

    def __init__(self, rules: Mapping[str, Rule], *, seconds: float | Callable[[], float] = 0.0) -> None:
        self._rules = rules
        self._seconds = seconds

    async def decide(self, request: ModelRequest) -> ModelAnswer:
        """Raises: SetupError for an agent without a rule, which `require_rules` finds at the start; ModelFailure."""
        require_rules(self._rules, [request.agent])
        rule = self._rules[request.agent]
        loop = asyncio.get_running_loop()
        started = loop.time()
        seconds = self._seconds() if callable(self._seconds) else self._seconds
        await asyncio.sleep(min(seconds, request.timeout_ms / 1000))
        if seconds > request.timeout_ms / 1000:
            raise ModelFailure(FailureCode.TIMEOUT, f"no answer within {request.timeout_ms} ms")
        text = _answer_text(rule, request)
        model_ms = round((loop.time() - started) * 1000)
        return ModelAnswer(text=text, model=self.name, stop_reason=StopReason.COMPLETE, model_ms=model_ms)

    async def close(self) -> None:
        """Nothing is open."""


def lognormal_seconds(median_seconds: float, p99_seconds: float, seed: int) -> Callable[[], float]:
    """A latency as networks have it: half the draws below the median, one in a hundred above p99. Same seed, same draws.

    Both are greater than 0, p99 not below the median.
    """
    draw = random.Random(seed).lognormvariate
    middle = math.log(median_seconds)
    deviation = (math.log(p99_seconds) - middle) / _P99_DEVIATIONS
    return lambda: draw(middle, deviation)


def _answer_text(rule: Rule, request: ModelRequest) -> str:
    try:
        return encode(rule(**request.context)).decode()
    except ModelFailure:
        raise
    except Exception as error:
        reason = one_line(f"the rule of {request.agent} raised {type(error).__name__}: {error}")
        raise ModelFailure(FailureCode.INVALID_ANSWER, reason) from error
