"""What one event costs the asyncio engine: `python -m benchmarks.engine [--events N] [--keys N] [--json]`.

Events wait in a real Kafka topic. The engine reads them in a process of its own: gate, filter to alerts, live tiles and
a tumbling window together, state flushed to Kafka each second. CPU is that of the whole process, the client's threads
included. Before a figure counts, the tiles are compared with a plain count of the same events.
"""

import asyncio
import gc
import random
import resource
import time
from collections import Counter
from typing import Annotated, Any

import msgspec
import typer

from app.broker.kafka import KafkaBroker
from app.core.clock import SystemClock
from app.core.codec import encode
from app.core.record import TopicPartition
from app.streams.engine import Engine
from app.streams.expressions import col
from app.streams.graph import Pipeline, Topic, count, total
from app.streams.outputs import topics_of
from app.worker import GC_THRESHOLDS
from benchmarks import common
from features.fraud import HighValueOrder
from features.records import OrderEvent

RATE_PER_MS = 200
"""Event time passes as it would at 200,000 events a second."""

ALERTS_IN = 100
"""One order in so many lies above the limit."""


def declared(name: str, once: bool) -> tuple[Topic, dict[str, Pipeline]]:
    topic = Topic(name, OrderEvent, key="user_id", out_of_orderness="5s", partitions=12)
    orders = topic.once("order_id", within="1m") if once else topic
    sums = {"order_count_5m": count(), "order_value_5m": total(col.amount_usd)}
    return topic, {
        "large": orders.where(col.amount_usd > 10_000).alert(HighValueOrder, id="order_id", to=f"{name}.alerts"),
        "tiles": orders.live("5m", tile="30s").aggregate(**sums).serve(f"{name}.view"),
        "rate": orders.tumbling("5m").aggregate(**sums).to(f"{name}.rate"),
    }


async def publish(broker: KafkaBroker, topic: str, events: int, keys: int) -> Counter[str]:
    """Fills the topic; returns how many events each user has."""
    chance, expected = random.Random(1), Counter[str]()
    producer = broker.producer()
    await producer.start()
    start_ms = SystemClock().now_ms() - events // RATE_PER_MS - 60_000
    for number in range(events):
        user = f"u-{chance.randrange(keys)}"
        expected[user] += 1
        amount = 20_000 if number % ALERTS_IN == 0 else chance.randrange(100, 900_000) / 100
        value = (
            f'{{"order_id":"o-{number}","user_id":"{user}","amount_usd":{amount},"status":"placed",'
            f'"timestamp":"2026-11-24T10:00:00.000Z"}}'
        ).encode()
        await producer.send(topic, value, user.encode(), timestamp_ms=start_ms + number // RATE_PER_MS)
    failures = await producer.flush()
    assert not failures, failures[0]
    await producer.close()
    return expected


async def consume(broker: KafkaBroker, topic: Topic, pipelines: dict[str, Pipeline], events: int) -> dict[str, float]:
    """Runs the engine over the topic; CPU and wall seconds from its first event to its last commit."""
    gc.set_threshold(*GC_THRESHOLDS)
    engine = Engine(broker, [topic.source], pipelines, SystemClock(), f"bench-{topic.source.spec.name}")
    stopping = asyncio.Event()
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(engine.run(stopping))
        while engine.statistics.events == 0:
            await asyncio.sleep(0.001)
        first, cpu, wall = engine.statistics.events, time.process_time(), time.perf_counter()
        while engine.statistics.events < events:
            await asyncio.sleep(0.01)
        stopping.set()
    seconds, cpu = time.perf_counter() - wall, time.process_time() - cpu
    measured = engine.statistics.events - first
    return {
        "events": engine.statistics.events,
        "alerts": engine.statistics.alerts,
        "late": sum(engine.statistics.late.values()),
        "malformed": engine.statistics.malformed,
        "cpu_us_per_event": round(cpu / measured * 1e6, 3),
        "events_per_s": round(measured / seconds),
        "events_per_cpu_s": round(measured / cpu),
        "peak_memory_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024),
    }


async def check(broker: KafkaBroker, topic: str, expected: Counter[str]) -> None:
    """The newest tiles of every user add up to what was published."""
    reader, newest = broker.reader(), dict[tuple[str, int], tuple[int, int]]()
    places = [TopicPartition(topic, partition) for partition in range(12)]
    ends = await reader.end_offsets(places)
    for place in places:
        async for records in reader.read(place, 0, ends[place]):
            for record in records:
                key, value = msgspec.json.decode(record.key or b""), msgspec.json.decode(record.value or b"")
                if "tile" in key:
                    tile, version = (key["user_id"], key["tile"]), value["version"]
                    newest[tile] = max(newest.get(tile, (-1, 0)), (version, value["order_count_5m"]))
    await reader.close()
    counted = Counter[str]()
    for (user, _), (_, orders) in newest.items():
        counted[user] += orders
    assert expected == counted, "the tiles are not what was published"


async def measure(address: str, events: int, keys: int, once: bool) -> dict[str, Any]:
    broker = KafkaBroker(address, SystemClock(), replication=1)
    name = f"bench.engine.{SystemClock().now_ms()}"
    topic, pipelines = declared(name, once)
    admin = broker.admin()
    specs = topics_of([topic.source], pipelines)
    await admin.create(specs)
    common.say(f"publishing {events:,} events of {keys:,} users")
    expected = await publish(broker, name, events, keys)
    common.say("reading them")
    result = await consume(broker, topic, pipelines, events)
    common.say("checking the tiles")
    await check(broker, pipelines["tiles"].topic, expected)
    await admin.delete([spec.name for spec in specs])
    await admin.close()
    await broker.close()
    return result


def main(
    events: Annotated[int, typer.Option(help="How many events to read.")] = 1_000_000,
    keys: Annotated[int, typer.Option(help="How many users they belong to.")] = 50_000,
    once: Annotated[bool, typer.Option(help="With the memory of `once` too.")] = False,
    broker: Annotated[str | None, typer.Option(help="kafka://host:port; a local one unless given.")] = None,
    json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Measure the CPU that one event costs the engine, from real Kafka."""
    import uvloop

    with common.servers(broker, None, ["kafka"]) as addresses:
        figures = uvloop.run(measure(addresses.kafka, events, keys, once))
    result = {"benchmark": "engine", "once": once, "keys": keys, **figures, "environment": common.environment()}
    path = common.keep("engine", result)
    if json:
        typer.echo(encode(result).decode())
    else:
        typer.echo(
            f"{figures['cpu_us_per_event']} us of CPU an event, {figures['events_per_s']:,} events/s "
            f"({keys:,} users, {'with' if once else 'without'} once); kept in {path}"
        )


if __name__ == "__main__":
    typer.run(main)
