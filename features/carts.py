"""Abandoned carts: items added, and no checkout within half an hour.

The last item that was added stands for the cart, so that a cart gives one alert however much is in it. What is in it is the
shop's to know: neither the alert nor the view says which items.
"""

from app.streams.expressions import col
from app.streams.graph import Alert, count
from features.churn import clicks
from features.records import Id


class AbandonedCart(Alert, frozen=True):
    """Half an hour after an item was added: nothing was added since, and nothing bought."""

    user_id: Id


adds = clicks.where(col.kind == "cart_add")
adds_and_checkouts = clicks.where(col.kind.is_in("cart_add", "checkout"))

abandoned_carts = (
    adds.join(adds_and_checkouts, within=("1ms", "30m"), prefix="next_").missing().alert(AbandonedCart, id="event_id")
)

user_clicks = (
    clicks.live("2h", tile="5m")
    .aggregate(
        views_2h=count(when=col.kind == "view"),
        searches_2h=count(when=col.kind == "search"),
        cart_adds_2h=count(when=col.kind == "cart_add"),
        cart_removes_2h=count(when=col.kind == "cart_remove"),
        checkouts_2h=count(when=col.kind == "checkout"),
    )
    .serve("user_clicks")
)
