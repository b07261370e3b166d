"""The cage around the Messages API's library: what it takes, and that no exception of the library is forgotten."""

import importlib
import pkgutil
from collections.abc import Iterator

import anthropic
import httpx2
import pytest

from app.core.errors import SetupError
from app.models.anthropic import FAILURE_CODES, AnthropicModel, parse_retry_after_ms, translate
from app.models.base import FailureCode

REQUEST = httpx2.Request("POST", "https://api.anthropic.com/v1/messages")
SPEND_WORDS = ("spend_limit_reached", "billing_unavailable")
GENERAL = {
    anthropic.AnthropicError,
    anthropic.APIError,
    anthropic.APIStatusError,
}


def every_subclass(kind: type[anthropic.AnthropicError]) -> Iterator[type[anthropic.AnthropicError]]:
    for subclass in kind.__subclasses__():
        yield subclass
        yield from every_subclass(subclass)


def status_error(
    kind: type[anthropic.APIStatusError], status: int, message: str = "", **headers: str
) -> anthropic.APIStatusError:
    body = {"type": "error", "error": {"type": "some_error", "message": message}}
    sent = {name.replace("_", "-"): value for name, value in headers.items()}
    return kind("unused", response=httpx2.Response(status, headers=sent, request=REQUEST), body=body)


def test_failure_codes_every_exported_exception_is_mapped() -> None:
    """An exception that a new version of the library exports must be given its code here, deliberately."""
    exported = {
        value
        for value in vars(anthropic).values()
        if isinstance(value, type) and issubclass(value, anthropic.AnthropicError)
    }
    assert set() == exported - FAILURE_CODES.keys()


def test_failure_codes_status_exceptions_elsewhere_in_the_library_have_a_meaningful_base() -> None:
    """Exceptions that the library keeps in its other modules take the code of a status, never of an error in general."""
    types = importlib.import_module("anthropic.types")
    for module in pkgutil.walk_packages(types.__path__, "anthropic.types."):
        if module.name.endswith("_error"):
            importlib.import_module(module.name)
    vague = [
        kind
        for kind in every_subclass(anthropic.APIStatusError)
        if next(base for base in kind.__mro__ if base in FAILURE_CODES) in GENERAL
    ]
    assert [] == vague


def test_failure_codes_every_cause_about_money_is_a_spend_limit() -> None:
    """Whatever the library names after a spend limit or billing is not retried as a rate limit would be."""
    for kind in every_subclass(anthropic.APIStatusError):
        code = str(kind.__annotations__.get("error_code", ""))
        if any(word in code for word in SPEND_WORDS):
            assert FailureCode.SPEND_LIMIT is FAILURE_CODES.get(kind), kind


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (status_error(anthropic.BadRequestError, 400, "messages: required"), FailureCode.BAD_REQUEST),
        (status_error(anthropic.BadRequestError, 400, "prompt is too long: 3 > 2"), FailureCode.CONTEXT_TOO_LONG),
        (status_error(anthropic.BadRequestError, 400, "You have reached your specified API usage limits."),
         FailureCode.SPEND_LIMIT),
        (status_error(anthropic.BadRequestError, 400, "Your credit balance is too low to access the API."),
         FailureCode.SPEND_LIMIT),
        (status_error(anthropic.AuthenticationError, 401), FailureCode.UNAUTHORIZED),
        (status_error(anthropic.PaymentRequiredError, 402), FailureCode.SPEND_LIMIT),
        (status_error(anthropic.PermissionDeniedError, 403), FailureCode.UNAUTHORIZED),
        (status_error(anthropic.NotFoundError, 404, "model: claude-x"), FailureCode.BAD_REQUEST),
        (status_error(anthropic.ContentTooLargeError, 413), FailureCode.CONTEXT_TOO_LONG),
        (status_error(anthropic.RateLimitError, 429), FailureCode.RATE_LIMITED),
        (status_error(anthropic.EnforcedSpendLimitReachedError, 429), FailureCode.SPEND_LIMIT),
        (status_error(anthropic.InternalServerError, 500), FailureCode.UNAVAILABLE),
        (status_error(anthropic.ServiceUnavailableError, 503), FailureCode.UNAVAILABLE),
        (status_error(anthropic.OverloadedError, 529), FailureCode.OVERLOADED),
        (status_error(anthropic.APIStatusError, 302), FailureCode.BAD_REQUEST),
        (anthropic.APITimeoutError(REQUEST), FailureCode.TIMEOUT),
        (anthropic.APIConnectionError(request=REQUEST), FailureCode.UNAVAILABLE),
        (anthropic.AnthropicError("odd"), FailureCode.UNAVAILABLE),
    ],
)  # fmt: skip
def test_translate_exception_has_its_code(error: anthropic.AnthropicError, code: FailureCode) -> None:
    """Each kind of trouble has one reason code."""
    assert code is translate(error).code


def test_translate_retry_after_is_kept() -> None:
    """How long the API asks to wait reaches whoever retries."""
    failure = translate(status_error(anthropic.RateLimitError, 429, "slow down", retry_after="1.5"))
    assert 1_500 == failure.retry_after_ms


def test_translate_message_is_one_visible_line() -> None:
    """The API's words are outside text too."""
    failure = translate(status_error(anthropic.BadRequestError, 400, "first\nsecond\u202e"))
    assert "bad_request: HTTP 400 some_error first second\\u202e" == str(failure)


@pytest.mark.parametrize("key", ["", "  ", "sk-ant-\u2026", "sk\nant"])
def test_anthropic_model_without_usable_key_is_a_setup_error(key: str) -> None:
    """One line names the variable and the way without a key; the key is not shown."""
    with pytest.raises(SetupError, match=r"ANTHROPIC_API_KEY: .*--model rules") as caught:
        AnthropicModel("claude-sonnet-4-6", api_key=key)
    assert "sk" not in str(caught.value)


def test_anthropic_model_wrong_address_is_a_setup_error() -> None:
    """The setting is named."""
    with pytest.raises(SetupError, match="model_url"):
        AnthropicModel("claude-sonnet-4-6", api_key="key", address="api.anthropic.com")


@pytest.mark.parametrize(
    ("text", "expected"),
    [("2", 2_000), ("0", 0), ("0.5", 500), ("", None), ("-1", None), ("nan", None), ("inf", None), ("soon", None)],
)
def test_parse_retry_after_seconds_become_milliseconds(text: str, expected: int | None) -> None:
    """Seconds, also fractions; anything else is no promise."""
    assert expected == parse_retry_after_ms({"retry-after": text})


def test_parse_retry_after_absent_is_none() -> None:
    """No header, no wait asked for."""
    assert parse_retry_after_ms({}) is None
