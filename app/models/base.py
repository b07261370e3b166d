"""What a model is asked, what it answers, and how it fails.

A failure is a `ModelFailure` with one of a closed list of codes; the agent's fallback carries the code as its reason.
An answer is text until `parse_answer` has validated it here, whatever the model's side promised.
"""

from collections.abc import Mapping
from enum import Enum
from typing import Any, Protocol, TypeVar

import msgspec

from app.core.errors import HeadraceError
from app.core.text import one_line

A = TypeVar("A", bound=msgspec.Struct)


class FailureCode(Enum):
    """Why there is no usable answer. The value is the reason code that decisions and counters carry."""

    TIMEOUT = "timeout"
    """One attempt took longer than an attempt may."""
    DEADLINE = "deadline"
    """The alert's own time is up, or too short for a call."""
    OVERLOADED = "overloaded"
    """The model's side has no capacity just now (529)."""
    RATE_LIMITED = "rate_limited"
    """Requests or tokens per minute are used up (429)."""
    UNAVAILABLE = "unavailable"
    """No connection, or the server failed."""
    REFUSED = "refused"
    """The model declined to answer."""
    TRUNCATED = "truncated"
    """The answer was cut at its token limit."""
    INVALID_ANSWER = "invalid_answer"
    """The answer is not the declared decision."""
    UNAUTHORIZED = "unauthorized"
    """Key missing, wrong, or without permission (401, 403)."""
    SPEND_LIMIT = "spend_limit"
    """The account's spend limit or credit is used up."""
    CONTEXT_TOO_LONG = "context_too_long"
    """Instructions and context do not fit the model."""
    BAD_REQUEST = "bad_request"
    """The model's side does not accept the request: unknown model, schema not supported."""
    GATE_CLOSED = "gate_closed"
    """This process is stopping and starts no more calls; the next one may."""

    @property
    def retriable(self) -> bool:
        """Whether the same request may succeed later."""
        return self in _RETRIABLE


_RETRIABLE = frozenset(
    {
        FailureCode.TIMEOUT,
        FailureCode.OVERLOADED,
        FailureCode.RATE_LIMITED,
        FailureCode.UNAVAILABLE,
        FailureCode.GATE_CLOSED,
    }
)


class StopReason(Enum):
    """Why the model stopped writing. Only COMPLETE may be a decision."""

    COMPLETE = "complete"
    TRUNCATED = "truncated"
    REFUSED = "refused"
    CONTEXT_TOO_LONG = "context_too_long"
    OTHER = "other"


class ModelRequest(msgspec.Struct, frozen=True, kw_only=True):
    """One question to a model.

    instructions: the stable part, the author's. context_text: the data, as `prompt.render_context` made it of `context`
    (rules take `context` itself). timeout_ms: limit of this one attempt.
    """

    agent: str
    instructions: str
    context_text: str
    context: Mapping[str, Any]
    answer_type: type[msgspec.Struct]
    timeout_ms: int


class ModelAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """What came back, not yet validated.

    model: the id that the model's side reports. input_tokens: those neither written to nor read from the prompt cache,
    which are counted apart because they are priced apart. model_ms: the call as seen from here.
    """

    text: str
    model: str
    stop_reason: StopReason
    input_tokens: int = 0
    output_tokens: int = 0
    cache_read_tokens: int = 0
    cache_write_tokens: int = 0
    model_ms: int = 0


class ModelFailure(HeadraceError):
    """No usable answer. `answer` is what came back, where something did: its text is evidence, its tokens were paid.

    retry_after_ms: how long the model's side asks to wait; None where it does not say.
    """

    def __init__(
        self,
        code: FailureCode,
        message: str,
        *,
        retry_after_ms: int | None = None,
        answer: ModelAnswer | None = None,
    ) -> None:
        super().__init__(f"{code.value}: {message}")
        self.code = code
        self.retry_after_ms = retry_after_ms
        self.answer = answer

    @property
    def retriable(self) -> bool:
        return self.code.retriable


class Model(Protocol):
    """Rules and the Messages API keep this contract."""

    name: str
    """The model's id as decisions record it."""

    async def decide(self, request: ModelRequest) -> ModelAnswer:
        """One attempt, never repeated inside. On cancellation the connection is given up, nothing else is left behind.

        Raises: ModelFailure, for everything that is not an answer. Whether an answer is the declared decision,
        or was refused or cut, is for `parse_answer` to say.
        """
        ...

    async def close(self) -> None:
        """Gives connections back. Running calls fail."""
        ...


_STOPPED = {
    StopReason.TRUNCATED: (FailureCode.TRUNCATED, "the answer was cut at its token limit"),
    StopReason.REFUSED: (FailureCode.REFUSED, "the model declined to answer"),
    StopReason.CONTEXT_TOO_LONG: (FailureCode.CONTEXT_TOO_LONG, "instructions and context do not fit the model"),
    StopReason.OTHER: (FailureCode.INVALID_ANSWER, "the model stopped before its answer was complete"),
}


def parse_answer(answer: ModelAnswer, answer_type: type[A]) -> A:
    """The decision in an answer. Why the model stopped counts first: cut text can be valid by chance.

    Raises: ModelFailure with the answer attached.
    """
    if answer.stop_reason is not StopReason.COMPLETE:
        code, message = _STOPPED[answer.stop_reason]
        raise ModelFailure(code, message, answer=answer)
    try:
        return msgspec.json.decode(answer.text, type=answer_type, strict=True)
    except (ValueError, RecursionError) as error:
        raise ModelFailure(FailureCode.INVALID_ANSWER, one_line(error), answer=answer) from None
