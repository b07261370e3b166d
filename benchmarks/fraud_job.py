"""What the whole fraud job (`raw.orders+raw.payments`) costs an event on either engine, and as PyFlink's tutorials write it:
`python -m benchmarks.fraud_job [--form asyncio|flink|tutorial|tutorial-thread]... [--events N] [--rounds N] [--json]`.

Each form gets servers of its own, with both topics filled before it starts, and is started as a user would: `app worker --only
streams`; `flink_jobs submit`; a PyFlink script (`fraud_tutorial.py`, whose Python runs in a process of its own, as by default, or in a
thread of the task manager). All have parallelism 1. How far a form is, the source offsets say that it commits about once a second; a figure
begins with the first commit of a quarter of all records, when what Java compiles is compiled, and ends with the commit of the last one.
CPU is that of the worker, or of the task manager and its Python processes; Kafka and the job manager run beside it. Flink's tasks
have 3 GB of heap for their state (`FLINK_HEAP_MB`). Before a figure counts, alerts, tiles and rows are compared with a plain count of the
same events.
"""

import asyncio
import os
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import typer
import uvloop
from msgspec.structs import replace

from agents import app
from app.application import FLINK_GROUP, STREAMS_GROUP
from app.broker.base import Broker
from app.core.clock import SystemClock
from app.core.record import TopicPartition
from app.local import services
from app.local.flink import ask
from app.local.services import FLINK_SERVICES, Addresses
from benchmarks import common
from benchmarks.fraud_load import ALERTS, VIEWS, WINDOW_MS, Load, counted, publish, written
from flink_jobs.child import LOG, prepare
from flink_jobs.cluster import root_cause

TUTORIAL = str(Path(__file__).with_name("fraud_tutorial.py"))
PREFIX = "tutorial."
"""Of the topics that the tutorial's form writes."""

BEGUN_MS = 3_600_000
"""So long before now the events begin, so that the heartbeats behind them are no future."""

FRAUD_JOB = "raw.orders+raw.payments"
"""The topics that the fraud streams read: the name of their job on Flink."""

HEAP_MB = "3072"

WARM_SHARE = 4
"""One in so many records is read before a figure begins."""

LOOK_S = 0.2
STUCK_S = 180.0
END_S = 60


class Form(StrEnum):
    """How the job is written and run."""

    ASYNCIO = "asyncio"
    FLINK = "flink"
    TUTORIAL = "tutorial"
    TUTORIAL_THREAD = "tutorial-thread"

    @property
    def group(self) -> str:
        """Under which it commits."""
        return {Form.ASYNCIO: STREAMS_GROUP, Form.FLINK: f"{FLINK_GROUP}.{FRAUD_JOB}.1"}.get(self, "tutorial")

    @property
    def is_tutorial(self) -> bool:
        return self in (Form.TUTORIAL, Form.TUTORIAL_THREAD)


@contextmanager
def started(form: Form, addresses: Addresses) -> Iterator[int]:
    """The form while it runs, and the process whose CPU counts, with its children."""
    if form is Form.ASYNCIO:
        command = [sys.executable, "-m", "app", "worker", "--only", "streams"]
        process = subprocess.Popen(command, env=common.variables(addresses))
        try:
            yield process.pid
        finally:
            process.terminate()
            code = process.wait(END_S)
        if code != 0:
            raise RuntimeError(f"the worker ended with {code}")
        return
    if form is Form.FLINK:
        common.submit(addresses, FRAUD_JOB)
    else:
        submit_tutorial(addresses, "thread" if form is Form.TUTORIAL_THREAD else "process")
    (pid,) = (each.pid for each in services.status(common.directory()) if each.name == FLINK_SERVICES[1])
    assert pid is not None
    try:
        yield pid
    finally:
        for child in family(pid)[1:]:  # they would outlive it
            os.kill(child, signal.SIGKILL)


def submit_tutorial(addresses: Addresses, mode: str) -> None:
    """As one starts a PyFlink script; ends the benchmark when it fails."""
    prepared = prepare()
    try:
        (jar,) = Path(prepared.environment["FLINK_HOME"]).glob("opt/flink-python-*.jar")
        host, _, port = addresses.flink.partition("//")[2].partition(":")
        kafka = addresses.kafka.partition("://")[2]
        command = [prepared.python, TUTORIAL, kafka, host, port, mode, str(jar)]
        done = subprocess.run(command, env=prepared.environment, stdout=prepared.log, stderr=prepared.log, check=False)
    finally:
        prepared.remove()
    if done.returncode:
        raise SystemExit(f"error: {TUTORIAL}: PyFlink did not take it; see {LOG}")


def failures_at(flink: str) -> str:
    """Why the jobs of a cluster have failed, behind a colon; nothing where none has."""
    overview = ask(flink, "/jobs/overview") if flink else None
    found = [ask(flink, f"/jobs/{job['jid']}/exceptions") for job in (overview or {}).get("jobs", ())]
    return "".join(f": {root_cause(each['root-exception'])}" for each in found if each and each.get("root-exception"))


class Sample(NamedTuple):
    """How many records are committed at a moment, and the CPU seconds until then."""

    at_s: float
    done: int
    cpu_s: float


async def drained(broker: Broker, group: str, ends: Mapping[TopicPartition, int], pid: int) -> list[Sample]:
    """A sample at each commit, until everything is. Raises: TimeoutError when nothing moves for `STUCK_S`."""
    admin, samples = broker.admin(), [Sample(time.monotonic(), 0, 0.0)]
    total, topics = sum(ends.values()), sorted({place.topic for place in ends})
    while samples[-1].done < total:
        if time.monotonic() - samples[-1].at_s > STUCK_S:
            raise TimeoutError(
                f"{samples[-1].done:,} of {total:,} records are committed, none more for {STUCK_S:.0f} s"
            )
        committed = await admin.group_offsets(group, topics)
        done = sum(min(committed[place].offset, end) for place, end in ends.items() if place in committed)
        if done > samples[-1].done:
            samples.append(Sample(time.monotonic(), done, cpu_seconds(pid)))
        await asyncio.sleep(LOOK_S)
    await admin.close()
    return samples


def figures(samples: list[Sample]) -> dict[str, Any]:
    """What lies behind the warm-up. Raises: ValueError when nothing does."""
    last = samples[-1]
    first = next(sample for sample in samples if sample.done * WARM_SHARE >= last.done)
    if first.done == last.done:
        raise ValueError("one commit took everything; take more --events")
    records, seconds, cpu_s = last.done - first.done, last.at_s - first.at_s, last.cpu_s - first.cpu_s
    return {
        "records": records,
        "seconds": round(seconds, 2),
        "events_per_s": round(records / seconds),
        "cpu_us_per_event": round(cpu_s / records * 1e6, 3),
        "cores": round(cpu_s / seconds, 2),
    }


def cpu_seconds(root: int) -> float:
    """Of a process and all its descendants that run."""
    return sum(_ticks(pid) for pid in family(root)) / os.sysconf("SC_CLK_TCK")


def family(root: int) -> list[int]:
    """A process and all its descendants that run."""
    children: dict[int, list[int]] = {}
    for file in Path("/proc").glob("[0-9]*/stat"):
        if words := _stat(file):
            children.setdefault(int(words[1]), []).append(int(file.parent.name))
    found = [root]
    for pid in found:
        found += children.get(pid, [])
    return found


def _ticks(pid: int) -> int:
    words = _stat(Path(f"/proc/{pid}/stat"))
    return int(words[11]) + int(words[12]) if words else 0


def _stat(file: Path) -> list[str]:
    """What Linux says of a process behind its name; nothing of one that has ended."""
    try:
        return file.read_text().rpartition(")")[2].split()
    except OSError:
        return []


async def measure(form: Form, addresses: Addresses, load: Load) -> dict[str, Any]:
    """Raises: AssertionError when the outputs are not those of a plain count."""
    broker = common.broker_at(addresses.kafka)
    admin = broker.admin()
    plain = [
        app.topics.named(name) for name in (ALERTS, *VIEWS)
    ]  # the tutorial's records have no keys, which compacted topics want
    plain = [replace(spec, name=f"{PREFIX}{spec.name}", cleanup="delete") for spec in plain]
    await admin.create([*app.topics.all(), *plain])
    await admin.close()
    common.say(f"{form}: publishing {load.events:,} events")
    ends = await publish(broker, load)
    common.say(f"{form}: reading them")
    with started(form, addresses) as pid:
        try:
            found = figures(await drained(broker, form.group, ends, pid))
        except (TimeoutError, ValueError) as error:
            raise SystemExit(f"error: {form}: {error}{failures_at(addresses.flink)}") from None
    common.say(f"{form}: checking alerts, tiles and rows")
    results, expected = await written(broker, PREFIX if form.is_tutorial else ""), counted(load)
    await broker.close()
    for name, ours, counts in zip(results._fields, results, expected, strict=True):
        assert ours == counts, f"{form}: {name} are not those of a plain count"
    return {**found, **results.counts()}


def summary(rounds: list[dict[str, Any]], name: str) -> dict[str, float]:
    values = [found[name] for found in rounds]
    return {"median": statistics.median(values), "least": min(values), "most": max(values)}


def main(
    form: Annotated[list[Form] | None, typer.Option(help="May be given again.  [default: all]")] = None,
    events: Annotated[int, typer.Option(help="How many events to read.")] = 2_000_000,
    tutorial_events: Annotated[int, typer.Option(help="The same for the tutorial's form.")] = 40_000,
    rounds: Annotated[int, typer.Option(help="How often each form runs; they take turns.")] = 3,
    json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Measure the events a second, and the CPU an event, of the whole fraud job."""
    os.environ.setdefault("FLINK_HEAP_MB", HEAP_MB)
    runs: dict[Form, list[dict[str, Any]]] = {each: [] for each in form or Form}
    for _ in range(rounds):
        for each, found in runs.items():
            start_ms = SystemClock().now_ms() - BEGUN_MS
            load = Load(tutorial_events if each.is_tutorial else events, start_ms - start_ms % WINDOW_MS)
            needed = ["kafka"] if each is Form.ASYNCIO else ["kafka", *FLINK_SERVICES]
            with common.servers(None, None, needed) as addresses:
                found.append({"events": load.events, **uvloop.run(measure(each, addresses, load))})
            common.say(f"{each}: {found[-1]}")
    shown = {
        each: {name: summary(found, name) for name in ("events_per_s", "cpu_us_per_event")}
        for each, found in runs.items()
    }
    path = common.finished("fraud_job", {"forms": shown, "rounds": runs}, json)
    if not path:
        return
    for each, figure in shown.items():
        rate, cpu = figure["events_per_s"], figure["cpu_us_per_event"]
        typer.echo(
            f"{each:16} {rate['median']:9,.0f} events/s ({rate['least']:,.0f} to {rate['most']:,.0f}), "
            f"{cpu['median']:8.2f} us of CPU an event ({cpu['least']:.2f} to {cpu['most']:.2f})"
        )
    typer.echo(f"kept in {path}")


if __name__ == "__main__":
    typer.run(main)
