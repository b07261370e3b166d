"""What `once`, bursts, `at_most_once_per` and tiles keep of a key on Flink: `python -m benchmarks.flink_state [--keys N] [--json]`.

A job for each reads one order of every user, all within a second, from a local Kafka. Said are the bytes a key of a checkpoint, and of
the task manager's heap after a full collection (with a JDK, which has `jcmd`), less those of the same job before its first record. Then
heartbeats move the time on, and it is said what is left: all that was kept is to be forgotten.
"""

import asyncio
import os
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from app.broker.base import Broker
from app.broker.topics import TopicSpec, partition_of
from app.core.clock import SystemClock
from app.core.codec import encode
from app.core.record import TopicPartition
from app.http.client import HttpClient
from app.local.java import find_java
from app.local.services import FLINK_SERVICES, own_directory, running, status
from app.streams.expressions import col
from app.streams.graph import Alert, count, total
from app.streams.pipelines import Pipeline
from app.streams.sql import Settings, compile_job
from benchmarks import common
from features.records import Id, order_events
from flink_jobs.child import submitter
from flink_jobs.cluster import FlinkCluster

PARTITIONS = 12
GROUP = "flink-state"
HEAP_MB = "4096"
"""A million keys are more than the local cluster is made for."""

WITHIN_S = 600.0
LOOK_S = 0.5
HOUR_MS = 3_600_000


class Kept(Alert, frozen=True):
    """Only `at_most_once_per` raises it: no user orders twice, or for more than a dollar."""

    user_id: Id


CASES: Mapping[str, Pipeline] = {
    "once": order_events.once("order_id", within="1m").where(col.amount_usd > 1).alert(Kept, id="order_id", rule="o"),
    "burst": order_events.burst(count=5, within="5m").alert(Kept, id="order_id", rule="b"),
    "at_most_once_per": order_events.alert(Kept, at_most_once_per="5m", rule="a"),
    "tiles": order_events.live("5m", tile="1m").aggregate(n=count(), spent=total(col.amount_usd)).serve("kept"),
}


async def fill(broker: Broker, topic: str, keys: int, start_ms: int) -> None:
    """An order of each user, and for the heap's sake nothing else."""
    producer = broker.producer()
    await producer.start()
    for number in range(keys):
        user = f"u-{number}"
        value = (
            f'{{"order_id":"o-{number}","user_id":"{user}","amount_usd":1.00,"status":"placed",'
            f'"timestamp":"2026-11-24T10:00:00Z"}}'
        ).encode()
        at_ms = start_ms + number * 1_000 // keys
        place = partition_of(user.encode(), PARTITIONS)
        await producer.send(topic, value, user.encode(), partition=place, timestamp_ms=at_ms)
    assert await producer.flush() == []
    await producer.close()


async def beat(broker: Broker, topic: str, at_ms: int) -> None:
    """Moves the time of all partitions on."""
    producer = broker.producer()
    await producer.start()
    for partition in range(PARTITIONS):
        await producer.send(topic, b'{"heartbeat":true}', None, partition=partition, timestamp_ms=at_ms)
    assert await producer.flush() == []
    await producer.close()


def heap_bytes(directory: Path) -> int | None:
    """Of the task manager's living objects; None without a JDK."""
    jcmd = find_java().resolve().with_name("jcmd")
    (pid,) = (each.pid for each in status(directory) if each.name == FLINK_SERVICES[1])
    if not jcmd.exists() or pid is None:
        return None
    said = subprocess.run([jcmd, str(pid), "GC.class_histogram"], capture_output=True, text=True, check=True).stdout
    return int(said.splitlines()[-1].split()[2])


class Case:
    """One job, from its start to its end."""

    def __init__(self, broker: Broker, http: HttpClient, address: str, job_id: str, topic: str) -> None:
        self._broker, self._http, self._job, self._topic = broker, http, f"{address}/jobs/{job_id}", topic

    async def state_bytes(self) -> int:
        """Of the first checkpoint that holds all that was published. Raises: TimeoutError."""
        admin, reader = self._broker.admin(), self._broker.reader()
        places = [TopicPartition(self._topic, partition) for partition in range(PARTITIONS)]
        ends = await reader.end_offsets(places)
        async with asyncio.timeout(WITHIN_S):
            while True:
                reached = await admin.group_offsets(GROUP, [self._topic])
                if all(place in reached and reached[place].offset >= end for place, end in ends.items()):
                    break
                await asyncio.sleep(LOOK_S)
            last = await self._checkpoint()
            while True:
                now = await self._checkpoint()
                if now["id"] > last["id"] + 1:  # begun after it was seen that all was committed
                    await reader.close()
                    await admin.close()
                    return int(now["state_size"])
                await asyncio.sleep(LOOK_S)

    async def _checkpoint(self) -> Any:
        found = await self._http.request_json("GET", f"{self._job}/checkpoints", None, 10_000)
        return (found.get("latest") or {}).get("completed") or {"id": 0, "state_size": 0}


async def measured(
    name: str, keys: int, broker: Broker, http: HttpClient, address: str, directory: Path
) -> dict[str, Any]:
    """Of one case, with a topic of its own."""
    common.say(f"{name}: {keys:,} keys")
    admin = broker.admin()
    topics = [order_events.source.spec.name, f"{order_events.source.spec.name}.late", CASES[name].topic]
    await admin.create(
        [TopicSpec(name=topic, partitions=PARTITIONS, retention_ms=None, time="event") for topic in topics]
    )
    settings = Settings(broker.address.partition("://")[2].rstrip("/"), group=GROUP)
    host, _, port = address.partition("//")[2].partition(":")
    configuration = {
        "execution.target": "remote",
        "execution.attached": "false",
        "rest.address": host,
        "rest.port": port,
        "execution.checkpointing.interval": "2 s",
    }
    start_ms = SystemClock().now_ms() - HOUR_MS
    async with submitter() as pyflink:
        job_id = await pyflink.submit(compile_job(name, {name: CASES[name]}, settings), configuration)
    case = Case(broker, http, address, job_id, topics[0])
    await beat(broker, topics[0], start_ms)
    empty, empty_heap = await case.state_bytes(), await asyncio.to_thread(heap_bytes, directory)
    await fill(broker, topics[0], keys, start_ms)
    full, heap = await case.state_bytes(), await asyncio.to_thread(heap_bytes, directory)
    await beat(broker, topics[0], start_ms + HOUR_MS)
    left = await case.state_bytes()
    await FlinkCluster(address, http).cancel(job_id)
    await admin.delete(topics)
    await admin.close()
    return {
        "checkpoint_bytes_a_key": round((full - empty) / keys, 1),
        "heap_bytes_a_key": None if heap is None or empty_heap is None else round((heap - empty_heap) / keys, 1),
        "left_bytes": left - empty,
    }


async def compared(keys: int) -> dict[str, Any]:
    """All cases, one after the other, on servers of their own."""
    os.environ.setdefault("FLINK_HEAP_MB", HEAP_MB)
    directory = own_directory("bench")
    with running(directory, ("kafka", *FLINK_SERVICES)) as started:
        broker = common.broker_at(started.kafka)
        async with HttpClient() as http:
            await FlinkCluster(started.flink, http).require()
            cases = {name: await measured(name, keys, broker, http, started.flink, directory) for name in CASES}
        await broker.close()
    return {"benchmark": "flink_state", "keys": keys, "cases": cases}


def main(
    keys: Annotated[int, typer.Option("--keys", min=1, help="How many users.")] = 1_000_000,
    json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Measure what Flink keeps of a key."""
    figures = asyncio.run(compared(keys))
    path = common.keep("flink_state", result := {**figures, "environment": common.environment()})
    if json:
        typer.echo(encode(result).decode())
        return
    for name, case in figures["cases"].items():
        typer.echo(f"{name}: {', '.join(f'{figure} {value}' for figure, value in case.items())}")
    typer.echo(f"kept in {path}")


if __name__ == "__main__":
    typer.run(main)
