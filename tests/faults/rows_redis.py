"""The feature store fails in each of its ways, while streams, features, agents and actions all run."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import NamedTuple

import msgspec
from redis.asyncio import Redis

from app.core.clock import SystemClock
from app.decisions.record import DECISIONS, DecisionRecord
from tests.faults.cluster import Cluster
from tests.faults.judging import judged
from tests.faults.orders import DEADLINE_MS, SPARE_MS, Blind, Orders, action_of, source_records, wrong_decisions
from tests.faults.rows import QUICK, Ablation, Bench, Outcome, Row, Size
from tests.faults.served import LOOK_S, store_at, wrong_features
from tests.reference import read_all

RIGHT_AGAIN_S = 30.0
WITHOUT_FEATURES = ("deadline", "unavailable")
"""Why alerts fall back whose features had no answer in time."""
DECIDES_WITHIN_S = (DEADLINE_MS + SPARE_MS) / 1000
"""In a fault that lasts longer something that was ordered in it must be decided in it. A store that says nothing costs half of
a deadline."""

DEAD_PORT = 1

SNAPSHOT = """
local found = {}
for _, key in ipairs(redis.call('KEYS', '*')) do
  found[#found + 1] = {key, redis.call('DUMP', key), redis.call('PTTL', key)}
end
return found
"""


class Bed(NamedTuple):
    """What a fault is done to."""

    cluster: Cluster
    redis: Redis


@asynccontextmanager
async def killed(bed: Bed) -> AsyncIterator[None]:
    """And started again with nothing: it keeps nothing on disk."""
    await bed.cluster.kill("redis")
    yield
    await bed.cluster.restart("redis")
    await bed.redis.connection_pool.disconnect()


@asynccontextmanager
async def emptied(bed: Bed) -> AsyncIterator[None]:
    await bed.redis.flushall()
    yield


@asynccontextmanager
async def set_back(bed: Bed) -> AsyncIterator[None]:
    """To what it held a second ago."""
    held = await bed.redis.eval(SNAPSHOT, 0)
    await asyncio.sleep(1)
    async with bed.redis.pipeline(transaction=True) as steps:
        steps.flushall()
        for key, content, ttl_ms in held:
            steps.restore(key, max(ttl_ms, 0), content)
        await steps.execute()
    yield


@asynccontextmanager
async def out_of_memory(bed: Bed) -> AsyncIterator[None]:
    await bed.redis.config_set("maxmemory", 1)
    yield
    await bed.redis.config_set("maxmemory", 0)


@asynccontextmanager
async def read_only(bed: Bed) -> AsyncIterator[None]:
    """A replica of a server that is not there."""
    await bed.redis.replicaof("127.0.0.1", DEAD_PORT)
    yield
    await bed.redis.replicaof("NO", "ONE")


@asynccontextmanager
async def slow(bed: Bed) -> AsyncIterator[None]:
    bed.cluster.redis_proxy.latency_s = 1.0
    yield


@asynccontextmanager
async def replies_dropped(bed: Bed) -> AsyncIterator[None]:
    bed.cluster.redis_proxy.drop_replies = True
    yield


FAULTS: Mapping[str, tuple[Callable[[Bed], AbstractAsyncContextManager[None]], bool]] = {
    "killed": (killed, True),
    "emptied": (emptied, False),
    "set back one second": (set_back, False),
    "out of memory": (out_of_memory, True),
    "read-only": (read_only, True),
    "2 s slow": (slow, False),
    "replies dropped": (replies_dropped, True),
}
"""And whether nobody can know an event's features as long as the fault lasts."""


async def redis(bench: Bench, size: Size, ablate: Sequence[str]) -> Outcome:
    """size: faults; seconds of each, and between them; settle_s."""
    cluster, clock = bench.cluster, SystemClock()
    bed = Bed(cluster, Redis.from_url(cluster.redis))
    await bed.redis.flushall()  # what a run without safeguards has left behind would be as wrong as it was
    times: list[Blind] = []
    right_s: dict[str, float | None] = {}
    async with bench.run(
        "redis",
        QUICK,
        answers=("approve:0.8", "block:0.15"),
        arguments=(),
        environment={"HEADRACE_STORE": cluster.redis_proxied},
    ) as run:
        orders = Orders(run.name, cluster.broker, run.chance)
        await run.workers.at_work(*(run.workers.start(ablate=ablate) for _ in range(2)))
        try:
            for name in size["faults"]:
                async with orders.flowing():
                    await asyncio.sleep(size["between_s"])
                    start_ms = clock.now_ms()
                    run.workers.note(name, "redis", breaks=False)
                    make, _ = FAULTS[name]
                    async with make(bed):
                        await asyncio.sleep(size["seconds"])
                        times.append(Blind(name, start_ms, clock.now_ms()))
                    cluster.redis_proxy.heal()
                    run.workers.note("healed", "redis", breaks=False)
                right_s[name] = await _right_again(cluster, size.get("right_s", RIGHT_AGAIN_S))
                bench.say(f"{name}: features right after {right_s[name]} s")
        finally:
            cluster.redis_proxy.heal()
            await bed.redis.aclose()
        await run.adopt_alerts(orders.alerts)
        verdict, _, failures = await judged(run, causes=WITHOUT_FEATURES)
        decisions = [msgspec.json.decode(one.value or b"", type=DecisionRecord) for one in await run.read(DECISIONS)]
    failures += [f"{name}: features not right again by themselves" for name, took in right_s.items() if took is None]
    blind = [one for one in times if FAULTS[one.fault][1]]
    failures += wrong_decisions(decisions, await source_records(cluster.broker), blind)
    meanwhile = {one.fault: sum(one.holds(decision) for decision in decisions) for one in times}
    if size["seconds"] >= DECIDES_WITHIN_S:
        failures += [f"{name}: nothing was decided" for name, number in meanwhile.items() if not number]
    approved = sum(action_of(decision) == "approve" for decision in decisions)
    if not approved:
        failures.append("nothing was approved at all, so this run shows nothing")
    if len(run.published) < orders.alerts:
        failures.append(f"{len(run.published)} alerts of {orders.alerts} orders above the limit")
    codes_of = Counter(code for one in decisions for code in one.reasons)
    figures = {
        "orders": orders.published,
        "approved": approved,
        "decided_meanwhile": meanwhile,
        "features_right_after_s": right_s,
        "reasons": dict(codes_of),
    }
    return Outcome(verdict, failures, figures)


async def _right_again(cluster: Cluster, limit_s: float) -> float | None:
    """Seconds until the store serves what a plain reading of the orders gives; None when it does not within the time."""
    loop = asyncio.get_running_loop()
    began, reading = loop.time(), read_all(await source_records(cluster.broker))
    async with store_at(cluster.redis) as store:
        while await wrong_features(reading, store):
            if loop.time() > began + limit_s:
                return None
            await asyncio.sleep(LOOK_S)
    return round(loop.time() - began, 1)


ROWS = (
    Row(
        "redis",
        "The feature store may be killed, emptied, set back, full, read-only, slow or mute: agents go on deciding within "
        "their deadlines in each of these, approve nothing whose features cannot be known, and within 60 s after the last one "
        "lag 0; every feature is right again by itself.",
        redis,
        full={"faults": tuple(FAULTS), "seconds": 25.0, "between_s": 5.0},
        small={"faults": ("killed",), "seconds": 4.0, "between_s": 3.0},
        ablations=(
            Ablation(
                "store_is_not_looked_at",
                {"faults": ("killed",), "seconds": 4.0, "between_s": 3.0, "right_s": 8.0},
                ("killed: features not right again",),
            ),
            Ablation(
                "unknown_features_are_no_concern",
                {"faults": ("out of memory",), "seconds": 6.0, "between_s": 3.0},
                (" approved with", " approved without", " approved while"),
            ),
        ),
    ),
)
