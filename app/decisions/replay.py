"""Decides again what was decided, offline, from what the record holds: with the recorded answer, or by another model.

The agent's handler of today runs once more; what it asks for features is answered from the record, and so is what it asks
the model, unless there is another one. Policy is today's too. So a changed prompt, context, type or policy shows as what
it is, a difference. Nothing is written and nothing acts.
"""

import asyncio
from collections import Counter, deque
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass, field
from random import Random
from typing import Any

import msgspec

from app.core.clock import ManualClock
from app.core.codec import encode
from app.core.errors import HeadraceError, Rejected, Unavailable
from app.core.record import Record
from app.core.text import one_line
from app.decisions.agent import Agent
from app.decisions.context import Context, Gate, origin_of, raw
from app.decisions.decision import Decision, Reason
from app.decisions.history import Found
from app.decisions.log import ALERT_CUT, CUT
from app.decisions.outcome import Failure, Outcome, answer_of, conclude, failure_of
from app.decisions.policy import Barred, change_between
from app.decisions.record import DecisionRecord, ModelUse, sha256
from app.dispatch.retries import RetryPolicy
from app.models.base import UNTRIED, FailureCode, Model, ModelAnswer, ModelFailure, ModelRequest, StopReason
from app.serving.base import Features
from app.serving.features import Origin
from app.streams.graph import Alert

PROMPT_CHANGED = "prompt changed"
CONTEXT_CHANGED = "context changed"

_JUDGED_AGAIN = frozenset({"refused", "truncated", "context_too_long", "invalid_answer"})
"""Failures that `parse_answer` finds in an answer: it is asked again, since what it expects may have changed."""

_ASKED_IN_VAIN = (Reason.MODEL_FAILED, Reason.FEATURES_FAILED)


@dataclass(frozen=True)
class Replayed:
    """One decision beside its replay. skipped: why there is none, else empty. differences: `what: before -> now`.

    changed: of `PROMPT_CHANGED` and `CONTEXT_CHANGED`, what the handler shows otherwise than it did. action: None where
    nothing may be decided now. uses: calls of the other model.
    """

    found: Found
    skipped: str = ""
    action: str | None = None
    differences: tuple[str, ...] = ()
    changed: tuple[str, ...] = ()
    uses: tuple[ModelUse, ...] = ()

    @property
    def before(self) -> str:
        """The recorded action."""
        return str(self.found.decision.get("action", ""))


@dataclass
class Summary:
    """What a replay came to. actions: by (recorded, replayed). Tokens are the other model's, of all its answers."""

    replayed: int = 0
    identical: int = 0
    actions: Counter[tuple[str, str]] = field(default_factory=Counter)
    changed: Counter[str] = field(default_factory=Counter)
    skipped: Counter[str] = field(default_factory=Counter)
    calls: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    cache_read_tokens: int = 0
    cache_write_tokens: int = 0

    @property
    def different(self) -> int:
        return self.replayed - self.identical

    def count(self, one: Replayed) -> None:
        if one.skipped:
            self.skipped[one.skipped] += 1
            return
        self.replayed += 1
        self.identical += not one.differences
        self.actions[one.before, one.action or "nothing"] += 1
        self.changed.update(one.changed)
        for use in one.uses:
            self.calls += 1
            self.input_tokens += use.input_tokens
            self.output_tokens += use.output_tokens
            self.cache_read_tokens += use.cache_read_tokens
            self.cache_write_tokens += use.cache_write_tokens


class Replayer:
    """Replays decisions of these agents. other: who is asked in place of the recorded answers."""

    def __init__(self, agents: Mapping[str, Agent[Any]], other: Gate | None = None) -> None:
        self._agents = agents
        self._other = other
        self._random = Random(0)

    async def replay(self, found: Found) -> Replayed:
        """One decision, beside what it comes to now. The other model's failures are tried again as in a worker.

        Cancellation leaves nothing behind.
        """
        record = found.record
        agent = self._agents.get(record.agent)
        if agent is None:
            return Replayed(found, f"agent {record.agent} is not declared")
        skipped = self._not_replayable(record)
        if skipped:
            return Replayed(found, skipped)
        try:
            alert = _alert_of(record, agent)
        except (msgspec.MsgspecError, ValueError, RecursionError, KeyError) as error:
            return Replayed(found, f"its alert is no {record.alert_type} any more: {one_line(error)}")
        gate = _ReplayGate(record, self._other)
        context = _context(record, alert, agent, gate)
        if self._other is None and not _can_be_parsed_again(record):
            code, detail = _recorded_failure(record)
            vain = tuple(reason for reason in _ASKED_IN_VAIN if reason in record.reasons)
            context.seen.extend(record.features)
            outcome = conclude(agent, alert, Failure(code, detail), context.concerns() + vain, _barred(record))
        else:
            answer, context = await self._answered(alert, agent, context, max(agent.max_attempts, record.attempt))
            only = record.policy.answered if record.policy is not None and self._other is not None else None
            outcome = conclude(agent, alert, answer, context.concerns(), _barred(record, only))
        uses = tuple(context.models) if self._other is not None else ()
        if outcome is None or outcome.judged.unsafe:
            return Replayed(found, "", None, ("decision: a dead letter now",), gate.changed(), uses)
        differences = tuple(_differences(found, outcome, with_text=self._other is None))
        return Replayed(found, "", outcome.judged.decision.action, differences, gate.changed(), uses)

    def _not_replayable(self, record: DecisionRecord) -> str:
        if CUT in record.reasons or ALERT_CUT in record.reasons:
            return "what it was decided on did not fit into its record"
        if self._other is None and any(_is_cut(use) for use in record.models):
            return "its answer was too long to be kept whole"
        return ""

    async def _answered(
        self, alert: Alert, agent: Agent[Any], context: Context, attempts: int
    ) -> tuple[Decision | Failure, Context]:
        """The handler's answer, after so many attempts at the most."""
        retry = RetryPolicy(max_attempts=attempts)
        attempt = 1
        while True:
            try:
                return await answer_of(agent, alert, context), context
            except Exception as error:  # noqa: BLE001 - whatever a handler raises is tried again, as in a worker
                was_tried = not isinstance(error, HeadraceError) or error.was_tried
                if was_tried and attempt >= attempts:
                    return failure_of(error, attempt), context
                if self._other is not None:
                    asked_ms = getattr(error, "retry_after_ms", None)
                    await asyncio.sleep(retry.delay_ms(attempt, self._random, asked_ms) / 1000)
            attempt += was_tried
            context = _again(context)


class _RecordedModel:
    """A model that answers from a record, in its order: its failures too."""

    def __init__(self, record: DecisionRecord) -> None:
        self.name = record.models[-1].model if record.models else "none"
        self._uses = deque(record.models)

    async def decide(self, request: ModelRequest) -> ModelAnswer:
        """Raises: ModelFailure as recorded; Rejected where the handler asks once more than it did."""
        if not self._uses:
            raise Rejected("the handler asks the model what is not on record")
        use = self._uses.popleft()
        answer = _answer_in(use)
        if answer is not None and use.failure in ("", *_JUDGED_AGAIN):
            return answer
        code = FailureCode(use.failure)
        raise ModelFailure(code, "as recorded", answer=answer, was_tried=code not in UNTRIED)

    async def close(self) -> None:
        """Nothing is open."""


class _ReplayGate:
    """Answers from the record or asks the other model, and compares what is shown with what was."""

    def __init__(self, record: DecisionRecord, other: Gate | None) -> None:
        self._recorded = _RecordedModel(record)
        self._other = other
        self._prompts = {use.prompt_sha256 for use in record.models}
        self._contexts = {use.context for use in record.models}
        self._changed: dict[str, None] = {}
        self.model: Model = other.model if other is not None else self._recorded

    async def decide(self, request: ModelRequest, deadline: float) -> ModelAnswer:
        if self._prompts and sha256(request.instructions.encode()) not in self._prompts:
            self._changed[PROMPT_CHANGED] = None
        if self._contexts and request.context_text not in self._contexts:
            self._changed[CONTEXT_CHANGED] = None
        if self._other is not None:
            return await self._other.decide(request, deadline)
        return await self._recorded.decide(request)

    def changed(self) -> tuple[str, ...]:
        return tuple(self._changed)


class _RecordedFeatures:
    """The features that the handler was given, each in the order in which it was asked for; then the last one again."""

    def __init__(self, seen: tuple[Features, ...]) -> None:
        self._seen: dict[tuple[str, str], deque[Features]] = {}
        for features in seen:
            self._seen.setdefault((features.view, features.entity), deque()).append(features)

    async def read(self, view: str, entity: str) -> Features:
        """Raises: Unavailable for what is not on record."""
        known = self._seen.get((view, entity))
        if known is None:
            raise Unavailable(f"features {view} of {entity} are not on record")
        return known.popleft() if len(known) > 1 else known[0]

    async def read_with_own_event(self, view: str, entity: str, origin: Origin, wait_ms: int) -> Features:
        return await self.read(view, entity)


async def replay_all(
    replayer: Replayer, decisions: AsyncIterator[Found], concurrency: int, tell: Callable[[Replayed], None]
) -> Summary:
    """Replays `concurrency` decisions at once and tells of each in the order in which they come.

    Raises: what reading the decisions raises; what still runs is cancelled then.
    """
    summary = Summary()
    running: deque[asyncio.Task[Replayed]] = deque()

    async def end_first() -> None:
        one = await running.popleft()
        summary.count(one)
        tell(one)

    async with asyncio.TaskGroup() as tasks:
        async for found in decisions:
            running.append(tasks.create_task(replayer.replay(found)))
            if len(running) >= concurrency:
                await end_first()
        while running:
            await end_first()
    return summary


def _alert_of(record: DecisionRecord, agent: Agent[Any]) -> Alert:
    return msgspec.json.decode(record.alert, type=agent.alert_types[record.alert_type])


def _context(record: DecisionRecord, alert: Alert, agent: Agent[Any], gate: Gate) -> Context:
    """What the handler had before it asked for anything."""
    hops = record.hops
    headers = (
        ("origin", record.origin.encode()),
        ("event_ms", b"%d" % hops.event_ms),
        ("received_ms", b"%d" % hops.received_ms),
    )
    key = record.entity.encode()
    written = Record(record.alert_topic, record.alert_partition, record.alert_offset, hops.alert_ms, key, b"", headers)
    return Context(
        agent=agent.name,
        answer_type=agent.decides,
        source=origin_of(written, alert),
        deadline=asyncio.get_running_loop().time() + agent.deadline_ms / 1000,
        clock=ManualClock(hops.agent_ms),
        gate=gate,
        reader=_RecordedFeatures(record.features),
        started_ms=hops.agent_ms,
    )


def _again(context: Context) -> Context:
    """For the next attempt, with the model calls that earlier ones have made."""
    return Context(
        agent=context.agent,
        answer_type=context.answer_type,
        source=context.source,
        deadline=context.deadline,
        clock=context.clock,
        gate=context.gate,
        reader=context.reader,
        started_ms=context.started_ms,
        models=context.models,
    )


def _barred(record: DecisionRecord, only: str | None = None) -> Barred:
    """What switches and limits said then, of every action or of `only` that one; whether they would say so of others is
    not on record."""
    changed = record.policy.reasons if record.policy is not None else ()
    bar = next((reason for reason in (Reason.SWITCHED_OFF, Reason.LIMIT_REACHED) if reason in changed), None)
    return lambda action: bar if only in (None, action) else None


def _can_be_parsed_again(record: DecisionRecord) -> bool:
    """Whether the record holds what the handler was answered, right or wrong: then it runs again. Else its failure is
    the answer."""
    if bytes(record.answered) != b"null":
        return True
    last = record.models[-1] if record.models else None
    return last is not None and last.answer is not None and last.failure in (_JUDGED_AGAIN & set(record.reasons[:1]))


def _recorded_failure(record: DecisionRecord) -> tuple[str, str]:
    """The code of a recorded fallback, and what it said about it."""
    code = record.reasons[0] if record.reasons else ""
    said = str(msgspec.json.decode(record.decision, type=dict[str, Any]).get("reason", ""))
    return code, said.removeprefix(code).removeprefix(": ")


def _answer_in(use: ModelUse) -> ModelAnswer | None:
    if use.answer is None:
        return None
    return ModelAnswer(
        text=use.answer.text,
        model=use.model,
        stop_reason=StopReason(use.stop_reason),
        input_tokens=use.input_tokens,
        output_tokens=use.output_tokens,
        cache_read_tokens=use.cache_read_tokens,
        cache_write_tokens=use.cache_write_tokens,
        model_ms=use.model_ms,
    )


def _is_cut(use: ModelUse) -> bool:
    return use.answer is not None and use.answer.bytes > len(use.answer.text.encode())


def _differences(found: Found, outcome: Outcome, *, with_text: bool) -> list[str]:
    """with_text: False passes over what a model says in its own words."""
    record, decision = found.record, outcome.judged.decision
    differences = []
    before, now = found.decision, msgspec.json.decode(encode(decision), type=dict[str, Any])
    for name in dict.fromkeys((*before, *now)):
        if before.get(name) != now.get(name) and (with_text or name != "reason"):
            differences.append(f"{name}: {before.get(name)} -> {now.get(name)}")
    if record.reasons != outcome.reasons:
        differences.append(f"reasons: {', '.join(record.reasons) or 'none'} -> {', '.join(outcome.reasons) or 'none'}")
    if with_text:
        if bytes(record.answered) != bytes(raw(outcome.answered)):
            differences.append("answered: another answer than the handler gave")
        change = change_between(outcome.asked, outcome.judged)
        if record.policy != change and record.reasons == outcome.reasons:
            differences.append(f"policy: {_said(record.policy)} -> {_said(change)}")
    return differences


def _said(change: Any) -> str:
    return "no change" if change is None else f"{change.answered} to {change.action}"
