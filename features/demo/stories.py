"""What the demo's cases share: a teller of weighted stories, and a past that is published until it has caught up."""

from collections.abc import Callable, Iterator, Sequence
from datetime import datetime, timedelta
from itertools import islice
from random import Random

import msgspec

from app.core.codec import encode
from app.sources.generator import Agenda, Publication, moments, told
from features.scenario import EPOCH, QUIET_MS, TILE_MS

CAUGHT_UP_MS = 30_000
"""After so long what is published has just happened."""

Story = Callable[[int], None]
"""Schedules what somebody does from a moment on."""


class Stories:
    """Stories told by one seed. behind_ms: how long ago the first event happened; what follows catches up."""

    def __init__(self, seed: str, start_ms: int, gaps_ms: range, behind_ms: int = 0) -> None:
        self.random = Random(seed)
        self._agenda = Agenda(QUIET_MS)
        self._gaps_ms = gaps_ms
        self._start_ms = start_ms
        self._behind_ms = behind_ms

    def publications(self, events: int, stories: Sequence[tuple[Story, int]]) -> Iterator[Publication]:
        """So many publications of stories, each begun as often as its weight says."""
        telling, weights = [story for story, _ in stories], [weight for _, weight in stories]

        def begin(at_ms: int) -> None:
            self.random.choices(telling, weights)[0](at_ms)

        at = moments(self.random, self._start_ms, self._gaps_ms, TILE_MS, QUIET_MS)
        return islice(told(self._agenda, at, begin), events)

    def happened_ms(self, at_ms: int) -> int:
        """When that happened which is published at a moment: never later, and in the same order."""
        return at_ms - max(0, self._behind_ms - (at_ms - self._start_ms) * self._behind_ms // CAUGHT_UP_MS)

    def add(
        self,
        at_ms: int,
        topic: str,
        entity: str,
        make: Callable[[datetime], msgspec.Struct],
        *,
        again_after_ms: int | None = None,
    ) -> None:
        """Publishes what `make(happened)` makes at `at_ms` or soon after; and once more where `again_after_ms` is given."""

        def publish(now_ms: int) -> Publication:
            happened_ms = self.happened_ms(now_ms)
            event = make(EPOCH + timedelta(milliseconds=happened_ms))
            publication = Publication(now_ms, topic, entity.encode(), encode(event), happened_ms)
            if again_after_ms is not None:
                self._agenda.add(now_ms + again_after_ms, entity, lambda later_ms: publication._replace(at_ms=later_ms))
            return publication

        self._agenda.add(at_ms, entity, publish)
