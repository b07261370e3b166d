"""Clicks of the demo: visits that end with an order, in passing, empty-handed, or with something left in the cart.

They begin an hour and a half ago. Every shopper comes once.
"""

from collections.abc import Iterator
from datetime import datetime
from typing import Literal

from app.sources.generator import Publication
from features.demo.stories import CAUGHT_UP_MS, Stories
from features.records import UserEvent, user_events

TOPIC = user_events.source.spec.name
GAPS_MS = range(20, 61)
BEHIND_MS = 5_400_000
BETWEEN_MS = (60, 600)
"""Between two clicks as they are published: minutes while the clicks are catching up."""

BREAK_MS = 20 * 60_000 * CAUGHT_UP_MS // BEHIND_MS
"""As published while the clicks are catching up, twenty minutes: a cart is not abandoned yet."""

Kind = Literal["view", "search", "cart_add", "cart_remove", "checkout"]


def scenario(events: int, seed: int, start_ms: int) -> Iterator[Publication]:
    """So many publications from `start_ms` on, of shoppers whom no other case knows."""
    return _Site(seed, start_ms).publications(events)


class _Site:
    def __init__(self, seed: int, start_ms: int) -> None:
        self._stories = Stories(f"clicks {seed}", start_ms, GAPS_MS, BEHIND_MS)
        self._random = self._stories.random
        self._shoppers = self._clicks = 0

    def publications(self, events: int) -> Iterator[Publication]:
        stories = [(self._buys, 30), (self._buys_later, 10), (self._in_passing, 20), (self._searches_in_vain, 12)]
        return self._stories.publications(events, [*stories, (self._empties_the_cart, 6), (self._leaves_the_cart, 22)])

    def _buys(self, at_ms: int) -> None:
        """Looks, and buys what is in the cart."""
        self._visit(at_ms, *self._looks(1, 9), *self._fills(1, 3), "checkout")

    def _buys_later(self, at_ms: int) -> None:
        """Takes twenty minutes to think about it."""
        user, at_ms = self._visit(at_ms, *self._looks(1, 3), *self._fills(1, 2))
        self._click(at_ms + BREAK_MS, user, "checkout")

    def _in_passing(self, at_ms: int) -> None:
        """Looks at a page or a few."""
        self._visit(at_ms, *self._looks(1, 7))

    def _searches_in_vain(self, at_ms: int) -> None:
        """Looks at page after page, and goes."""
        self._visit(at_ms, *self._looks(8, 14))

    def _empties_the_cart(self, at_ms: int) -> None:
        """Puts something into the cart, and takes all of it out again."""
        added = self._fills(1, 3)
        removed: list[Kind] = ["cart_remove"] * len(added)
        self._visit(at_ms, *self._looks(6, 9), *added, *removed)

    def _leaves_the_cart(self, at_ms: int) -> None:
        """Fills the cart, takes something out perhaps, and goes."""
        added = self._fills(1, 4)
        removed: list[Kind] = ["cart_remove"] if len(added) > 1 and self._random.random() < 0.3 else []
        self._visit(at_ms, *self._looks(0, 5), *added, *removed)

    def _looks(self, least: int, most: int) -> list[Kind]:
        kinds: tuple[Kind, Kind] = ("view", "search")
        return self._random.choices(kinds, (5, 1), k=self._random.randint(least, most))

    def _fills(self, least: int, most: int) -> list[Kind]:
        return ["cart_add"] * self._random.randint(least, most)

    def _visit(self, at_ms: int, *kinds: Kind) -> tuple[str, int]:
        """Whose it is, and when the last click was to be."""
        self._shoppers += 1
        user = f"u-c{self._shoppers}"
        for number, kind in enumerate(kinds):
            at_ms += self._random.randint(*BETWEEN_MS) if number else 0
            self._click(at_ms, user, kind)
        return user, at_ms

    def _click(self, at_ms: int, user: str, kind: Kind) -> None:
        self._clicks += 1
        event, item = f"e-{self._clicks}", f"i-{self._random.randrange(500)}"

        def make(happened: datetime) -> UserEvent:
            return UserEvent(event, user, kind, happened, item)

        again_after_ms = self._random.randint(50, 250) if self._random.random() < 0.05 else None
        self._stories.add(at_ms, TOPIC, user, make, again_after_ms=again_after_ms)
