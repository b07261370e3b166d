"""From an event to its alert, its feature and its decision, through real Kafka and Redis:
`python -m benchmarks.e2e [--engine asyncio|flink] [--rate N] [--seconds N] [--json]`.

A worker runs in a process of its own, with an in-process model of set latency. Events are offered by the clock, not by
how fast they are taken: each has a moment, its time is that moment, and whatever is late counts as latency. Hop times are
those that the decisions carry, in whole milliseconds; the model's own time is taken out of `beyond the model`. A run in
which an alert has no decision, or two, fails.

With `--engine flink` the fraud streams are a job on a local cluster, and the worker does the rest: it judges the records, and
serves the features.
"""

import asyncio
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from enum import StrEnum
from typing import Annotated, Any, NamedTuple

import msgspec
import typer
import uvloop

from agents import app
from app.broker.base import Broker
from app.broker.kafka import KafkaBroker
from app.core.clock import SystemClock
from app.core.record import Record, TopicPartition
from app.core.settings import Settings
from app.decisions.record import DECISIONS, HOPS, DecisionRecord
from app.local.services import FLINK_SERVICES, Addresses
from app.models.rules import RulesModel, lognormal_seconds
from app.streams.outputs import derived_id
from app.worker import Worker
from benchmarks import common
from features import fraud

WARM_UP_S = 15
"""A new broker's Java compiles for ten seconds, and takes both cores of a small machine for it. Flink's goes on for a minute: give it
--warm-up 90."""

PROBES_PER_S = 20
PROBE_LIMIT_S = 2.0

FAILED = 1
"""Exit code of a run that lost or doubled a decision."""


class Engine(StrEnum):
    """What runs the streams."""

    ASYNCIO = "asyncio"
    FLINK = "flink"


class Load(NamedTuple):
    """What is offered: events a second, for so long after the warm-up, which part of them alerts; how long the model takes."""

    rate: int
    warm_up: float
    seconds: float
    alert_share: float
    model_ms: float


async def work(broker_address: str, store_address: str, model_ms: float, engine: Engine) -> None:
    """The worker process: everything but the publisher, and on Flink but the streams; ends on SIGTERM."""
    settings = Settings(
        broker=broker_address,
        store=store_address,
        engine=engine,
        model="rules",
        model_concurrency=256,
        replication=1,
    )
    clock = SystemClock()
    broker, store = common.broker_at(broker_address), common.store_at(store_address)
    seconds: Any = lognormal_seconds(model_ms / 1000, model_ms * 2.5 / 1000, seed=1) if model_ms else 0.0
    model = RulesModel(app.rules, seconds=seconds)
    worker = Worker(app, settings, broker=broker, store=store, model=model, clock=clock)
    stopping = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stopping.set)
    await worker.run(stopping)
    await store.close()
    await broker.close()


def order(number: int, user: str, alert: bool) -> bytes:
    return common.event_json(user, 2_000_000 if alert else 4_990, order_id=f"o-{number}")


class Probe:
    """Asks Redis for one order's tile until it is there: event to feature, as a reader sees it."""

    def __init__(self, address: str) -> None:
        self._client = common.redis_at(address)
        self.waits_ms: list[float] = []
        self.lost = 0

    def wait(self, user: str, at_s: float) -> None:
        """at_s: the moment of the event, on time.time()'s clock."""
        key, until = f"user_features:{user}", at_s + PROBE_LIMIT_S
        while True:
            seen = self._client.exists(key)
            now = common.now_s()
            if seen:
                self.waits_ms.append((now - at_s) * 1000)
                return
            if now > until:
                self.lost += 1
                return
            time.sleep(0.0003)


class Offered(NamedTuple):
    """What was published: events, ids of all alerts, and of those after the warm-up, which are measured."""

    events: int
    alert_ids: set[str]
    measured: set[str]


async def offer(broker: KafkaBroker, probe: Probe, load: Load, run: str) -> Offered:
    """Publishes by the clock."""
    rate = load.rate
    producer, chance = broker.producer(), random.Random(7)
    await producer.start()
    loop = asyncio.get_running_loop()
    began, offered = common.now_s() + 0.2, Offered(int(rate * (load.seconds + load.warm_up)), set(), set())
    probes: list[asyncio.Future[None]] = []
    probe_every = max(1, rate // PROBES_PER_S)
    for number in range(offered.events):
        at = began + number / rate
        ahead = at - common.now_s()
        if ahead > 0.0005:
            await asyncio.sleep(ahead)
        alert = chance.random() < load.alert_share
        measured = number > rate * load.warm_up
        probed = measured and not alert and number % probe_every == 0
        user = f"{run}-{number}" if alert or probed else f"{run}-common-{chance.randrange(10_000)}"
        await producer.send("raw.orders", order(number, user, alert), user.encode(), timestamp_ms=int(at * 1000))
        if alert:
            alert_id = derived_id(fraud.high_value_orders.raised.rule, user, f"o-{number}")
            offered.alert_ids.add(alert_id)
            if measured:
                offered.measured.add(alert_id)
        if probed:
            probes.append(loop.run_in_executor(None, probe.wait, user, at))
    failures = await producer.flush()
    assert not failures, failures[0]
    await asyncio.gather(*probes)
    await producer.close()
    return offered


class DecisionLog:
    """The decisions about some alerts, as far as the log was read."""

    def __init__(self, broker: Broker, alert_ids: set[str]) -> None:
        self.found: list[tuple[Record, DecisionRecord]] = []
        self._reader = broker.reader()
        self._alert_ids = alert_ids
        partitions = app.topics.named(DECISIONS).partitions
        self._positions = {TopicPartition(DECISIONS, partition): 0 for partition in range(partitions)}

    async def read(self) -> None:
        """What has come since the last call."""
        for place, end in (await self._reader.end_offsets(self._positions)).items():
            async for records in self._reader.read(place, self._positions[place], end):
                for record in records:
                    decision = msgspec.json.decode(record.value or b"", type=DecisionRecord)
                    if decision.alert_id in self._alert_ids:
                        self.found.append((record, decision))
            self._positions[place] = end

    async def wait(self, seconds: float) -> None:
        """Until each alert has one, or for so long."""
        deadline = common.now_s() + seconds
        while self.missing() and common.now_s() < deadline:
            await self.read()
            await asyncio.sleep(0.1)

    async def close(self) -> None:
        await self._reader.close()

    def missing(self) -> set[str]:
        """Alerts without a decision."""
        return self._alert_ids - {decision.alert_id for _, decision in self.found}

    def doubled(self) -> set[str]:
        """Alerts with more than one."""
        numbers = Counter(decision.alert_id for _, decision in self.found)
        return {alert_id for alert_id, number in numbers.items() if number > 1}


def figures(found: Sequence[tuple[Record, DecisionRecord]]) -> dict[str, Any]:
    """Percentiles per hop, in milliseconds, and how often the own event was seen."""
    times: dict[str, list[float]] = defaultdict(list)
    own, reasons = defaultdict[str, int](int), defaultdict[str, int](int)
    for record, decision in found:
        hops, model_ms = decision.hops, sum(use.model_ms for use in decision.models)
        for name, start, end in HOPS:
            times[name].append(getattr(hops, end) - getattr(hops, start))
        times["event to alert"].append(hops.alert_ms - hops.event_ms)
        times["decision acknowledged"].append(record.timestamp_ms - hops.decided_ms)
        times["event to decision"].append(record.timestamp_ms - hops.event_ms)
        times["model"].append(model_ms)
        times["event to decision, beyond the model"].append(record.timestamp_ms - hops.event_ms - model_ms)
        for features in decision.features:
            own[features.own_event.value] += 1
        for reason in decision.reasons:
            reasons[reason] += 1
    hops_ms = {name: common.percentiles(values) for name, values in times.items()}
    return {"decisions": len(found), "own_event": dict(own), "reasons": dict(reasons), "hops_ms": hops_ms}


@contextmanager
def worker_process(broker: str, store: str, model_ms: float, engine: Engine) -> Iterator[None]:
    """Raises: RuntimeError when it ends badly."""
    command = [sys.executable, "-m", "benchmarks.e2e", "--role", "worker", "--model-ms", str(model_ms)]
    process = subprocess.Popen([*command, "--engine", engine, "--broker", broker, "--store", store], env=os.environ)
    try:
        yield
    finally:
        process.terminate()
        code = process.wait(40)
    if code != 0:
        raise RuntimeError(f"the worker ended with {code}")


async def measure(addresses: Addresses, load: Load, engine: Engine) -> dict[str, Any]:
    store_address, model_ms = addresses.redis_socket, load.model_ms
    broker = common.broker_at(addresses.kafka)
    admin = broker.admin()
    await admin.create(app.topics.all())
    await admin.close()
    probe, run = Probe(store_address), f"e{SystemClock().now_ms() % 10**9}"
    if engine is Engine.FLINK:
        await asyncio.to_thread(common.submit, addresses)
    with worker_process(addresses.kafka, store_address, model_ms, engine):
        common.say("waiting until the worker serves features")
        await ready(broker, store_address)
        for_s = load.seconds + load.warm_up
        common.say(f"offering {load.rate:,} events/s for {for_s:.0f} s, {load.alert_share:.1%} of them alerts")
        offered = await offer(broker, probe, load, run)
        common.say("waiting for the last decisions")
        log = DecisionLog(broker, offered.alert_ids)
        await log.wait(30 + model_ms / 100)
    await log.read()  # once more, now that nobody can write another one
    await log.close()
    await broker.close()
    result = figures([(record, decision) for record, decision in log.found if decision.alert_id in offered.measured])
    result["hops_ms"]["event to feature in Redis"] = common.percentiles(probe.waits_ms)
    return {
        "events": offered.events,
        "alerts": len(offered.measured),
        "missing": len(log.missing()),
        "doubled": len(log.doubled()),
        "probes": len(probe.waits_ms) + probe.lost,
        "probes_lost": probe.lost,
        **result,
    }


async def ready(broker: KafkaBroker, store_address: str) -> None:
    """An event of every partition's has reached the store."""
    producer, client = broker.producer(), common.redis_at(store_address)
    await producer.start()
    users, number = [f"ready-{number}" for number in range(48)], 0
    while not all(client.exists(f"user_features:{user}") for user in users):
        number += 1
        for user in users:
            await producer.send(
                "raw.orders", order(-number, user, False), user.encode(), timestamp_ms=SystemClock().now_ms()
            )
        await producer.flush()
        await asyncio.sleep(0.5)
    await producer.close()


def main(
    engine: Annotated[Engine, typer.Option(help="What runs the streams.")] = Engine.ASYNCIO,
    rate: Annotated[int, typer.Option(help="Events a second.")] = 1_000,
    warm_up: Annotated[float, typer.Option(help="Seconds of the load that are not measured.")] = WARM_UP_S,
    seconds: Annotated[float, typer.Option(help="How long is measured.")] = 20,
    alerts: Annotated[float, typer.Option(help="Which part of the events alerts.")] = 0.1,
    model_ms: Annotated[float, typer.Option(help="Median latency of the in-process model; p99 is 2.5 times it.")] = 300,
    broker: Annotated[str | None, typer.Option(help="kafka://host:port; a local one unless given.")] = None,
    store: Annotated[str | None, typer.Option(help="redis:// or unix://; a local one unless given.")] = None,
    json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
    role: Annotated[str, typer.Option(hidden=True)] = "",
) -> None:
    """Measure the way from an event to its alert, its feature and its decision."""
    if role == "worker":
        assert broker
        assert store
        uvloop.run(work(broker, store, model_ms, engine))
        return
    load = Load(rate, warm_up, seconds, alerts, model_ms)
    services = ["kafka", "redis", *(FLINK_SERVICES if engine is Engine.FLINK else ())]
    with common.servers(broker, store, services) as addresses:
        found = uvloop.run(measure(addresses, load, engine))
    settings = {"engine": engine, **load._asdict()}
    path = common.finished("e2e", {**settings, **found}, json)
    if path:
        report(found)
        typer.echo(f"kept in {path}")
    if found["missing"] or found["doubled"]:
        common.say(f"error: {found['missing']} alerts have no decision, {found['doubled']} have two")
        raise typer.Exit(FAILED)


def report(found: dict[str, Any]) -> None:
    """The result for a person."""
    typer.echo(f"{found['decisions']} decisions of {found['alerts']} alerts, own event {found['own_event']}")
    for name, values in found["hops_ms"].items():
        typer.echo(f"{name:42} p50 {values.get('p50', 0):8.1f} ms   p99 {values.get('p99', 0):8.1f} ms")
    if found["probes_lost"]:
        typer.echo(f"{found['probes_lost']} of {found['probes']} probes saw no feature within {PROBE_LIMIT_S:.0f} s")


if __name__ == "__main__":
    typer.run(main)
