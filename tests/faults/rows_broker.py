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

from app.broker.base import Producer, Reader
from app.core.clock import SystemClock
from app.core.record import TopicPartition
from app.decisions.record import DECISIONS
from app.local.services import own_directory
from app.serving.redis import RedisStore
from features import scenario as story
from tests.faults.application import PARTITIONS
from tests.faults.cluster import Cluster
from tests.faults.history import ACTIONS_GROUP, ALERTS_GROUP
from tests.faults.judging import judged
from tests.faults.rows import QUICK, Ablation, Bench, Outcome, Row, Size
from tests.faults.run import LAG_LIMIT_S, Run
from tests.faults.served import holds, judged_store, store_at, tiles_written
from tests.faults.streams import EVENT_MS, OUTPUTS, SPARE_MS, Group, read_topic
from tests.reference import Reading, SourceRecord, read_all
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
    at_most_events; settle_s; session_s, of the groups where it is not the bench's."""
    consuming_s: list[float | None] = []
    async with Cluster(bench.cluster.app, await asyncio.to_thread(own_directory, "faults-broker")) as cluster:
        if "session_s" in size:
            await asyncio.to_thread(_lengthen_sessions, cluster, size["session_s"])
        bench.runs += 1
        bench = replace(bench, cluster=cluster)
        async with store_at(cluster.redis) as store, bench.run("broker", QUICK, arguments=()) as run:
            group, reader = Group(cluster.kafka), cluster.broker.reader()
            ways = ["stop"] * size["stops"] + ["kill"] * size["kills"] + ["freeze"] * size["freezes"]
            await run.workers.at_work(*(run.workers.start(ablate=ablate) for _ in range(2)))
            load = Load(run, cluster.broker.producer(), bench.seed, size["at_most_events"])
            async with load.lasting():
                for way in run.chance.sample(ways, len(ways)):
                    await asyncio.sleep(run.chance.uniform(*QUIET_S))
                    down_s = run.chance.uniform(*size["down_s"])
                    opened_s = await _gone(run, way, down_s)
                    consuming_s.append(
                        await _consuming(run, group, reader, store, opened_s, size.get("settle_s", LAG_LIMIT_S))
                    )
                    bench.say(f"{way}, down {down_s:.0f} s: all consumed {consuming_s[-1]} s after the port opened")
            settle_s, session_s = size.get("settle_s", LAG_LIMIT_S), size.get("session_s", 0.0)
            reading, wrong = await _outputs(run, group, reader, store, settle_s)
            verdict, _, failures = await judged(run, settle_s, limit_s=LAG_LIMIT_S + session_s)
            await reader.close()
            await asyncio.to_thread(group.close)
    slow = [seconds for seconds in consuming_s if seconds is None or seconds > CONSUMES_WITHIN_S + session_s]
    failures += wrong + [f"consuming again only {seconds} s after the port opened" for seconds in slow]
    soonest = max((seconds for seconds in consuming_s if seconds is not None), default=None)
    figures = {"slowest_to_consume_s": soonest, "events": reading and reading.events}
    return Outcome(verdict, failures, figures | {"alerts_of_streams": reading and len(reading.alerts)})


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


async def _consuming(
    run: Run, group: Group, reader: Reader, store: RedisStore, opened_s: float, limit_s: float
) -> float | None:
    """Seconds from the port's opening until agents, actions and streams had each committed, in every partition, what was
    there when it opened, and some that came then, and the store had what the streams had written. None where that took
    longer than the limit."""
    await run.publish(FRESH)
    ends: dict[int, int] = {}
    for one in run.published:
        ends[one.partition] = max(ends.get(one.partition, 0), one.offset + 1)
    orders = [TopicPartition(SOURCE, number) for number in range(run.cluster.app.topics.named(SOURCE).partitions)]
    decisions = [TopicPartition(DECISIONS, number) for number in range(PARTITIONS)]
    read = sum((await reader.end_offsets(orders)).values())
    decided, tiles = await reader.end_offsets(decisions), await tiles_written(reader)
    committed = run.sampler.committed
    while time.monotonic() < opened_s + limit_s:
        if (
            all(committed(ALERTS_GROUP, partition) >= end for partition, end in ends.items())
            and all(committed(ACTIONS_GROUP, place.partition) >= end for place, end in decided.items())
            and await asyncio.to_thread(group.committed) >= read
            and await holds(store, tiles)
        ):
            return round(time.monotonic() - opened_s, 1)
        await asyncio.sleep(0.1)
    return None


async def _outputs(
    run: Run, group: Group, reader: Reader, store: RedisStore, settle_s: float
) -> tuple[Reading | None, list[str]]:
    """When all is read: a plain reading, and what is wrong with the streams' outputs and the store. The alerts that streams
    have written count as the published ones do."""
    cluster = run.cluster
    source = await read_topic(cluster.broker, SOURCE)
    if not await group.passes(len(source), settle_s):
        return None, ["streams: not read to the end"]
    reading = read_all(SourceRecord(r.partition, r.offset, r.timestamp_ms, r.key, r.value) for r in source)
    await run.adopt_alerts(len(run.published) + len(reading.alerts))
    await run.settled(settle_s)
    wrong = await judged_store(reading, store, reader, settle_s)
    outputs = {name: await read_topic(cluster.broker, name) for name in OUTPUTS}
    outputs["processed.alerts"] = [
        one for one in outputs["processed.alerts"] if (one.header("origin") or b"").startswith(SOURCE.encode())
    ]
    try:
        check_outputs(lambda topic: outputs[topic], reading)
    except AssertionError as error:
        wrong.append(f"streams: {str(error)[:200] or 'outputs differ'}")
    return reading, wrong


WHILE_MEMBERS_STAY = {
    "stops": 0,
    "kills": 0,
    "freezes": 1,
    "down_s": (4.0, 4.0),
    "at_most_events": 10_000,
    "settle_s": 20,
    "session_s": DEFAULT_SESSION_S,
}
"""A broker that starts again takes so long that members have lost their partitions, and what they would commit is refused."""

ROWS = (
    Row(
        "broker restarted and killed",
        "Kafka may end and come back, in order or not, or stand still: the same zeros for alerts, decisions and effects, the "
        f"streams' outputs and the features in the store those of a plain reading, and everything is consumed again within {CONSUMES_WITHIN_S:.0f} s after it answers again.",
        broker_gone,
        full={"stops": 5, "kills": 5, "freezes": 2, "down_s": (1.0, 30.0), "at_most_events": 200_000},
        small={"stops": 0, "kills": 1, "freezes": 0, "down_s": (1.0, 2.0), "at_most_events": 20_000},
        ablations=(
            Ablation(
                "parts_end_with_the_broker",
                {"stops": 0, "kills": 1, "freezes": 0, "down_s": (5.0, 5.0), "at_most_events": 10_000, "settle_s": 15},
                ("lost", "consuming again only None", "streams: not read to the end"),
                needs_control=True,
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
            "at_most_events": 100_000,
            "settle_s": LAG_LIMIT_S + DEFAULT_SESSION_S,
            "session_s": DEFAULT_SESSION_S,
        },
        small=None,
        ablations=(Ablation("writes_are_given_up_and_done", WHILE_MEMBERS_STAY, ("lost", "early_commits")),),
    ),
)
