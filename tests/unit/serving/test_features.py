"""What an agent is answered: values for now, freshness, and whether its own event is among them."""

import asyncio
from collections.abc import Sequence
from decimal import Decimal

import pytest

from app.broker.topics import partition_of
from app.core.clock import Clock, ManualClock, run_virtual
from app.core.errors import SetupError
from app.serving.base import Features, Freshness, OwnEvent, Progress, StoredFeatures, TileChange, View
from app.serving.features import FeatureReader, Origin, answer
from app.serving.memory import MemoryStore
from app.streams.aggregates import OutputField
from app.streams.expressions import Kind
from app.streams.windows import Tile

NOW_MS = 1_700_000_010_000 - 1_700_000_010_000 % 30_000
FIELDS = (OutputField("orders", Kind.INTEGER), OutputField("value", Kind.MONEY))
VIEW = View("user_features", "user_id", "features.user_features", "raw.orders", 12, 300_000, 30_000, FIELDS, True, "f")
FILTERED = View("big", "user_id", "features.big", "raw.orders", 12, 300_000, 30_000, FIELDS, False, "f")
PARTITION = partition_of(b"u-17", 12)


def origin(
    offset: int = 7,
    *,
    topic: str = "raw.orders",
    event_ms: int = NOW_MS,
    late_for: Sequence[str] = (),
    key: str = "u-17",
) -> Origin:
    return Origin(topic, PARTITION, offset, event_ms, frozenset(late_for), key)


def change(version: int, start_ms: int = NOW_MS, partition: int = PARTITION) -> TileChange:
    return TileChange("u-17", Tile(start_ms, partition, version, (version, version * 100)))


async def reader_of(clock: Clock, *changes: TileChange) -> tuple[FeatureReader, MemoryStore]:
    store = MemoryStore(clock)
    await store.apply(VIEW, PARTITION, None, Progress(1, clock.now_ms()), changes)
    return FeatureReader(store, clock, {"user_features": VIEW, "big": FILTERED}), store


def test_answer_entity_without_tiles_has_zeros() -> None:
    """Somebody who did nothing has zeros, and they are fresh where their partition is."""
    expected = Features(
        view="user_features",
        entity="u-17",
        values={"orders": 0, "value": Decimal("0.00")},
        window_end_ms=NOW_MS,
        as_of_ms=NOW_MS - 500,
        age_ms=500,
        freshness=Freshness.FRESH,
    )
    assert expected == answer(VIEW, "u-17", StoredFeatures((), Progress(1, NOW_MS - 500)), NOW_MS)


def test_answer_money_is_dollars_and_tiles_are_summed() -> None:
    """Counts stay integers, cents become a Decimal of dollars; all tiles that count are summed."""
    tiles = (Tile(NOW_MS, 1, 3, (2, 1_050)), Tile(NOW_MS, 2, 9, (1, 1)), Tile(NOW_MS - 330_000, 1, 1, (100, 100)))
    values = answer(VIEW, "u-17", StoredFeatures(tiles, Progress(1, NOW_MS)), NOW_MS).values
    assert {"orders": 3, "value": Decimal("10.51")} == values
    assert "10.51" == str(values["value"])


@pytest.mark.parametrize(
    ("age_ms", "freshness"),
    [(0, Freshness.FRESH), (10_000, Freshness.FRESH), (10_001, Freshness.STALE), (-5_000, Freshness.FRESH)],
)
def test_answer_age_decides_freshness(age_ms: int, freshness: Freshness) -> None:
    """Up to ten seconds are fresh; a clock that is behind makes no negative age."""
    found = answer(VIEW, "u-17", StoredFeatures((), Progress(1, NOW_MS - age_ms)), NOW_MS)
    assert (freshness, max(0, age_ms)) == (found.freshness, found.age_ms)


def test_answer_without_progress_is_missing() -> None:
    """Where nothing was ever materialized, zeros mean nothing, and the answer says so."""
    found = answer(VIEW, "u-17", StoredFeatures((), None), NOW_MS)
    assert (Freshness.MISSING, 0, NOW_MS) == (found.freshness, found.as_of_ms, found.age_ms)


def test_answer_progress_without_as_of_is_stale() -> None:
    """Tiles of which nobody has said yet up to when they are complete are not fresh."""
    assert Freshness.STALE is answer(VIEW, "u-17", StoredFeatures((), Progress(3, 0)), NOW_MS).freshness


async def test_reader_unknown_view_is_refused_with_the_known_ones() -> None:
    """A misspelt view is an error that lists the views."""
    reader, _ = await reader_of(ManualClock(NOW_MS))
    with pytest.raises(SetupError, match="user_featurs: no such view is served; there are big, user_features"):
        await reader.read("user_featurs", "u-17")


async def test_reader_value_falls_without_new_events() -> None:
    """Features decay by themselves: a tile counts until the window has passed its end."""
    clock = ManualClock(NOW_MS)
    reader, _ = await reader_of(clock, change(3))
    clock.advance(329_999)
    assert 3 == (await reader.read("user_features", "u-17")).values["orders"]
    clock.advance(1)
    assert 0 == (await reader.read("user_features", "u-17")).values["orders"]


@pytest.mark.parametrize("version", [7, 8])
def test_reader_own_event_in_the_store_is_seen_at_once(version: int) -> None:
    """A tile at the event's offset, or beyond it, includes the event: no waiting."""

    async def main(clock: Clock) -> tuple[OwnEvent, int]:
        reader, _ = await reader_of(clock, change(version))
        found = await reader.read_with_own_event("user_features", "u-17", origin(7))
        return found.own_event, clock.now_ms()

    assert (OwnEvent.SEEN, NOW_MS) == run_virtual(main, NOW_MS)


def test_reader_own_event_is_waited_for_and_counted_for_the_moment_of_asking() -> None:
    """The answer includes the event that came during the wait, and counts for when it was asked."""

    async def main(clock: Clock) -> tuple[Features, int]:
        reader, store = await reader_of(clock, change(6))

        async def arrive() -> None:
            await asyncio.sleep(0.1)
            await store.apply(VIEW, PARTITION, 1, Progress(2, clock.now_ms()), [change(7)])

        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(arrive())
            found = await reader.read_with_own_event("user_features", "u-17", origin(7))
        return found, clock.now_ms()

    found, ended_ms = run_virtual(main, NOW_MS)
    assert (OwnEvent.SEEN, 7, NOW_MS) == (found.own_event, found.values["orders"], found.window_end_ms)
    assert 100 <= ended_ms - NOW_MS <= 110


@pytest.mark.parametrize("wait_ms", [250, 20, 0])
def test_reader_own_event_that_does_not_come_is_not_seen_in_time(wait_ms: int) -> None:
    """After the limit the answer is what there is, and says that the own event is not in it."""

    async def main(clock: Clock) -> tuple[OwnEvent, int]:
        reader, _ = await reader_of(clock, change(6))
        found = await reader.read_with_own_event("user_features", "u-17", origin(7), wait_ms)
        return found.own_event, clock.now_ms()

    assert (OwnEvent.NOT_SEEN, NOW_MS + wait_ms) == run_virtual(main, NOW_MS)


@pytest.mark.parametrize(
    ("view", "asked", "expected"),
    [
        ("user_features", origin(late_for=["user_features"]), OwnEvent.LATE),
        ("user_features", origin(topic="raw.payments"), OwnEvent.NOT_COMPARABLE),
        ("user_features", origin(topic="raw.payments", late_for=["user_features"]), OwnEvent.NOT_COMPARABLE),
        ("user_features", origin(key="u-18"), OwnEvent.NOT_COMPARABLE),
        ("user_features", origin(event_ms=NOW_MS - 330_000), OwnEvent.NOT_SEEN),
        ("big", origin(), OwnEvent.NOT_COMPARABLE),
    ],
    ids=["late", "other topic", "other topic and late", "other entity", "too old", "filtered"],
)
def test_reader_event_that_cannot_come_is_not_waited_for(view: str, asked: Origin, expected: OwnEvent) -> None:
    """Where waiting cannot help, the answer comes at once and says why."""

    async def main(clock: Clock) -> tuple[OwnEvent, int]:
        reader, _ = await reader_of(clock)
        return (await reader.read_with_own_event(view, "u-17", asked)).own_event, clock.now_ms()

    assert (expected, NOW_MS) == run_virtual(main, NOW_MS)


@pytest.mark.parametrize(
    "held",
    [change(9, NOW_MS - 30_000), change(9, NOW_MS, PARTITION + 1)],
    ids=["other tile", "other source partition"],
)
def test_reader_other_tile_does_not_show_the_own_event(held: TileChange) -> None:
    """Only the tile of the event's own time and source partition tells."""

    async def main(clock: Clock) -> OwnEvent:
        reader, _ = await reader_of(clock, held)
        return (await reader.read_with_own_event("user_features", "u-17", origin(7))).own_event

    assert OwnEvent.NOT_SEEN is run_virtual(main, NOW_MS)
