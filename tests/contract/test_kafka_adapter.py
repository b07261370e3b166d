"""What only a real Kafka can show: refused batches, gaps in offsets, full queues, addresses that do not answer."""

import asyncio
import ctypes
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import confluent_kafka
import confluent_kafka.admin
import pytest

from app.broker.kafka import KafkaBroker, admin
from app.broker.kafka.producer import KafkaProducer
from app.broker.limits import Limits
from app.core.clock import SystemClock
from app.core.errors import RecordTooEarly, RecordTooLarge, SetupError, Unavailable
from app.core.record import TopicPartition
from tests.contract.conftest import Cluster, Member, read_range

pytestmark = pytest.mark.kafka

HOUR_MS = 3_600_000


@pytest.fixture(params=["kafka"])
def broker_address(request: pytest.FixtureRequest) -> str:
    """Only the real one."""
    return str(request.getfixturevalue("kafka_address"))


@pytest.fixture
async def careless(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[KafkaProducer]:
    """A producer that checks no limit before it produces, so that the broker refuses whole batches."""
    monkeypatch.setattr(Limits, "check", lambda *arguments: None)
    producer = cluster.broker.producer()
    assert isinstance(producer, KafkaProducer)
    await producer.start()
    yield producer
    await producer.close()


async def test_refused_batch_neighbours_of_the_bad_records_arrive(cluster: Cluster, careless: KafkaProducer) -> None:
    """A broker refuses a batch for one record in it; sent again alone, only the bad ones fail, with their own error."""
    topic = await cluster.topic(time="event", max_ahead_ms=60_000, max_message_bytes=20_000, retention_ms=None)
    old_ms = 1_600_000_000_000
    headers = (("n", b"1"),)
    for number in range(50):
        await careless.send(topic, b"%d" % number, b"k", timestamp_ms=old_ms + number, headers=headers)
        if number == 20:
            await careless.send(topic, b"early", b"k", timestamp_ms=SystemClock().now_ms() + HOUR_MS)
        if number == 30:
            await careless.send(topic, b"x" * 19_990, b"k", timestamp_ms=old_ms)
    failures = await careless.flush()
    assert {RecordTooEarly: b"early", RecordTooLarge: b"x" * 19_990} == {type(f.error): f.value for f in failures}
    records = await cluster.read_all(topic)
    assert sorted(range(50)) == sorted(int(record.value or b"") for record in records)
    for record in records:
        assert (old_ms + int(record.value or b""), headers) == (record.timestamp_ms, record.headers)
    statistics = careless.statistics()
    assert (52, 50, 2, 0) == (statistics.sent, statistics.acknowledged, statistics.failed, statistics.queued)


async def test_refused_confirm_is_answered_before_the_producer_has_closed(
    cluster: Cluster, careless: KafkaProducer
) -> None:
    """Who waits for an acknowledgement never waits for nobody."""
    topic = await cluster.topic(time="event", max_ahead_ms=60_000)
    await careless.confirm(topic, b"first", b"k")
    early_ms = SystemClock().now_ms() + HOUR_MS
    waiting = asyncio.ensure_future(careless.confirm(topic, b"early", b"k", timestamp_ms=early_ms))
    await asyncio.sleep(0)
    await careless.close()
    with pytest.raises(RecordTooEarly):
        async with asyncio.timeout(5):
            await waiting


async def test_refused_batch_of_send_many_keeps_every_records_time(cluster: Cluster, careless: KafkaProducer) -> None:
    """Equal records with different times are told apart when they are sent again."""
    topic = await cluster.topic(time="event", max_ahead_ms=60_000, retention_ms=None)
    old_ms = 1_600_000_000_000
    records = [(b"same", b"k", old_ms + number) for number in range(30)]
    records[10] = (b"early", b"k", SystemClock().now_ms() + HOUR_MS)
    await careless.send_many(topic, records)
    (failure,) = await careless.flush()
    assert isinstance(failure.error, RecordTooEarly)
    expected = [old_ms + number for number in range(30) if number != 10]
    assert expected == sorted(record.timestamp_ms for record in await cluster.read_all(topic))


async def test_refused_batch_of_confirms_only_the_bad_one_raises(cluster: Cluster, careless: KafkaProducer) -> None:
    """Whoever awaits a good record gets its place, also where its batch was refused."""
    topic = await cluster.topic(time="event", max_ahead_ms=60_000, retention_ms=None)
    early_ms = SystemClock().now_ms() + HOUR_MS
    await careless.confirm(topic, b"first", b"k", timestamp_ms=1)
    results = await asyncio.gather(
        *(careless.confirm(topic, b"%d" % n, b"k", timestamp_ms=early_ms if n == 7 else 1) for n in range(20)),
        return_exceptions=True,
    )
    assert [7] == [number for number, result in enumerate(results) if isinstance(result, BaseException)]
    assert isinstance(results[7], RecordTooEarly)
    assert 20 == len(await cluster.read_all(topic))


async def test_full_queue_try_send_says_so_and_send_waits(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    """A full queue is no error: try_send returns False, send and send_many wait, nothing is lost."""
    topic = await cluster.topic()
    producer = cluster.broker.producer()
    assert isinstance(producer, KafkaProducer)
    settings = producer._cluster.settings

    def small(**more: Any) -> dict[str, Any]:
        return settings(**more) | ({"queue.buffering.max.messages": 10} if "acks" in more else {})

    monkeypatch.setattr(producer._cluster, "settings", small)
    await producer.start()
    await producer.send(topic, b"first", b"k")
    taken = [producer.try_send(topic, b"burst", b"k") for _ in range(100)]
    assert False in taken
    for _ in range(100):
        await producer.send(topic, b"waited", b"k")
    assert 300 == await producer.send_many(topic, [(b"many", b"k", 0)] * 300)
    await asyncio.gather(*(producer.confirm(topic, b"confirmed", b"k") for _ in range(100)))
    assert [] == await producer.flush()
    await producer.close()
    assert 1 + taken.count(True) + 100 + 300 + 100 == len(await cluster.read_all(topic))


async def test_limits_are_asked_once_a_topic_for_all_who_wait(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first record of a topic waits for its limits, with those behind it; nobody asks again."""
    topic = await cluster.topic()
    asked: list[str] = []
    configs = admin.topic_configs

    def counted(client: Any, names: list[str]) -> Any:
        asked.extend(names)
        return configs(client, names)

    monkeypatch.setattr("app.broker.kafka.producer.topic_configs", counted)
    producer = cluster.broker.producer()
    await producer.start()
    await asyncio.gather(*(producer.send(topic, b"v") for _ in range(50)))
    await producer.confirm(topic, b"v")
    assert producer.try_send(topic, b"v")
    assert [] == await producer.flush()
    await producer.close()
    assert [topic] == asked


async def test_limits_nobody_waits_for_any_more_stop_nothing(cluster: Cluster) -> None:
    """A cancelled send leaves the question to the others; a closed producer leaves none behind."""
    topic = await cluster.topic()
    producer = cluster.broker.producer()
    await producer.start()
    first, second = (asyncio.ensure_future(producer.send(topic, b"v")) for _ in range(2))
    await asyncio.sleep(0)
    first.cancel()
    await second
    other = asyncio.ensure_future(producer.send(await cluster.topic(), b"v"))
    await asyncio.sleep(0)
    other.cancel()
    await producer.close()
    assert 1 == producer.statistics().acknowledged


def end_client(client: confluent_kafka.Producer) -> None:
    """What a lost session does to a producing client: a fatal error. The library offers it to tests, in C only."""
    (library,) = (Path(confluent_kafka.__file__).parent.parent / "confluent_kafka.libs").glob("librdkafka*")
    raise_fatal = ctypes.CDLL(str(library)).rd_kafka_test_fatal_error
    raise_fatal.argtypes = [ctypes.c_void_p, ctypes.c_int, ctypes.c_char_p]
    behind_header = ctypes.cast(id(client) + object.__basicsize__, ctypes.POINTER(ctypes.c_void_p))
    assert 0 == raise_fatal(behind_header[0], confluent_kafka.KafkaError.OUT_OF_ORDER_SEQUENCE_NUMBER, b"planned")


async def test_fatal_error_what_was_sent_fails_and_what_follows_arrives(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A client that ended is replaced: its records are told as lost, once, and the next ones go to another client."""
    monkeypatch.setattr("app.broker.kafka.producer.LINGER_MS", 30_000)  # it is lost before it leaves
    topic = await cluster.topic()
    producer = cluster.broker.producer()
    assert isinstance(producer, KafkaProducer)
    await producer.start()
    await producer.confirm(topic, b"first", b"k")
    await producer.send(topic, b"lost", b"k")
    assert producer._counting is not None
    end_client(producer._counting.current)
    with pytest.raises(Unavailable):
        await producer.flush()
    assert producer.try_send(topic, b"sent", b"k")
    assert [] == await producer.flush()
    end_client(producer._counting.current)
    assert 2 == await producer.send_many(topic, [(b"many", b"k", 0), (b"many", b"k", 0)])
    assert [] == await producer.flush()
    await producer.close()
    assert [b"first", b"sent", b"many", b"many"] == [record.value for record in await cluster.read_all(topic)]
    statistics = producer.statistics()
    assert (5, 4, 1, 0) == (statistics.sent, statistics.acknowledged, statistics.failed, statistics.queued)


async def test_fatal_error_of_the_confirming_client_hangs_nobody(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who waits for an acknowledgement of the client that ended is told; the next one is acknowledged."""
    topic = await cluster.topic()
    producer = cluster.broker.producer()
    assert isinstance(producer, KafkaProducer)
    settings = producer._cluster.settings
    monkeypatch.setattr(producer._cluster, "settings", lambda **more: settings(**more) | {"linger.ms": 300})
    await producer.start()
    await producer.confirm(topic, b"first", b"k")
    assert producer._confirming is not None
    async with asyncio.timeout(20):
        end_client(producer._confirming._client.current)
        assert 1 == (await producer.confirm(topic, b"second", b"k")).offset
        waiting = asyncio.ensure_future(producer.confirm(topic, b"third", b"k"))
        await asyncio.sleep(0)
        end_client(producer._confirming._client.current)
        with pytest.raises(Unavailable):
            await waiting
        await producer.confirm(topic, b"fourth", b"k")
        await producer.close()


async def test_flush_ends_under_a_steady_stream(cluster: Cluster) -> None:
    """A flush is for what was sent before it, so those who go on sending cannot hold it up."""
    topic = await cluster.topic()
    producer = cluster.broker.producer()
    await producer.start()
    stopping = False

    async def stream() -> int:
        sent = 0
        while not stopping:
            await producer.send(topic, b"v", b"k")
            sent += 1
        return sent

    streaming = asyncio.ensure_future(stream())
    async with asyncio.timeout(20):
        for _ in range(20):
            await asyncio.sleep(0)
            assert [] == await producer.flush()
    stopping = True
    sent = await streaming
    await producer.close()
    assert sent == len(await cluster.read_all(topic))


async def test_read_passes_over_offsets_without_records(cluster: Cluster) -> None:
    """Markers and compaction leave gaps: a read ends at its range's end, also where nothing lies there."""
    topic = await cluster.topic()
    place = TopicPartition(topic, 0)
    producer = confluent_kafka.Producer(
        {"bootstrap.servers": cluster.broker.address.removeprefix("kafka://"), "transactional.id": topic}
    )

    def write() -> None:
        producer.init_transactions(10)
        for number in range(4):
            producer.begin_transaction()
            producer.produce(topic, b"%d" % number)
            producer.commit_transaction(10)  # its marker takes an offset

    await asyncio.to_thread(write)
    reader = cluster.broker.reader()
    async with asyncio.timeout(10):
        while {place: 8} != await reader.end_offsets([place]):  # the last marker follows its commit
            pass

    async def offsets(start: int, stop: int) -> list[int]:
        return [record.offset for record in await read_range(reader, place, start, stop)]

    assert [0, 2, 4, 6] == await offsets(0, 8)
    assert [2] == await offsets(1, 4)
    assert [] == await offsets(3, 4)
    assert [] == await offsets(7, 8)
    await reader.close()


async def test_read_begins_at_what_retention_left(cluster: Cluster) -> None:
    """Where the beginning was deleted a read begins with what is still there."""
    topic = await cluster.topic()
    place = TopicPartition(topic, 0)
    await cluster.fill(topic, 10)
    admin = confluent_kafka.admin.AdminClient({"bootstrap.servers": cluster.broker.address.removeprefix("kafka://")})
    (deleted,) = admin.delete_records([confluent_kafka.TopicPartition(topic, 0, 6)]).values()
    await asyncio.wrap_future(deleted)
    reader = cluster.broker.reader()
    assert {place: 6} == await reader.beginning_offsets([place])
    assert [6, 7, 8, 9] == [record.offset for record in await read_range(reader, place, 0, 10)]
    assert [] == await read_range(reader, place, 0, 5)
    await reader.close()


async def test_start_unreachable_broker_is_unavailable_within_ten_seconds() -> None:
    """Consumer, producer, admin and reader name the address that does not answer."""
    address = "kafka://127.0.0.1:1"

    async def start(what: str) -> None:
        broker = KafkaBroker(address, SystemClock())
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


@pytest.mark.parametrize(
    "address", ["kafka://", "kafka://host", "kafka://host:port", "127.0.0.1:9092", "kafka://a:1,b"]
)
def test_broker_address_of_another_form_is_a_setup_error(address: str) -> None:
    """The message shows the right form."""
    with pytest.raises(SetupError, match=r"kafka://host:port"):
        KafkaBroker(address, SystemClock())


async def test_header_name_that_is_not_text_stops_nothing(cluster: Cluster) -> None:
    """Whatever others write into headers, the record and its neighbours are read."""
    topic = await cluster.topic()
    await cluster.fill(topic, 1)
    raw = confluent_kafka.Producer({"bootstrap.servers": cluster.broker.address.removeprefix("kafka://")})
    raw.produce(topic, b"1", headers={"größe": b"\xff\xfe", "null": None})
    await asyncio.to_thread(raw.flush)
    member = await cluster.join(cluster.unique("group"), topic)
    await member.poll_until(lambda: len(member.records) == 2)
    assert (("größe", b"\xff\xfe"), ("null", b"")) == member.records[1].headers
