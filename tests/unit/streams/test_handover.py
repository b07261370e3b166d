"""From Flink back to the asyncio engine: it goes on where the job has ended, also when its gates had come further, or not as far."""

import asyncio
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import msgspec
import pytest

from app.broker.base import Assignment, CommittedOffset
from app.broker.memory import MemoryBroker
from app.core.clock import Clock, ManualClock, run_virtual
from app.core.codec import encode
from app.core.record import TopicPartition
from app.streams.engine import Engine
from app.streams.graph import Alert, Topic
from app.streams.handover import begins_at, handed_to_engine
from app.streams.kept_jobs import TOPIC, KeptJob, KeptJobs
from app.streams.outputs import topics_of
from app.streams.pipelines import Pipeline, Source, fingerprint, pipelines_in
from app.streams.restore import CommitMark, encode_mark, parse_mark
from features import fraud

START_MS = 1_800_000_000_000
GROUP, GATES, FLINK = "test.streams", "test.gates", "test.flink"
GATE = f"{GATES}.raw.orders"
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
    """Of all partitions of a group: commits what it is told, and leaves."""

    def __init__(self, broker: MemoryBroker, group: str, topics: Sequence[str] = ("raw.orders",)) -> None:
        self._consumer = broker.consumer(group, topics, self)

    async def on_assigned(self, assignments: object) -> None: ...

    async def on_revoked(self, assignments: object) -> None: ...

    async def on_lost(self, assignments: object) -> None: ...

    async def commit(self, offset: int, mark: CommitMark | None = None, place: TopicPartition = PLACE) -> None:
        await self._consumer.start()
        await self._consumer.poll(1, 1)
        held: Assignment = next(one for one in self._consumer.assignments() if one.place == place)
        await self._consumer.commit({held: CommittedOffset(offset, "" if mark is None else encode_mark(mark))})
        await self._consumer.close()


async def broker_with(*values: bytes, jobs: Sequence[KeptJob] = (JOB,)) -> MemoryBroker:
    """A broker with these orders of one user, a second from each to the next, and a job that was stopped."""
    broker = MemoryBroker(ManualClock(START_MS + 10**9))
    await broker.admin().create([*topics_of([fraud.orders.source], PIPELINES), TOPIC])
    for at, value in enumerate(values):
        broker.append("raw.orders", value, b"u1", 0, START_MS + 1_000 * at, ())
    for job in jobs:
        await KeptJobs(broker).write(job)
    return broker


async def engine_runs(
    broker: MemoryBroker,
    clock: Clock,
    sources: Mapping[str, Source] = SOURCES,
    pipelines: Mapping[str, Pipeline] = PIPELINES,
) -> None:
    """As a worker that is started then, for five seconds; it ends in order."""
    handed = await handed_to_engine(broker, sources, pipelines, GROUP, GATES)
    stopping = asyncio.Event()
    running = asyncio.create_task(Engine(broker, list(sources.values()), pipelines, clock, GROUP, handed).run(stopping))
    await asyncio.sleep(5)
    stopping.set()
    await running


def written(broker: MemoryBroker, topic: str) -> list[dict[str, Any]]:
    logs = [log for place, log in broker.logs.items() if place.topic == topic]
    return [msgspec.json.decode(record.value or b"") for log in logs for record in log]


def alerted(broker: MemoryBroker) -> list[str]:
    return [alert["order_id"] for alert in written(broker, "processed.alerts")]


@pytest.mark.parametrize(
    ("own", "gates", "flink", "expected"),
    [
        (None, 3, 1, ["o1", "o2"]),
        (None, 3, 3, []),
        (None, 1, 3, ["o1", "o2"]),
        (None, 3, None, ["o0", "o1", "o2"]),
        (None, None, 2, ["o2"]),
        (1, 3, 2, ["o2"]),
        (1, None, 2, ["o2"]),
        (2, 3, 1, ["o2"]),
        (2, 2, 2, ["o2"]),
        (2, 1, 3, ["o2"]),
    ],
)
def test_handover_the_asyncio_engine_begins_behind_whoever_was_last(
    own: int | None, gates: int | None, flink: int | None, expected: list[str]
) -> None:
    """At the lower one of the job's and the gate's: no alert between them is lost, and no record behind the gate unjudged."""

    async def main(clock: Clock) -> None:
        broker = await broker_with(*map(order, range(3)))
        for group, offset in ((GROUP, own), (GATE, gates), (FLINK, flink)):
            if offset is not None:
                await Owner(broker, group).commit(offset, CommitMark(START_MS + 1_000 * (offset - 1), {}))
        for _ in range(2):
            await engine_runs(broker, clock)
            assert expected == alerted(broker), "and once"
        tiles = written(broker, "features.user_features")
        assert 3 == max((tile.get("order_count_5m", 0) for tile in tiles), default=0), "features know what came before"

    run_virtual(main, START_MS)


def test_handover_no_window_is_closed_by_both() -> None:
    """What lies behind the job's last commit it may have closed: the asyncio engine begins with windows after all of it."""

    async def main(clock: Clock) -> None:
        broker = await broker_with(order(0), order(1))
        for minute in (6, 12):
            broker.append("raw.orders", order(minute), b"u1", 0, START_MS + 60_000 * minute, ())
        await Owner(broker, FLINK).commit(2)
        await engine_runs(broker, clock)
        for minute in (40, 50):
            broker.append("raw.orders", order(minute), b"u1", 0, START_MS + 60_000 * minute, ())
        await engine_runs(broker, clock)
        rows = [row["window_start"] - START_MS for row in written(broker, "features.order_rate_5m")]
        assert [40 * 60_000] == rows

    run_virtual(main, START_MS)


@pytest.mark.parametrize("ahead_ms", [1_500, 60_000])
def test_handover_the_clock_is_that_of_valid_records(ahead_ms: int) -> None:
    """A bad record that lies ahead of its time moved no clock, so what comes behind it is not late."""

    async def main(clock: Clock) -> None:
        broker = await broker_with(order(0))
        broker.append("raw.orders", b"{", b"u1", 0, START_MS + 1_000 + ahead_ms, ())
        broker.append("raw.orders", order(2), b"u1", 0, START_MS + 2_000, ())
        await Owner(broker, FLINK).commit(2)
        await engine_runs(broker, clock)
        assert ["o2"] == alerted(broker)
        assert [] == written(broker, "raw.orders.late")
        found = await handed_to_engine(broker, SOURCES, PIPELINES, "another", GATES)
        mark = parse_mark(found[PLACE])
        assert (START_MS, 2) == (mark.reached_ms if mark else 0, found[PLACE].offset)

    run_virtual(main, START_MS)


class Sale(msgspec.Struct):
    sale_id: Annotated[str, msgspec.Meta(max_length=100)]
    shop: str


class Alone(Alert, frozen=True):
    sale_id: str


SALES = Topic("sales", Sale, key="shop", out_of_orderness="1ms", partitions=2)
LONE: dict[str, Pipeline] = {
    "alone": SALES.join(SALES, within=("1s", "10s"), prefix="next_").missing().alert(Alone, id="sale_id")
}


@pytest.mark.parametrize("quiet_own", [False, True])
@pytest.mark.parametrize("quiet_minutes", [0, 59, 120, None])
def test_handover_lone_records_that_wait_on_flink_for_a_quiet_partition_are_raised(
    quiet_minutes: int | None, quiet_own: bool
) -> None:
    """There the quietest partition of a topic counts, here each for itself; one that is silent for longer than an hour counts no more.
    quiet_own: the asyncio engine has committed there before the job, which came no further."""

    async def main(clock: Clock) -> None:
        busy, quiet = TopicPartition("sales", 0), TopicPartition("sales", 1)
        broker = MemoryBroker(ManualClock(START_MS + 10**9))
        await broker.admin().create([*topics_of([SALES.source], LONE), TOPIC])
        sources = {"sales": SALES.source}
        if quiet_minutes is not None:
            broker.append("sales", encode(Sale("quiet", "b")), b"b", 1, START_MS - 60_000 * quiet_minutes, ())
        for minute in (-100, -99, 1, 2, 3, 4):
            broker.append("sales", encode(Sale(f"m{minute}", "a")), b"a", 0, START_MS + 60_000 * minute, ())
        await KeptJobs(broker).write(msgspec.structs.replace(JOB, name="sales"))
        ended = 0 if quiet_minutes is None else 1
        await Owner(broker, FLINK, ["sales"]).commit(6, place=busy)
        await Owner(broker, FLINK, ["sales"]).commit(ended, place=quiet)
        if quiet_own:
            await Owner(broker, GROUP, ["sales"]).commit(ended, CommitMark(START_MS, {}), quiet)
        await engine_runs(broker, clock, sources, LONE)
        raised = [alert["sale_id"] for alert in written(broker, "processed.alerts")]
        assert ["m1", "m2", "m3"] == raised[1:], "m4 and the quiet one may still find a partner"
        assert ["m-99"] == raised[:1], "which the clock stands at where it begins"

    run_virtual(main, START_MS)


@pytest.mark.parametrize("changes", [{"over": True}, {"job_id": ""}])
def test_handover_jobs_that_are_over_or_never_began_have_left_nothing(changes: dict[str, object]) -> None:
    """Another one has their place, or nobody ever had it."""

    async def main(clock: Clock) -> None:
        broker = await broker_with(order(0))
        await KeptJobs(broker).write(msgspec.structs.replace(JOB, **changes))
        await Owner(broker, FLINK).commit(1)
        await Owner(broker, GATE).commit(1)
        assert {} == await handed_to_engine(broker, SOURCES, PIPELINES, GROUP, GATES)

    run_virtual(main, START_MS)


def test_handover_window_that_began_in_an_empty_partition_is_nobody_elses() -> None:
    """The stopped job cannot have read what came later."""

    async def main(clock: Clock) -> None:
        broker = await broker_with(jobs=(msgspec.structs.replace(JOB, ends={"raw.orders": [0] * 12}),))
        await Owner(broker, FLINK).commit(0)
        for minute in (0, 6, 40):
            broker.append("raw.orders", order(minute), b"u1", 0, START_MS + 60_000 * minute, ())
        await engine_runs(broker, clock)
        rows = [row["window_start"] - START_MS for row in written(broker, "features.order_rate_5m")]
        assert [0, 5 * 60_000] == rows

    run_virtual(main, START_MS)


@pytest.mark.parametrize("jobs", [(JOB,), ()])
def test_handover_of_a_topic_that_nothing_reads_goes_by_its_gate(jobs: Sequence[KeptJob]) -> None:
    """It was judged up to there, whether there was ever a job or not."""

    async def main(clock: Clock) -> None:
        broker = await broker_with(order(0), order(1), jobs=jobs)
        await Owner(broker, GATE).commit(1)
        assert 1 == (await handed_to_engine(broker, SOURCES, {}, GROUP, GATES))[PLACE].offset

    run_virtual(main, START_MS)


AT_5 = CommittedOffset(5, encode_mark(CommitMark(START_MS, {}, after=7)))


@pytest.mark.parametrize(
    ("committed", "expected"),
    [
        (None, AT_5),
        (CommittedOffset(4, encode_mark(CommitMark(0, {}))), AT_5),
        (CommittedOffset(6, encode_mark(CommitMark(0, {}))), AT_5),
        (CommittedOffset(7, encode_mark(CommitMark(0, {}))), None),
        (CommittedOffset(6, encode_mark(CommitMark(0, {}, after=7))), None),
        (CommittedOffset(6, encode_mark(CommitMark(0, {}, after=6))), AT_5),
        (CommittedOffset(3), None),
    ],
)
def test_handover_begins_at_what_is_newer(committed: CommittedOffset | None, expected: CommittedOffset | None) -> None:
    """Own commits count where they know of the other engine, lie behind its end, or were set by hand."""
    assert (expected or committed) == begins_at(committed, AT_5)
    assert committed == begins_at(committed, None)
