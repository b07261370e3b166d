"""How a dispatcher ends: drained, committed, without waiting for what refuses to end."""

import asyncio
import contextlib

import pytest

from app.broker.base import CommittedOffset
from app.broker.memory import Fault
from app.core.record import Record, TopicPartition
from app.dispatch.retries import RetryPolicy
from app.dispatch.work import DispatchConfig
from tests.dispatching import GROUP, TOPIC, RecordedWork, Stage, on_stage, taking, until

PLACE = TopicPartition(TOPIC, 0)


def test_dispatcher_stops_after_drain() -> None:
    """At shutdown what runs may finish and is committed, what waits is not begun, and nothing is cancelled early."""

    async def play(stage: Stage) -> None:
        stage.work.handler = taking(8)
        stage.send("u-1", "u-2", "u-1")
        async with stage.running() as dispatcher:
            await until(lambda: len(stage.history.running) == 2)
        assert 2 == stage.broker.position()
        assert 2 == len(stage.history.begun)
        assert 1 == dispatcher.statistics().abandoned

    on_stage(play)


def test_dispatcher_stop_polls_while_it_drains() -> None:
    """A long drain does not cost the membership."""

    async def play(stage: Stage) -> None:
        stage.work.handler = taking(20)
        stage.send("u-1")
        stopping = asyncio.Event()
        running = asyncio.create_task(stage.dispatcher().run(stopping))
        await until(lambda: bool(stage.history.running))
        polls = stage.broker.consumers[0].polls
        stopping.set()
        await running
        assert stage.broker.consumers[0].polls - polls > 20
        assert 1 == stage.broker.position()

    on_stage(play)


def test_dispatcher_stop_lets_handlers_finish_whose_partition_moves_meanwhile() -> None:
    """A member that joins during the drain takes partitions away; what runs of them ends first and is not repeated."""

    async def play(stage: Stage) -> None:
        stage.work.handler = taking(4)
        stage.send("u-1", partition=0)
        stage.send("u-1", partition=1)
        stopping, second = asyncio.Event(), RecordedWork(stage.history)
        running = asyncio.create_task(stage.dispatcher().run(stopping))
        await until(lambda: len(stage.history.running) == 2)
        stopping.set()
        async with stage.running(work=second):
            await running
            await until(stage.all_ended)
        assert 2 == len(stage.history.begun)
        assert {1} == set(stage.history.ends.values())

    on_stage(play, partitions=2)


def test_dispatcher_stop_cancels_what_does_not_finish() -> None:
    """After the drain the rest is cancelled, uncommitted, also a handler that swallows its cancellation."""

    async def play(stage: Stage) -> None:
        async def handle(record: Record, attempt: int) -> None:
            try:
                await asyncio.sleep(3_600)
            except asyncio.CancelledError:
                if record.key == b"swallows":
                    return
                raise

        stage.work.handler = handle
        stage.send("u-1", "swallows")
        async with stage.running(DispatchConfig(drain_ms=1_000)):
            await until(lambda: len(stage.history.running) == 2)
        stage.history.ends.clear()
        assert 0 == stage.broker.position()
        assert CommittedOffset(0) == stage.broker.committed()

    on_stage(play)


def test_dispatcher_stop_does_not_wait_for_a_handler_that_refuses_to_end(caplog: pytest.LogCaptureFixture) -> None:
    """A handler that swallows every cancellation holds up neither the last commit nor the shutdown, and is told of."""

    async def play(stage: Stage) -> None:
        release = asyncio.Event()

        async def handle(record: Record, attempt: int) -> None:
            while record.key == b"stuck" and not release.is_set():
                with contextlib.suppress(asyncio.CancelledError):
                    await release.wait()

        stage.work.handler = handle
        stage.send("u-1", "stuck")
        loop = asyncio.get_running_loop()
        async with stage.running(DispatchConfig(drain_ms=1_000, commit_interval_ms=60_000)):
            await until(lambda: len(stage.history.ends) == 1)
            stopped = loop.time()
        assert loop.time() - stopped < 8
        assert 1 == stage.broker.position()
        release.set()
        await until(lambda: len(asyncio.all_tasks()) == 1)

    on_stage(play)
    assert "1 handlers swallow their cancellation" in caplog.text


def test_dispatcher_partition_that_comes_back_does_not_wait_for_ever() -> None:
    """A handler of before that refuses to end costs its partition half a minute, not its life."""

    async def play(stage: Stage) -> None:
        release = asyncio.Event()

        async def handle(record: Record, attempt: int) -> None:
            while record.offset == 0 and len(stage.history.assigned) == 1 and not release.is_set():
                with contextlib.suppress(asyncio.CancelledError):
                    await release.wait()

        stage.work.handler = handle
        stage.send("u-1", "u-2")
        async with stage.running():
            await until(lambda: len(stage.history.begun) == 2)
            stage.broker.expel(stage.broker.consumers[0])
            await until(lambda: stage.broker.position() == 2, within_seconds=60)
            release.set()
        stage.history.violations.clear()

    on_stage(play)


def test_dispatcher_stop_ends_the_wait_for_committed_offsets() -> None:
    """A shutdown does not wait for the end of a back-off."""

    async def play(stage: Stage) -> None:
        for _ in range(10_000):
            stage.broker.plan(Fault("committed", "fail"))
        retry = RetryPolicy(first_delay_ms=3_600_000, longest_delay_ms=3_600_000, jitter=0)
        async with asyncio.timeout(60):
            async with stage.running(DispatchConfig(retry=retry)):
                await asyncio.sleep(10)

    on_stage(play)


def test_dispatcher_cancelled_leaves_no_task_and_its_group() -> None:
    """A cancelled run passes the cancellation on; no task outlives it, what was done is committed, the group is left."""

    async def play(stage: Stage) -> None:
        stage.work.handler = taking(5)
        stage.send(*[f"u-{number}" for number in range(100)])
        running = asyncio.create_task(stage.dispatcher(DispatchConfig(concurrency=10)).run(asyncio.Event()))
        await asyncio.sleep(7)
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running
        assert {asyncio.current_task()} == asyncio.all_tasks()
        assert 10 == stage.broker.position()
        assert [] == stage.broker.groups[GROUP].members

    on_stage(play)


def test_dispatcher_stops_while_the_broker_is_away() -> None:
    """A broker that never says what is committed does not hold up the shutdown."""

    async def play(stage: Stage) -> None:
        for _ in range(10_000):
            stage.broker.plan(Fault("committed", "fail"))
        async with asyncio.timeout(120):
            async with stage.running():
                await asyncio.sleep(60)

    on_stage(play)
