"""What the memory store does beyond the contract suite: it forgets, as Redis does."""

from app.core.clock import ManualClock
from app.serving.base import Progress, TileChange, View
from app.serving.memory import MemoryStore
from app.streams.aggregates import OutputField
from app.streams.expressions import Kind
from app.streams.windows import Tile

VIEW = View("v", "user", "features.v", "raw.v", 1, 300_000, 30_000, (OutputField("n", Kind.INTEGER),), True, "f")


async def test_memory_store_entity_expires_after_its_last_change() -> None:
    """An entity nobody writes to is forgotten after the stated time, and its memory freed by the next write."""
    clock = ManualClock()
    store = MemoryStore(clock)
    first, second = (TileChange(name, Tile(0, 0, 1, (1,))) for name in ("u-1", "u-2"))
    assert await store.apply(VIEW, 0, None, Progress(1, 0), [first])
    clock.advance(VIEW.ttl_ms - 1)
    assert (first.tile,) == (await store.read(VIEW, "u-1")).tiles
    clock.advance(1)
    assert () == (await store.read(VIEW, "u-1")).tiles
    assert await store.apply(VIEW, 0, 1, Progress(2, 0), [second])
    assert ["u-2"] == list(store._shelves["v"].entities)


async def test_memory_store_repeated_change_does_not_prolong() -> None:
    """Only a change counts as one: a replay keeps the old time to live."""
    clock = ManualClock()
    store = MemoryStore(clock)
    change = TileChange("u-1", Tile(0, 0, 1, (1,)))
    assert await store.apply(VIEW, 0, None, Progress(1, 0), [change])
    clock.advance(VIEW.ttl_ms - 1)
    assert await store.apply(VIEW, 0, 1, Progress(2, 0), [change])
    clock.advance(1)
    assert () == (await store.read(VIEW, "u-1")).tiles
