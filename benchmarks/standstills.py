"""How long the garbage collector stops a process that holds many open entries: `python -m benchmarks.standstills [--orders N] [--json]`.

Orders, each of a user and an order of its own, go through the streams of fraud in memory, so that each leaves an entry of the join, a
tile and a window open. Twice, each time in a process of its own: with Python's collector as it comes, and as workers run it
(`app/core/garbage.py`). Said are the number of looks, the longest one and their sum while the entries were made, and one full look
at the end, which a worker never makes.
"""

import gc
import subprocess
import sys
import time
from typing import Annotated, Any

import msgspec
import typer

from app.core.clock import SystemClock
from app.core.codec import encode
from app.core.garbage import exempt_what_lasts
from app.core.record import Record, TopicPartition
from app.streams.compiled import load_topic
from benchmarks import common
from benchmarks.engine import Order, record_of
from features import fraud, fraud_patterns
from features.records import order_events

COLLECTORS = ("as it comes", "of workers")

BATCH_RECORDS = 500
SPAN_MS = 25_000
"""Within one tile, so that nothing closes."""


def measured(collector: str, orders: int) -> dict[str, Any]:
    """One of COLLECTORS: looks while that many orders are processed, by generation, and a full one after it. Times in ms."""
    if collector == "of workers":
        exempt_what_lasts()
    looks: dict[int, list[float]] = {}
    begun_s = 0.0

    def watch(phase: str, about: dict[str, Any]) -> None:
        nonlocal begun_s
        if phase == "start":
            begun_s = time.perf_counter()
        else:
            looks.setdefault(about["generation"], []).append((time.perf_counter() - begun_s) * 1000)

    gc.callbacks.append(watch)
    entries = open_entries_of(orders)
    by_generation = {
        str(generation): {"looks": len(ms), "longest_ms": round(max(ms), 1), "sum_ms": round(sum(ms))}
        for generation, ms in sorted(looks.items())
    }
    begun = time.perf_counter()
    gc.collect()
    return {
        "entries": entries,
        "longest_ms": max(each["longest_ms"] for each in by_generation.values()),
        "by_generation": by_generation,
        "full_ms": round((time.perf_counter() - begun) * 1000, 1),
    }


def open_entries_of(orders: int) -> int:
    """Open entries when so many orders have been processed."""
    topic = load_topic(
        order_events.source,
        {
            "user_features": fraud.user_features,
            "order_rate": fraud.order_rate,
            "other_amounts": fraud_patterns.other_amounts,
        },
    )
    state = topic.new_state(TopicPartition(order_events.source.spec.name, 0))
    now_ms = SystemClock().now_ms()
    start_ms = now_ms - now_ms % 300_000
    for first in range(0, orders, BATCH_RECORDS):
        records = []
        for number in range(first, min(first + BATCH_RECORDS, orders)):
            order = Order(number, f"u-{number}", 1_999, start_ms + number * SPAN_MS // orders)
            value, key, time_ms = record_of(order)
            records.append(Record(state.place.topic, 0, number, time_ms, key, value))
        topic.process(records, state, now_ms)
        for table in state.tables.values():
            table.changes()
    assert not state.rejected, state.rejected[0]
    return sum(len(table) for table in state.tables.values())


def main(
    orders: Annotated[int, typer.Option(help="How many are open at the end; three entries each.")] = 2_000_000,
    json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
    collector: Annotated[str, typer.Option(hidden=True)] = "",
) -> None:
    """Measure how long the garbage collector stops a worker with many open entries."""
    if collector:
        typer.echo(encode(measured(collector, orders)).decode())
        return
    result: dict[str, Any] = {"orders": orders}
    for each in COLLECTORS:
        common.say(f"{orders:,} orders, the collector {each}")
        command = [sys.executable, "-m", "benchmarks.standstills", "--collector", each, "--orders", str(orders)]
        done = subprocess.run(command, stdout=subprocess.PIPE, check=True)
        result[each] = msgspec.json.decode(done.stdout)
    path = common.finished("standstills", result, json)
    if not path:
        return
    for each in COLLECTORS:
        found = result[each]
        typer.echo(
            f"the collector {each}: longest look {found['longest_ms']} ms, a full one {found['full_ms']} ms, "
            f"with {found['entries']:,} open entries"
        )
    typer.echo(f"kept in {path}")


if __name__ == "__main__":
    typer.run(main)
