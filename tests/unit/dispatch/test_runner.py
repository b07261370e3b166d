"""How records reach their end: order, concurrency, retries, giving up."""

import asyncio
import contextlib
from itertools import pairwise

import pytest

from app.core.errors import BadRecord, Rejected, Unavailable
from app.core.record import Record
from app.dispatch.retries import RetryPolicy
from app.dispatch.work import DispatchConfig
from tests.dispatching import Stage, on_stage, taking, until

RETRY = RetryPolicy(max_attempts=3, first_delay_ms=1_000, longest_delay_ms=60_000, jitter=0)


def test_runner_many_keys_run_at_once_up_to_concurrency() -> None:
    """A hundred slow handlers inside one partition, never more than the permits."""

    async def play(stage: Stage) -> None:
        stage.work.handler = taking(10)
        stage.send(*[f"u-{number}" for number in range(100)])
        async with stage.running(DispatchConfig(concurrency=40)):
            started = asyncio.get_running_loop().time()
            await until(stage.all_ended)
            assert asyncio.get_running_loop().time() - started == pytest.approx(30, abs=1)
        assert 40 == stage.history.most_running

    on_stage(play)


def test_runner_one_key_keeps_its_order() -> None:
    """Records of one key end in their order, one at a time, whatever their handlers take and however they fail."""

    async def play(stage: Stage) -> None:
        async def handle(record: Record, attempt: int) -> None:
            await asyncio.sleep((record.offset * 7 % 5) / 10)
            if record.offset % 3 == 0 and attempt < 3:
                raise Unavailable("the model does not answer")

        stage.work.handler = handle
        stage.send(*[f"u-{number % 4}" for number in range(60)])
        async with stage.running(DispatchConfig(retry=RETRY)):
            await until(stage.all_ended)
        assert all(offsets == sorted(offsets) for offsets in stage.history.order.values())
        assert 4 == len(stage.history.order)

    on_stage(play)


def test_runner_records_without_key_all_run_at_once() -> None:
    """A null key orders nothing."""

    async def play(stage: Stage) -> None:
        stage.work.handler = taking(1)
        stage.send(*"----------")
        async with stage.running():
            await until(stage.all_ended)
        assert 10 == stage.history.most_running

    on_stage(play)


def test_runner_retry_holds_no_permit() -> None:
    """With one permit, a record that waits for its retry lets every other key run."""

    async def play(stage: Stage) -> None:
        loop = asyncio.get_running_loop()
        attempts: list[float] = []

        async def handle(record: Record, attempt: int) -> None:
            if record.key == b"bad":
                attempts.append(loop.time())
                raise Unavailable("not yet")

        stage.work.handler = handle
        stage.send("bad", "bad", *[f"u-{number}" for number in range(50)])
        async with stage.running(DispatchConfig(concurrency=1, retry=RETRY)) as dispatcher:
            await until(lambda: len(stage.history.order) == 50, within_seconds=0.5)
            statistics = dispatcher.statistics()
            assert (1, 2, 1) == (statistics.parked, statistics.waiting, statistics.lanes)
            await until(stage.all_ended)
        assert [1.0, 2.0] == pytest.approx([attempts[1] - attempts[0], attempts[2] - attempts[1]])

    on_stage(play)


def test_runner_at_bound_gives_up_and_lane_goes_on() -> None:
    """After the last attempt the record is given up, with its error, and the next of its key runs."""

    async def play(stage: Stage) -> None:
        async def handle(record: Record, attempt: int) -> None:
            if record.offset == 0:
                raise Unavailable(f"attempt {attempt}")

        stage.work.handler = handle
        stage.send("u-1", "u-1")
        async with stage.running(DispatchConfig(retry=RETRY)) as dispatcher:
            await until(stage.all_ended)
            await until(lambda: stage.broker.position() == 2)
            statistics = dispatcher.statistics()
        assert [(("processed.alerts", 0, 0), "attempt 3", 3)] == stage.history.given_up
        assert (2, 1, 2) == (statistics.done, statistics.given_up, statistics.retries)

    on_stage(play)


def test_runner_waits_as_long_as_a_server_asks() -> None:
    """A server that names a time is not asked again before it."""

    async def play(stage: Stage) -> None:
        begun: list[float] = []

        async def handle(record: Record, attempt: int) -> None:
            begun.append(asyncio.get_running_loop().time())
            error = Unavailable("rate limited")
            error.retry_after_ms = 20_000
            raise error

        stage.work.handler = handle
        stage.send("u-1")
        async with stage.running(DispatchConfig(retry=RETRY)):
            await until(stage.all_ended)
        assert [20, 20] == pytest.approx([later - earlier for earlier, later in pairwise(begun)])

    on_stage(play)


def test_runner_rejected_give_up_ends_the_dispatcher() -> None:
    """What even the last resort is refused is not tried for ever in silence."""

    async def play(stage: Stage) -> None:
        async def handle(record: Record, attempt: int) -> None:
            raise BadRecord("no JSON")

        async def give_up(record: Record, attempts: int) -> None:
            raise Rejected("processed.alerts.dead: not authorized")

        stage.work.handler = handle
        stage.work.give_up_handler = give_up
        stage.send("u-1")
        async with asyncio.timeout(60):
            with pytest.raises(Rejected, match="not authorized"):
                await stage.dispatcher(DispatchConfig(retry=RETRY)).run(asyncio.Event())
        assert 0 == stage.broker.position()
        assert {asyncio.current_task()} == asyncio.all_tasks()

    on_stage(play)


@pytest.mark.parametrize("error", [BadRecord("no JSON"), Rejected("spend limit reached")])
def test_runner_hopeless_error_is_not_retried(error: Exception) -> None:
    """What will fail again is given up at once."""

    async def play(stage: Stage) -> None:
        async def handle(record: Record, attempt: int) -> None:
            raise error

        stage.work.handler = handle
        stage.send("u-1")
        async with stage.running(DispatchConfig(retry=RETRY)) as dispatcher:
            await until(stage.all_ended)
            assert 0 == dispatcher.statistics().retries
        assert [1] == [attempts for _, _, attempts in stage.history.given_up]

    on_stage(play)


def test_runner_failing_give_up_is_tried_until_it_succeeds() -> None:
    """A record that cannot even be given up is not lost: it waits, its key with it, and others go on."""

    async def play(stage: Stage) -> None:
        failures = iter(range(20))

        async def handle(record: Record, attempt: int) -> None:
            if record.offset == 0:
                raise BadRecord("no JSON")

        async def give_up(record: Record, attempts: int) -> None:
            if next(failures, None) is not None:
                raise Unavailable("dead letters cannot be written")

        stage.work.handler = handle
        stage.work.give_up_handler = give_up
        stage.send("u-1", "u-1", "u-2")
        async with stage.running(DispatchConfig(retry=RETRY)) as dispatcher:
            await until(lambda: bool(stage.history.order[b"u-2"]), within_seconds=1)
            await until(stage.all_ended, within_seconds=3_600)
            assert 20 == dispatcher.statistics().give_up_failures
        assert {b"u-1": [1], b"u-2": [2]} == stage.history.order
        assert [1] == [attempts for _, _, attempts in stage.history.given_up]

    on_stage(play)


def test_runner_record_that_cannot_be_judged_is_given_up_alone() -> None:
    """An exception in `passes_over` or `lane` costs this record its handling, and its neighbours nothing."""

    async def play(stage: Stage) -> None:
        class Picky(type(stage.work)):  # type: ignore[misc]
            def lane(self, record: Record) -> bytes | None:
                if record.offset == 1:
                    raise ValueError("no lane")
                return record.key

        work = Picky(stage.history)
        stage.send("u-1", "u-1", "u-1")
        async with stage.running(work=work):
            await until(stage.all_ended)
        assert [(("processed.alerts", 0, 1), "no lane", 0)] == stage.history.given_up

    on_stage(play)


def test_runner_passed_over_records_are_done_without_a_handler() -> None:
    """Records of another kind cost no permit and no task, and hold no offset back."""

    async def play(stage: Stage) -> None:
        stage.work.unwanted = b"other"
        stage.send(*[f"u-{number}" for number in range(500)], value=b"other")
        stage.send("u-1")
        async with stage.running() as dispatcher:
            await until(lambda: stage.broker.position() == 501)
            statistics = dispatcher.statistics()
        assert (500, 1) == (statistics.passed_over, statistics.done)
        assert [("processed.alerts", 0, 500)] == stage.history.begun

    on_stage(play)


def test_runner_always_failing_handler_does_not_spin() -> None:
    """A handler that raises at once, for every record, is called as often as the policy says, and not once more."""

    async def play(stage: Stage) -> None:
        async def handle(record: Record, attempt: int) -> None:
            raise ZeroDivisionError

        stage.work.handler = handle
        stage.send(*[f"u-{number}" for number in range(200)])
        async with stage.running(DispatchConfig(retry=RETRY)):
            await until(stage.all_ended)
        assert 600 == len(stage.history.begun)

    on_stage(play)


def test_runner_failing_keys_do_not_stop_the_intake() -> None:
    """Parallel-consumer's fork #487: records that fail for ever filled the intake, and fresh ones were never taken.
    Here attempts are bounded, so half the records failing every time only slows the others down."""

    async def play(stage: Stage) -> None:
        async def handle(record: Record, attempt: int) -> None:
            if record.offset % 2:
                raise Unavailable("always")

        stage.work.handler = handle
        stage.send(*[f"u-{number % 300}" for number in range(5_000)])
        async with stage.running(DispatchConfig(concurrency=14, max_waiting=100, retry=RETRY)):
            await until(stage.all_ended, within_seconds=3_600)
        assert 2_500 == len(stage.history.given_up)

    on_stage(play)


def test_runner_cancellation_from_inside_a_handler_is_a_failure() -> None:
    """A handler that awaits something that somebody else cancelled has failed: its record is tried again, not lost."""

    async def play(stage: Stage) -> None:
        async def handle(record: Record, attempt: int) -> None:
            if attempt == 1:
                future = asyncio.get_running_loop().create_future()
                future.cancel()
                await future

        stage.work.handler = handle
        stage.send("u-1")
        async with stage.running(DispatchConfig(retry=RETRY)) as dispatcher:
            await until(stage.all_ended)
            assert 1 == dispatcher.statistics().retries

    on_stage(play)


@pytest.mark.parametrize("swallows", [True, False])
def test_runner_handler_that_cancels_itself_holds_nothing_up(swallows: bool) -> None:
    """As libraries do that take a time limit for a cancellation of their own: its record and those behind it end."""

    async def play(stage: Stage) -> None:
        async def handle(record: Record, attempt: int) -> None:
            task = asyncio.current_task()
            assert task is not None
            if attempt == 1:
                task.cancel()
                with contextlib.suppress(*[asyncio.CancelledError] * swallows):
                    await asyncio.sleep(1)

        stage.work.handler = handle
        stage.send("u-1", "u-1")
        async with stage.running(DispatchConfig(retry=RETRY)) as dispatcher:
            await until(stage.all_ended)
            assert 2 * (not swallows) == dispatcher.statistics().retries
        assert 2 == stage.broker.position()

    on_stage(play)
