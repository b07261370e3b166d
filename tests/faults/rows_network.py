"""The network between the workers and Kafka fails, in each of its ways, and heals again, while all parts run."""

import asyncio
import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import NamedTuple

from app.decisions.record import DECISIONS
from app.serving.redis import RedisStore
from tests.faults.application import PARTITIONS
from tests.faults.frames import OFFSET_COMMIT, PRODUCE, LostCalls, NamesNoBrokers, Tally
from tests.faults.judging import judged
from tests.faults.orders import TOPIC, Orders, source_records
from tests.faults.proxy import TcpProxy
from tests.faults.rows import QUICK, Ablation, Bench, Outcome, Row, Size
from tests.faults.run import LAG_LIMIT_S, Run
from tests.faults.served import VIEW, judged_store, store_at
from tests.faults.streams import Group
from tests.faults.workers import POLL_S, Worker, Workers
from tests.reference import read_all

RESET_EVERY_S = 0.4
QUIET_AFTER_S = 2.0
"""So long after a black hole began the workers have done what they could; from then on their processor time counts."""

BUSY_SHARE, IDLE_SHARE = 0.5, 0.2
"""Of one core, for each worker: more is a busy loop. The second where nothing arrives and nothing can be done. Polls that do
not wait took 0.5 to 1 there, by what else the machine did; the other faults, in which work goes on, or connections begin anew
all the time, up to 0.42."""

IDLE = ("black hole",)


def black_hole(proxy: TcpProxy) -> None:
    proxy.black_hole = True


def latency(proxy: TcpProxy) -> None:
    proxy.latency_s = 3.0


def slices(proxy: TcpProxy) -> None:
    proxy.slice_bytes = 1


def loses(*kinds: int) -> Callable[[TcpProxy, Tally], object]:
    return lambda proxy, tally: proxy.meddle(partial(LostCalls, set(kinds), tally))


PLAIN: Mapping[str, Callable[[TcpProxy], object]] = {
    "resets": TcpProxy.reset,
    "black hole": black_hole,
    "3 s latency": latency,
    "1-byte slices": slices,
}
MEDDLING: Mapping[str, Callable[[TcpProxy, Tally], object]] = {
    "commits lost": loses(OFFSET_COMMIT),
    "writes lost": loses(PRODUCE),
    "no brokers named": lambda proxy, tally: proxy.meddle(partial(NamesNoBrokers, tally)),
}
"""Of the calls that are lost some are executed, and only their replies lost: see `frames`."""

FAULTS = (*PLAIN, *MEDDLING)

EVIDENCE = {
    "resets": "connections",
    "black hole": "lost_bytes",
    "3 s latency": "forwarded_bytes",
    "1-byte slices": "forwarded_bytes",
}
"""What of the proxy grows when a plain fault meets somebody."""

RESETTING = ("resets", "no brokers named")
"""Faults in which connections break again and again."""


async def network(bench: Bench, size: Size, ablate: Sequence[str]) -> Outcome:
    """size: faults; alerts and seconds of each; settle_s; workers."""
    proxy, settle_s = bench.cluster.kafka_proxy, size.get("settle_s", LAG_LIMIT_S)
    recovered: dict[str, Recovered] = {}
    busy: dict[str, float] = {}
    failures: list[str] = []
    environment = {"HEADRACE_BROKER": bench.cluster.kafka_proxied}
    async with (
        store_at(bench.cluster.redis) as store,
        bench.run("network", QUICK, arguments=(), environment=environment) as run,
    ):
        workers, orders = run.workers, Orders(run.name, bench.cluster.broker, run.chance)
        try:
            await workers.at_work(*(workers.start(ablate=ablate) for _ in range(size.get("workers", 2))))
            for name in size["faults"]:
                tally, before = Tally(), _met(proxy, name)
                async with orders.flowing():
                    await run.publish(size["alerts"] // 2)
                    workers.note(name, "network")
                    busy[name] = await _broken(run, proxy, name, size, tally)
                    tally.changed += _met(proxy, name) - before
                    proxy.heal()
                    workers.note("healed", "network", breaks=False)
                found, wrong = await _recovery(run, store, settle_s)
                recovered[name] = found
                wrong += _wrong(name, busy[name], tally, found, settle_s)
                failures += [f"{name}: {text}" for text in wrong]
                bench.say(f"{name}: {found}, {busy[name]:.2f} of a core")
        finally:
            proxy.heal()
        verdict, _, wrong = await judged(run, settle_s)
    figures = {
        "slowest_recovery_s": max((one.lag_0_s for one in recovered.values() if one.lag_0_s is not None), default=None),
        "orders": orders.published,
        "all_at_work_s": max((one.at_work_s for one in recovered.values() if one.at_work_s is not None), default=None),
        "recovery_of_each": {name: one._asdict() for name, one in recovered.items()},
        "core_share_of_each": busy,
    }
    return Outcome(verdict, failures + wrong, figures)


class Recovered(NamedTuple):
    """Seconds after the network was back until everything was committed and in the store, and until every worker had its part
    in the work too; None for never within the time."""

    lag_0_s: float | None
    at_work_s: float | None


def _wrong(name: str, busy: float, tally: Tally, recovered: Recovered, settle_s: float) -> list[str]:
    found = []
    if recovered.lag_0_s is None:
        found.append(f"lag not 0 {settle_s} s later")
    if recovered.at_work_s is None:
        found.append(f"a worker has no part in the work {settle_s} s later")
    if busy > (IDLE_SHARE if name in IDLE else BUSY_SHARE):
        found.append(f"a worker was busy: {busy:.2f} of a core")
    if not tally.changed:
        found.append("nobody was met by it, so this run shows nothing")
    return found + [f"replies of metadata {version} cannot be read" for version in sorted(tally.unknown)]


def _met(proxy: TcpProxy, name: str) -> int:
    return int(getattr(proxy, EVIDENCE[name])) if name in EVIDENCE else 0


async def _broken(run: Run, proxy: TcpProxy, name: str, size: Size, tally: Tally) -> float:
    """The fault, for its time; returns the share of a core that the busiest worker has used in it."""
    loop = asyncio.get_running_loop()
    end = loop.time() + size["seconds"]
    if name in MEDDLING:
        MEDDLING[name](proxy, tally)
    else:
        PLAIN[name](proxy)
    await run.publish(size["alerts"] - size["alerts"] // 2)
    await asyncio.sleep(min(QUIET_AFTER_S, size["seconds"] / 2))
    began, before = loop.time(), {worker: cpu_seconds(worker) for worker in run.workers.alive}
    while loop.time() < end:
        if name in RESETTING:
            proxy.reset()
        await asyncio.sleep(min(RESET_EVERY_S, max(0.0, end - loop.time())))
    passed_s = loop.time() - began
    used_s = [cpu_seconds(worker) - used for worker, used in before.items() if worker.code is None]
    return round(max(used_s, default=0.0) / passed_s, 3)


async def _recovery(run: Run, store: RedisStore, settle_s: float) -> tuple[Recovered, list[str]]:
    """One time for all of it; and what is wrong with the store then."""
    loop = asyncio.get_running_loop()
    began, broker, group = loop.time(), run.cluster.broker, Group(run.cluster.kafka)
    reading, reader = read_all(await source_records(broker)), broker.reader()
    is_read = await group.passes(reading.events, settle_s)
    await run.adopt_alerts(0)
    is_settled = await run.settled(began + settle_s - loop.time())
    wrong = await judged_store(reading, store, reader, began + settle_s - loop.time())
    lag_0_s = round(loop.time() - began, 1) if is_read and is_settled else None
    is_shared_out = await _shared_out(run.workers, began + settle_s)
    await reader.close()
    await asyncio.to_thread(group.close)
    return Recovered(lag_0_s, round(loop.time() - began, 1) if is_shared_out else None), wrong


async def _shared_out(workers: Workers, deadline: float) -> bool:
    """Until every worker has its part in the work, or then; whether it has."""
    with suppress(TimeoutError):
        async with asyncio.timeout_at(deadline):
            while not _is_shared_out(workers):
                await asyncio.sleep(POLL_S)
            return True
    return False


def _is_shared_out(workers: Workers) -> bool:
    """Whether each worker holds partitions of the alerts, and each partition one of them, as they say themselves; and the same of
    decisions, orders and tiles, each of which is taken to be the last worker's that was given it."""
    alive = {one.name for one in workers.alive}
    of_alerts = [one for one in workers.owned() if not one.end_ms]
    given, _ = workers.grips()
    last = {(one.topic, one.partition): one.worker for one in sorted(given, key=lambda one: one.at_ms)}
    return (
        len(of_alerts) == PARTITIONS
        and {one.worker for one in of_alerts} == alive
        and all(
            {last.get((topic, partition)) for partition in range(PARTITIONS)} == alive
            for topic in (DECISIONS, TOPIC, VIEW.topic)
        )
    )


def cpu_seconds(worker: Worker) -> float:
    """Processor time that a living process has used."""
    fields = Path(f"/proc/{worker.pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


ROWS = (
    Row(
        "network",
        "Connections to Kafka may break, stall, crawl, lose calls and the replies to calls that were executed, or say that the "
        "cluster has no brokers: the same zeros, no busy loop in any of these, and within 60 s after the network is back lag 0, "
        "every feature right and every worker at work in every part.",
        network,
        full={"faults": FAULTS, "alerts": 600, "seconds": 20.0},
        small={"faults": ("black hole", "commits lost"), "alerts": 120, "seconds": 4.0},
        ablations=(
            Ablation(
                "commits_without_an_answer_are_done",
                {"faults": ("commits lost",), "alerts": 120, "seconds": 6.0, "settle_s": 8},
                ("commits lost: lag not 0",),
                needs_control=True,
            ),
            Ablation(
                "writes_without_an_answer_are_done",
                {"faults": ("writes lost",), "alerts": 120, "seconds": 6.0, "settle_s": 15},
                ("early_commits", "lost"),
            ),
            Ablation(
                "lost_clients_are_left_alone",
                {"faults": ("no brokers named",), "alerts": 120, "seconds": 10.0, "settle_s": 40, "workers": 5},
                ("has no part",),
                needs_control=True,
            ),
            Ablation("polls_without_waiting", {"faults": ("black hole",), "alerts": 60, "seconds": 5.0}, ("was busy",)),
        ),
    ),
)
