"""Commits follow completions, survive a broker that fails, and never run ahead."""

import asyncio
from collections.abc import Mapping

import pytest

from app.broker.base import Assignment, CommittedOffset
from app.broker.memory import Fault, MemoryConsumer, _Group
from app.core.errors import Fenced, Rejected, Unavailable
from app.core.record import Record, TopicPartition
from app.dispatch import consumer, offsets, partitions
from app.dispatch.marks import Mark, decode_marks, encode_marks
from app.dispatch.offsets import OffsetTracker
from app.dispatch.work import DispatchConfig
from tests.dispatching import GROUP, TOPIC, Stage, on_stage, taking, until


def test_commits_follow_a_completion_within_half_a_second() -> None:
    """What is done now is committed half a second from now."""

    async def play(stage: Stage) -> None:
        stage.send("u-1")
        async with stage.running():
            await until(stage.all_ended)
            await asyncio.sleep(0.5)
            assert 1 == stage.broker.position()

    on_stage(play)


def test_commits_idle_dispatcher_commits_nothing() -> None:
    """While nothing changes nothing is committed, for an hour, and the loop rests between polls."""

    async def play(stage: Stage) -> None:
        stage.send("u-1")
        async with stage.running() as dispatcher:
            await asyncio.sleep(3_600)
            assert 2 == dispatcher.statistics().commits, "one before anything ran, one when it was done"
            assert stage.broker.consumers[0].polls < 3_600 * 1_000 / consumer.POLL_TIMEOUT_MS + 10

    on_stage(play)


def test_commits_unfinished_head_holds_the_offset() -> None:
    """Thousands done behind a slow one move nothing; a restart does not repeat them."""

    async def play(stage: Stage) -> None:
        release = asyncio.Event()

        async def handle(record: Record, attempt: int) -> None:
            if record.offset == 3:
                await release.wait()

        stage.work.handler = handle
        stage.send(*[f"u-{number}" for number in range(3_000)])
        async with stage.running(DispatchConfig(drain_ms=1_000)):
            await until(lambda: len(stage.history.ends) == 2_999)
            await asyncio.sleep(1)
            assert 3 == stage.broker.position()
        release.set()
        async with stage.running() as dispatcher:
            await until(stage.all_ended)
            assert 2_996 == dispatcher.statistics().recorded
        assert {1} == set(stage.history.ends.values())
        assert CommittedOffset(3_000) == stage.broker.committed()

    on_stage(play)


@pytest.mark.parametrize("action", ["fail", "drop"])
def test_commits_failed_commit_is_tried_again(action: str) -> None:
    """A commit that failed, or whose answer was lost, is made again without another completion to remind of it."""

    async def play(stage: Stage) -> None:
        for _ in range(5):
            stage.broker.plan(Fault("commit", action))  # type: ignore[arg-type]
        stage.send("u-1", "u-2")
        async with stage.running() as dispatcher:
            await until(lambda: stage.broker.position() == 2)
            assert 5 == dispatcher.statistics().commit_failures

    on_stage(play)


def test_commits_slow_commit_is_not_overtaken() -> None:
    """While one commit is under way no other is made, so an older one never arrives last."""

    async def play(stage: Stage) -> None:
        stage.broker.plan(Fault("commit", "delay", seconds=20))
        positions = []
        stage.send("u-1")
        async with stage.running():
            await asyncio.sleep(1)
            stage.send("u-2", "u-3")
            for _ in range(40):
                await asyncio.sleep(1)
                positions.append(stage.broker.position())
        assert sorted(positions) == positions
        assert 3 == positions[-1]

    on_stage(play)


def test_commits_fenced_epoch_ends_and_others_go_on() -> None:
    """When the broker refuses one epoch, its handlers are cancelled, and the other partitions' offsets are committed."""

    async def play(stage: Stage) -> None:
        cancelled = []

        async def handle(record: Record, attempt: int) -> None:
            if record.key == b"long":
                try:
                    await asyncio.sleep(10)
                except asyncio.CancelledError:
                    cancelled.append(record.partition)
                    raise

        stage.work.handler = handle
        for partition in (0, 1):
            stage.send("short", "long", partition=partition)
        async with stage.running() as dispatcher:
            await until(lambda: len(stage.history.running) == 2)
            stage.broker.plan(Fault("commit", "fail", error=Fenced("the epoch has ended")))  # the commit of both
            stage.broker.plan(Fault("commit", "fail", error=Fenced("the epoch has ended")))  # the first alone
            await until(lambda: stage.broker.position(1) == 1, within_seconds=2)
            await until(lambda: bool(stage.history.ended), within_seconds=1)
            assert [0] == cancelled
            assert [0] == [assignment.partition for assignment in stage.history.ended]
            assert [1] == [one.place.partition for one in dispatcher.statistics().partitions]
            await until(lambda: stage.broker.position(1) == 2)
            assert 0 == stage.broker.position(0)

    on_stage(play, partitions=2)


def test_commits_fenced_epochs_are_told_apart_at_the_same_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """A consumer may need a second to be sure of a refusal: for twelve partitions that is two seconds, not thirteen."""

    async def play(stage: Stage) -> None:
        commit = MemoryConsumer.commit

        async def refuse(self: MemoryConsumer, offsets: Mapping[Assignment, CommittedOffset]) -> None:
            if not stage.all_ended():
                return await commit(self, offsets)
            await asyncio.sleep(1)
            raise Fenced("the epoch has ended")

        monkeypatch.setattr(MemoryConsumer, "commit", refuse)
        for partition in range(12):
            stage.send("u-1", partition=partition)
        async with stage.running():
            await until(stage.all_ended)
            await until(lambda: len(stage.history.ended) == 12, within_seconds=3)

    on_stage(play, partitions=12)


def test_commits_refused_though_still_ours_begins_again() -> None:
    """A partition whose commit was refused, and that the group never takes away, is not left unread."""

    async def play(stage: Stage) -> None:
        stage.broker.plan(Fault("commit", "fail", error=Fenced("a stale epoch")))
        stage.send("u-1", "u-2")
        async with stage.running():
            await asyncio.sleep(1)
            stage.send("u-3")
            await until(stage.all_ended)
            await until(lambda: stage.broker.position() == 3)
        assert [0, 0] == [assignment.partition for assignment in stage.history.assigned]

    on_stage(play)


def test_commits_refused_though_still_ours_polls_while_it_cannot_go_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """What has become of the partition is said by polling; the others are read meanwhile."""
    seek, refused = MemoryConsumer.seek, 0

    async def unavailable(self: MemoryConsumer, place: TopicPartition, offset: int) -> None:
        nonlocal refused
        refused += 1
        if refused < 4:
            raise Unavailable("its position had no answer")
        await seek(self, place, offset)

    monkeypatch.setattr(MemoryConsumer, "seek", unavailable)

    async def play(stage: Stage) -> None:
        stage.broker.plan(Fault("commit", "fail", error=Fenced("a stale epoch")))
        stage.send("u-1")
        async with stage.running():
            await until(lambda: refused == 1)
            polls = stage.broker.consumers[0].polls
            await asyncio.sleep(1)
            assert (1, True) == (refused, stage.broker.consumers[0].polls > polls)
            stage.send("u-2")
            await until(stage.all_ended, within_seconds=60)
        assert 4 == refused

    on_stage(play)


def test_commits_refused_though_still_ours_keeps_the_care_it_had_inherited() -> None:
    """What an owner before may have been running is still unknown when the partition begins again."""

    async def play(stage: Stage) -> None:
        group = stage.broker.groups.setdefault(GROUP, _Group())
        group.committed[TopicPartition(TOPIC, 0)] = CommittedOffset(0, encode_marks(0, {}, is_open=True))
        stage.work.handler = taking(60)
        stage.send(*4 * ["u-1"])
        async with stage.running(DispatchConfig(max_waiting=1)):
            await asyncio.sleep(30)
            stage.broker.plan(Fault("commit", "fail", error=Fenced("a stale epoch")))
            await until(lambda: len(stage.history.ends) == 3)
            await asyncio.sleep(30)
            known = decode_marks(*(stage.broker.committed() or CommittedOffset(0)))
            assert known is not None
            assert {3: Mark.ONE_CRASH} == known.marks
            await until(stage.all_ended)

    on_stage(play)


def test_commits_refused_though_still_ours_without_safeguard_stays_unread(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ablation: without beginning it again, nobody would ever read that partition."""
    monkeypatch.setattr(consumer, "TAKE_BACK_SECONDS", 10**9)

    async def play(stage: Stage) -> None:
        stage.broker.plan(Fault("commit", "fail", error=Fenced("a stale epoch")))
        stage.send("u-1")
        async with stage.running():
            await asyncio.sleep(1)
            stage.send("u-2")
            with pytest.raises(TimeoutError):
                await until(stage.all_ended, within_seconds=60)

    on_stage(play)


def test_commits_without_metadata_repeat_what_was_done(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ablation: without what travels beside the offset, a clean restart repeats everything behind the slow record."""
    monkeypatch.setattr(offsets, "encode_marks", lambda position, marks, announced, **more: "")

    async def play(stage: Stage) -> None:
        async def handle(record: Record, attempt: int) -> None:
            if record.offset == 0:
                await asyncio.sleep(30)

        stage.work.handler = handle
        stage.send("u-1", "u-2", "u-3")
        async with stage.running(DispatchConfig(drain_ms=1_000)):
            await until(lambda: len(stage.history.ends) == 2)
        async with stage.running():
            await until(stage.all_ended)
        assert 2 == stage.history.ends[TOPIC, 0, 1]

    on_stage(play)


def test_commits_before_a_revocation_is_tried_for_a_while() -> None:
    """The last commit before leaving is repeated while the broker is away, and then given up: late, but not lost."""

    async def play(stage: Stage) -> None:
        stage.send("u-1")
        async with stage.running(DispatchConfig(commit_interval_ms=60_000)):
            await until(stage.all_ended)
            for _ in range(3):
                stage.broker.plan(Fault("commit", "fail"))
        assert 1 == stage.broker.position()
        stage.send("u-2")
        async with stage.running(DispatchConfig(commit_interval_ms=60_000)):
            await until(stage.all_ended)
            for _ in range(1_000):
                stage.broker.plan(Fault("commit", "fail"))
        assert 1 == stage.broker.position()

    on_stage(play)


def test_commits_rejected_commit_ends_the_dispatcher() -> None:
    """What the broker will refuse for ever is not retried: the error reaches whoever runs the dispatcher, alone."""

    async def play(stage: Stage) -> None:
        stage.broker.plan(Fault("commit", "fail", error=Rejected("no right to commit")))
        stage.work.handler = taking(0.01)
        stage.send(*[f"u-{number}" for number in range(300)])
        with pytest.raises(Rejected, match="no right to commit"):
            await stage.dispatcher(DispatchConfig(concurrency=2)).run(asyncio.Event())
        assert 1 == len(asyncio.all_tasks())

    on_stage(play)


def test_commits_of_highest_seen_tracker_are_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ablation: with a tracker that commits after the highest offset done, the watched broker reports a loss."""

    class HighestSeen(OffsetTracker):
        def committable(self, *, names_all: bool = False) -> CommittedOffset:
            return CommittedOffset(self._next)

    monkeypatch.setattr(partitions, "OffsetTracker", HighestSeen)

    async def play(stage: Stage) -> None:
        async def handle(record: Record, attempt: int) -> None:
            if record.offset == 0:
                await asyncio.sleep(60)

        stage.work.handler = handle
        stage.send("u-1", "u-2")
        async with stage.running():
            await until(lambda: bool(stage.history.violations))
        stage.history.violations.clear()

    on_stage(play)
