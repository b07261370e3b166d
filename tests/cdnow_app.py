"""An application for old orders: a topic that keeps for ever, and one-day windows. `-A tests.cdnow_app:app`."""

import sys

from app.application import App
from app.streams.expressions import col
from app.streams.graph import Topic, count, total
from features.records import OrderEvent

old_orders = Topic("cdnow.orders", OrderEvent, key="user_id", out_of_orderness="0s", retention="forever")
daily_orders = (
    old_orders.tumbling("1d").aggregate(orders=count(), usd=total(col.amount_usd)).to("features.cdnow_orders_1d")
)

app = App(features=[sys.modules[__name__]])
