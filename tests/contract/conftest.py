"""One cluster a test, memory or Kafka, and members that write down what they are told."""

import asyncio
import struct
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from typing import Any, Literal

import pytest
from aiokafka.protocol.group import LeaveGroupRequest

from app.broker.aiokafka import AioKafkaBroker
from app.broker.aiokafka.consumer import AioKafkaConsumer
from app.broker.base import Assignment, Broker, Consumer, Reader
from app.broker.kafka import KafkaBroker
from app.broker.kafka.consumer import KafkaConsumer
from app.broker.kafka.threads import run_through
from app.broker.memory import MemoryBroker, MemoryConsumer
from app.broker.topics import TopicSpec
from app.core.clock import SystemClock
from app.core.record import Record, TopicPartition
from app.local.services import SECURE_SERVICES, own_directory, running
from tests.secure import Running, Secured, secured_by

PATIENCE_SECONDS = 30.0

Kind = Literal["memory", "kafka", "aiokafka"]


class Member:
    """A consumer and the listener that it tells. `hooks` run inside the listener's calls, by kind."""

    def __init__(self, broker: Broker, group: str, topics: Sequence[str]) -> None:
        self.consumer: Consumer = broker.consumer(group, topics, self)
        self.events: list[tuple[str, list[Assignment]]] = []
        self.records: list[Record] = []
        self.hooks: dict[str, Callable[[Sequence[Assignment]], Awaitable[None]]] = {}

    async def on_assigned(self, assignments: Sequence[Assignment]) -> None:
        await self._told("assigned", assignments)

    async def on_revoked(self, assignments: Sequence[Assignment]) -> None:
        await self._told("revoked", assignments)

    async def on_lost(self, assignments: Sequence[Assignment]) -> None:
        await self._told("lost", assignments)

    async def _told(self, kind: str, assignments: Sequence[Assignment]) -> None:
        self.events.append((kind, list(assignments)))
        if kind in self.hooks:
            await self.hooks[kind](assignments)

    async def poll_once(self) -> None:
        self.records += await self.consumer.poll(timeout_ms=10)

    async def poll_until(self, condition: Callable[[], bool]) -> None:
        await poll_until([self], condition)

    def held(self, place: TopicPartition) -> Assignment:
        return next(held for held in self.consumer.assignments() if held.place == place)

    def places(self) -> set[TopicPartition]:
        return {held.place for held in self.consumer.assignments()}

    def told(self, kind: str) -> list[Assignment]:
        return [held for event, assignments in self.events if event == kind for held in assignments]


async def poll_until(members: Sequence[Member], condition: Callable[[], bool]) -> None:
    """Polls all members in turn, as they must be, until the condition holds."""
    async with asyncio.timeout(PATIENCE_SECONDS):
        while not condition():
            for member in members:
                await member.poll_once()


class Cluster:
    """A broker under test, with names that are this test's own."""

    def __init__(self, kind: Kind, broker: Broker, unique: Callable[[str], str]) -> None:
        self.kind = kind
        self.broker = broker
        self.unique = unique
        self._members: list[Member] = []

    async def topic(self, partitions: int = 1, **spec: Any) -> str:
        """Creates a topic and returns its name."""
        name = self.unique("topic")
        await self.broker.admin().create([TopicSpec(name=name, partitions=partitions, **spec)])
        return name

    async def join(
        self, group: str, *topics: str, **hooks: Callable[[Sequence[Assignment]], Awaitable[None]]
    ) -> Member:
        """A member that has joined; it is closed at the end of the test."""
        member = Member(self.broker, group, topics)
        member.hooks.update(hooks)
        await member.consumer.start()
        self._members.append(member)
        return member

    async def fill(self, topic: str, count: int, partition: int = 0) -> None:
        """Writes the values 0, 1, ... as text."""
        producer = self.broker.producer()
        await producer.start()
        for number in range(count):
            await producer.send(topic, b"%d" % number, b"key", partition=partition)
        assert [] == await producer.flush()
        await producer.close()

    async def read_all(self, topic: str, partition: int = 0) -> list[Record]:
        reader = self.broker.reader()
        records = await read_range(reader, TopicPartition(topic, partition), 0, 1_000_000)
        await reader.close()
        return records

    async def expel(self, member: Member) -> None:
        """The group forgets the member, as after a missed session; the member learns so later."""
        if isinstance(self.broker, MemoryBroker):
            assert isinstance(member.consumer, MemoryConsumer)
            self.broker.expel(member.consumer)
        elif isinstance(member.consumer, AioKafkaConsumer):
            assert member.consumer._client is not None
            coordinator = member.consumer._client._coordinator
            await coordinator._send_req(LeaveGroupRequest(member.consumer.group, coordinator.member_id))
        else:
            assert isinstance(member.consumer, KafkaConsumer)
            polling = member.consumer._polling
            assert polling is not None
            member_id = await run_through(polling.tell, polling._client.memberid)
            await send_leave(self.broker.address, member.consumer.group, member_id)

    async def close(self) -> None:
        for member in self._members:
            member.hooks.clear()
            await member.consumer.close()
        await self.broker.close()


async def read_range(reader: Reader, place: TopicPartition, start: int, stop: int) -> list[Record]:
    return [record async for batch in _batches(reader, place, start, stop) for record in batch]


def _batches(reader: Reader, place: TopicPartition, start: int, stop: int) -> AsyncIterator[list[Record]]:
    return reader.read(place, start, stop)


async def send_leave(address: str, group: str, member_id: str) -> None:
    """Tells the broker, in the member's name, that it leaves: a ConsumerGroupHeartbeat v0 with epoch -1.

    Source: Kafka's ConsumerGroupHeartbeatRequest.json, flexible version, request header v2.
    """

    def compact(text: str) -> bytes:
        return bytes([len(text) + 1]) + text.encode()

    null, no_tags = b"\x00", b"\x00"
    header = struct.pack(">hhih", 68, 0, 1, -1) + no_tags
    body = compact(group) + compact(member_id) + struct.pack(">i", -1) + null + null + struct.pack(">i", -1)
    body += null + null + null + no_tags
    host, port = address.removeprefix("kafka://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(struct.pack(">i", len(header + body)) + header + body)
    (size,) = struct.unpack(">i", await reader.readexactly(4))
    answer = await reader.readexactly(size)
    writer.close()
    await writer.wait_closed()
    assert 0 == struct.unpack(">h", answer[9:11])[0], answer  # behind correlation id, tags, throttle time


@pytest.fixture(
    params=["memory", pytest.param("kafka", marks=pytest.mark.kafka), pytest.param("aiokafka", marks=pytest.mark.kafka)]
)
def broker_address(request: pytest.FixtureRequest) -> str:
    """The address of each adapter of the broker contract in turn."""
    if request.param == "memory":
        return "memory://"
    address = str(request.getfixturevalue("kafka_address"))
    return address if request.param == "kafka" else f"aio{address}"


@pytest.fixture
async def cluster(broker_address: str, unique: Callable[[str], str]) -> AsyncIterator[Cluster]:
    """A broker at that address."""
    adapters: dict[str, tuple[Kind, Callable[[], Broker]]] = {
        "memory": ("memory", lambda: MemoryBroker(SystemClock())),
        "kafka": ("kafka", lambda: KafkaBroker(broker_address, SystemClock())),
        "aiokafka": ("aiokafka", lambda: AioKafkaBroker(broker_address, SystemClock())),
    }
    kind, make = adapters[broker_address.partition("://")[0]]
    cluster = Cluster(kind, make(), unique)
    yield cluster
    await cluster.close()


@pytest.fixture(scope="session")
def secured(kafka_address: str, redis_address: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Secured]:
    """Kafka and Redis that ask everybody who he is, of these tests' own, with all topics.

    kafka_address, redis_address: skips this where there are none.
    """
    directory = own_directory("test-secure")
    with running(directory, SECURE_SERVICES) as addresses:
        created = Running(("topics", "create"), addresses.variables, tmp_path_factory.mktemp("topics")).ended()
        assert 0 == created.code, created.err
        yield secured_by(directory, addresses.variables)
