"""Workers of the streams killed, frozen and replaced while they read: their outputs against a plain reading of the topic.

The driver publishes the demo's scenario in pieces and does one thing to one worker in each round, at a seeded moment; in
the second half two workers share the partitions. At the end every topic is read back and compared.
"""

import asyncio
import random
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Literal
from unittest.mock import patch

from confluent_kafka import Consumer, KafkaException
from confluent_kafka import TopicPartition as Place
from confluent_kafka.admin import (  # type: ignore[attr-defined]
    AdminClient,
    AlterConfigOpType,
    ConfigEntry,
    ConfigResource,
    ResourceType,
)

from app.application import STREAMS_GROUP
from app.broker.base import Producer
from app.broker.kafka import KafkaBroker
from app.broker.kafka.errors import translate
from app.core.clock import SystemClock
from app.core.errors import Unavailable
from app.core.record import Record, TopicPartition
from app.serving.materializer import GROUP as FEATURES_GROUP
from features import scenario as story
from tests.faults.application import app
from tests.faults.commits import QUIET
from tests.faults.processes import Child
from tests.faults.served import judged_store, store_at
from tests.reference import Reading, SourceRecord, read_all
from tests.streams_kit import check_outputs

PIECES, PIECE_S = 20, 0.1
"""In how many pieces, and how far apart, the events of one round are published."""

EVENT_MS, SPARE_MS = 22, 600_000
"""Event time that one publication takes on average, and how long ago the last one lies at least."""

SESSION_MS = 2_000
FREEZES_WITHIN_S = 3.0
AWAKE_S = 1.0
"""How long a worker that woke may write before those are killed that had taken over."""

LIMIT_S, GRACE_S = 60, 30
OUTPUTS = ("processed.alerts", "features.order_rate_5m", "features.user_features", "raw.orders.late", "raw.orders.dead")

Start = Callable[[], Child]
Fault = Literal["kill", "freeze"]


@dataclass(frozen=True)
class Plan:
    """events: in all, in as many rounds as there are faults. shoppers: the fewer, the more often each window changes.
    frozen_s: how long a frozen worker stands still."""

    events: int
    faults: int
    seed: int
    fault: Fault = "kill"
    shoppers: int = story.SHOPPERS
    frozen_s: float = 0


@dataclass(frozen=True)
class Outcome:
    """violations: what is wrong with the outputs, empty when they are those of the plain reading. repeated: outputs that
    came more than once. recovery_s: from the last fault until everything was committed."""

    events: int
    alerts: int
    repeated: int
    recovery_s: float
    violations: list[str]


def pieces_of_scenario(plan: Plan) -> Iterator[list[tuple[bytes | None, bytes | None, int]]]:
    """Value, key and time of the scenario's publications, in pieces."""
    pieces = plan.faults * PIECES
    start_ms = SystemClock().now_ms() - plan.events * EVENT_MS - SPARE_MS
    publications = story.scenario(plan.events, plan.seed, start_ms)
    for piece in range(pieces):
        count = (piece + 1) * plan.events // pieces - piece * plan.events // pieces
        yield [(each.value, each.key, each.timestamp_ms) for each in islice(publications, count)]


async def read_topic(broker: KafkaBroker, topic: str) -> list[Record]:
    reader, found = broker.reader(), list[Record]()
    places = [TopicPartition(topic, number) for number in range(app.topics.named(topic).partitions)]
    for place, end in (await reader.end_offsets(places)).items():
        async for records in reader.read(place, 0, end):
            found += records
    await reader.close()
    return found


def notice_dead_members_soon(address: str, group_name: str) -> None:
    """After 2 s instead of 6, which each of the faults would wait for."""
    settings = {"consumer.session.timeout.ms": str(SESSION_MS), "consumer.heartbeat.interval.ms": "500"}
    entries = [
        ConfigEntry(name, value, incremental_operation=AlterConfigOpType.SET) for name, value in settings.items()
    ]
    group = ConfigResource(ResourceType.GROUP, group_name, incremental_configs=entries)
    client = AdminClient({"bootstrap.servers": address.removeprefix("kafka://")})
    (answer,) = client.incremental_alter_configs([group]).values()
    answer.result(10)


class Group:
    """What the coordinator says about the streams' group.

    Committed offsets are asked for by a consumer that never joins: librdkafka's admin client crashes now and then while
    a group has no coordinator yet.
    """

    def __init__(self, address: str) -> None:
        servers = address.removeprefix("kafka://")
        self._asking = Consumer({"bootstrap.servers": servers, "group.id": STREAMS_GROUP, "log_level": QUIET})
        self._admin = AdminClient({"bootstrap.servers": servers, "log_level": QUIET})
        partitions = app.topics.named("raw.orders").partitions
        self._places = [Place("raw.orders", partition) for partition in range(partitions)]

    def committed(self) -> int:
        """How many records of raw.orders; 0 while there is no coordinator, or it is loading."""
        try:
            return sum(max(0, place.offset) for place in self._asking.committed(self._places, timeout=10))
        except KafkaException as error:
            if isinstance(translate(error, STREAMS_GROUP), Unavailable):
                return 0
            raise

    def owners(self) -> int:
        """How many members own partitions; 0 while nobody answers. Something must have been committed before."""
        asked = self._admin.describe_consumer_groups([STREAMS_GROUP])[STREAMS_GROUP]
        try:
            found = asked.result(10).members
        except TimeoutError:
            return 0
        return sum(bool(member.assignment and member.assignment.topic_partitions) for member in found)

    async def passes(self, records: int, limit_s: float) -> bool:
        """Until so many are committed; whether they are, within the time."""
        deadline = time.monotonic() + limit_s
        while await asyncio.to_thread(self.committed) < records:
            if time.monotonic() > deadline:
                return False
            await asyncio.sleep(0.1)
        return True

    def close(self) -> None:
        self._asking.close()


class Workers:
    """Worker processes of one group, and what was published for them."""

    def __init__(self, address: str, producer: Producer, start: Start) -> None:
        self.alive: list[Child] = []
        self.sent = 0
        self.group = Group(address)
        self._producer = producer
        self._start = start
        self._thawing: list[asyncio.Task[None]] = []

    def fill(self, number: int) -> None:
        """Until so many run."""
        while len(self.alive) < number:
            self.alive.append(self._start())

    async def publish(self, piece: list[tuple[bytes | None, bytes | None, int]]) -> None:
        async with asyncio.timeout(LIMIT_S):
            self.sent += await self._producer.send_many("raw.orders", piece)
            assert [] == await self._producer.flush()

    async def at_work(self) -> None:
        """Everything is committed, so no dead member owns partitions any longer, and every living one has some."""
        for thawing in self._thawing:
            await thawing
        self._thawing.clear()
        await self._wait(self.group.committed, lambda: self.sent)
        await self._wait(self.group.owners, lambda: len(self.alive))

    async def _wait(self, question: Callable[[], int], wanted: Callable[[], int]) -> None:
        deadline = time.monotonic() + LIMIT_S
        while await asyncio.to_thread(question) != wanted():
            for worker in self.alive:
                assert worker.code is None, f"a worker ended by itself with {worker.code}: see {worker.log}"
            assert time.monotonic() < deadline, f"no {question.__name__} within {LIMIT_S} s"
            await asyncio.sleep(0.1)

    async def kill(self, worker: Child) -> None:
        self.alive.remove(worker)
        await asyncio.to_thread(worker.kill)

    async def freeze(self, worker: Child, seconds: float) -> None:
        """The worker stands still for so long, from its next table write on where it knows how to, while the others, or
        one more, take its partitions over; when it is back they are killed, so that it reads back what it has spoilt."""
        worker.send(signal.SIGUSR1)
        deadline = time.monotonic() + FREEZES_WITHIN_S
        while not _is_stopped(worker.pid) and time.monotonic() < deadline:
            await asyncio.sleep(0.01)
        worker.send(signal.SIGSTOP)
        self._thawing.append(asyncio.get_running_loop().create_task(self._thaw(worker, seconds)))
        self.fill(2)

    async def _thaw(self, worker: Child, seconds: float) -> None:
        await asyncio.sleep(seconds)
        worker.send(signal.SIGCONT)
        await asyncio.sleep(AWAKE_S)
        for other in [one for one in self.alive if one is not worker]:
            await self.kill(other)

    async def stop(self) -> None:
        for worker in self.alive:
            worker.send(signal.SIGTERM)
        async with asyncio.timeout(GRACE_S):
            while any(worker.code is None for worker in self.alive):
                await asyncio.sleep(0.05)
        assert {0} == {worker.code for worker in self.alive}

    async def close(self) -> None:
        for thawing in self._thawing:
            thawing.cancel()
        for worker in list(self.alive):
            await self.kill(worker)
        await asyncio.to_thread(self.group.close)


def _is_stopped(pid: int) -> bool:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "T"


async def run(
    address: str, store_address: str, plan: Plan, start: Start, say: Callable[[str], None] = lambda line: None
) -> Outcome:
    """Carries out a plan on an empty broker and store. Raises: AssertionError when workers do not get through."""
    broker = KafkaBroker(address, SystemClock(), replication=1)
    admin, producer = broker.admin(), broker.producer()
    await admin.create(app.topics.all())
    await admin.close()
    for group in (STREAMS_GROUP, FEATURES_GROUP):
        notice_dead_members_soon(address, group)
    await producer.start()
    workers = Workers(address, producer, start)
    try:
        with patch.object(story, "SHOPPERS", plan.shoppers):
            recovery_s = await _rounds(workers, plan, say)
        source = await read_topic(broker, "raw.orders")
        reading = read_all(SourceRecord(r.partition, r.offset, r.timestamp_ms, r.key, r.value) for r in source)
        reader = broker.reader()
        async with store_at(store_address) as store:
            violations = await judged_store(reading, store, reader, LIMIT_S)
        await reader.close()
        await workers.stop()
        if len(source) != workers.sent:
            violations.append(f"{len(source)} records in raw.orders, {workers.sent} were published")
        return await _outcome(broker, reading, recovery_s, violations)
    finally:
        await workers.close()
        await producer.close()
        await broker.close()


async def _rounds(workers: Workers, plan: Plan, say: Callable[[str], None]) -> float:
    chance, pieces = random.Random(plan.seed), pieces_of_scenario(plan)
    fault_s = time.monotonic()
    for number in range(plan.faults):
        say(f"{plan.fault} {number + 1} of {plan.faults}, {workers.sent:,} events")
        workers.fill(1 if number < plan.faults // 2 else 2)
        fault_at = chance.randrange(PIECES // 4, PIECES)
        await workers.publish(next(pieces))
        await workers.at_work()
        for piece in range(1, PIECES):
            await asyncio.sleep(PIECE_S * chance.random() * 2)
            if piece == fault_at:  # the last piece is most likely read, and not yet committed
                fault_s = time.monotonic()
                await _fault(workers, plan, chance)
            await workers.publish(next(pieces))
    workers.fill(2)
    await workers.at_work()
    return time.monotonic() - fault_s


async def _fault(workers: Workers, plan: Plan, chance: random.Random) -> None:
    worker = chance.choice(workers.alive)
    if plan.fault == "kill":
        await workers.kill(worker)
    else:
        await workers.freeze(worker, plan.frozen_s)


async def _outcome(broker: KafkaBroker, reading: Reading, recovery_s: float, violations: list[str]) -> Outcome:
    outputs = {name: await read_topic(broker, name) for name in OUTPUTS}
    try:
        check_outputs(lambda topic: outputs[topic], reading)
    except AssertionError as error:
        violations.append(str(error)[:200] or "outputs differ")
    again = repeated(outputs["processed.alerts"], outputs["raw.orders.late"], outputs["raw.orders.dead"])
    return Outcome(reading.events, len(reading.alerts), again, recovery_s, violations)


def repeated(alerts: list[Record], late: list[Record], dead: list[Record]) -> int:
    """How many outputs came more than once."""
    seen = Counter[object](record.header("origin") for record in alerts)
    seen += Counter(record.value for record in late)
    seen += Counter((record.partition, record.header("offset")) for record in dead)
    return sum(number > 1 for number in seen.values())
