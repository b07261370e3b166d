"""Fraud: orders of unusual value, and how much a shopper has ordered in the last minutes."""

from app.core.codec import Usd
from app.streams.expressions import col
from app.streams.graph import Alert, count, total
from features.records import Id, order_events


class HighValueOrder(Alert, frozen=True):
    """An order above the limit."""

    order_id: Id
    user_id: Id
    amount_usd: Usd


orders = order_events.once("order_id", within="1m")

high_value_orders = orders.where(col.amount_usd > 10_000).alert(HighValueOrder, id="order_id")

user_features = (
    orders.live("5m", tile="30s")
    .aggregate(order_count_5m=count(), order_value_5m=total(col.amount_usd))
    .serve("user_features")
)

order_rate = (
    orders.tumbling("5m")
    .aggregate(order_count_5m=count(), order_value_5m=total(col.amount_usd))
    .to("features.order_rate_5m")
)
