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


# An order has a record for each change of its status, and its id is the same in all of them: what is counted is the placing.
orders = order_events.once("order_id", within="1m")
is_placed = col.status == "placed"
placed = orders.where(is_placed)

high_value_orders = placed.where(col.amount_usd > 10_000).alert(HighValueOrder, id="order_id")

# Conditions in place of a filter: so an agent can wait until its own event shows, whatever its status.
user_features = (
    orders.live("5m", tile="30s")
    .aggregate(order_count_5m=count(when=is_placed), order_value_5m=total(col.amount_usd, when=is_placed))
    .serve("user_features")
)

order_rate = (
    placed.tumbling("5m")
    .aggregate(order_count_5m=count(), order_value_5m=total(col.amount_usd))
    .to("features.order_rate_5m")
)
