"""From Flink back to the asyncio engine: it goes on where the job has ended, also when its gates had come further, or not as far."""

import asyncio

import msgspec
import pytest

from app.broker.base import Assignment, CommittedOffset
from app.broker.memory import MemoryBroker
from app.core.clock import Clock, ManualClock, run_virtual
from app.core.record import TopicPartition
from app.streams.elsewhere import Elsewhere
from app.streams.engine import Engine
from app.streams.kept_jobs import TOPIC, KeptJob, KeptJobs
from app.streams.left_by_jobs import left_by_jobs
from app.streams.outputs import topics_of
from app.streams.pipelines import fingerprint, pipelines_in
from app.streams.restore import parse_mark
from features import fraud

START_MS = 1_800_000_000_000
GROUP, FLINK = "test.streams", "test.flink"
PLACE = TopicPartition("raw.orders", 0)
SOURCES = {"raw.orders": fraud.orders.source}
PIPELINES = pipelines_in(fraud)
JOB = KeptJob(
    name="raw.orders",
    generation=1,
    pipelines={name: fingerprint(one) for name, one in PIPELINES.items()},
    group=FLINK,
    parallelism=1,
    job_id="j-1",
    stopped=True,
)


def order(number: int) -> bytes:
    placed = '"amount_usd":20000,"status":"placed","timestamp":"2026-01-01T00:00:00Z"'
    return f'{{"order_id":"o{number}","user_id":"u1",{placed}}}'.encode()


class Owner:
    """Of all partitions of a group: commits what it is told."""

    def __init__(self, broker: MemoryBroker) -> None:
        self._consumer = broker.consumer(FLINK, ["raw.orders"], self)

    async def on_assigned(self, assignments: object) -> None: ...

    async def on_revoked(self, assignments: object) -> None: ...

    async def on_lost(self, assignments: object) -> None: ...

    async def commit(self, offset: int) -> None:
        await self._consumer.start()
        await self._consumer.poll(1, 1)
        held: Assignment = next(one for one in self._consumer.assignments() if one.place == PLACE)
        await self._consumer.commit({held: CommittedOffset(offset)})
        await self._consumer.close()


async def broker_with(*values: bytes) -> MemoryBroker:
    """A broker with these orders of one user, a second from each to the next, and a job that was stopped."""
    broker = MemoryBroker(ManualClock(START_MS + 10**9))
    await broker.admin().create([*topics_of([fraud.orders.source], PIPELINES), TOPIC])
    for at, value in enumerate(values):
        broker.append("raw.orders", value, b"u1", 0, START_MS + 1_000 * at, ())
    await KeptJobs(broker).write(JOB)
    return broker


async def runs(part: Engine | Elsewhere) -> None:
    """For five seconds, and ends in order."""
    stopping = asyncio.Event()
    running = asyncio.create_task(part.run(stopping))
    await asyncio.sleep(5)
    stopping.set()
    await running


async def asyncio_engine_runs(broker: MemoryBroker, clock: Clock) -> None:
    sources = list(SOURCES.values())
    await runs(Engine(broker, sources, PIPELINES, clock, GROUP, await left_by_jobs(broker, SOURCES)))


def alerted(broker: MemoryBroker) -> list[str]:
    return [
        msgspec.json.decode(record.value or b"")["order_id"]
        for place, log in broker.logs.items()
        if place.topic == "processed.alerts"
        for record in log
    ]


@pytest.mark.parametrize(
    ("gates", "flink", "expected"),
    [(3, 1, ["o1", "o2"]), (3, 3, []), (1, 3, ["o1", "o2"]), (3, None, ["o0", "o1", "o2"])],
)
def test_left_by_jobs_the_asyncio_engine_goes_on_at_the_lower_offset(
    gates: int, flink: int | None, expected: list[str]
) -> None:
    """No alert between the job's last checkpoint and the gates' commit is lost, and no record behind the gates unjudged."""

    async def main(clock: Clock) -> None:
        orders = [order(number) for number in range(3)]
        broker = await broker_with(*orders[:gates])
        await runs(Elsewhere(broker, list(SOURCES.values()), PIPELINES, clock, GROUP))
        assert (
            CommittedOffset(gates, broker.groups[GROUP].committed[PLACE].metadata)
            == broker.groups[GROUP].committed[PLACE]
        )
        for at, value in enumerate(orders[gates:], gates):
            broker.append("raw.orders", value, b"u1", 0, START_MS + 1_000 * at, ())
        if flink is not None:
            await Owner(broker).commit(flink)
        await asyncio_engine_runs(broker, clock)
        assert expected == alerted(broker)
        tiles = [
            msgspec.json.decode(record.value or b"")
            for record in broker.logs[TopicPartition("features.user_features", 0)]
        ]
        assert 3 == max(tile.get("order_count_5m", 0) for tile in tiles), "its features know what came before"

    run_virtual(main, START_MS)


def test_left_by_jobs_counts_no_more_once_the_asyncio_engine_was_there() -> None:
    """Its own commits are what it goes on from, though the job that was stopped is still known."""

    async def main(clock: Clock) -> None:
        broker = await broker_with(order(0), order(1))
        await runs(Elsewhere(broker, list(SOURCES.values()), PIPELINES, clock, GROUP))
        await Owner(broker).commit(1)
        for _ in range(2):
            await asyncio_engine_runs(broker, clock)
        assert ["o1"] == alerted(broker)
        mark = parse_mark(broker.groups[GROUP].committed[PLACE])
        assert mark is not None
        assert not mark.is_gate

    run_virtual(main, START_MS)


def test_left_by_jobs_no_window_is_closed_by_both() -> None:
    """What lies behind the job's last commit it may have closed: the asyncio engine begins with windows after all of it."""

    async def main(clock: Clock) -> None:
        broker = await broker_with(order(0), order(1))
        await runs(Elsewhere(broker, list(SOURCES.values()), PIPELINES, clock, GROUP))
        for minute in (6, 12):
            broker.append("raw.orders", order(minute), b"u1", 0, START_MS + 60_000 * minute, ())
        await Owner(broker).commit(2)
        await asyncio_engine_runs(broker, clock)
        broker.append("raw.orders", order(40), b"u1", 0, START_MS + 60_000 * 40, ())
        broker.append("raw.orders", order(50), b"u1", 0, START_MS + 60_000 * 50, ())
        await asyncio_engine_runs(broker, clock)
        rows = [
            msgspec.json.decode(record.value or b"")["window_start"] - START_MS
            for record in broker.logs[TopicPartition("features.order_rate_5m", 0)]
        ]
        assert [40 * 60_000] == rows

    run_virtual(main, START_MS)


@pytest.mark.parametrize("changes", [{"over": True}, {"job_id": ""}])
def test_left_by_jobs_that_are_over_or_never_began_have_left_nothing(changes: dict[str, object]) -> None:
    """Another one has their place, or nobody ever had it."""

    async def main(clock: Clock) -> None:
        broker = await broker_with(order(0))
        await KeptJobs(broker).write(msgspec.structs.replace(JOB, **changes))
        await Owner(broker).commit(1)
        assert {} == await left_by_jobs(broker, SOURCES)

    run_virtual(main, START_MS)
