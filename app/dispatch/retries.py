"""When a failed attempt is made again, and when no more."""

import random as randomness

import msgspec

from app.core.errors import SetupError

LONGEST_ASKED_MS = 60_000
"""No server parks a lane longer than this; attempts that come too early end in the fallback, which waits for nobody."""

_LARGEST_DOUBLING = 62
"""Beyond it any delay has reached its bound; keeps 2 ** n small however often something failed."""


class RetryPolicy(msgspec.Struct, frozen=True, kw_only=True):
    """Exponential backoff with jitter: each delay is twice the one before, up to the longest.

    jitter: the part of each delay that chance decides: 0 none of it, 1 all of it ("full jitter").
    Source of full jitter: AWS Architecture Blog, "Exponential Backoff And Jitter".
    """

    max_attempts: int = 5
    first_delay_ms: int = 200
    longest_delay_ms: int = 30_000
    jitter: float = 1.0

    def __post_init__(self) -> None:
        if self.max_attempts < 1:
            raise SetupError("max_attempts", "must be at least 1")
        if not 1 <= self.first_delay_ms <= self.longest_delay_ms:
            raise SetupError("first_delay_ms", "must be at least 1 and at most longest_delay_ms")
        if not 0 <= self.jitter <= 1:
            raise SetupError("jitter", "must be 0 to 1")

    def delay_ms(self, failures: int, random: randomness.Random, asked_ms: int | None = None) -> float:
        """How long to wait after so many failures in a row, ms > 0.

        asked_ms: what a server asked to wait, if it did; no shorter than that, but for `LONGEST_ASKED_MS`.
        """
        assert failures >= 1
        doubled = self.first_delay_ms << min(failures - 1, _LARGEST_DOUBLING)
        delay_ms = min(doubled, self.longest_delay_ms)
        return max(1.0, delay_ms * (1 - self.jitter * random.random()), min(asked_ms or 0, LONGEST_ASKED_MS))
