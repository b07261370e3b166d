"""Typed publishing against a bare produce() loop: `python -m benchmarks.produce [--events N] [--rounds N] [--json]`.

Both make the same value (msgspec), key and record time of each event, with the same client settings, and end when the
broker has acknowledged everything. They take turns in one run, each going first every other round, so a machine that
slows down slows both; the ratio is taken round by round. The bare loop asks for no delivery reports at all, so unlike
ours it would not know of a record that failed.
"""

import gc
import random
import statistics
import time
from datetime import UTC, datetime
from decimal import Decimal
from typing import Annotated, Any

import confluent_kafka
import typer
import uvloop

from app.broker.base import Producer
from app.broker.kafka import KafkaBroker
from app.broker.kafka.cluster import client_words
from app.broker.kafka.producer import LINGER_MS
from app.broker.publisher import Publisher
from app.broker.topics import TopicRegistry, TopicSpec
from app.core.clock import SystemClock
from app.core.codec import encode
from app.core.record import TopicPartition
from benchmarks import common
from features.records import OrderEvent

PARTITIONS = 12
WARM_UP = 20_000
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def orders(count: int) -> list[OrderEvent]:
    """Orders of 5,000 users, of about 120 bytes each, all of the last minute."""
    chance, now_ms = random.Random(1), SystemClock().now_ms()
    return [
        OrderEvent(
            order_id=f"o-{number}",
            user_id=f"u-{chance.randrange(5_000)}",
            amount_usd=Decimal(chance.randrange(100, 900_000)).scaleb(-2),
            status="placed",
            timestamp=datetime.fromtimestamp((now_ms - chance.randrange(60_000)) / 1000, UTC),
        )
        for number in range(count)
    ]


def bare_client(address: str) -> confluent_kafka.Producer:
    """A client with the settings of ours, and no callback."""
    return confluent_kafka.Producer(
        {
            "bootstrap.servers": address.removeprefix("kafka://"),
            "enable.idempotence": True,
            "acks": "all",
            "partitioner": "murmur2_random",
            "linger.ms": LINGER_MS,
            "queue.buffering.max.messages": 100_000,
            "queue.buffering.max.kbytes": 131_072,
            "log_level": 2,
            **client_words(common.broker_security(address)),
        }
    )


def bare(client: confluent_kafka.Producer, topic: str, events: list[OrderEvent]) -> None:
    """The loop to be compared with: encode, produce, flush."""
    produce, poll = client.produce, client.poll
    for number, event in enumerate(events):
        since = event.timestamp - EPOCH
        timestamp_ms = (since.days * 86400 + since.seconds) * 1000 + since.microseconds // 1000
        value, key = encode(event), event.user_id.encode()
        while True:
            try:
                produce(topic, value, key, -1, None, None, timestamp_ms)
                break
            except BufferError:
                poll(0.002)
        if number % 500 == 0:
            poll(0)
    assert client.flush() == 0


async def typed(producer: Producer, publisher: Publisher, events: list[OrderEvent]) -> None:
    """Ours."""
    await publisher.typed(OrderEvent).publish_many(events)
    failures = await producer.flush()
    assert not failures, failures[0].error


async def measure(address: str, count: int, rounds: int) -> dict[str, Any]:
    broker = common.broker_at(address)
    admin, producer, client = broker.admin(), broker.producer(), bare_client(address)
    topic = f"bench.produce.{SystemClock().now_ms()}"
    spec = TopicSpec(
        name=topic, partitions=PARTITIONS, type=OrderEvent, key="user_id", time="event", max_ahead_ms=60_000
    )
    await admin.create([spec])
    registry = TopicRegistry()
    registry.add(spec)
    publisher = Publisher(producer, registry)
    await producer.start()
    events = orders(count)
    await typed(producer, publisher, events[:WARM_UP])
    bare(client, topic, events[:WARM_UP])
    seconds: dict[str, list[float]] = {"typed": [], "bare": []}
    cpu: dict[str, list[float]] = {"typed": [], "bare": []}
    gc.collect()
    gc.freeze()
    for number in range(rounds):
        for name in ("typed", "bare") if number % 2 else ("bare", "typed"):
            began, began_cpu = time.perf_counter(), time.thread_time()
            if name == "typed":
                await typed(producer, publisher, events)
            else:
                bare(client, topic, events)
            seconds[name].append(time.perf_counter() - began)
            cpu[name].append(time.thread_time() - began_cpu)
        ratio = seconds["bare"][-1] / seconds["typed"][-1]
        common.say(
            f"round {number + 1}: typed {count / seconds['typed'][-1]:,.0f}/s, "
            f"bare {count / seconds['bare'][-1]:,.0f}/s, ratio {ratio:.2f}"
        )
    await check(broker, topic, 2 * (WARM_UP + rounds * count))
    await producer.close()
    await admin.delete([topic])
    await broker.close()
    return figures(count, seconds, cpu)


async def check(broker: KafkaBroker, topic: str, expected: int) -> None:
    """Acknowledged is counted in the topic, not in the client."""
    reader = broker.reader()
    ends = await reader.end_offsets([TopicPartition(topic, partition) for partition in range(PARTITIONS)])
    await reader.close()
    assert expected == sum(ends.values()), (expected, ends)


def figures(count: int, seconds: dict[str, list[float]], cpu: dict[str, list[float]]) -> dict[str, Any]:
    ratios = sorted(bare / typed for typed, bare in zip(seconds["typed"], seconds["bare"], strict=True))
    return {
        "events": count,
        "rounds": len(ratios),
        "typed_per_s": round(count / statistics.median(seconds["typed"])),
        "bare_per_s": round(count / statistics.median(seconds["bare"])),
        "ratio": round(statistics.median(ratios), 3),
        "ratio_spread": [round(ratios[0], 3), round(ratios[-1], 3)],
        "typed_thread_cpu_us": round(statistics.median(cpu["typed"]) / count * 1e6, 3),
        "bare_thread_cpu_us": round(statistics.median(cpu["bare"]) / count * 1e6, 3),
    }


def main(
    events: Annotated[int, typer.Option(help="Events in one round.")] = 300_000,
    rounds: Annotated[int, typer.Option(help="Rounds of both.")] = 7,
    broker: Annotated[str | None, typer.Option(help="kafka://host:port; a local one unless given.")] = None,
    json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Measure how fast typed events become acknowledged records."""
    with common.servers(broker, None, ["kafka"]) as addresses:
        found = uvloop.run(measure(addresses.kafka, events, rounds))
    path = common.finished("produce", found, json)
    if not path:
        return
    low, high = found["ratio_spread"]
    typer.echo(
        f"typed {found['typed_per_s']:,} events/s, bare loop {found['bare_per_s']:,}/s: "
        f"ratio {found['ratio']} ({low} to {high} in {found['rounds']} rounds); kept in {path}"
    )


if __name__ == "__main__":
    typer.run(main)
