"""Features as agents read them: tiles merged for now, how fresh they are, and whether the own event is among them."""

import asyncio
from collections.abc import Mapping
from typing import NamedTuple

import msgspec

from app.core.clock import Clock
from app.core.codec import to_dollars
from app.core.errors import SetupError
from app.serving.base import Features, FeatureStore, FeatureValue, Freshness, OwnEvent, StoredFeatures, View
from app.streams.aggregates import seen
from app.streams.expressions import Kind
from app.streams.windows import merge_tiles, slice_start, tile_counts

FRESH_WITHIN_MS = 10_000
OWN_EVENT_WAIT_MS = 250

FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.001, 0.008
"""Between two looks at the store while waiting; doubled each time."""


class Origin(NamedTuple):
    """The event that an alert comes from: its place in the source topic, its time, the views it was late for, and its key,
    which is the entity that it counts for. is_one: False where a window raised the alert, of which this is the last event."""

    topic: str
    partition: int
    offset: int
    event_ms: int
    late_for: frozenset[str]
    key: str
    is_one: bool = True


def answer(view: View, entity: str, stored: StoredFeatures, now_ms: int) -> Features:
    """What is stored of one entity, merged for `now_ms`. An entity without tiles has zeros, and nulls where zero would be a
    statement: it did nothing.

    MISSING where nothing of its partition was ever materialized; else FRESH or STALE by the age of `as_of_ms`.
    """
    merged = merge_tiles(stored.tiles, view.tile_ms, now_ms, view.window_ms, view.accumulators)
    values: dict[str, FeatureValue] = {
        output.name: to_dollars(value) if output.kind is Kind.MONEY and value is not None else value
        for output, value in zip(view.fields, seen(view.fields, merged), strict=True)
    }
    as_of_ms = stored.progress.as_of_ms if stored.progress is not None else 0
    age_ms = max(0, now_ms - as_of_ms)
    freshness = Freshness.FRESH if age_ms <= FRESH_WITHIN_MS else Freshness.STALE
    return Features(
        view=view.name,
        entity=entity,
        values=values,
        window_end_ms=now_ms,
        as_of_ms=as_of_ms,
        age_ms=age_ms,
        freshness=freshness if stored.progress is not None else Freshness.MISSING,
    )


class FeatureReader:
    """Reads the served views of one application."""

    def __init__(self, store: FeatureStore, clock: Clock, views: Mapping[str, View]) -> None:
        self._store = store
        self._clock = clock
        self._views = views

    async def read(self, view: str, entity: str) -> Features:
        """The features as of now. Raises: SetupError for an unknown view; Unavailable."""
        declared = self._named(view)
        stored = await self._store.read(declared, entity)
        return answer(declared, entity, stored, self._clock.now_ms())

    async def read_with_own_event(
        self, view: str, entity: str, origin: Origin, wait_ms: int = OWN_EVENT_WAIT_MS
    ) -> Features:
        """The features, after waiting up to `wait_ms` until they include the event that asks.

        The moment that they count for is that of the call, however long the wait. `own_event` in the answer:
        NOT_COMPARABLE where the view is not of that topic, that key, or not of every event, and for a window; LATE where the event came too
        late for the view, which is not waited for; SEEN where the tile of its time holds its offset or a later one; else
        NOT_SEEN, at once where that tile is too old to count. Raises: SetupError for an unknown view; Unavailable.
        """
        declared = self._named(view)
        now_ms = self._clock.now_ms()
        own_event = _own_event_unseen(declared, entity, origin)
        stored = await self._store.read(declared, entity)
        if own_event is OwnEvent.NOT_SEEN:
            tile_start_ms = slice_start(origin.event_ms, declared.tile_ms)
            counts = tile_counts(tile_start_ms, declared.tile_ms, now_ms, declared.window_ms)
            deadline = asyncio.get_running_loop().time() + (wait_ms / 1000 if counts else 0)
            pause = FIRST_PAUSE_S
            while not _holds(stored, tile_start_ms, origin):
                remaining = deadline - asyncio.get_running_loop().time()
                if remaining <= 0:
                    break
                await asyncio.sleep(min(pause, remaining))
                pause = min(2 * pause, LONGEST_PAUSE_S)
                stored = await self._store.read(declared, entity)
            else:
                own_event = OwnEvent.SEEN
        return msgspec.structs.replace(answer(declared, entity, stored, now_ms), own_event=own_event)

    def _named(self, view: str) -> View:
        if view not in self._views:
            raise SetupError(view, f"no such view is served; there are {', '.join(sorted(self._views)) or 'none'}")
        return self._views[view]


def _own_event_unseen(view: View, entity: str, origin: Origin) -> OwnEvent:
    """What can be said before looking: NOT_SEEN means that looking helps."""
    if not origin.is_one or origin.topic != view.source_topic or origin.key != entity or not view.comparable:
        return OwnEvent.NOT_COMPARABLE
    return OwnEvent.LATE if view.name in origin.late_for else OwnEvent.NOT_SEEN


def _holds(stored: StoredFeatures, tile_start_ms: int, origin: Origin) -> bool:
    return any(
        tile.start_ms == tile_start_ms and tile.partition == origin.partition and tile.version >= origin.offset
        for tile in stored.tiles
    )
