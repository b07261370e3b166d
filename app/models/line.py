"""The line in front of a model: first come, first served, each when the buckets have what it needs and a permit is free.

Reservation and permit are taken in one step, in the moment when the head of the line may go. So nobody holds one while
waiting for the other, nobody overtakes, and whoever is cancelled has either nothing or both, and gives both back.
"""

import asyncio
import math
from collections import deque
from collections.abc import Callable

from app.models.base import ModelFailure, RateLimits
from app.models.buckets import NOTHING, Amounts, Buckets
from app.models.permits import Permits

_SHORTEST_TIMER_S = 0.001

_MEASURED_TURNS, _NEWEST_PART = 8, 0.1
"""So many turns tell how long one takes; then each new one counts for so much."""

_HOPELESS = 2.0
"""Who would wait so many times as long as there is time does not begin to: estimates err."""


class Place:
    """One caller's place. After `Line.enter` it holds a permit (of `epoch`) and `amounts`, until `Line.leave`."""

    __slots__ = ("amounts", "deadline", "epoch", "goes", "holds")

    def __init__(self, amounts: Amounts, deadline: float, goes: "asyncio.Future[ModelFailure | None]") -> None:
        self.amounts = amounts
        self.deadline = deadline
        self.goes = goes
        self.epoch = 0
        self.holds = False


class Line:
    """Who waits. `tick` must be called whenever permits or buckets have changed from outside."""

    def __init__(self, permits: Permits, buckets: Buckets) -> None:
        self._permits = permits
        self._buckets = buckets
        self._waiting: deque[Place] = deque()
        self._timer: asyncio.TimerHandle | None = None
        self._turned_at: float | None = None
        self._turns = 0
        self._turn_s = 0.0

    def is_hopeless(self, deadline: float) -> bool:
        """Whether the turns of those who wait, at their pace, last far beyond a newcomer's deadline."""
        left_s = deadline - asyncio.get_running_loop().time()
        return self._turns >= _MEASURED_TURNS and len(self._waiting) * self._turn_s > _HOPELESS * left_s

    def __len__(self) -> int:
        return len(self._waiting)

    async def enter(self, amounts: Amounts, deadline: float) -> Place:
        """Waits for the turn. On cancellation the place is free and nothing is held.

        Raises: TimeoutError at `deadline`, in the loop's seconds; what `dismiss` makes.
        """
        place = Place(amounts, deadline, asyncio.get_running_loop().create_future())
        self._waiting.append(place)
        self.tick()
        try:
            async with asyncio.timeout_at(deadline):
                failure = await place.goes
        except BaseException:
            if place.holds:
                self.leave(place, NOTHING)
            elif place in self._waiting:
                self._waiting.remove(place)
                self.tick()
            raise
        if failure is not None:
            raise failure
        return place

    def leave(self, place: Place, used: Amounts, told: RateLimits | None = None) -> None:
        """The call is over, or was not made; it has used so much, and its response tells this of the limits."""
        assert place.holds
        now = asyncio.get_running_loop().time()
        place.holds = False
        self._permits.give_back()
        self._buckets.settle(now, place.amounts, used)
        if told is not None:  # after the settlement, which would add to what they say is left
            self._buckets.correct(now, told)
        self.tick()

    def dismiss(self, failure: Callable[[], ModelFailure], only: Callable[[Place], bool] = lambda place: True) -> None:
        """Those who wait fail."""
        staying: deque[Place] = deque()
        for place in self._waiting:
            if not only(place):
                staying.append(place)
            elif not place.goes.done():
                place.goes.set_result(failure())
        self._waiting = staying
        self.tick()

    def tick(self) -> None:
        """Lets go whoever may, in order, and looks again when time alone will let the next one go."""
        loop = asyncio.get_running_loop()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        while self._waiting:
            place = self._waiting[0]
            if not place.goes.done():  # else it is being cancelled
                now = loop.time()
                wait_s = max(self._buckets.wait_s(now, place.amounts), self._permits.wait_s(now))
                if wait_s > 0:
                    if wait_s < math.inf:
                        self._timer = loop.call_later(max(wait_s, _SHORTEST_TIMER_S), self.tick)
                    return
                place.epoch = self._permits.take(now)
                self._buckets.take(now, place.amounts)
                place.holds = True
                place.goes.set_result(None)
                self._measure(now)
            self._waiting.popleft()
        self._turned_at, self._turns = None, 0

    def _measure(self, now: float) -> None:
        """The pace of turns, as long as somebody always waits."""
        if self._turned_at is not None:
            self._turns += 1
            part = max(_NEWEST_PART, 1 / self._turns)
            self._turn_s += (now - self._turned_at - self._turn_s) * part
        self._turned_at = now
