"""The breaker: after failures in a row no call is made for a while, then a single one tries whether it works again.

Closed until ten calls in a row have failed, or three over ten seconds (a model that hangs is noticed by few calls).
Then open: 1 s, twice as long after each probe that fails, 30 s at most. What no retry mends (key, permission, spend
limit) opens it at once and for five minutes a time: somebody must act, and then it recovers by itself. Times are the
loop's, in seconds.
"""

from enum import Enum
from typing import NamedTuple

FAILURES_IN_A_ROW = 10
LASTING_FAILURES, LASTING_S = 3, 10.0
FIRST_OPEN_S, LONGEST_OPEN_S = 1.0, 30.0
REFUSED_OPEN_S = 300.0


class BreakerState(Enum):
    CLOSED = "closed"
    OPEN = "open"
    HALF_OPEN = "half_open"
    """One call is trying."""


class Ticket(NamedTuple):
    """A call that may be made. Only outcomes of the breaker's own generation count: late ones are about the past."""

    generation: int
    is_probe: bool


class Breaker:
    """Each ticket is handed back by exactly one of `succeeded`, `failed`, `refused` and `left`."""

    def __init__(self) -> None:
        self.state = BreakerState.CLOSED
        self.openings = 0
        self._generation = 0
        self._in_a_row = 0
        self._since = 0.0
        self._open_s = 0.0
        self._until = 0.0
        self._refused = False

    def enter(self, now: float) -> Ticket | None:
        """Leave to call, None while it is open or another call is trying."""
        if self.state is BreakerState.CLOSED:
            return Ticket(self._generation, False)
        if self.state is BreakerState.HALF_OPEN or now < self._until:
            return None
        self.state = BreakerState.HALF_OPEN
        self._generation += 1
        return Ticket(self._generation, True)

    def wait_s(self, now: float) -> float:
        """How long to wait before `enter` is worth another try; a guess while a call is trying."""
        if self.state is BreakerState.HALF_OPEN:
            return REFUSED_OPEN_S if self._refused else FIRST_OPEN_S
        return max(0.0, self._until - now) if self.state is BreakerState.OPEN else 0.0

    def succeeded(self, ticket: Ticket) -> bool:
        """Returns: whether this has closed it."""
        if ticket.generation != self._generation:
            return False
        self._in_a_row = 0
        if not ticket.is_probe:
            return False
        self.state = BreakerState.CLOSED
        self._refused = False
        self._open_s = 0.0
        self._generation += 1
        return True

    def failed(self, ticket: Ticket, now: float) -> bool:
        """Returns: whether this has opened it."""
        if ticket.generation != self._generation:
            return False
        if not ticket.is_probe:
            self._since = now if self._in_a_row == 0 else self._since
            self._in_a_row += 1
            lasting = self._in_a_row >= LASTING_FAILURES and now - self._since >= LASTING_S
            if self._in_a_row < FAILURES_IN_A_ROW and not lasting:
                return False
        self._open(now, min(max(FIRST_OPEN_S, self._open_s * 2), LONGEST_OPEN_S))
        return True

    def refused(self, ticket: Ticket, now: float) -> bool:
        """No retry helps. Returns: whether this is news, to be told loudly; not so when a probe meets the same."""
        if ticket.generation != self._generation and (self.state is BreakerState.CLOSED or self._refused):
            return False
        news = not self._refused
        self._refused = True
        self._open(now, REFUSED_OPEN_S)
        return news

    def left(self, ticket: Ticket, now: float) -> None:
        """The call ended without telling anything. After a probe the next call may be one."""
        if ticket.is_probe and ticket.generation == self._generation:
            self.state = BreakerState.OPEN
            self._until = now

    def _open(self, now: float, seconds: float) -> None:
        self.state = BreakerState.OPEN
        self.openings += 1
        self._generation += 1
        self._in_a_row = 0
        self._open_s = min(seconds, LONGEST_OPEN_S)
        self._until = now + seconds
