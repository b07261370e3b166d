"""The records that source systems publish, and the topics they go to.

Amounts are dollars with at most two decimals, times are ISO-8601 with a zone. Unknown fields are ignored.
"""

from datetime import datetime
from typing import Annotated, Literal

import msgspec

from app.core.codec import Usd
from app.streams.graph import Topic

Id = Annotated[str, msgspec.Meta(min_length=1, max_length=200)]
Instant = Annotated[datetime, msgspec.Meta(tz=True)]


class OrderEvent(msgspec.Struct, frozen=True, gc=False):
    """An order of a shopper, or a change of its status."""

    order_id: Id
    user_id: Id
    amount_usd: Usd
    status: Literal["placed", "paid", "shipped", "cancelled"]
    timestamp: Instant


class UserEvent(msgspec.Struct, frozen=True, gc=False):
    """One step of a shopper on the site."""

    event_id: Id
    user_id: Id
    kind: Literal["view", "search", "cart_add", "cart_remove", "checkout", "login"]
    timestamp: Instant
    item_id: str = ""


class PaymentEvent(msgspec.Struct, frozen=True, gc=False):
    """A payment of an order, or a change of its status."""

    payment_id: Id
    order_id: Id
    user_id: Id
    amount_usd: Usd
    status: Literal["authorized", "failed", "settled", "chargeback"]
    timestamp: Instant


class ServiceEvent(msgspec.Struct, frozen=True, gc=False):
    """How one request to a service ended."""

    event_id: Id
    service: Id
    status: Literal["ok", "failed"]
    latency_ms: Annotated[int, msgspec.Meta(ge=0)]
    timestamp: Instant


order_events = Topic("raw.orders", OrderEvent, key="user_id", out_of_orderness="5s", partitions=12)
user_events = Topic("raw.user_events", UserEvent, key="user_id", out_of_orderness="5s", partitions=24)
payment_events = Topic("raw.payments", PaymentEvent, key="user_id", out_of_orderness="5s", partitions=12)
service_events = Topic("raw.service_events", ServiceEvent, key="service", out_of_orderness="5s", partitions=6)
