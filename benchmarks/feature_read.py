"""Reading features from Redis, one after another and many at once: `python -m benchmarks.feature_read [--json]`.

`features` is what an agent waits for: progress and tiles in one round trip, parsed and merged. `round trip` is its two
commands and their bare answers, `redis-py` the same through redis-py's pipeline: what `app/serving/resp.py` must beat.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Annotated, Any

import typer
import uvloop
from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

from app.core.clock import SystemClock
from app.serving import resp
from app.serving.base import Progress, TileChange, View
from app.serving.features import FeatureReader
from app.serving.redis import RedisStore
from app.streams.aggregates import OutputField
from app.streams.expressions import Kind
from app.streams.windows import Tile, slice_start
from benchmarks import common

FIELDS = (OutputField("order_count_5m", Kind.INTEGER), OutputField("order_value_5m", Kind.MONEY))
VIEW = View("bench_features", "user_id", "features.bench", "raw.bench", 12, 300_000, 30_000, FIELDS, True, "bench")
ENTITIES = [f"u-{number}" for number in range(1_000)]
TILES = 11
AT_ONCE = 64

Read = Callable[[str], Awaitable[object]]


async def measure(address: str, reads: int) -> dict[str, dict[str, float]]:
    """Microseconds of one read, for the three ways of reading over one address."""
    clock = SystemClock()
    store = RedisStore(address, clock)
    await store.start()
    await store.clear(VIEW)
    await fill(store, clock)
    reader = FeatureReader(store, clock, {VIEW.name: VIEW})
    redis = Redis.from_url(address, retry=Retry(NoBackoff(), 0), socket_timeout=5, protocol=2)

    connection = await store._connected()

    async def through_resp(entity: str) -> object:
        question = resp.pack("HMGET", f"headrace:view:{VIEW.name}", "fingerprint", VIEW.partition_of(entity))
        return await connection.ask(question + resp.pack("HGETALL", f"{VIEW.name}:{entity}"), 2)

    async def through_redis_py(entity: str) -> object:
        pipeline = redis.pipeline(transaction=False)
        pipeline.hmget(f"headrace:view:{VIEW.name}", ["fingerprint", str(VIEW.partition_of(entity))])
        pipeline.hgetall(f"{VIEW.name}:{entity}")
        return await pipeline.execute()

    ways: dict[str, Read] = {
        "features": lambda entity: reader.read(VIEW.name, entity),
        "round trip": through_resp,
        "redis-py": through_redis_py,
    }
    found = {name: await one_way(read, reads) for name, read in ways.items()}
    await store.clear(VIEW)
    await redis.aclose()
    await store.close()
    return found


async def fill(store: RedisStore, clock: SystemClock) -> None:
    """Every entity with tiles over the whole window."""
    newest_ms = slice_start(clock.now_ms(), VIEW.tile_ms)
    for partition in range(VIEW.partitions):
        changes = [
            TileChange(entity, Tile(newest_ms - back * VIEW.tile_ms, partition, 4_711_000 + back, (back, 105_000)))
            for entity in ENTITIES
            if VIEW.partition_of(entity) == partition
            for back in range(TILES)
        ]
        assert await store.apply(VIEW, partition, None, Progress(1, clock.now_ms()), changes)


async def one_way(read: Read, reads: int) -> dict[str, float]:
    """p50 and p99 one after another; wall time and CPU a read when AT_ONCE readers never pause."""
    for entity in ENTITIES:
        await read(entity)
    times_us = []
    for number in range(reads):
        started = time.perf_counter()
        await read(ENTITIES[number % len(ENTITIES)])
        times_us.append((time.perf_counter() - started) * 1e6)

    async def reader(offset: int) -> None:
        for number in range(reads // AT_ONCE):
            await read(ENTITIES[(offset + number) % len(ENTITIES)])

    started, cpu_started = time.perf_counter(), time.process_time()
    async with asyncio.TaskGroup() as tasks:
        for offset in range(AT_ONCE):
            tasks.create_task(reader(offset))
    done = reads // AT_ONCE * AT_ONCE
    ranks = common.percentiles(times_us)
    return {
        "p50_us": round(ranks["p50"], 1),
        "p99_us": round(ranks["p99"], 1),
        "at_once_us": round((time.perf_counter() - started) / done * 1e6, 1),
        "at_once_cpu_us": round((time.process_time() - cpu_started) / done * 1e6, 1),
    }


def main(
    reads: Annotated[int, typer.Option(help="How many reads a way.", min=AT_ONCE)] = 20_000,
    json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Measure reads of features, over a unix socket and over TCP, on a local Redis."""
    figures: dict[str, Any] = {}
    with common.servers(None, None, ["redis"]) as addresses:
        for name, address in (("unix", addresses.redis_socket), ("tcp", addresses.redis)):
            common.say(f"reading over {name}")
            figures[name] = uvloop.run(measure(address, reads))
    path = common.finished("feature_read", {"reads": reads, "tiles": TILES, **figures}, json)
    if not path:
        return
    typer.echo(f"{'us a read':20}{'p50':>8}{'p99':>8}{f'{AT_ONCE} at once':>14}{'CPU':>8}")
    for socket, ways in figures.items():
        for way, found in ways.items():
            typer.echo(
                f"{socket + ' ' + way:20}{found['p50_us']:8}{found['p99_us']:8}"
                f"{found['at_once_us']:14}{found['at_once_cpu_us']:8}"
            )
    typer.echo(f"kept in {path}")


if __name__ == "__main__":
    typer.run(main)
