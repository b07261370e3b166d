"""`python -m tests.faults.soak [--minutes 30] [--events 5000] [--alerts 500] [--keys 1000000] [--json]`.

The whole application for half an hour at a steady rate: memory must be flat, and everything that was taken for an alert or
a shopper given back. Events are offered by the clock; every tenth is an order above the limit. Then heartbeats move the
time until every window is over. Exit code 1 when something does not hold.
"""

import asyncio
import random
import sys
import time
from collections.abc import Sequence
from statistics import median
from typing import Annotated, Any

import msgspec
import redis
import typer
import uvloop

from agents import app
from app.broker.base import Producer, Reader
from app.broker.kafka import KafkaBroker
from app.broker.publisher import HEARTBEAT
from app.cli import output
from app.core.clock import SystemClock
from app.core.record import TopicPartition
from app.local.process import LOCAL
from app.local.services import own_directory, running
from benchmarks.common import environment
from tests.faults.gauges import Gauges
from tests.faults.lines import read_lines
from tests.faults.workers import Worker, Workers

FOLDER = LOCAL / "faults" / "soak"
REMEMBER = 100_000
"""Bound of the memories of ids here, so that they are full long before the end: what grows after that is a leak."""
TICK_S = 0.02
GROWTH = 1.1
"""So much more memory at the end than in the middle is noise."""
BEHIND_S = 5.0
"""So far the decisions may be behind the alerts when the load ends."""
LATE = 1.02
"""So much longer than meant the load may have lasted: what is slower is another load."""
PROGRESS, NO_END, SCANNED = b"headrace:view:", -1, 1_000
"""Beginning of the one key of a view that stays, what Redis says of such keys, and how many are looked at together."""
PARTS = (("streams", "features"), ("agents", "actions"))


class Load(msgspec.Struct, frozen=True):
    """Events and alerts a second, for so long, of so many shoppers; then so long without any."""

    minutes: float
    events: int
    alerts: int
    keys: int
    quiet_minutes: float


FULL = Load(30, 5_000, 500, 1_000_000, 6)


class Soaked(msgspec.Struct, kw_only=True):
    """What came of it. grown: memory at the end, as a part of that in the middle. redis_keys_left: not yet
    expired, which takes more than an hour. elapsed_s: how long publishing took."""

    load: Load
    published: int
    alerts: int
    decisions: int
    behind: int
    grown: dict[str, float]
    rss_mb: dict[str, int]
    left: dict[str, int]
    redis_keys_left: int
    elapsed_s: float = 0.0
    failures: list[str]
    environment: dict[str, Any]


def latest() -> Soaked | None:
    """What came of the last soak."""
    path = FOLDER / "result.json"
    return msgspec.json.decode(path.read_bytes(), type=Soaked) if path.exists() else None


async def offer(producer: Producer, load: Load, chance: random.Random) -> int:
    """Publishes by the clock; returns how many were published. Raises: RuntimeError when the broker refuses some."""
    began, published, said = time.monotonic(), 0, 0
    end = int(load.minutes * 60 * load.events)
    clock = SystemClock()
    while published < end:
        due = min(end, int((time.monotonic() - began) * load.events))
        now_ms = clock.now_ms()
        await producer.send_many(
            "raw.orders", (order(number, load, chance, now_ms) for number in range(published, due))
        )
        published = due
        if published // load.events // 60 > said:
            said = published // load.events // 60
            say(f"{said} of {load.minutes:g} minutes")
        await asyncio.sleep(TICK_S)
    if failures := await producer.flush():
        raise RuntimeError(f"{len(failures)} events refused: {failures[0].error}")
    return published


def order(number: int, load: Load, chance: random.Random, now_ms: int) -> tuple[bytes, bytes, int]:
    user = f"u-{chance.randrange(load.keys)}"
    is_alert = number * load.alerts % load.events < load.alerts
    amount = 12_000 if is_alert else 49.9
    value = (
        f'{{"order_id":"o-{number}","user_id":"{user}","amount_usd":{amount},"status":"placed",'
        f'"timestamp":"2026-11-24T10:00:00.000Z"}}'
    )
    return value.encode(), user.encode(), now_ms


async def heartbeats(producer: Producer, minutes: float) -> None:
    """One a second to every partition: time goes on, and nothing else."""
    until, clock = time.monotonic() + minutes * 60, SystemClock()
    while time.monotonic() < until:
        for partition in range(app.topics.named("raw.orders").partitions):
            await producer.send("raw.orders", HEARTBEAT, None, partition=partition, timestamp_ms=clock.now_ms())
        await producer.flush()
        await asyncio.sleep(1)


async def written(reader: Reader, topic: str) -> int:
    """How many records a topic has had."""
    places = [TopicPartition(topic, number) for number in range(app.topics.named(topic).partitions)]
    return sum((await reader.end_offsets(places)).values())


async def soak(kafka: str, store: str, load: Load, seed: int) -> Soaked:
    """One run on servers that are there."""
    broker = KafkaBroker(kafka, SystemClock(), replication=1)
    admin, reader, producer = broker.admin(), broker.reader(), broker.producer()
    await admin.create(app.topics.all())
    await admin.close()
    await producer.start()
    workers = Workers(
        FOLDER,
        ["-A", "agents:app", "--model", "rules"],
        {
            "HEADRACE_BROKER": kafka,
            "HEADRACE_STORE": store,
            "HEADRACE_REPLICATION": "1",
            "HEADRACE_LOG_LEVEL": "warning",
        },
    )
    try:
        running_parts = {"+".join(parts): start(workers, parts) for parts in PARTS}
        await workers.at_work(running_parts["agents+actions"])
        say(f"{load.events:,} events/s, {load.alerts:,} of them alerts, for {load.minutes:g} minutes")
        began = time.monotonic()
        published = await offer(producer, load, random.Random(seed))
        elapsed_s = time.monotonic() - began
        alerts, decisions = await written(reader, "processed.alerts"), await written(reader, "agent.decisions")
        say(f"quiet for {load.quiet_minutes:g} minutes")
        middle_ms, end_ms = _middle_and_end(load)
        await heartbeats(producer, load.quiet_minutes)
        final = await written(reader, "agent.decisions")
        codes = await workers.stop()
    finally:
        workers.kill_all()
        await producer.close()
        await reader.close()
        await broker.close()
    kept = await asyncio.to_thread(_kept, store)
    return judged(load, running_parts, middle_ms, end_ms, published, alerts, decisions, final, kept, elapsed_s, codes)


def _kept(store: str) -> tuple[int, int]:
    """Keys in the store, and those of them that no time ends. A view's progress has none: that is one key, and stays."""
    longest_ms = max(view.ttl_ms for view in app.views.values())
    kept = lasting = cursor = 0
    with redis.Redis.from_url(store) as client:
        while True:
            cursor, keys = client.scan(cursor, count=SCANNED)
            mortal = [key for key in keys if not key.startswith(PROGRESS)]
            with client.pipeline(transaction=False) as questions:
                for key in mortal:
                    questions.pttl(key)
                lasting += sum(left_ms == NO_END or left_ms > longest_ms for left_ms in questions.execute())
            kept += len(keys)
            if not cursor:
                return kept, lasting


def _middle_and_end(load: Load) -> tuple[int, int]:
    """When half of the load was published, and all of it."""
    end_ms = SystemClock().now_ms()
    return end_ms - int(load.minutes * 30_000), end_ms


def start(workers: Workers, parts: Sequence[str]) -> Worker:
    gauges = FOLDER / f"{'+'.join(parts)}.gauges"
    gauges.unlink(missing_ok=True)
    seams = ["--gauges", str(gauges), "--remember", str(REMEMBER)]
    return workers.start(seams=seams, arguments=[text for part in parts for text in ("--only", part)])


def judged(
    load: Load,
    running_parts: dict[str, Worker],
    middle_ms: int,
    end_ms: int,
    published: int,
    alerts: int,
    decisions: int,
    final: int,
    kept: tuple[int, int],
    elapsed_s: float,
    codes: Sequence[int | None],
) -> Soaked:
    """What was seen against what must be: flat, decided, and given back."""
    span_ms = (end_ms - middle_ms) // 5
    grown: dict[str, float] = {}
    rss_mb: dict[str, int] = {}
    left: dict[str, int] = {}
    failures = [f"a worker ended with {code}" for code in codes if code != 0]
    for name in running_parts:
        seen = read_lines(FOLDER / f"{name}.gauges", Gauges)
        middle = median(one.rss_bytes for one in seen if abs(one.at_ms - middle_ms) <= span_ms)
        end = median(one.rss_bytes for one in seen if end_ms - span_ms <= one.at_ms <= end_ms)
        grown[name], rss_mb[name] = round(end / middle, 3), round(end / 2**20)
        if end > middle * GROWTH:
            failures.append(f"{name}: {middle / 2**20:.0f} MB in the middle, {end / 2**20:.0f} MB at the end")
        last = seen[-1]
        left |= {f"{name} lanes": last.lanes, f"{name} unfinished": last.unfinished, f"{name} entries": last.entries}
    if load.quiet_minutes:
        failures += [f"{count} {name} were never given back" for name, count in left.items() if count]
    if alerts - decisions > BEHIND_S * load.alerts:
        failures.append(f"{alerts - decisions:,} alerts without a decision when the load ended")
    if elapsed_s > load.minutes * 60 * LATE:
        failures.append(f"published in {elapsed_s:.0f} s what was meant for {load.minutes * 60:.0f} s")
    keys_left, lasting = kept
    if lasting:
        failures.append(f"{lasting:,} keys of the store have no end")
    if keys_left > load.keys + len(app.views):
        failures.append(f"{keys_left:,} keys in the store of {load.keys:,} shoppers")
    if load.quiet_minutes and final != alerts:
        failures.append(f"{alerts:,} alerts, {final:,} decisions")
    return Soaked(
        load=load,
        published=published,
        alerts=alerts,
        decisions=decisions,
        behind=alerts - decisions,
        grown=grown,
        rss_mb=rss_mb,
        left=left,
        redis_keys_left=keys_left,
        elapsed_s=round(elapsed_s, 1),
        failures=failures,
        environment=environment(),
    )


def say(text: str) -> None:
    sys.stderr.write(f"{time.strftime('%H:%M:%S')} {text}\n")


def main(
    minutes: Annotated[float, typer.Option(help="How long the load lasts.")] = FULL.minutes,
    events: Annotated[int, typer.Option(help="Events a second.")] = FULL.events,
    alerts: Annotated[int, typer.Option(help="How many of them are alerts.")] = FULL.alerts,
    keys: Annotated[int, typer.Option(help="Distinct shoppers.")] = FULL.keys,
    quiet: Annotated[
        float, typer.Option(help="Minutes of heartbeats afterwards, which end every window.")
    ] = FULL.quiet_minutes,
    seed: Annotated[int, typer.Option()] = 1,
    json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Run the whole application under a steady load, and look at what fills up."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    with running(own_directory("soak")) as addresses:
        load = Load(minutes, events, alerts, keys, quiet)
        result = uvloop.run(soak(addresses.kafka, addresses.redis, load, seed))
    (FOLDER / "result.json").write_bytes(msgspec.json.encode(result))
    if json:
        output.json_line(result)
    else:
        shown = {
            name: value for name, value in msgspec.to_builtins(result).items() if name not in ("load", "environment")
        }
        output.table(("figure", "value"), [(name, str(value)) for name, value in shown.items()])
    for failure in result.failures:
        output.error(failure)
    raise typer.Exit(bool(result.failures))


if __name__ == "__main__":
    typer.run(main)
