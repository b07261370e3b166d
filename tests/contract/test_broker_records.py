"""What every broker adapter must do for records: placing, order, times, limits, acknowledgements, reading, topics."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from typing import cast

import pytest

from app.broker.base import Producer, Reader
from app.broker.sizes import batch_bytes
from app.broker.topics import TopicSpec, partition_of
from app.core.clock import SystemClock
from app.core.errors import RecordTooEarly, RecordTooLarge, Rejected
from app.core.record import Record, TopicPartition
from tests.contract.conftest import Cluster, read_range

HOUR_MS = 3_600_000


@pytest.fixture
async def producer(cluster: Cluster) -> AsyncIterator[Producer]:
    producer = cluster.broker.producer()
    await producer.start()
    yield producer
    await producer.close()


@pytest.fixture
async def reader(cluster: Cluster) -> AsyncIterator[Reader]:
    reader = cluster.broker.reader()
    yield reader
    await reader.close()


async def test_send_key_decides_the_partition_as_for_every_client(cluster: Cluster, producer: Producer) -> None:
    """A key's partition is the one that Java's clients choose."""
    topic = await cluster.topic(partitions=7)
    keys = [f"u-{number}".encode() for number in range(100)] + [b"", "Zoë".encode()]
    for key in keys:
        await producer.send(topic, b"v", key)
    await producer.flush()
    for partition in range(7):
        expected = [key for key in keys if partition_of(key, 7) == partition]
        assert expected == [record.key or b"" for record in await cluster.read_all(topic, partition)]


async def test_send_many_and_send_keep_the_order_of_a_key(cluster: Cluster, producer: Producer) -> None:
    """Records of one partition stay in the order in which they were sent, also from one call to the next."""
    topic = await cluster.topic()
    await producer.send(topic, b"0", b"k")
    assert 2_500 == await producer.send_many(topic, ((b"%d" % number, b"k", 0) for number in range(1, 2_501)))
    await producer.send(topic, b"2501", b"k")
    assert [] == await producer.flush()
    assert [b"%d" % number for number in range(2_502)] == [record.value for record in await cluster.read_all(topic)]


async def test_send_given_partition_counts_more_than_the_key(cluster: Cluster, producer: Producer) -> None:
    """An explicit partition is where the record goes."""
    topic = await cluster.topic(partitions=3)
    for partition in range(3):
        await producer.send(topic, b"v", b"same", partition=partition)
    await producer.flush()
    assert [1, 1, 1] == [len(await cluster.read_all(topic, partition)) for partition in range(3)]


async def test_record_null_and_empty_fields_and_headers_come_back(cluster: Cluster, producer: Producer) -> None:
    """Null stays null, empty stays empty, headers keep their order and repeats."""
    topic, confirmed = await cluster.topic(), await cluster.topic()
    headers = (("reason", b"too late"), ("n", b"1"), ("n", b"2"), ("empty", b""))
    await producer.send(topic, None, b"k")
    await producer.send(topic, b"v", None)
    await producer.send(topic, b"", b"", headers=headers)
    await producer.confirm(confirmed, b"", None, headers=headers)
    await producer.flush()
    records = [*await cluster.read_all(topic), *await cluster.read_all(confirmed)]
    found = [(record.key, record.value, record.headers) for record in records]
    assert [(b"k", None, ()), (None, b"v", ()), (b"", b"", headers), (None, b"", headers)] == found
    assert b"2" == records[-1].header("n")


async def test_record_time_is_the_publishers_on_an_event_topic(cluster: Cluster, producer: Producer) -> None:
    """CreateTime: the time given, however old; none given means now."""
    topic = await cluster.topic(time="event", retention_ms=None)
    before_ms = SystemClock().now_ms()
    await producer.send(topic, b"old", b"k", timestamp_ms=852_076_800_000)
    await producer.send(topic, b"now", b"k")
    await producer.flush()
    old, now = await cluster.read_all(topic)
    assert 852_076_800_000 == old.timestamp_ms
    assert before_ms <= now.timestamp_ms <= SystemClock().now_ms()


async def test_record_time_is_the_brokers_on_a_written_topic(cluster: Cluster, producer: Producer) -> None:
    """LogAppendTime: the time of writing, whatever was given, also one far ahead."""
    topic = await cluster.topic(time="written", max_ahead_ms=60_000)
    before_ms = SystemClock().now_ms()
    await producer.send(topic, b"old", b"k", timestamp_ms=1)
    await producer.send(topic, b"early", b"k", timestamp_ms=before_ms + HOUR_MS)
    assert [] == await producer.flush()
    for record in await cluster.read_all(topic):
        assert before_ms <= record.timestamp_ms <= SystemClock().now_ms()


async def test_send_too_large_record_fails_alone(cluster: Cluster, producer: Producer) -> None:
    """The largest batch that the topic takes passes; one byte more is an error for that record only."""
    limit = 20_000
    topic = await cluster.topic(max_message_bytes=limit)
    fitting = b"x" * (limit - batch_bytes(b"", b"key") - 4)
    assert limit == batch_bytes(fitting, b"key")
    await producer.confirm(topic, fitting, b"key")
    await producer.send(topic, b"before", b"key")
    with pytest.raises(RecordTooLarge):
        producer.try_send(topic, fitting + b"x", b"key")
    with pytest.raises(RecordTooLarge):
        await producer.confirm(topic, fitting + b"x", b"key")
    with pytest.raises(RecordTooLarge):
        await producer.send(topic, fitting, b"key", headers=(("h", b""),))
    await producer.send(topic, b"behind", b"key")
    assert [] == await producer.flush()
    assert [fitting, b"before", b"behind"] == [record.value for record in await cluster.read_all(topic)]


async def test_first_record_larger_than_the_usual_limit_arrives(cluster: Cluster, producer: Producer) -> None:
    """What a topic takes is known before its first record is judged."""
    topic = await cluster.topic(max_message_bytes=3_000_000)
    large = b"x" * 2_000_000
    if not producer.try_send(topic, large, b"key"):
        await producer.send(topic, large, b"key")
    assert producer.try_send(topic, large, b"key")
    assert [] == await producer.flush()
    assert [large, large] == [record.value for record in await cluster.read_all(topic)]


async def test_send_too_early_record_fails_alone(cluster: Cluster, producer: Producer) -> None:
    """A record further ahead than the topic takes is an error for that record only."""
    topic = await cluster.topic(time="event", max_ahead_ms=60_000)
    now_ms = SystemClock().now_ms()
    await producer.send(topic, b"now", b"k", timestamp_ms=now_ms + 30_000)
    with pytest.raises(RecordTooEarly, match="future"):
        producer.try_send(topic, b"early", b"k", timestamp_ms=now_ms + HOUR_MS)
    with pytest.raises(RecordTooEarly):
        await producer.confirm(topic, b"early", b"k", timestamp_ms=now_ms + HOUR_MS)
    assert [] == await producer.flush()
    assert [b"now"] == [record.value for record in await cluster.read_all(topic)]


async def test_send_many_refused_records_are_failures_of_the_next_flush(cluster: Cluster, producer: Producer) -> None:
    """Bad neighbours are reported once, each with its own error; the good ones arrive in order."""
    topic = await cluster.topic(time="event", max_ahead_ms=60_000, max_message_bytes=20_000)
    now_ms = SystemClock().now_ms()
    records = [(b"%d" % number, b"k", now_ms) for number in range(100)]
    records[10] = (b"early", b"k", now_ms + HOUR_MS)
    records[20] = (b"x" * 20_000, b"k", now_ms)
    assert 98 == await producer.send_many(topic, records)
    failures = await producer.flush()
    assert [RecordTooEarly, RecordTooLarge] == [type(failure.error) for failure in failures]
    assert [(b"k", b"early"), (b"k", b"x" * 20_000)] == [(failure.key, failure.value) for failure in failures]
    assert topic == failures[0].error.topic
    assert [] == await producer.flush()
    expected = [b"%d" % number for number in range(100) if number not in (10, 20)]
    assert expected == [record.value for record in await cluster.read_all(topic)]


async def test_confirm_says_where_the_record_is(cluster: Cluster, producer: Producer, reader: Reader) -> None:
    """The confirmation's place holds the record, at once."""
    topic = await cluster.topic(partitions=3)
    for number in range(20):
        confirmation = await producer.confirm(topic, b"%d" % number, b"key-%d" % number)
        place = TopicPartition(topic, confirmation.partition)
        (record,) = await read_range(reader, place, confirmation.offset, confirmation.offset + 1)
        assert b"%d" % number == record.value


async def test_confirm_many_at_once_all_return(cluster: Cluster, producer: Producer) -> None:
    """Hundreds of confirmations may be awaited together; each has its own offset."""
    topic = await cluster.topic()
    confirmations = await asyncio.gather(*(producer.confirm(topic, b"v", b"k") for _ in range(300)))
    assert list(range(300)) == sorted(confirmation.offset for confirmation in confirmations)


async def test_send_unknown_topic_is_rejected(cluster: Cluster, producer: Producer) -> None:
    """Writing to a topic that does not exist names the command that creates it."""
    nowhere = cluster.unique("nowhere")
    with pytest.raises(Rejected, match="topics create"):
        await producer.send(nowhere, b"v")
    with pytest.raises(Rejected, match="topics create"):
        await producer.confirm(nowhere, b"v")


async def test_producer_statistics_add_up(cluster: Cluster, producer: Producer) -> None:
    """What was sent is acknowledged or failed once it was flushed."""
    topic = await cluster.topic()
    for _ in range(10):
        await producer.send(topic, b"v", b"k")
    await producer.confirm(topic, b"v", b"k")
    await producer.flush()
    statistics = producer.statistics()
    assert (11, 11, 0, 0) == (statistics.sent, statistics.acknowledged, statistics.failed, statistics.queued)


async def test_producer_close_twice_delivers_what_was_sent(cluster: Cluster) -> None:
    """Closing flushes, and closing again does nothing."""
    topic = await cluster.topic()
    producer = cluster.broker.producer()
    await producer.start()
    await producer.send(topic, b"v", b"k")
    await producer.close()
    await producer.close()
    assert 1 == len(await cluster.read_all(topic))


async def test_read_range_is_half_open_and_cut_to_what_exists(cluster: Cluster, reader: Reader) -> None:
    """start counts, stop does not; a range beyond the end is shorter or empty."""
    topic = await cluster.topic(partitions=2)
    place = TopicPartition(topic, 0)
    await cluster.fill(topic, 2_300)

    async def offsets(start: int, stop: int) -> list[int]:
        return [record.offset for record in await read_range(reader, place, start, stop)]

    assert [3, 4, 5] == await offsets(3, 6)
    assert [2_298, 2_299] == await offsets(2_298, 9_999)
    assert [] == await offsets(2_300, 9_999)
    assert [] == await offsets(6, 6)
    assert list(range(2_300)) == await offsets(0, 2_300)
    assert [] == await read_range(reader, TopicPartition(topic, 1), 0, 10)


async def test_read_left_early_lets_the_next_read_begin(cluster: Cluster, reader: Reader) -> None:
    """A read may be abandoned after any batch."""
    topic = await cluster.topic()
    place = TopicPartition(topic, 0)
    await cluster.fill(topic, 5_000)
    async for batch in reader.read(place, 0, 5_000):
        assert 0 == batch[0].offset
        break
    assert 5_000 == len(await read_range(reader, place, 0, 5_000))


async def test_follow_gives_what_there_is_and_what_comes(cluster: Cluster, producer: Producer, reader: Reader) -> None:
    """From the start offset on, in order, each record soon after it was written; two followers see the same."""
    topic = await cluster.topic()
    place = TopicPartition(topic, 0)
    await cluster.fill(topic, 1_200)

    async def follow(start: int, stop: int) -> list[int]:
        found: list[int] = []
        async with aclosing(cast("AsyncGenerator[list[Record]]", reader.follow(place, start))) as batches:
            async for batch in batches:
                found += [record.offset for record in batch]
                if found[-1] >= stop - 1:
                    break
        return found

    async with asyncio.timeout(30), asyncio.TaskGroup() as tasks:
        early = tasks.create_task(follow(1_000, 1_300))
        late = tasks.create_task(follow(1_200, 1_300))
        for _ in range(100):
            await producer.confirm(topic, b"v", b"k")
    assert (list(range(1_000, 1_300)), list(range(1_200, 1_300))) == (early.result(), late.result())


async def test_follow_ends_when_cancelled_and_when_the_reader_closes(cluster: Cluster) -> None:
    """Nobody needs to write a record for a follower to end."""
    topic = await cluster.topic()
    await cluster.fill(topic, 1)
    reader = cluster.broker.reader()

    async def follow(begun: asyncio.Event) -> int:
        count = 0
        async for batch in reader.follow(TopicPartition(topic, 0), 0):
            count += len(batch)
            begun.set()
        return count

    async with asyncio.timeout(30):
        begun = asyncio.Event(), asyncio.Event()
        cancelled, closed = (asyncio.ensure_future(follow(each)) for each in begun)
        for each in begun:
            await each.wait()
        cancelled.cancel()
        await reader.close()
        assert 1 == await closed
        with pytest.raises(asyncio.CancelledError):
            await cancelled


async def test_follow_of_a_closed_reader_is_over_at_once(cluster: Cluster) -> None:
    """A follower that was still to begin when the reader closed gives nothing, and leaves no connection behind."""
    topic = await cluster.topic()
    reader = cluster.broker.reader()
    await reader.close()
    async with asyncio.timeout(30):
        assert not [batch async for batch in reader.follow(TopicPartition(topic, 0), 0)]


async def test_follow_unknown_topic_is_rejected(cluster: Cluster, reader: Reader) -> None:
    """A place that does not exist is an error, not a wait for ever."""
    with pytest.raises(Rejected):
        await anext(aiter(reader.follow(TopicPartition(cluster.unique("nowhere"), 0), 0)))


async def test_offsets_beginning_end_and_by_time(cluster: Cluster, producer: Producer, reader: Reader) -> None:
    """By time: the earliest record at or after it, also when times are out of order; the end where there is none."""
    topic = await cluster.topic(partitions=2, time="event", retention_ms=None)
    full, empty = TopicPartition(topic, 0), TopicPartition(topic, 1)
    base_ms = 1_600_000_000_000
    for time_ms in (base_ms, base_ms + 10, base_ms + 5, base_ms + 20):
        await producer.send(topic, b"v", b"k", partition=0, timestamp_ms=time_ms)
    await producer.flush()
    assert {full: 0, empty: 0} == await reader.beginning_offsets([full, empty])
    assert {full: 4, empty: 0} == await reader.end_offsets([full, empty])
    for time_ms, offset in ((0, 0), (base_ms, 0), (base_ms + 1, 1), (base_ms + 11, 3), (base_ms + 21, 4)):
        assert {full: offset, empty: 0} == await reader.offsets_for_times({full: time_ms, empty: time_ms})


async def test_read_unknown_topic_is_rejected(cluster: Cluster, reader: Reader) -> None:
    """A place that does not exist is an error, not an empty read."""
    place = TopicPartition(cluster.unique("nowhere"), 0)
    with pytest.raises(Rejected):
        await reader.end_offsets([place])
    with pytest.raises(Rejected):
        await read_range(reader, place, 0, 1)


async def test_admin_topic_is_created_described_listed_and_deleted(cluster: Cluster) -> None:
    """A second creation changes nothing and says so; a deleted topic is gone."""
    admin = cluster.broker.admin()
    spec = TopicSpec(
        name=cluster.unique("topic"),
        partitions=3,
        retention_ms=None,
        time="event",
        max_ahead_ms=60_000,
        cleanup="compact",
    )
    assert {spec.name: True} == await admin.create([spec])
    assert {spec.name: False} == await admin.create([spec])
    described = await admin.describe([spec.name, "nowhere"])
    assert described["nowhere"] is None
    found = described[spec.name]
    assert found is not None
    assert (3, 1) == (found.partitions, found.replication)
    assert spec.config().items() <= found.config.items()
    assert spec.name in await admin.list()
    assert not [name for name in await admin.list() if name.startswith("__")]
    assert 1 == await admin.brokers()
    await admin.delete([spec.name])
    assert spec.name not in await admin.list()
    assert {spec.name: None} == await admin.describe([spec.name])
    await admin.delete([spec.name])
    await admin.close()


async def test_admin_configure_changes_one_setting(cluster: Cluster) -> None:
    """A topic that exists takes another retention and keeps its other settings."""
    admin = cluster.broker.admin()
    topic = await cluster.topic(max_message_bytes=20_000)
    await admin.configure(topic, {"retention.ms": "-1"})
    described = (await admin.describe([topic]))[topic]
    assert described is not None
    assert ("-1", "20000") == (described.config["retention.ms"], described.config["max.message.bytes"])
    with pytest.raises(Rejected):
        await admin.configure(cluster.unique("nowhere"), {"retention.ms": "-1"})
