"""What one event costs the asyncio engine: `python -m benchmarks.engine [--events N] [--minutes N] [--once] [--json]`.

Events wait in a real Kafka topic. They cover 6 minutes of event time, so that a dozen tiles and a window of each user
close while they are read: a figure holds opening, writing, closing and forgetting them, not only adding to them. (At 20
minutes for a million events, `--events 1000000 --minutes 20`, nearly every event opens a tile of its own, and costs half
as much again.) State is flushed to Kafka each second. The engine runs in a process of its own: gate, filter to alerts, live tiles and a
tumbling window together, without `once` unless asked for. CPU and peak memory are those of that process, the Kafka
client's threads included. Before a figure counts, alerts, tiles and rows of closed windows are compared with a plain
count of the same events.
"""

import asyncio
import random
import resource
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Iterator
from decimal import Decimal
from typing import Annotated, Any, NamedTuple

import msgspec
import typer
import uvloop

from app.broker.base import Broker
from app.broker.kafka import KafkaBroker
from app.broker.topics import partition_of
from app.core.clock import SystemClock
from app.core.codec import encode, to_cents
from app.core.garbage import exempt_what_lasts
from app.core.record import TopicPartition
from app.streams.engine import Engine
from app.streams.expressions import col
from app.streams.graph import Topic, count, total
from app.streams.outputs import topics_of
from app.streams.pipelines import Pipeline
from benchmarks import common
from features.fraud import HighValueOrder
from features.records import OrderEvent

ALERTS_IN = 100
"""One order in so many lies above the limit."""

PARTITIONS = 12
TILE_MS, WINDOW_MS, OUT_OF_ORDERNESS_MS = 30_000, 300_000, 5_000


class Order(NamedTuple):
    """What one event says."""

    number: int
    user: str
    cents: int
    time_ms: int


class Load(msgspec.Struct, frozen=True):
    """Which events; the same in every process. They begin with a window, at `start_ms`, and are spread evenly."""

    topic: str
    events: int
    keys: int
    start_ms: int
    span_ms: int
    once: bool

    def orders(self) -> Iterator[Order]:
        chance = random.Random(1)
        for number in range(self.events):
            user = f"u-{chance.randrange(self.keys)}"
            cents = 2_000_000 if number % ALERTS_IN == 0 else chance.randrange(100, 900_000)
            yield Order(number, user, cents, self.start_ms + number * self.span_ms // self.events)


def declared(name: str, once: bool) -> tuple[Topic, dict[str, Pipeline]]:
    """The streams that are measured: TILE_MS, WINDOW_MS and OUT_OF_ORDERNESS_MS say the same."""
    topic = Topic(name, OrderEvent, key="user_id", out_of_orderness="5s", partitions=PARTITIONS)
    orders = topic.once("order_id", within="1m") if once else topic
    sums = {"order_count_5m": count(), "order_value_5m": total(col.amount_usd)}
    return topic, {
        "large": orders.where(col.amount_usd > 10_000).alert(HighValueOrder, id="order_id", to=f"{name}.alerts"),
        "tiles": orders.live("5m", tile="30s").aggregate(**sums).serve(f"{name}.view"),
        "rate": orders.tumbling("5m").aggregate(**sums).to(f"{name}.rate"),
    }


async def publish(address: str, load: Load) -> None:
    """Fills the topic."""
    broker = common.broker_at(address)
    producer = broker.producer()
    await producer.start()
    await producer.send_many(load.topic, (record_of(order) for order in load.orders()))
    failures = await producer.flush()
    assert not failures, failures[0]
    await producer.close()
    await broker.close()


def record_of(order: Order) -> tuple[bytes, bytes, int]:
    """Value, key and time."""
    value = common.event_json(order.user, order.cents, order_id=f"o-{order.number}")
    return value, order.user.encode(), order.time_ms


async def consume(address: str, load: Load) -> dict[str, float]:
    """Runs the engine over the topic; CPU and wall seconds from its first event to its last commit."""
    exempt_what_lasts()
    broker = common.broker_at(address)
    topic, pipelines = declared(load.topic, load.once)
    engine = Engine(broker, [topic.source], pipelines, SystemClock(), f"bench-{load.topic}")
    stopping = asyncio.Event()
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(engine.run(stopping))
        while engine.statistics.events == 0:
            await asyncio.sleep(0.001)
        first, cpu, wall = engine.statistics.events, time.process_time(), time.perf_counter()
        while engine.statistics.events < load.events:
            await asyncio.sleep(0.01)
        stopping.set()
    seconds, cpu = time.perf_counter() - wall, time.process_time() - cpu
    await broker.close()
    measured = engine.statistics.events - first
    return {
        "events": engine.statistics.events,
        "alerts": engine.statistics.alerts,
        "rows": engine.statistics.rows,
        "late": sum(engine.statistics.late.values()),
        "malformed": engine.statistics.malformed,
        "cpu_us_per_event": round(cpu / measured * 1e6, 3),
        "events_per_s": round(measured / seconds),
        "events_per_cpu_s": round(measured / cpu),
        "peak_memory_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024),
    }


Totals = dict[tuple[str, int], tuple[int, int]]
"""By user and start of the slice: orders and cents."""


def counted(load: Load) -> tuple[Totals, Totals]:
    """What the tiles, and the rows of windows that are over, must say."""
    tiles: Totals = defaultdict(lambda: (0, 0))
    windows: Totals = defaultdict(lambda: (0, 0))
    reached: dict[int, int] = {}
    places: dict[str, int] = {}
    for order in load.orders():
        for slices, size_ms in ((tiles, TILE_MS), (windows, WINDOW_MS)):
            where = (order.user, order.time_ms - order.time_ms % size_ms)
            orders, cents = slices[where]
            slices[where] = (orders + 1, cents + order.cents)
        if order.user not in places:
            places[order.user] = partition_of(order.user.encode(), PARTITIONS)
        reached[places[order.user]] = order.time_ms
    over = {
        (user, start): totals
        for (user, start), totals in windows.items()
        if start + WINDOW_MS + OUT_OF_ORDERNESS_MS <= reached[places[user]]
    }
    return dict(tiles), over


class Entry(msgspec.Struct):
    """A tile's or a row's key and value, whichever fields it has."""

    user_id: str = ""
    tile: int = -1
    window_start: int = -1
    version: int = -1
    order_count_5m: int = 0
    order_value_5m: Decimal = Decimal(0)

    @property
    def totals(self) -> tuple[int, int]:
        return self.order_count_5m, to_cents(self.order_value_5m)


async def written(broker: Broker, topic: str) -> Totals:
    """The newest tiles, or the rows, of a topic. Raises: AssertionError when a row has two values."""
    reader, newest = broker.reader(), dict[tuple[str, int], tuple[int, tuple[int, int]]]()
    places = [TopicPartition(topic, partition) for partition in range(PARTITIONS)]
    decode = msgspec.json.Decoder(Entry).decode
    for place, end in (await reader.end_offsets(places)).items():
        async for records in reader.read(place, 0, end):
            for record in records:
                key, value = decode(record.key or b""), decode(record.value or b"")
                if not key.user_id:
                    continue  # progress
                found = value.version, value.totals
                known = newest.setdefault((key.user_id, max(key.tile, key.window_start)), found)
                assert key.tile >= 0 or known == found, f"two rows for {key}"
                if known[0] < found[0]:
                    newest[key.user_id, key.tile] = found
    await reader.close()
    return {where: totals for where, (_, totals) in newest.items()}


async def check(broker: KafkaBroker, load: Load, pipelines: dict[str, Pipeline], result: dict[str, Any]) -> None:
    """Raises: AssertionError when the outputs are not those of a plain count."""
    tiles, over = counted(load)
    assert over, "no window has closed: more events or minutes"
    assert tiles == await written(broker, pipelines["tiles"].topic), "the tiles are not what was published"
    assert over == await written(broker, pipelines["rate"].topic), "the rows are not what was published"
    alerts = -(-load.events // ALERTS_IN)
    assert (load.events, alerts, 0, 0) == tuple(result[name] for name in ("events", "alerts", "late", "malformed"))


def in_process(role: str, address: str, load: Load) -> bytes:
    """Runs one role in a process of its own; returns what it prints."""
    command = [sys.executable, "-m", "benchmarks.engine", "--role", role, "--broker", address]
    done = subprocess.run([*command, "--load", encode(load).decode()], stdout=subprocess.PIPE, check=True)
    return done.stdout


async def measure(address: str, load: Load) -> dict[str, Any]:
    broker = common.broker_at(address)
    topic, pipelines = declared(load.topic, load.once)
    admin = broker.admin()
    specs = topics_of([topic.source], pipelines)
    await admin.create(specs)
    common.say(f"publishing {load.events:,} events of {load.keys:,} users")
    await asyncio.to_thread(in_process, "publish", address, load)
    common.say("reading them")
    result: dict[str, Any] = msgspec.json.decode(await asyncio.to_thread(in_process, "engine", address, load))
    common.say("checking alerts, tiles and rows")
    await check(broker, load, pipelines, result)
    await admin.delete([spec.name for spec in specs])
    await admin.close()
    await broker.close()
    return result


def main(
    events: Annotated[int, typer.Option(help="How many events to read.")] = 2_000_000,
    keys: Annotated[int, typer.Option(help="How many users they belong to.")] = 50_000,
    minutes: Annotated[float, typer.Option(help="How much event time they cover.")] = 6,
    once: Annotated[bool, typer.Option(help="With the memory of `once` too.")] = False,
    broker: Annotated[str | None, typer.Option(help="kafka://host:port; a local one unless given.")] = None,
    json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
    role: Annotated[str, typer.Option(hidden=True)] = "",
    load: Annotated[str, typer.Option(hidden=True)] = "",
) -> None:
    """Measure the CPU that one event costs the engine, from real Kafka."""
    if role:
        assert broker
        given = msgspec.json.decode(load, type=Load)
        if role == "publish":
            uvloop.run(publish(broker, given))
        else:
            typer.echo(encode(uvloop.run(consume(broker, given))).decode())
        return
    now_ms, span_ms = SystemClock().now_ms(), round(minutes * 60_000)
    start_ms = now_ms - span_ms - WINDOW_MS
    planned = Load(f"bench.engine.{now_ms}", events, keys, start_ms - start_ms % WINDOW_MS, span_ms, once)
    with common.servers(broker, None, ["kafka"]) as addresses:
        figures = uvloop.run(measure(addresses.kafka, planned))
    settings = {"once": once, "keys": keys, "minutes": minutes}
    path = common.finished("engine", {**settings, **figures}, json)
    if path:
        typer.echo(
            f"{figures['cpu_us_per_event']} us of CPU an event, {figures['events_per_s']:,} events/s "
            f"({keys:,} users, {minutes:g} minutes, {'with' if once else 'without'} once); kept in {path}"
        )


if __name__ == "__main__":
    typer.run(main)
