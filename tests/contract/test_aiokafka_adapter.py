"""What only a real Kafka can show of the adapter over aiokafka: refused batches, gaps, zombies, addresses without answer."""

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

import aiokafka.client
import confluent_kafka
import confluent_kafka.admin
import pytest
from aiokafka import TopicPartition as ClientPartition
from aiokafka.protocol.metadata import MetadataRequest
from aiokafka.record.default_records import _DefaultRecordBatchBuilderPy

from app.broker.aiokafka import AioKafkaBroker
from app.broker.aiokafka.consumer import AioKafkaConsumer
from app.broker.aiokafka.producer import AioKafkaProducer
from app.broker.aiokafka.sessions import Outgoing, Sessions
from app.broker.base import Broker, CommittedOffset
from app.broker.kafka import KafkaBroker
from app.broker.limits import Limits
from app.broker.topics import TopicSpec
from app.core.clock import SystemClock
from app.core.errors import Fenced, RecordTooEarly, RecordTooLarge, SetupError, Unavailable
from app.core.record import TopicPartition
from tests.contract import test_dispatch_kafka as dispatching
from tests.contract.conftest import Cluster, Member, poll_until, read_range
from tests.contract.test_dispatch_kafka import PARTITIONS, Scene

pytestmark = pytest.mark.kafka

HOUR_MS = 3_600_000
OLD_MS = 1_600_000_000_000


@pytest.fixture(params=["aiokafka"])
def broker_address(kafka_address: str) -> str:
    """Only this one."""
    return f"aio{kafka_address}"


@pytest.fixture
async def careless(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[AioKafkaProducer]:
    """A producer that checks no limit before it produces, so that the broker refuses whole batches."""
    monkeypatch.setattr(Limits, "check", lambda *arguments: None)
    producer = cluster.broker.producer()
    assert isinstance(producer, AioKafkaProducer)
    await producer.start()
    yield producer
    await producer.close()


async def test_refused_batch_neighbours_of_the_bad_records_arrive(cluster: Cluster, careless: AioKafkaProducer) -> None:
    """Halved until only the bad ones are left, which fail with their own error; the others keep order, time, headers,
    and the partition takes what comes after, in spite of the numbers that the refused batches used up."""
    topic = await cluster.topic(time="event", max_ahead_ms=60_000, max_message_bytes=20_000, retention_ms=None)
    headers = (("n", b"1"),)
    await careless.confirm(topic, b"-1", b"k", timestamp_ms=OLD_MS, headers=headers)
    for number in range(50):
        await careless.send(topic, b"%d" % number, b"k", timestamp_ms=OLD_MS + number, headers=headers)
        if number == 20:
            await careless.send(topic, b"early", b"k", timestamp_ms=SystemClock().now_ms() + HOUR_MS)
        if number == 30:
            await careless.send(topic, b"x" * 19_990, b"k", timestamp_ms=OLD_MS)
    failures = await careless.flush()
    assert {RecordTooEarly: b"early", RecordTooLarge: b"x" * 19_990} == {type(f.error): f.value for f in failures}
    await careless.confirm(topic, b"50", b"k", timestamp_ms=OLD_MS + 50, headers=headers)
    records = await cluster.read_all(topic)
    assert list(range(-1, 51)) == [int(record.value or b"") for record in records]
    for record in records[1:]:
        assert (OLD_MS + int(record.value or b""), headers) == (record.timestamp_ms, record.headers)
    statistics = careless.statistics()
    assert (54, 52, 2, 0) == (statistics.sent, statistics.acknowledged, statistics.failed, statistics.queued)


async def test_refused_batch_of_confirms_only_the_bad_one_raises(cluster: Cluster, careless: AioKafkaProducer) -> None:
    """Whoever awaits a good record gets its place, also where its batch was refused."""
    topic = await cluster.topic(time="event", max_ahead_ms=60_000, retention_ms=None)
    early_ms = SystemClock().now_ms() + HOUR_MS
    results = await asyncio.gather(
        *(careless.confirm(topic, b"%d" % n, b"k", timestamp_ms=early_ms if n == 7 else 1) for n in range(20)),
        return_exceptions=True,
    )
    assert [7] == [number for number, result in enumerate(results) if isinstance(result, BaseException)]
    assert isinstance(results[7], RecordTooEarly)
    assert 19 == len(await cluster.read_all(topic))


async def test_ablation_one_session_for_all_batches_is_broken_by_a_refused_one(
    cluster: Cluster, careless: AioKafkaProducer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without another session after a failure the partition takes nothing any more: the numbers have a gap."""

    async def send(self: Sessions, topic: str, partition: int, records: list[Outgoing]) -> int:
        client = await self.current()
        batch = client.create_batch()
        for record in records:
            batch.append(timestamp=record.timestamp_ms, key=record.key, value=record.value)
        return int((await (await client.send_batch(batch, topic, partition=partition))).offset)

    topic = await cluster.topic(time="event", max_ahead_ms=60_000)
    await careless.confirm(topic, b"first")
    monkeypatch.setattr(Sessions, "send", send)
    with pytest.raises(RecordTooEarly):
        await careless.confirm(topic, b"early", timestamp_ms=SystemClock().now_ms() + HOUR_MS)
    with pytest.raises(Unavailable, match="OutOfOrder"):
        await careless.confirm(topic, b"good")


async def expelled_and_alone(cluster: Cluster, topic: str, group: str) -> Member:
    """A member that its group has forgotten, that knows so, and that was not polled since."""
    member = await cluster.join(group, topic)
    await member.poll_until(lambda: len(member.places()) == 1)
    await cluster.expel(member)
    async with asyncio.timeout(10):
        while member.consumer.assignments():  # noqa: ASYNC110 - by the next heartbeat
            await asyncio.sleep(0.02)
    return member


async def test_commit_of_an_expelled_member_never_reaches_an_empty_group(cluster: Cluster) -> None:
    """A broker takes a commit without generation from anybody while the group is empty. Ours has one, or is not sent."""
    topic, group = await cluster.topic(), cluster.unique("group")
    place = TopicPartition(topic, 0)
    member = await cluster.join(group, topic)
    await member.poll_until(lambda: len(member.places()) == 1)
    held = member.held(place)
    await cluster.expel(member)
    with pytest.raises(Fenced):  # it does not know yet, the broker does
        await member.consumer.commit({held: CommittedOffset(7)})
    zombie = await expelled_and_alone(cluster, topic, cluster.unique("group"))
    with pytest.raises(Fenced):
        await zombie.consumer.commit({held: CommittedOffset(7)})
    assert {place: None} == await zombie.consumer.committed([place])


async def test_ablation_the_librarys_own_commit_is_a_zombies(cluster: Cluster) -> None:
    """Without that wall the offset of a member that was expelled is taken."""
    topic = await cluster.topic()
    place = TopicPartition(topic, 0)
    zombie = await expelled_and_alone(cluster, topic, cluster.unique("group"))
    client: Any = zombie.consumer._client  # type: ignore[attr-defined]
    await client.commit({ClientPartition(*place): 7})
    assert {place: CommittedOffset(7)} == await zombie.consumer.committed([place])


async def test_commit_under_an_old_generation_is_refused_by_the_broker(cluster: Cluster) -> None:
    """Should our own check let a late commit through: a living member's last assignment is not this one."""
    topic, group = await cluster.topic(partitions=2), cluster.unique("group")
    places = [TopicPartition(topic, 0), TopicPartition(topic, 1)]
    first = await cluster.join(group, topic)
    await first.poll_until(lambda: len(first.places()) == 2)
    assert isinstance(first.consumer, AioKafkaConsumer)
    coordinator = first.consumer._coordinator
    old = coordinator.generation
    second = await cluster.join(group, topic)
    await poll_until([first, second], lambda: len(first.places()) == len(second.places()) == 1)
    new, coordinator.generation = coordinator.generation, old
    with pytest.raises(Fenced):
        await coordinator.commit(dict.fromkeys(places, CommittedOffset(9)), lambda: None)
    coordinator.generation = new
    assert dict.fromkeys(places) == await first.consumer.committed(places)


async def test_group_is_handed_on_between_both_adapters(cluster: Cluster, kafka_address: str) -> None:
    """Offsets and their metadata stay when all members of a group stop and come back by the other adapter."""
    topic, group = await cluster.topic(), cluster.unique("group")
    place = TopicPartition(topic, 0)
    await cluster.fill(topic, 10)
    brokers: list[Broker] = [KafkaBroker(kafka_address, SystemClock()), cluster.broker] * 2
    for number, broker in enumerate(brokers):
        member = Member(broker, group, [topic])
        await member.consumer.start()
        await member.poll_until(lambda member=member: bool(member.records))  # type: ignore[misc]
        assert number == member.records[0].offset
        before = {place: CommittedOffset(number, f"by {number - 1}") if number else None}
        assert before == await member.consumer.committed([place])
        await member.consumer.commit({member.held(place): CommittedOffset(number + 1, f"by {number}")})
        await member.consumer.close()
    await brokers[0].close()
    await brokers[2].close()


async def test_read_passes_over_offsets_without_records(cluster: Cluster) -> None:
    """Markers leave gaps, and what a transaction gave up is not read: a read ends at its range's end all the same."""
    topic = await cluster.topic()
    place = TopicPartition(topic, 0)
    producer = confluent_kafka.Producer(
        {"bootstrap.servers": cluster.broker.address.removeprefix("aiokafka://"), "transactional.id": topic}
    )

    def write() -> None:
        producer.init_transactions(10)
        for number in range(4):
            producer.begin_transaction()
            producer.produce(topic, b"%d" % number)
            producer.flush(10)
            producer.abort_transaction(10) if number == 2 else producer.commit_transaction(10)

    await asyncio.to_thread(write)
    reader = cluster.broker.reader()
    async with asyncio.timeout(10):
        while {place: 8} != await reader.end_offsets([place]):  # the last marker follows its commit
            pass

    async def offsets(start: int, stop: int) -> list[int]:
        return [record.offset for record in await read_range(reader, place, start, stop)]

    assert [0, 2, 6] == await offsets(0, 8)
    assert [2] == await offsets(1, 4)
    assert [] == await offsets(3, 4)
    assert [] == await offsets(7, 8)
    await reader.close()


async def test_read_begins_at_what_retention_left(cluster: Cluster) -> None:
    """Where the beginning was deleted a read begins with what is still there, and so does a new group."""
    topic = await cluster.topic()
    place = TopicPartition(topic, 0)
    await cluster.fill(topic, 10)
    servers = cluster.broker.address.removeprefix("aiokafka://")
    admin = confluent_kafka.admin.AdminClient({"bootstrap.servers": servers})
    (deleted,) = admin.delete_records([confluent_kafka.TopicPartition(topic, 0, 6)]).values()
    await asyncio.wrap_future(deleted)
    reader = cluster.broker.reader()
    assert {place: 6} == await reader.beginning_offsets([place])
    assert [6, 7, 8, 9] == [record.offset for record in await read_range(reader, place, 0, 10)]
    assert [] == await read_range(reader, place, 0, 5)
    await reader.close()
    member = await cluster.join(cluster.unique("group"), topic)
    await member.poll_until(lambda: len(member.records) == 4)


async def test_start_unreachable_broker_is_unavailable_within_ten_seconds() -> None:
    """Consumer, producer, admin and reader name the address that does not answer, and leave nothing open."""
    address = "aiokafka://127.0.0.1:1"

    async def start(what: str) -> None:
        broker = AioKafkaBroker(address, SystemClock())
        try:
            if what == "consumer":
                await Member(broker, "group", ["topic"]).consumer.start()
            elif what == "producer":
                await broker.producer().start()
            elif what == "admin":
                await broker.admin().brokers()
            else:
                await broker.reader().end_offsets([TopicPartition("topic", 0)])
        finally:
            await broker.close()

    async with asyncio.timeout(10):
        results = await asyncio.gather(*map(start, ("consumer", "producer", "admin", "reader")), return_exceptions=True)
    for result in results:
        assert isinstance(result, Unavailable)
        assert address in str(result)


async def test_start_mute_broker_is_unavailable_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that takes the connection and says nothing is no broker."""
    monkeypatch.setattr("app.broker.aiokafka.cluster.START_SECONDS", 0.3)
    monkeypatch.setattr("app.broker.aiokafka.cluster.WHY_SECONDS", 0.1)
    monkeypatch.setattr("app.broker.diagnosis.SOCKET_SECONDS", 0.1)
    held: set[asyncio.StreamWriter] = set()

    async def keep(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        held.add(writer)
        await reader.read()  # until the client has closed the connection, which it must
        writer.close()
        await writer.wait_closed()
        held.remove(writer)

    async with await asyncio.start_server(keep, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        broker = AioKafkaBroker(f"aiokafka://127.0.0.1:{port}", SystemClock())
        async with asyncio.timeout(5):
            with pytest.raises(Unavailable):
                await broker.producer().start()
            while held:  # noqa: ASYNC110
                await asyncio.sleep(0.01)


@pytest.mark.parametrize(
    "address", ["aiokafka://", "aiokafka://host", "aiokafka://host:port", "kafka://a:1", "aiokafka://a:1,b"]
)
def test_broker_address_of_another_form_is_a_setup_error(address: str) -> None:
    """The message shows the right form."""
    with pytest.raises(SetupError, match=r"aiokafka://host:port"):
        AioKafkaBroker(address, SystemClock())


async def test_clients_ask_for_no_single_topic(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    """A question about one topic creates it on a cluster that allows that; ours are about all of them."""
    asked: list[object] = []

    class Noted(MetadataRequest):  # type: ignore[misc]
        def __init__(self, topics: object = None, **more: Any) -> None:
            asked.append(topics)
            super().__init__(topics, **more)

    topic = await cluster.topic()
    monkeypatch.setattr(aiokafka.client, "MetadataRequest", Noted)
    await cluster.fill(topic, 3)
    await cluster.read_all(topic)
    member = await cluster.join(cluster.unique("group"), topic)
    await member.poll_until(lambda: len(member.records) == 3)
    assert asked
    assert {None} == {topics for topics in asked if topics != []}  # [] asks for the brokers alone


async def write_header_name(address: str, topic: str, name: bytes, partition: int = 0) -> None:
    """A record whose header's name is these bytes, which no producer offers to write."""

    class Raw(str):
        def encode(self, *_: str) -> bytes:
            return name

    client = aiokafka.AIOKafkaProducer(bootstrap_servers=address.removeprefix("aiokafka://"))
    await client.start()
    batch = client.create_batch()
    batch._builder = _DefaultRecordBatchBuilderPy(2, 0, 0, -1, -1, 0, 10_000)
    batch.append(timestamp=1, key=None, value=b"1", headers=[(Raw("name"), b"v")])
    await (await client.send_batch(batch, topic, partition=partition))
    await client.stop()


async def test_header_name_that_is_text_of_any_language_is_read(cluster: Cluster) -> None:
    """Names in UTF-8 come back; the other adapter reads them as well."""
    topic = await cluster.topic()
    await write_header_name(cluster.broker.address, topic, "größe".encode())
    (record,) = await cluster.read_all(topic)
    assert (("größe", b"v"),) == record.headers


@pytest.mark.xfail(
    strict=True, raises=UnicodeDecodeError, reason="aiokafka decodes header names and cannot be told not to"
)
async def test_header_name_that_is_not_text_stops_nothing(cluster: Cluster) -> None:
    """Whatever others write into headers, the record and its neighbours are read."""
    topic = await cluster.topic()
    await cluster.fill(topic, 1)
    await write_header_name(cluster.broker.address, topic, b"\xff\xfe")
    member = await cluster.join(cluster.unique("group"), topic)
    await member.poll_until(lambda: len(member.records) == 2)


async def before_a_bad_record(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> Member:
    """A member of two partitions: the first has three records, the second one that cannot be read. They are fetched in
    this order, together."""
    monkeypatch.setattr("aiokafka.consumer.fetcher.random.shuffle", lambda some: some.sort())
    topic = await cluster.topic(partitions=2)
    await cluster.fill(topic, 3)
    await write_header_name(cluster.broker.address, topic, b"\xff\xfe", partition=1)
    return await cluster.join(cluster.unique("group"), topic)


async def test_failure_in_the_midst_of_a_fetch_ends_the_consumer(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every poll raises it from then on, so that nobody commits beyond records that were not returned."""
    member = await before_a_bad_record(cluster, monkeypatch)
    for _ in range(3):
        with pytest.raises(UnicodeDecodeError):
            await member.poll_until(lambda: False)
    assert [] == member.records


async def test_ablation_polling_on_after_a_failure_passes_over_records(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without that end the library goes on behind records of another partition that nobody was given."""
    member = await before_a_bad_record(cluster, monkeypatch)
    assert isinstance(member.consumer, AioKafkaConsumer)
    for _ in range(3):
        member.consumer._failure = None
        with pytest.raises(UnicodeDecodeError):
            await member.poll_until(lambda: False)
    assert member.consumer._client is not None
    (topic,) = member.consumer.topics
    assert (0, 3) == (len(member.records), await member.consumer._client.position(ClientPartition(topic, 0)))


async def test_dispatch_member_that_dies_loses_nothing(broker_address: str, unique: Callable[[str], str]) -> None:
    """The dispatcher's own test over this adapter: eager rebalances, one of two members cancelled in its work."""
    broker = AioKafkaBroker(broker_address, SystemClock())
    topic = unique("dispatch")
    await broker.admin().create([TopicSpec(name=topic, partitions=PARTITIONS)])
    await dispatching.test_dispatch_kafka_member_that_dies_loses_nothing(Scene(broker, topic, unique("dispatch-group")))
    await broker.close()
