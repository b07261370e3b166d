"""Orders published while the store is under faults, and what must be true of features and decisions about them."""

import asyncio
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from decimal import Decimal
from random import Random
from typing import NamedTuple

import msgspec

from app.broker.base import Producer
from app.broker.kafka import KafkaBroker
from app.core.clock import SystemClock
from app.core.codec import encode
from app.core.record import Record
from app.decisions.record import DecisionRecord
from app.serving.base import Freshness, OwnEvent, View
from app.serving.redis import RedisStore
from features.records import OrderEvent
from tests.faults.streams import read_topic
from tests.reference import Rules, Slice, SourceRecord, Total, live_features, read_all

TOPIC, RULES = "raw.orders", Rules()
USERS, A_SECOND, ALERTS_SHARE = 200, 20, 0.4
DEADLINE_MS, SPARE_MS = 20_000, 1_000
"""An agent's deadline, and how much later its decision may stand in the log."""


class Orders:
    """Publishes orders at a steady rate, some above the limit. `alerts`: ids of what must be alerted."""

    def __init__(self, name: str, producer: Producer, chance: Random) -> None:
        self.published = self.alerts = 0
        self._name = name
        self._producer = producer
        self._chance = chance
        self._clock = SystemClock()
        self._going = asyncio.Event()
        self._going.set()

    def pause(self) -> None:
        self._going.clear()

    def go_on(self) -> None:
        self._going.set()

    async def publish_for_ever(self) -> None:
        """Each is acknowledged before the next one. On cancellation the last one may not be counted."""
        await self._producer.start()
        try:
            while True:
                await self._going.wait()
                await self._publish()
                await asyncio.sleep(1 / A_SECOND)
        finally:
            await self._producer.close()

    async def _publish(self) -> None:
        is_alert = self._chance.random() < ALERTS_SHARE
        user, now_ms = f"{self._name}-u{self._chance.randrange(USERS)}", self._clock.now_ms()
        order = OrderEvent(
            order_id=f"o-{self._name}-{self.published + 1}",
            user_id=user,
            amount_usd=Decimal(
                self._chance.randrange(1_000_001, 2_000_000) if is_alert else self._chance.randrange(90_000)
            )
            / 100,
            status="placed",
            timestamp=datetime.fromtimestamp(now_ms / 1000, UTC),
        )
        await self._producer.confirm(TOPIC, encode(order), user.encode(), timestamp_ms=now_ms)
        self.published += 1
        self.alerts += is_alert


async def source_records(broker: KafkaBroker) -> list[SourceRecord]:
    """Everything in the orders' topic."""
    return [_source(record) for record in await read_topic(broker, TOPIC)]


def _source(record: Record) -> SourceRecord:
    return SourceRecord(record.partition, record.offset, record.timestamp_ms, record.key, record.value)


async def wrong_features(broker: KafkaBroker, store: RedisStore, view: View) -> list[str]:
    """Users whose tiles in the store are not those of a plain reading of the orders, of the tiles that count now."""
    reading = read_all(await source_records(broker))
    by_user: dict[str, dict[Slice, Total]] = defaultdict(dict)
    for where, total in reading.tiles.items():
        by_user[where.user_id][where] = total
    now_ms, wrong = SystemClock().now_ms(), []
    for user, tiles in by_user.items():
        stored = {
            Slice(user, tile.start_ms, tile.partition): Total(tile.values[0], tile.values[1], tile.version)
            for tile in (await store.read(view, user)).tiles
        }
        if live_features(tiles, now_ms, RULES) != live_features(stored, now_ms, RULES):
            wrong.append(user)
    return wrong


class Blind(NamedTuple):
    """A time in which no alert may be approved whose order falls into it: nobody can know its features."""

    fault: str
    start_ms: int
    end_ms: int

    def holds(self, decision: DecisionRecord) -> bool:
        """Whether the order and the decision about it fall into it."""
        return self.start_ms < decision.hops.event_ms and decision.hops.decided_ms < self.end_ms


def action_of(decision: DecisionRecord) -> str:
    return str(msgspec.json.decode(decision.decision)["action"])


def judged(
    decisions: Sequence[DecisionRecord], source: Sequence[SourceRecord], blind: Sequence[Blind]
) -> Iterator[str]:
    """What is wrong with decisions, given when features could be known."""
    history = _Shoppers(source)
    for decision in decisions:
        hops, name, action = decision.hops, decision.alert_id, action_of(decision)
        if hops.decided_ms - hops.agent_ms > DEADLINE_MS + SPARE_MS:
            yield f"{name} took {hops.decided_ms - hops.agent_ms} ms"
        for features in decision.features:
            seen = features.freshness is Freshness.FRESH and features.own_event is OwnEvent.SEEN
            if seen and int(features.values["order_count_5m"]) < history.at_least(decision, features.window_end_ms):
                yield f"{name} was shown {features.values} as fresh: orders before its own are missing"
            if action == "approve" and not seen:
                yield f"{name} approved with features {features.freshness.value}, own event {features.own_event.value}"
        if action == "approve" and not decision.features:
            yield f"{name} approved without features"
        for one in blind:
            if action == "approve" and one.holds(decision):
                yield f"{name} approved while the store was {one.fault}"


class _Shoppers:
    """Who had ordered what when."""

    def __init__(self, source: Sequence[SourceRecord]) -> None:
        self._orders: Mapping[str, list[SourceRecord]] = defaultdict(list)
        for record in source:
            self._orders[(record.key or b"").decode()].append(record)

    def at_least(self, decision: DecisionRecord, now_ms: int) -> int:
        """Orders that features of that moment must count when they count the decision's own."""
        own = int(decision.origin.rpartition("/")[2])
        since_ms = now_ms - RULES.live_ms
        return sum(
            one.offset <= own and one.timestamp_ms - one.timestamp_ms % RULES.tile_ms + RULES.tile_ms > since_ms
            for one in self._orders[decision.entity]
        )
