"""Dispatchers on a real Kafka: two members, one of which dies in the midst of its work, and nothing is lost."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from random import Random

import pytest

from app.broker.base import Assignment, Broker, CommittedOffset
from app.broker.kafka import KafkaBroker
from app.broker.kafka.membership import UNNAMED, Membership
from app.broker.topics import TopicSpec
from app.core.clock import SystemClock
from app.core.errors import SetupError, Unavailable
from app.core.record import Record, TopicPartition
from app.dispatch.consumer import Dispatcher
from app.dispatch.marks import WINDOW, decode_marks
from app.dispatch.retries import RetryPolicy
from app.dispatch.work import DispatchConfig

pytestmark = pytest.mark.kafka

PARTITIONS = 4
RECORDS = 4_000
CONFIG = DispatchConfig(
    concurrency=64, retry=RetryPolicy(max_attempts=8, first_delay_ms=5, longest_delay_ms=50), revoke_drain_ms=2_000
)


class CountedWork:
    """Handles a record in a few milliseconds, fails by chance, and writes down what ended where."""

    def __init__(self, topic: str, group: str, ends: list[tuple[int, int, bytes]], random: Random) -> None:
        self.topics: Sequence[str] = (topic,)
        self.group = group
        self.running: Counter[bytes] = Counter()
        self.overlaps = 0
        self.blocked = asyncio.Event()
        self.blocked.set()
        self._ends = ends
        self._random = random

    def passes_over(self, record: Record) -> bool:
        return False

    def lane(self, record: Record) -> bytes | None:
        return record.key

    async def handle(self, record: Record, attempt: int) -> None:
        key = record.key or b""
        self.running[key] += 1
        self.overlaps += self.running[key] > 1
        try:
            if record.value == b"blocks":
                await self.blocked.wait()
            await asyncio.sleep(self._random.random() * 0.02)
            if self._random.random() < 0.05:
                raise Unavailable("by chance")
        finally:
            self.running[key] -= 1
        self._ends.append((record.partition, record.offset, key))

    async def give_up(self, record: Record, error: Exception, attempts: int) -> None:
        self._ends.append((record.partition, record.offset, record.key or b""))

    async def assigned(self, assignment: Assignment, first_unfinished: int) -> None:
        """Nothing to look back at."""

    def revoked(self, assignments: Sequence[Assignment]) -> None:
        """Nothing costs."""

    async def ended(self, assignments: Sequence[Assignment]) -> None:
        """Nothing was kept."""


class Scene:
    """A topic with records, and everything that ended, whoever handled it."""

    def __init__(self, broker: Broker, topic: str, group: str) -> None:
        self.broker = broker
        self.topic = topic
        self.group = group
        self.ends: list[tuple[int, int, bytes]] = []
        self.works: list[CountedWork] = []

    def dispatcher(self) -> Dispatcher:
        self.works.append(CountedWork(self.topic, self.group, self.ends, Random(len(self.works))))
        return Dispatcher(self.broker, self.works[-1], CONFIG, Random(1))

    async def send(self, values: Mapping[int, bytes], count: int) -> None:
        """`count` records over all partitions; values: of single ones, by number."""
        producer = self.broker.producer()
        await producer.start()
        for number in range(count):
            key = f"u-{number % 300}".encode()
            value = values.get(number, b"{}")
            await producer.send(self.topic, value, key, partition=number % 300 % PARTITIONS)
        assert [] == await producer.flush()
        await producer.close()

    async def committed(self) -> dict[int, CommittedOffset | None]:
        """By partition, asked from outside the group's members."""
        consumer = self.broker.consumer(self.group, (self.topic,), _Nobody())
        await consumer.start()
        try:
            places = [TopicPartition(self.topic, partition) for partition in range(PARTITIONS)]
            return {place.partition: at for place, at in (await consumer.committed(places)).items()}
        finally:
            await consumer.close()

    def handled(self) -> set[tuple[int, int]]:
        return {(partition, offset) for partition, offset, _ in self.ends}


class _Nobody:
    async def on_assigned(self, assignments: Sequence[Assignment]) -> None: ...

    async def on_revoked(self, assignments: Sequence[Assignment]) -> None: ...

    async def on_lost(self, assignments: Sequence[Assignment]) -> None: ...


@pytest.fixture
async def scene(
    kafka_address: str, unique: Callable[[str], str], request: pytest.FixtureRequest
) -> AsyncIterator[Scene]:
    """Parametrized indirectly with a membership; without, as a worker has it that was given none."""
    membership = getattr(request, "param", UNNAMED)
    broker = KafkaBroker(kafka_address, SystemClock(), membership=membership)
    topic = unique("dispatch")
    admin = broker.admin()
    await admin.create([TopicSpec(name=topic, partitions=PARTITIONS)])
    await admin.close()
    yield Scene(broker, topic, unique("dispatch-group"))
    await broker.close()


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(45):
        while not condition():  # noqa: ASYNC110 - the conditions are plain state of other objects
            await asyncio.sleep(0.02)


@pytest.mark.parametrize("scene", [UNNAMED, Membership("classic")], ids=["consumer", "classic"], indirect=True)
async def test_dispatch_kafka_member_that_dies_loses_nothing(scene: Scene) -> None:
    """One of two members is cancelled in the midst of its work: all records end, in order per key within a member,
    and every partition is committed to its end."""
    stopping = asyncio.Event()
    first, second = scene.dispatcher(), scene.dispatcher()
    staying = asyncio.create_task(first.run(stopping))
    dying = asyncio.create_task(second.run(asyncio.Event()))
    await until(lambda: [2, 2] == [len(one.statistics().partitions) for one in (first, second)])
    await scene.send({}, RECORDS)
    await until(lambda: second.statistics().done > 100)
    dying.cancel()
    with pytest.raises(asyncio.CancelledError):
        await dying
    await until(lambda: len(scene.handled()) == RECORDS)
    await until(lambda: first.statistics().lag == 0 and len(first.statistics().partitions) == PARTITIONS)
    stopping.set()
    await staying
    assert [0, 0] == [work.overlaps for work in scene.works]
    assert RECORDS // 10 > len(scene.ends) - RECORDS, "more was repeated than can have been in flight"
    committed = await scene.committed()
    assert {partition: CommittedOffset(RECORDS // PARTITIONS) for partition in range(PARTITIONS)} == committed


async def test_dispatch_kafka_metadata_survives_and_nothing_is_repeated(scene: Scene) -> None:
    """What is done behind a stuck record travels through the real broker: a clean restart repeats none of it."""
    await scene.send({0: b"blocks"}, RECORDS)
    stopping = asyncio.Event()
    dispatcher = scene.dispatcher()
    scene.works[0].blocked.clear()
    running = asyncio.create_task(dispatcher.run(stopping))
    behind = len([number for number in range(RECORDS) if number % 300 == 0])  # of the stuck record's key, and it
    await until(lambda: dispatcher.statistics().done == RECORDS - behind)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    held = (await scene.committed())[0]
    assert held is not None
    assert 0 == held.offset
    known = decode_marks(held.offset, held.metadata)
    assert known is not None
    assert RECORDS // PARTITIONS - behind == len(known.marks)
    again = scene.dispatcher()
    running = asyncio.create_task(again.run(stopping))
    await until(lambda: len(scene.handled()) == RECORDS)
    assert RECORDS // PARTITIONS - behind == again.statistics().recorded
    stopping.set()
    await running
    assert RECORDS == len(scene.ends)


async def test_dispatch_kafka_full_window_pauses_and_comes_back(scene: Scene) -> None:
    """A stuck record fills its partition's window; the member stays in its group, and goes on when it is released."""
    count = (WINDOW + 1_500) * PARTITIONS
    await scene.send({0: b"blocks"}, count)
    stopping = asyncio.Event()
    dispatcher = scene.dispatcher()
    work = scene.works[0]
    work.blocked.clear()
    running = asyncio.create_task(dispatcher.run(stopping))
    place = TopicPartition(scene.topic, 0)
    keys = 300 // PARTITIONS
    stuck = -(-WINDOW // keys)  # of the window's records, those of the stuck record's key, and it
    others = (WINDOW + 1_500) * (PARTITIONS - 1)
    await until(lambda: dispatcher.statistics().done >= others + WINDOW * 7 // 8 - stuck)
    await until(lambda: (place,) == dispatcher.statistics().paused)
    assert max(offset for partition, offset, _ in scene.ends if partition == 0) < WINDOW
    work.blocked.set()
    await until(lambda: len(scene.ends) == count)
    await until(lambda: dispatcher.statistics().lag == 0 and not dispatcher.statistics().paused)
    stopping.set()
    await running
    assert 0 == work.overlaps


@pytest.mark.parametrize("scene", [Membership(instance="pod-1")], ids=["named"], indirect=True)
async def test_dispatch_kafka_named_member_ends_cleanly_without_leaving(scene: Scene) -> None:
    """A member with a name keeps its partitions when it stops; its epochs are closed all the same, and the next run under
    that name has nothing to repeat and nobody to suspect. A second one meanwhile is refused."""
    await scene.send({}, RECORDS)
    for part in (1, 2):
        stopping = asyncio.Event()
        dispatcher = scene.dispatcher()
        running = asyncio.create_task(dispatcher.run(stopping))
        await until(lambda part=part: len(scene.ends) >= RECORDS // 2 * part)  # type: ignore[misc]
        if part == 2:
            with pytest.raises(SetupError, match=r"^HEADRACE_INSTANCE: 'pod-1'"):
                await scene.dispatcher().run(asyncio.Event())
        stopping.set()
        await running
    assert RECORDS == len(scene.ends)
    reader = KafkaBroker(scene.broker.address, SystemClock())
    committed = await Scene(reader, scene.topic, scene.group).committed()
    await reader.close()
    assert {partition: CommittedOffset(RECORDS // PARTITIONS) for partition in range(PARTITIONS)} == committed
