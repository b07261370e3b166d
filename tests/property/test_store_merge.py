"""Tiles against brute force: whatever the order, the repeats and the batches, a store answers as the newest versions do;
and a live value errs by at most one tile, upwards.
"""

import asyncio
import itertools
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from decimal import Decimal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from redis.asyncio import Redis

from app.broker.topics import MAX_AHEAD_MS
from app.core.clock import ManualClock
from app.serving.base import FeatureStore, Progress, StoredFeatures, TileChange, View
from app.serving.features import answer
from app.serving.memory import MemoryStore
from app.serving.redis import RedisStore
from app.streams.aggregates import OutputField
from app.streams.expressions import Kind
from app.streams.windows import Tile, slice_start
from tests.examples import examples

TILE_MS, WINDOW_MS = 30_000, 120_000
EPOCH_MS = 1_699_999_980_000
FIELDS = (OutputField("n", Kind.INTEGER), OutputField("value", Kind.MONEY))
ENTITIES = ("u-1", "u-2")

_names = itertools.count()


def new_view() -> View:
    name = f"property-{next(_names)}"
    return View(name, "user", f"features.{name}", "raw.x", 1, WINDOW_MS, TILE_MS, FIELDS, True, "f")


@st.composite
def deliveries(draw: st.DrawFn) -> list[list[TileChange]]:
    """Changes as an engine makes them (versions rise, one set of values a version), as a store may get them: in any
    order, with repeats, in batches of any size."""
    count = draw(st.integers(1, 20))
    changes = []
    for version in range(count):
        tile = Tile(
            EPOCH_MS + draw(st.integers(0, 14)) * TILE_MS,
            draw(st.integers(0, 1)),
            version,
            (draw(st.integers(0, 99)), draw(st.integers(-10_000, 10**12))),
        )
        changes.append(TileChange(draw(st.sampled_from(ENTITIES)), tile))
    delivered = draw(st.lists(st.sampled_from(changes), min_size=1, max_size=2 * count))
    cuts = sorted(draw(st.lists(st.integers(0, len(delivered)), max_size=4)))
    return [delivered[start:stop] for start, stop in itertools.pairwise([0, *cuts, len(delivered)])]


def newest_tiles(batches: Sequence[Sequence[TileChange]], entity: str) -> list[Tile]:
    """Brute force: of every tile that was delivered, the newest version; nothing is ever dropped."""
    newest: dict[tuple[int, int], Tile] = {}
    for change in itertools.chain(*batches):
        place = (change.tile.start_ms, change.tile.partition)
        if change.entity == entity and (place not in newest or newest[place].version < change.tile.version):
            newest[place] = change.tile
    return list(newest.values())


def sums(tiles: Sequence[Tile], now_ms: int) -> tuple[int, int]:
    """Brute force: what counts at `now_ms`, in integers."""
    counted = [tile.values for tile in tiles if tile.start_ms + TILE_MS > now_ms - WINDOW_MS]
    return sum(values[0] for values in counted), sum(values[1] for values in counted)


async def check_answers(store: FeatureStore, view: View, batches: Sequence[Sequence[TileChange]]) -> None:
    """From the earliest moment that a clock may show onwards, answers are those of brute force."""
    for number, batch in enumerate(batches):
        assert await store.apply(view, 0, number or None, Progress(number + 1, 0), batch)
    for entity in ENTITIES:
        tiles = newest_tiles(batches, entity)
        newest_start_ms = max((tile.start_ms for tile in tiles), default=EPOCH_MS)
        stored = await store.read(view, entity)
        for now_ms in range(newest_start_ms - MAX_AHEAD_MS, newest_start_ms + WINDOW_MS + 2 * TILE_MS, 7_500):
            count, cents = sums(tiles, now_ms)
            values = answer(view, entity, stored, now_ms).values
            assert {"n": count, "value": Decimal(cents).scaleb(-2)} == values


@given(batches=deliveries())
def test_memory_store_answers_as_the_newest_versions_do(batches: list[list[TileChange]]) -> None:
    """Order, repeats, batches and dropped tiles change no answer of the memory store."""
    asyncio.run(check_answers(MemoryStore(ManualClock()), new_view(), batches))


@pytest.mark.redis
@settings(max_examples=examples(40))
@given(batches=deliveries())
def test_redis_store_answers_as_the_newest_versions_do(redis_address: str, batches: list[list[TileChange]]) -> None:
    """Nor of Redis; and its named values are the sums of the window that ends with the newest tile."""

    async def main() -> None:
        store, view = RedisStore(redis_address, ManualClock()), new_view()
        async with closing(store), Redis.from_url(redis_address, decode_responses=True) as redis:
            await check_answers(store, view, batches)
            for entity in ENTITIES:
                if tiles := newest_tiles(batches, entity):
                    window_end_ms = max(tile.start_ms for tile in tiles) + TILE_MS
                    count, cents = sums(tiles, window_end_ms)
                    named = await redis.hmget(f"{view.name}:{entity}", ["window_end", "n", "value"])
                    assert [str(window_end_ms), str(count), str(Decimal(cents).scaleb(-2))] == named
            await store.clear(view)

    asyncio.run(main())


@given(
    event_times_ms=st.lists(st.integers(EPOCH_MS, EPOCH_MS + 400_000), max_size=50),
    now_ms=st.integers(EPOCH_MS, EPOCH_MS + 700_000),
)
def test_live_value_errs_by_at_most_one_tile_upwards(event_times_ms: list[int], now_ms: int) -> None:
    """A live count holds every event of the window, and none older than one tile more."""
    past_ms = [time_ms for time_ms in event_times_ms if time_ms <= now_ms]
    counted = answer(new_view(), "u", StoredFeatures(tiles_of(past_ms), None), now_ms).values["n"]
    exact = sum(time_ms > now_ms - WINDOW_MS for time_ms in past_ms)
    at_most = sum(time_ms > now_ms - WINDOW_MS - TILE_MS for time_ms in past_ms)
    assert exact <= counted <= at_most


@given(
    event_times_ms=st.lists(st.integers(EPOCH_MS, EPOCH_MS + 400_000), max_size=50),
    moments_ms=st.lists(st.integers(EPOCH_MS, EPOCH_MS + 700_000), min_size=1, max_size=20),
)
def test_live_value_only_falls_without_events(event_times_ms: list[int], moments_ms: list[int]) -> None:
    """Time alone never raises a value, and in the end it is zero."""
    stored = StoredFeatures(tiles_of(event_times_ms), None)
    view = new_view()
    counts = [int(answer(view, "u", stored, now_ms).values["n"]) for now_ms in sorted(moments_ms)]
    assert sorted(counts, reverse=True) == counts
    assert 0 == answer(view, "u", stored, EPOCH_MS + 400_000 + WINDOW_MS + TILE_MS).values["n"]


@asynccontextmanager
async def closing(store: FeatureStore) -> AsyncIterator[None]:
    try:
        yield
    finally:
        await store.close()


def tiles_of(event_times_ms: Sequence[int]) -> tuple[Tile, ...]:
    starts = [slice_start(time_ms, TILE_MS) for time_ms in event_times_ms]
    return tuple(Tile(start_ms, 0, 1, (starts.count(start_ms), 0)) for start_ms in sorted(set(starts)))
