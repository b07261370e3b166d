"""What scenarios are made of: publications with a moment each, acts that wait for theirs, and a player.

A plan is a pure sequence: the same seed gives the same bytes at the same moments, whoever plays it and how often.
`features/` tells the stories; here is only the mechanics.
"""

import asyncio
import heapq
from collections.abc import Callable, Iterable, Iterator
from random import Random
from typing import NamedTuple

from app.broker.base import Producer
from app.core.clock import Clock


class Publication(NamedTuple):
    """One record, and when it is to be published. at_ms: wall time. timestamp_ms: event time. Both since 1970 UTC."""

    at_ms: int
    topic: str
    key: bytes | None
    value: bytes | None
    timestamp_ms: int


class _Act(NamedTuple):
    """Something that an entity does at `not_before_ms` or soon after; `number` keeps the order of equal times."""

    not_before_ms: int
    number: int
    entity: str
    make: Callable[[int], Publication]


class Agenda:
    """Acts that wait for their moment. Two acts of one entity lie at least `spacing_ms` apart."""

    def __init__(self, spacing_ms: int) -> None:
        self._spacing_ms = spacing_ms
        self._waiting: list[_Act] = []
        self._last_at_ms: dict[str, int] = {}
        self._added = 0

    def add(self, not_before_ms: int, entity: str, make: Callable[[int], Publication]) -> None:
        """`make(at_ms)` is called at the moment that the act gets; it may add further acts."""
        heapq.heappush(self._waiting, _Act(not_before_ms, self._added, entity, make))
        self._added += 1

    def is_free(self, entity: str, at_ms: int) -> bool:
        last_at_ms = self._last_at_ms.get(entity)
        return last_at_ms is None or at_ms - last_at_ms >= self._spacing_ms

    def take(self, at_ms: int) -> Publication | None:
        """The publication of the earliest act that is due and whose entity is free; None where there is none."""
        passed_over = []
        chosen = None
        while self._waiting and self._waiting[0].not_before_ms <= at_ms:
            act = heapq.heappop(self._waiting)
            if self.is_free(act.entity, at_ms):
                chosen = act
                break
            passed_over.append(act)
        for act in passed_over:
            heapq.heappush(self._waiting, act)
        if chosen is None:
            return None
        self._last_at_ms[chosen.entity] = at_ms
        return chosen.make(at_ms)


def moments(random: Random, start_ms: int, gaps_ms: range, slice_ms: int, quiet_ms: int) -> Iterator[int]:
    """Moments one after another, a random gap of `gaps_ms` apart and never within `quiet_ms` of a boundary of slices.

    So whoever looks within `quiet_ms` of a moment sees the same slices as at the moment itself.
    """
    at_ms = start_ms
    while True:
        at_ms += random.choice(gaps_ms)
        into_ms = at_ms % slice_ms
        if into_ms < quiet_ms:
            at_ms += quiet_ms - into_ms
        elif into_ms >= slice_ms - quiet_ms:
            at_ms += slice_ms - into_ms + quiet_ms
        yield at_ms


def told(agenda: Agenda, at: Iterable[int], begin: Callable[[int], None]) -> Iterator[Publication]:
    """One publication a moment, endlessly. `begin(at_ms)` begins a story whenever nobody has anything left to do; what a
    story schedules comes first."""
    for at_ms in at:
        publication = agenda.take(at_ms)
        while publication is None:
            begin(at_ms)
            publication = agenda.take(at_ms)
        yield publication


async def play(publications: Iterable[Publication], producer: Producer, clock: Clock) -> int:
    """Publishes each at its moment, or at once where that is past, and flushes. Returns how many.

    On cancellation what was sent stays sent. Raises: RecordError for one that the broker would refuse, and at the
    end for the first that it did refuse; Unavailable.
    """
    played = 0
    for publication in publications:
        ahead_ms = publication.at_ms - clock.now_ms()
        await asyncio.sleep(max(ahead_ms, 0) / 1000)
        await producer.send(
            publication.topic, publication.value, publication.key, timestamp_ms=publication.timestamp_ms
        )
        played += 1
    for failure in await producer.flush():
        raise failure.error
    return played
