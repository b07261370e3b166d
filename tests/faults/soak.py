"""`python -m tests.faults.soak [--minutes 30] [--events 5000] [--alerts 500] [--keys 1000000] [--json]`;
`python -m tests.faults.soak --ablations`.

The whole application for half an hour at a steady rate: memory must be flat, and everything that was taken for an alert or
a shopper given back. Events are offered by the clock; every tenth is an order above the limit. Then heartbeats move the
time until every window is over. Exit code 1 when something does not hold.

--ablations: the same for less than a minute, as it is and with leaks planted in it, each of which must be found.
"""

import asyncio
import random
import shutil
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
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
from tests.faults import results
from tests.faults.cluster import Cluster
from tests.faults.gauges import Gauges
from tests.faults.lines import read_lines
from tests.faults.rows import Ablation, Bench, Outcome, Row, Size
from tests.faults.workers import Worker, Workers

FOLDER = LOCAL / "faults" / "runs" / "soak"
KEPT_IN = "soak.json"
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
HIDDEN = ("load", "environment", "shortened")
"""What is not printed."""
LIMIT_S = 300.0
"""So long the shortened soak may take."""


class Load(msgspec.Struct, frozen=True):
    """Events and alerts a second, for so long, of so many shoppers; then so long without any. bursts: so many of the alerts are those
    that orders of chance shoppers raise, the others are orders of high value. remember: bound of the
    memories of ids, so that they are full long before the end: what grows after that is a leak. past_minutes: so far the
    events' time is behind the clock, to which heartbeats move it at once: no window is waited for."""

    minutes: float
    events: int
    alerts: int
    keys: int
    quiet_minutes: float
    remember: int = 100_000
    past_minutes: float = 0
    bursts: int = 0


FULL = Load(30, 5_000, 500, 1_000_000, 12, bursts=156)
SHORT = Load(0.75, 200, 100, 1_000, 0.25, remember=1_000, past_minutes=12)


class Seen(msgspec.Struct, kw_only=True):
    """What was gathered of one run. gauges: by the parts that a worker ran. middle_ms, end_ms: when half of the load was
    published, and all of it. alerts, decisions: when the load ended; in_all, final: of them after the quiet. keys, lasting: of the store, and
    those of them that no time ends. codes: with which the workers ended."""

    gauges: Mapping[str, Sequence[Gauges]]
    middle_ms: int
    end_ms: int
    published: int
    alerts: int
    decisions: int
    in_all: int
    final: int
    keys: int
    lasting: int
    elapsed_s: float
    codes: Sequence[int | None]


class Soaked(msgspec.Struct, kw_only=True):
    """What came of it. grown: memory at the end, as a part of that in the middle. redis_keys_left: not yet
    expired, which takes more than an hour. elapsed_s: how long publishing took. shortened: of `SHORTENED` and its
    ablations, which are kept beside it."""

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
    shortened: results.Result | None = None


def keep(folder: Path, soaked: Soaked) -> None:
    """Replaces what is kept of the soak; of the shortened one, `results.keep`."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / KEPT_IN).write_bytes(results.as_text(msgspec.structs.replace(soaked, shortened=None)))


def latest(folder: Path) -> Soaked | None:
    """What is kept of the last soak, and of the last shortened one."""
    path = folder / KEPT_IN
    if not path.exists():
        return None
    soaked = msgspec.json.decode(path.read_bytes(), type=Soaked)
    soaked.shortened = results.latest(folder, SHORTENED, small=False, protocol="consumer")
    return soaked


async def offer(producer: Producer, load: Load, chance: random.Random) -> int:
    """Publishes by the clock; returns how many were published. Raises: RuntimeError when the broker refuses some."""
    began, published, said, beaten = time.monotonic(), 0, 0, 0.0
    end = int(load.minutes * 60 * load.events)
    clock = SystemClock()
    while published < end:
        due = min(end, int((time.monotonic() - began) * load.events))
        event_ms = clock.now_ms() - int(load.past_minutes * 60_000)
        await producer.send_many(
            "raw.orders", (order(number, load, chance, event_ms) for number in range(published, due))
        )
        published = due
        if time.monotonic() > beaten + 1:  # what orders are joined with has a clock, too
            beaten = time.monotonic()
            for topic in app.sources.keys() - {"raw.orders"}:
                await beat(producer, topic, event_ms)
        if published // load.events // 60 > said:
            said = published // load.events // 60
            say(f"{said} of {load.minutes:g} minutes")
        await asyncio.sleep(TICK_S)
    if failures := await producer.flush():
        raise RuntimeError(f"{len(failures)} events refused: {failures[0].error}")
    return published


def order(number: int, load: Load, chance: random.Random, event_ms: int) -> tuple[bytes, bytes, int]:
    user = f"u-{chance.randrange(load.keys)}"
    high = max(load.alerts - load.bursts, 0)
    is_alert = number * high % load.events < high
    amount = 12_000 if is_alert else 49.9
    value = (
        f'{{"order_id":"o-{number}","user_id":"{user}","amount_usd":{amount},"status":"placed",'
        f'"timestamp":"2026-11-24T10:00:00.000Z"}}'
    )
    return value.encode(), user.encode(), event_ms


async def heartbeats(producer: Producer, minutes: float) -> None:
    """One a second to every partition: time goes on, and nothing else."""
    until, clock = time.monotonic() + minutes * 60, SystemClock()
    while time.monotonic() < until:
        for topic in app.sources:
            await beat(producer, topic, clock.now_ms())
        await producer.flush()
        await asyncio.sleep(1)


async def beat(producer: Producer, topic: str, at_ms: int) -> None:
    """One heartbeat to every partition."""
    for partition in range(app.topics.named(topic).partitions):
        await producer.send(topic, HEARTBEAT, None, partition=partition, timestamp_ms=at_ms)


async def written(reader: Reader, topic: str) -> int:
    """How many records a topic has had."""
    places = [TopicPartition(topic, number) for number in range(app.topics.named(topic).partitions)]
    return sum((await reader.end_offsets(places)).values())


async def soak(kafka: str, store: str, load: Load, seed: int, folder: Path, ablate: Sequence[str] = ()) -> Soaked:
    """One run on servers that are there, and have seen none before. folder: of the workers' logs; emptied."""
    shutil.rmtree(folder, ignore_errors=True)
    broker = KafkaBroker(kafka, SystemClock(), replication=1)
    admin, reader, producer = broker.admin(), broker.reader(), broker.producer()
    await admin.create(app.topics.all())
    await admin.close()
    await producer.start()
    workers = Workers(
        folder,
        ["-A", "agents:app", "--model", "rules"],
        {
            "HEADRACE_BROKER": kafka,
            "HEADRACE_STORE": store,
            "HEADRACE_REPLICATION": "1",
            "HEADRACE_LOG_LEVEL": "warning",
        },
    )
    try:
        running_parts = {"+".join(parts): start(workers, parts, folder, load.remember, ablate) for parts in PARTS}
        await workers.at_work(running_parts["agents+actions"])
        say(f"{load.events:,} events/s, {load.alerts:,} of them alerts, for {load.minutes:g} minutes")
        began = time.monotonic()
        published = await offer(producer, load, random.Random(seed))
        elapsed_s = time.monotonic() - began
        alerts, decisions = await written(reader, "processed.alerts"), await written(reader, "agent.decisions")
        say(f"quiet for {load.quiet_minutes:g} minutes")
        middle_ms, end_ms = _middle_and_end(load)
        await heartbeats(producer, load.quiet_minutes)
        in_all, final = await written(reader, "processed.alerts"), await written(reader, "agent.decisions")
        codes = await workers.stop()
    finally:
        workers.kill_all()
        await producer.close()
        await reader.close()
        await broker.close()
    keys, lasting = await asyncio.to_thread(_kept, store)
    seen = Seen(
        gauges={name: read_lines(_gauges_of(folder, name), Gauges) for name in running_parts},
        middle_ms=middle_ms,
        end_ms=end_ms,
        published=published,
        alerts=alerts,
        decisions=decisions,
        in_all=in_all,
        final=final,
        keys=keys,
        lasting=lasting,
        elapsed_s=elapsed_s,
        codes=codes,
    )
    return judged(load, seen, environment())


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


def start(workers: Workers, parts: Sequence[str], folder: Path, remember: int, ablate: Sequence[str]) -> Worker:
    seams = ["--gauges", str(_gauges_of(folder, "+".join(parts))), "--remember", str(remember)]
    arguments = [text for part in parts for text in ("--only", part)]
    return workers.start(ablate=ablate, seams=seams, arguments=arguments)


def _gauges_of(folder: Path, name: str) -> Path:
    return folder / f"{name}.gauges"


def judged(load: Load, seen: Seen, where: dict[str, Any]) -> Soaked:
    """What was seen against what must be: flat, decided, and given back. where: the environment. No I/O."""
    span_ms = (seen.end_ms - seen.middle_ms) // 5
    grown: dict[str, float] = {}
    rss_mb: dict[str, int] = {}
    left: dict[str, int] = {}
    failures = [f"a worker ended with {code}" for code in seen.codes if code != 0]
    for name, gauges in seen.gauges.items():
        middle = median(one.rss_bytes for one in gauges if abs(one.at_ms - seen.middle_ms) <= span_ms)
        end = median(one.rss_bytes for one in gauges if seen.end_ms - span_ms <= one.at_ms <= seen.end_ms)
        grown[name], rss_mb[name] = round(end / middle, 3), round(end / 2**20)
        if end > middle * GROWTH:
            failures.append(f"{name}: {middle / 2**20:.0f} MB in the middle, {end / 2**20:.0f} MB at the end")
        last = gauges[-1]
        left |= {f"{name} lanes": last.lanes, f"{name} unfinished": last.unfinished, f"{name} entries": last.entries}
    if load.quiet_minutes:
        failures += [f"{count:,} {name} were never given back" for name, count in left.items() if count]
    behind = seen.alerts - seen.decisions
    if behind > BEHIND_S * load.alerts:
        failures.append(f"{behind:,} alerts without a decision when the load ended")
    if seen.elapsed_s > load.minutes * 60 * LATE:
        failures.append(f"published in {seen.elapsed_s:.0f} s what was meant for {load.minutes * 60:.0f} s")
    if seen.lasting:
        failures.append(f"{seen.lasting:,} keys of the store have no end")
    if seen.keys > load.keys + len(app.views):
        failures.append(f"{seen.keys:,} keys in the store of {load.keys:,} shoppers")
    if load.quiet_minutes and seen.final != seen.in_all:
        failures.append(f"{seen.in_all:,} alerts, {seen.final:,} decisions")
    return Soaked(
        load=load,
        published=seen.published,
        alerts=seen.alerts,
        decisions=seen.decisions,
        behind=behind,
        grown=grown,
        rss_mb=rss_mb,
        left=left,
        redis_keys_left=seen.keys,
        elapsed_s=round(seen.elapsed_s, 1),
        failures=failures,
        environment=where,
    )


async def _shortened(bench: Bench, size: Size, ablate: Sequence[str]) -> Outcome:
    """A run on servers of its own: what an ablation leaves in tables would count against the next."""
    folder = bench.directory / (ablate[0] if ablate else "nothing removed")
    async with bench.cluster as cluster:
        soaked = await soak(cluster.kafka, cluster.redis, Load(**size), bench.seed, folder, ablate)
    return Outcome(None, soaked.failures, {"grown": soaked.grown, "left": soaked.left, "rss_mb": soaked.rss_mb})


_SIZE = msgspec.structs.asdict(SHORT)
SHORTENED = Row(
    "soak, shortened",
    "What the soak looks at, it finds in less than a minute where it leaks.",
    _shortened,
    full=_SIZE,
    small=None,
    ablations=(
        Ablation("lanes_are_not_given_back", _SIZE, ("agents+actions lanes were never given back",)),
        Ablation("closed_windows_are_kept", _SIZE, ("streams+features entries were never given back",)),
        Ablation("contexts_of_decided_alerts_are_kept", _SIZE, ("agents+actions: ",)),
        Ablation("features_of_shoppers_are_kept", _SIZE, ("keys of the store have no end",)),
    ),
)
"""The soak as a row of its own, which is run for the sake of its ablations."""


async def shortened(seed: int) -> results.Result:
    """The shortened soak, and each of its ablations. What came of it is kept."""
    bench = Bench(Cluster(app, own_directory("soak")), FOLDER / "shortened", seed, say)
    result = await results.measured(bench, SHORTENED, small=False, limit_s=LIMIT_S)
    result = await results.ablated(bench, SHORTENED, result, limit_s=LIMIT_S)
    results.keep(results.FOLDER, result)
    return result


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
    ablations: Annotated[
        bool, typer.Option("--ablations", help="Run the shortened soak instead, and again with each planted leak.")
    ] = False,
    json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Run the whole application under a steady load, and look at what fills up."""
    if ablations:
        found = uvloop.run(shortened(seed))
        _show_shortened(found, json=json)
        raise typer.Exit(not found.holds)
    with running(own_directory("soak")) as addresses:
        load = msgspec.structs.replace(
            FULL, minutes=minutes, events=events, alerts=alerts, keys=keys, quiet_minutes=quiet
        )
        result = uvloop.run(soak(addresses.kafka, addresses.redis, load, seed, FOLDER / "full"))
    keep(results.FOLDER, result)
    if json:
        output.json_line(result)
    else:
        shown = {name: value for name, value in msgspec.to_builtins(result).items() if name not in HIDDEN}
        output.table(("figure", "value"), [(name, str(value)) for name, value in shown.items()])
    for failure in result.failures:
        output.error(failure)
    raise typer.Exit(bool(result.failures))


def _show_shortened(result: results.Result, *, json: bool) -> None:
    if json:
        output.json_line(result.as_row())
    else:
        noticed = {True: "yes", False: "NO"}
        rows = [(one.name, one.verdict, noticed[one.noticed], one.evidence) for one in result.ablations]
        output.table(("removed", "verdict", "noticed", "found"), [("nothing", result.verdict, "-", "-"), *rows])
    for complaint in result.complaints:
        output.error(complaint)


if __name__ == "__main__":
    typer.run(main)
