"""The Messages API as a model: the only module that knows the `anthropic` library.

One attempt is one HTTP request: the library's own retries are off, since they would sleep inside our permit and would
repeat what must not be repeated. Its exceptions leave through `translate`, and nowhere else.
"""

import asyncio
import functools
import math
from collections.abc import AsyncIterator, Mapping
from datetime import datetime, timedelta
from email.utils import parsedate_to_datetime
from typing import Any

import anthropic
import httpcore2  # noqa: F401  httpx2 would load it with its first client, reading files on the running loop
import httpx2
import msgspec

from app.core.errors import SetupError
from app.core.text import one_line
from app.models.base import (
    MAX_ANSWER_TOKENS,
    FailureCode,
    ModelAnswer,
    ModelFailure,
    ModelRequest,
    RateLimit,
    RateLimits,
    StopReason,
)
from app.models.prompt import DATA_RULE, answer_schema

ADDRESS = "https://api.anthropic.com"

MAX_RESPONSE_BYTES = 1_048_576
"""What is read of one response. An answer of as many tokens as it may have takes some 50 kB."""

MAX_CONNECTIONS = 256
"""What one process keeps open: beyond as many calls at once, one loop's CPU is the bottleneck."""

_KEEP_OPEN_SECONDS = 55
"""Idle connections live this long: a new one costs a TLS handshake, longer than many an alert has to spare."""

_RATE_KINDS = ("requests", "input-tokens", "output-tokens")
_MILLISECOND = timedelta(milliseconds=1)

_STOP_REASONS = {
    "end_turn": StopReason.COMPLETE,
    "stop_sequence": StopReason.OTHER,
    "max_tokens": StopReason.TRUNCATED,
    "refusal": StopReason.REFUSED,
    "model_context_window_exceeded": StopReason.CONTEXT_TOO_LONG,
    "tool_use": StopReason.OTHER,
    "pause_turn": StopReason.OTHER,
}

FAILURE_CODES: dict[type[anthropic.AnthropicError], FailureCode] = {
    anthropic.AnthropicError: FailureCode.UNAVAILABLE,
    anthropic.RetryableError: FailureCode.UNAVAILABLE,
    anthropic.CredentialsError: FailureCode.UNAUTHORIZED,
    anthropic.IdentityTokenFileError: FailureCode.UNAUTHORIZED,
    anthropic.WorkloadIdentityError: FailureCode.UNAUTHORIZED,
    anthropic.APIError: FailureCode.UNAVAILABLE,
    anthropic.APIConnectionError: FailureCode.UNAVAILABLE,
    anthropic.APITimeoutError: FailureCode.TIMEOUT,
    anthropic.APIResponseValidationError: FailureCode.UNAVAILABLE,
    anthropic.APIWebhookValidationError: FailureCode.BAD_REQUEST,
    anthropic.APIStatusError: FailureCode.BAD_REQUEST,
    anthropic.BadRequestError: FailureCode.BAD_REQUEST,
    anthropic.AuthenticationError: FailureCode.UNAUTHORIZED,
    anthropic.PaymentRequiredError: FailureCode.SPEND_LIMIT,
    anthropic.PermissionDeniedError: FailureCode.UNAUTHORIZED,
    anthropic.NotFoundError: FailureCode.BAD_REQUEST,
    anthropic.RequestTimeoutError: FailureCode.UNAVAILABLE,
    anthropic.ConflictError: FailureCode.UNAVAILABLE,
    anthropic.PreconditionFailedError: FailureCode.BAD_REQUEST,
    anthropic.ContentTooLargeError: FailureCode.CONTEXT_TOO_LONG,
    anthropic.UnprocessableEntityError: FailureCode.BAD_REQUEST,
    anthropic.RateLimitError: FailureCode.RATE_LIMITED,
    anthropic.RequestHeaderFieldsTooLargeError: FailureCode.BAD_REQUEST,
    anthropic.ClientClosedRequestError: FailureCode.UNAVAILABLE,
    anthropic.InternalServerError: FailureCode.UNAVAILABLE,
    anthropic.HTTPNotImplementedError: FailureCode.BAD_REQUEST,
    anthropic.ServiceUnavailableError: FailureCode.UNAVAILABLE,
    anthropic.GatewayTimeoutError: FailureCode.UNAVAILABLE,
    anthropic.OverloadedError: FailureCode.OVERLOADED,
    # Causes that the API names by a code of their own, beyond their status.
    anthropic.EnforcedSpendLimitReachedError: FailureCode.SPEND_LIMIT,
    anthropic.ContractSpendLimitReachedError: FailureCode.SPEND_LIMIT,
    anthropic.LinkedOrganizationSpendLimitReachedError: FailureCode.SPEND_LIMIT,
    anthropic.LinkedOrganizationBillingUnavailableError: FailureCode.SPEND_LIMIT,
    anthropic.RampLimitExceededError: FailureCode.RATE_LIMITED,
    anthropic.OrganizationOnHoldError: FailureCode.UNAUTHORIZED,
    anthropic.OrganizationTypeNotSupportedError: FailureCode.UNAUTHORIZED,
    anthropic.ParentOrganizationRequiredError: FailureCode.UNAUTHORIZED,
    anthropic.ClaudeCodeKeyCreatorNotMemberError: FailureCode.UNAUTHORIZED,
    anthropic.ClaudeCodeVersionTooOldError: FailureCode.BAD_REQUEST,
    anthropic.SandboxEgressRestrictedError: FailureCode.UNAUTHORIZED,
    anthropic.WorkspaceHumanReviewDisabledError: FailureCode.BAD_REQUEST,
    anthropic.CMEKKeyDisabledError: FailureCode.UNAUTHORIZED,
    anthropic.CMEKKeyNetworkBlockedError: FailureCode.UNAUTHORIZED,
    anthropic.CMEKKeyUnreachableError: FailureCode.UNAVAILABLE,
    anthropic.CMEKContextUnavailableError: FailureCode.UNAVAILABLE,
    anthropic.RequestBodyEncodingInvalidError: FailureCode.BAD_REQUEST,
    anthropic.RequestBodyEncodingUnsupportedError: FailureCode.BAD_REQUEST,
    anthropic.RequestBodyTooLargeAfterDecodingError: FailureCode.CONTEXT_TOO_LONG,
}
"""Every exception that the library exports at its root. Its other ones take the code of their nearest base."""


class _Usage(msgspec.Struct):
    input_tokens: int
    output_tokens: int
    cache_read_input_tokens: int | None = None
    cache_creation_input_tokens: int | None = None


class _Block(msgspec.Struct):
    type: str
    text: str = ""


class _Reply(msgspec.Struct):
    """What we need of a response. Decoded here, strictly: the library's own parsing checks nothing."""

    model: str
    content: list[_Block]
    stop_reason: str
    usage: _Usage


class AnthropicModel:
    """A model behind the Messages API."""

    def __init__(self, name: str, *, api_key: str, address: str = "") -> None:
        """Raises: SetupError without a usable key or address. Nothing is sent."""
        key = api_key.strip()
        if not key or not key.isascii() or not key.isprintable():
            what = "is not a key" if key else "is not set"
            raise SetupError("ANTHROPIC_API_KEY", f"{what}; {name} needs one, `--model rules` needs none")
        url = address or ADDRESS
        if not url.startswith(("https://", "http://")):
            raise SetupError("model_url", f"{url!r} must begin with https:// or http://")
        self.name = name
        limits = httpx2.Limits(
            max_connections=MAX_CONNECTIONS,
            max_keepalive_connections=MAX_CONNECTIONS,
            keepalive_expiry=_KEEP_OPEN_SECONDS,
        )
        self._client = anthropic.AsyncAnthropic(
            api_key=key,
            base_url=url,
            max_retries=0,
            open_telemetry=False,
            default_headers={"accept-encoding": "identity"},  # what is small on the wire must be small here
            http_client=anthropic.DefaultAsyncHttpxClient(limits=limits, event_hooks={"response": [_limit_size]}),
        )
        self._messages = self._client.messages.with_raw_response  # loads its module here, not under the first alert

    async def decide(self, request: ModelRequest) -> ModelAnswer:
        loop = asyncio.get_running_loop()
        started = loop.time()
        timeout_seconds = request.timeout_ms / 1000
        try:
            # The library's timeout is one for each phase of a request; ours is for the whole.
            async with asyncio.timeout(timeout_seconds):
                response = await self._messages.create(
                    model=self.name,
                    max_tokens=MAX_ANSWER_TOKENS,
                    system=[
                        {
                            "type": "text",
                            "text": f"{request.instructions}\n\n{DATA_RULE}",
                            "cache_control": {"type": "ephemeral"},
                        }
                    ],
                    messages=[{"role": "user", "content": request.context_text}],
                    output_config={
                        "format": {"type": "json_schema", "schema": _wire_schema(request.answer_type)},
                        "effort": "low",
                    },
                    timeout=timeout_seconds,
                )
                body = await response.read()
        except anthropic.AnthropicError as error:
            raise translate(error) from error
        except TimeoutError:
            raise ModelFailure(FailureCode.TIMEOUT, f"no answer within {request.timeout_ms} ms", unknown=True) from None
        return _read(body, parse_rates(response.headers), round((loop.time() - started) * 1000))

    async def close(self) -> None:
        await self._client.close()


def translate(error: anthropic.AnthropicError) -> ModelFailure:
    """The failure that an exception of the library means. The nearest base in FAILURE_CODES decides."""
    code = next(FAILURE_CODES[kind] for kind in type(error).__mro__ if kind in FAILURE_CODES)
    if not isinstance(error, anthropic.APIStatusError):
        return ModelFailure(code, one_line(f"{error} {error.__cause__ or ''}"), unknown=True)
    message = error.api_message or ""
    if code is FailureCode.BAD_REQUEST:
        code = _cause_in_words(message)
    text = one_line(f"HTTP {error.status_code} {error.type or ''} {message}")
    headers = error.response.headers
    return ModelFailure(code, text, retry_after_ms=parse_retry_after_ms(headers), rates=parse_rates(headers))


def parse_retry_after_ms(headers: Mapping[str, str]) -> int | None:
    """Whole milliseconds of `retry-after`, which the API gives in seconds; None where it is absent or no such number."""
    try:
        seconds = float(headers.get("retry-after", ""))
    except ValueError:
        return None
    return math.ceil(seconds * 1000) if 0 <= seconds < 1e9 else None


def parse_rates(headers: Mapping[str, str]) -> RateLimits:
    """What `anthropic-ratelimit-*` say. Resets are reckoned from the response's own `date`: clocks may differ."""
    try:
        date = parsedate_to_datetime(headers.get("date", ""))
    except ValueError:
        date = None
    return RateLimits(*(_rate_of(headers, f"anthropic-ratelimit-{kind}", date) for kind in _RATE_KINDS))


def _rate_of(headers: Mapping[str, str], prefix: str, date: datetime | None) -> RateLimit | None:
    limit, remaining = headers.get(f"{prefix}-limit", ""), headers.get(f"{prefix}-remaining", "")
    if not (limit.isdecimal() and remaining.isdecimal() and len(limit) < 16 and len(remaining) < 16):
        return None
    try:
        full_in_ms = (datetime.fromisoformat(headers.get(f"{prefix}-reset", "")) - date) // _MILLISECOND if date else 0
    except (ValueError, TypeError):
        full_in_ms = 0
    return RateLimit(int(limit), int(remaining), max(0, full_in_ms))


async def _limit_size(response: httpx2.Response) -> None:
    """Raises: httpx2.RemoteProtocolError for a response that is too large, here or while it is read."""
    declared = response.headers.get("content-length", "0")
    if response.headers.get("content-encoding", "identity") != "identity":
        raise httpx2.RemoteProtocolError("the response is compressed, which was not asked for")
    if declared.isdecimal() and int(declared) > MAX_RESPONSE_BYTES:
        raise httpx2.RemoteProtocolError(f"the response has {declared} bytes, more than {MAX_RESPONSE_BYTES}")
    assert isinstance(response.stream, httpx2.AsyncByteStream)
    response.stream = _Limited(response.stream)


class _Limited(httpx2.AsyncByteStream):
    """A response's bytes, no more than may be."""

    def __init__(self, stream: httpx2.AsyncByteStream) -> None:
        self._stream = stream

    async def __aiter__(self) -> AsyncIterator[bytes]:
        size = 0
        async for part in self._stream:
            size += len(part)
            if size > MAX_RESPONSE_BYTES:
                raise httpx2.RemoteProtocolError(f"the response has more than {MAX_RESPONSE_BYTES} bytes")
            yield part

    async def aclose(self) -> None:
        await self._stream.aclose()


def _cause_in_words(message: str) -> FailureCode:
    """Two causes that the API reports as a plain 400 and tells apart by words alone. None of them is retried."""
    if message.startswith("prompt is too long"):
        return FailureCode.CONTEXT_TOO_LONG
    if message.startswith(("You have reached your specified", "Your credit balance is too low")):
        return FailureCode.SPEND_LIMIT
    return FailureCode.BAD_REQUEST


def _read(body: bytes, rates: RateLimits, model_ms: int) -> ModelAnswer:
    try:
        reply = msgspec.json.decode(body, type=_Reply)
    except (ValueError, RecursionError) as error:
        raise ModelFailure(
            FailureCode.UNAVAILABLE, f"the response is not the Messages API's: {one_line(error)}", unknown=True
        ) from None
    usage = reply.usage
    return ModelAnswer(
        text="".join(block.text for block in reply.content if block.type == "text"),
        model=reply.model,
        stop_reason=_STOP_REASONS.get(reply.stop_reason, StopReason.OTHER),
        input_tokens=usage.input_tokens,
        output_tokens=usage.output_tokens,
        cache_read_tokens=usage.cache_read_input_tokens or 0,
        cache_write_tokens=usage.cache_creation_input_tokens or 0,
        model_ms=model_ms,
        rates=rates,
    )


@functools.cache
def _wire_schema(answer_type: type[msgspec.Struct]) -> dict[str, Any]:
    """The schema with every constraint that the API does not take moved into its descriptions."""
    return anthropic.transform_schema(answer_schema(answer_type))
