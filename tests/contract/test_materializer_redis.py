"""The materializer on a real Redis: emptied, stopped and started again, written by two at once, it heals by itself."""

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import pytest
from redis.asyncio import Redis

from app.broker.base import Consumer, RebalanceListener
from app.broker.memory import MemoryBroker
from app.broker.topics import TopicSpec
from app.core.clock import SystemClock
from app.core.codec import compact_key
from app.core.errors import Unavailable
from app.local.process import free_ports
from app.serving.base import View
from app.serving.materializer import Materializer
from app.serving.redis import RedisStore
from app.streams.aggregates import OutputField
from app.streams.expressions import Kind
from app.streams.windows import Tile

pytestmark = pytest.mark.redis

ENTITIES = 150
CLOCK = SystemClock()
TILE_MS = 30_000
TILE_START_MS = CLOCK.now_ms() - CLOCK.now_ms() % TILE_MS


class MemberOf(MemoryBroker):
    """The same records as another broker's, read by a group of its own."""

    def __init__(self, broker: MemoryBroker, group: str) -> None:
        super().__init__(broker.clock)
        self.specs, self.logs, self.groups, self._group = broker.specs, broker.logs, broker.groups, group

    def consumer(self, group: str, topics: object, listener: RebalanceListener) -> Consumer:  # type: ignore[override]
        return super().consumer(self._group, topics, listener)  # type: ignore[arg-type]


class Bench:
    """One view on a memory broker, and what its tiles must be in the end."""

    def __init__(self, name: str) -> None:
        fields = (OutputField("n", Kind.INTEGER),)
        self.view = View(name, "user", f"features.{name}", "raw.x", 3, 300_000, TILE_MS, fields, True, "f")
        self.broker = MemoryBroker(CLOCK)
        self.newest: dict[str, int] = {}
        self.version = 0

    def write(self, changes: int) -> None:
        """So many changes, over all entities and partitions."""
        for _ in range(changes):
            self.version += 1
            entity = f"u-{self.version % ENTITIES}"
            partition = self.view.partition_of(entity)
            key = compact_key(user=entity, tile=TILE_START_MS, partition=partition)
            value = b'{"version":%d,"n":%d}' % (self.version, self.version)
            self.broker.append(self.view.topic, value, key, partition, 0, ())
            self.newest[entity] = self.version

    async def holds_everything(self, store: RedisStore) -> bool:
        for entity, version in self.newest.items():
            expected = (Tile(TILE_START_MS, self.view.partition_of(entity), version, (version,)),)
            if expected != (await store.read(self.view, entity)).tiles:
                return False
        return True

    async def heals(self, store: RedisStore) -> None:
        """Returns when every entity has its newest tile, as it must within ten seconds."""
        async with asyncio.timeout(10):
            while True:
                if await self.holds_everything(store):
                    return
                await asyncio.sleep(0.02)

    @asynccontextmanager
    async def running(self, store: RedisStore, group: str = "g") -> AsyncIterator[Materializer]:
        await self.broker.admin().create([TopicSpec(name=self.view.topic, partitions=3)])
        materializer = Materializer(MemberOf(self.broker, group), store, {self.view.name: self.view})
        stopping = asyncio.Event()
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(materializer.run(stopping))
            yield materializer
            stopping.set()


@pytest.fixture
async def store(redis_address: str) -> AsyncIterator[RedisStore]:
    opened = RedisStore(redis_address, CLOCK)
    await opened.start()
    yield opened
    await opened.close()


async def test_materializer_heals_a_redis_emptied_by_flushall(
    store: RedisStore, redis_address: str, unique: Callable[[str], str]
) -> None:
    """FLUSHALL in the middle of the work and FLUSHALL while nothing comes: both times everything comes back."""
    bench = Bench(unique("flushed"))
    async with bench.running(store) as materializer, Redis.from_url(redis_address) as redis:
        bench.write(600)
        await bench.heals(store)
        for _ in range(3):
            await redis.flushall()
            bench.write(40)
            await bench.heals(store)
        await redis.flushall()
        await bench.heals(store)
        assert materializer.statistics().rewinds >= 3
        assert 0 == materializer.statistics().lag


async def test_materializer_two_at_once_leave_the_newest_tiles(
    store: RedisStore, redis_address: str, unique: Callable[[str], str]
) -> None:
    """Two that both believe the partitions theirs, and a store that is emptied under them, change no result."""
    bench = Bench(unique("twice"))
    async with AsyncExitStack() as running:
        redis = await running.enter_async_context(Redis.from_url(redis_address))
        both = [await running.enter_async_context(bench.running(store, group)) for group in ("g-1", "g-2")]
        for round_number in range(20):
            bench.write(30)
            if round_number == 10:
                await redis.flushall()
            await asyncio.sleep(0.005)
        await bench.heals(store)
        progress = await store.progress(bench.view)
        ends = {place.partition: len(log) for place, log in bench.broker.logs.items()}
        assert ends == {partition: progress[partition].offset for partition in progress}
        assert sum(member.statistics().records for member in both) >= 600


def start_redis(directory: Path, port: int) -> subprocess.Popen[bytes]:
    command = ["redis-server", "--port", str(port), "--bind", "127.0.0.1", "--save", "", "--dir", str(directory)]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=sys.stderr)


def test_materializer_goes_on_after_a_redis_was_killed_and_came_back_empty(
    redis_address: str, tmp_path: Path, unique: Callable[[str], str]
) -> None:
    """A killed Redis is waited for; the new one, empty, gets everything again without anybody's help."""
    bench = Bench(unique("killed"))
    (port,) = free_ports(1)
    servers = [start_redis(tmp_path, port)]

    async def main() -> None:
        store = RedisStore(f"redis://127.0.0.1:{port}/0", CLOCK)
        await answers(store)
        async with bench.running(store) as materializer:
            bench.write(300)
            await bench.heals(store)
            os.kill(servers[0].pid, signal.SIGKILL)
            bench.write(100)
            await away(materializer)
            servers.append(start_redis(tmp_path, port))
            await answers(store)
            await bench.heals(store)
            assert 1 == materializer.statistics().outages
        await store.close()

    try:
        asyncio.run(main())
    finally:
        for server in servers:
            server.kill()
            server.wait()


async def away(materializer: Materializer) -> None:
    """Returns when the materializer has noticed that its store is away, as it must within ten seconds."""
    async with asyncio.timeout(10):
        while True:
            if materializer.statistics().away:
                return
            await asyncio.sleep(0.02)


async def answers(store: RedisStore) -> None:
    """Returns when the server answers, as it must within ten seconds."""
    async with asyncio.timeout(10):
        while True:
            try:
                return await store.start()
            except Unavailable:
                await asyncio.sleep(0.02)
