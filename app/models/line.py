"""The line in front of a model: agents take turns, and of each the first that came goes first, when the buckets have what
it needs and a permit is free.

Reservation and permit are taken in one step, in the moment when the one whose turn it is may go. So nobody holds one
while waiting for the other, nobody overtakes within an agent, the backlog of one agent holds up no other, and whoever is
cancelled has either nothing or both, and gives both back.
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

    __slots__ = ("agent", "amounts", "deadline", "epoch", "goes", "holds", "partition")

    def __init__(
        self,
        agent: str,
        partition: int,
        amounts: Amounts,
        deadline: float,
        goes: "asyncio.Future[ModelFailure | None]",
    ) -> None:
        self.agent = agent
        self.partition = partition
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
        self._waiting: dict[str, deque[Place]] = {}
        """By agent, in the order of their turns; none is empty."""
        self._timer: asyncio.TimerHandle | None = None
        self._turned_at: float | None = None
        self._turns = 0
        self._turn_s = 0.0

    def is_hopeless(self, agent: str, deadline: float) -> bool:
        """Whether the turns before that of the agent's newcomer, at their pace, last far beyond its deadline. Nobody's are
        while the permits still double: the pace of a beginning says nothing about what follows."""
        if self._turns < _MEASURED_TURNS or self._permits.is_beginning:
            return False
        own = len(self._waiting.get(agent, ()))
        others = (len(places) for name, places in self._waiting.items() if name != agent)
        turns = own + sum(min(other, own + 1) for other in others)
        left_s = deadline - asyncio.get_running_loop().time()
        return turns * self._turn_s > _HOPELESS * left_s

    def __len__(self) -> int:
        return sum(map(len, self._waiting.values()))

    async def enter(self, agent: str, partition: int, amounts: Amounts, deadline: float) -> Place:
        """Waits for the turn. On cancellation the place is free and nothing is held.

        Raises: TimeoutError at `deadline`, in the loop's seconds; what `dismiss` makes.
        """
        place = Place(agent, partition, amounts, deadline, asyncio.get_running_loop().create_future())
        self._waiting.setdefault(agent, deque()).append(place)
        self.tick()
        try:
            async with asyncio.timeout_at(deadline):
                failure = await place.goes
        except BaseException:
            if place.holds:
                self.leave(place, NOTHING)
            elif place in self._waiting.get(agent, ()):
                self._remove(place)
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
        before, self._waiting = self._waiting, {}
        for agent, places in before.items():
            staying: deque[Place] = deque()
            for place in places:
                if not only(place):
                    staying.append(place)
                elif not place.goes.done():
                    place.goes.set_result(failure())
            if staying:
                self._waiting[agent] = staying
        self.tick()

    def tick(self) -> None:
        """Lets go whoever may, in order, and looks again when time alone will let the next one go."""
        loop = asyncio.get_running_loop()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        while self._waiting:
            place = next(iter(self._waiting.values()))[0]
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
                self._end_turn(place.agent)
            else:
                self._remove(place)
        self._turned_at, self._turns = None, 0

    def _end_turn(self, agent: str) -> None:
        """Its first has gone: the next one's turn comes after those of the other agents."""
        places = self._waiting.pop(agent)
        places.popleft()
        if places:
            self._waiting[agent] = places

    def _remove(self, place: Place) -> None:
        places = self._waiting[place.agent]
        places.remove(place)
        if not places:
            del self._waiting[place.agent]

    def _measure(self, now: float) -> None:
        """The pace of turns, as long as somebody always waits."""
        if self._turned_at is not None:
            self._turns += 1
            part = max(_NEWEST_PART, 1 / self._turns)
            self._turn_s += (now - self._turned_at - self._turn_s) * part
        self._turned_at = now
