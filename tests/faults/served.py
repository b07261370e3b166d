"""What the feature store answers, against a plain reading of the orders."""

import asyncio
from collections import defaultdict
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager

from app.broker.base import Reader
from app.core.clock import SystemClock
from app.core.record import TopicPartition
from app.serving.redis import RedisStore
from tests.faults.application import app
from tests.reference import Reading, Rules, Slice, Total, live_features

VIEW, RULES = app.views["user_features"], Rules()
LOOK_S = 0.1
NOT_THOSE = "features are not those of a plain reading"


@asynccontextmanager
async def store_at(address: str) -> AsyncIterator[RedisStore]:
    store = RedisStore(address, SystemClock())
    await store.start()
    try:
        yield store
    finally:
        await store.close()


async def tiles_written(reader: Reader) -> dict[TopicPartition, int]:
    """Up to where the view's topic is written now."""
    return await reader.end_offsets([TopicPartition(VIEW.topic, number) for number in range(VIEW.partitions)])


async def holds(store: RedisStore, ends: Mapping[TopicPartition, int]) -> bool:
    """Whether the store has what stands before these places of the view's topic."""
    progress = await store.progress(VIEW)
    return all(
        place.partition in progress and progress[place.partition].offset >= end for place, end in ends.items() if end
    )


async def wrong_features(reading: Reading, store: RedisStore) -> list[str]:
    """Shoppers whose features in the store are not those of the reading, at the moment at which their newest tile begins: a
    store may drop what does not count then, and what counts later counts then too."""
    by_user: dict[str, dict[Slice, Total]] = defaultdict(dict)
    for where, total in reading.tiles.items():
        by_user[where.user_id][where] = total
    wrong = []
    for user, tiles in by_user.items():
        stored = {
            Slice(user, tile.start_ms, tile.partition): Total(tile.values[0], tile.values[1], tile.version)
            for tile in (await store.read(VIEW, user)).tiles
        }
        newest_ms = max(where.start_ms for where in tiles)
        if live_features(tiles, newest_ms, RULES) != live_features(stored, newest_ms, RULES):
            wrong.append(user)
    return wrong


async def judged_store(reading: Reading, store: RedisStore, reader: Reader, limit_s: float) -> list[str]:
    """What is wrong with the store when everything that the view's topic holds has come there, which may take so long."""
    loop = asyncio.get_running_loop()
    deadline, ends = loop.time() + limit_s, await tiles_written(reader)
    while not await holds(store, ends):
        if loop.time() > deadline:
            return ["features: not read to the end"]
        await asyncio.sleep(LOOK_S)
    wrong = await wrong_features(reading, store)
    return [f"{NOT_THOSE}: {len(wrong)} shoppers, {wrong[0]} first"] if wrong else []
