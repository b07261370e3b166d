"""Shops whose sales are computed on a real Flink: a topic of its own, and everything that was published and written."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import asynccontextmanager
from itertools import count as numbers
from types import ModuleType
from typing import Annotated, Any, NamedTuple

import msgspec

from app.application import App
from app.broker.base import Broker
from app.core.clock import SystemClock
from app.core.codec import Usd, encode
from app.core.settings import Settings
from app.http.client import HttpClient
from app.streams.expressions import col
from app.streams.generations import add_generations
from app.streams.graph import Alert, Topic, count, total
from app.streams.pipelines import Pipeline
from flink_jobs.cluster import FlinkCluster
from flink_jobs.compiled import compile_jobs
from flink_jobs.generations import Generations, is_alive
from flink_jobs.keeping import Keeper
from flink_jobs.operations import Jobs
from tests.parity.meaning import SourceRecord
from tests.parity.reference import Outputs, read_all
from tests.parity.written import Written, outputs_of, read_back

PARTITIONS = 3
WITHIN_S = 60.0

Declare = Callable[[str, Topic], dict[str, Pipeline]]


class Sale(msgspec.Struct):
    sale_id: Annotated[str, msgspec.Meta(max_length=100)]
    shop: Annotated[str, msgspec.Meta(max_length=100)]
    price: Usd


class Large(Alert, frozen=True):
    shop: str
    price: Usd


def small(name: str, topic: Topic, window: str = "5m", within: str = "1h") -> dict[str, Pipeline]:
    """A pipeline of each kind that has a topic."""
    sales = topic.once("sale_id", within=within)
    return {
        "large": sales.where(col.price > 50).alert(Large, id="sale_id", to=f"{name}.alerts"),
        "per_shop": sales.live(window, tile="30s").aggregate(n=count(), spent=total(col.price)).serve(f"{name}.view"),
        "rate": sales.tumbling("10s").aggregate(n=count(), spent=total(col.price)).to(f"{name}.rate"),
    }


class Shops:
    """A topic of its own, its pipelines, and what was published."""

    def __init__(self, broker: Broker, name: str, declare: Declare) -> None:
        self.broker, self.name = broker, name
        self.topic = Topic(name, Sale, key="shop", out_of_orderness="5s", partitions=PARTITIONS, retention="forever")
        self.pipelines = declare(name, self.topic)
        self.app = self.declared(declare)
        self.records: list[SourceRecord] = []
        self._number = numbers()
        self._start_ms = SystemClock().now_ms() - 1_800_000

    def declared(self, declare: Declare) -> App:
        """An application of its topic."""
        module = ModuleType("declared")
        vars(module).update(declare(self.name, self.topic))
        return App([module], alert_partitions=PARTITIONS)

    async def declare(self, app: App) -> App:
        """The application with its topics, and as the generations that its pipelines are."""
        app.number(await add_generations(self.broker, app.pipelines))
        admin = self.broker.admin()
        await admin.create(app.topics.all())
        await admin.close()
        return app

    async def publish(self, sales: int, ahead_ms: int = 20_000) -> None:
        """So many sales, one a second of event time, every fifth twice; then heartbeats that close what is over."""
        producer, name = self.broker.producer(), self.name
        await producer.start()
        for number in (next(self._number) for _ in range(sales)):
            shop, at_ms = f"shop-{number % 7}", self._start_ms + number * 1_000
            value = encode({"sale_id": f"s-{number}", "shop": shop, "price": number % 100})
            for _ in range(1 + (number % 5 == 0)):
                await self._send(producer, name, number % 7 % PARTITIONS, at_ms, shop.encode(), value)
        for partition in range(PARTITIONS):
            await self._send(producer, name, partition, at_ms + ahead_ms, None, b'{"heartbeat":true}')
        assert [] == await producer.flush()
        await producer.close()

    async def write(self, *moments: tuple[int, int, str | None]) -> None:
        """A sale at a time in a partition by a shop, or a heartbeat by none; in this order."""
        producer = self.broker.producer()
        await producer.start()
        for partition, at_ms, shop in moments:
            number = next(self._number)
            value = encode({"sale_id": f"s-{number}", "shop": shop, "price": number % 100})
            key, value = (None, b'{"heartbeat":true}') if shop is None else (shop.encode(), value)
            await self._send(producer, self.name, partition, at_ms, key, value)
        assert [] == await producer.flush()
        await producer.close()

    async def _send(
        self, producer: Any, topic: str, partition: int, at_ms: int, key: bytes | None, value: bytes
    ) -> None:
        await producer.send(topic, value, key, partition=partition, timestamp_ms=at_ms)
        offset = sum((one.topic, one.partition) == (topic, partition) for one in self.records)
        self.records.append(SourceRecord(topic, partition, offset, at_ms, key, value))

    async def read(self, pipelines: Mapping[str, Pipeline] | None = None) -> dict[str, list[Written]]:
        """Everything that was written by some pipelines; the first ones unless given."""
        topics = {pipeline.topic for pipeline in (pipelines or self.pipelines).values()} | {f"{self.name}.late"}
        return await read_back(self.broker, dict.fromkeys(topics, PARTITIONS))

    async def wait_until_complete(self) -> None:
        """Until the engine has written what the reference says; an AssertionError says what is missing."""
        await wait_until_written(self.pipelines, self.records, self.read)

    async def alerts_written(self) -> int:
        return len((await self.read())[f"{self.name}.alerts"])


async def wait_until_written(
    pipelines: Mapping[str, Pipeline],
    records: list[SourceRecord],
    read: Callable[[], Awaitable[dict[str, list[Written]]]],
) -> Outputs:
    """Until what `read` gives is what the reference says; an AssertionError says what is missing. Windows have no place in a topic, since
    their partition is of the key."""
    expected = read_all(pipelines, records, bounded=False)
    deadline = asyncio.get_running_loop().time() + WITHIN_S
    while True:
        written = await read()
        differing = list(_differences(expected, outputs_of(pipelines, written.__getitem__)))
        if not differing:
            return expected
        assert asyncio.get_running_loop().time() < deadline, "\n".join(differing)
        await asyncio.sleep(0.3)


def _differences(expected: Outputs, found: Outputs) -> Iterator[str]:
    both: dict[str, tuple[set[Any], set[Any]]] = {
        "alerts": (expected.alerts, found.alerts),
        "late": (expected.late, found.late),
        "tiles": (_flat(expected.tiles), _flat(found.tiles)),
        "rows": (
            _flat({place[:3]: row for place, row in expected.rows.items()}),
            _flat({place[:3]: row for place, row in found.rows.items()}),
        ),
    }
    for name, (there, here) in both.items():
        missing, wrong = there - here, here - there
        if missing or wrong:
            yield f"{name}: {len(missing)} missing, {sorted(missing)[:3]}; {len(wrong)} wrong, {sorted(wrong)[:3]}"


def _flat(of: Mapping[Any, tuple[int, dict[str, Any]]]) -> set[tuple[Any, int, frozenset[Any]]]:
    """Amounts are equal by value."""
    return {(place, number, frozenset(values.items())) for place, (number, values) in of.items()}


class OnFlink(NamedTuple):
    """The jobs of an application on a cluster."""

    jobs: Jobs
    keeper: Keeper
    generations: Generations


@asynccontextmanager
async def opened(app: App, broker: Broker, kafka: str, flink: str) -> AsyncIterator[OnFlink]:
    async with HttpClient() as http:
        compiled = compile_jobs(app, Settings(broker=kafka, flink=flink))
        generations = Generations(FlinkCluster(flink, http), broker, SystemClock(), compiled)
        yield OnFlink(Jobs(generations), Keeper(generations), generations)


async def end_all(flink: OnFlink, name: str) -> None:
    """Gives their slots back."""
    for job in await flink.generations.kept.read():
        if job.name == name and is_alive(await flink.generations.status(job)):
            await flink.generations.cluster.cancel(job.job_id)
