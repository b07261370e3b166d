"""Dispatchers on a memory broker that watches every commit, and a work that remembers what was done.

The history outlives the dispatchers: it is what the tests judge after kills and restarts.
"""

import asyncio
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from random import Random

from app.broker.base import Assignment, CommittedOffset, RebalanceListener
from app.broker.memory import MemoryBroker, MemoryConsumer
from app.broker.topics import TopicSpec
from app.core.clock import Clock, run_virtual
from app.core.errors import Fenced
from app.core.record import Record, TopicPartition
from app.dispatch.consumer import Dispatcher
from app.dispatch.marks import Mark, decode_marks
from app.dispatch.work import DispatchConfig

TOPIC = "processed.alerts"
GROUP = "headrace.agent.test"
START_MS = 1_700_000_000_000

Place = tuple[str, int, int]
Handler = Callable[[Record, int], Awaitable[None]]


class History:
    """What became of each record, over all dispatchers of a test, and every rule that was broken on the way."""

    def __init__(self) -> None:
        self.ends: Counter[Place] = Counter()
        self.begun: list[Place] = []
        self.running: set[tuple[int, bytes]] = set()
        self.most_running = 0
        self.order: dict[bytes, list[int]] = defaultdict(list)
        self.given_up: list[tuple[Place, str, int]] = []
        self.assigned: list[Assignment] = []
        self.revoked: list[Assignment] = []
        self.ended: list[Assignment] = []
        self.violations: list[str] = []

    def check_commit(self, broker: MemoryBroker, place: TopicPartition, committed: CommittedOffset) -> None:
        """Nothing before the offset, and nothing marked as done beyond it, may be unfinished."""
        known = decode_marks(committed.offset, committed.metadata)
        marks = known.marks if known else {}
        for record in broker.logs[place]:
            claimed = record.offset < committed.offset or marks.get(record.offset) is Mark.DONE
            if claimed and not self.ends[place_of(record)]:
                self.violations.append(f"{place}/{record.offset} was committed unfinished, at {committed.offset}")


class WatchedBroker(MemoryBroker):
    """A memory broker whose commits are checked against the history."""

    def __init__(self, clock: Clock, history: History) -> None:
        super().__init__(clock)
        self.history = history
        self.consumers: list[WatchedConsumer] = []

    def consumer(self, group: str, topics: Sequence[str], listener: RebalanceListener) -> MemoryConsumer:
        self.consumers.append(WatchedConsumer(self, group, topics, listener))
        return self.consumers[-1]

    def committed(self, partition: int = 0) -> CommittedOffset | None:
        group = self.groups.get(GROUP)
        return group.committed.get(TopicPartition(TOPIC, partition)) if group else None

    def position(self, partition: int = 0) -> int:
        """The committed offset; 0 where there is none."""
        committed = self.committed(partition)
        return committed.offset if committed else 0


class WatchedConsumer(MemoryConsumer):
    """Checks what a commit claims before it is made."""

    def __init__(self, broker: WatchedBroker, group: str, topics: Sequence[str], listener: RebalanceListener) -> None:
        super().__init__(broker, group, topics, listener)
        self._watched = broker
        self.polls = 0
        self.dead = False
        """Its process has died: nothing of it is committed any more."""

    def die(self) -> None:
        self.dead = True
        if self in self._watched.groups[self.group].members:
            self._watched.expel(self)

    async def poll(self, max_records: int = 500, timeout_ms: int = 100) -> list[Record]:
        self.polls += 1
        return await super().poll(max_records, timeout_ms)

    async def commit(self, offsets: Mapping[Assignment, CommittedOffset]) -> None:
        if self.dead:
            raise Fenced("the process is dead")
        for assignment, committed in offsets.items():
            self._watched.history.check_commit(self._watched, assignment.place, committed)
        await super().commit(offsets)


class RecordedWork:
    """A `Work` whose handler a test gives; what it begins and ends is history."""

    def __init__(self, history: History, handler: Handler | None = None) -> None:
        self.topics: Sequence[str] = (TOPIC,)
        self.group = GROUP
        self.history = history
        self.handler = handler or at_once
        self.unwanted = b""
        self.give_up_handler: Handler = at_once
        self.prepare: Callable[[Assignment], Awaitable[None]] | None = None

    def passes_over(self, record: Record) -> bool:
        passes = bool(self.unwanted) and record.value == self.unwanted
        if passes:
            self.history.ends[place_of(record)] += 1
        return passes

    def lane(self, record: Record) -> bytes | None:
        return record.key

    async def handle(self, record: Record, attempt: int) -> None:
        history, place = self.history, place_of(record)
        history.begun.append(place)
        key = record.key or repr(place).encode()
        lane = (record.partition, key)
        if lane in history.running:
            history.violations.append(f"two of {key!r} at once")
        history.running.add(lane)
        history.most_running = max(history.most_running, len(history.running))
        try:
            await self.handler(record, attempt)
        finally:
            history.running.discard(lane)
        history.ends[place] += 1
        history.order[key].append(record.offset)

    async def give_up(self, record: Record, error: Exception, attempts: int) -> None:
        await self.give_up_handler(record, attempts)
        self.history.ends[place_of(record)] += 1
        self.history.given_up.append((place_of(record), str(error), attempts))

    async def assigned(self, assignment: Assignment, first_unfinished: int) -> None:
        self.history.assigned.append(assignment)
        if self.prepare is not None:
            await self.prepare(assignment)

    def revoked(self, assignments: Sequence[Assignment]) -> None:
        self.history.revoked.extend(assignments)

    async def ended(self, assignments: Sequence[Assignment]) -> None:
        self.history.ended.extend(assignments)


def on_stage(play: Callable[["Stage"], Awaitable[None]], partitions: int = 1) -> None:
    """Runs a play under virtual time, and expects that it broke no rule."""

    async def main(clock: Clock) -> None:
        stage = await staged(clock, partitions)
        await play(stage)
        if stage.history.violations:
            raise AssertionError(stage.history.violations[:10])

    run_virtual(main, START_MS)


class Stage:
    """A broker with one topic, a history, and dispatchers that come and go."""

    def __init__(self, clock: Clock, partitions: int = 1) -> None:
        self.clock = clock
        self.history = History()
        self.broker = WatchedBroker(clock, self.history)
        self.partitions = partitions
        self.work = RecordedWork(self.history)

    async def create(self) -> None:
        await self.broker.admin().create([TopicSpec(name=TOPIC, partitions=self.partitions)])

    def send(self, *keys: str, partition: int = 0, value: bytes = b"{}") -> None:
        """One record for each key, `-` for none, in one partition."""
        for key in keys:
            self.broker.append(TOPIC, value, None if key == "-" else key.encode(), partition, 0, ())

    def all_ended(self) -> bool:
        return len(self.history.ends) == sum(map(len, self.broker.logs.values()))

    def dispatcher(self, config: DispatchConfig | None = None, work: RecordedWork | None = None) -> Dispatcher:
        return Dispatcher(self.broker, work or self.work, config or DispatchConfig(), Random(7))

    @asynccontextmanager
    async def running(
        self, config: DispatchConfig | None = None, work: RecordedWork | None = None
    ) -> AsyncIterator[Dispatcher]:
        """A dispatcher that runs inside the block and is stopped, cleanly, at its end."""
        dispatcher, stopping = self.dispatcher(config, work), asyncio.Event()
        running = asyncio.create_task(dispatcher.run(stopping))
        try:
            yield dispatcher
            stopping.set()
            await running
        finally:
            running.cancel()
            await asyncio.wait([running])


async def staged(clock: Clock, partitions: int = 1) -> Stage:
    """A stage whose topic exists."""
    stage = Stage(clock, partitions)
    await stage.create()
    return stage


def place_of(record: Record) -> Place:
    return record.topic, record.partition, record.offset


async def at_once(record: Record, attempt: int) -> None:
    """A handler that has nothing to wait for."""


def taking(seconds: float) -> Handler:
    """A handler that takes so long."""

    async def handle(record: Record, attempt: int) -> None:
        await asyncio.sleep(seconds)

    return handle


async def until(condition: Callable[[], bool], within_seconds: float = 600.0) -> None:
    """Waits on the loop's (virtual) time until the condition holds.

    Raises: TimeoutError.
    """
    async with asyncio.timeout(within_seconds):
        while not condition():  # noqa: ASYNC110 - the conditions are plain state of other objects
            await asyncio.sleep(0.01)
