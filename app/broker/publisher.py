"""Typed events to their topics: encoded, keyed, stamped with the event's own time, checked before they are queued.

publisher = Publisher(producer, registry)
await publisher.publish(OrderEvent(...))                  # finds the topic by the type
await publisher.typed(OrderEvent).publish_many(orders)    # the fast path: counts, and tells failures at flush
await publisher.typed(OrderEvent).confirm(order)          # returns when the broker has acknowledged this one
"""

from collections.abc import Callable, Iterable
from datetime import datetime
from typing import Any, Generic, TypeVar

import msgspec

from app.broker.base import Confirmation, DeliveryFailure, Producer
from app.broker.topics import TopicRegistry, TopicSpec
from app.core.codec import encode
from app.core.errors import BadRecord, SetupError
from app.core.instants import EPOCH

E = TypeVar("E", bound=msgspec.Struct)

TIME_FIELD = "timestamp"
HEARTBEAT = b'{"heartbeat": true}'


class TypedPublisher(Generic[E]):
    """Publishes events of one type to one topic."""

    def __init__(self, producer: Producer, spec: TopicSpec, record_type: type[E]) -> None:
        """Raises: SetupError when the type lacks the topic's key field, or a time."""
        if spec.key is None:
            raise SetupError(spec.name, "has no key field; only what its own writer knows can be put there")
        fields = {field.name for field in msgspec.structs.fields(record_type)}
        for needed in (spec.key, TIME_FIELD):
            if needed not in fields:
                raise SetupError(spec.name, f"{record_type.__name__} has no field {needed!r} to publish it by")
        self.topic = spec.name
        self._spec = spec
        self._producer = producer
        self._record = _recorder(record_type, spec.key)

    async def publish(self, event: E) -> None:
        """Queues one event; waits while the queue is full. On cancellation it was not queued.

        Raises: RecordTooLarge, RecordTooEarly, BadRecord for this event alone.
        """
        value, key, timestamp_ms = self._record(event)
        await self._producer.send(self.topic, value, key, timestamp_ms=timestamp_ms)

    async def publish_many(self, events: Iterable[E]) -> int:
        """Queues many events as fast as can be; returns how many. What is refused is among the failures of `flush`.

        Raises: BadRecord for an event without key or zone; those before it were queued. On cancellation some were.
        """
        return await self._producer.send_many(self.topic, map(self._record, events))

    async def confirm(self, event: E) -> Confirmation:
        """Returns when the broker has acknowledged. On cancellation the event may or may not be published.

        Raises: RecordTooLarge, RecordTooEarly, BadRecord; Unavailable; Rejected.
        """
        value, key, timestamp_ms = self._record(event)
        return await self._producer.confirm(self.topic, value, key, timestamp_ms=timestamp_ms)

    async def heartbeat(self, time_ms: int) -> None:
        """Tells every partition that event time has come this far, so that quiet ones close their windows."""
        for partition in range(self._spec.partitions):
            await self._producer.send(self.topic, HEARTBEAT, partition=partition, timestamp_ms=time_ms)


class Publisher:
    """Publishes any declared event. Belongs to one producer; whoever made that closes it."""

    def __init__(self, producer: Producer, registry: TopicRegistry) -> None:
        self._producer = producer
        self._registry = registry
        self._typed: dict[type[msgspec.Struct], TypedPublisher[msgspec.Struct]] = {}

    def typed(self, record_type: type[E]) -> TypedPublisher[E]:
        """Raises: SetupError when no topic carries that type."""
        return TypedPublisher(self._producer, self._registry.of(record_type), record_type)

    async def publish(self, event: msgspec.Struct) -> None:
        """As `TypedPublisher.publish`, to the topic that carries the event's type."""
        await self._for(event).publish(event)

    async def confirm(self, event: msgspec.Struct) -> Confirmation:
        """As `TypedPublisher.confirm`, to the topic that carries the event's type."""
        return await self._for(event).confirm(event)

    def _for(self, event: msgspec.Struct) -> TypedPublisher[msgspec.Struct]:
        record_type = type(event)
        publisher = self._typed.get(record_type)
        if publisher is None:
            publisher = self._typed[record_type] = self.typed(record_type)
        return publisher

    async def flush(self) -> list[DeliveryFailure]:
        """Returns when everything published is acknowledged or has failed: the failures since the last flush.

        Raises: Unavailable.
        """
        return await self._producer.flush()


def _recorder(record_type: type[E], key_field: str) -> Callable[[E], tuple[bytes, bytes, int]]:
    """What makes value, key and record time of an event. One generated function: it runs for every event.

    A time of 0 is refused with those before it: Kafka's clients take it for "now".
    """
    text = (
        "def record(event):\n"
        "    try:\n"
        f"        since = event.{TIME_FIELD} - epoch\n"
        "        time_ms = (since.days * 86400 + since.seconds) * 1000 + since.microseconds // 1000\n"
        "        if time_ms <= 0:\n"
        "            raise ValueError('its time is not after 1970-01-01T00:00:00Z')\n"
        f"        return encode(event), event.{key_field}.encode(), time_ms\n"
        "    except (AttributeError, TypeError, ValueError) as error:\n"
        "        raise refusal(event, error) from None\n"
    )
    namespace: dict[str, Any] = {"encode": encode, "epoch": EPOCH, "refusal": _refusal}
    exec(compile(text, f"<publisher of {record_type.__name__}>", "exec"), namespace)
    record: Callable[[E], tuple[bytes, bytes, int]] = namespace["record"]
    return record


def _refusal(event: msgspec.Struct, error: Exception) -> BadRecord:
    time = getattr(event, TIME_FIELD, None)
    naive = isinstance(time, datetime) and time.tzinfo is None
    return BadRecord(f"{type(event).__name__} cannot be published: {'its time names no zone' if naive else error}")
