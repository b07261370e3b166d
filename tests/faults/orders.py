"""Orders published while servers are under faults, and what must be true of decisions about them."""

import asyncio
from collections import defaultdict
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
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
from app.serving.base import Freshness, OwnEvent
from features.records import OrderEvent
from tests.faults.streams import read_topic
from tests.reference import Rules, SourceRecord

TOPIC, RULES = "raw.orders", Rules()
USERS, A_SECOND, ALERTS_SHARE = 200, 20, 0.4
DEADLINE_MS, SPARE_MS = 20_000, 1_000
"""An agent's deadline, and how much later its decision may stand in the log."""


class Orders:
    """Publishes orders at a steady rate, some above the limit. `alerts`: ids of what must be alerted."""

    def __init__(self, name: str, broker: KafkaBroker, chance: Random) -> None:
        self.published = self.alerts = 0
        self._name = name
        self._broker = broker
        self._chance = chance
        self._clock = SystemClock()

    @asynccontextmanager
    async def flowing(self) -> AsyncIterator[None]:
        """For as long as it lasts they are published, each acknowledged before the next one; after it none is under way."""
        producer, ending = self._broker.producer(), asyncio.Event()
        await producer.start()
        publishing = asyncio.create_task(self._publish_until(ending, producer))
        try:
            yield
        finally:
            ending.set()
            await publishing
            await producer.close()

    async def _publish_until(self, ending: asyncio.Event, producer: Producer) -> None:
        while not ending.is_set():
            await self._publish(producer)
            await asyncio.sleep(1 / A_SECOND)

    async def _publish(self, producer: Producer) -> None:
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
        await producer.confirm(TOPIC, encode(order), user.encode(), timestamp_ms=now_ms)
        self.published += 1
        self.alerts += is_alert


async def source_records(broker: KafkaBroker) -> list[SourceRecord]:
    """Everything in the orders' topic."""
    return [_source(record) for record in await read_topic(broker, TOPIC)]


def _source(record: Record) -> SourceRecord:
    return SourceRecord(record.partition, record.offset, record.timestamp_ms, record.key, record.value)


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


def wrong_decisions(
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
