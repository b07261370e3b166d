"""How many calls at once: as many as the model's side has lately shown that it takes.

It begins with one. Each success allows one more (so the number doubles in the time of a call) up to the threshold, and
from there one more a round; a sign of overload halves it, and the threshold, once an epoch. An epoch ends with a
decrease: what calls begun before it report says nothing about the new number. Times are the loop's, in seconds.
"""

import math


class Permits:
    """`most` is the bound that is never exceeded, at least 1; `taken` is how many are out."""

    def __init__(self, most: int) -> None:
        assert most >= 1
        self.most = most
        self.taken = 0
        self._allowed = 1.0
        self._threshold = float(most)
        self._epoch = 0
        self._closed_until = -math.inf

    @property
    def allowed(self) -> int:
        """Calls at once, now."""
        return int(self._allowed)

    def closed_s(self, now: float) -> float:
        """How long no permit is given because the model's side asked for a pause; 0 when it did not."""
        return max(0.0, self._closed_until - now)

    def wait_s(self, now: float) -> float:
        """When there may be a permit: 0 now, infinity when one must come back first."""
        if closed_s := self.closed_s(now):
            return closed_s
        return 0.0 if self.taken < self.allowed else math.inf

    def take(self) -> int:
        """Takes one. Returns: the epoch, to be said when the call reports."""
        self.taken += 1
        return self._epoch

    def give_back(self) -> None:
        assert self.taken > 0
        self.taken -= 1

    def succeeded(self, epoch: int) -> None:
        """A call of that epoch had an answer."""
        if epoch == self._epoch:
            more = 1.0 if self._allowed < self._threshold else 1.0 / self._allowed
            self._allowed = min(float(self.most), self._allowed + more)

    def overloaded(self, epoch: int) -> None:
        """A call of that epoch met an overload."""
        if epoch == self._epoch:
            self._threshold = self._allowed = max(1.0, self._allowed / 2)
            self._epoch += 1

    def close(self, until: float) -> None:
        """Gives none before `until`, and begins with one then."""
        self._closed_until = max(self._closed_until, until)
        self.restart()

    def restart(self) -> None:
        """Begins with one again."""
        self._allowed = 1.0
        self._epoch += 1
