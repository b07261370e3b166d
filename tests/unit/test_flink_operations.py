"""What is submitted, kept and stopped, on a cluster that only remembers its jobs: no job twice, none forgotten, one engine at a time."""

import asyncio
from collections.abc import Callable
from typing import Any, cast

import msgspec
import pytest

from app.application import STREAMS_GROUP
from app.broker.base import Assignment, CommittedOffset
from app.broker.memory import MemoryBroker
from app.core.clock import ManualClock
from app.core.errors import SetupError
from app.core.record import TopicPartition
from app.streams.aggregates import Aggregate
from app.streams.graph import count
from app.streams.kept_jobs import TOPIC, KeptJob, require_no_job
from app.streams.pipelines import Pipeline, fingerprint, pipelines_in
from app.streams.restore import CommitMark, TableMark, encode_mark
from app.streams.sql import Settings, jobs_of
from features import fraud
from features.records import order_events, payment_events
from flink_jobs.child import Submitter
from flink_jobs.cluster import FlinkCluster, JobStatus
from flink_jobs.compiled import CompiledJobs
from flink_jobs.generations import Generations
from flink_jobs.keeping import ENDING_MS, Keeper
from flink_jobs.operations import Jobs

NOW = 1_800_000_000_000
ORDERS, PAYMENTS = "raw.orders", "raw.payments"
N: dict[str, Aggregate] = {"n": count()}
ORDER_RATE: dict[str, Pipeline] = {"rate": order_events.tumbling("1m").aggregate(**N).to("rate")}
HOUR_RATE: dict[str, Pipeline] = {"rate": order_events.tumbling("1h").aggregate(**N).to("rate")}
PAYMENT_RATE: dict[str, Pipeline] = {"paid": payment_events.tumbling("1m").aggregate(**N).to("paid")}
BOTH = {
    **ORDER_RATE,
    "unpaid": order_events.join(payment_events, on="order_id", within=("0s", "5m"), prefix="paid_")
    .missing()
    .alert(fraud.HighValueOrder, id="order_id"),
}
PLACES = [TopicPartition(ORDERS, partition) for partition in range(12)]


class Cluster:
    """Knows jobs by what was submitted; one that is stopped or cancelled has ended. Submits too."""

    address = "http://127.0.0.1:1"
    is_gone = False

    def __init__(self) -> None:
        self.known: dict[str, JobStatus] = {}
        self.submitted: list[tuple[str, str]] = []
        """Name and checkpoint of each."""

    def add(self, name: str, state: str = "RUNNING", since_ms: int = NOW) -> str:
        job_id = str(len(self.known) + 1)
        self.known[job_id] = JobStatus(job_id=job_id, name=name, state=state, since_ms=since_ms)
        return job_id

    async def job(self, job_id: str) -> JobStatus | None:
        return self.known.get(job_id)

    async def running(self, name: str, since_ms: int) -> list[str]:
        return [one.job_id for one in self.known.values() if one.name == name and one.state == "RUNNING"]

    def configuration(self, checkpoint: str) -> dict[str, str]:
        return {"path": checkpoint}

    async def checkpoint_folder(self, job_id: str) -> str:
        return ""

    async def submit(self, job: Any, configuration: dict[str, str]) -> str:
        """As the submitter's."""
        self.submitted.append((job.name, configuration["path"]))
        return self.add(job.name)

    async def stop(self, job_id: str) -> str:
        await self.cancel(job_id)
        return f"savepoint-{job_id}"

    async def cancel(self, job_id: str) -> None:
        self.known[job_id] = msgspec.structs.replace(self.known[job_id], state="FINISHED")

    def names(self) -> list[str]:
        return [one.name for one in self.known.values() if one.state == "RUNNING"]


class Member:
    """Of a group; owns all partitions of a topic, and commits."""

    def __init__(self, broker: MemoryBroker, group: str, topic: str) -> None:
        self._consumer = broker.consumer(group, [topic], self)

    async def on_assigned(self, assignments: object) -> None: ...

    async def on_revoked(self, assignments: object) -> None: ...

    async def on_lost(self, assignments: object) -> None: ...

    async def commit(self, offset: int, metadata: str = "") -> None:
        await self._consumer.start()
        await self._consumer.poll(1, 1)
        held: frozenset[Assignment] = self._consumer.assignments()
        await self._consumer.commit({one: CommittedOffset(offset, metadata) for one in held})

    async def leave(self) -> None:
        await self._consumer.close()


class Setting:
    """A broker with ten orders in each partition, one a second, and a cluster."""

    def __init__(self) -> None:
        self.broker = MemoryBroker(ManualClock(NOW))
        self.cluster = Cluster()

    async def begin(self) -> "Setting":
        await self.broker.admin().create([order_events.source.spec, payment_events.source.spec, TOPIC])
        for place in PLACES:
            for number in range(10):
                self.broker.append(place.topic, b"{}", b"u", place.partition, NOW - 100_000 + number * 1_000, ())
        return self

    def of(self, pipelines: dict[str, Pipeline]) -> Generations:
        """As an application with these pipelines sees it."""
        compiled = CompiledJobs(jobs_of(pipelines), Settings(bootstrap_servers=""))
        return Generations(cast(FlinkCluster, self.cluster), self.broker, ManualClock(NOW), compiled)

    async def submit(self, pipelines: dict[str, Pipeline], name: str = ORDERS) -> None:
        submitting = Jobs(self.of(pipelines)).submit(name, cast(Submitter, self.cluster))
        await asyncio.wait_for(submitting, 20)

    async def noted(self, **changes: Any) -> KeptJob:
        """A job of the order rate, as it is noted and known to the cluster."""
        of = {"rate": fingerprint(ORDER_RATE["rate"])}
        job = KeptJob(
            name=ORDERS, generation=1, pipelines=of, group="g.1", parallelism=3, checkpoint="chk-7", at_ms=NOW
        )
        job = msgspec.structs.replace(job, **changes)
        await self.of(ORDER_RATE).kept.write(job)
        return job

    async def jobs(self) -> list[KeptJob]:
        return await self.of(ORDER_RATE).kept.read()


@pytest.fixture
async def setting() -> Setting:
    return await Setting().begin()


async def look(
    setting: Setting, pipelines: dict[str, Pipeline] = ORDER_RATE, done: Callable[[], bool] | None = None
) -> None:
    """What `submit --keep` does in its first moments, or until something is done."""
    stopping = asyncio.Event()
    keeper = Keeper(setting.of(pipelines))
    keeping = asyncio.create_task(keeper.keep([ORDERS], cast(Submitter, setting.cluster), stopping))
    await (until(done) if done else asyncio.sleep(0.1))
    stopping.set()
    await keeping


async def until(holds: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while True:
            if holds():
                return
            await asyncio.sleep(0.05)


@pytest.mark.parametrize(
    ("state", "since_ms", "changes", "is_started"),
    [
        ("RUNNING", NOW, {}, False),
        ("FAILED", NOW, {}, True),
        ("", NOW, {}, True),
        ("FINISHED", NOW, {}, False),
        ("CANCELED", NOW, {}, False),
        ("FINISHED", NOW - ENDING_MS - 1, {}, True),
        ("FINISHED", NOW - ENDING_MS - 1, {"stopped": True}, False),
        ("FAILED", NOW, {"pipelines": {"rate": "of before"}}, False),
        ("FAILED", NOW, {"over": True}, False),
    ],
)
async def test_keeper_starts_again_what_nobody_has_ended(
    setting: Setting, state: str, since_ms: int, changes: dict[str, Any], is_started: bool
) -> None:
    """A job that is just being stopped, upgraded or begun anew is not submitted twice, nor state of another declaration read."""
    job_id = setting.cluster.add(f"{ORDERS}/1", state, since_ms) if state else "gone"
    await setting.noted(job_id=job_id, **changes)
    await look(setting)
    assert ([(f"{ORDERS}/1", "chk-7")] if is_started else []) == setting.cluster.submitted
    assert 3 == (await setting.jobs())[0].parallelism, "an upgrade's is remembered"


async def test_submit_of_a_job_that_nobody_noted_takes_it_for_its_own(setting: Setting) -> None:
    """After a crash between submitting and noting, the cluster has it already."""
    job_id = setting.cluster.add(f"{ORDERS}/1")
    await setting.noted(job_id="", checkpoint="")
    await setting.submit(ORDER_RATE)
    assert [] == setting.cluster.submitted
    assert [job_id] == [job.job_id for job in await setting.jobs()]


async def test_keeper_finishes_a_submit_that_was_broken_off(setting: Setting) -> None:
    """Not before whoever submits has had his time."""
    await setting.noted(job_id="", checkpoint="", at_ms=NOW - ENDING_MS + 1)
    await look(setting)
    assert [] == setting.cluster.submitted
    await setting.noted(job_id="", checkpoint="", at_ms=NOW - ENDING_MS)
    await look(setting)
    assert [(f"{ORDERS}/1", "")] == setting.cluster.submitted


async def test_submit_of_a_changed_job_stops_the_one_before_when_it_has_come_as_far(setting: Setting) -> None:
    """It fills itself beside that one, is stopped, and goes on from its savepoint where that one has ended."""
    await setting.submit(ORDER_RATE)
    old, new = (
        Member(setting.broker, f"headrace.flink.{ORDERS}.1", ORDERS),
        Member(setting.broker, f"headrace.flink.{ORDERS}.2", ORDERS),
    )
    await old.commit(9)
    submitting = asyncio.create_task(setting.submit(HOUR_RATE))
    await until(lambda: f"{ORDERS}/2" in setting.cluster.names())
    first, second = await setting.jobs()
    assert second.takeover is not None
    assert (True, [10] * 12, ["rate"]) == (second.holds, second.takeover.offsets[ORDERS], second.takeover.changed)
    assert [f"{ORDERS}/1", f"{ORDERS}/2"] == setting.cluster.names()
    await new.commit(10)
    await until(lambda: [f"{ORDERS}/1"] == setting.cluster.names())
    await old.commit(10)
    await submitting
    first, second = await setting.jobs()
    assert second.takeover is not None
    assert (True, True) == (first.stopped, first.over)
    assert [f"{ORDERS}/2"] == setting.cluster.names()
    assert [("/1", ""), ("/2", ""), ("/2", "savepoint-2")] == [(n[-2:], path) for n, path in setting.cluster.submitted]
    assert ([10] * 12, [NOW - 91_000] * 12) == (second.takeover.offsets[ORDERS], second.takeover.reached_ms[ORDERS])
    assert not second.holds


async def test_submit_of_a_changed_job_begins_again_when_the_one_before_fell_behind(setting: Setting) -> None:
    """What it has passed over in silence, and nobody else has told, must not be lost."""
    await setting.submit(ORDER_RATE)
    old, new = (Member(setting.broker, f"headrace.flink.{ORDERS}.{number}", ORDERS) for number in (1, 2))
    await old.commit(9)
    submitting = asyncio.create_task(setting.submit(HOUR_RATE))
    await until(lambda: f"{ORDERS}/2" in setting.cluster.names())
    setting.cluster.known["1"] = msgspec.structs.replace(setting.cluster.known["1"], state="FAILED")
    await new.commit(10)
    await submitting
    third = (await setting.jobs())[-1]
    assert third.takeover is not None
    assert (3, [9] * 12, False) == (third.generation, third.takeover.offsets[ORDERS], third.holds)
    assert [NOW - 91_000] * 12 == third.takeover.reached_ms[ORDERS], (
        "what the failed one may have closed is not begun again"
    )
    assert [f"{ORDERS}/3"] == setting.cluster.names()


async def test_stop_while_a_new_generation_fills_itself_ends_that_too(setting: Setting) -> None:
    """What somebody has stopped stays so; the next submit begins the takeover anew, with nobody before it that runs."""
    await setting.submit(ORDER_RATE)
    await Member(setting.broker, f"headrace.flink.{ORDERS}.1", ORDERS).commit(9)
    submitting = asyncio.create_task(setting.submit(HOUR_RATE))
    await until(lambda: f"{ORDERS}/2" in setting.cluster.names())
    submitting.cancel()
    assert "savepoint-1" == await Jobs(setting.of(HOUR_RATE)).stop(ORDERS)
    assert [] == setting.cluster.names()
    assert [(1, False), (2, True)] == [(job.generation, job.over) for job in await setting.jobs()]
    await setting.submit(HOUR_RATE)
    third = (await setting.jobs())[-1]
    assert third.takeover is not None
    assert (3, False, [9] * 12) == (third.generation, third.holds, third.takeover.offsets[ORDERS])


async def test_keeper_goes_on_with_a_takeover_that_was_broken_off(setting: Setting) -> None:
    """From wherever it stood: here the new one was stopped to hand over, and nobody has noted so."""
    await setting.submit(ORDER_RATE)
    old = Member(setting.broker, f"headrace.flink.{ORDERS}.1", ORDERS)
    await old.commit(9)
    submitting = asyncio.create_task(setting.submit(HOUR_RATE))
    await until(lambda: f"{ORDERS}/2" in setting.cluster.names())
    submitting.cancel()
    second = (await setting.jobs())[-1]
    await setting.of(HOUR_RATE).kept.write(msgspec.structs.replace(second, at_ms=NOW - ENDING_MS))
    setting.cluster.known["2"] = msgspec.structs.replace(
        setting.cluster.known["2"], state="FINISHED", checkpoint="savepoint-2"
    )
    await old.commit(10)
    await look(setting, HOUR_RATE, lambda: [f"{ORDERS}/2"] == setting.cluster.names())
    second = (await setting.jobs())[-1]
    assert [f"{ORDERS}/2"] == setting.cluster.names()
    assert (f"{ORDERS}/2", "savepoint-2") == setting.cluster.submitted[-1]
    assert not second.holds


async def test_job_of_other_topics_is_a_change_of_the_one_that_read_them(setting: Setting) -> None:
    """A job is named by its topics, so a new join gives it another name; the old one is not left beside it."""
    await setting.submit(ORDER_RATE)
    await Jobs(setting.of(ORDER_RATE)).stop(ORDERS)
    await setting.submit(BOTH, f"{ORDERS}+{PAYMENTS}")
    assert [f"{ORDERS}+{PAYMENTS}/1"] == setting.cluster.names()
    assert {ORDERS: True, f"{ORDERS}+{PAYMENTS}": False} == {job.name: job.over for job in await setting.jobs()}


async def test_job_split_in_two_is_over_when_both_have_taken_over(setting: Setting) -> None:
    """The second one needs to know where it has ended."""
    await setting.submit(BOTH, f"{ORDERS}+{PAYMENTS}")
    await Jobs(setting.of(BOTH)).stop(f"{ORDERS}+{PAYMENTS}")
    await setting.submit(ORDER_RATE | PAYMENT_RATE, ORDERS)
    assert [False, False] == [job.over for job in await setting.jobs()]
    await setting.submit(ORDER_RATE | PAYMENT_RATE, PAYMENTS)
    whole, orders, paid = sorted(await setting.jobs(), key=lambda job: (not job.over, job.name))
    assert (True, ORDERS, PAYMENTS) == (whole.over, orders.name, paid.name)
    assert paid.takeover is not None


async def test_jobs_list_and_stop_know_what_is_declared_no_more(setting: Setting) -> None:
    """It goes on writing until somebody stops it."""
    await setting.submit(ORDER_RATE)
    jobs = Jobs(setting.of(PAYMENT_RATE))
    listed = [(one.name, one.job is not None, one.is_declared) for one in await jobs.list()]
    assert [(PAYMENTS, False, True), (ORDERS, True, False)] == listed
    assert "savepoint-1" == await jobs.stop(ORDERS)
    assert [] == setting.cluster.names()


@pytest.mark.parametrize(
    ("state", "checkpoint", "is_lost"),
    [("FAILED", "chk-7", False), ("", "chk-7", False), ("RUNNING", "chk-7", True), ("FINISHED", "savepoint-9", False)],
)
async def test_stop_of_a_job_that_has_ended_notes_where_it_has(
    setting: Setting, state: str, checkpoint: str, is_lost: bool
) -> None:
    """Or workers could never run its streams themselves again: they are refused while a job stands. One that has finished was stopped
    by somebody who did not come to note so, and only its savepoint is left."""
    job_id = setting.cluster.add(f"{ORDERS}/1", state) if state else "gone"
    if state == "FINISHED":
        setting.cluster.known[job_id] = msgspec.structs.replace(setting.cluster.known[job_id], checkpoint=checkpoint)
    await setting.noted(job_id=job_id)
    with pytest.raises(SetupError, match="these streams run on Flink"):
        await require_no_job(setting.broker, [ORDERS])
    jobs = Jobs(setting.of(ORDER_RATE))
    assert [ORDERS] == await jobs.standing()
    assert checkpoint == await jobs.stop(ORDERS, is_lost=is_lost)
    await require_no_job(setting.broker, [ORDERS])
    assert [] == await jobs.standing()
    with pytest.raises(SetupError, match="does not run"):
        await jobs.stop(ORDERS)
    await setting.submit(ORDER_RATE)
    assert is_lost or [(f"{ORDERS}/1", checkpoint)] == setting.cluster.submitted


async def test_submit_is_refused_wherever_it_stands_while_workers_run_the_streams(setting: Setting) -> None:
    """Also where they have not come beyond the job yet, and where a submit was broken off before."""
    workers = Member(setting.broker, STREAMS_GROUP, ORDERS)
    await workers.commit(0)
    for changes in ({"job_id": "1", "stopped": True}, {"job_id": ""}, {"job_id": "gone"}):
        await setting.noted(**changes)
        with pytest.raises(SetupError, match="workers run these streams themselves"):
            await setting.submit(ORDER_RATE)
    await workers.leave()
    await setting.submit(ORDER_RATE)


async def test_submit_that_was_broken_off_takes_over_again_from_an_engine_that_went_on(setting: Setting) -> None:
    """What it had noted of where that had ended is old."""
    workers = Member(setting.broker, STREAMS_GROUP, ORDERS)
    await workers.commit(7)
    await workers.leave()
    generations = setting.of(ORDER_RATE)
    assert "" == await generations.advance(ORDERS, cast(Submitter, setting.cluster))
    workers = Member(setting.broker, STREAMS_GROUP, ORDERS)
    await workers.commit(9)
    await workers.leave()
    await setting.submit(ORDER_RATE)
    old, new = await setting.jobs()
    assert old.over
    assert new.takeover is not None
    assert [9] * 12 == new.takeover.offsets[ORDERS]


async def test_submit_where_the_asyncio_engine_was_goes_on_at_its_offsets(setting: Setting) -> None:
    """Refused while that runs. What did not change goes on with its windows, and alerts are those of what lies behind."""
    table = TableMark(fingerprint(ORDER_RATE["rate"]), 0, 0, 0)
    workers = Member(setting.broker, STREAMS_GROUP, ORDERS)
    await workers.commit(7, encode_mark(CommitMark(NOW - 94_000, {"rate": table}, is_last=True)))
    with pytest.raises(SetupError, match=r"raw\.orders: workers run these streams themselves; stop those, submit"):
        await setting.submit(ORDER_RATE)
    assert [] == setting.cluster.submitted
    await workers.leave()
    await setting.submit(ORDER_RATE)
    (job,) = await setting.jobs()
    assert job.takeover is not None
    assert ([7] * 12, [NOW - 94_000] * 12) == (job.takeover.offsets[ORDERS], job.takeover.reached_ms[ORDERS])
    assert ([], False) == (job.takeover.changed, job.holds)
    assert [NOW - 99_000] * 12 == job.takeover.closed_ms[ORDERS], "each partition closed by its own time"


async def test_submit_where_nobody_was_begins_at_the_earliest_record(setting: Setting) -> None:
    """There is nothing to take over."""
    await setting.submit(ORDER_RATE)
    (job,) = await setting.jobs()
    assert (None, f"headrace.flink.{ORDERS}.1") == (job.takeover, job.group)


async def test_submit_after_one_that_was_refused_begins_at_the_earliest_record(setting: Setting) -> None:
    """A job that the cluster never took has left nothing to take over."""
    await setting.noted(job_id="", checkpoint="", pipelines={"rate": "which Flink refused"})
    await setting.submit(ORDER_RATE)
    first, second = await setting.jobs()
    assert (True, None) == (first.over, second.takeover)


async def test_job_stopped_while_workers_went_on_takes_over_from_them(setting: Setting) -> None:
    """Its savepoint is older than what the asyncio engine has done since."""
    await setting.submit(ORDER_RATE)
    await Member(setting.broker, f"headrace.flink.{ORDERS}.1", ORDERS).commit(5)
    await Jobs(setting.of(ORDER_RATE)).stop(ORDERS)
    workers = Member(setting.broker, STREAMS_GROUP, ORDERS)
    table = TableMark(fingerprint(ORDER_RATE["rate"]), 0, 0, 0)
    await workers.commit(8, encode_mark(CommitMark(NOW - 93_000, {"rate": table}, is_last=True)))
    await workers.leave()
    await setting.submit(ORDER_RATE)
    first, second = await setting.jobs()
    assert second.takeover is not None
    assert (True, [8] * 12) == (first.over, second.takeover.offsets[ORDERS])


async def test_begin_anew_leaves_nothing_of_before(setting: Setting) -> None:
    """Another group too: what the old one has committed says nothing of the new one."""
    await setting.submit(ORDER_RATE)
    await Jobs(setting.of(ORDER_RATE)).begin_anew(ORDERS, cast(Submitter, setting.cluster))
    first, second = await setting.jobs()
    assert (True, None, f"headrace.flink.{ORDERS}.2") == (first.over, second.takeover, second.group)
    assert [f"{ORDERS}/2"] == setting.cluster.names()


def test_configuration_names_the_job_manager_behind_tls() -> None:
    """Its port is that of https unless the address says another."""
    values = FlinkCluster("https://flink.example/", cast(Any, None)).configuration("")
    assert ("flink.example", "443", "true") == tuple(
        values[name] for name in ("rest.address", "rest.port", "security.ssl.rest.enabled")
    )
    plain = FlinkCluster("http://flink.example:8081", cast(Any, None)).configuration("file:/chk-7")
    assert ("8081", "file:/chk-7") == (plain["rest.port"], plain["execution.state-recovery.path"])
    assert "security.ssl.rest.enabled" not in plain


def test_fingerprints_of_the_demo_are_those_of_its_pipelines() -> None:
    """By which a worker finds the job that computes its view."""
    compiled = CompiledJobs(jobs_of(pipelines_in(fraud)), Settings(bootstrap_servers=""))
    assert fingerprint(fraud.user_features) == compiled.fingerprints(ORDERS)["user_features"]
