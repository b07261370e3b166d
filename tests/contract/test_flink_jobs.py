"""Declared streams as jobs on a real Flink: submitted, stopped, upgraded, killed, and always the rows of the reference."""

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from itertools import count as numbers
from pathlib import Path
from types import ModuleType
from typing import Annotated, Any

import msgspec
import pytest

from app.application import FLINK_GROUP, App
from app.broker.base import Broker
from app.broker.kafka import KafkaBroker
from app.core.clock import SystemClock
from app.core.codec import Usd, encode
from app.core.errors import Rejected, SetupError
from app.core.record import TopicPartition
from app.core.settings import Settings
from app.http.client import HttpClient
from app.local import process
from app.local.services import FLINK_SERVICES, down, own_directory, status, up
from app.streams.expressions import col
from app.streams.graph import Alert, Topic, count, total
from app.streams.pipelines import Pipeline
from app.streams.sql import Job
from flink_jobs.child import Submitter, submitter
from flink_jobs.cluster import FlinkCluster
from flink_jobs.compiled import compile_jobs
from flink_jobs.kept import KeptJobs
from flink_jobs.operations import Jobs
from tests.parity.meaning import SourceRecord
from tests.parity.reference import read_all
from tests.parity.written import Written, outputs_of

pytestmark = [pytest.mark.flink, pytest.mark.kafka, pytest.mark.slow, pytest.mark.timeout(240)]

PARTITIONS = 3
MANAGER, WORKER = FLINK_SERVICES
WITHIN_S = 60.0


class Sale(msgspec.Struct):
    sale_id: Annotated[str, msgspec.Meta(max_length=100)]
    shop: Annotated[str, msgspec.Meta(max_length=100)]
    price: Usd


class Large(Alert, frozen=True):
    shop: str
    price: Usd


class Shops:
    """A topic of its own, its pipelines, and what was published."""

    def __init__(self, broker: Broker, name: str) -> None:
        self._broker = broker
        self.topic = Topic(name, Sale, key="shop", out_of_orderness="5s", partitions=PARTITIONS, retention="forever")
        sales = self.topic.once("sale_id", within="1h")
        self.pipelines: dict[str, Pipeline] = {
            "large": sales.where(col.price > 50).alert(Large, id="sale_id", to=f"{name}.alerts"),
            "per_shop": sales.live("5m", tile="30s").aggregate(n=count(), spent=total(col.price)).serve(f"{name}.view"),
            "rate": sales.tumbling("10s").aggregate(n=count(), spent=total(col.price)).to(f"{name}.rate"),
        }
        module = ModuleType("declared")
        vars(module).update(self.pipelines)
        self.app = App([module], alert_partitions=PARTITIONS)
        self.records: list[SourceRecord] = []
        self._number = numbers()
        self._start_ms = SystemClock().now_ms() - 600_000

    async def create(self) -> None:
        admin = self._broker.admin()
        await admin.create(self.app.topics.all())
        await admin.close()

    async def publish(self, sales: int) -> None:
        """So many sales, one a second of event time, every fifth twice; then heartbeats that close what is over."""
        producer, name = self._broker.producer(), self.topic.source.spec.name
        await producer.start()
        for number in (next(self._number) for _ in range(sales)):
            shop, at_ms = f"shop-{number % 7}", self._start_ms + number * 1_000
            value = encode({"sale_id": f"s-{number}", "shop": shop, "price": number % 100})
            for _ in range(1 + (number % 5 == 0)):
                await self._send(producer, name, number % 7 % PARTITIONS, at_ms, shop.encode(), value)
        for partition in range(PARTITIONS):
            await self._send(producer, name, partition, at_ms + 20_000, None, b'{"heartbeat":true}')
        assert [] == await producer.flush()
        await producer.close()

    async def _send(
        self, producer: Any, topic: str, partition: int, at_ms: int, key: bytes | None, value: bytes
    ) -> None:
        await producer.send(topic, value, key, partition=partition, timestamp_ms=at_ms)
        offset = sum((one.topic, one.partition) == (topic, partition) for one in self.records)
        self.records.append(SourceRecord(topic, partition, offset, at_ms, key, value))

    async def read(self) -> dict[str, list[Written]]:
        """Everything that was written."""
        reader, found = self._broker.reader(), dict[str, list[Written]]()
        for name in {pipeline.topic for pipeline in self.pipelines.values()} | {f"{self.topic.source.spec.name}.late"}:
            places = [TopicPartition(name, partition) for partition in range(PARTITIONS)]
            found[name] = []
            for place, end in (await reader.end_offsets(places)).items():
                async for batch in reader.read(place, 0, end):
                    found[name] += [Written(one.partition, one.key, one.value, dict(one.headers)) for one in batch]
        await reader.close()
        return found

    async def wait_until_complete(self) -> None:
        """Until the engine has written what the reference says; an AssertionError says what is missing."""
        expected = read_all(self.pipelines, self.records, bounded=False)
        deadline = asyncio.get_running_loop().time() + WITHIN_S
        while True:
            written = await self.read()
            found = outputs_of(self.pipelines, written.__getitem__)
            rows = {place[:3]: row for place, row in expected.rows.items()}
            same = (expected.alerts, expected.tiles) == (found.alerts, found.tiles)
            if same and rows == {place[:3]: row for place, row in found.rows.items()}:
                return
            if asyncio.get_running_loop().time() > deadline:
                assert expected.alerts == found.alerts
                assert expected.tiles == found.tiles
                assert rows == {place[:3]: row for place, row in found.rows.items()}
            await asyncio.sleep(0.3)

    async def alerts_written(self) -> int:
        return len((await self.read())[f"{self.topic.source.spec.name}.alerts"])


@pytest.fixture
async def shops(kafka_address: str, unique: Callable[[str], str]) -> AsyncIterator[Shops]:
    broker = KafkaBroker(kafka_address, SystemClock(), replication=1)
    made = Shops(broker, unique("sales"))
    await made.create()
    yield made
    await broker.close()


@asynccontextmanager
async def opened(
    shops: Shops, kafka: str, flink: str, parallelism: int = 1
) -> AsyncIterator[tuple[Jobs, FlinkCluster]]:
    compiled = compile_jobs(shops.app, Settings(broker=kafka, flink=flink), parallelism)
    async with HttpClient() as http:
        cluster, kept = FlinkCluster(flink, http), KeptJobs(shops._broker)
        await kept.start()
        yield Jobs(cluster, kept, SystemClock(), compiled), cluster


async def test_jobs_stopped_and_upgraded_go_on_where_they_were(
    shops: Shops, kafka_address: str, flink_address: str
) -> None:
    """From a savepoint, with another parallelism: every row of the reference, and no alert twice."""
    name = shops.topic.source.spec.name
    async with submitter() as pyflink:
        async with opened(shops, kafka_address, flink_address) as (jobs, _):
            assert {name: None} == await jobs.list()
            assert "RUNNING" == (await jobs.submit(name, pyflink)).state
            await shops.publish(60)
            await shops.wait_until_complete()
            assert (await jobs.savepoint(name)).startswith("file:")
            assert (await jobs.stop(name)).startswith("file:")
            with pytest.raises(SetupError, match="does not run"):
                await jobs.stop(name)
            await shops.publish(40)
            await jobs.submit(name, pyflink)
            await shops.wait_until_complete()
        async with opened(shops, kafka_address, flink_address, parallelism=2) as (jobs, cluster):
            assert 2 == (await jobs.upgrade(name, pyflink)).parallelism
            await shops.publish(40)
            await shops.wait_until_complete()
            assert len(read_all(shops.pipelines, shops.records).alerts) == await shops.alerts_written()
            await wait_until_committed(shops)
            running = (await jobs.list())[name]
            assert running is not None
            await cluster.cancel(running.job_id)


async def wait_until_committed(shops: Shops) -> None:
    """Until the offsets that say to workers how far the features are cover everything."""
    admin, ends = shops._broker.admin(), dict[TopicPartition, int]()
    for one in shops.records:
        ends[TopicPartition(one.topic, one.partition)] = one.offset + 1
    async with asyncio.timeout(WITHIN_S):
        while True:
            if ends == await admin.group_offsets(FLINK_GROUP, [shops.topic.source.spec.name]):
                break
            await asyncio.sleep(0.2)
    await admin.close()


async def test_jobs_kept_come_back_after_their_managers_are_killed(shops: Shops, kafka_address: str) -> None:
    """A task manager, and a job manager that forgets its jobs: rows are those of the reference, alerts twice have one id."""
    directory, name = await asyncio.to_thread(own_directory, "test-flink-jobs"), shops.topic.source.spec.name
    address = (await asyncio.to_thread(up, directory, FLINK_SERVICES)).flink
    stopping = asyncio.Event()
    try:
        async with submitter() as pyflink, opened(shops, kafka_address, address) as (jobs, _):
            await jobs.submit(name, pyflink)
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(jobs.keep([name], pyflink, stopping))
                await shops.publish(40)
                await shops.wait_until_complete()
                for killed in (WORKER, MANAGER):
                    await asyncio.to_thread(kill, directory, killed)
                    await shops.publish(30)
                    await asyncio.to_thread(up, directory, FLINK_SERVICES)
                    await shops.wait_until_complete()
                stopping.set()
            await jobs.stop(name)
    finally:
        await asyncio.to_thread(down, directory)


def kill(directory: Path, name: str) -> None:
    (pid,) = (each.pid for each in status(directory) if each.name == name)
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    assert process.wait_until(lambda: any(each.state == "down" for each in status(directory)), 10)


async def test_submitter_says_in_one_line_what_flink_does_not_take(flink_address: str) -> None:
    """Its own words, without Java's trace; the next job is not concerned."""
    job = Job(
        name="wrong",
        configuration={},
        functions=(),
        tables=("CREATE TEMPORARY TABLE `t` (`a` STRING) WITH ('connector' = 'no-such-thing')",),
        views=(),
        inserts=("INSERT INTO `t` SELECT 'x'",),
    )
    async with submitter() as pyflink:
        await refused(pyflink, job)
        await refused(pyflink, job)


async def refused(pyflink: Submitter, job: Job) -> None:
    with pytest.raises(Rejected, match=r"wrong: .*no-such-thing") as told:
        await pyflink.submit(job, {})
    assert 1 == len(str(told.value).splitlines())


async def test_cluster_that_is_not_there_is_one_line() -> None:
    """With what to do."""
    async with HttpClient() as http:
        with pytest.raises(SetupError, match=r"no job manager answers.*local up --flink"):
            await FlinkCluster("http://127.0.0.1:1", http).require()
