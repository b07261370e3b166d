"""Safeguards against a model that fails, taken out of a worker, one at a time; and a seam that only saves time."""

from typing import Any

from app.core.record import Record
from app.decisions import handling
from app.decisions.agent import Agent
from app.decisions.context import Context
from app.decisions.handling import AgentWork
from app.decisions.outcome import Failure
from app.models import breaker, gate
from app.models.breaker import Breaker
from app.streams.graph import Alert

REFUSED_S = 6.0
"""Longer than the deadlines of those rows: nobody waits for the next try."""

LONG_ATTEMPT_MS = 6_000


def refusals_last_seconds() -> None:
    """No ablation: what no retry mends is tried again after 6 s instead of five minutes, so that a row sees it."""
    breaker.REFUSED_OPEN_S = REFUSED_S


def breaker_never_opens() -> None:
    """Calls a model that has failed again and again."""
    Breaker.failed = lambda self, ticket, now: False  # type: ignore[method-assign]


def refusals_count_as_answers() -> None:
    """Takes a spend limit, or a wrong key, for something that concerns one call."""
    gate._REFUSALS = frozenset()


def deadlines_are_not_kept() -> None:
    """Lets handlers run on, and a model call for six seconds."""
    make: Any = AgentWork._context

    def endless(self: AgentWork, record: Record, alert: Alert) -> Context:
        context: Context = make(self, record, alert)
        context.deadline += 3_600
        self._gate._attempt_ms = LONG_ATTEMPT_MS
        return context

    AgentWork._context = endless  # type: ignore[method-assign]


def failures_approve() -> None:
    """Lets pass what nobody could judge."""
    conclude: Any = vars(handling)["conclude"]

    def indulgent(agent: Agent[Any], alert: Alert, answer: Any, *others: Any) -> Any:
        if isinstance(answer, Failure):
            answer = agent.decides(action="approve", risk_level="LOW", reason=answer.detail)
            return conclude(agent, alert, answer, ())
        return conclude(agent, alert, answer, *others)

    handling.conclude = indulgent  # type: ignore[assignment, attr-defined]
