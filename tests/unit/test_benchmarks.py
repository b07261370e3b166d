"""What benchmarks claim: percentiles, lost and doubled decisions, and the plain counts that engines are held to."""

import asyncio
import os
import subprocess
import sys
from fractions import Fraction

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agents import app
from app.broker.memory import MemoryBroker
from app.core.clock import Clock, ManualClock, run_virtual
from app.core.codec import encode
from app.decisions.record import DECISIONS, HOPS, DecisionRecord, Hops
from app.streams.engine import Engine
from app.streams.outputs import topics_of
from app.streams.sql import jobs_of
from benchmarks import fraud_load
from benchmarks.common import percentiles
from benchmarks.e2e import DecisionLog
from benchmarks.engine import Load, counted, declared, record_of, written
from benchmarks.fraud_job import FRAUD_JOB, Sample, cpu_seconds, figures
from benchmarks.standstills import open_entries_of

START_MS = 1_800_000_000_000
NOTHING = msgspec.Raw(b"{}")


@given(st.lists(st.integers(0, 50), min_size=1, max_size=300))
def test_percentiles_are_the_smallest_values_that_enough_do_not_exceed(values: list[int]) -> None:
    """Nearest rank, counted out."""
    found = percentiles(values)
    assert max(values) == found["max"]
    for name, share in (("p50", "0.5"), ("p90", "0.9"), ("p99", "0.99"), ("p99.9", "0.999")):
        enough = [v for v in values if Fraction(sum(other <= v for other in values), len(values)) >= Fraction(share)]
        assert min(enough) == found[name]


def test_percentiles_of_a_hundred_are_the_numbers_themselves() -> None:
    """p50 of 1 to 100 is 50, p99 is 99; nothing has none."""
    assert {"p50": 50, "p90": 90, "p99": 99, "p99.9": 100, "max": 100} == percentiles(range(1, 101))
    assert {} == percentiles([])


def test_hops_are_moments_of_every_decision_one_after_another() -> None:
    """Each begins where the one before ends."""
    moments = [HOPS[0][1], *(end for _, _, end in HOPS)]
    assert list(Hops.__struct_fields__) == moments
    assert [start for _, start, _ in HOPS] == moments[:-1]


def decision(alert_id: str) -> bytes:
    record = DecisionRecord(
        agent="judge",
        alert_id=alert_id,
        alert_type="large",
        entity="u1",
        alert_topic="processed.alerts",
        alert_partition=0,
        alert_offset=0,
        origin="raw.orders/0/0",
        mode="live",
        decision=NOTHING,
        answered=NOTHING,
        policy=None,
        reasons=(),
        attempt=1,
        features=(),
        models=(),
        hops=Hops(0, 0, 0, 0, 0, 0),
        alert=NOTHING,
        writer="w",
        number=1,
        previous="",
    )
    return encode(record)


async def test_decision_log_lost_and_doubled_decisions_are_found() -> None:
    """Wherever they are; decisions of other runs are none of ours."""
    broker = MemoryBroker(ManualClock(START_MS))
    await broker.admin().create(app.topics.all())
    log = DecisionLog(broker, {"once", "twice", "never"})
    broker.append(DECISIONS, decision("once"), b"u1", 0, 0, ())
    broker.append(DECISIONS, decision("other"), b"u1", 0, 0, ())
    broker.append(DECISIONS, decision("twice"), b"u1", 1, 0, ())
    await log.read()
    assert ({"never"}, set()) == (log.missing(), log.doubled())
    broker.append(DECISIONS, decision("twice"), b"u1", 2, 0, ())
    await log.read()
    assert ({"never"}, {"twice"}) == (log.missing(), log.doubled())
    assert 3 == len(log.found)
    await log.close()


@pytest.mark.parametrize("once", [False, True])
def test_engine_benchmark_counts_what_the_engine_writes(once: bool) -> None:
    """Tiles, and rows of more than one closed window: the check of the benchmark holds, and sees what is missing."""
    load = Load("bench", 3_000, 40, START_MS, 1_200_000, once)
    topic, pipelines = declared(load.topic, once)

    async def main(clock: Clock) -> None:
        broker, stopping = MemoryBroker(ManualClock(START_MS + 10**9)), asyncio.Event()
        await broker.admin().create(topics_of([topic.source], pipelines))
        await broker.producer().send_many(load.topic, [record_of(order) for order in load.orders()])
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(Engine(broker, [topic.source], pipelines, clock, "bench").run(stopping))
            await asyncio.sleep(5)
            stopping.set()
        tiles, over = counted(load)
        assert len({start for _, start in over}) >= 3
        assert tiles == await written(broker, pipelines["tiles"].topic)
        rows = await written(broker, pipelines["rate"].topic)
        assert over == rows
        place = next(place for place, log in broker.logs.items() if place.topic == pipelines["rate"].topic and log)
        broker.logs[place].pop()
        assert over != await written(broker, pipelines["rate"].topic)

    run_virtual(main, START_MS)


def test_fraud_load_counts_what_the_engine_writes() -> None:
    """Every kind of alert, tiles of both views and rows, with repeats among the records; and what is missing is seen."""
    load, pipelines = fraud_load.Load(4_000, START_MS), jobs_of(app.pipelines)[FRAUD_JOB]
    sources = [app.sources[name] for name in FRAUD_JOB.split("+")]

    async def main(clock: Clock) -> None:
        broker, stopping = MemoryBroker(ManualClock(START_MS + 10**9)), asyncio.Event()
        await broker.admin().create(app.topics.all())
        ends = await fraud_load.publish(broker, load)
        assert sum(ends.values()) > load.events + 24, "heartbeats and repeats"
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(Engine(broker, sources, pipelines, clock, "bench").run(stopping))
            await asyncio.sleep(5)
            stopping.set()
        expected = fraud_load.counted(load)
        assert 20 <= sum(event.status == "cancelled" for event in load.unique()) <= 120, "which nothing counts"
        assert (0, 0) in expected.orders.values()
        rules = {"high_value_order", "order_burst", "failed_payments", "paid_other_amount"}
        assert rules == {alert_id.partition(":")[0] for alert_id in expected.alerts}
        assert expected == await fraud_load.written(broker)
        for topic, missing in (("processed.alerts", "alerts"), ("features.order_rate_5m", "rows")):
            place = next(place for place, log in broker.logs.items() if place.topic == topic and log)
            broker.logs[place].pop()
            assert getattr(expected, missing) != getattr(await fraud_load.written(broker), missing)

    run_virtual(main, START_MS)


def test_fraud_job_figures_begin_behind_the_warm_up() -> None:
    """With the first commit of a quarter; one commit of everything is no figure."""
    samples = [Sample(10.0, 0, 0.0), Sample(11.0, 900, 5.0), Sample(12.0, 1_000, 6.0), Sample(14.0, 4_000, 9.0)]
    found = figures(samples)
    assert (3_000, 2.0, 1_500, 1_000.0, 1.5) == tuple(found.values())
    with pytest.raises(ValueError, match="more --events"):
        figures([Sample(10.0, 0, 0.0), Sample(14.0, 4_000, 9.0)])


def test_cpu_seconds_are_those_of_a_process_and_its_children() -> None:
    """What a child burns is its parent's too; a process that has ended has none."""
    burn = "import time; [None for _ in iter(lambda: time.process_time() < 0.3, False)]; print(flush=True); input()"
    command = [sys.executable, "-c", f"import subprocess, sys; subprocess.run([sys.executable, '-c', {burn!r}])"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        tick = 1 / os.sysconf("SC_CLK_TCK")  # in which the kernel says them
        assert 0.3 - 2 * tick <= cpu_seconds(process.pid) < cpu_seconds(os.getpid())
        process.communicate(b"\n")
    assert 0.0 == cpu_seconds(process.pid)


def test_standstills_holds_three_entries_of_each_order() -> None:
    """Of the join, of the tiles and of the windows; none closes meanwhile."""
    assert 3_000 == open_entries_of(1_000)
