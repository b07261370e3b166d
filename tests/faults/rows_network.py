"""The network between the workers and Kafka fails, in each of its ways, and heals again."""

import asyncio
import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from itertools import count
from pathlib import Path

from tests.faults.application import PARTITIONS
from tests.faults.checker import check
from tests.faults.frames import OFFSET_COMMIT, PRODUCE, LostCalls, NamesNoBrokers
from tests.faults.proxy import TcpProxy
from tests.faults.rows import QUICK, Ablation, Bench, Outcome, Row, Size
from tests.faults.run import LAG_LIMIT_S, Run
from tests.faults.workers import POLL_S, Worker, Workers

RESET_EVERY_S = 0.4
QUIET_AFTER_S = 2.0
"""So long after a black hole began the workers have done what they could; from then on their processor time counts."""

BUSY_SHARE = 0.2
"""Of one core, for each worker: more is a busy loop."""


def black_hole(proxy: TcpProxy) -> None:
    proxy.black_hole = True


def latency(proxy: TcpProxy) -> None:
    proxy.latency_s = 3.0


def slices(proxy: TcpProxy) -> None:
    proxy.slice_bytes = 1


FAULTS: Mapping[str, Callable[[TcpProxy], object]] = {
    "resets": TcpProxy.reset,
    "black hole": black_hole,
    "3 s latency": latency,
    "1-byte slices": slices,
    "commits lost": lambda proxy: proxy.meddle(partial(LostCalls, {OFFSET_COMMIT}, count())),
    "writes lost": lambda proxy: proxy.meddle(partial(LostCalls, {PRODUCE}, count())),
    "no brokers named": lambda proxy: proxy.meddle(NamesNoBrokers),
}
"""Of the calls that are lost some are executed, and only their replies lost: see `frames`."""

RESETTING = ("resets", "no brokers named")
"""Faults in which connections break again and again."""


async def network(bench: Bench, size: Size, ablate: Sequence[str]) -> Outcome:
    """size: faults; alerts and seconds of each; settle_s; workers."""
    proxy, settle_s = bench.cluster.kafka_proxy, size.get("settle_s", LAG_LIMIT_S)
    recovery_s: dict[str, float | None] = {}
    busy: dict[str, float] = {}
    failures: list[str] = []
    async with bench.run("network", QUICK, environment={"HEADRACE_BROKER": bench.cluster.kafka_proxied}) as run:
        workers = run.workers
        try:
            await workers.at_work(*(workers.start(ablate=ablate) for _ in range(size.get("workers", 2))))
            for name in size["faults"]:
                await run.publish(size["alerts"] // 2)
                workers.note(name, "network")
                busy[name] = await _broken(run, proxy, name, size)
                proxy.heal()
                workers.note("healed", "network", breaks=False)
                recovery_s[name] = await _recovery(run, settle_s)
                if recovery_s[name] is None:
                    failures.append(f"{name}: lag not 0 {settle_s} s later")
                if not await _shared_out(workers, settle_s):
                    failures.append(f"{name}: a worker has no part in the work {settle_s} s later")
                bench.say(f"{name}: lag 0 after {recovery_s[name]} s, {busy[name]:.2f} of a core")
        finally:
            proxy.heal()
        codes = await workers.stop()
        verdict = check(await run.finish())
    failures += [f"a worker ended with {code}" for code in codes if code != 0]
    if busy.get("black hole", 0) > BUSY_SHARE:
        failures.append(f"a worker was busy in the black hole: {busy['black hole']:.2f} of a core")
    verdict.recovery_s = max((seconds for seconds in recovery_s.values() if seconds is not None), default=None)
    return Outcome(verdict, failures, {"recovery_s_of_each": recovery_s, "core_share_of_each": busy})


async def _broken(run: Run, proxy: TcpProxy, name: str, size: Size) -> float:
    """The fault, for its time; returns the share of a core that the busiest worker has used in it."""
    loop = asyncio.get_running_loop()
    end = loop.time() + size["seconds"]
    FAULTS[name](proxy)
    await run.publish(size["alerts"] - size["alerts"] // 2)
    await asyncio.sleep(min(QUIET_AFTER_S, size["seconds"] / 2))
    began, before = loop.time(), {worker: cpu_seconds(worker) for worker in run.workers.alive}
    while loop.time() < end:
        if name in RESETTING:
            proxy.reset()
        await asyncio.sleep(min(RESET_EVERY_S, max(0.0, end - loop.time())))
    passed_s = loop.time() - began
    return round(max((cpu_seconds(worker) - used) / passed_s for worker, used in before.items()), 3)


async def _recovery(run: Run, settle_s: float) -> float | None:
    """Seconds until everything was committed; None where it was not, within the time."""
    loop = asyncio.get_running_loop()
    began = loop.time()
    return round(loop.time() - began, 1) if await run.settled(settle_s) else None


async def _shared_out(workers: Workers, settle_s: float) -> bool:
    """Whether, within that time, each worker holds partitions, and each partition one of them, as they say themselves."""
    with suppress(TimeoutError):
        async with asyncio.timeout(settle_s):
            while True:
                held = [owned for owned in workers.owned() if not owned.end_ms]
                if len(held) == PARTITIONS and {owned.worker for owned in held} == {one.name for one in workers.alive}:
                    return True
                await asyncio.sleep(POLL_S)
    return False


def cpu_seconds(worker: Worker) -> float:
    """Processor time that a living process has used."""
    fields = Path(f"/proc/{worker.pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


ROWS = (
    Row(
        "network",
        "Connections to Kafka may break, stall, crawl, lose calls and the replies to calls that were executed, or say that the "
        "cluster has no brokers: the same zeros, no busy loop, and lag 0 within 60 s after the network is back, with every "
        "worker at work.",
        network,
        full={"faults": tuple(FAULTS), "alerts": 600, "seconds": 20.0},
        small={"faults": ("black hole", "commits lost"), "alerts": 120, "seconds": 5.0},
        ablations=(
            Ablation(
                "commits_without_an_answer_are_done",
                {"faults": ("commits lost",), "alerts": 120, "seconds": 6.0, "settle_s": 8},
                ("commits lost: lag not 0",),
            ),
            Ablation(
                "writes_without_an_answer_are_done",
                {"faults": ("writes lost",), "alerts": 120, "seconds": 6.0, "settle_s": 15},
                ("early_commits", "lost"),
            ),
            Ablation(
                "lost_clients_are_left_alone",
                {"faults": ("no brokers named",), "alerts": 120, "seconds": 10.0, "settle_s": 25, "workers": 5},
                ("has no part",),
            ),
            Ablation("polls_without_waiting", {"faults": ("black hole",), "alerts": 60, "seconds": 5.0}, ("was busy",)),
        ),
    ),
)
