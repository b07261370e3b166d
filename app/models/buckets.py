"""Requests and tokens a minute: what a call will take is reserved before it, and corrected by what it took.

A bucket holds a minute's worth and fills evenly. Its size is the least of what is configured and what the API's headers
say, times this process's share. What the API says is left is never exceeded. Times are the loop's, in seconds.
"""

import math
from typing import NamedTuple

from app.models.base import RateLimit, RateLimits

MINUTE_S = 60.0

LONGEST_REFILL_S = 300.0
"""No header makes a bucket take longer to fill; calls after it tell whether there is really nothing left."""


class Amounts(NamedTuple):
    """What one call takes of each bucket."""

    requests: int
    input_tokens: int
    output_tokens: int


NOTHING = Amounts(0, 0, 0)


class Bucket:
    """One limit. a_minute: the configured one, 0 for none; while none is known nothing waits."""

    def __init__(self, a_minute: int) -> None:
        self.reserved = 0
        """By calls that are not settled yet."""
        self._configured = float(a_minute or math.inf)
        self._told = math.inf
        self._share = 1.0
        self._level = self.size
        self._filled_at = -math.inf
        self._a_second = self.size / MINUTE_S

    @property
    def size(self) -> float:
        """Infinity while no limit is known; never less than 1, so that a request fits a full bucket."""
        return max(1.0, self._share * min(self._configured, self._told))

    def left(self, now: float) -> float:
        """What may be taken now; negative after a call that took more than it had reserved."""
        if self._level < self.size and self._filled_at < now:
            self._level = min(self.size, self._level + (now - self._filled_at) * self._a_second)
        self._filled_at = max(self._filled_at, now)
        return self._level

    def wait_s(self, now: float, amount: int) -> float:
        """Until `amount` can be taken. What exceeds the whole bucket waits for a full one and leaves it in debt."""
        missing = min(float(amount), self.size) - self.left(now)
        return missing / self._a_second if missing > 0 else 0.0

    def take(self, now: float, amount: int) -> None:
        self._level = self.left(now) - amount
        self.reserved += amount

    def settle(self, now: float, reserved: int, used: int) -> None:
        """A call that had reserved so much has used so much."""
        self.reserved -= reserved
        self._level = min(self.size, self.left(now) + reserved - used)

    def correct(self, now: float, told: RateLimit) -> None:
        """By the headers of a response. They count what others use as well, so they only ever take away."""
        if told.limit <= 0:
            return
        self._told = float(told.limit)
        self._level = min(self.left(now), self.size, self._share * told.remaining)
        self._a_second = self.size / MINUTE_S
        used = told.limit - told.remaining
        if told.full_in_ms and used > told.remaining:  # near full, the header's whole seconds say nothing
            full_in_s = min(told.full_in_ms / 1000, LONGEST_REFILL_S)
            self._a_second = min(self._a_second, self._share * used / full_in_s)

    def set_share(self, now: float, share: float) -> None:
        """Another part of the whole, 0 to 1: what is left grows and shrinks with it."""
        factor = share / self._share
        self._level = self.left(now) * factor
        self._a_second *= factor
        self._share = share
        self._level = min(self._level, self.size)


class Buckets:
    """The three limits of the API, taken together or not at all."""

    def __init__(self, requests_a_minute: int, input_tokens_a_minute: int, output_tokens_a_minute: int) -> None:
        self.requests = Bucket(requests_a_minute)
        self.input_tokens = Bucket(input_tokens_a_minute)
        self.output_tokens = Bucket(output_tokens_a_minute)
        self._all = (self.requests, self.input_tokens, self.output_tokens)

    def wait_s(self, now: float, amounts: Amounts) -> float:
        return max(bucket.wait_s(now, amount) for bucket, amount in zip(self._all, amounts, strict=True))

    def take(self, now: float, amounts: Amounts) -> None:
        for bucket, amount in zip(self._all, amounts, strict=True):
            bucket.take(now, amount)

    def settle(self, now: float, reserved: Amounts, used: Amounts) -> None:
        for bucket, had, took in zip(self._all, reserved, used, strict=True):
            bucket.settle(now, had, took)

    def correct(self, now: float, told: RateLimits) -> None:
        for bucket, limit in zip(self._all, (told.requests, told.input_tokens, told.output_tokens), strict=True):
            if limit is not None:
                bucket.correct(now, limit)

    def set_share(self, now: float, share: float) -> None:
        for bucket in self._all:
            bucket.set_share(now, share)


def longest_refill_s(told: RateLimits) -> float:
    """Until all of the limits are whole, as the headers tell it."""
    return max((limit.full_in_ms / 1000 for limit in told if limit is not None), default=0.0)
