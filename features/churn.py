"""Churn: visits that ended without an order, though the shopper had looked for something."""

from app.streams.expressions import col
from app.streams.graph import Alert, count
from features.records import Id, user_events


class LeftEmptyHanded(Alert, frozen=True):
    """A visit with eight views and searches or more, no checkout, and nothing left in the cart."""

    user_id: Id
    views: int
    searches: int
    cart_adds: int


clicks = user_events.once("event_id", within="1m")

# Whoever leaves something in the cart is features/carts.py's: nobody is written to for two reasons.
empty_handed_visits = (
    clicks.session(gap="30m")
    .aggregate(
        views=count(when=col.kind == "view"),
        searches=count(when=col.kind == "search"),
        cart_adds=count(when=col.kind == "cart_add"),
        cart_removes=count(when=col.kind == "cart_remove"),
        checkouts=count(when=col.kind == "checkout"),
    )
    .having((col.views + col.searches >= 8) & (col.checkouts == 0) & (col.cart_removes >= col.cart_adds))
    .alert(LeftEmptyHanded)
)
