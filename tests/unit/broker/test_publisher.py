"""Typed publishing: value, key and record time of an event, and what becomes of a bad one."""

from datetime import UTC, datetime, timedelta, timezone
from decimal import Decimal

import msgspec
import pytest
from hypothesis import given
from hypothesis.strategies import datetimes, timedeltas

from app.broker.memory import MemoryBroker
from app.broker.publisher import Publisher, _recorder
from app.broker.topics import TopicRegistry, TopicSpec
from app.core.clock import ManualClock
from app.core.codec import Usd
from app.core.errors import BadRecord, RecordTooEarly, SetupError
from app.core.record import Record, TopicPartition

NOW = datetime(2026, 11, 24, 10, 0, 0, 123_456, tzinfo=UTC)
NOW_MS = 1_795_514_400_123


class Order(msgspec.Struct, frozen=True):
    order_id: str
    user_id: str | None
    amount_usd: Usd
    timestamp: datetime


class Keyless(msgspec.Struct):
    timestamp: datetime


def order(number: int = 1, user: str | None = "u-1", timestamp: datetime = NOW) -> Order:
    return Order(f"o-{number}", user, Decimal("12.50"), timestamp)


class Bench:
    """A publisher on a memory broker, and what arrived."""

    def __init__(self, broker: MemoryBroker) -> None:
        registry = TopicRegistry()
        for spec in broker.specs.values():
            registry.add(spec)
        self.broker = broker
        self.publisher = Publisher(broker.producer(), registry)

    def arrived(self) -> list[Record]:
        return [record for partition in range(2) for record in self.broker.logs[TopicPartition("orders", partition)]]


@pytest.fixture
async def bench() -> Bench:
    broker = MemoryBroker(ManualClock(NOW_MS))
    orders = TopicSpec(name="orders", partitions=2, type=Order, key="user_id", time="event", max_ahead_ms=60_000)
    await broker.admin().create([orders, TopicSpec(name="keyless", partitions=1, type=Keyless)])
    return Bench(broker)


async def test_publish_finds_the_topic_by_the_events_type(bench: Bench) -> None:
    """Value as JSON with money as a number, key from the key field, record time from the event."""
    await bench.publisher.publish(order())
    (record,) = bench.arrived()
    assert b"u-1" == record.key
    assert NOW_MS == record.timestamp_ms
    expected = b'{"order_id":"o-1","user_id":"u-1","amount_usd":12.50,"timestamp":"2026-11-24T10:00:00.123456Z"}'
    assert expected == record.value


async def test_publish_many_counts_and_tells_failures_at_flush(bench: Bench) -> None:
    """A refused event is reported with its key; its neighbours arrive."""
    events = [order(1), order(2, timestamp=NOW + timedelta(hours=1)), order(3)]
    assert 2 == await bench.publisher.typed(Order).publish_many(events)
    (failure,) = await bench.publisher.flush()
    assert isinstance(failure.error, RecordTooEarly)
    assert [] == await bench.publisher.flush()
    assert ["o-1", "o-3"] == [msgspec.json.decode(record.value or b"")["order_id"] for record in bench.arrived()]


async def test_publish_many_bad_event_leaves_those_before_it_published(bench: Bench) -> None:
    """An event without a key is an error at its place in the row."""
    with pytest.raises(BadRecord, match="Order cannot be published"):
        await bench.publisher.typed(Order).publish_many([order(1), order(2, user=None), order(3)])
    assert 1 == len(bench.arrived())


async def test_publish_naive_time_is_a_bad_record(bench: Bench) -> None:
    """A time without a zone is no moment."""
    with pytest.raises(BadRecord, match="names no zone"):
        await bench.publisher.publish(order(timestamp=datetime(2026, 11, 24)))


async def test_confirm_says_where_the_event_is(bench: Bench) -> None:
    """The confirmed path returns the place."""
    confirmation = await bench.publisher.typed(Order).confirm(order())
    (record,) = bench.arrived()
    assert (record.partition, record.offset) == confirmation


async def test_heartbeat_reaches_every_partition(bench: Bench) -> None:
    """A null key, the heartbeat value and the time given."""
    await bench.publisher.typed(Order).heartbeat(NOW_MS)
    found = [(record.partition, record.key, record.value, record.timestamp_ms) for record in bench.arrived()]
    assert [(0, None, b'{"heartbeat": true}', NOW_MS), (1, None, b'{"heartbeat": true}', NOW_MS)] == found


@pytest.mark.parametrize("moment", [datetime(1970, 1, 1, tzinfo=UTC), datetime(1, 1, 1, tzinfo=UTC)])
async def test_publish_time_not_after_1970_is_a_bad_record(bench: Bench, moment: datetime) -> None:
    """A client would send the first of them as now, and the gate refuses the others."""
    with pytest.raises(BadRecord, match="not after 1970"):
        await bench.publisher.publish(order(timestamp=moment))
    assert [] == bench.arrived()


async def test_typed_topic_without_key_or_unknown_type_is_a_setup_error(bench: Bench) -> None:
    """What cannot be published says so before the first event."""
    with pytest.raises(SetupError, match="no key field"):
        bench.publisher.typed(Keyless)
    with pytest.raises(SetupError, match="no declared topic"):
        bench.publisher.typed(Record)


@given(
    moment=datetimes(min_value=datetime(1970, 1, 3), max_value=datetime(2200, 1, 1)),
    offset=timedeltas(min_value=timedelta(hours=-14), max_value=timedelta(hours=14)),
)
def test_recorder_time_is_exact_to_the_millisecond(moment: datetime, offset: timedelta) -> None:
    """Whole milliseconds since 1970, rounded down, in every zone and century."""
    zone = timezone(timedelta(minutes=offset // timedelta(minutes=1)))
    event = order(timestamp=moment.replace(tzinfo=zone))
    expected = (event.timestamp - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(milliseconds=1)
    assert expected == _recorder(Order, "user_id")(event)[2]
