"""Real worker processes, a real broker, kill -9 while records are read: the outputs are those of a plain reading."""

import asyncio
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from confluent_kafka import Consumer, KafkaException
from confluent_kafka import TopicPartition as Place
from confluent_kafka.admin import (  # type: ignore[attr-defined]
    AdminClient,
    AlterConfigOpType,
    ConfigEntry,
    ConfigResource,
    ResourceType,
)

from agents import app
from app.application import STREAMS_GROUP
from app.broker.base import Producer
from app.broker.kafka import KafkaBroker
from app.broker.kafka.errors import translate
from app.core.clock import SystemClock
from app.core.errors import Unavailable
from app.core.record import Record, TopicPartition
from app.local.services import own_directory, running
from features.scenario import scenario
from tests.reference import SourceRecord, read_all
from tests.streams_kit import check_outputs

pytestmark = [pytest.mark.kafka, pytest.mark.timeout(300)]

KILLS, SEED, EVENTS = 12, 20261124, 6_000
PIECES, PIECE_S = 20, 0.1
"""In how many pieces, and how far apart, the events of one kill are published."""
PROJECT = Path(__file__).parents[2]
TWO_HOURS_MS = 7_200_000
LIMIT_S = 60
OUTPUTS = ("processed.alerts", "features.order_rate_5m", "features.user_features", "raw.orders.late", "raw.orders.dead")


@pytest.fixture(scope="module")
def own_kafka(kafka_address: str) -> Iterator[str]:
    """A broker of its own, since the application's topics have fixed names. The session's one says if there can be any."""
    with running(own_directory("test-kills"), ["kafka"]) as addresses:
        yield addresses.kafka


def start_worker(address: str) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "app", "worker", "--only", "streams", "--broker", address, "--store", "memory://"]
    return subprocess.Popen(command, cwd=PROJECT, env={**os.environ, "HEADRACE_LOG_LEVEL": "warning"})


def pieces_of_scenario() -> Iterator[list[tuple[bytes | None, bytes | None, int]]]:
    """Value, key and time of the scenario's publications, in pieces."""
    start_ms, pieces = SystemClock().now_ms() - TWO_HOURS_MS, KILLS * PIECES
    records = [(each.value, each.key, each.timestamp_ms) for each in scenario(EVENTS, SEED, start_ms)]
    for piece in range(pieces):
        yield records[piece * EVENTS // pieces : (piece + 1) * EVENTS // pieces]


async def read_topic(broker: KafkaBroker, topic: str) -> list[Record]:
    reader, found = broker.reader(), list[Record]()
    places = [TopicPartition(topic, number) for number in range(app.topics.named(topic).partitions)]
    for place, end in (await reader.end_offsets(places)).items():
        async for records in reader.read(place, 0, end):
            found += records
    await reader.close()
    return found


def notice_dead_members_soon(address: str) -> None:
    """After 2 s instead of 6, which each of the kills would wait for."""
    settings = {"consumer.session.timeout.ms": "2000", "consumer.heartbeat.interval.ms": "500"}
    entries = [
        ConfigEntry(name, value, incremental_operation=AlterConfigOpType.SET) for name, value in settings.items()
    ]
    group = ConfigResource(ResourceType.GROUP, STREAMS_GROUP, incremental_configs=entries)
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
        self._asking = Consumer({"bootstrap.servers": servers, "group.id": STREAMS_GROUP})
        self._admin = AdminClient({"bootstrap.servers": servers})
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

    def close(self) -> None:
        self._asking.close()


class Workers:
    """Worker processes of one group, and what was published for them."""

    def __init__(self, address: str, producer: Producer) -> None:
        self.address = address
        self.alive: list[subprocess.Popen[bytes]] = []
        self.sent = 0
        self.group = Group(address)
        self._producer = producer

    def fill(self, number: int) -> None:
        """Until so many run."""
        while len(self.alive) < number:
            self.alive.append(start_worker(self.address))

    async def publish(self, piece: list[tuple[bytes | None, bytes | None, int]]) -> None:
        async with asyncio.timeout(LIMIT_S):
            self.sent += await self._producer.send_many("raw.orders", piece)
            assert [] == await self._producer.flush()

    async def at_work(self) -> None:
        """Everything is committed, so no dead member owns partitions any longer, and every living one has some."""
        await self._wait(self.group.committed, self.sent)
        await self._wait(self.group.owners, len(self.alive))

    async def _wait(self, question: Callable[[], int], wanted: int) -> None:
        deadline = time.monotonic() + LIMIT_S
        while await asyncio.to_thread(question) != wanted:
            assert all(worker.poll() is None for worker in self.alive), "a worker ended by itself"
            assert time.monotonic() < deadline, f"no {question.__name__} within {LIMIT_S} s"
            await asyncio.sleep(0.1)

    async def kill(self, worker: subprocess.Popen[bytes]) -> None:
        self.alive.remove(worker)
        worker.kill()
        await asyncio.to_thread(worker.wait)

    async def stop(self) -> None:
        for worker in self.alive:
            worker.send_signal(signal.SIGTERM)
        assert {0} == {await asyncio.to_thread(worker.wait, 30) for worker in self.alive}


def repeated(alerts: list[Record], late: list[Record], dead: list[Record]) -> int:
    """How many outputs came more than once."""
    seen = Counter[object](record.header("origin") for record in alerts)
    seen += Counter(record.value for record in late)
    seen += Counter((record.partition, record.header("offset")) for record in dead)
    return sum(number > 1 for number in seen.values())


async def test_workers_killed_while_they_read_outputs_equal_a_plain_reading(own_kafka: str) -> None:
    """Whenever a process dies, alone or beside another, alerts, rows, tiles, late references and dead letters come out
    the same; and they do come twice, so it was at work."""
    chance, broker = random.Random(SEED), KafkaBroker(own_kafka, SystemClock(), replication=1)
    admin, producer = broker.admin(), broker.producer()
    await admin.create(app.topics.all())
    notice_dead_members_soon(own_kafka)
    await producer.start()
    workers, pieces = Workers(own_kafka, producer), pieces_of_scenario()
    try:
        for number in range(KILLS):
            workers.fill(1 if number < KILLS // 2 else 2)
            dies_at = chance.randrange(PIECES // 4, PIECES)
            await workers.publish(next(pieces))
            await workers.at_work()
            for piece in range(1, PIECES):
                await asyncio.sleep(PIECE_S * chance.random() * 2)
                if piece == dies_at:  # the last piece is most likely read, and not yet committed
                    await workers.kill(chance.choice(workers.alive))
                await workers.publish(next(pieces))
        workers.fill(2)
        await workers.at_work()
        assert EVENTS == workers.sent
        await workers.stop()
    finally:
        for worker in list(workers.alive):
            await workers.kill(worker)
        await asyncio.to_thread(workers.group.close)
    outputs = {name: await read_topic(broker, name) for name in OUTPUTS}
    source = await read_topic(broker, "raw.orders")
    records = [SourceRecord(r.partition, r.offset, r.timestamp_ms, r.key, r.value) for r in source]
    check_outputs(lambda topic: outputs[topic], read_all(records))
    assert repeated(outputs["processed.alerts"], outputs["raw.orders.late"], outputs["raw.orders.dead"]) > 0
    await producer.close()
    await admin.close()
    await broker.close()
