"""The running process: what it refuses at start, what it starts again, how it stops."""

import asyncio
from collections.abc import Iterable
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

import msgspec
import pytest

from agents import app
from app.application import GATES_GROUP, STREAMS_GROUP, App
from app.broker.memory import Fault, MemoryBroker
from app.broker.topics import TopicSpec
from app.core.clock import Clock, run_virtual
from app.core.codec import encode
from app.core.errors import BadRecord, SetupError, Unavailable
from app.core.instants import instant
from app.core.record import Record, TopicPartition
from app.core.settings import Settings
from app.decisions.handling import AgentWork
from app.models.rules import RulesModel
from app.serving.memory import MemoryStore
from app.streams.kept_jobs import KeptJob, KeptJobs
from app.worker import PARTS, Worker
from features import fraud
from features.records import OrderEvent

START_MS = 1_800_000_000_000
SETTINGS = Settings(broker="memory://", store="memory://", model="rules")


@dataclass
class Process:
    """A worker over memory, and what it needs."""

    worker: Worker
    broker: MemoryBroker


async def process(
    clock: Clock, parts: Iterable[str] = PARTS, settings: Settings = SETTINGS, specs: list[TopicSpec] | None = None
) -> Process:
    broker = MemoryBroker(clock)
    await broker.admin().create(app.topics.all() if specs is None else specs)
    model, store = RulesModel(app.rules), MemoryStore(clock)
    worker = Worker(app, settings, broker=broker, store=store, model=model, clock=clock, parts=tuple(parts))
    return Process(worker, broker)


def order(clock: Clock, order_id: str, amount: str) -> OrderEvent:
    return OrderEvent(order_id, "u-1", Decimal(amount), "placed", instant(clock.now_ms()))


def decisions(broker: MemoryBroker) -> list[Any]:
    return [
        msgspec.json.decode(record.value or b"")
        for place, log in broker.logs.items()
        if place.topic == "agent.decisions"
        for record in log
    ]


def test_worker_agent_without_a_rule_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """`--model rules` with an agent that has none is found at the start, not by its first alert."""
    monkeypatch.setattr(app, "rules", {})

    async def main(clock: Clock) -> None:
        with pytest.raises(SetupError, match="--model: rules needs a rule of every agent; declare judge_cart, "):
            await process(clock)
        await process(clock, parts=("streams",))

    run_virtual(main, START_MS)


def test_worker_published_event_becomes_a_decision() -> None:
    """`app.publish` inside a worker is acknowledged, and the whole path follows from it."""

    async def main(clock: Clock) -> None:
        made, stopping, ready = await process(clock), asyncio.Event(), asyncio.Event()
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(made.worker.run(stopping, ready))
            await ready.wait()
            await asyncio.sleep(1)
            await app.publish(order(clock, "o-1", "12000.00"))
            await asyncio.sleep(2)
            stopping.set()
        assert ["approve"] == [decision["decision"]["action"] for decision in decisions(made.broker)]
        with pytest.raises(SetupError, match="nothing is connected"):
            await app.publish(order(clock, "o-2", "1"))

    run_virtual(main, START_MS)


@pytest.mark.parametrize(
    ("answer_s", "stopping_says", "stopped_says"),
    [
        (5, "stopping: 1 handler runs, for up to 25 s", "stopped; nothing is left over"),
        (1_000, "stopping: 1 handler runs, for up to 25 s", "stopped; the next worker handles 1 that are not finished"),
    ],
)
def test_worker_says_that_it_stops_and_what_it_hands_over(
    answer_s: float, stopping_says: str, stopped_says: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Who waits for its end knows for what, and how long at most."""
    caplog.set_level("INFO")

    async def slow(self: AgentWork, record: Record, attempt: int) -> None:
        await asyncio.sleep(answer_s)

    async def main(clock: Clock) -> None:
        made, stopping, ready = await process(clock), asyncio.Event(), asyncio.Event()
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(made.worker.run(stopping, ready))
            await ready.wait()
            await app.publish(order(clock, "o-1", "12000.00"))
            await asyncio.sleep(2)
            stopping.set()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(AgentWork, "handle", slow)
        run_virtual(main, START_MS)
    said = [line for line in caplog.messages if line.startswith("stop")]
    assert [True, True] == [said[0].startswith(stopping_says), said[1] == stopped_says]


def test_worker_publish_that_the_broker_refuses_is_an_error_for_that_event() -> None:
    """Failures of publishing surface where the event was published."""

    async def main(clock: Clock) -> None:
        made, stopping, ready = await process(clock), asyncio.Event(), asyncio.Event()
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(made.worker.run(stopping, ready))
            await ready.wait()
            with pytest.raises(BadRecord, match="cannot be published"):
                await app.publish(OrderEvent("o", "u", Decimal(1), "placed", instant(0).replace(tzinfo=None)))
            made.broker.plan(Fault("confirm", "fail"))
            with pytest.raises(Unavailable):
                await app.publish(order(clock, "o-1", "1"))
            stopping.set()

    run_virtual(main, START_MS)


@pytest.mark.parametrize("call", ["poll", "commit", "flush", "committed"])
def test_worker_part_that_meets_an_outage_is_started_again(call: Any) -> None:
    """Nobody has to be called at night because a broker was away for a moment."""

    async def main(clock: Clock) -> None:
        made, stopping, ready = await process(clock), asyncio.Event(), asyncio.Event()
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(made.worker.run(stopping, ready))
            await ready.wait()
            for number in range(4):
                made.broker.plan(Fault(call, "fail"))
                await app.publish(order(clock, f"o-{number}", "12000.00"))
                await asyncio.sleep(10)
            await asyncio.sleep(60)
            stopping.set()
        assert {f"high_value_order:u-1:o-{n}" for n in range(4)} == {d["alert_id"] for d in decisions(made.broker)}
        committed = made.broker.groups["headrace.streams"].committed
        for place, log in made.broker.logs.items():
            if place.topic == "raw.orders":
                assert len(log) == committed[place].offset

    run_virtual(main, START_MS)


def test_worker_outages_make_the_pause_grow_and_health_makes_it_short_again(caplog: pytest.LogCaptureFixture) -> None:
    """The first pause is short, since most outages are; a broker that stays away is not asked all the time."""

    async def main(clock: Clock) -> None:
        made, stopping, ready = await process(clock, parts=("streams",)), asyncio.Event(), asyncio.Event()
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(made.worker.run(stopping, ready))
            await ready.wait()
            for _ in range(8):
                made.broker.plan(Fault("poll", "fail"))
            await asyncio.sleep(200)
            made.broker.plan(Fault("poll", "fail"))
            await asyncio.sleep(10)
            stopping.set()

    run_virtual(main, START_MS)
    pauses = [line.rpartition(" in ")[2] for line in caplog.messages if "starts again in" in line]
    assert ["0.5 s", "1.0 s", "2.0 s", "4.0 s", "8.0 s", "16.0 s", "30.0 s", "30.0 s", "0.5 s"] == pauses


def test_app_topics_are_those_of_the_design() -> None:
    """What the design's table lists, with its partitions, is what `topics create` makes."""
    expected = {
        "raw.orders": 12,
        "raw.user_events": 24,
        "raw.payments": 12,
        "raw.service_events": 6,
        "processed.alerts": 6,
        "features.user_features": 12,
        "state.order_rate": 12,
        "agent.decisions": 6,
        "agent.effects": 6,
        "agent.reviews": 6,
        "agent.switches": 1,
    }
    declared = {spec.name: spec.partitions for spec in app.topics.all()}
    assert expected == {name: declared.get(name) for name in expected}


def test_app_alert_partitions_are_those_of_all_that_follows_from_alerts() -> None:
    """Decisions, effects and reviews lie in the partition of their alert."""
    wide = App(features=[fraud], alert_partitions=24)
    wide.agents.update(app.agents)
    topics = ("processed.alerts", "agent.decisions", "agent.effects", "agent.reviews")
    assert dict.fromkeys(topics, 24) == {name: wide.topics.named(name).partitions for name in topics}


def test_worker_error_that_no_restart_helps_ends_it() -> None:
    """A half-running worker does not go on in silence."""

    async def main(clock: Clock) -> None:
        made = await process(clock)
        made.broker.plan(Fault("poll", "fail", SetupError("streams", "planned")))
        with pytest.raises(SetupError, match="planned"):
            await made.worker.run(asyncio.Event())

    run_virtual(main, START_MS)


def test_worker_missing_or_other_topics_are_refused_at_start() -> None:
    """Keys would be looked for, and decisions written, where they are not."""

    async def main(clock: Clock) -> None:
        specs = app.topics.all()
        with pytest.raises(SetupError, match="python -m app topics create"):
            await (await process(clock, specs=specs[1:])).worker.run(asyncio.Event())
        others = [msgspec.structs.replace(spec, partitions=spec.partitions * 2) for spec in specs]
        with pytest.raises(SetupError, match="24 partitions, 12 are declared"):
            await (await process(clock, specs=others)).worker.run(asyncio.Event())

    run_virtual(main, START_MS)


@pytest.mark.parametrize(
    ("job", "refused"),
    [
        ({}, True),
        ({"stopped": True}, False),
        ({"over": True}, False),
        ({"job_id": ""}, False),
        ({"name": "raw.others"}, False),
    ],
)
def test_worker_does_not_run_streams_that_run_on_flink(job: dict[str, Any], refused: bool) -> None:
    """Each would raise the alerts of the other again, and both would write the same tables."""
    running: dict[str, Any] = {
        "name": "raw.orders+raw.payments",
        "job_id": "1",
        "generation": 1,
        "group": "g",
        "parallelism": 1,
    }

    async def main(clock: Clock) -> None:
        made, stopping = await process(clock, parts=["streams"]), asyncio.Event()
        await KeptJobs(made.broker).write(KeptJob(pipelines={}, **(running | job)))
        stopping.set()
        if refused:
            with pytest.raises(SetupError, match=r"python -m flink_jobs stop raw\.orders\+raw\.payments"):
                await made.worker.run(stopping)
        else:
            await made.worker.run(stopping)

    run_virtual(main, START_MS)


def test_worker_goes_on_where_a_job_was_stopped() -> None:
    """Its own gates had come further, and nobody has raised the alerts of what lies between."""

    async def main(clock: Clock) -> None:
        on_flink = msgspec.structs.replace(SETTINGS, engine="flink")
        made, stopping = await process(clock, parts=["streams"], settings=on_flink), asyncio.Event()
        job = KeptJob(name="raw.orders+raw.payments", generation=1, pipelines={}, group="g", parallelism=1, job_id="1")
        await KeptJobs(made.broker).write(job)
        made.broker.append("raw.orders", encode(order(clock, "o-1", "12000.00")), b"u-1", 0, clock.now_ms(), ())
        running = asyncio.create_task(made.worker.run(stopping))
        await asyncio.sleep(5)
        stopping.set()
        await running
        judged = made.broker.groups[f"{GATES_GROUP}.raw.orders"].committed
        assert [1] == [one.offset for one in judged.values() if one.offset]
        assert STREAMS_GROUP not in made.broker.groups
        await KeptJobs(made.broker).write(msgspec.structs.replace(job, stopped=True))
        after = Worker(
            app, SETTINGS, broker=made.broker, store=MemoryStore(clock), model=None, clock=clock, parts=["streams"]
        )
        stopping = asyncio.Event()
        running = asyncio.create_task(after.run(stopping))
        await asyncio.sleep(5)
        stopping.set()
        await running
        assert 1 == sum(len(log) for place, log in made.broker.logs.items() if place.topic == "processed.alerts")

    run_virtual(main, START_MS)


@pytest.mark.parametrize(
    ("parts", "changes", "complaint"),
    [
        (["streams", "nothing"], {}, "no part is called nothing"),
        (["agents"], {}, "one process only"),
        (PARTS, {"model_attempt_ms": 21_000}, "shorter than the deadline of judge_cart"),
        (["features", "agents"], {"drain_ms": 15_000}, "longer than the deadline of judge_cart"),
        (PARTS, {"grace_ms": 26_000}, "2 s longer than drain_ms, 25000 ms"),
        (PARTS, {"action_timeout_ms": 12_000}, "15 s shorter than drain_ms, 25000 ms"),
        (PARTS, {"model_prices": "claude=cheap"}, "'claude=cheap' is no price"),
        (PARTS, {"action_urls": {"block_everything": "https://example.com"}}, "no action is called block_everything"),
    ],
)
def test_worker_that_cannot_keep_its_promises_is_refused(
    parts: list[str], changes: dict[str, Any], complaint: str
) -> None:
    """Times that do not fit, unknown parts and unknown actions are errors before anything runs."""

    async def main(clock: Clock) -> None:
        settings = msgspec.structs.replace(SETTINGS, **changes)
        with pytest.raises(SetupError, match=complaint):
            await process(clock, parts, settings)

    run_virtual(main, START_MS)


def test_worker_cancelled_ends_at_once_and_leaves_its_groups() -> None:
    """The second signal: nothing more is committed, and nothing stays behind."""

    async def main(clock: Clock) -> None:
        made, ready = await process(clock), asyncio.Event()
        running = asyncio.ensure_future(made.worker.run(asyncio.Event(), ready))
        await ready.wait()
        await asyncio.sleep(2)
        before = made.broker.groups["headrace.streams"].committed.copy()
        made.broker.append("raw.orders", b"{}", b"u", 0, clock.now_ms(), ())
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running
        assert before == made.broker.groups["headrace.streams"].committed
        assert [] == [name for name, group in made.broker.groups.items() if group.members]
        assert 1 == len(made.broker.logs[TopicPartition("raw.orders", 0)])

    run_virtual(main, START_MS)


@pytest.mark.parametrize(
    ("address", "parts", "given", "expected"),
    [
        ("kafka://a:1", PARTS, 0, ["ACKNOWLEDGE_INCIDENT"]),
        ("kafka://a:1", PARTS, 2, ["HOLD_ACCOUNT"]),
        ("kafka://a:1", ("streams",), 0, []),
        ("memory://", PARTS, 0, []),
    ],
)
def test_worker_says_which_actions_have_no_address(
    address: str, parts: Iterable[str], given: int, expected: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    """In one line, with the setting of the first; not where nothing lasts."""
    names = sorted(name for agent in app.agents.values() for name in agent.action_names)
    urls = dict.fromkeys(names[:given], "https://payments.example/")

    async def main(clock: Clock) -> None:
        settings = Settings(broker="memory://", store="memory://", model="rules", action_urls=urls)
        made, stopping = await process(clock, parts, settings), asyncio.Event()
        made.broker.address = address
        stopping.set()
        await made.worker.run(stopping)

    run_virtual(main, START_MS)
    assert [
        f"without an address, so that what they post is only logged: {', '.join(names[given:])}; set HEADRACE_ACTION_URL_"
        f"{first} and so on, unless they only ask people or report incidents"
        for first in expected
    ] == [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]


def test_worker_part_that_cannot_stop_is_cancelled_within_the_grace(caplog: pytest.LogCaptureFixture) -> None:
    """A broker that is away for an hour does not keep a stopping process alive; nothing of it is committed."""

    async def main(clock: Clock) -> None:
        made, stopping, ready = await process(clock, ["streams"]), asyncio.Event(), asyncio.Event()
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(made.worker.run(stopping, ready))
            await ready.wait()
            await asyncio.sleep(2)
            made.broker.append("raw.orders", b"{}", b"u", 0, clock.now_ms(), ())
            made.broker.plan(Fault("flush", "delay", seconds=3_600))
            await asyncio.sleep(2)
            began_ms = clock.now_ms()
            stopping.set()
        assert clock.now_ms() - began_ms < SETTINGS.grace_ms
        assert 0 == made.broker.groups["headrace.streams"].committed[TopicPartition("raw.orders", 0)].offset

    run_virtual(main, START_MS)
    assert ["streams: not ended after 28 s, ends uncommitted"] == [m for m in caplog.messages if "not ended" in m]
