"""aiokafka against confluent-kafka behind the same contract: `python -m benchmarks.adapters [--records N] [--rounds N] [--json]`.

Both write the same records, keyed, to 12 partitions and end when the broker has acknowledged everything; both read them
in a new group. They take turns; the ratio is taken round by round.
"""

import statistics
import time
from collections.abc import Sequence
from typing import Annotated, Any

import typer
import uvloop

from app.broker.aiokafka import AioKafkaBroker
from app.broker.base import Assignment, Broker
from app.broker.topics import TopicSpec
from app.core.clock import SystemClock
from benchmarks import common

PARTITIONS = 12
VALUE = b"x" * 120


class Nobody:
    """A listener that does nothing."""

    async def on_assigned(self, assignments: Sequence[Assignment]) -> None: ...

    async def on_revoked(self, assignments: Sequence[Assignment]) -> None: ...

    async def on_lost(self, assignments: Sequence[Assignment]) -> None: ...


async def write(broker: Broker, topic: str, count: int) -> float:
    """Seconds for the records, without the producer's start."""
    producer = broker.producer()
    await producer.start()
    await producer.send(topic, VALUE, b"u-0")
    began = time.perf_counter()
    await producer.send_many(topic, ((VALUE, b"u-%d" % (number % 5_000), 0) for number in range(1, count)))
    assert not await producer.flush()
    seconds = time.perf_counter() - began
    await producer.close()
    return seconds


async def read(broker: Broker, topic: str, count: int) -> float:
    """Seconds from the first record to the last."""
    consumer = broker.consumer(f"{topic}-{type(broker).__name__}", [topic], Nobody())
    await consumer.start()
    began, seen = 0.0, 0
    while seen < count:
        records = await consumer.poll()
        if records and not seen:
            began = time.perf_counter()
        seen += len(records)
    seconds = time.perf_counter() - began
    await consumer.close()
    return seconds


async def measure(address: str, count: int, rounds: int) -> dict[str, Any]:
    brokers: list[Broker] = [
        common.broker_at(address),
        AioKafkaBroker(f"aio{address}", SystemClock(), replication=1, security=common.broker_security(address)),
    ]
    seconds: dict[str, list[list[float]]] = {"write": [[], []], "read": [[], []]}
    for number in range(rounds):
        for which in (0, 1) if number % 2 else (1, 0):
            topic = f"bench.adapters.{SystemClock().now_ms()}"
            await brokers[which].admin().create([TopicSpec(name=topic, partitions=PARTITIONS)])
            seconds["write"][which].append(await write(brokers[which], topic, count))
            seconds["read"][which].append(await read(brokers[which], topic, count))
            await brokers[which].admin().delete([topic])
    for broker in brokers:
        await broker.close()
    found: dict[str, Any] = {"records": count, "rounds": rounds}
    for what, (confluent, aiokafka) in seconds.items():
        found[f"{what}_confluent_per_s"] = round(count / statistics.median(confluent))
        found[f"{what}_aiokafka_per_s"] = round(count / statistics.median(aiokafka))
        ratios = [one / other for one, other in zip(confluent, aiokafka, strict=True)]
        found[f"{what}_ratio"] = round(statistics.median(ratios), 2)
    return found


def main(
    records: Annotated[int, typer.Option(help="Records in one round.")] = 200_000,
    rounds: Annotated[int, typer.Option(help="Rounds of both.")] = 3,
    broker: Annotated[str | None, typer.Option(help="kafka://host:port; a local one unless given.")] = None,
    json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Measure both Kafka adapters."""
    with common.servers(broker, None, ["kafka"]) as addresses:
        found = uvloop.run(measure(addresses.kafka, records, rounds))
    path = common.finished("adapters", found, json)
    if not path:
        return
    for what in ("write", "read"):
        typer.echo(
            f"{what}: {found[f'{what}_confluent_per_s']:,} records/s, by aiokafka {found[f'{what}_aiokafka_per_s']:,}/s: "
            f"ratio {found[f'{what}_ratio']}"
        )
    typer.echo(f"kept in {path}")


if __name__ == "__main__":
    typer.run(main)
