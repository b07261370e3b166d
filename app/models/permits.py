"""How many calls at once: as many as the model's side has lately shown that it takes.

It begins with one. Each success allows one more (so the number doubles in the time of a call) up to the threshold, and
from there one more a round; a sign of overload halves it, and the threshold, once an epoch, but not below an eighth of the
bound: faults that do not depend on the load must not end in one call at a time. An epoch ends with a decrease: what calls
begun before it report says nothing about the new number. As long as nothing is heard after a
beginning, the number doubles each second, so that one call that hangs does not hold all others up. Times are the loop's,
in seconds.
"""

import math

SILENCE_S = 1.0
_MOST_DOUBLINGS = 8
_LEAST_PART = 8


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
        self._silent = True
        self._silent_since: float | None = None
        """When the first call was made after a beginning of which nothing was heard yet."""

    def allowed(self, now: float) -> int:
        """Calls at once."""
        doublings = 0
        if self._silent_since is not None:
            doublings = min(int((now - self._silent_since) / SILENCE_S), _MOST_DOUBLINGS)
        return min(self.most, int(self._allowed) << doublings)

    @property
    def is_beginning(self) -> bool:
        """Whether all are taken of a number that doubles still, up to the threshold."""
        return self._allowed < self._threshold and self.taken >= self._allowed

    def closed_s(self, now: float) -> float:
        """How long no permit is given because the model's side asked for a pause; 0 when it did not."""
        return max(0.0, self._closed_until - now)

    def wait_s(self, now: float) -> float:
        """When there may be a permit: 0 now, infinity when one must come back first."""
        if closed_s := self.closed_s(now):
            return closed_s
        allowed = self.allowed(now)
        if self.taken < allowed:
            return 0.0
        if self._silent_since is None or allowed == self.most:
            return math.inf
        return SILENCE_S - (now - self._silent_since) % SILENCE_S

    def take(self, now: float) -> int:
        """Takes one. Returns: the epoch, to be said when the call reports."""
        self.taken += 1
        if self._silent and self._silent_since is None:
            self._silent_since = now
        return self._epoch

    def give_back(self) -> None:
        assert self.taken > 0
        self.taken -= 1

    def succeeded(self, epoch: int, now: float) -> None:
        """A call of that epoch had an answer."""
        if self.heard(epoch, now):
            more = 1.0 if self._allowed < self._threshold else 1.0 / self._allowed
            self._allowed = min(float(self.most), self._allowed + more)

    def overloaded(self, epoch: int, now: float) -> None:
        """A call of that epoch met an overload."""
        if self.heard(epoch, now):
            least = min(self._allowed, max(1.0, self.most / _LEAST_PART))
            self._threshold = self._allowed = max(least, self._allowed / 2)
            self._epoch += 1

    def heard(self, epoch: int, now: float) -> bool:
        """A call of that epoch has ended by a word of the model's side, or for want of one. Returns: whether it counts."""
        if epoch != self._epoch:
            return False
        if self._silent:
            self._allowed = float(self.allowed(now))
            self._silent, self._silent_since = False, None
        return True

    def close(self, until: float) -> None:
        """Gives none before `until`, and begins with one then."""
        self._closed_until = max(self._closed_until, until)
        self.restart()

    def restart(self) -> None:
        """Begins with one again."""
        self._allowed = 1.0
        self._epoch += 1
        self._silent, self._silent_since = True, None
