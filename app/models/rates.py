"""What the Messages API says about its limits in the headers of every response."""

import math
from collections.abc import Mapping
from datetime import datetime

import msgspec

_PREFIX = "anthropic-ratelimit-"


class RateLimit(msgspec.Struct, frozen=True):
    """One limit. reset_ms: when it is full again, ms since 1970-01-01 UTC by the server's clock."""

    limit: int
    remaining: int
    reset_ms: int


class RateHeaders(msgspec.Struct, frozen=True):
    """The limits a minute that one response named; None where it named none, or not in the documented form."""

    requests: RateLimit | None
    input_tokens: RateLimit | None
    output_tokens: RateLimit | None


def parse_rates(headers: Mapping[str, str]) -> RateHeaders:
    """Limits in a response's headers. Names in `headers` are lower case, or it ignores case itself."""
    return RateHeaders(*(_parse_limit(headers, kind) for kind in ("requests", "input-tokens", "output-tokens")))


def parse_retry_after_ms(headers: Mapping[str, str]) -> int | None:
    """Whole milliseconds of `retry-after`, which the API gives in seconds; None where it is absent or no such number."""
    try:
        seconds = float(headers.get("retry-after", ""))
    except ValueError:
        return None
    return math.ceil(seconds * 1000) if 0 <= seconds < 1e9 else None


def _parse_limit(headers: Mapping[str, str], kind: str) -> RateLimit | None:
    try:
        limit = int(headers[f"{_PREFIX}{kind}-limit"])
        remaining = int(headers[f"{_PREFIX}{kind}-remaining"])
        reset = datetime.fromisoformat(headers[f"{_PREFIX}{kind}-reset"])
    except (KeyError, ValueError):
        return None
    return RateLimit(limit, remaining, round(reset.timestamp() * 1000)) if reset.tzinfo else None
