"""Tiles on a real Flink: whole as long as a record may be on time for them, and nothing afterwards."""

import asyncio
from collections.abc import AsyncIterator, Callable

import pytest

from app.broker.kafka import KafkaBroker
from app.core.clock import SystemClock
from app.http.client import HttpClient
from app.streams.expressions import col
from app.streams.graph import Topic, count, maximum, mean, minimum, total
from app.streams.pipelines import Pipeline
from flink_jobs.child import submitter
from tests.flink_kit import PARTITIONS, WITHIN_S, Shops, end_all, opened
from tests.parity.reference import read_all
from tests.parity.written import outputs_of

pytestmark = [pytest.mark.flink, pytest.mark.kafka, pytest.mark.slow, pytest.mark.timeout(240)]

DAY_MS, B_MS = 86_400_000, 5_000
SHOPS = 500
LEAST_BYTES = 50
"""Of a tile in a checkpoint: its key alone has as many."""


def days(name: str, topic: Topic) -> dict[str, Pipeline]:
    """Tiles of a day, and windows of a millisecond, whose rows tell how far the watermark is."""
    few = {"least": minimum(col.price, when=col.price > 0), "most": maximum(col.price), "middle": mean(col.price)}
    return {
        "per_shop": topic.live("2d", tile="1d").aggregate(n=count(), **few).serve(f"{name}.view"),
        "moments": topic.tumbling("1ms").aggregate(n=count()).to(f"{name}.rate"),
    }


def half_minutes(name: str, topic: Topic) -> dict[str, Pipeline]:
    return {"per_shop": topic.live("2m", tile="30s").aggregate(spent=total(col.price)).serve(f"{name}.view")}


@pytest.fixture
async def broker(kafka_address: str) -> AsyncIterator[KafkaBroker]:
    made = KafkaBroker(kafka_address, SystemClock(), replication=1)
    yield made
    await made.close()


async def test_tile_is_whole_until_no_record_can_be_on_time_for_it(
    broker: KafkaBroker, kafka_address: str, flink_address: str, unique: Callable[[str], str]
) -> None:
    """The watermark lies a millisecond before the end of a day's tile, and the next record still counts; then it does not."""
    shops = Shops(broker, unique("sales"), days)
    await shops.declare(shops.app)
    start_ms = (SystemClock().now_ms() // DAY_MS - 3) * DAY_MS
    end_ms = start_ms + DAY_MS
    async with submitter() as pyflink, opened(shops.app, broker, kafka_address, flink_address) as flink:
        await flink.jobs.submit(shops.name, pyflink)
        await shops.write((0, start_ms, "a"), (0, start_ms + 9, "a"), (1, end_ms - 2, "b"))
        await shops.write(*((partition, end_ms + B_MS - 1, None) for partition in range(PARTITIONS)))
        await shops.wait_until_complete()  # with the row of the last moment but one: the watermark is there
        await shops.write((0, start_ms + 10, "a"), (1, end_ms - 1, "b"))
        await shops.wait_until_complete()
        await shops.write(*((partition, end_ms + B_MS, None) for partition in range(PARTITIONS)))
        await shops.write((0, end_ms - 1, "a"))
        await until_late(shops)
        await shops.wait_until_complete()
        await end_all(flink, shops.name)
    tiles = read_all(shops.pipelines, shops.records, bounded=False).tiles
    assert (3, 3) == next((version, tile["n"]) for (_, shop, *_), (version, tile) in tiles.items() if shop == "a")


async def until_late(shops: Shops) -> None:
    """Until the references to late records are those of the reference."""
    expected = read_all(shops.pipelines, shops.records, bounded=False).late
    assert {("per_shop", shops.name, 0, 5), ("moments", shops.name, 0, 5)} <= expected
    async with asyncio.timeout(WITHIN_S):
        while True:
            if expected == outputs_of(shops.pipelines, (await shops.read()).__getitem__).late:
                return
            await asyncio.sleep(0.3)


async def test_tiles_are_forgotten_when_the_watermark_has_passed_them(
    broker: KafkaBroker, kafka_address: str, flink_address: str, unique: Callable[[str], str]
) -> None:
    """A checkpoint holds all of them, and then as little as before the first one."""
    shops = Shops(broker, unique("sales"), half_minutes)
    await shops.declare(shops.app)
    start_ms = SystemClock().now_ms() - DAY_MS
    async with (
        submitter() as pyflink,
        opened(shops.app, broker, kafka_address, flink_address) as flink,
        HttpClient() as http,
    ):
        job_id = (await flink.jobs.submit(shops.name, pyflink)).job_id
        address = f"{flink_address.rstrip('/')}/jobs/{job_id}/checkpoints"
        await shops.write(*((partition, start_ms, None) for partition in range(PARTITIONS)))
        await shops.wait_until_complete()
        empty = await kept_bytes(http, address, lambda _: True)
        await shops.write(*((number % PARTITIONS, start_ms, f"shop-{number}") for number in range(SHOPS)))
        await shops.wait_until_complete()
        await kept_bytes(http, address, lambda size: size > empty + SHOPS * LEAST_BYTES)
        await shops.write(*((partition, start_ms + 60_000, None) for partition in range(PARTITIONS)))
        await kept_bytes(http, address, lambda size: size < empty + SHOPS * LEAST_BYTES // 10)
        await end_all(flink, shops.name)


async def kept_bytes(http: HttpClient, address: str, is_it: Callable[[int], bool]) -> int:
    """Of the first checkpoint of which that is true."""
    async with asyncio.timeout(WITHIN_S):
        while True:
            found = await http.request_json("GET", address, None, 10_000)
            completed = (found.get("latest") or {}).get("completed")
            if completed and is_it(int(completed["state_size"])):
                return int(completed["state_size"])
            await asyncio.sleep(0.2)
