"""When a failed attempt is made again, and when no more."""

import random as randomness

import msgspec

from app.core.errors import SetupError

_LARGEST_DOUBLING = 62
"""Beyond it any delay has reached its bound; keeps 2 ** n small however often something failed."""


class RetryPolicy(msgspec.Struct, frozen=True, kw_only=True):
    """Exponential backoff with jitter: each delay is twice the one before, up to the longest.

    jitter: the part of each delay that chance decides: 0 none of it, 1 all of it ("full jitter").
    max_elapsed_ms: no attempt begins later than this after the first one began; None sets no such bound.
    Source of full jitter: AWS Architecture Blog, "Exponential Backoff And Jitter".
    """

    max_attempts: int = 5
    first_delay_ms: int = 200
    longest_delay_ms: int = 30_000
    jitter: float = 1.0
    max_elapsed_ms: int | None = None

    def __post_init__(self) -> None:
        if self.max_attempts < 1:
            raise SetupError("max_attempts", "must be at least 1")
        if not 1 <= self.first_delay_ms <= self.longest_delay_ms:
            raise SetupError("first_delay_ms", "must be at least 1 and at most longest_delay_ms")
        if not 0 <= self.jitter <= 1:
            raise SetupError("jitter", "must be 0 to 1")
        if self.max_elapsed_ms is not None and self.max_elapsed_ms < 1:
            raise SetupError("max_elapsed_ms", "must be at least 1")

    def delay_ms(self, failures: int, random: randomness.Random) -> float:
        """How long to wait after so many failures in a row, ms > 0."""
        assert failures >= 1
        doubled = self.first_delay_ms << min(failures - 1, _LARGEST_DOUBLING)
        delay_ms = min(doubled, self.longest_delay_ms)
        return max(1.0, delay_ms * (1 - self.jitter * random.random()))

    def allows(self, attempts: int, elapsed_ms: float) -> bool:
        """Whether one more attempt may be made after `attempts`, when it would begin `elapsed_ms` after the first."""
        return attempts < self.max_attempts and (self.max_elapsed_ms is None or elapsed_ms <= self.max_elapsed_ms)
