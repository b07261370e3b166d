"""What every feature store keeps: newer tiles win, the progress moves only from where it is expected, nothing is claimed
that is not there. One suite, run on memory and on a real Redis.
"""

import asyncio
from collections.abc import AsyncIterator, Callable
from itertools import pairwise

import msgspec
import pytest

from app.core.clock import ManualClock
from app.core.errors import SetupError
from app.serving.base import FeatureStore, Progress, StoredFeatures, TileChange, View
from app.serving.memory import MemoryStore
from app.serving.redis import RedisStore
from app.streams.aggregates import OutputField
from app.streams.expressions import Kind
from app.streams.windows import Tile

MINUTE_MS = 60_000
NOW_MS = 1_700_000_000_000 - 1_700_000_000_000 % MINUTE_MS
TILE_MS = 30_000


@pytest.fixture(params=["memory", pytest.param("redis", marks=pytest.mark.redis)])
def address(request: pytest.FixtureRequest) -> str:
    return "memory://" if request.param == "memory" else str(request.getfixturevalue("redis_address"))


@pytest.fixture
async def store(address: str) -> AsyncIterator[FeatureStore]:
    clock = ManualClock(NOW_MS)
    opened: FeatureStore = MemoryStore(clock) if address == "memory://" else RedisStore(address, clock)
    await opened.start()
    yield opened
    await opened.close()


@pytest.fixture
def view(unique: Callable[[str], str]) -> View:
    name = unique("view")
    fields = (OutputField("orders", Kind.INTEGER), OutputField("value", Kind.MONEY))
    return View(
        name, "user_id", f"features.{name}", "raw.orders", 12, 5 * MINUTE_MS, TILE_MS, fields, True, "fingerprint-1"
    )


def change(entity: str, version: int, *values: int, start_ms: int = NOW_MS, partition: int = 0) -> TileChange:
    return TileChange(entity, Tile(start_ms, partition, version, values))


async def stored_tiles(store: FeatureStore, view: View, entity: str) -> set[Tile]:
    return set((await store.read(view, entity)).tiles)


async def test_store_unknown_entity_has_no_tiles_and_no_progress(store: FeatureStore, view: View) -> None:
    """Of an entity nobody wrote, a store says that it knows nothing, not that it is zero."""
    assert StoredFeatures((), None) == await store.read(view, "nobody")
    assert {} == await store.progress(view)


async def test_store_applied_tiles_are_read_with_the_progress_of_their_partition(
    store: FeatureStore, view: View
) -> None:
    """What was applied is read back exactly, together with the progress of the entity's partition."""
    partition = view.partition_of("u-17")
    tile = change("u-17", 4711, 2, 105_000, partition=partition)
    assert await store.apply(view, partition, None, Progress(5, 1_000), [tile])
    assert StoredFeatures((tile.tile,), Progress(5, 1_000)) == await store.read(view, "u-17")
    assert {partition: Progress(5, 1_000)} == await store.progress(view)


async def test_store_other_partition_has_no_progress(store: FeatureStore, view: View) -> None:
    """The progress of one partition says nothing about another."""
    partition = view.partition_of("u-17")
    other = (partition + 1) % view.partitions
    assert await store.apply(view, other, None, Progress(5, 1_000), [])
    assert (await store.read(view, "u-17")).progress is None


@pytest.mark.parametrize("versions", [(3, 2), (3, 3), (10, 9)])
async def test_store_version_that_is_not_newer_changes_nothing(
    store: FeatureStore, view: View, versions: tuple[int, int]
) -> None:
    """A replayed or older change never moves a tile back; versions are compared as numbers, not as text."""
    newer, older = versions
    assert await store.apply(view, 0, None, Progress(1, 0), [change("u", newer, 7, 700)])
    assert await store.apply(view, 0, 1, Progress(2, 0), [change("u", older, 1, 100)])
    assert {change("u", newer, 7, 700).tile} == await stored_tiles(store, view, "u")


async def test_store_newer_version_replaces_the_values(store: FeatureStore, view: View) -> None:
    """Values are absolute: a newer change replaces them and adds nothing."""
    assert await store.apply(view, 0, None, Progress(1, 0), [change("u", 1, 1, 100)])
    assert await store.apply(view, 0, 1, Progress(2, 0), [change("u", 2, 2, 150)])
    assert {change("u", 2, 2, 150).tile} == await stored_tiles(store, view, "u")


async def test_store_several_changes_of_one_tile_in_one_call_keep_the_newest(store: FeatureStore, view: View) -> None:
    """The order within a call does not matter either."""
    changes = [change("u", 5, 5, 500), change("u", 7, 7, 700), change("u", 6, 6, 600)]
    assert await store.apply(view, 0, None, Progress(3, 0), changes)
    assert {change("u", 7, 7, 700).tile} == await stored_tiles(store, view, "u")


async def test_store_source_partitions_of_one_entity_are_tiles_of_their_own(store: FeatureStore, view: View) -> None:
    """The same tile counted by two source partitions is two tiles; their versions are not compared."""
    one, other = change("u", 9, 1, 100, partition=0), change("u", 2, 2, 200, partition=1)
    assert await store.apply(view, 0, None, Progress(1, 0), [one, other])
    assert {one.tile, other.tile} == await stored_tiles(store, view, "u")


@pytest.mark.parametrize("expected", [None, 4, 6, 0])
async def test_store_unexpected_position_changes_nothing(store: FeatureStore, view: View, expected: int | None) -> None:
    """Only the writer that knows the position moves it; another one is told so, and leaves no trace."""
    assert await store.apply(view, 0, None, Progress(5, 1_000), [change("u", 1, 1, 100)])
    assert not await store.apply(view, 0, expected, Progress(9, 2_000), [change("u", 2, 2, 200), change("v", 1, 1, 1)])
    assert {0: Progress(5, 1_000)} == await store.progress(view)
    assert {change("u", 1, 1, 100).tile} == await stored_tiles(store, view, "u")
    assert set() == await stored_tiles(store, view, "v")


async def test_store_position_expected_of_an_empty_store_changes_nothing(store: FeatureStore, view: View) -> None:
    """A writer that goes on where it was does not notice by itself that the store was emptied: the store tells it."""
    assert not await store.apply(view, 0, 5, Progress(6, 0), [change("u", 1, 1, 100)])
    assert {} == await store.progress(view)
    assert set() == await stored_tiles(store, view, "u")


async def test_store_expected_position_may_move_back(store: FeatureStore, view: View) -> None:
    """A topic that was made anew begins again at 0: its writer says so by expecting the old position."""
    assert await store.apply(view, 0, None, Progress(5, 1_000), [])
    assert await store.apply(view, 0, 5, Progress(1, 1_000), [])
    assert {0: Progress(1, 1_000)} == await store.progress(view)


async def test_store_two_writers_at_once_move_the_position_once(store: FeatureStore, view: View) -> None:
    """Of writers that expect the same position one wins, and the others change nothing."""
    outcomes = await asyncio.gather(
        *(store.apply(view, 0, None, Progress(n, 0), [change(f"u-{n}", n, n, n)]) for n in range(1, 9))
    )
    assert 1 == sum(outcomes)
    winner = outcomes.index(True) + 1
    assert {0: Progress(winner, 0)} == await store.progress(view)
    for n in range(1, 9):
        assert (n == winner) == bool(await stored_tiles(store, view, f"u-{n}"))


async def test_store_cleared_view_knows_nothing_and_begins_again(store: FeatureStore, view: View) -> None:
    """After a clear, positions are None and a writer begins anew; another view stays."""
    neighbour = msgspec.structs.replace(view, name=f"{view.name}-b")
    assert await store.apply(view, 0, None, Progress(5, 1_000), [change("u", 1, 1, 100)])
    assert await store.apply(neighbour, 0, None, Progress(6, 1_000), [change("u", 1, 1, 100)])
    await store.clear(view)
    assert {} == await store.progress(view)
    assert set() == await stored_tiles(store, view, "u")
    assert {0: Progress(6, 1_000)} == await store.progress(neighbour)
    assert {change("u", 1, 1, 100).tile} == await stored_tiles(store, neighbour, "u")
    assert await store.apply(view, 0, None, Progress(1, 0), [])


async def test_store_forgotten_entity_has_no_tiles_and_its_neighbours_keep_theirs(
    store: FeatureStore, view: View
) -> None:
    """One entity goes, whether it was there is said, and the position stays where it is."""
    changes = [change("u", 1, 1, 100), change("u-2", 2, 1, 200)]
    assert await store.apply(view, 0, None, Progress(5, 1_000), changes)
    assert await store.forget(view, "u")
    assert not await store.forget(view, "u")
    assert set() == await stored_tiles(store, view, "u")
    assert {changes[1].tile} == await stored_tiles(store, view, "u-2")
    assert {0: Progress(5, 1_000)} == await store.progress(view)


async def test_store_large_batch_is_applied_as_a_whole(store: FeatureStore, view: View) -> None:
    """A batch of more entities than one call takes arrives completely, and moves the position once."""
    changes = [change(f"u-{n % 300}", n, n, n * 100, start_ms=NOW_MS + n // 300 * TILE_MS) for n in range(600)]
    assert await store.apply(view, 0, None, Progress(600, 1), changes)
    assert {0: Progress(600, 1)} == await store.progress(view)
    for n in range(300):
        expected = {item.tile for item in changes if item.entity == f"u-{n}"}
        assert expected == await stored_tiles(store, view, f"u-{n}")


async def test_store_large_batch_of_an_unexpected_position_changes_nothing(store: FeatureStore, view: View) -> None:
    """Every call of a large batch compares the position."""
    assert not await store.apply(view, 0, 7, Progress(600, 1), [change(f"u-{n}", n, n, n) for n in range(200)])
    for n in range(200):
        assert set() == await stored_tiles(store, view, f"u-{n}")


async def test_store_tiles_that_count_no_more_are_dropped(store: FeatureStore, view: View) -> None:
    """Storage keeps the window, the open tile and the minute that a clock may be ahead; what is older goes."""
    kept_tiles = view.kept_ms // TILE_MS
    starts_ms = [NOW_MS + n * TILE_MS for n in range(kept_tiles + 3)]
    changes = [change("u", n, 1, 1, start_ms=start_ms) for n, start_ms in enumerate(starts_ms)]
    for n, item in enumerate(changes):
        assert await store.apply(view, 0, n or None, Progress(n + 1, 0), [item])
    assert {item.tile for item in changes[3:]} == await stored_tiles(store, view, "u")
    assert await store.apply(view, 0, len(changes), Progress(99, 0), [changes[0]])
    assert {item.tile for item in changes[3:]} == await stored_tiles(store, view, "u")


@pytest.mark.parametrize("entity", ["", "a b", "ü-1", "x:y*?[z]", "tile:1:2", "\n"])
async def test_store_any_text_is_an_entity(store: FeatureStore, view: View, entity: str) -> None:
    """Spaces, colons, patterns and other alphabets in an entity's name are nothing special."""
    assert await store.apply(view, 0, None, Progress(1, 0), [change(entity, 1, 1, 100)])
    assert {change(entity, 1, 1, 100).tile} == await stored_tiles(store, view, entity)
    await store.clear(view)
    assert set() == await stored_tiles(store, view, entity)


async def test_store_large_and_negative_integers_stay_exact(store: FeatureStore, view: View) -> None:
    """Versions and cents up to 10^15 come back to the last digit, tiles before 1970 too."""
    items = [
        change("u", 10**15 - 1, 10**15 - 7, -(10**15) + 3, start_ms=-TILE_MS),
        change("u", 10**15, 10**15, 1, start_ms=-TILE_MS),
    ]
    for n, item in enumerate(items):
        assert await store.apply(view, 0, 10**15 + n if n else None, Progress(10**15 + n + 1, NOW_MS), [item])
    assert not await store.apply(view, 0, 10**15 + 1, Progress(1, 0), [])
    assert {items[1].tile} == await stored_tiles(store, view, "u")
    assert await store.apply(view, 0, 10**15 + 2, Progress(10**15 + 3, NOW_MS), [items[0]])
    assert {items[1].tile} == await stored_tiles(store, view, "u")


async def test_store_other_declaration_is_refused_until_cleared(store: FeatureStore, view: View) -> None:
    """Tiles of another declaration are neither read nor mixed; the refusal says how to begin anew."""
    other = msgspec.structs.replace(view, fingerprint="fingerprint-2")
    assert await store.apply(view, 0, None, Progress(1, 0), [change("u", 1, 1, 100)])
    for refused in (
        store.apply(other, 0, 1, Progress(2, 0), []),
        store.read(other, "u"),
        store.progress(other),
        store.forget(other, "u"),
    ):
        with pytest.raises(SetupError, match=f"python -m app streams reset {view.name}"):
            await refused
    await store.clear(other)
    assert await store.apply(other, 0, None, Progress(1, 0), [])


async def test_store_progress_never_claims_more_than_the_tiles_hold(store: FeatureStore, view: View) -> None:
    """Readers at work during writes always find the change that the progress they are told stands for."""
    partition = view.partition_of("u")
    done = asyncio.Event()

    async def write() -> None:
        for n in range(200):
            expected = n or None
            assert await store.apply(view, partition, expected, Progress(n + 1, n + 1), [change("u", n + 1, n + 1, 0)])
            await asyncio.sleep(0)
        done.set()

    async def read() -> list[int]:
        seen = []
        while not done.is_set():
            tiles, progress = await store.read(view, "u")
            if progress is not None:
                assert tiles[0].version >= progress.offset
                seen.append(progress.offset)
            await asyncio.sleep(0)
        return seen

    async with asyncio.TaskGroup() as tasks:
        readers = [tasks.create_task(read()) for _ in range(4)]
        tasks.create_task(write())
    for reader in readers:
        assert all(earlier <= later for earlier, later in pairwise(reader.result()))


@pytest.mark.parametrize("yields", range(12))
async def test_store_cancelled_apply_moves_all_or_nothing(store: FeatureStore, view: View, yields: int) -> None:
    """Whenever a writer is cancelled, either the position moved and everything is there, or it did not, and the same
    batch can be applied again."""
    changes = [change(f"u-{n}", n + 1, n, n) for n in range(150)]
    task = asyncio.ensure_future(store.apply(view, 0, None, Progress(150, 1), changes))
    for _ in range(yields * yields):
        await asyncio.sleep(0)
    task.cancel()
    await asyncio.wait([task])
    progress = await store.progress(view)
    if not progress:
        assert await store.apply(view, 0, None, Progress(150, 1), changes)
    for n in range(150):
        assert {changes[n].tile} == await stored_tiles(store, view, f"u-{n}")
    assert {0: Progress(150, 1)} == await store.progress(view)


async def test_store_cancelled_reads_give_nobody_another_ones_answer(store: FeatureStore, view: View) -> None:
    """Reads that are cancelled under load leave the connection clean: every answer belongs to its question."""
    changes = [change(f"u-{n}", n, n, n) for n in range(50)]
    assert await store.apply(view, 0, None, Progress(1, 0), changes)

    async def read_and_compare(n: int) -> None:
        for _ in range(20):
            assert {changes[n].tile} == await stored_tiles(store, view, f"u-{n}")

    for round_number in range(20):
        tasks = [asyncio.ensure_future(read_and_compare(n)) for n in range(50)]
        for _ in range(round_number):
            await asyncio.sleep(0)
        for task in tasks[::2]:
            task.cancel()
        outcomes = await asyncio.gather(*tasks, return_exceptions=True)
        assert all(outcome is None or isinstance(outcome, asyncio.CancelledError) for outcome in outcomes[::2])
        assert {None} == set(outcomes[1::2])


async def test_store_close_may_be_called_twice(store: FeatureStore) -> None:
    """Closing again does nothing."""
    await store.close()
    await store.close()
