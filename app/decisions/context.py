"""What a handler may ask about one alert; everything that it was shown or told is noted for the decision's record.

user = await context.features("user_features", alert.user_id)
return await context.decide(PROMPT, alert=alert, user=user)
"""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol

import msgspec

from app.core.clock import Clock
from app.core.codec import encode
from app.core.instants import instant_ms
from app.core.record import Record
from app.decisions.decision import D, Decision, Reason
from app.decisions.policy import concerns_about
from app.decisions.record import Hops, ModelUse, kept_answer, sha256
from app.models.base import UNTRIED, FailureCode, Model, ModelAnswer, ModelFailure, ModelRequest, parse_answer
from app.models.prompt import render_context
from app.serving.base import Features
from app.serving.features import OWN_EVENT_WAIT_MS, Origin
from app.streams.graph import Alert


class FeatureSource(Protocol):
    """Where features are read: `serving.features.FeatureReader`."""

    async def read(self, view: str, entity: str) -> Features: ...

    async def read_with_own_event(self, view: str, entity: str, origin: Origin, wait_ms: int) -> Features: ...


class Gate(Protocol):
    """What is asked for a decision: `models.gate.ModelGate`."""

    model: Model

    async def decide(self, request: ModelRequest, deadline: float) -> ModelAnswer: ...


@dataclass(frozen=True)
class AlertOrigin:
    """Where an alert comes from, as its headers say."""

    text: str
    origin: Origin | None
    event_ms: int
    received_ms: int
    alert_ms: int


def origin_of(record: Record, alert: Alert) -> AlertOrigin:
    """Reads the headers of an alert; what is absent or not readable is unknown, never an error."""
    text = _header(record, "origin")
    event_ms = _number(_header(record, "event_ms")) or instant_ms(alert.triggered_at)
    late_for = frozenset(name for name in _header(record, "late_for").split(",") if name)
    place = text.rsplit("/", 2)
    origin = None
    if len(place) == 3 and place[1].isdecimal() and place[2].isdecimal():
        key = (record.key or b"").decode(errors="replace")
        is_one = not _header(record, "window")
        origin = Origin(place[0], int(place[1]), int(place[2]), event_ms, late_for, key, is_one)
    return AlertOrigin(text, origin, event_ms, _number(_header(record, "received_ms")), record.timestamp_ms)


@dataclass(eq=False)
class _Question:
    """Something that a handler has asked for and not been given, at least not yet. ended: in vain."""

    reason: Reason
    about: tuple[str, ...]
    """What was asked, exactly: only an answer to the same settles it."""
    ended: bool = False


_UNTRIED = frozenset(code.value for code in UNTRIED)


@dataclass
class Context:
    """One run of a handler. `deadline` is the loop's time, in seconds."""

    agent: str
    answer_type: type[Decision]
    source: AlertOrigin
    deadline: float
    clock: Clock
    gate: Gate
    reader: FeatureSource
    started_ms: int
    partition: int = -1
    """The alert's, whose part of the budget pays for what is asked."""
    seen: list[Features] = field(default_factory=list)
    models: list[ModelUse] = field(default_factory=list)
    enriched_ms: int = 0
    _open: list[_Question] = field(default_factory=list)
    """Each speaks against approving, whatever the handler made of its failure."""

    def __post_init__(self) -> None:
        self._earlier = len(self.models)

    def carried_models(self) -> list[ModelUse]:
        """What the next attempt has on record. One in which every call was refused unseen tells no more than the next
        one will, and there may be many of them."""
        own = self.models[self._earlier :]
        return self.models[: self._earlier] if all(use.failure in _UNTRIED for use in own) else self.models

    @property
    def remaining_ms(self) -> int:
        """Time until the deadline, never negative."""
        return max(0, round((self.deadline - asyncio.get_running_loop().time()) * 1000))

    async def features(self, view: str, entity: str) -> Features:
        """The features of one entity, with the alert's own event where the view can show it (waits up to 250 ms).

        Stale, missing and not-seen are answers too: `freshness` and `own_event` say so, and policy sees them.
        Raises: Unavailable; SetupError for a view that is not served.
        """
        with self._asking(Reason.FEATURES_FAILED, (view, entity)):
            if self.source.origin is None:
                features = await self.reader.read(view, entity)
            else:
                wait_ms = min(OWN_EVENT_WAIT_MS, self.remaining_ms)
                features = await self.reader.read_with_own_event(view, entity, self.source.origin, wait_ms)
        self.seen.append(features)
        self.enriched_ms = self.clock.now_ms()
        return features

    async def decide(self, instructions: str, **shown: Any) -> D:
        """The model's decision, of the type that the agent declares, validated.

        Instructions are the author's own text and never contain event data; what the model is to know of the alert is
        `shown` by name, and goes to it as data.
        Raises: ModelFailure. Leave it to propagate: it is retried where that helps, and otherwise ends in the agent's
        fallback, with the reason. A handler that goes on without it decides nothing milder than the fallback, unless it
        asks the same again, shows the same, and is answered.
        """
        with self._asking(Reason.MODEL_FAILED, ()) as question:
            text = render_context(shown)
            question.about = (instructions, text)
            return await self._decide(instructions, text, shown)

    async def _decide(self, instructions: str, text: str, shown: dict[str, Any]) -> D:
        request = ModelRequest(
            agent=self.agent,
            instructions=instructions,
            context_text=text,
            context=shown,
            answer_type=self.answer_type,
            timeout_ms=self.remaining_ms,
            partition=self.partition,
        )
        answer: ModelAnswer | None = None
        try:
            answer = await self.gate.decide(request, self.deadline)
            decision: Any = parse_answer(answer, self.answer_type)
        except ModelFailure as failure:
            self._note(instructions, text, failure.answer or answer, failure.code.value)
            raise
        except asyncio.CancelledError:
            self._note(instructions, text, None, FailureCode.DEADLINE.value)
            raise
        self._note(instructions, text, answer, "")
        return decision  # type: ignore[no-any-return]

    def concerns(self) -> tuple[Reason, ...]:
        """What speaks against approving, whatever the handler says."""
        unknown = (Reason.ORIGIN_UNKNOWN,) if self.seen and self.source.origin is None else ()
        unanswered = tuple(dict.fromkeys(question.reason for question in self._open))
        return concerns_about(self.seen) + unknown + unanswered

    @contextmanager
    def _asking(self, reason: Reason, about: tuple[str, ...]) -> Iterator[_Question]:
        """An open question until it is answered. An answer closes those before it about the same, which had ended in
        vain: a handler may ask again. It says nothing about one that was asked at the same time."""
        question = _Question(reason, about)
        earlier = [one for one in self._open if one.ended]
        self._open.append(question)
        try:
            yield question
        finally:
            question.ended = True
        settled = [question, *(one for one in earlier if (one.reason, one.about) == (reason, question.about))]
        self._open = [one for one in self._open if one not in settled]

    def hops(self, decided_ms: int) -> Hops:
        source = self.source
        return Hops(source.event_ms, source.received_ms, source.alert_ms, self.started_ms, self.enriched_ms, decided_ms)

    def _note(self, instructions: str, text: str, answer: ModelAnswer | None, failure: str) -> None:
        prompt_sha256 = sha256(instructions.encode())
        if answer is None:
            use = ModelUse(
                model=self.gate.model.name, prompt_sha256=prompt_sha256, context=text, answer=None, failure=failure
            )
        else:
            use = ModelUse(
                model=answer.model,
                prompt_sha256=prompt_sha256,
                context=text,
                answer=kept_answer(answer.text),
                stop_reason=answer.stop_reason.value,
                input_tokens=answer.input_tokens,
                output_tokens=answer.output_tokens,
                cache_read_tokens=answer.cache_read_tokens,
                cache_write_tokens=answer.cache_write_tokens,
                model_ms=answer.model_ms,
                failure=failure,
            )
        self.models.append(use)


def raw(value: object) -> msgspec.Raw:
    """A value as it stands in a record of another type."""
    return msgspec.Raw(encode(value))


def _header(record: Record, name: str) -> str:
    return (record.header(name) or b"").decode(errors="replace")


def _number(text: str) -> int:
    return int(text) if text.isdecimal() and len(text) < 19 else 0
