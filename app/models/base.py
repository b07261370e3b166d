"""What a model is asked, what it answers, and how it fails.

A failure is a `ModelFailure` with one of a closed list of codes; the agent's fallback carries the code as its reason.
An answer is text until `parse_answer` has validated it here, whatever the model's side promised.
"""

from collections.abc import Mapping
from enum import Enum
from typing import Any, NamedTuple, Protocol, TypeVar

import msgspec

from app.core.errors import HeadraceError
from app.core.text import one_line

A = TypeVar("A", bound=msgspec.Struct)

SCHEMA_TOKENS = 500
"""What the schema of an answer adds to the input of each call, by estimate."""

MAX_ANSWER_TOKENS = 4_096
"""Limit of one answer, thinking included. A decision takes some 200; the rest is for models that think first."""


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
    """This process is stopping, or loses the alert's partition, and starts no more calls; the next owner may."""
    BREAKER_OPEN = "breaker_open"
    """The model has failed again and again; no call is made for a while."""
    NO_BUDGET = "no_budget"
    """The agent's budget of the day is used up, or reserved by calls that run."""

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
        FailureCode.BREAKER_OPEN,
    }
)


UNTRIED = frozenset({FailureCode.GATE_CLOSED, FailureCode.BREAKER_OPEN})
"""No call was made: such a refusal uses up no attempt."""


class StopReason(Enum):
    """Why the model stopped writing. Only COMPLETE may be a decision."""

    COMPLETE = "complete"
    TRUNCATED = "truncated"
    REFUSED = "refused"
    CONTEXT_TOO_LONG = "context_too_long"
    OTHER = "other"


class Usage(NamedTuple):
    """Tokens of one call, by what they are priced and limited as."""

    input_tokens: int
    output_tokens: int
    cache_read_tokens: int
    cache_write_tokens: int

    @property
    def total(self) -> int:
        return sum(self)


class RateLimit(NamedTuple):
    """One limit a minute as the API's headers tell it: the whole, what is left, and ms until all of it is back; 0 where
    that is not told."""

    limit: int
    remaining: int
    full_in_ms: int = 0


class RateLimits(NamedTuple):
    """What the headers of a response say; None for what they do not say."""

    requests: RateLimit | None = None
    input_tokens: RateLimit | None = None
    output_tokens: RateLimit | None = None


class ModelRequest(msgspec.Struct, frozen=True, kw_only=True):
    """One question to a model.

    instructions: the stable part, the author's. context_text: the data, as `prompt.render_context` made it of `context`
    (rules take `context` itself). timeout_ms: limit of this one attempt. partition: the alert's, -1 outside of a topic.
    """

    agent: str
    instructions: str
    context_text: str
    context: Mapping[str, Any]
    answer_type: type[msgspec.Struct]
    timeout_ms: int
    partition: int = -1


class ModelAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """What came back, not yet validated.

    model: the id that the model's side reports. input_tokens: those neither written to nor read from the prompt cache,
    which are counted apart because they are priced apart. model_ms: the call as seen from here. rates: what the
    response says about limits.
    """

    text: str
    model: str
    stop_reason: StopReason
    input_tokens: int = 0
    output_tokens: int = 0
    cache_read_tokens: int = 0
    cache_write_tokens: int = 0
    model_ms: int = 0
    rates: RateLimits | None = None

    @property
    def usage(self) -> Usage:
        return Usage(self.input_tokens, self.output_tokens, self.cache_read_tokens, self.cache_write_tokens)


class ModelFailure(HeadraceError):
    """No usable answer. `answer` is what came back, where something did: its text is evidence, its tokens were paid.
    message: what there is to say beside the code.

    retry_after_ms: how long the model's side asks to wait; None where it does not say. unknown: the call may have been
    carried out and paid, though nothing of it came back. rates: what the response says about limits. was_tried: False
    where no call was made.
    """

    def __init__(
        self,
        code: FailureCode,
        message: str,
        *,
        retry_after_ms: int | None = None,
        answer: ModelAnswer | None = None,
        unknown: bool = False,
        rates: RateLimits | None = None,
        was_tried: bool = True,
    ) -> None:
        super().__init__(f"{code.value}: {message}")
        self.code = code
        self.message = message
        self.retry_after_ms = retry_after_ms
        self.answer = answer
        self.unknown = unknown
        self.rates = rates
        self.was_tried = was_tried

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
