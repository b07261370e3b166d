"""What is stopped, refused and begun anew, on a cluster that only remembers its jobs: one engine at a time, and none is stuck."""

import asyncio
from pathlib import Path
from typing import Any, cast

import msgspec
import pytest

from app.application import STREAMS_GROUP
from app.core.errors import Rejected, SetupError, Unavailable
from app.streams.kept_jobs import require_no_job
from app.streams.pipelines import fingerprint
from app.streams.restore import CommitMark, TableMark, encode_mark
from app.streams.sql import Job
from flink_jobs import child
from flink_jobs.child import Submitter
from flink_jobs.keeping import Keeper
from flink_jobs.operations import Jobs
from tests.flink_setting import NOW, ORDER_RATE, ORDERS, Member, Setting, until


@pytest.fixture
async def setting() -> Setting:
    return await Setting().begin()


@pytest.mark.parametrize(
    ("state", "checkpoint", "is_lost"),
    [
        ("FAILED", "chk-7", False),
        ("RESTARTING", "chk-7", False),
        ("", "chk-7", True),
        ("RUNNING", "chk-7", True),
        ("FINISHED", "savepoint-9", False),
    ],
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
    given = [] if state == "RUNNING" else [(f"{ORDERS}/1", checkpoint)]
    assert given == setting.cluster.submitted, "one that was not lost after all is left alone"
    assert [(False, False)] == [(job.stopped, job.is_being_given) for job in await setting.jobs()]


async def test_stop_of_a_job_that_the_cluster_does_not_know_is_refused(setting: Setting) -> None:
    """It may run on another one."""
    await setting.noted(job_id="gone")
    with pytest.raises(SetupError, match=r"does not know it; .* --lost"):
        await Jobs(setting.of(ORDER_RATE)).stop(ORDERS)
    assert [False] == [job.stopped for job in await setting.jobs()]


async def test_submit_that_is_refused_leaves_the_note_as_it_was(
    setting: Setting, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Workers are refused while it is tried, and not because it failed."""
    await setting.noted(job_id="gone", stopped=True)

    async def refused(job: Any, configuration: dict[str, str]) -> str:
        with pytest.raises(SetupError, match="these streams run on Flink"):
            await require_no_job(setting.broker, [ORDERS])
        raise Rejected("no such function")

    monkeypatch.setattr(setting.cluster, "submit", refused)
    with pytest.raises(Rejected, match="no such function"):
        await setting.submit(ORDER_RATE)
    await require_no_job(setting.broker, [ORDERS])


@pytest.mark.parametrize("then", ["submit", "stop", "begin anew"])
async def test_submit_without_an_answer_is_not_given_twice(
    setting: Setting, monkeypatch: pytest.MonkeyPatch, then: str
) -> None:
    """The cluster may have taken the job long before one gave up waiting; whoever submits, stops or replaces it next finds that one."""
    await setting.noted(job_id="gone", stopped=True)

    async def unanswered(job: Any, configuration: dict[str, str]) -> str:
        setting.cluster.add(job.name)
        setting.clock.advance(120_000)
        raise Unavailable("PyFlink did not answer")

    with monkeypatch.context() as broken:
        broken.setattr(setting.cluster, "submit", unanswered)
        with pytest.raises(Unavailable, match="did not answer"):
            await setting.submit(ORDER_RATE)
    with pytest.raises(SetupError, match="these streams run on Flink"):
        await require_no_job(setting.broker, [ORDERS])
    if then == "stop":
        assert "savepoint-1" == await Jobs(setting.of(ORDER_RATE)).stop(ORDERS)
        assert [] == setting.cluster.names()
    elif then == "begin anew":
        await Jobs(setting.of(ORDER_RATE)).begin_anew(ORDERS, cast(Submitter, setting.cluster))
        assert [f"{ORDERS}/2"] == setting.cluster.names()
    else:
        await setting.submit(ORDER_RATE)
        assert ([f"{ORDERS}/1"], []) == (setting.cluster.names(), setting.cluster.submitted)
        assert ["1"] == [job.job_id for job in await setting.jobs()]


async def test_submit_ends_a_pyflink_that_does_not_answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What it did later, nobody would know of: neither of this job nor of those that were ordered since."""
    monkeypatch.setattr(child, "SUBMIT_SECONDS", 0.2)
    process = await asyncio.create_subprocess_exec("sleep", "60", stdin=asyncio.subprocess.PIPE)
    submitter = Submitter(process, asyncio.StreamReader(), tmp_path)
    job = Job(name=ORDERS, configuration={}, functions=(), tables=(), views=(), inserts=())
    with pytest.raises(Unavailable, match="did not answer within"):
        await submitter.submit(job, {})
    assert submitter.is_gone
    assert 0 > await asyncio.wait_for(process.wait(), 10)


async def test_submit_of_a_job_that_somebody_stops_meanwhile_is_taken_back(
    setting: Setting, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As `submit --keep` may be starting a job again that has failed."""
    await setting.noted(job_id=setting.cluster.add(f"{ORDERS}/1", "FAILED"))
    submit = setting.cluster.submit

    async def slowly(job: Any, configuration: dict[str, str]) -> str:
        assert "chk-7" == await Jobs(setting.of(ORDER_RATE)).stop(ORDERS)
        return await submit(job, configuration)

    monkeypatch.setattr(setting.cluster, "submit", slowly)
    with pytest.raises(Rejected, match="somebody has stopped or submitted it meanwhile"):
        await setting.submit(ORDER_RATE)
    assert [] == setting.cluster.names()
    assert [True] == [job.stopped for job in await setting.jobs()]


async def test_submit_that_fails_leaves_what_somebody_has_noted_meanwhile(
    setting: Setting, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was stopped while it was tried stays so."""
    await setting.noted(job_id=setting.cluster.add(f"{ORDERS}/1", "FAILED"))

    async def refused(job: Any, configuration: dict[str, str]) -> str:
        await Jobs(setting.of(ORDER_RATE)).stop(ORDERS)
        raise Rejected("no such function")

    monkeypatch.setattr(setting.cluster, "submit", refused)
    with pytest.raises(Rejected, match="no such function"):
        await setting.submit(ORDER_RATE)
    assert [True] == [job.stopped for job in await setting.jobs()]


@pytest.mark.parametrize("is_given", [True, False])
async def test_stop_of_a_submit_that_broke_off_ends_what_it_has_begun(setting: Setting, is_given: bool) -> None:
    """Whether the cluster has taken it, only the cluster knows."""
    if is_given:
        setting.cluster.add(f"{ORDERS}/1")
    await setting.noted(job_id="", is_being_given=True)
    with pytest.raises(SetupError, match="these streams run on Flink"):
        await require_no_job(setting.broker, [ORDERS])
    jobs = Jobs(setting.of(ORDER_RATE))
    assert [ORDERS] == await jobs.standing()
    await jobs.stop(ORDERS)
    assert [] == setting.cluster.names()
    await require_no_job(setting.broker, [ORDERS])


async def test_keeper_submits_what_was_refused_once_the_workers_have_gone(
    setting: Setting, caplog: pytest.LogCaptureFixture
) -> None:
    """A service that starts while they still run must not stay idle."""
    workers = Member(setting.broker, STREAMS_GROUP, ORDERS)
    await workers.commit(7)
    stopping = asyncio.Event()
    keeping = asyncio.create_task(
        Keeper(setting.of(ORDER_RATE)).keep([ORDERS], cast(Submitter, setting.cluster), stopping, refused=[ORDERS])
    )
    await until(lambda: "workers run these streams themselves" in caplog.text)
    assert [] == setting.cluster.names()
    await workers.leave()
    await until(lambda: [f"{ORDERS}/1"] == setting.cluster.names())
    stopping.set()
    await keeping


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


async def test_parallelism_beyond_the_partitions_is_refused_and_ends_nothing(setting: Setting) -> None:
    """A task without a partition would hold back the event time of the whole job."""
    jobs, pyflink, refused = (
        Jobs(setting.of(ORDER_RATE)),
        cast(Submitter, setting.cluster),
        r"raw\.orders: .*at most 12,",
    )
    with pytest.raises(SetupError, match=refused):
        jobs.require([ORDERS], 13)
    with pytest.raises(SetupError, match=refused):
        await jobs.submit(ORDERS, pyflink, 13)
    assert [] == await setting.jobs()
    await jobs.submit(ORDERS, pyflink, 12)
    with pytest.raises(SetupError, match=refused):
        await jobs.upgrade(ORDERS, pyflink, 13)
    with pytest.raises(SetupError, match=refused):
        await jobs.begin_anew(ORDERS, pyflink, 13)
    assert [f"{ORDERS}/1"] == setting.cluster.names()
    await jobs.stop(ORDERS)
    with pytest.raises(SetupError, match=refused):
        await jobs.submit(ORDERS, pyflink, 13)
    assert [True] == [job.stopped for job in await setting.jobs()]


async def test_begin_anew_leaves_nothing_of_before(setting: Setting) -> None:
    """Another group too: what the old one has committed says nothing of the new one."""
    await setting.submit(ORDER_RATE)
    await Jobs(setting.of(ORDER_RATE)).begin_anew(ORDERS, cast(Submitter, setting.cluster))
    first, second = await setting.jobs()
    assert (True, None, f"headrace.flink.{ORDERS}.2") == (first.over, second.takeover, second.group)
    assert [f"{ORDERS}/2"] == setting.cluster.names()
