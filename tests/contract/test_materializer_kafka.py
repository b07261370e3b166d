"""The materializer between a real Kafka and a real Redis: it follows at once, goes on after a restart, and heals."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest
from redis.asyncio import Redis

from app.broker.base import Producer
from app.broker.kafka import KafkaBroker
from app.broker.topics import TopicSpec
from app.core.clock import SystemClock
from app.core.codec import compact_key
from app.serving.base import View
from app.serving.materializer import Materializer
from app.serving.redis import RedisStore
from app.streams.aggregates import OutputField
from app.streams.expressions import Kind
from app.streams.windows import Tile

pytestmark = [pytest.mark.kafka, pytest.mark.redis]

CLOCK = SystemClock()
ENTITIES = 40


def view_named(name: str) -> View:
    fields = (OutputField("n", Kind.INTEGER),)
    return View(name, "user", f"features.{name}", "raw.x", 4, 300_000, 30_000, fields, True, "f")


async def write(producer: Producer, view: View, versions: range) -> None:
    for version in versions:
        entity = f"u-{version % ENTITIES}"
        partition = view.partition_of(entity)
        key = compact_key(user=entity, tile=0, partition=partition)
        await producer.send(view.topic, b'{"version":%d,"n":%d}' % (version, version), key, partition=partition)
    for partition in range(view.partitions):
        value, headers = b'{"as_of":%d}' % versions.stop, (("fingerprint", view.fingerprint.encode()),)
        await producer.send(view.topic, value, b'{"progress":%d}' % partition, partition=partition, headers=headers)
    assert [] == await producer.flush()


async def holds(store: RedisStore, view: View, versions: range) -> None:
    """Returns when the store has everything up to the last version, as it must within twenty seconds."""
    newest = {f"u-{version % ENTITIES}": version for version in versions}
    async with asyncio.timeout(20):
        while True:
            stored = {entity: await store.read(view, entity) for entity in newest}
            if all(
                (Tile(0, view.partition_of(entity), version, (version,)),) == stored[entity].tiles
                and (progress := stored[entity].progress) is not None
                and versions.stop == progress.as_of_ms
                for entity, version in newest.items()
            ):
                return
            await asyncio.sleep(0.01)


@asynccontextmanager
async def running(broker: KafkaBroker, store: RedisStore, view: View) -> AsyncIterator[Materializer]:
    materializer = Materializer(broker, store, {view.name: view})
    stopping = asyncio.Event()
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(materializer.run(stopping))
        yield materializer
        stopping.set()


async def test_materializer_follows_heals_and_goes_on(
    kafka_address: str, redis_address: str, unique: Callable[[str], str]
) -> None:
    """Written, emptied, emptied while nothing comes, restarted, topic made anew: each time the store has everything."""
    view = view_named(unique("materialized"))
    broker, store = KafkaBroker(kafka_address, CLOCK, replication=1), RedisStore(redis_address, CLOCK)
    spec = TopicSpec(name=view.topic, partitions=view.partitions, cleanup="compact,delete", retention_ms=86_400_000)
    admin, producer = broker.admin(), broker.producer()
    await store.start()
    await admin.create([spec])
    await producer.start()
    async with Redis.from_url(redis_address) as redis:
        async with running(broker, store, view) as first:
            await write(producer, view, range(1, 401))
            await holds(store, view, range(1, 401))
            await redis.flushall()
            await write(producer, view, range(401, 410))
            await holds(store, view, range(1, 410))
            await redis.flushall()
            await holds(store, view, range(1, 410))
            assert first.statistics().rewinds > 0
            assert 0 == first.statistics().lag
        await write(producer, view, range(410, 450))
        async with running(broker, store, view) as second:
            await holds(store, view, range(1, 450))
            assert (0, 40 + view.partitions) == (second.statistics().rewinds, second.statistics().records)
        await admin.delete([view.topic])
        await admin.create([spec])
        await write(producer, view, range(450, 500))
        async with running(broker, store, view):
            await holds(store, view, range(1, 500))
    await producer.close()
    await admin.close()
    await store.close()
    await broker.close()
