"""A job on a real Flink that takes over: from another declaration while events come, and from the asyncio engine. Nothing twice,
nothing missing, no key with two values."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import msgspec
import pytest

from app.application import FLINK_GROUP, GATES_GROUP, STREAMS_GROUP, App
from app.broker.kafka import KafkaBroker
from app.core.clock import SystemClock
from app.core.errors import SetupError
from app.streams.elsewhere import Elsewhere
from app.streams.engine import Engine
from app.streams.expressions import col
from app.streams.graph import Topic, count, total
from app.streams.handover import gates_group, handed_to_engine
from app.streams.kept_jobs import KeptJob
from app.streams.pipelines import Pipeline
from app.streams.takeover import Takeover
from flink_jobs.child import submitter
from tests.flink_kit import WITHIN_S, Large, OnFlink, Shops, end_all, opened, small
from tests.parity.reference import Outputs, read_all
from tests.parity.written import outputs_of

pytestmark = [pytest.mark.flink, pytest.mark.kafka, pytest.mark.slow, pytest.mark.timeout(600)]

WINDOW_MS, TILE_MS = 120_000, 30_000


def first(name: str, topic: Topic) -> dict[str, Pipeline]:
    sales = topic.once("sale_id", within="1m")
    return small(name, topic, window="2m", within="1m") | {
        "steady": sales.tumbling("10s").aggregate(n=count()).to(f"{name}.steady"),
        "several": topic.burst(count=3, within="30s").alert(Large, id="sale_id", rule="several", to=f"{name}.alerts"),
        "alone": sales.join(topic.where(col.price > 60), within=("1s", "15s"), prefix="next_")
        .missing()
        .alert(Large, id="sale_id", rule="alone", to=f"{name}.alerts"),
    }


def second(name: str, topic: Topic) -> dict[str, Pipeline]:
    """Other alerts, another view, other rows; what is called steady, several and alone stays."""
    sales = topic.once("sale_id", within="1m")
    return first(name, topic) | {
        "large": sales.where(col.price > 30).alert(Large, id="sale_id", to=f"{name}.alerts"),
        "per_shop": sales.live("2m", tile="30s")
        .aggregate(n=count(), spent=total(col.price), cheap=count(when=col.price < 10))
        .serve(f"{name}.view"),
        "rate": sales.where(col.price > 5)
        .tumbling("10s")
        .aggregate(n=count(), spent=total(col.price))
        .to(f"{name}.rate"),
    }


@pytest.fixture
async def shops(kafka_address: str, unique: Callable[[str], str]) -> AsyncIterator[Shops]:
    broker = KafkaBroker(kafka_address, SystemClock(), replication=1)
    made = Shops(broker, unique("sales"), first)
    await made.declare(made.app)
    yield made
    await broker.close()


async def publish_on(shops: Shops, stopping: asyncio.Event) -> None:
    """Ten seconds of event time in one of ours."""
    while not stopping.is_set():
        await shops.publish(5, ahead_ms=0)
        try:
            await asyncio.wait_for(stopping.wait(), 0.5)
        except TimeoutError:
            continue


async def newest(flink: OnFlink, name: str) -> KeptJob:
    return [job for job in await flink.generations.kept.read() if job.name == name][-1]


async def until_written(shops: Shops, pipelines: dict[str, Pipeline], expected: Outputs) -> Outputs:
    """What was written, once all of it is there that is expected of some pipelines; an AssertionError says what is missing."""
    deadline = asyncio.get_running_loop().time() + WITHIN_S
    while True:
        found = outputs_of(pipelines, (await shops.read(pipelines)).__getitem__)
        alerts = expected.alerts - found.alerts
        tiles = {tile: value for tile, value in expected.tiles.items() if found.tiles.get(tile) != value}
        found.rows = {(*place[:3], -1): row for place, row in found.rows.items()}
        rows = expected.rows.keys() - found.rows.keys()
        if not alerts and not tiles and not rows:
            return found
        if asyncio.get_running_loop().time() > deadline:
            assert set() == alerts
            assert {} == tiles
            assert set() == rows
        await asyncio.sleep(0.5)


def left_to(takeover: Takeover, shops: Shops, old: Outputs, new: Outputs) -> Outputs:
    """By the law: alerts by the offset, rows of a changed declaration by the time that was reached, tiles that are whole."""
    offsets, reached = takeover.offsets[shops.name], takeover.reached_ms[shops.name]
    expected = Outputs()
    expected.alerts |= {alert for alert in old.alerts if alert.place[2] < offsets[alert.place[1]]}
    expected.alerts |= {alert for alert in new.alerts if alert.place[2] >= offsets[alert.place[1]]}
    for place, row in new.rows.items():
        if place[0] == f"{shops.name}.steady" or place[2] > reached[place[3]]:
            expected.rows[*place[:3], -1] = row
    for tile, value in new.tiles.items():
        if tile[2] >= takeover.whole_ms[shops.name][tile[3]]:
            expected.tiles[tile] = value
    return expected


async def written_twice(shops: Shops, takeover: Takeover) -> list[bytes]:
    """Alerts of records before the takeover that were written more than once. (Behind it both may have written one: what the one
    before did after its last commit nobody knows. And what time alone raises both may have raised in the last seconds.)"""
    counts = Counter[tuple[bytes, str]]()
    for record in (await shops.read())[f"{shops.name}.alerts"]:
        _, partition, offset = record.headers["origin"].decode().rsplit("/", 2)
        alert_id = msgspec.json.decode(record.value or b"")["alert_id"]
        if int(offset) < takeover.offsets[shops.name][int(partition)] and not alert_id.startswith("alone:"):
            counts[record.headers["origin"], alert_id] += 1
    assert counts
    return [origin for (origin, _), times in counts.items() if times > 1]


async def test_changed_declaration_takes_over_while_events_come(
    shops: Shops, kafka_address: str, flink_address: str
) -> None:
    """Each record has raised its alerts once, under the declaration that was there; rows that stayed have no hole, and features are whole."""
    name, stopping = shops.name, asyncio.Event()
    changed = await shops.declare(shops.declared(second))
    async with submitter() as pyflink:
        async with opened(shops.app, shops.broker, kafka_address, flink_address) as flink:
            await flink.jobs.submit(name, pyflink)
        await shops.publish(420, ahead_ms=0)
        await until_committed(shops, f"{FLINK_GROUP}.{name}.1")
        async with opened(changed, shops.broker, kafka_address, flink_address) as flink, asyncio.TaskGroup() as tasks:
            tasks.create_task(publish_on(shops, stopping))
            await flink.jobs.submit(name, pyflink)
            job = await newest(flink, name)
            listed = [
                (one.job.generation, one.is_declared) for one in await flink.jobs.list() if one.name == name and one.job
            ]
            stopping.set()
        await shops.publish(60)
        await judge(shops, changed, job)
        async with opened(changed, shops.broker, kafka_address, flink_address) as flink:
            await end_all(flink, name)
    assert [(2, True)] == listed, "the one before is over"
    assert changed.pipelines["per_shop"].topic == f"features.{name}.view.2"


async def test_changed_declaration_takes_over_from_a_job_that_was_stopped(
    shops: Shops, kafka_address: str, flink_address: str
) -> None:
    """It fills itself alone, and what came meanwhile is its own."""
    name = shops.name
    changed = await shops.declare(shops.declared(second))
    async with submitter() as pyflink:
        async with opened(shops.app, shops.broker, kafka_address, flink_address) as flink:
            await flink.jobs.submit(name, pyflink)
            await shops.publish(420, ahead_ms=0)
            await until_committed(shops, f"{FLINK_GROUP}.{name}.1")
            await flink.jobs.stop(name)
        await shops.publish(40, ahead_ms=0)
        async with opened(changed, shops.broker, kafka_address, flink_address) as flink:
            await flink.jobs.submit(name, pyflink)
            await shops.publish(60)
            await judge(shops, changed, await newest(flink, name))
            await end_all(flink, name)


async def judge(shops: Shops, changed: App, job: KeptJob) -> None:
    """What was written, by the law."""
    name, takeover = shops.name, job.takeover
    assert takeover is not None
    old, new = (read_all(one.pipelines, shops.records, bounded=False) for one in (shops.app, changed))
    expected = left_to(takeover, shops, old, new)
    found = await until_written(shops, changed.pipelines, expected)
    assert ["large", "per_shop", "rate"] == takeover.changed
    assert expected.alerts <= found.alerts
    assert found.alerts - expected.alerts <= old.alerts
    assert [] == await written_twice(shops, takeover)
    unknown = {place: row for place, row in found.rows.items() if expected.rows.get(place, row) != row}
    assert {} == unknown
    before = {place: row for place, row in found.rows.items() if place not in expected.rows}
    of_old = {(*place[:3], -1): row for place, row in old.rows.items()}
    assert before == {place: of_old[place] for place in before}
    assert {place[0] for place in before} == {f"{name}.rate"}
    for partition, whole_ms in enumerate(takeover.whole_ms[name]):
        assert 0 < whole_ms <= takeover.reached_ms[name][partition] - WINDOW_MS - TILE_MS


async def test_first_job_takes_over_from_the_asyncio_engine(
    shops: Shops, kafka_address: str, flink_address: str
) -> None:
    """It is refused while that runs; then it goes on at its offsets: no alert of before, and rows without a hole."""
    name, stopping = shops.name, asyncio.Event()
    pipelines = shops.app.pipelines
    engine = Engine(shops.broker, list(shops.app.sources.values()), pipelines, SystemClock(), STREAMS_GROUP)
    async with submitter() as pyflink, opened(shops.app, shops.broker, kafka_address, flink_address) as flink:
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(engine.run(stopping))
            await shops.publish(100, ahead_ms=0)
            await until_committed(shops, STREAMS_GROUP)
            with pytest.raises(SetupError, match="workers run these streams themselves; stop those"):
                await flink.jobs.submit(name, pyflink)
            stopping.set()
        await shops.publish(50, ahead_ms=0)
        await flink.jobs.submit(name, pyflink)
        await shops.publish(50)
        job = await newest(flink, name)
        await shops.wait_until_complete()
        await end_all(flink, name)
    assert job.takeover is not None
    assert not job.takeover.holds
    assert [] == [changed for changed in job.takeover.changed if changed in ("per_shop", "rate", "steady")]
    assert [] == await written_twice(shops, job.takeover)


@pytest.mark.parametrize("first", ["gates", "job"])
async def test_asyncio_engine_goes_on_where_a_job_was_stopped(
    first: str, shops: Shops, kafka_address: str, flink_address: str
) -> None:
    """Whichever of the job and its gates had come further: no alert and no tile is missing, and no row has two values."""
    name, broker, sources = shops.name, shops.broker, shops.app.sources
    pipelines, gates = shops.app.pipelines, gates_group(GATES_GROUP, name)
    beside = Elsewhere(broker, list(sources.values()), pipelines, SystemClock(), GATES_GROUP, STREAMS_GROUP)
    async with submitter() as pyflink, opened(shops.app, broker, kafka_address, flink_address) as flink:
        await flink.jobs.submit(name, pyflink)
        async with running(beside):
            await shops.publish(100, ahead_ms=0)
            for group in (gates, f"{FLINK_GROUP}.{name}.1"):
                await until_committed(shops, group)
            if first == "job":
                await flink.jobs.stop(name)
                await shops.publish(50, ahead_ms=0)
        if first == "gates":
            await shops.publish(50, ahead_ms=0)
            await until_committed(shops, f"{FLINK_GROUP}.{name}.1")
            await flink.jobs.stop(name)
    handed = await handed_to_engine(broker, sources, pipelines, STREAMS_GROUP, GATES_GROUP)
    assert 0 < sum(one.offset for one in handed.values()) < len(shops.records)
    async with running(Engine(broker, list(sources.values()), pipelines, SystemClock(), STREAMS_GROUP, handed)):
        await shops.publish(50, ahead_ms=30_000)
        expected = read_all(pipelines, shops.records, bounded=False)
        found = await until_written(shops, pipelines, Outputs(expected.alerts, expected.tiles))
    assert expected.alerts == found.alerts
    of_reference = {(*place[:3], -1): row for place, row in expected.rows.items()}
    assert {} == {place: row for place, row in found.rows.items() if of_reference.get(place) != row}
    assert {} == await handed_to_engine(broker, sources, pipelines, STREAMS_GROUP, GATES_GROUP)


@asynccontextmanager
async def running(part: Engine | Elsewhere) -> AsyncIterator[None]:
    """Until the block is left; then it ends in order."""
    stopping = asyncio.Event()
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(part.run(stopping))
        yield
        stopping.set()


async def until_committed(shops: Shops, group: str) -> None:
    """Until a group has committed all that was published."""
    admin = shops.broker.admin()
    async with asyncio.timeout(WITHIN_S):
        while True:
            committed = await admin.group_offsets(group, [shops.name])
            if len(shops.records) == sum(one.offset for one in committed.values()):
                break
            await asyncio.sleep(0.2)
    await admin.close()
