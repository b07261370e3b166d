"""Real worker processes, a real broker, kill -9 at seeded moments: the streams' outputs are those of a plain reading."""

import asyncio
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from confluent_kafka import ConsumerGroupTopicPartitions, KafkaException
from confluent_kafka.admin import (  # type: ignore[attr-defined]
    AdminClient,
    AlterConfigOpType,
    ConfigEntry,
    ConfigResource,
    ResourceType,
)

from agents import app
from app.application import STREAMS_GROUP
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
PROJECT = Path(__file__).parents[2]
TWO_HOURS_MS = 7_200_000
LIMIT_S = 90
OUTPUTS = ("processed.alerts", "features.order_rate_5m", "features.user_features", "raw.orders.late", "raw.orders.dead")


@pytest.fixture(scope="module")
def own_kafka(kafka_address: str) -> Iterator[str]:
    """A broker of its own, since the application's topics have fixed names. The session's one says if there can be any."""
    with running(own_directory("test-kills"), ["kafka"]) as addresses:
        yield addresses.kafka


def start_worker(address: str) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "app", "worker", "--only", "streams", "--broker", address, "--store", "memory://"]
    return subprocess.Popen(command, cwd=PROJECT, env={**os.environ, "HEADRACE_LOG_LEVEL": "warning"})


def parts_of_scenario(parts: int) -> list[list[tuple[bytes | None, bytes | None, int]]]:
    """Value, key and time of the scenario's publications, cut into as many parts."""
    start_ms = SystemClock().now_ms() - TWO_HOURS_MS
    records = [(each.value, each.key, each.timestamp_ms) for each in scenario(EVENTS, SEED, start_ms)]
    return [records[part * EVENTS // parts : (part + 1) * EVENTS // parts] for part in range(parts)]


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
    client = client_of(address)
    (answer,) = client.incremental_alter_configs([group]).values()
    answer.result(10)


def client_of(address: str) -> AdminClient:
    return AdminClient({"bootstrap.servers": address.removeprefix("kafka://")})


def committed_records(address: str) -> int:
    """How many records of raw.orders the streams have committed; none while the group has no coordinator yet."""
    client = client_of(address)
    asked = client.list_consumer_group_offsets([ConsumerGroupTopicPartitions(STREAMS_GROUP)])
    try:
        found = asked[STREAMS_GROUP].result(10).topic_partitions or []
    except TimeoutError:
        return 0
    except KafkaException as error:
        if isinstance(translate(error, STREAMS_GROUP), Unavailable):
            return 0
        raise
    return sum(max(0, place.offset) for place in found if place.topic == "raw.orders")


async def wait_until_committed(address: str, records: int, worker: subprocess.Popen[bytes]) -> int:
    """Returns how many are."""
    deadline = time.monotonic() + LIMIT_S
    while True:
        assert worker.poll() is None, "the worker ended by itself"
        assert time.monotonic() < deadline, f"not committed within {LIMIT_S} s"
        committed = await asyncio.to_thread(committed_records, address)
        if committed >= records:
            return committed
        await asyncio.sleep(0.1)


async def test_worker_killed_a_dozen_times_outputs_equal_a_plain_reading(own_kafka: str) -> None:
    """Whenever the process dies, alerts, rows, tiles, late references and dead letters come out the same."""
    chance, broker = random.Random(SEED), KafkaBroker(own_kafka, SystemClock(), replication=1)
    admin, producer = broker.admin(), broker.producer()
    await admin.create(app.topics.all())
    notice_dead_members_soon(own_kafka)
    await producer.start()
    sent = committed = 0
    for part in parts_of_scenario(KILLS + 1):
        worker = start_worker(own_kafka)
        try:
            sent += await producer.send_many("raw.orders", part)
            assert [] == await producer.flush()
            if sent == EVENTS:
                await wait_until_committed(own_kafka, EVENTS, worker)
                worker.send_signal(signal.SIGTERM)
                assert 0 == await asyncio.to_thread(worker.wait, 30)
            else:  # it has begun with this part, and is somewhere between two commits
                committed = await wait_until_committed(own_kafka, committed + 1, worker)
                await asyncio.sleep(chance.random() * 1.2)
        finally:
            worker.kill()
            await asyncio.to_thread(worker.wait)
    outputs = {name: await read_topic(broker, name) for name in OUTPUTS}
    source = await read_topic(broker, "raw.orders")
    records = [SourceRecord(r.partition, r.offset, r.timestamp_ms, r.key, r.value) for r in source]
    check_outputs(lambda topic: outputs[topic], read_all(records))
    await producer.close()
    await admin.close()
    await broker.close()
