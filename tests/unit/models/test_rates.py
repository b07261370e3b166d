"""Limits in response headers."""

import pytest

from app.models.rates import RateLimit, parse_rates, parse_retry_after_ms

HEADERS = {
    "anthropic-ratelimit-requests-limit": "4000",
    "anthropic-ratelimit-requests-remaining": "3999",
    "anthropic-ratelimit-requests-reset": "2024-05-01T12:00:00Z",
    "anthropic-ratelimit-input-tokens-limit": "2000000",
    "anthropic-ratelimit-input-tokens-remaining": "0",
    "anthropic-ratelimit-input-tokens-reset": "2024-05-01T12:00:01.5Z",
    "anthropic-ratelimit-output-tokens-limit": "400000",
    "anthropic-ratelimit-output-tokens-remaining": "soon",
    "anthropic-ratelimit-output-tokens-reset": "2024-05-01T12:00:00Z",
}


def test_parse_rates_documented_headers_are_read() -> None:
    """Limit, what is left, and the reset as epoch milliseconds."""
    rates = parse_rates(HEADERS)
    assert RateLimit(4000, 3999, 1_714_564_800_000) == rates.requests
    assert RateLimit(2_000_000, 0, 1_714_564_801_500) == rates.input_tokens


def test_parse_rates_other_form_is_none() -> None:
    """A header in another form, or absent, says nothing."""
    assert parse_rates(HEADERS).output_tokens is None
    assert parse_rates({}).requests is None
    naive = {**HEADERS, "anthropic-ratelimit-requests-reset": "2024-05-01T12:00:00"}
    assert parse_rates(naive).requests is None


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
