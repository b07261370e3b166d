"""The dispatcher as a member of its group: backpressure, hand-overs, lost partitions, shutdown."""

import asyncio
from random import Random

import pytest

from app.broker.base import Assignment, CommittedOffset
from app.broker.memory import Fault, MemoryConsumer
from app.core.errors import Rejected, SetupError, Unavailable
from app.core.record import Record, TopicPartition
from app.dispatch import partitions as partitions_module
from app.dispatch.consumer import Dispatcher
from app.dispatch.marks import WINDOW
from app.dispatch.offsets import OffsetTracker
from app.dispatch.work import DispatchConfig
from tests.dispatching import GROUP, TOPIC, RecordedWork, Stage, on_stage, taking, until

PLACE = TopicPartition(TOPIC, 0)


def test_dispatcher_clean_restarts_repeat_nothing() -> None:
    """Stopped and started again and again in the midst of its work, it handles each record once."""

    async def play(stage: Stage) -> None:
        random = Random(11)

        async def handle(record: Record, attempt: int) -> None:
            await asyncio.sleep(random.random() * 3)

        stage.work.handler = handle
        for partition in range(3):
            stage.send(*[f"u-{number % 70}" for number in range(400)], partition=partition)
        while not stage.all_ended():
            async with stage.running(DispatchConfig(concurrency=20)):
                await asyncio.sleep(random.random() * 10)
        assert {1} == set(stage.history.ends.values())
        assert [400, 400, 400] == [stage.broker.position(partition) for partition in range(3)]

    on_stage(play, partitions=3)


def test_dispatcher_counts_add_up() -> None:
    """Every received record is counted once: done, passed over, recorded or abandoned."""

    async def play(stage: Stage) -> None:
        stage.work.unwanted = b"other"
        stage.work.handler = taking(1)
        for number in range(300):
            stage.send(f"u-{number}", value=b"other" if number % 3 == 0 else b"{}")
        for _ in range(3):
            async with stage.running(DispatchConfig(concurrency=10, drain_ms=100)) as dispatcher:
                await asyncio.sleep(5.5)
                now = dispatcher.statistics()
                assert now.received == now.done + now.passed_over + now.recorded + now.in_flight + now.waiting
            end = dispatcher.statistics()
            assert end.received == end.done + end.passed_over + end.recorded + end.abandoned
            assert (0, 0, 0, ()) == (end.in_flight, end.waiting, end.parked, end.partitions)
            assert end.abandoned > 0

    on_stage(play)


def test_dispatcher_full_window_pauses_and_resumes() -> None:
    """One stuck record fills the window; the partition pauses, polling goes on, and it resumes when the window moves."""

    async def play(stage: Stage) -> None:
        release = asyncio.Event()

        async def handle(record: Record, attempt: int) -> None:
            if record.offset == 0:
                await release.wait()

        stage.work.handler = handle
        stage.send(*[f"u-{number}" for number in range(WINDOW + 3_000)])
        async with stage.running(DispatchConfig(max_waiting=WINDOW)) as dispatcher:
            await until(lambda: len(stage.history.ends) == WINDOW - 1)
            polls = stage.broker.consumers[0].polls
            await asyncio.sleep(60)
            assert stage.broker.consumers[0].polls - polls > 60
            assert WINDOW - 1 == len(stage.history.ends)
            statistics = dispatcher.statistics()
            assert (PLACE,) == statistics.paused
            assert WINDOW + 3_000 == statistics.lag
            assert statistics.held <= 500
            release.set()
            await until(stage.all_ended)
            assert () == dispatcher.statistics().paused
            await until(lambda: dispatcher.statistics().lag == 0)

    on_stage(play)


def test_dispatcher_many_waiting_pause_only_their_partition() -> None:
    """Too many waiting records pause their partition, while another one's go on; memory stays bounded."""

    async def play(stage: Stage) -> None:
        async def handle(record: Record, attempt: int) -> None:
            if record.partition == 0:
                await asyncio.sleep(1)

        stage.work.handler = handle
        stage.send(*["u-1"] * 1_000, partition=0)
        async with stage.running(DispatchConfig(max_waiting=100)) as dispatcher:
            most = paused = 0
            for number in range(300):
                stage.send(f"u-{number}", partition=1)
                await asyncio.sleep(0.2)
                statistics = dispatcher.statistics()
                most = max(most, statistics.waiting)
                paused += PLACE in statistics.paused
                assert number + 1 == len([place for place in stage.history.ends if place[1] == 1])
                assert TopicPartition(TOPIC, 1) not in statistics.paused
            assert most <= 100
            assert paused
            await until(stage.all_ended, within_seconds=3_600)

    on_stage(play, partitions=2)


def test_dispatcher_large_records_pause_by_their_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Few but large records are bounded by their size, and one larger than the bound still runs."""
    monkeypatch.setattr(partitions_module, "MAX_UNFINISHED_BYTES", 10_000)

    async def play(stage: Stage) -> None:
        stage.work.handler = taking(1)
        stage.send(*[f"u-{number}" for number in range(30)], value=b"x" * 3_000)
        stage.send("large", value=b"x" * 20_000)
        stage.send("u-1")
        async with stage.running():
            await until(stage.all_ended)
        assert 4 == stage.history.most_running

    on_stage(play)


def test_dispatcher_second_member_takes_over_without_repeats() -> None:
    """A partition that is handed over is drained, committed, and goes on with its next record."""

    async def play(stage: Stage) -> None:
        stage.work.handler = taking(0.5)
        for partition in range(4):
            stage.send(*[f"u-{number % 25}" for number in range(500)], partition=partition)
        second = RecordedWork(stage.history, taking(0.5))
        async with stage.running() as first_dispatcher:
            await asyncio.sleep(3)
            async with stage.running(work=second) as second_dispatcher:
                await asyncio.sleep(3)
                assert 2 == len(first_dispatcher.statistics().partitions)
                assert 2 == len(second_dispatcher.statistics().partitions)
            await until(stage.all_ended)
        assert {1} == set(stage.history.ends.values())
        assert second_dispatcher.statistics().done > 0
        assert sorted(stage.history.assigned) == sorted(stage.history.ended)

    on_stage(play, partitions=4)


def test_dispatcher_revoked_partition_cancels_what_does_not_drain() -> None:
    """A handler longer than the drain is cancelled, its record uncommitted and the next owner's."""

    async def play(stage: Stage) -> None:
        stage.work.handler = taking(30)
        stage.send("u-1", partition=1)
        second = RecordedWork(stage.history)
        async with stage.running(DispatchConfig(revoke_drain_ms=2_000)) as first:
            await until(lambda: bool(stage.history.running))
            async with stage.running(work=second):
                await until(stage.all_ended, within_seconds=4)
                assert 1 == first.statistics().abandoned
                assert [(TOPIC, 1)] == [one.place for one in stage.history.revoked]
        assert [(TOPIC, 1, 0)] * 2 == stage.history.begun
        assert 1 == stage.history.ends[TOPIC, 1, 0]

    on_stage(play, partitions=2)


def test_dispatcher_expelled_member_commits_nothing() -> None:
    """A member that missed its session cancels its handlers and commits nothing; the new owner repeats them."""

    async def play(stage: Stage) -> None:
        stage.work.handler = taking(10)
        stage.send("u-1", "u-2")
        second = RecordedWork(stage.history)
        async with stage.running(DispatchConfig(commit_interval_ms=3_600_000)) as first:
            await until(lambda: len(stage.history.running) == 2)
            async with stage.running(work=second):
                stage.broker.expel(stage.broker.consumers[0])
                await until(stage.all_ended, within_seconds=5)
                assert 2 == first.statistics().abandoned
                assert 1 == first.statistics().commits, "but for the one before anything ran"

    on_stage(play)


def test_dispatcher_commit_refused_after_its_epoch_pauses_no_later_one() -> None:
    """A partition is lost and back while a commit of before is under way; what that is refused says nothing of now."""

    async def play(stage: Stage) -> None:
        async with stage.running() as dispatcher:
            await until(lambda: bool(dispatcher.statistics().partitions))
            (before,) = dispatcher._partitions.values()
            stage.broker.expel(stage.broker.consumers[0])
            await until(lambda: before not in dispatcher._partitions.values() and bool(dispatcher._partitions))
            await until(lambda: dispatcher.statistics().partitions[0].prepared)
            await dispatcher._lose([before])
            stage.send("u-1")
            await until(stage.all_ended, within_seconds=5)

    on_stage(play)


def test_dispatcher_partition_that_comes_back_starts_clean() -> None:
    """Parallel-consumer #909: the same partition, lost and given back, runs every record of the new epoch, though
    handlers of the old one are still on their way out under the same keys and offsets."""

    async def play(stage: Stage) -> None:
        async def handle(record: Record, attempt: int) -> None:
            try:
                await asyncio.sleep(5)
            finally:
                await asyncio.sleep(7)  # longer than polling waits for it

        stage.work.handler = handle
        stage.send("u-1", "u-2", "u-1")
        async with stage.running() as dispatcher:
            await until(lambda: len(stage.history.running) == 2)
            stage.broker.expel(stage.broker.consumers[0])
            await until(stage.all_ended)
            await until(lambda: stage.broker.position() == 3)
            assert 3 == dispatcher.statistics().done
        assert {1} == set(stage.history.ends.values())
        assert {b"u-1": [0, 2], b"u-2": [1]} == stage.history.order

    on_stage(play)


def test_dispatcher_prepares_before_any_record_runs() -> None:
    """Look-backs come first, are repeated when they fail, and hold back only their own partition."""

    async def play(stage: Stage) -> None:
        failures = iter(range(3))

        async def prepare(assignment: Assignment) -> None:
            if assignment.partition == 0:
                await asyncio.sleep(20)
                if next(failures, None) is not None:
                    raise Unavailable("decisions cannot be read")

        stage.work.prepare = prepare
        for partition in (0, 1):
            stage.send("u-1", partition=partition)
        async with stage.running() as dispatcher:
            await until(lambda: stage.history.ends[TOPIC, 1, 0] == 1, within_seconds=1)
            await asyncio.sleep(70)
            assert [(TOPIC, 1, 0)] == stage.history.begun
            assert stage.broker.consumers[0].polls > 100
            assert [False, True] == [one.prepared for one in dispatcher.statistics().partitions]
            await until(stage.all_ended, within_seconds=20)

    on_stage(play, partitions=2)


def test_dispatcher_rejected_look_back_ends_it() -> None:
    """A look-back that will be refused for ever is not retried in silence."""

    async def play(stage: Stage) -> None:
        async def prepare(assignment: Assignment) -> None:
            raise Rejected("no right to read agent.decisions")

        stage.work.prepare = prepare
        with pytest.raises(Rejected, match="no right"):
            await stage.dispatcher().run(asyncio.Event())
        assert stage.history.assigned == stage.history.ended

    on_stage(play)


def test_dispatcher_preparing_partition_that_goes_is_forgotten() -> None:
    """A look-back ends with its epoch, and the work is told."""

    async def play(stage: Stage) -> None:
        async def prepare(assignment: Assignment) -> None:
            await asyncio.sleep(3_600)

        stage.work.prepare = prepare
        async with stage.running():
            await until(lambda: bool(stage.history.assigned))
        assert stage.history.assigned == stage.history.ended

    on_stage(play)


def test_dispatcher_foreign_metadata_is_counted_and_runs_everything() -> None:
    """Metadata that another client left is not believed."""

    async def play(stage: Stage) -> None:
        stage.send("u-1", "u-2", "u-3")
        async with stage.running():
            pass
        stage.broker.groups[GROUP].committed[PLACE] = CommittedOffset(1, "somebody else's")
        stage.history.ends[TOPIC, 0, 0] += 1
        async with stage.running() as dispatcher:
            await until(stage.all_ended)
            assert 1 == dispatcher.statistics().foreign_metadata

    on_stage(play)


def test_dispatcher_broker_away_for_a_while_loses_nothing() -> None:
    """Failing polls and committed offsets that are not to be had are waited out."""

    async def play(stage: Stage) -> None:
        for _ in range(4):
            stage.broker.plan(Fault("poll", "fail"))
            stage.broker.plan(Fault("committed", "fail"))
        stage.send("u-1")
        async with stage.running() as dispatcher:
            await until(lambda: stage.broker.position() == 1)
            assert 4 == dispatcher.statistics().poll_failures

    on_stage(play)


def test_dispatcher_records_that_retention_removed_are_counted(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A member that was away for longer than retention says what it did not find."""

    async def play(stage: Stage) -> None:
        take = MemoryConsumer._take

        def take_what_is_left(self: MemoryConsumer, max_records: int) -> list[Record]:
            return [record for record in take(self, max_records) if record.offset >= 3]

        monkeypatch.setattr(MemoryConsumer, "_take", take_what_is_left)
        stage.send("u-1", "u-2", "u-3", "u-4")
        async with stage.running():
            pass
        stage.broker.groups[GROUP].committed[PLACE] = CommittedOffset(1)
        stage.history.ends.update([(TOPIC, 0, offset) for offset in range(3)])
        async with stage.running() as dispatcher:
            await until(lambda: stage.broker.position() == 4)
            assert 2 == dispatcher.statistics().vanished

    on_stage(play)
    assert "of 2 offsets behind the committed one" in caplog.text


def test_dispatcher_topic_made_anew_is_followed(monkeypatch: pytest.MonkeyPatch) -> None:
    """A topic that is deleted and made again under a running member is read from its new beginning, also where the broker
    is away in that moment."""

    async def play(stage: Stage) -> None:
        seek, failures = MemoryConsumer.seek, iter(range(2))

        async def seek_later(self: MemoryConsumer, place: TopicPartition, offset: int) -> None:
            if next(failures, None) is not None:
                raise Unavailable("the broker is away")
            await seek(self, place, offset)

        stage.send(*[f"u-{number}" for number in range(5)])
        async with stage.running():
            await until(lambda: stage.broker.position() == 5)
            stage.broker.logs[PLACE].clear()
            stage.send("n-1", "n-2")
            await stage.broker.consumers[0].seek(PLACE, 0)
            monkeypatch.setattr(MemoryConsumer, "seek", seek_later)
            await until(lambda: stage.broker.position() == 2)
        assert [[0], [1]] == [stage.history.order[key] for key in (b"n-1", b"n-2")]

    on_stage(play)


def test_dispatcher_record_out_of_order_ends_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """A broker that breaks its contract ends the dispatcher, also where the record had waited for room."""

    async def play(stage: Stage) -> None:
        take = MemoryConsumer._take

        def take_twisted(self: MemoryConsumer, max_records: int) -> list[Record]:
            records = take(self, max_records)
            return records[:10] + records[15:] + records[10:15]

        monkeypatch.setattr(MemoryConsumer, "_take", take_twisted)
        stage.work.handler = taking(1)
        stage.send(*[f"u-{number}" for number in range(20)])
        with pytest.raises(AssertionError, match="offset 10 after 19"):
            await stage.dispatcher(DispatchConfig(concurrency=2, max_waiting=2)).run(asyncio.Event())
        stage.history.violations.clear()

    on_stage(play)


def test_dispatcher_missing_topic_is_told_at_the_start() -> None:
    """What cannot start says why, as one error."""

    async def play(stage: Stage) -> None:
        stage.work.topics = ("nowhere",)
        with pytest.raises(Rejected, match="nowhere"):
            await stage.dispatcher().run(asyncio.Event())

    on_stage(play)


def test_dispatcher_broken_invariant_ends_it_with_that_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """An assertion in our own code is not swallowed: the dispatcher ends, its tasks with it."""

    async def play(stage: Stage) -> None:
        def finish(self: object, offset: int) -> bool:
            raise AssertionError("planted")

        monkeypatch.setattr(OffsetTracker, "finish", finish)
        stage.work.handler = taking(1)
        stage.send(*[f"u-{number}" for number in range(100)])
        with pytest.raises(AssertionError, match="planted"):
            await stage.dispatcher(DispatchConfig(concurrency=3)).run(asyncio.Event())
        assert {asyncio.current_task()} == asyncio.all_tasks()
        stage.history.violations.clear()

    on_stage(play)


def test_dispatcher_does_not_wait_for_half_a_batch() -> None:
    """Handlers begin while a long backlog is still being read: polling gives way to them."""

    async def play(stage: Stage) -> None:
        stage.send(*[f"u-{number}" for number in range(5_000)])
        dispatcher: Dispatcher
        seen: list[int] = []

        async def handle(record: Record, attempt: int) -> None:
            seen.append(dispatcher.statistics().received)

        stage.work.handler = handle
        async with stage.running(DispatchConfig(max_waiting=WINDOW)) as dispatcher:
            await until(stage.all_ended)
        assert seen[0] <= 1_000

    on_stage(play)


@pytest.mark.parametrize(
    ("setting", "value"),
    [("concurrency", 0), ("max_waiting", 0), ("max_waiting", WINDOW + 1), ("drain_ms", -1), ("commit_interval_ms", -1)],
)
def test_dispatch_config_impossible_setting_is_named(setting: str, value: int) -> None:
    """A wrong bound is refused at the start, by name."""
    with pytest.raises(SetupError, match=setting):
        DispatchConfig(**{setting: value})  # type: ignore[arg-type]
