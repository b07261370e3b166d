"""Payments of the demo: orders that are paid, cards that are declined, other amounts, and orders in a burst."""

from collections.abc import Iterator
from datetime import datetime
from typing import Literal

from app.core.codec import to_dollars
from app.sources.generator import Publication
from features.demo.stories import Stories
from features.records import OrderEvent, PaymentEvent, order_events, payment_events

ORDERS, PAYMENTS = order_events.source.spec.name, payment_events.source.spec.name
GAPS_MS = range(50, 121)
SOON_MS = (300, 3_000)
"""Between an order and its payment, and between two tries."""


def scenario(events: int, seed: int, start_ms: int) -> Iterator[Publication]:
    """So many publications from `start_ms` on, of shoppers whom no other case knows."""
    return _Till(seed, start_ms).publications(events)


class _Till:
    def __init__(self, seed: int, start_ms: int) -> None:
        self._stories = Stories(f"payments {seed}", start_ms, GAPS_MS)
        self._random = self._stories.random
        self._shoppers = self._orders = self._payments = 0

    def publications(self, events: int) -> Iterator[Publication]:
        stories = [(self._paid, 60), (self._declined_once, 8), (self._card_is_tried, 4), (self._other_amount, 5)]
        return self._stories.publications(events, [*stories, (self._burst, 3)])

    def _paid(self, at_ms: int) -> None:
        """An order, and its payment; now and then published twice."""
        user, cents = self._shopper(), self._cents()
        order = self._order(at_ms, user, cents)
        self._pay(at_ms + self._soon_ms(), user, order, cents, again=self._random.random() < 0.1)

    def _declined_once(self, at_ms: int) -> None:
        """A card that is accepted the second time, or the third."""
        user, cents = self._shopper(), self._cents()
        order = self._order(at_ms, user, cents)
        for _ in range(self._random.randint(1, 2)):
            at_ms += self._soon_ms()
            self._pay(at_ms, user, order, cents, "failed", again=self._random.random() < 0.3)
        self._pay(at_ms + self._soon_ms(), user, order, cents)

    def _card_is_tried(self, at_ms: int) -> None:
        """Payment after payment that fails."""
        user = self._shopper()
        order = self._order(at_ms, user, self._cents())
        for _ in range(self._random.randint(3, 9)):
            at_ms += self._soon_ms()
            self._pay(at_ms, user, order, self._cents(), "failed")
        if self._random.random() < 0.3:
            self._pay(at_ms + self._soon_ms(), user, order, self._cents())

    def _other_amount(self, at_ms: int) -> None:
        """An order of which a part is paid, or more than it costs; at times the payment is there first."""
        user, cents = self._shopper(), self._cents()
        other = max(1, cents * self._random.choice((10, 40, 90, 110)) // 100)
        order = self._order(at_ms, user, cents)
        self._pay(at_ms + self._soon_ms(), user, order, other)

    def _burst(self, at_ms: int) -> None:
        """Orders in quick succession, each of them paid."""
        user, dear = self._shopper(), self._random.random() < 0.5
        for _ in range(self._random.randint(5, 8)):
            cents = self._cents() * (10 if dear else 1)
            order = self._order(at_ms, user, cents)
            self._pay(at_ms + self._soon_ms(), user, order, cents)
            at_ms += self._soon_ms()

    def _shopper(self) -> str:
        self._shoppers += 1
        return f"u-p{self._shoppers}"

    def _cents(self) -> int:
        return self._random.randint(1_000, 30_000)

    def _soon_ms(self) -> int:
        return self._random.randint(*SOON_MS)

    def _order(self, at_ms: int, user: str, cents: int) -> str:
        self._orders += 1
        order = f"o-p{self._orders}"

        def make(happened: datetime) -> OrderEvent:
            return OrderEvent(order, user, to_dollars(cents), "placed", happened)

        self._stories.add(at_ms, ORDERS, user, make)
        return order

    def _pay(
        self,
        at_ms: int,
        user: str,
        order: str,
        cents: int,
        status: Literal["authorized", "failed"] = "authorized",
        *,
        again: bool = False,
    ) -> None:
        self._payments += 1
        payment = f"p-{self._payments}"

        def make(happened: datetime) -> PaymentEvent:
            return PaymentEvent(payment, order, user, to_dollars(cents), status, happened)

        self._stories.add(at_ms, PAYMENTS, user, make, again_after_ms=self._soon_ms() if again else None)
