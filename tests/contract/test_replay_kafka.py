"""Replay into a real Kafka: every order of a real shop arrives once, in time order, to the cent."""

from collections.abc import AsyncIterator, Callable
from pathlib import Path

import msgspec
import pytest

from app.broker.kafka import KafkaBroker
from app.broker.topics import TopicRegistry, TopicSpec, dead_letters_of
from app.core.clock import SystemClock
from app.core.codec import to_cents
from app.core.errors import SetupError
from app.core.record import Record, TopicPartition
from app.sources.replay import ReplayOrder, replay
from features.records import Instant, OrderEvent, order_events
from tests.cdnow import CENTS, CUSTOMERS, ORDERS, ZEROS, cdnow_file

pytestmark = pytest.mark.kafka


class Note(msgspec.Struct, frozen=True):
    user_id: str
    text: str
    timestamp: Instant


@pytest.fixture
async def kafka(kafka_address: str) -> AsyncIterator[KafkaBroker]:
    broker = KafkaBroker(kafka_address, SystemClock(), replication=1)
    yield broker
    await broker.close()


async def created(broker: KafkaBroker, spec: TopicSpec, **on_the_broker: object) -> TopicRegistry:
    """The topics as declared; `on_the_broker`: what the cluster was told differently."""
    topics = TopicRegistry()
    topics.add(spec)
    topics.add(dead_letters_of(spec))
    admin = broker.admin()
    await admin.create([msgspec.structs.replace(spec, **on_the_broker), dead_letters_of(spec)])
    await admin.close()
    return topics


async def read_back(broker: KafkaBroker, spec: TopicSpec) -> list[list[Record]]:
    """The records of each partition."""
    reader = broker.reader()
    places = [TopicPartition(spec.name, partition) for partition in range(spec.partitions)]
    ends = await reader.end_offsets(places)
    logs = []
    for place in places:
        logs.append([record async for batch in reader.read(place, 0, ends[place]) for record in batch])
    await reader.close()
    return logs


async def test_replay_real_orders_arrive_to_the_cent(
    kafka: KafkaBroker, unique: Callable[[str], str], tmp_path: Path
) -> None:
    """69,659 orders and 250,031,563 cents, each partition in the order of time, repeated lines and zeros included."""
    spec = msgspec.structs.replace(order_events.source.spec, name=unique("raw.orders"), retention_ms=None, partitions=4)
    topics = await created(kafka, spec)
    order = ReplayOrder(
        file=cdnow_file(tmp_path),
        topic=spec.name,
        columns={"user_id": "customer_id", "timestamp": "date"},
        constants={"status": "placed"},
        timezone="UTC",
        id_field="order_id",
    )
    report = await replay(order, kafka, topics, SystemClock())
    assert (ORDERS, ORDERS, 0) == (report.rows, report.published, report.dead)
    logs = await read_back(kafka, spec)
    for log in logs:
        times_ms = [record.timestamp_ms for record in log]
        assert sorted(times_ms) == times_ms
    orders = [msgspec.json.decode(record.value or b"", type=OrderEvent) for log in logs for record in log]
    cents = [to_cents(one.amount_usd) for one in orders]
    assert (ORDERS, CENTS, ZEROS) == (len(orders), sum(cents), cents.count(0))
    assert CUSTOMERS == len({one.user_id for one in orders})
    assert ORDERS == len({one.order_id for one in orders})


async def test_replay_old_data_into_a_topic_that_forgets_is_refused(
    kafka: KafkaBroker, unique: Callable[[str], str], tmp_path: Path
) -> None:
    """What counts is how long the broker keeps, not what is declared here."""
    spec = msgspec.structs.replace(order_events.source.spec, name=unique("raw.orders"), retention_ms=None, partitions=1)
    topics = await created(kafka, spec, retention_ms=7 * 86_400_000)
    file = tmp_path / "orders.csv"
    file.write_text("order_id,user_id,amount_usd,status,timestamp\no-1,u-1,1.00,placed,1997-01-01T00:00:00Z\n")
    with pytest.raises(SetupError, match=f"keeps events for 7d.*--retention {spec.name}=forever"):
        await replay(ReplayOrder(file=file, topic=spec.name), kafka, topics, SystemClock())
    assert [[]] == await read_back(kafka, spec)


async def test_replay_record_that_only_the_broker_refuses_spares_its_neighbours(
    kafka: KafkaBroker, unique: Callable[[str], str], tmp_path: Path
) -> None:
    """Where the broker takes less than we were told, the one large record is a dead letter and the others arrive."""
    spec = TopicSpec(name=unique("raw.notes"), partitions=1, type=Note, key="user_id", time="event")
    topics = await created(kafka, spec, max_message_bytes=20_000)
    file = tmp_path / "notes.ndjson"
    now_ms = SystemClock().now_ms()
    lines = [
        b'{"user_id":"u","text":"%s","timestamp":%d}' % (b"x" * (30_000 if n == 5 else 10), now_ms + n)
        for n in range(10)
    ]
    file.write_bytes(b"\n".join(lines))
    report = await replay(ReplayOrder(file=file, topic=spec.name), kafka, topics, SystemClock())
    assert (10, 9, 1) == (report.rows, report.published, report.dead)
    ((*arrived,),) = await read_back(kafka, spec)
    assert [now_ms + n for n in range(10) if n != 5] == [record.timestamp_ms for record in arrived]
    ((dead,),) = await read_back(kafka, dead_letters_of(spec))
    assert b"x" * 30_000 in (dead.value or b"")
