"""A worker whose streams run on Flink: bad records still become dead letters, and features still say up to when they are."""

import asyncio
import json
from collections.abc import Sequence
from typing import Any

import msgspec
import pytest

from app.broker.base import Assignment, CommittedOffset
from app.broker.memory import Fault, MemoryBroker
from app.core.clock import Clock, ManualClock, run_virtual
from app.core.errors import Unavailable
from app.core.record import TopicPartition
from app.streams.elsewhere import Elsewhere
from app.streams.engine import Engine
from app.streams.kept_jobs import TOPIC, KeptJob, KeptJobs
from app.streams.outputs import topics_of
from app.streams.pipelines import Pipeline, Source, fingerprint, pipelines_in
from app.streams.takeover import Takeover
from features import fraud, fraud_patterns

START_MS = 1_800_000_000_000
GROUP, GATES, FLINK = "test.streams", "test.gates", "test.flink"
GATE = f"{GATES}.raw.orders"
PLACE = TopicPartition("raw.orders", 0)
PIPELINES = pipelines_in(fraud)
ORDER = b'{"order_id":"o1","user_id":"u1","amount_usd":20000,"status":"placed","timestamp":"2026-01-01T00:00:00Z"}'


class Flink:
    """Commits what it is told; owns every partition of its group."""

    def __init__(self, broker: MemoryBroker) -> None:
        self._consumer = broker.consumer(FLINK, ["raw.orders"], self)

    async def on_assigned(self, assignments: object) -> None: ...

    async def on_revoked(self, assignments: object) -> None: ...

    async def on_lost(self, assignments: object) -> None: ...

    async def start(self) -> None:
        await self._consumer.start()
        await self._consumer.poll(1, 1)

    async def commit(self, offset: int) -> None:
        held: Assignment = next(one for one in self._consumer.assignments() if one.place == PLACE)
        await self._consumer.commit({held: CommittedOffset(offset)})


def progress_in(broker: MemoryBroker) -> list[dict[str, int]]:
    view = PIPELINES["user_features"]
    records = broker.logs[TopicPartition("features.user_features", 0)]
    assert {fingerprint(view).encode()} >= {record.header("fingerprint") for record in records}
    return [json.loads(record.value or b"") for record in records]


async def beside_flink(
    clock: Clock, *jobs: KeptJob, sources: Sequence[Source] = (fraud.orders.source,), **others: Pipeline
) -> tuple[MemoryBroker, Flink, Elsewhere]:
    """A broker with one good and one bad order, jobs as they are noted, and what a worker does beside them."""
    broker = MemoryBroker(ManualClock(START_MS + 10**9))
    await broker.admin().create([*topics_of(sources, PIPELINES | others), TOPIC])
    flink, kept = Flink(broker), KeptJobs(broker)
    await flink.start()
    broker.append("raw.orders", ORDER, b"u1", 0, START_MS, ())
    broker.append("raw.orders", b"{", b"u1", 0, START_MS, ())
    for job in jobs:
        await kept.write(job)
    return broker, flink, Elsewhere(broker, sources, PIPELINES | others, clock, GATES, GROUP)


def noted(**changes: Any) -> KeptJob:
    """A job of the orders, as they are declared."""
    of = {name: fingerprint(one) for name, one in PIPELINES.items()}
    job = KeptJob(name="raw.orders", generation=1, pipelines=of, group=FLINK, parallelism=1, job_id="j-1")
    return msgspec.structs.replace(job, **changes)


def test_elsewhere_progress_is_what_flink_has_committed() -> None:
    """Not what the gates have read: until Flink has committed beyond an end that was seen, nobody claims anything."""

    async def main(clock: Clock) -> None:
        broker, flink, elsewhere = await beside_flink(clock, noted())
        stopping = asyncio.Event()
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(elsewhere.run(stopping))
            await asyncio.sleep(3.5)
            assert [] == progress_in(broker)
            await flink.commit(1)
            await asyncio.sleep(3)
            assert [] == progress_in(broker), "one record of those that were there is not in the tiles"
            await flink.commit(2)
            await asyncio.sleep(3)
            stopping.set()
        first = progress_in(broker)[0]
        assert START_MS < first["as_of"] <= START_MS + 10_000
        assert 2 == first["offset"]
        assert 2 == broker.groups[GATE].committed[PLACE].offset
        assert 1 == len(broker.logs[TopicPartition("raw.orders.dead", 0)])
        assert [] == broker.logs[TopicPartition("state.order_rate", 0)]
        assert not any(log for place, log in broker.logs.items() if place.topic == "processed.alerts")

    run_virtual(main, START_MS)


@pytest.mark.parametrize("job", [noted(over=True), noted(pipelines={"user_features": "of before"})])
def test_elsewhere_progress_of_a_view_that_no_job_computes_stands_still(job: KeptJob) -> None:
    """An old job would speak for features that it has never made."""

    async def main(clock: Clock) -> None:
        broker, flink, elsewhere = await beside_flink(clock, job)
        stopping = asyncio.Event()
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(elsewhere.run(stopping))
            await flink.commit(2)
            await asyncio.sleep(5)
            stopping.set()
        assert [] == progress_in(broker)

    run_virtual(main, START_MS)


def test_elsewhere_progress_waits_for_a_whole_window_behind_what_is_gone() -> None:
    """A job that could not read back its topic counts what came since, and its view says nothing until that is all that counts."""

    async def main(clock: Clock) -> None:
        begun = {"raw.orders": [START_MS] * 12}
        takeover = Takeover(
            read=begun, whole_ms=begun, offsets=begun, reached_ms=begun, closed_ms=begun, changed=[], holds=False
        )
        broker, flink, elsewhere = await beside_flink(clock, noted(takeover=takeover))
        stopping = asyncio.Event()
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(elsewhere.run(stopping))
            await flink.commit(2)
            await asyncio.sleep(320)
            assert [] == progress_in(broker)
            await asyncio.sleep(20)
            stopping.set()
        assert START_MS + 330_000 < progress_in(broker)[0]["as_of"]

    run_virtual(main, START_MS)


@pytest.mark.parametrize("before", [None, {"job_id": ""}, {"stopped": True}, {"over": True}])
def test_elsewhere_gates_wait_until_a_job_stands(
    before: dict[str, Any] | None, caplog: pytest.LogCaptureFixture
) -> None:
    """Until then it is not decided who runs the streams: a worker may come that does so itself, and judges what it reads."""

    async def main(clock: Clock) -> None:
        broker, _, elsewhere = await beside_flink(clock, *([] if before is None else [noted(**before)]))
        stopping = asyncio.Event()
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(elsewhere.run(stopping))
            await asyncio.sleep(5)
            assert GATE not in broker.groups
            await KeptJobs(broker).write(noted())
            await asyncio.sleep(5)
            stopping.set()
        assert 2 == broker.groups[GATE].committed[PLACE].offset
        assert "raw.orders: no job on Flink reads it" in caplog.text

    run_virtual(main, START_MS)


def test_elsewhere_a_topic_without_a_job_keeps_no_other_waiting(caplog: pytest.LogCaptureFixture) -> None:
    """The features of the orders stay fresh while nobody has submitted the job of the payments yet; its gate begins when somebody has."""

    async def main(clock: Clock) -> None:
        sources = fraud.orders.source, fraud_patterns.payments.source
        failed = pipelines_in(fraud_patterns)["failed_payments"]
        broker, flink, elsewhere = await beside_flink(clock, noted(), sources=sources, failed_payments=failed)
        payments = TopicPartition("raw.payments", 0)
        broker.append("raw.payments", b"{", b"u1", 0, START_MS, ())
        stopping = asyncio.Event()
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(elsewhere.run(stopping))
            await asyncio.sleep(5)
            await flink.commit(2)
            await asyncio.sleep(5)
            assert 2 == broker.groups[GATE].committed[PLACE].offset
            assert f"{GATES}.raw.payments" not in broker.groups
            assert progress_in(broker)
            assert "raw.payments: no job on Flink reads it" in caplog.text
            told = len(progress_in(broker))
            await KeptJobs(broker).write(noted(name="raw.payments", pipelines={}))
            await asyncio.sleep(5)
            stopping.set()
        assert 1 == broker.groups[f"{GATES}.raw.payments"].committed[payments].offset
        assert 1 == len(broker.logs[TopicPartition("raw.payments.dead", 0)])
        assert told < len(progress_in(broker)), "the orders go on"

    run_virtual(main, START_MS)


def test_elsewhere_gates_end_when_their_job_is_stopped_and_begin_again_where_they_were() -> None:
    """Workers may run the streams themselves then. Nothing is judged twice, also by another engine."""

    async def main(clock: Clock) -> None:
        broker, _, elsewhere = await beside_flink(clock, noted())
        stopping = asyncio.Event()
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(elsewhere.run(stopping))
            await asyncio.sleep(5)
            await KeptJobs(broker).write(noted(stopped=True))
            await asyncio.sleep(5)
            assert [] == broker.groups[GATE].members
            await runs(engine_on(broker, clock))
            broker.append("raw.orders", b"[", b"u1", 0, START_MS, ())
            await KeptJobs(broker).write(noted())
            await asyncio.sleep(5)
            stopping.set()
        letters = broker.logs[TopicPartition("raw.orders.dead", 0)]
        groups = [record.header("group") for record in letters]
        assert [b"{", b"{", b"["] == [record.value for record in letters], "the engine has read from its own commit"
        assert [GROUP.encode()] * 3 == groups, "so that replay knows the first two for one"

    run_virtual(main, START_MS)


def engine_on(broker: MemoryBroker, clock: Clock) -> Engine:
    """Of a worker that runs the streams itself."""
    return Engine(broker, [fraud.orders.source], PIPELINES, clock, GROUP)


async def runs(part: Engine | Elsewhere) -> None:
    """For five seconds, and ends in order."""
    stopping = asyncio.Event()
    running = asyncio.create_task(part.run(stopping))
    await asyncio.sleep(5)
    stopping.set()
    await running


def test_elsewhere_gates_begin_behind_what_the_asyncio_engine_has_judged() -> None:
    """Also where they have been before it."""

    async def main(clock: Clock) -> None:
        broker, _, elsewhere = await beside_flink(clock, noted())
        await runs(engine_on(broker, clock))
        await runs(elsewhere)
        assert 2 == broker.groups[GATE].committed[PLACE].offset
        assert 1 == len(broker.logs[TopicPartition("raw.orders.dead", 0)])

    run_virtual(main, START_MS)


def test_elsewhere_a_topic_that_nothing_reads_is_judged_without_a_job() -> None:
    """No job would ever read it."""

    async def main(clock: Clock) -> None:
        sources = fraud.orders.source, fraud_patterns.payments.source
        broker, _, elsewhere = await beside_flink(clock, sources=sources)
        broker.append("raw.payments", b"{", b"u1", 0, START_MS, ())
        await runs(elsewhere)
        assert 1 == len(broker.logs[TopicPartition("raw.payments.dead", 0)])
        assert [] == broker.logs[TopicPartition("raw.orders.dead", 0)]

    run_virtual(main, START_MS)


def test_elsewhere_says_an_outage_as_the_engine_does() -> None:
    """A worker begins a part anew that raises `Unavailable`, and ends with everything else."""

    async def main(clock: Clock) -> None:
        broker, _, elsewhere = await beside_flink(clock, noted())
        running = asyncio.create_task(elsewhere.run(asyncio.Event()))
        await asyncio.sleep(3)
        broker.plan(Fault("commit", "fail", Unavailable("memory://: away")))
        broker.append("raw.orders", ORDER, b"u1", 0, START_MS, ())
        with pytest.raises(Unavailable, match="away"):
            await running

    run_virtual(main, START_MS)
