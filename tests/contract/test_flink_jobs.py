"""Declared streams as jobs on a real Flink: submitted, stopped, upgraded, killed, and always the rows of the reference."""

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from app.application import FLINK_GROUP
from app.broker.kafka import KafkaBroker
from app.core.clock import SystemClock
from app.core.errors import Rejected, SetupError, Unavailable
from app.core.record import TopicPartition
from app.http.client import HttpClient
from app.local import process
from app.local.services import FLINK_SERVICES, down, own_directory, status, up
from app.streams.expressions import col
from app.streams.graph import Topic
from app.streams.pipelines import Pipeline
from app.streams.sql import Job
from flink_jobs.child import Submitter, submitter
from flink_jobs.cluster import FlinkCluster
from tests.flink_kit import WITHIN_S, Declare, Large, OnFlink, Shops, end_all, opened, small
from tests.parity.reference import read_all

pytestmark = [pytest.mark.flink, pytest.mark.kafka, pytest.mark.slow, pytest.mark.timeout(480)]

MANAGER, WORKER = FLINK_SERVICES


@asynccontextmanager
async def declared(kafka: str, name: str, declare: Declare) -> AsyncIterator[Shops]:
    broker = KafkaBroker(kafka, SystemClock(), replication=1)
    made = Shops(broker, name, declare)
    await made.declare(made.app)
    yield made
    await broker.close()


@asynccontextmanager
async def running(shops: Shops, flink_address: str) -> AsyncIterator[OnFlink]:
    """Its job, which ends with it."""
    async with submitter() as pyflink, opened(shops.app, shops.broker, shops.broker.address, flink_address) as flink:
        await flink.jobs.submit(shops.name, pyflink)
        yield flink
        await end_all(flink, shops.name)


@pytest.fixture
async def shops(kafka_address: str, unique: Callable[[str], str]) -> AsyncIterator[Shops]:
    async with declared(kafka_address, unique("sales"), small) as made:
        yield made


async def test_jobs_stopped_and_upgraded_go_on_where_they_were(
    shops: Shops, kafka_address: str, flink_address: str
) -> None:
    """From a savepoint, with another parallelism: every row of the reference, and no alert twice."""
    name = shops.name
    async with submitter() as pyflink, opened(shops.app, shops.broker, kafka_address, flink_address) as flink:
        jobs = flink.jobs
        assert [(name, None, None, True)] == [one for one in await jobs.list() if one.name == name]
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
        assert 2 == (await jobs.upgrade(name, pyflink, parallelism=2)).parallelism
        await shops.publish(40)
        await shops.wait_until_complete()
        assert len(read_all(shops.pipelines, shops.records).alerts) == await shops.alerts_written()
        await wait_until_committed(shops)
        await jobs.stop(name)
        assert 2 == (await jobs.submit(name, pyflink)).parallelism, "it is remembered"
        await end_all(flink, name)


async def wait_until_committed(shops: Shops) -> None:
    """Until the offsets that say to workers how far the features are cover everything."""
    admin, ends = shops.broker.admin(), dict[TopicPartition, int]()
    for one in shops.records:
        ends[TopicPartition(one.topic, one.partition)] = one.offset + 1
    async with asyncio.timeout(WITHIN_S):
        while True:
            committed = await admin.group_offsets(f"{FLINK_GROUP}.{shops.name}.1", [shops.name])
            if ends == {place: one.offset for place, one in committed.items()}:
                break
            await asyncio.sleep(0.2)
    await admin.close()


async def test_records_behind_the_watermark_are_seen_by_functions(
    kafka_address: str, flink_address: str, unique: Callable[[str], str]
) -> None:
    """What lies behind it in all partitions raises its alert behind `once`, is a late reference of a window behind `once`, and is the
    first of a slice that still runs."""

    def declare(name: str, topic: Topic) -> dict[str, Pipeline]:
        calm = topic.where(col.price > 55).alert(Large, at_most_once_per="1h", rule="calm", to=f"{name}.alerts")
        return small(name, topic) | {"calm": calm}

    async with declared(kafka_address, unique("sales"), declare) as shops, running(shops, flink_address):
        await shops.publish(50)
        await shops.wait_until_complete()  # windows are closed, so the watermark is there
        await shops.publish(40)  # begins 15 s behind it
        assert "rate" in {late[0] for late in read_all(shops.pipelines, shops.records).late}
        await shops.wait_until_complete()


async def test_functions_forget_when_the_watermark_passes_several_timers_at_once(
    kafka_address: str, flink_address: str, unique: Callable[[str], str]
) -> None:
    """Of hundreds of ids nothing is left in a savepoint."""

    def declare(name: str, topic: Topic) -> dict[str, Pipeline]:
        sales = topic.once("sale_id", within="10m").where(col.price > 1_000)
        return {"large": sales.alert(Large, id="sale_id", to=f"{name}.alerts")}

    async with declared(kafka_address, unique("sales"), declare) as shops, running(shops, flink_address) as flink:
        await shops.publish(590, ahead_ms=0)
        await wait_until_committed(shops)
        held = size_of(await flink.jobs.savepoint(shops.name))
        await shops.publish(1, ahead_ms=1_200_000)
        async with asyncio.timeout(WITHIN_S):
            while True:
                if size_of(await flink.jobs.savepoint(shops.name)) < held - 590 * 20:
                    break


def size_of(savepoint: str) -> int:
    """In bytes."""
    return sum(file.stat().st_size for file in Path(savepoint.removeprefix("file:")).rglob("*"))


async def test_jobs_kept_come_back_after_their_managers_are_killed(shops: Shops, kafka_address: str) -> None:
    """A task manager, and a job manager that forgets its jobs: rows are those of the reference, alerts twice have one id."""
    directory, name = await asyncio.to_thread(own_directory, "test-flink-jobs"), shops.name
    address = (await asyncio.to_thread(up, directory, FLINK_SERVICES)).flink
    stopping = asyncio.Event()
    try:
        async with submitter() as pyflink, opened(shops.app, shops.broker, kafka_address, address) as flink:
            await flink.jobs.submit(name, pyflink)
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(flink.keeper.keep([name], pyflink, stopping))
                await shops.publish(40)
                await shops.wait_until_complete()
                for killed in (WORKER, MANAGER):
                    await asyncio.to_thread(kill, directory, killed)
                    await shops.publish(30)
                    await asyncio.to_thread(up, directory, FLINK_SERVICES)
                    await shops.wait_until_complete()
                    await until_running(flink, name)
                stopping.set()
            await flink.jobs.stop(name)
    finally:
        await asyncio.to_thread(down, directory)


async def test_job_that_restarts_in_a_loop_is_listed_with_its_root_cause(shops: Shops, kafka_address: str) -> None:
    """In one line and not as Java's trace, also where the failure has ended the task manager with it; once the cause is gone the job goes
    on by itself, and nothing is missing."""
    directory, name, admin = await asyncio.to_thread(own_directory, "test-flink-loop"), shops.name, shops.broker.admin()
    address = (await asyncio.to_thread(up, directory, FLINK_SERVICES)).flink
    try:
        async with submitter() as pyflink, opened(shops.app, shops.broker, kafka_address, address) as flink:
            await flink.jobs.submit(name, pyflink)
            await admin.configure(f"{name}.alerts", {"max.message.bytes": "100"})
            cause = ""
            async with asyncio.timeout(WITHIN_S):
                while not cause.startswith("RecordTooLargeException: "):
                    await shops.publish(20, ahead_ms=0)  # again: a broker may apply a topic's setting a moment later
                    (found,) = [one.status for one in await flink.jobs.list() if one.name == name]
                    cause = found.cause if found is not None and found.restarts > 1 else ""
                    if await asyncio.to_thread(is_down, directory):  # as whoever runs task managers does
                        await asyncio.to_thread(up, directory, FLINK_SERVICES)
            assert 1 == len(cause.splitlines())
            await admin.configure(f"{name}.alerts", {"max.message.bytes": "1000000"})
            await shops.publish(5)
            async with asyncio.timeout(WITHIN_S):
                while True:
                    if await is_running(flink, name):
                        break
                    if await asyncio.to_thread(is_down, directory):
                        await asyncio.to_thread(up, directory, FLINK_SERVICES)
                    await asyncio.sleep(0.2)
            await shops.wait_until_complete()
    finally:
        await asyncio.to_thread(down, directory)
        await admin.close()


def is_down(directory: Path) -> bool:
    return any(each.state == "down" for each in status(directory))


async def until_running(flink: OnFlink, name: str) -> None:
    """Tasks of a manager that is gone may still have written what was expected."""
    async with asyncio.timeout(WITHIN_S):
        while True:
            if await is_running(flink, name):
                break
            await asyncio.sleep(0.5)


async def is_running(flink: OnFlink, name: str) -> bool:
    """Also while the job manager does not answer: no."""
    try:
        return ["RUNNING"] == [one.status.state for one in await flink.jobs.list() if one.name == name and one.status]
    except Unavailable:
        return False


def kill(directory: Path, name: str) -> None:
    (pid,) = (each.pid for each in status(directory) if each.name == name)
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    assert process.wait_until(lambda: is_down(directory), 10)


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
