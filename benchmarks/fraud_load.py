"""Orders and payments for the whole fraud job, and what a plain count makes of them: alerts, tiles and rows.

Every second event is an order, the others pay them three seconds later. Three orders in a hundred are not placed but cancelled, and none of
the alerts and totals may count them. One order in a hundred is large; of the payments one in a hundred has another amount and two fail,
those of one user in a hundred always. One event in a hundred is published twice.
There is a user for 40 events, and they are spread over six minutes, so that an event costs the same however many there are. At the end
heartbeats close all windows and joins.
"""

import random
from collections import Counter, defaultdict, deque
from collections.abc import AsyncIterator, Iterator
from decimal import Decimal
from typing import NamedTuple

import msgspec

from agents import app
from app.broker.base import Broker
from app.core.codec import to_cents
from app.core.record import TopicPartition
from app.streams.outputs import derived_id
from app.streams.pipelines import raised_by
from benchmarks.common import event_json

ORDERS, PAYMENTS = "raw.orders", "raw.payments"
EVENTS_A_USER = 40
SPAN_MS, PAID_AFTER_MS, TAIL_MS = 360_000, 3_000, 2_400_000
SECOND_MS, MINUTE_MS = 1_000, 60_000
WINDOW_MS = 5 * MINUTE_MS
LARGE_CENTS = 2_000_000

ALERTS = "processed.alerts"
VIEWS = ("features.user_features", "features.user_payments", "features.order_rate_5m")
"""What the job writes, beside references to late records, of which there are none."""


class Event(NamedTuple):
    """An order, or a payment, whose `paid_id` is that of the order."""

    event_id: str
    user: str
    cents: int
    status: str
    time_ms: int
    paid_id: str = ""


class Load(NamedTuple):
    """So many events from `start_ms` on, which begins a window."""

    events: int
    start_ms: int

    def unique(self) -> Iterator[Event]:
        """Each once, by time."""
        chance, pairs = random.Random(1), self.events // 2
        users, waiting = max(1, self.events // EVENTS_A_USER), deque[Event]()
        behind = pairs * PAID_AFTER_MS // SPAN_MS
        for number in range(pairs + behind):
            time_ms = self.start_ms + number * SPAN_MS // pairs
            if number < pairs:
                user = f"u-{chance.randrange(users)}"
                cents = LARGE_CENTS if number % 100 == 0 else chance.randrange(100, 900_000)
                status = "cancelled" if chance.randrange(100) < 3 else "placed"
                order = Event(f"o-{number}", user, cents, status, time_ms)
                waiting.append(order)
                yield order
            if number >= behind:
                order = waiting.popleft()
                lot = chance.randrange(100)
                fails = lot < 2 or int(order.user[2:]) % 100 == 0
                yield Event(
                    f"p-{number - behind}",
                    order.user,
                    order.cents + (lot == 2),
                    "failed" if fails else "authorized",
                    time_ms,
                    order.event_id,
                )

    def published(self, topic: str) -> Iterator[tuple[bytes, bytes, int]]:
        """Value, key and time of the records of one topic."""
        for number, event in enumerate(self.unique()):
            if (PAYMENTS if event.paid_id else ORDERS) == topic:
                record = record_of(event)
                yield record
                if number % 200 < 2:
                    yield record


def record_of(event: Event) -> tuple[bytes, bytes, int]:
    """Value, key and time."""
    ids = {"payment_id": event.event_id, "order_id": event.paid_id} if event.paid_id else {"order_id": event.event_id}
    return event_json(event.user, event.cents, event.status, **ids), event.user.encode(), event.time_ms


async def publish(broker: Broker, load: Load) -> dict[TopicPartition, int]:
    """Fills both topics; where each partition ends."""
    producer, reader, places = broker.producer(), broker.reader(), list[TopicPartition]()
    await producer.start()
    for topic in (ORDERS, PAYMENTS):
        await producer.send_many(topic, load.published(topic))
        for partition in range(app.topics.named(topic).partitions):
            places.append(TopicPartition(topic, partition))
            at_ms = load.start_ms + SPAN_MS + TAIL_MS
            await producer.send(topic, b'{"heartbeat":true}', None, partition=partition, timestamp_ms=at_ms)
    failures = await producer.flush()
    assert not failures, failures[0]
    ends = await reader.end_offsets(places)
    await producer.close()
    await reader.close()
    return dict(ends)


Totals = dict[tuple[str, int], tuple[int, ...]]
"""Numbers by user and start of the slice."""


class Results(NamedTuple):
    """alerts: their ids. orders, payments: the last value of each tile. rows: of windows."""

    alerts: set[str]
    orders: Totals
    payments: Totals
    rows: Totals

    def counts(self) -> dict[str, int]:
        """How many there are of each."""
        return {name: len(found) for name, found in self._asdict().items()}


def counted(load: Load) -> Results:
    """What the job must say of a load."""
    results = Results(set(), {}, {}, {})
    times: dict[tuple[str, str], list[int]] = defaultdict(list)
    cents_of: dict[str, int] = {}

    def alert(pipeline: str, event: Event, *natural: str) -> None:
        raised = raised_by(app.pipelines[pipeline])
        assert raised is not None
        results.alerts.add(derived_id(raised.rule, event.user, *natural))

    for event in load.unique():
        if event.paid_id:
            _pay(results.payments, event)
            if event.status == "failed":
                if _completes(times[event.user, "failed"], event.time_ms, 3, 10 * MINUTE_MS):
                    alert("failed_payments", event, event.event_id)
            elif cents_of.get(event.paid_id, event.cents) != event.cents:
                alert("other_amounts", event, event.paid_id, event.event_id)
            continue
        if event.status != "placed":
            _add(results.orders, event, 30 * SECOND_MS, 0, 0)  # the tile shows that the view has seen it
            continue
        cents_of[event.event_id] = event.cents
        if event.cents > 1_000_000:
            alert("high_value_orders", event, event.event_id)
        if _completes(times[event.user, "placed"], event.time_ms, 5, 5 * MINUTE_MS):
            alert("order_bursts", event, event.event_id)
        _add(results.orders, event, 30 * SECOND_MS, 1, event.cents)
        _add(results.rows, event, WINDOW_MS, 1, event.cents)
    return results


def _add(slices: Totals, event: Event, size_ms: int, orders: int, cents: int) -> None:
    place = event.user, event.time_ms - event.time_ms % size_ms
    count, total = slices.get(place, (0, 0))
    slices[place] = (count + orders, total + cents)


def _pay(tiles: Totals, event: Event) -> None:
    place = event.user, event.time_ms - event.time_ms % MINUTE_MS
    authorized, failed, largest = tiles.get(place, (0, 0, -1))
    if event.status == "failed":
        tiles[place] = (authorized, failed + 1, max(largest, event.cents))
    else:
        tiles[place] = (authorized + 1, failed, largest)


def _completes(times: list[int], time_ms: int, count: int, within_ms: int) -> bool:
    """Whether the last so many of ascending times, this one among them, lie so close, and those one earlier did not."""
    times.append(time_ms)

    def close(last: list[int]) -> bool:
        return len(last) == count and last[-1] - last[0] <= within_ms

    return close(times[-count:]) and not close(times[-count - 1 : -1])


class Written(msgspec.Struct):
    """A tile's or a row's key and value together, whichever fields it has. version: none in those of the tutorial."""

    user_id: str = ""
    tile: int = -1
    window_start: int = -1
    version: int = 0
    order_count_5m: int = 0
    order_value_5m: Decimal = Decimal(0)
    authorized_30m: int = 0
    failed_30m: int = 0
    largest_failed_usd_30m: Decimal | None = None

    def totals(self, topic: str) -> tuple[int, ...]:
        if topic.endswith("user_payments"):
            largest = self.largest_failed_usd_30m
            return self.authorized_30m, self.failed_30m, -1 if largest is None else to_cents(largest)
        return self.order_count_5m, to_cents(self.order_value_5m)


class _Alert(msgspec.Struct):
    alert_id: str


async def written(broker: Broker, prefix: str = "") -> Results:
    """What is on the topics of the job: of each tile and row the newest value. Numbers of a tile only grow, so that of values without
    a version the largest is the newest. prefix: before the topics' names. Raises: AssertionError for an alert, or a row, of which there
    are two."""
    alert_ids = Counter[str]()
    decode = msgspec.json.Decoder(_Alert).decode
    async for _, value in _read(broker, prefix + ALERTS):
        alert_ids[decode(value).alert_id] += 1
    assert not alert_ids or max(alert_ids.values()) == 1, f"twice: {alert_ids.most_common(3)}"
    views = [await _newest(broker, prefix + name) for name in VIEWS]
    return Results(set(alert_ids), *views)


async def _newest(broker: Broker, topic: str) -> Totals:
    decode, newest = msgspec.json.Decoder(Written).decode, dict[tuple[str, int], tuple[int, tuple[int, ...]]]()
    async for key, value in _read(broker, topic):
        said = decode(value[:-1] + b"," + key[1:] if key else value)
        if not said.user_id:
            continue  # progress
        place, found = (said.user_id, max(said.tile, said.window_start)), (said.version, said.totals(topic))
        known = newest.get(place, found)
        assert said.tile >= 0 or known == found, f"two rows for {place}"
        newest[place] = max(known, found)
    return {place: totals for place, (_, totals) in newest.items()}


async def _read(broker: Broker, topic: str) -> AsyncIterator[tuple[bytes, bytes]]:
    reader = broker.reader()
    places = [TopicPartition(topic, partition) for partition in range(await _partitions(broker, topic))]
    for place, end in (await reader.end_offsets(places)).items():
        async for records in reader.read(place, 0, end):
            for record in records:
                yield record.key or b"", record.value or b""
    await reader.close()


async def _partitions(broker: Broker, topic: str) -> int:
    admin = broker.admin()
    found = (await admin.describe([topic]))[topic]
    await admin.close()
    assert found is not None
    return found.partitions
