"""Lives of agents and actions that end at any await: a driver without dispatcher, so that every kill is exact.

A life reads from the committed offset, handles one record after the other and commits each. It ends by `Killed`, raised
inside the fake that is awaited at that step, or when nothing is left. What it had in memory is gone.
"""

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from app.broker.base import Assignment, Confirmation
from app.broker.memory import MemoryBroker, MemoryProducer
from app.core.record import Headers, Record, TopicPartition
from app.decisions.effects import Poster
from app.dispatch.work import Work

GIVE_UP_AFTER = 3


class Killed(BaseException):
    """The process is gone."""


@dataclass
class Steps:
    """Counts awaits; at the given one, once, something happens instead of going on."""

    at: int
    happens: Callable[[], Awaitable[None]]
    count: int = 0

    async def step(self) -> None:
        self.count += 1
        if self.count == self.at:
            await self.happens()


async def die() -> None:
    raise Killed


class SteppingProducer(MemoryProducer):
    """Steps before and after each write: killed after it, the record is there and nobody was told."""

    def __init__(self, broker: MemoryBroker, steps: Steps) -> None:
        super().__init__(broker)
        self._steps = steps

    async def confirm(
        self,
        topic: str,
        value: bytes | None,
        key: bytes | None = None,
        *,
        partition: int = -1,
        timestamp_ms: int = 0,
        headers: Headers = (),
    ) -> Confirmation:
        await self._steps.step()
        confirmation = await super().confirm(
            topic, value, key, partition=partition, timestamp_ms=timestamp_ms, headers=headers
        )
        await self._steps.step()
        return confirmation


@dataclass
class SteppingPoster:
    """Steps before and after each call: killed after it, the receiver has applied it and nobody was told."""

    poster: Poster
    steps: Steps

    async def post_json(self, url: str, body: bytes, headers: Mapping[str, str], timeout_ms: int) -> object:
        await self.steps.step()
        answer = await self.poster.post_json(url, body, headers, timeout_ms)
        await self.steps.step()
        return answer


@dataclass
class Offsets:
    """What a group has committed, outside every life."""

    committed: dict[TopicPartition, int] = field(default_factory=dict)
    epoch: int = 0


async def live(broker: MemoryBroker, work: Work, offsets: Offsets, steps: Steps) -> None:
    """One life over all partitions of the work's topic. Raises: Killed at the planned step."""
    offsets.epoch += 1
    for topic in work.topics:
        for number in range(broker.specs[topic].partitions):
            place = TopicPartition(topic, number)
            assignment = Assignment(topic, number, offsets.epoch)
            start = offsets.committed.get(place, 0)
            await work.assigned(assignment, start)
            for record in list(broker.logs[place][start:]):
                if not work.passes_over(record):
                    await _to_its_end(work, record)
                await steps.step()
                offsets.committed[place] = record.offset + 1


async def _to_its_end(work: Work, record: Record) -> None:
    error: Exception = AssertionError("no attempt")
    for attempt in range(1, GIVE_UP_AFTER + 1):
        try:
            await work.handle(record, attempt)
            return
        except Exception as failure:  # noqa: BLE001 - what the dispatcher would retry
            error = failure
    await work.give_up(record, error, GIVE_UP_AFTER)


async def lives(
    broker: MemoryBroker, make: Callable[[Steps], Work], kills: list[int], offsets: Offsets | None = None
) -> int:
    """As many lives as there are kills, and one more that is not killed. How many kills were met."""
    offsets = offsets or Offsets()
    met = 0
    for at in kills:
        steps = Steps(at, die)
        try:
            await live(broker, make(steps), offsets, steps)
        except Killed:
            met += 1
    steps = Steps(0, die)
    await live(broker, make(steps), offsets, steps)
    return met


def without(work: Any, **replaced: Any) -> Any:
    """An ablation: the work with some of its safeguards replaced."""
    for name, value in replaced.items():
        assert hasattr(work, name), f"no safeguard is called {name}"
        setattr(work, name, value)
    return work
