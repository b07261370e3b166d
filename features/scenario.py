"""The demo's shoppers: ordinary orders, high values, sudden series, repeats, late arrivals and broken bytes.

`scenario(events, seed, start_ms)` is a pure sequence. Publications lie 5 to 35 ms apart, two of one shopper at least
50 ms, and none within 50 ms of a tile's boundary: whoever reads features within 50 ms of an order sees what a
brute-force reading of the sequence says.
"""

from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from itertools import islice
from random import Random

from app.core.codec import encode, to_dollars
from app.sources.generator import Agenda, Publication, moments, told
from features.records import OrderEvent, order_events

TOPIC = order_events.source.spec.name
SHOPPERS = 8_000
GAPS_MS = range(5, 36)
TILE_MS, WINDOW_MS, QUIET_MS = 30_000, 300_000, 50
LATE_MS = 36_000
"""Behind by more than a tile and the out-of-orderness: late for its tile wherever in the tile it lies."""

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def scenario(events: int, seed: int, start_ms: int) -> Iterator[Publication]:
    """Exactly `events` publications from `start_ms` (wall time, ms since 1970 UTC) on; the same for the same arguments."""
    return islice(_Shop(seed).publications(start_ms), events)


class _Shop:
    """Tells the stories of shoppers who order."""

    def __init__(self, seed: int) -> None:
        self._random = Random(seed)
        self._agenda = Agenda(QUIET_MS)
        self._orders = 0
        self._stories: list[Callable[[int, str], None]] = [
            self._ordinary,
            self._out_of_order,
            self._repeated,
            self._high_value,
            self._series,
            self._late_for_tile,
            self._late_for_window,
            self._broken,
        ]
        self._weights = [800, 60, 20, 25, 12, 8, 8, 20]

    def publications(self, start_ms: int) -> Iterator[Publication]:
        return told(self._agenda, moments(self._random, start_ms, GAPS_MS, TILE_MS, QUIET_MS), self._begin)

    def _begin(self, at_ms: int) -> None:
        (story,) = self._random.choices(self._stories, self._weights)
        story(at_ms, f"u-{self._random.randrange(SHOPPERS)}")

    def _ordinary(self, at_ms: int, user: str) -> None:
        """An order that arrives at once."""
        self._order(at_ms, user, self._small_cents())

    def _out_of_order(self, at_ms: int, user: str) -> None:
        """An order that arrives up to 4 s after it happened, which is still on time."""
        self._order(at_ms, user, self._small_cents(), behind_ms=self._random.randint(500, 4_000))

    def _repeated(self, at_ms: int, user: str) -> None:
        """An order that is published again within a minute."""
        self._order(at_ms, user, self._any_cents(), repeat=True)

    def _high_value(self, at_ms: int, user: str) -> None:
        """An order above the limit, now and then published twice."""
        self._order(at_ms, user, self._large_cents(), repeat=self._random.random() < 0.1)

    def _series(self, at_ms: int, user: str) -> None:
        """A sudden series of orders with a high value at its end, and sometimes another one when the series is old."""
        moment_ms = at_ms
        for _ in range(self._random.randint(1, 9)):
            self._order(moment_ms, user, self._small_cents(), repeat=self._random.random() < 0.2)
            moment_ms += self._random.randint(200, 2_500)
        self._order(moment_ms, user, self._large_cents())
        if self._random.random() < 0.4:
            self._order(moment_ms + self._random.randint(250_000, 340_000), user, self._large_cents())

    def _late_for_tile(self, at_ms: int, user: str) -> None:
        """An order whose tile has closed."""
        self._order(at_ms, user, self._any_cents(), behind_ms=self._random.randint(LATE_MS, 120_000))

    def _late_for_window(self, at_ms: int, user: str) -> None:
        """An order of the window before this one; on time only in the first seconds after the boundary."""
        behind_ms = at_ms % WINDOW_MS + self._random.randint(1, TILE_MS)
        self._order(at_ms, user, self._any_cents(), behind_ms=behind_ms)

    def _broken(self, at_ms: int, user: str) -> None:
        """Bytes that are no order."""
        (break_it,) = self._random.choices(BREAKS)

        def make(now_ms: int) -> Publication:
            order = self._new_order(user, self._any_cents(), now_ms)
            key, value = break_it(order)
            return Publication(now_ms, TOPIC, key, value, now_ms)

        self._agenda.add(at_ms, user, make)

    def _order(
        self, not_before_ms: int, user: str, cents: int, *, behind_ms: int | None = None, repeat: bool = False
    ) -> None:
        def make(at_ms: int) -> Publication:
            happened_ms = at_ms - (self._random.randint(0, 200) if behind_ms is None else behind_ms)
            order = self._new_order(user, cents, happened_ms)
            publication = Publication(at_ms, TOPIC, user.encode(), encode(order), happened_ms)
            if repeat:
                longest_ms = self._random.choice((2_000, 50_000))
                again_ms = at_ms + self._random.randint(QUIET_MS, longest_ms)
                self._agenda.add(again_ms, user, lambda later_ms: publication._replace(at_ms=later_ms))
            return publication

        self._agenda.add(not_before_ms, user, make)

    def _new_order(self, user: str, cents: int, happened_ms: int) -> OrderEvent:
        self._orders += 1
        return OrderEvent(
            order_id=f"o-{self._orders}",
            user_id=user,
            amount_usd=to_dollars(cents),
            status="placed",
            timestamp=EPOCH + timedelta(milliseconds=happened_ms),
        )

    def _small_cents(self) -> int:
        return self._random.randint(1, 120) * self._random.randint(5, 300)

    def _large_cents(self) -> int:
        return self._random.randint(1_000_001, 4_000_000)

    def _any_cents(self) -> int:
        return self._large_cents() if self._random.random() < 0.2 else self._small_cents()


def _with(order: OrderEvent, old: str, new: str) -> tuple[bytes, bytes]:
    """An order whose JSON has `new` in place of `old`."""
    text = encode(order).decode()
    assert old in text
    return order.user_id.encode(), text.replace(old, new).encode()


BREAKS: tuple[Callable[[OrderEvent], tuple[bytes | None, bytes | None]], ...] = (
    lambda order: (order.user_id.encode(), encode(order)[:-7]),
    lambda order: (order.user_id.encode(), b"[" + encode(order) + b"]"),
    lambda order: (order.user_id.encode(), b"order " + order.order_id.encode()),
    lambda order: (order.user_id.encode(), b""),
    lambda order: (order.user_id.encode(), None),
    lambda order: (None, encode(order)),
    lambda order: (b"u-nobody", encode(order)),
    lambda order: (b"\xff\xfe", encode(order)),
    lambda order: (order.user_id.encode(), encode(order).replace(b"o-", b"\xc3\x28")),
    lambda order: _with(order, f'"{order.order_id}"', "17"),
    lambda order: _with(order, f'"amount_usd":{order.amount_usd}', '"amount_usd":true'),
    lambda order: _with(order, f'"amount_usd":{order.amount_usd}', '"amount_usd":"a lot"'),
    lambda order: _with(order, f'"amount_usd":{order.amount_usd}', f'"amount_usd":-{order.amount_usd}'),
    lambda order: _with(order, f'"amount_usd":{order.amount_usd}', f'"amount_usd":{order.amount_usd}5'),
    lambda order: _with(order, f'"amount_usd":{order.amount_usd}', '"amount_usd":10000000000.01'),
    lambda order: _with(order, f'"amount_usd":{order.amount_usd},', ""),
    lambda order: _with(order, '"placed"', '"lost"'),
    lambda order: _with(order, 'Z"', '"'),
)
"""Key and value of an order, broken in one way each: every kind of the table in docs/validity.md."""
