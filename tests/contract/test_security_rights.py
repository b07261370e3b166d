"""Each role with exactly the rights that are written down for it, and with one of them less."""

import asyncio
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from datetime import UTC, datetime
from functools import partial
from itertools import count
from pathlib import Path
from subprocess import TimeoutExpired

import pytest
from redis import Redis

from app.application import App
from app.broker.base import Right
from app.broker.dead_letters import DeadLetters
from app.cli.loading import DEFAULT_APP, load_app
from app.connections import open_broker
from app.core.clock import SystemClock
from app.core.errors import Rejected
from app.core.record import Record
from app.core.settings import Settings, load_settings
from app.local.secure import ADMIN
from app.rights import ROLES, STORE_COMMANDS, rights_of, store_rights_of
from app.serving.base import Progress, TileChange, View
from app.serving.redis import OLD_NOPERM_IN_SCRIPT, RedisStore
from app.streams.kept_jobs import KeptJob, KeptJobs
from app.streams.pipelines import fingerprint
from app.streams.sql import jobs_of
from app.streams.windows import Tile
from flink_jobs.predecessors import Predecessors
from tests.secure import LIMIT_SECONDS, PATIENCE_SECONDS, ROOT, Ended, Running, Secured

pytestmark = [pytest.mark.kafka, pytest.mark.redis]

PARTS = ("streams", "features", "agents", "actions")
RUNS = "app.worker: running "

_orders = count(1)


@pytest.fixture(scope="module")
def app() -> App:
    return load_app(DEFAULT_APP)


@pytest.fixture(scope="module")
def granted(secured: Secured, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Secured]:
    """Every role has its rights, in Kafka and in Redis, by the command that the documentation names."""
    command = "topics rights --apply"
    assert f"python -m app {command}\n" in (ROOT / "docs" / "security.md").read_text()
    given = Running(command.split(), secured.variables, tmp_path_factory.mktemp("apply")).ended()
    assert (0, "") == (given.code, given.err)
    assert len(ROLES) + len(STORE_COMMANDS) == len(given.out.splitlines())
    yield secured
    with administrator(secured) as redis:
        for role in STORE_COMMANDS:
            redis.acl_setuser(role, reset_keys=True, categories=["-@all"])


def administrator(secured: Secured) -> Redis:
    """Of Redis, in a database where no worker has anything."""
    return Redis.from_url(
        elsewhere_in(secured),
        ssl_ca_certs=secured.variables["HEADRACE_STORE_CA"],
        username=ADMIN,
        password=(secured.redis / f"{ADMIN}.password").read_text(),
    )


def elsewhere_in(secured: Secured) -> str:
    return secured.variables["HEADRACE_STORE"].removesuffix("/0") + "/1"


def start(granted: Secured, role: str, folder: Path, *, certificate: bool = False) -> Running:
    """A worker of one part, as the user who has the rights for that."""
    store_user = role if role in STORE_COMMANDS else ADMIN
    variables = granted.as_certificate(role, store_user) if certificate else granted.as_user(role, store_user)
    return Running(("worker", "--only", role, "--model", "rules"), variables, folder / f"{role}-{next(_orders)}")


def send_order(granted: Secured, folder: Path, user: str = "publisher") -> Ended:
    """One that is worth an alert, and so a decision and an effect."""
    number = next(_orders)
    now = datetime.fromtimestamp(time.clock_gettime(time.CLOCK_REALTIME), UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    order = f'{{"order_id":"o-{number}","user_id":"u-17","amount_usd":90000.00,"status":"placed","timestamp":"{now}"}}'
    return Running(("send", "raw.orders", order), granted.as_user(user), folder / f"send-{number}").ended()


def send_to_each_source(granted: Secured, folder: Path) -> None:
    """An order as `send_order` says, and for every other table something to write."""
    number = next(_orders)
    now = datetime.fromtimestamp(time.clock_gettime(time.CLOCK_REALTIME), UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    others = {
        "raw.user_events": f'{{"event_id":"e-{number}","user_id":"u-17","kind":"cart_add","timestamp":"{now}"}}',
        "raw.service_events": f'{{"event_id":"s-{number}","service":"cart","status":"failed","latency_ms":9,"timestamp":"{now}"}}',
        "raw.payments": f'{{"payment_id":"p-{number}","order_id":"o-{number}","user_id":"u-17","amount_usd":1.00,'
        f'"status":"failed","timestamp":"{now}"}}',
    }
    sending = [
        Running(("send", topic, value), granted.as_user(ADMIN), folder / f"send-{number}-{topic}")
        for topic, value in others.items()
    ]
    assert 0 == send_order(granted, folder, user=ADMIN).code
    assert [0, 0, 0] == [each.ended().code for each in sending]


def wait_until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + PATIENCE_SECONDS
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.1)


def records_in(granted: Secured, topic: str) -> int:
    return sum(end.offset for end in granted.ends(topic))


def has_a_member(granted: Secured, group: str) -> bool:
    return len(granted.admin.describe_consumer_groups([group])[group].result(10).members) == 1


def test_roles_with_their_rights_do_all_they_are_for_and_stop_without_one(granted: Secured, tmp_path: Path) -> None:
    """An order becomes features, an alert, a decision and an effect; none of the workers has a word of warning to say. Then
    one right after the other is taken while they run, and each worker ends with one line that names it. The agents show a
    certificate in the place of a password."""
    with ExitStack() as stack:
        workers = {part: start(granted, part, tmp_path, certificate=part == "agents") for part in PARTS}
        for worker in workers.values():
            stack.callback(worker.kill)
        for worker in workers.values():
            worker.wait_until_it_says(RUNS)
        sent = send_order(granted, tmp_path)
        assert 0 == sent.code, sent.err
        wait_until(lambda: records_in(granted, "agent.effects") >= 3)  # intended, called, done
        get = ("features", "get", "user_features", "u-17", "--json")
        wait_until(
            lambda: '"order_count_5m":1' in Running(get, granted.as_user("agents", "agents"), tmp_path).ended().out
        )
        for part, worker in workers.items():
            warnings = [line for line in worker.err.splitlines() if " INFO " not in line]
            assert [] == [line for line in warnings if "without an address" not in line], part

        for role, right in TAKEN_WHILE_RUNNING.items():
            granted.take(role, right)
            try:
                if right.operation == "Write":
                    assert 0 == send_order(granted, tmp_path).code
                complaint = workers[role].ended().complaint
            finally:
                granted.grant(role, [right])
            assert right.name in complaint
            assert f"the right {right.operation} on this {right.kind} is missing" in complaint


def test_commands_for_this_machine_run_as_they_are_documented(granted: Secured, tmp_path: Path) -> None:
    """Word for word, on servers that are up already and lie elsewhere; the worker is ended once it runs."""
    text = (ROOT / "docs" / "security.md").read_text()
    up, *commands, worker = text.partition("## On this machine\n\n```sh\n")[2].partition("```")[0].splitlines()
    assert 'eval "$(python -m app local up --secure)"' == up.partition("#")[0].strip()
    assert "python -m app worker --only streams" == worker
    script = "\n".join(["set -e", *commands, f"exec {worker}"]).replace(
        ".local/services/secure-kafka", str(granted.kafka)
    )
    kept = {name: value for name, value in os.environ.items() if not name.startswith("HEADRACE_")}
    path = f"{Path(sys.executable).parent}:{kept['PATH']}"
    said = tmp_path / "said"
    with said.open("w") as err:
        process = subprocess.Popen(
            ["bash", "-c", script],
            cwd=tmp_path,
            env=kept | granted.variables | {"PATH": path, "PYTHONPATH": str(ROOT)},
            stdout=subprocess.DEVNULL,
            stderr=err,
        )
    try:
        wait_until(lambda: RUNS in said.read_text() or process.poll() is not None)
        process.terminate()
        assert 0 == process.wait(PATIENCE_SECONDS), said.read_text()
    finally:
        process.kill()
    assert "stopped; nothing is left over" in said.read_text()


OF_OTHER_MODES = (".shadow", ".dry-run")
"""Groups that a worker reads in once its mode was switched."""


def test_switch_to_another_mode_leaves_the_worker_running(granted: Secured, tmp_path: Path) -> None:
    """The agents' rights are enough for the group of each mode."""
    worker = start(granted, "agents", tmp_path)
    try:
        worker.wait_until_it_says(RUNS)
        for mode in ("shadow", "dry-run", "live"):
            switch = ("switch", "mode", "judge_order", mode)
            assert 0 == Running(switch, granted.as_user("operator"), tmp_path / mode).ended().code
            if mode != "live":
                wait_until(partial(has_a_member, granted, f"headrace.agent.judge_order.{mode}"))
        assert 0 == worker.end().code
    finally:
        worker.kill()


TAKEN_WHILE_RUNNING = {
    "actions": Right("topic", "agent.effects", "Write"),
    "agents": Right("topic", "agent.decisions", "Write"),
    "features": Right("group", "headrace.features", "Read"),
    "streams": Right("topic", "processed.alerts", "Write"),
}


MISSING_AT_START = {
    "streams": Right("topic", "raw.orders", "Read"),
    "features": Right("topic", "features.user_features*", "Read"),
    "agents": Right("group", "headrace.agent.judge_order", "Read"),
    "actions": Right("topic", "agent.switches", "Write"),
}


def test_worker_without_one_right_ends_and_names_it(granted: Secured, tmp_path: Path) -> None:
    """A sample, one right a role; all of them with ALL_RIGHTS=1."""
    for role, right in MISSING_AT_START.items():
        granted.take(role, right)
    try:
        workers = {role: start(granted, role, tmp_path) for role in MISSING_AT_START}
        complaints = {role: worker.ended().refusal for role, worker in workers.items()}
    finally:
        for role, right in MISSING_AT_START.items():
            granted.grant(role, [right])
    for role, right in MISSING_AT_START.items():
        assert names(complaints[role], right), (role, complaints[role])


def test_publisher_without_its_right_is_told(granted: Secured, tmp_path: Path) -> None:
    """Whoever may do other things may not publish."""
    complaint = send_order(granted, tmp_path, user="features").refusal
    assert "raw.orders: the right Write on this topic is missing" in complaint


@pytest.mark.parametrize("right", [("AlterConfigs", "8d"), ("Create", "7d")])
def test_operator_without_a_right_is_told(granted: Secured, tmp_path: Path, right: tuple[str, str]) -> None:
    """Topics are made and changed by nobody else."""
    operation, retention = right
    topics = ("topics", "create", "--retention", f"raw.payments={retention}")
    taken = Right("topic", "raw.payments", operation)
    granted.take("operator", taken)
    try:
        complaint = Running(topics, granted.as_user("operator"), tmp_path).ended().refusal
    finally:
        granted.grant("operator", [taken])
    assert f"raw.payments: the right {operation} on this topic is missing" in complaint


OPERATOR = {
    ("dead", "replay", "raw.orders", "--yes"): Right("topic", "raw.orders", "Write"),
    ("decisions", "forget", "u-99", "--yes"): Right("topic", "agent.reviews", "Write"),
    ("switch", "on", "block"): Right("topic", "agent.switches", "Write"),
    ("streams", "reset", "order_rate"): Right("topic", "state.order_rate*", "Delete"),
}
"""What else he does, and the right to what that changes."""


def test_operator_does_what_he_is_for_and_is_told_of_the_right_that_is_missing(
    granted: Secured, tmp_path: Path
) -> None:
    """With his users of Kafka and of Redis, on a letter and a review that are there: first without one right each."""
    asyncio.run(write_what_he_needs(load_settings(granted.variables)))

    def ended(folder: Path) -> dict[Right, Ended]:
        variables = granted.as_user("operator", "operator")
        running = {right: Running(words, variables, folder / words[0]) for words, right in OPERATOR.items()}
        return {right: each.ended() for right, each in running.items()}

    for right in OPERATOR.values():
        granted.take("operator", right)
    try:
        refused = ended(tmp_path / "without")
    finally:
        granted.grant("operator", OPERATOR.values())
    for right, result in refused.items():
        last = result.err.splitlines()[-1]  # a replay says first what it is going to do
        assert (2, True) == (result.code, result.seconds < LIMIT_SECONDS), result
        assert f"{right.name.removesuffix('*')}: the right {right.operation} on this topic is missing" in last
    done = ended(tmp_path / "with")
    assert [0] * len(OPERATOR) == [result.code for result in done.values()], done
    assert "1 record: replayed" in done[OPERATOR["dead", "replay", "raw.orders", "--yes"]].out


def test_flink_role_submits_and_its_jobs_read_and_workers_follow_them(granted: Secured, app: App) -> None:
    """Notes, offsets of both engines, and a group of a generation; whoever runs the gates sees those offsets."""
    asyncio.run(submit_and_follow(app, *(load_settings(granted.as_user(role)) for role in ("flink", "streams"))))


@pytest.mark.parametrize(
    "right", [Right("group", "headrace.streams", "Read"), Right("group", "headrace.gates.*", "Read")]
)
def test_group_that_may_not_be_seen_is_named(granted: Secured, right: Right) -> None:
    """The client itself would look for its offsets until its time is over, and say no more than that."""

    async def ask(settings: Settings) -> None:
        broker = open_broker(settings, SystemClock())
        try:
            await broker.admin().group_offsets(right.name.replace("*", "raw.orders"), ["raw.orders"])
        finally:
            await broker.close()

    granted.take("streams", right)
    try:
        with pytest.raises(Rejected) as refused:
            asyncio.run(ask(load_settings(granted.as_user("streams"))))
    finally:
        granted.grant("streams", [right])
    assert names(str(refused.value), right)


async def note_stopped_job(app: App, settings: Settings) -> None:
    """What makes a worker ask for the groups of jobs and of gates."""
    (name, pipelines), *_ = jobs_of(app.pipelines).items()
    of = {one: fingerprint(pipeline) for one, pipeline in pipelines.items()}
    broker = open_broker(settings, SystemClock())
    await KeptJobs(broker).write(
        KeptJob(
            name=name,
            generation=1,
            pipelines=of,
            group=f"headrace.flink.{name}.1",
            parallelism=1,
            job_id="1",
            stopped=True,
        )
    )
    await broker.close()


async def submit_and_follow(app: App, of_flink: Settings, of_streams: Settings) -> None:
    (name, pipelines), *_ = jobs_of(app.pipelines).items()
    of = {one: fingerprint(pipeline) for one, pipeline in pipelines.items()}
    job = KeptJob(name=name, generation=1, pipelines=of, group=f"headrace.flink.{name}.1", parallelism=1)
    flink = open_broker(of_flink, SystemClock())
    before = Predecessors(flink)
    await KeptJobs(flink).write(job)
    assert await before.takeover(pipelines, [job], holds=True) is not None
    assert not await before.asyncio_runs()
    member = Nobody()
    consumer = flink.consumer(job.group, sorted(job.topics), member)
    await consumer.start()
    await consumer.poll(timeout_ms=100)
    await consumer.close()
    await flink.close()
    streams = open_broker(of_streams, SystemClock())
    assert [job] == await KeptJobs(streams).read()
    assert {} == await streams.admin().group_offsets(job.group, sorted(job.topics))
    await streams.close()


class Nobody:
    """Does nothing with what it is told."""

    async def on_assigned(self, assignments: object) -> None: ...

    async def on_revoked(self, assignments: object) -> None: ...

    async def on_lost(self, assignments: object) -> None: ...


async def write_what_he_needs(settings: Settings) -> None:
    broker = open_broker(settings, SystemClock())
    producer = broker.producer()
    await producer.start()
    order = Record("raw.orders", 0, 0, SystemClock().now_ms(), b"u-99", b"{}")
    await DeadLetters(producer, "headrace.streams").write(order, "bad")
    await producer.confirm("agent.reviews", b"{}", b"r-99", partition=0, headers=(("entity", b"u-99"),))
    await producer.close()
    await broker.close()


async def features_work(store: RedisStore, view: View) -> None:
    """Tiles of a window, then one so much later that they are dropped."""
    await store.progress(view)
    for number in range(2):
        tile = Tile(number * 2 * view.kept_ms, 0, number, (1,) * len(view.accumulators))
        progress = Progress(number, 0)
        assert await store.apply(view, 0, number - 1 if number else None, progress, [TileChange("u-1", tile)])


async def agents_work(store: RedisStore, view: View) -> None:
    await store.read(view, "u-1")


async def operator_work(store: RedisStore, view: View) -> None:
    await store.read(view, "u-1")
    await store.forget(view, "u-1")
    await store.clear(view)


STORE_WORK = {"features": features_work, "agents": agents_work, "operator": operator_work}


@pytest.mark.parametrize("role", STORE_COMMANDS)
def test_store_user_without_any_one_right_is_told(granted: Secured, app: App, role: str) -> None:
    """Each command and each pattern of keys is needed, and with all of them the role does its work."""
    settings = load_settings(granted.as_user(role, role))

    async def said() -> str:
        store = RedisStore(elsewhere_in(granted), SystemClock(), settings.store_security)
        try:
            await store.start()
            for view in app.views.values():
                await STORE_WORK[role](store, view)
        except Rejected as error:
            return str(error)
        finally:
            await store.close()
        return ""

    words = (store_rights_of(app, role) or "").split()
    needless = {}
    with administrator(granted) as redis:
        for taken in (None, *(word for word in words if "+" in word or "~" in word)):
            redis.flushdb()
            redis.script_flush()
            redis.execute_command("ACL", "SETUSER", role, *(word for word in words if word != taken))
            answer = asyncio.run(said())
            if taken is None:
                assert "" == answer
            elif not names_store_right(answer, taken):
                needless[taken] = answer
        redis.execute_command("ACL", "SETUSER", role, *words)
    assert {} == needless


def names_store_right(answer: str, right: str) -> bool:
    """Of keys Redis says only that it is about some, and before 7.2 of a command in a script not which."""
    name = f"'{right[1:]}'" if right.startswith("+") else " keys "
    return (name in answer or OLD_NOPERM_IN_SCRIPT in answer) and "docs/security.md" in answer


def names(complaint: str, right: Right) -> bool:
    """A topic that one may not even see is named as such: right to read or write is right to describe."""
    return right.name.removesuffix("*") in complaint and any(
        f"the right {operation} on this {right.kind} is missing" in complaint
        for operation in (right.operation, "Describe")
    )


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.skipif(os.environ.get("ALL_RIGHTS") != "1", reason="takes minutes; set ALL_RIGHTS=1")
@pytest.mark.parametrize("role", PARTS)
def test_worker_without_any_one_right_ends_and_names_it(granted: Secured, app: App, tmp_path: Path, role: str) -> None:
    """No right is there for nothing."""
    needless = []
    asyncio.run(note_stopped_job(app, load_settings(granted.as_user(ADMIN))))
    with ExitStack() as stack:
        workers = {part: start(granted, part, tmp_path) for part in PARTS}
        for worker in workers.values():
            stack.callback(worker.kill)
        for worker in workers.values():
            worker.wait_until_it_says(RUNS)
        done = records_in(granted, "agent.effects")
        send_to_each_source(granted, tmp_path)
        wait_until(lambda: records_in(granted, "agent.effects") > done)
        assert 0 == workers[role].end().code  # so that there is something to restore
        for right in rights_of(app, role):
            if right.name.endswith(OF_OTHER_MODES):
                continue
            granted.take(role, right)
            worker = start(granted, role, tmp_path)
            try:
                send_to_each_source(granted, tmp_path)
                assert names(worker.ended().complaint, right)
            except (AssertionError, TimeoutExpired) as error:
                needless.append((right, error))
            finally:
                worker.kill()
                granted.grant(role, [right])
    assert [] == needless
