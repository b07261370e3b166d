"""`python -m tests.parity.volume`: a million orders over a real Kafka through the fraud streams on Flink, with one task and two, and
with task and job managers killed and an upgrade in between; every row is compared with the reference.
"""

import asyncio
import os
import random
import signal
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from types import ModuleType
from typing import Annotated, Any

import typer

from app.application import FLINK_GROUP, App
from app.broker.base import Broker
from app.broker.kafka import KafkaBroker
from app.broker.topics import partition_of
from app.cli import output
from app.cli.main import run
from app.core.clock import SystemClock
from app.core.record import TopicPartition
from app.core.settings import Settings
from app.http.client import HttpClient
from app.local import process, services
from app.local.process import LOCAL
from app.local.services import FLINK_SERVICES
from app.streams.pipelines import Pipeline
from features import fraud, fraud_patterns, records
from flink_jobs.child import Submitter, submitter
from flink_jobs.cluster import FlinkCluster
from flink_jobs.compiled import compile_jobs
from flink_jobs.generations import Generations
from flink_jobs.keeping import Keeper
from flink_jobs.operations import Jobs
from tests.parity.meaning import SourceRecord
from tests.parity.reference import Outputs, read_all
from tests.parity.written import outputs_of, read_back

TOPIC = "raw.orders"
PARTITIONS = 12
SHOPPERS = 20_000
LATE_SHARE, REPEAT_SHARE, LARGE_SHARE = 0.05, 0.02, 0.02
LATEST_MS = 55_000
"""Most repeats are within the time of `once`; what lies further back passes once more, on both engines."""

MANAGER, WORKER = FLINK_SERVICES
WITHIN_S = 600.0

cli = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


def orders(events: int, seed: int, start_ms: int) -> Iterator[SourceRecord]:
    """Orders 3 ms apart, some late for their tile, some twice, some large; then heartbeats that close every window."""
    chance, ends, at_ms = random.Random(seed), [0] * PARTITIONS, start_ms
    last: tuple[int, bytes, bytes] | None = None

    def record(partition: int, time_ms: int, key: bytes | None, value: bytes) -> SourceRecord:
        ends[partition] += 1
        return SourceRecord(TOPIC, partition, ends[partition] - 1, time_ms, key, value)

    for number in range(events):
        at_ms += 3
        if last is not None and chance.random() < REPEAT_SHARE:
            yield record(last[0], at_ms, last[1], last[2])
            continue
        shopper = chance.randrange(SHOPPERS)
        cents = (
            chance.randrange(1_000_001, 4_000_000) if chance.random() < LARGE_SHARE else chance.randrange(100, 90_000)
        )
        value = (
            f'{{"order_id":"o-{number}","user_id":"u-{shopper}","amount_usd":{cents // 100}.{cents % 100:02},'
            f'"status":"placed","timestamp":"2026-11-24T10:00:00Z"}}'
        ).encode()
        behind_ms = chance.randrange(5_000, LATEST_MS) if chance.random() < LATE_SHARE else chance.randrange(0, 3_000)
        key = f"u-{shopper}".encode()
        last = partition_of(key, PARTITIONS), key, value
        yield record(last[0], at_ms - behind_ms, last[1], last[2])
    for partition in range(PARTITIONS):
        yield record(partition, at_ms + 600_000, None, b'{"heartbeat":true}')


def application() -> tuple[App, dict[str, Pipeline]]:
    """The streams of orders: alerts, tiles and rows, and bursts, which go by the order that `once` has to keep."""
    module = ModuleType("declared")
    names = ("high_value_orders", "user_features", "order_rate")
    vars(module).update({name: getattr(fraud, name) for name in names})
    vars(module).update(order_bursts=fraud_patterns.order_bursts, order_events=records.order_events)
    app = App([module], alert_partitions=PARTITIONS)
    return app, dict(app.pipelines)


async def publish(broker: Broker, made: list[SourceRecord], seconds: float) -> None:
    """All records, in order; spread over so many seconds."""
    producer, began = broker.producer(), time.monotonic()
    await producer.start()
    for index, one in enumerate(made):
        await producer.send(one.topic, one.value, one.key, partition=one.partition, timestamp_ms=one.timestamp_ms)
        if index % 2_000 == 0:
            await asyncio.sleep(max(0.0, began + seconds * index / len(made) - time.monotonic()))
    assert [] == await producer.flush()
    await producer.close()


async def wait_until_read(broker: Broker, made: list[SourceRecord]) -> float:
    """Until Flink has committed everything; seconds. Raises: TimeoutError."""
    ends: dict[TopicPartition, int] = {}
    for one in made:
        ends[TopicPartition(one.topic, one.partition)] = one.offset + 1
    admin, began = broker.admin(), time.monotonic()
    async with asyncio.timeout(WITHIN_S):
        while True:
            committed = await admin.group_offsets(f"{FLINK_GROUP}.{TOPIC}.1", [TOPIC])
            if all(place in committed and committed[place].offset >= end for place, end in ends.items()):
                await admin.close()
                return time.monotonic() - began
            await asyncio.sleep(0.5)


def pid_of(directory: Path, name: str) -> int:
    (pid,) = (each.pid for each in services.status(directory) if each.name == name)
    assert pid is not None
    return pid


async def disturb(directory: Path, jobs: Jobs, pyflink: Submitter, kills: int, every_s: float) -> int:
    """Kills the task manager so many times, the job manager once, and upgrades the job; how many disturbances there were."""
    for number in range(kills + 1):
        await asyncio.sleep(every_s)
        name = MANAGER if number == kills // 2 else WORKER
        output.note(f"kill -9 of the {name}")
        os.kill(await asyncio.to_thread(pid_of, directory, name), signal.SIGKILL)
        await asyncio.to_thread(process.wait_until, lambda: _is_down(directory), 10)
        await asyncio.to_thread(services.up, directory, FLINK_SERVICES)
    await asyncio.sleep(every_s)
    output.note("upgrade by savepoint")
    for _ in range(60):
        (status,) = (one.status for one in await jobs.list())
        if status is not None and status.state == "RUNNING":
            break
        await asyncio.sleep(1)
    await jobs.upgrade(TOPIC, pyflink)
    return kills + 2


def _is_down(directory: Path) -> bool:
    return any(each.state == "down" for each in services.status(directory))


@asynccontextmanager
async def opened(app: App, broker: KafkaBroker, kafka: str, flink: str) -> AsyncIterator[tuple[Jobs, Keeper]]:
    async with HttpClient() as http:
        compiled = compile_jobs(app, Settings(broker=kafka, flink=flink))
        generations = Generations(FlinkCluster(flink, http), broker, SystemClock(), compiled)
        yield Jobs(generations), Keeper(generations)


async def one_run(events: int, seed: int, parallelism: int, kills: int) -> dict[str, Any]:
    """Servers of its own, from empty to compared."""
    directory, (app, pipelines) = LOCAL / "volume", application()
    addresses = await asyncio.to_thread(services.up, directory, ("kafka", *FLINK_SERVICES))
    broker = KafkaBroker(addresses.kafka, SystemClock(), replication=1)
    try:
        admin = broker.admin()
        await admin.create(app.topics.all())
        made = list(orders(events, seed, SystemClock().now_ms() - 3 * events - 1_000_000))
        async with (
            submitter() as pyflink,
            opened(app, broker, addresses.kafka, addresses.flink) as (jobs, keeper),
        ):
            await jobs.submit(TOPIC, pyflink, parallelism)
            stopping, disturbances, began = asyncio.Event(), 0, time.monotonic()
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(keeper.keep([TOPIC], pyflink, stopping))
                publishing = tasks.create_task(publish(broker, made, 25.0 * (kills + 2) if kills else 0.0))
                if kills:
                    disturbances = await disturb(directory, jobs, pyflink, kills, every_s=12.0)
                await publishing
                await wait_until_read(broker, made)
                seconds = time.monotonic() - began
                stopping.set()
            await jobs.stop(TOPIC)
        topics = {pipeline.topic: PARTITIONS for pipeline in pipelines.values()} | {f"{TOPIC}.late": PARTITIONS}
        written = await read_back(broker, topics)
        await admin.close()
    finally:
        await broker.close()
        await asyncio.to_thread(services.down, directory, services.ALL_SERVICES)
    output.note("reading it by brute force")
    expected = read_all(pipelines, made, bounded=False)
    found = outputs_of(pipelines, written.__getitem__)
    return {
        "events": events,
        "parallelism": parallelism,
        "disturbances": disturbances,
        "rows": len(expected.rows),
        "tiles": len(expected.tiles),
        "alerts": len(expected.alerts),
        "late": len(expected.late),
        "alerts_written": len(written["processed.alerts"]),
        "differences": differences(expected, found),
        "seconds": round(seconds, 1),
    }


def differences(expected: Outputs, found: Outputs) -> int:
    """Rows, tiles, alerts and late references that are missing, too much, or not the same."""
    both = ((expected.rows, found.rows), (expected.tiles, found.tiles))
    count = sum(one.get(place) != other.get(place) for one, other in both for place in one.keys() | other.keys())
    return count + len(expected.alerts ^ found.alerts) + len(expected.late ^ found.late)


@cli.command()
def volume(
    events: Annotated[int, typer.Option("--events", min=1)] = 1_000_000,
    seed: Annotated[int, typer.Option("--seed")] = 1,
    parallelism: Annotated[
        list[int] | None, typer.Option("--parallelism", help="May be repeated. [default: 1 and 2]")
    ] = None,
    kills: Annotated[int, typer.Option("--kills", help="Of the task manager, in a run of its own; 0 for none.")] = 5,
    json: output.JsonOption = False,
) -> None:
    """Compare a run for each parallelism, and one with kills and an upgrade, with the reference."""
    wrong = 0
    runs = [(number, 0) for number in parallelism or [1, 2]] + ([(1, kills)] if kills else [])
    for number, killed in runs:
        result = asyncio.run(one_run(events, seed, number, killed))
        wrong += result["differences"]
        if json:
            output.json_line(result)
        else:
            output.line(", ".join(f"{name} {value}" for name, value in result.items()))
    if wrong:
        raise typer.Exit(1)


if __name__ == "__main__":
    run(commands=cli, name="python -m tests.parity.volume")
