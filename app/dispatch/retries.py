"""When a failed attempt is made again, and when no more."""

import math
import random as randomness

import msgspec

from app.core.errors import SetupError

LONGEST_ASKED_MS = 60_000
"""No server parks a lane longer than this; attempts that come too early end in the fallback, which waits for nobody."""

LEAST_LEFT_MS = 100
"""With less time than this left after its wait, no attempt is worth waiting for."""

_LARGEST_DOUBLING = 62
"""Beyond it any delay has reached its bound; keeps 2 ** n small however often something failed."""


class RetryPolicy(msgspec.Struct, frozen=True, kw_only=True):
    """Exponential backoff with jitter: each delay is twice the one before, up to the longest.

    jitter: the part of each delay that chance decides: 0 none of it, 1 all of it ("full jitter").
    within_ms: how long after the beginning of its first attempt a record is tried again; at that time it is given up,
    whatever waits before it. Then refusals without an attempt do not count as one. None: no such time.
    Source of full jitter: AWS Architecture Blog, "Exponential Backoff And Jitter".
    """

    max_attempts: int = 5
    first_delay_ms: int = 200
    longest_delay_ms: int = 30_000
    jitter: float = 1.0
    within_ms: int | None = None

    def __post_init__(self) -> None:
        if self.max_attempts < 1:
            raise SetupError("max_attempts", "must be at least 1")
        if not 1 <= self.first_delay_ms <= self.longest_delay_ms:
            raise SetupError("first_delay_ms", "must be at least 1 and at most longest_delay_ms")
        if not 0 <= self.jitter <= 1:
            raise SetupError("jitter", "must be 0 to 1")
        if self.within_ms is not None and self.within_ms < 1:
            raise SetupError("within_ms", "must be at least 1")

    def delay_ms(
        self, failures: int, random: randomness.Random, asked_ms: int | None = None, left_ms: float = math.inf
    ) -> float:
        """How long to wait after so many failures in a row, ms > 0.

        asked_ms: what a server asked to wait, if it did; no shorter than that, but for `LONGEST_ASKED_MS`, and longer by
        the part that chance decides, since others were asked the same. left_ms: for all further attempts; of what is left
        after what was asked, no more than half goes by waiting.
        """
        assert failures >= 1
        asked = min(asked_ms or 0, LONGEST_ASKED_MS)
        doubled = self.first_delay_ms << min(failures - 1, _LARGEST_DOUBLING)
        delay_ms = min(doubled, self.longest_delay_ms, max(0.0, left_ms - asked) / 2)
        by_chance = delay_ms * self.jitter * random.random()
        return max(1.0, delay_ms - by_chance, asked + by_chance if asked else 0.0)

    def is_too_late(self, asked_ms: int | None, left_ms: float) -> bool:
        """Whether what was asked to wait leaves no time for another attempt."""
        return left_ms - min(asked_ms or 0, LONGEST_ASKED_MS) < LEAST_LEFT_MS
