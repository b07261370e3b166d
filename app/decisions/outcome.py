"""What one run of a handler comes to: its decision after policy, or the agent's fallback with the reason.

Nothing is written here: `handling` writes what comes out, `replay` compares it with what was written.
"""

import asyncio
from dataclasses import dataclass
from typing import Any

import msgspec

from app.core.codec import encode
from app.core.errors import HeadraceError, Unavailable
from app.core.text import one_line
from app.decisions.agent import Agent
from app.decisions.context import Context
from app.decisions.decision import Decision, Reason
from app.decisions.policy import Barred, Judged, judge, nothing_barred
from app.dispatch.work import Crashed
from app.models.base import ModelFailure
from app.streams.graph import Alert


@dataclass(frozen=True)
class Failure:
    """Why the agent's fallback must speak: a reason code, and one line for a person (of `core.text.one_line`)."""

    code: str
    detail: str


@dataclass(frozen=True)
class Outcome:
    """A decision after policy. answered: what the agent said, None where its fallback spoke. codes: why that did."""

    answered: Decision | None
    judged: Judged[Any]
    codes: tuple[str, ...]

    @property
    def asked(self) -> Decision:
        """What policy was asked about."""
        return self.answered if self.answered is not None else self.judged.decision

    @property
    def reasons(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys((*self.codes, *self.judged.reasons)))


async def answer_of(agent: Agent[Any], alert: Alert, context: Context) -> Decision | Failure:
    """The handler's decision, validated, or why there is none. Raises what is worth another attempt."""
    limit = asyncio.timeout_at(context.deadline)
    try:
        async with limit:
            answer = await agent.handler(alert, context)
    except ModelFailure as failure:
        if failure.retriable and (failure.retry_after_ms or 0) < context.remaining_ms:
            raise
        return Failure(failure.code.value, one_line(failure.message))
    except Unavailable:
        raise
    except HeadraceError as error:
        return Failure(Reason.HANDLER_FAILED, one_line(error))
    except asyncio.CancelledError:
        task = asyncio.current_task()
        if task is None or task.cancelling():
            raise
        return Failure(Reason.HANDLER_FAILED, "the handler was cancelled from inside")
    except TimeoutError:
        if not limit.expired():
            raise
    if limit.expired():  # also where the handler has swallowed its cancellation
        return Failure(Reason.DEADLINE, f"no decision within {agent.deadline_ms} ms")
    return _validated(agent.decides, answer)


def _validated(decides: type[Decision], answer: object) -> Decision | Failure:
    """Whatever a handler built is checked as if it came over the wire."""
    if not isinstance(answer, decides):
        return Failure(Reason.WRONG_ANSWER, f"the handler returned {type(answer).__name__}, not {decides.__name__}")
    try:
        checked: Decision = msgspec.json.decode(encode(answer), type=decides)
    except (msgspec.MsgspecError, ValueError, TypeError, RecursionError) as error:
        return Failure(Reason.WRONG_ANSWER, f"the handler returned no valid {decides.__name__}: {one_line(error)}")
    return checked


def conclude(
    agent: Agent[Any],
    alert: Alert,
    answer: Decision | Failure,
    concerns: tuple[Reason, ...],
    barred: Barred = nothing_barred,
) -> Outcome | None:
    """The answer after policy; where there is none the fallback's decision, which policy may only raise.

    None where nothing may stand in for a failure: the agent declares no fallback.
    """
    if isinstance(answer, Decision):
        return Outcome(answer, judge(agent.policy, alert, answer, concerns, agent.fallback, barred=barred), ())
    if agent.fallback is None:
        return None
    fallen = agent.fallback.decision(agent.decides, answer.code, answer.detail)
    judged = judge(agent.policy, alert, fallen, concerns, agent.fallback, may_lower=False, barred=barred)
    return Outcome(None, judged, (answer.code,))


def failure_of(error: Exception, attempts: int) -> Failure:
    """Why no attempt has settled an alert."""
    detail = f"{one_line(error)} (attempt {attempts})"
    match error:
        case ModelFailure():
            return Failure(error.code.value, f"{one_line(error.message)} (attempt {attempts})")
        case Unavailable():
            return Failure(Reason.UNAVAILABLE, detail)
        case Crashed():
            return Failure(Reason.CRASHED, one_line(error))
        case _:
            return Failure(Reason.HANDLER_FAILED, f"{type(error).__name__}: {detail}")
