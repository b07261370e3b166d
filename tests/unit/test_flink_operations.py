"""What is submitted, kept and taken over, on a cluster that only remembers its jobs: no job twice, none forgotten."""

import asyncio
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, cast

import msgspec
import pytest

from app.application import STREAMS_GROUP
from app.core.errors import Rejected, SetupError
from app.core.record import TopicPartition
from app.http.client import HttpClient
from app.streams.expressions import col
from app.streams.kept_jobs import TOPIC, KeptJob
from app.streams.pipelines import Pipeline, fingerprint, pipelines_in
from app.streams.restore import CommitMark, TableMark, encode_mark
from app.streams.sql import Settings, jobs_of
from app.streams.takeover import ByPartition, Takeover
from features import fraud
from features.fraud import HighValueOrder
from features.records import order_events
from flink_jobs import compiled
from flink_jobs.child import Submitter
from flink_jobs.cluster import FlinkCluster
from flink_jobs.compiled import CompiledJobs
from flink_jobs.keeping import ENDING_MS, Keeper
from flink_jobs.operations import Jobs
from tests.flink_setting import (
    BOTH,
    HOUR_RATE,
    NOW,
    ORDER_RATE,
    ORDERS,
    PAYMENT_RATE,
    PAYMENTS,
    Member,
    N,
    Setting,
    until,
)


@pytest.fixture
async def setting() -> Setting:
    return await Setting().begin()


class AfterOneLook(asyncio.Event):
    """Ends whoever waits for it between two looks."""

    async def wait(self) -> Literal[True]:
        self.set()
        return True


async def look(
    setting: Setting, pipelines: dict[str, Pipeline] = ORDER_RATE, done: Callable[[], bool] | None = None
) -> None:
    """What `submit --keep` does in its first look, or until something is done."""
    stopping = asyncio.Event() if done else AfterOneLook()
    keeper = Keeper(setting.of(pipelines))
    keeping = asyncio.create_task(keeper.keep([ORDERS], cast(Submitter, setting.cluster), stopping))
    if done:
        await until(done)
        stopping.set()
    await keeping


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
        ("FINISHED", NOW - ENDING_MS - 1, {"is_being_given": True}, False),
        ("", NOW, {"is_being_given": True}, False),
        ("", NOW, {"is_being_given": True, "at_ms": NOW - ENDING_MS}, True),
        ("FAILED", NOW, {"pipelines": {"rate": "of before"}}, False),
        ("FAILED", NOW, {"over": True}, False),
    ],
)
async def test_keeper_starts_again_what_nobody_has_ended(
    setting: Setting, state: str, since_ms: int, changes: dict[str, Any], is_started: bool
) -> None:
    """A job that is just being stopped, submitted, upgraded or begun anew is not submitted twice, nor state of another declaration read."""
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
    told = await submitting
    assert told, "what is waited for"
    assert told[0].startswith(f"{ORDERS}/2 fills itself: ")
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


async def test_submit_of_another_text_of_the_same_declaration_takes_over_from_the_one_before(setting: Setting) -> None:
    """As after another release, or where a field is bounded: its state is not read by the places of other operators, and what was
    open goes on."""
    await setting.noted(job_id=setting.cluster.add(f"{ORDERS}/1"), text_hash="of before")
    await Member(setting.broker, "g.1", ORDERS).commit(5)
    generations = setting.of(ORDER_RATE)
    await generations.advance(ORDERS, cast(Submitter, setting.cluster))
    before, after = await setting.jobs()
    assert after.takeover is not None
    assert (2, [], True) == (after.generation, after.takeover.changed, after.takeover.holds)
    assert not before.over


def test_text_hash_changes_with_the_java_that_keeps_the_state(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A release may keep its state otherwise under the same SQL."""

    def hashed(folder: Path) -> str:
        monkeypatch.setattr(compiled, "JAVA", folder)
        compiled.java_digest.cache_clear()
        return CompiledJobs(jobs_of(ORDER_RATE), Settings(bootstrap_servers="")).text_hash(ORDERS)

    before = hashed(compiled.JAVA)
    same = shutil.copytree(compiled.JAVA, tmp_path / "java")
    assert before == hashed(same)
    (same / "headrace" / "Tiles.java").write_text("class Tiles {}")
    assert before != hashed(same)
    monkeypatch.undo()
    compiled.java_digest.cache_clear()


BEGUN = [NOW - 50_000 + at for at in range(12)]


@pytest.mark.parametrize("changed", [["rate"], []])
async def test_takeover_leaves_windows_that_an_earlier_change_has_cut(setting: Setting, changed: list[str]) -> None:
    """They may have a row of the declaration before that one; and so on, however often something else changes."""
    nowhere: ByPartition = {ORDERS: [0] * 12}
    before = Takeover(
        read=nowhere,
        whole_ms=nowhere,
        offsets=nowhere,
        reached_ms={ORDERS: BEGUN if changed else [NOW] * 12},
        closed_ms=nowhere,
        changed=changed,
        begun_ms={} if changed else {"rate": BEGUN},
        holds=False,
    )
    await setting.noted(job_id=setting.cluster.add(f"{ORDERS}/1"), takeover=before)
    large = order_events.where(col.amount_usd > 5).alert(HighValueOrder, id="order_id")
    await setting.of({**ORDER_RATE, "large": large}).advance(ORDERS, cast(Submitter, setting.cluster))
    _, after = await setting.jobs()
    assert after.takeover is not None
    assert (["large"], {"rate": BEGUN}) == (after.takeover.changed, after.takeover.begun_ms)


async def test_takeover_leaves_windows_that_the_asyncio_engine_was_to_leave(setting: Setting) -> None:
    """Its marks say since when it counts."""
    workers = Member(setting.broker, STREAMS_GROUP, ORDERS)
    table = TableMark(fingerprint(ORDER_RATE["rate"]), NOW - 50_000, 0, 0)
    await workers.commit(7, encode_mark(CommitMark(NOW - 94_000, {"rate": table}, is_last=True)))
    await workers.leave()
    await setting.submit(ORDER_RATE)
    (job,) = await setting.jobs()
    assert job.takeover is not None
    assert {"rate": [NOW - 50_001] * 12} == job.takeover.begun_ms


async def test_keeper_leaves_a_later_generation_to_whoever_submits_it(setting: Setting) -> None:
    """One of a version before knows nothing of it, however long it fills itself; and goes on looking after its own."""
    at = {"job_id": setting.cluster.add(f"{ORDERS}/1"), "at_ms": NOW - ENDING_MS - 1}
    await setting.noted(**at)
    await setting.of(HOUR_RATE).advance(ORDERS, cast(Submitter, setting.cluster))
    setting.cluster.known["1"] = msgspec.structs.replace(setting.cluster.known["1"], checkpoint="chk-8")
    await look(setting, done=lambda: any(job.checkpoint == "chk-8" for job in noted(setting)))
    assert [False, False] == [job.over for job in await setting.jobs()]


def noted(setting: Setting) -> list[KeptJob]:
    """What was written so far."""
    log = setting.broker.logs[TopicPartition(TOPIC.name, 0)]
    return [msgspec.json.decode(record.value or b"", type=KeptJob) for record in log]


async def test_submit_names_the_pipeline_that_flink_cannot_run_before_it_gives_any(setting: Setting) -> None:
    """And notes nothing of it."""
    long = order_events.tumbling("1000d").aggregate(**N).to("rate")
    with pytest.raises(SetupError, match="rate: 1000d: Flink takes no time of more than 999 days"):
        Jobs(setting.of({"rate": long})).require([ORDERS])
    with pytest.raises(SetupError, match="rate: 1000d"):
        await setting.submit({"rate": long})
    assert [] == await setting.jobs()
    assert [(ORDERS, None)] == [(one.name, one.job) for one in await Jobs(setting.of({"rate": long})).list()]


@pytest.mark.parametrize("said", ["answered 403: no entry", "answered 404: no such site"])
async def test_job_is_unknown_only_where_the_job_manager_says_so(said: str) -> None:
    """Or what runs would be started once more because of a proxy."""

    class Answers:
        async def request_json(self, *given: object) -> Any:
            raise Rejected(f"http://flink: {said}")

    with pytest.raises(Rejected, match=said):
        await FlinkCluster("http://flink", cast(HttpClient, Answers())).job("1")
    said = '{"errors":["org.apache.flink.runtime.rest.NotFoundException: Job 1 not found'
    assert await FlinkCluster("http://flink", cast(HttpClient, Answers())).job("1") is None


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
    demo = CompiledJobs(jobs_of(pipelines_in(fraud)), Settings(bootstrap_servers=""))
    assert fingerprint(fraud.user_features) == demo.fingerprints(ORDERS)["user_features"]
