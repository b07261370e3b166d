"""Kafka itself ends, in order or by SIGKILL, and comes back over its data, or stands still, while all parts run."""

import asyncio
import signal
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from itertools import islice

from confluent_kafka.admin import (  # type: ignore[attr-defined]
    AdminClient,
    AlterConfigOpType,
    ConfigEntry,
    ConfigResource,
    ResourceType,
)

from app.application import STREAMS_GROUP
from app.broker.base import Producer, Reader
from app.core.clock import SystemClock
from app.core.record import TopicPartition
from app.decisions.record import DECISIONS
from app.local.services import own_directory
from features import scenario as story
from tests.faults.application import PARTITIONS
from tests.faults.checker import check
from tests.faults.cluster import Cluster
from tests.faults.history import ACTIONS_GROUP, ALERTS_GROUP
from tests.faults.rows import QUICK, Ablation, Bench, Outcome, Row, Size
from tests.faults.run import LAG_LIMIT_S, Run
from tests.faults.streams import EVENT_MS, OUTPUTS, SPARE_MS, Group, notice_dead_members_soon, read_topic
from tests.reference import SourceRecord, read_all
from tests.streams_kit import check_outputs

CONSUMES_WITHIN_S = 30.0
DEFAULT_SESSION_S = 45.0
"""Kafka's `group.consumer.session.timeout.ms`."""
ALERTS_A_PIECE, EVENTS_A_PIECE, PIECE_S = 6, 40, 0.2
BACKLOG = 400
"""So many alerts wait at the most: what is measured is how soon work goes on, not how long a queue was."""

FRESH = 2 * PARTITIONS
"""Alerts that are published when the broker is back."""

QUIET_S = 0.5, 2.0
SOURCE = "raw.orders"

Pieces = Iterator[list[tuple[bytes | None, bytes | None, int]]]


class Load:
    """Alerts and events, published for as long as it lasts, also while no broker is there to take them."""

    def __init__(self, run: Run, producer: Producer, seed: int, events: int) -> None:
        """events: at the most."""
        self._run = run
        self._producer = producer
        self._events = events
        self._seed = seed

    @asynccontextmanager
    async def lasting(self) -> AsyncIterator[None]:
        """On leaving, everything that was published is acknowledged. Raises: AssertionError where some is not."""
        await self._producer.start()
        async with asyncio.TaskGroup() as tasks:
            going = [tasks.create_task(self._alerts()), tasks.create_task(self._orders())]
            yield
            for task in going:
                task.cancel()
        failed = await self._producer.flush()
        await self._producer.close()
        assert [] == failed

    async def _alerts(self) -> None:
        """The last ones are acknowledged before it ends."""
        while True:
            await asyncio.sleep(PIECE_S)
            if self._run.backlog < BACKLOG:
                publishing = asyncio.ensure_future(self._run.publish(ALERTS_A_PIECE))
                try:
                    await asyncio.shield(publishing)
                except asyncio.CancelledError:
                    await publishing
                    raise

    async def _orders(self) -> None:
        for piece in self._pieces():
            await self._producer.send_many(SOURCE, piece)
            await asyncio.sleep(PIECE_S)

    def _pieces(self) -> Pieces:
        start_ms = SystemClock().now_ms() - self._events * EVENT_MS - SPARE_MS
        publications = story.scenario(self._events, self._seed, start_ms)
        while piece := [(each.value, each.key, each.timestamp_ms) for each in islice(publications, EVENTS_A_PIECE)]:
            yield piece


async def broker_gone(bench: Bench, size: Size, ablate: Sequence[str]) -> Outcome:
    """On a cluster of its own. size: stops, kills and freezes, how many; down_s, how long the shortest and the longest;
    events, at the most; settle_s; session_s, of the groups of agents and actions where it is not the bench's."""
    consuming_s: list[float | None] = []
    async with Cluster(bench.cluster.app, await asyncio.to_thread(own_directory, "faults-broker")) as cluster:
        await asyncio.to_thread(notice_dead_members_soon, cluster.kafka, STREAMS_GROUP)
        if "session_s" in size:
            await asyncio.to_thread(_lengthen_sessions, cluster, size["session_s"])
        bench.runs += 1
        bench = replace(bench, cluster=cluster)
        parts = ("--only", "streams", "--only", "agents", "--only", "actions")
        async with bench.run("broker", QUICK, arguments=parts) as run:
            group, reader = Group(cluster.kafka), cluster.broker.reader()
            ways = ["stop"] * size["stops"] + ["kill"] * size["kills"] + ["freeze"] * size["freezes"]
            await run.workers.at_work(*(run.workers.start(ablate=ablate) for _ in range(2)))
            load = Load(run, cluster.broker.producer(), bench.seed, size["events"])
            async with load.lasting():
                for way in run.chance.sample(ways, len(ways)):
                    await asyncio.sleep(run.chance.uniform(*QUIET_S))
                    down_s = run.chance.uniform(*size["down_s"])
                    opened_s = await _gone(run, way, down_s)
                    consuming_s.append(
                        await _consuming(run, group, reader, opened_s, size.get("settle_s", LAG_LIMIT_S))
                    )
                    bench.say(f"{way}, down {down_s:.0f} s: all consumed {consuming_s[-1]} s after the port opened")
            failures, alerts = await _judged(run, group, size.get("settle_s", LAG_LIMIT_S))
            codes = await run.workers.stop()
            verdict = check(await run.finish())
            await reader.close()
            await asyncio.to_thread(group.close)
    failures += [f"a worker ended with {code}" for code in codes if code != 0]
    session_s = size.get("session_s", 0.0)
    slow = [seconds for seconds in consuming_s if seconds is None or seconds > CONSUMES_WITHIN_S + session_s]
    failures += [f"consuming again only {seconds} s after the port opened" for seconds in slow]
    if verdict.recovery_s is None or verdict.recovery_s > LAG_LIMIT_S + session_s:
        failures.append(f"lag 0 after {verdict.recovery_s} s")
    soonest = max((seconds for seconds in consuming_s if seconds is not None), default=None)
    return Outcome(verdict, failures, {"slowest_to_consume_s": soonest, "alerts_of_streams": alerts})


def _lengthen_sessions(cluster: Cluster, session_s: float) -> None:
    """Members outlast an outage that is shorter, so that their commits are not refused after it."""
    session = ConfigEntry(
        "consumer.session.timeout.ms", f"{session_s * 1000:.0f}", incremental_operation=AlterConfigOpType.SET
    )
    client = AdminClient({"bootstrap.servers": cluster.servers})
    for group in cluster.groups:
        resource = ConfigResource(ResourceType.GROUP, group, incremental_configs=[session])
        (answer,) = client.incremental_alter_configs([resource]).values()
        answer.result(10)


async def _gone(run: Run, way: str, down_s: float) -> float:
    """Ends the broker, and starts it again, or lets it stand still. Returns: loop time at which its port was open."""
    cluster = run.cluster
    run.workers.note(f"{way} of Kafka", "kafka")
    if way == "freeze":
        await cluster.signal("kafka", signal.SIGSTOP)
        try:
            await asyncio.sleep(down_s)
        finally:
            await cluster.signal("kafka", signal.SIGCONT)
        return time.monotonic()
    await (cluster.kill("kafka") if way == "kill" else cluster.stop("kafka"))
    await asyncio.sleep(down_s)
    opening = asyncio.create_task(_opened(int(cluster.servers.rpartition(":")[2])))
    try:
        await cluster.restart("kafka")
        return await opening
    finally:
        opening.cancel()


async def _opened(port: int) -> float:
    while True:
        with suppress(ConnectionError):
            _, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.close()
            return time.monotonic()
        await asyncio.sleep(0.02)


async def _consuming(run: Run, group: Group, reader: Reader, opened_s: float, limit_s: float) -> float | None:
    """Seconds from the port's opening until agents, actions and streams had each committed, in every partition, what was
    there when it opened, and some that came then. None where that took longer than the limit."""
    await run.publish(FRESH)
    ends: dict[int, int] = {}
    for one in run.published:
        ends[one.partition] = max(ends.get(one.partition, 0), one.offset + 1)
    orders = [TopicPartition(SOURCE, number) for number in range(run.cluster.app.topics.named(SOURCE).partitions)]
    decisions = [TopicPartition(DECISIONS, number) for number in range(PARTITIONS)]
    read = sum((await reader.end_offsets(orders)).values())
    decided = await reader.end_offsets(decisions)
    committed = run.sampler.committed
    while time.monotonic() < opened_s + limit_s:
        if (
            all(committed(ALERTS_GROUP, partition) >= end for partition, end in ends.items())
            and all(committed(ACTIONS_GROUP, place.partition) >= end for place, end in decided.items())
            and await asyncio.to_thread(group.committed) >= read
        ):
            return round(time.monotonic() - opened_s, 1)
        await asyncio.sleep(0.1)
    return None


async def _judged(run: Run, group: Group, settle_s: float) -> tuple[list[str], int]:
    """When all is read: what is wrong with the streams' outputs, and how many alerts they wrote, which count as the
    published ones do."""
    cluster = run.cluster
    source = await read_topic(cluster.broker, SOURCE)
    deadline = time.monotonic() + settle_s
    while await asyncio.to_thread(group.committed) < len(source):
        if time.monotonic() > deadline:
            return ["streams: not read to the end"], 0
        await asyncio.sleep(0.2)
    reading = read_all(SourceRecord(r.partition, r.offset, r.timestamp_ms, r.key, r.value) for r in source)
    await run.adopt_alerts(len(run.published) + len(reading.alerts))
    await run.settled(settle_s)
    outputs = {name: await read_topic(cluster.broker, name) for name in OUTPUTS}
    outputs["processed.alerts"] = [
        one for one in outputs["processed.alerts"] if (one.header("origin") or b"").startswith(SOURCE.encode())
    ]
    try:
        check_outputs(lambda topic: outputs[topic], reading)
    except AssertionError as error:
        return [f"streams: {str(error)[:200] or 'outputs differ'}"], len(reading.alerts)
    return [], len(reading.alerts)


WHILE_MEMBERS_STAY = {
    "stops": 0,
    "kills": 0,
    "freezes": 1,
    "down_s": (4.0, 4.0),
    "events": 10_000,
    "settle_s": 20,
    "session_s": DEFAULT_SESSION_S,
}
"""A broker that starts again takes so long that members have lost their partitions, and what they would commit is refused."""

ROWS = (
    Row(
        "broker restarted and killed",
        "Kafka may end and come back, in order or not, or stand still: the same zeros for alerts, decisions and effects, the "
        f"streams' outputs those of a plain reading, and everything is consumed again within {CONSUMES_WITHIN_S:.0f} s after it answers again.",
        broker_gone,
        full={"stops": 5, "kills": 5, "freezes": 2, "down_s": (1.0, 30.0), "events": 200_000},
        small={"stops": 1, "kills": 1, "freezes": 0, "down_s": (1.0, 2.0), "events": 20_000},
        ablations=(
            Ablation(
                "parts_end_with_the_broker",
                {"stops": 0, "kills": 1, "freezes": 0, "down_s": (5.0, 5.0), "events": 10_000, "settle_s": 15},
                ("lost", "consuming again only None", "streams: not read to the end"),
            ),
        ),
    ),
    Row(
        "broker gone for less than a session",
        f"The same with the session that groups have by default, {DEFAULT_SESSION_S:.0f} s: members outlast the broker with "
        "writes, commits and handlers under way. A client that has lost its brokers joins anew, and then its partitions wait "
        f"for the end of its old session: everything is consumed again within {CONSUMES_WITHIN_S:.0f} s and that.",
        broker_gone,
        full={
            "stops": 2,
            "kills": 2,
            "freezes": 2,
            "down_s": (1.0, 30.0),
            "events": 100_000,
            "settle_s": LAG_LIMIT_S + DEFAULT_SESSION_S,
            "session_s": DEFAULT_SESSION_S,
        },
        small=None,
        ablations=(Ablation("writes_are_given_up_and_done", WHILE_MEMBERS_STAY, ("lost", "early_commits")),),
    ),
)
