"""After an unclean end: who is under suspicion, who runs on trial, who is given up, and what goes on meanwhile."""

import asyncio
from collections import Counter
from collections.abc import Callable

import pytest

from app.broker.base import CommittedOffset
from app.broker.memory import Fault, _Group
from app.core.errors import Unavailable
from app.core.record import Record, TopicPartition
from app.dispatch import runner
from app.dispatch.caution import SUSPECTS_AT_ONCE, Caution
from app.dispatch.marks import Mark, decode_marks, encode_marks
from app.dispatch.offsets import OffsetTracker
from app.dispatch.retries import RetryPolicy
from app.dispatch.work import DispatchConfig
from tests.dispatching import GROUP, TOPIC, Stage, at_once, on_stage, taking, until


def commit_for(
    stage: Stage,
    marks: dict[int, Mark],
    announced: set[int],
    partition: int = 0,
    *,
    is_open: bool = True,
    names_all: bool = False,
) -> None:
    """What an owner has left behind at offset 0, by default a dead one."""
    metadata = encode_marks(0, marks, announced, is_open=is_open, names_all=names_all)
    group = stage.broker.groups.setdefault(GROUP, _Group())
    group.committed[TopicPartition(TOPIC, partition)] = CommittedOffset(0, metadata)


def let_go_who_came_later(patch: pytest.MonkeyPatch) -> None:
    """Care is for those alone that were there when the epoch before ended."""
    may_start = Caution.may_start

    def is_later_or_may_start(self: Caution, offset: int, committed: int, *, others_run: bool) -> bool:
        was_there = self.reach is None or offset < self.reach
        return may_start(self, offset, committed, others_run=others_run) if was_there else self._on_trial is None

    patch.setattr(Caution, "may_start", is_later_or_may_start)


async def crash_until_done(stage: Stage, culprit: int, config: DispatchConfig | None = None) -> int:
    """One process after another; the culprit kills each one that runs it. How often it did."""
    crashes = 0
    died = asyncio.Event()
    handler = stage.work.handler

    async def handle(record: Record, attempt: int) -> None:
        nonlocal crashes
        if record.offset == culprit:
            crashes += 1
            stage.broker.consumers[-1].die()
            died.set()
            await asyncio.Event().wait()
        await handler(record, attempt)

    stage.work.handler = handle
    while not stage.all_ended():
        died.clear()
        running = asyncio.create_task(stage.dispatcher(config).run(asyncio.Event()))
        ending = asyncio.create_task(until(stage.all_ended))
        dying = asyncio.create_task(died.wait())
        await asyncio.wait([ending, dying], return_when=asyncio.FIRST_COMPLETED)
        for task in (running, ending, dying):
            task.cancel()
        await asyncio.wait([running, ending, dying])
    return crashes


def test_caution_nothing_runs_before_the_first_commit() -> None:
    """While the broker takes no commit no handler is started; afterwards all are."""

    async def play(stage: Stage) -> None:
        for _ in range(10):
            stage.broker.plan(Fault("commit", "fail"))
        stage.send("u-1", "u-2")
        async with stage.running() as dispatcher:
            await until(lambda: dispatcher.statistics().commit_failures == 9)
            assert [] == stage.history.begun
            await until(stage.all_ended)

    on_stage(play)


def test_caution_suspects_and_others_run_few_at_once_and_announced() -> None:
    """After an unclean end suspects run a few at a time, and beside them a few others, each named in a commit beforehand."""

    async def play(stage: Stage) -> None:
        commit_for(stage, {}, set())
        stage.work.handler = taking(5)
        stage.send(*[f"u-{number}" for number in range(30)])
        async with stage.running(DispatchConfig(concurrency=20)):  # five of those without a crash run ahead
            await until(lambda: len(stage.history.running) == 5 + SUSPECTS_AT_ONCE)
            begun = sorted(offset for _, _, offset in stage.history.begun)
            suspects, others = begun[:SUSPECTS_AT_ONCE], begun[SUSPECTS_AT_ONCE:]
            assert list(range(SUSPECTS_AT_ONCE)) == suspects
            assert list(range(20, 25)) == others
            known = decode_marks(*(stage.broker.committed() or CommittedOffset(0)))
            assert known is not None
            assert set(begun) == known.announced
            await until(stage.all_ended)

    on_stage(play)


def test_caution_owner_that_named_all_leaves_no_other_suspects() -> None:
    """Who was not announced did not run: it runs ahead, a few at once and announced, without a crash to its charge."""

    async def play(stage: Stage) -> None:
        commit_for(stage, {}, {3}, names_all=True)
        stage.work.handler = taking(5)
        stage.send(*[f"u-{number}" for number in range(30)])
        async with stage.running(DispatchConfig(concurrency=20)):
            await until(lambda: len(stage.history.running) == 6)
            known = decode_marks(*(stage.broker.committed() or CommittedOffset(0)))
            assert known is not None
            assert ({3: Mark.ONE_CRASH}, frozenset(range(6))) == (known.marks, known.announced)
            assert known.names_all
            await until(stage.all_ended)

    on_stage(play)


def careful(received: int, reach: int) -> tuple[OffsetTracker, Caution]:
    """An owner after an unclean end, of the first so many records."""
    tracker = OffsetTracker(CommittedOffset(0, encode_marks(0, {}, is_open=True)))
    caution = Caution(tracker, concurrency=2)
    caution.suspect_up_to(0, reach)
    for offset in range(received):
        receive(tracker, caution, offset)
    return tracker, caution


def receive(tracker: OffsetTracker, caution: Caution, offset: int) -> None:
    tracker.receive(offset)
    caution.receive(offset, is_first_of_key=True)


def test_caution_says_that_it_names_all_when_it_knows_the_suspects() -> None:
    """Before, one of them could be among those that are still to come: of two permits, the first two of two keys."""
    assert not careful(1, reach=5)[1].names_all
    assert careful(2, reach=5)[1].names_all
    assert careful(1, reach=1)[1].names_all
    assert not Caution(OffsetTracker(None), concurrency=2).names_all


def test_caution_that_ends_is_committed_before_anything_runs_unannounced() -> None:
    """Or the next owner would take it for granted that what killed the process had been announced."""
    tracker, caution = careful(2, reach=2)
    committed, named = tracker.changes, [caution.names_all]
    for offset in range(2):
        tracker.finish(offset)
    receive(tracker, caution, 7)
    assert not caution.may_start(7, tracker.changes, others_run=False)
    assert caution.wants_commit(committed)
    named.append(caution.names_all)
    assert [True, False] == named
    assert caution.may_start(7, tracker.changes, others_run=False)


def test_caution_trial_runs_alone_in_its_partition() -> None:
    """Nothing of the partition runs beside a record with two crashes; other partitions go on."""

    async def play(stage: Stage) -> None:
        commit_for(stage, {1: Mark.TWO_CRASHES, 2: Mark.TWO_CRASHES}, set())
        beside: dict[int, set[tuple[int, bytes]]] = {}

        async def handle(record: Record, attempt: int) -> None:
            await asyncio.sleep(2)
            if record.partition == 0:
                beside[record.offset] = set(stage.history.running) - {(0, record.key or b"")}

        stage.work.handler = handle
        stage.send("u-0", "u-1", "u-2", "u-3")
        async with stage.running():
            await until(lambda: bool(stage.history.running))
            stage.send(*[f"u-{number}" for number in range(9)], partition=1)
            await until(stage.all_ended)
        for on_trial in (1, 2):
            assert {1} >= {partition for partition, _ in beside[on_trial]}
        assert any(partition == 1 for partition, _ in beside[1] | beside[2])

    on_stage(play, partitions=2)


def test_caution_trial_that_fails_waits_for_its_retry_without_holding_the_partition() -> None:
    """A record on trial whose attempt fails is parked like any other; its next attempt is a trial again."""

    async def play(stage: Stage) -> None:
        commit_for(stage, {0: Mark.TWO_CRASHES}, set())

        async def handle(record: Record, attempt: int) -> None:
            if record.offset == 0 and attempt < 3:
                raise Unavailable("not yet")

        stage.work.handler = handle
        stage.send("u-0", "u-1")
        retry = RetryPolicy(first_delay_ms=60_000, longest_delay_ms=60_000, jitter=0)
        async with stage.running(DispatchConfig(retry=retry)):
            await until(lambda: bool(stage.history.order[b"u-1"]), within_seconds=5)
            await until(stage.all_ended)
        assert CommittedOffset(2) == stage.broker.committed()

    on_stage(play)


def test_caution_partitions_share_the_permits_after_an_unclean_end() -> None:
    """No partition waits until another's backlog is gone, however few permits there are."""

    async def play(stage: Stage) -> None:
        begun: Counter[int] = Counter()

        async def handle(record: Record, attempt: int) -> None:
            begun[record.partition] += 1
            await asyncio.sleep(6)

        stage.work.handler = handle
        for partition in range(6):
            commit_for(stage, {}, set(), partition)
            stage.send(*[f"u-{partition}-{number}" for number in range(200)], partition=partition)
        async with stage.running(DispatchConfig(concurrency=16, drain_ms=100)):
            await asyncio.sleep(120)
        assert max(begun.values()) <= 1.5 * min(begun[partition] for partition in range(6))

    on_stage(play, partitions=6)


def late_arrivals_begin() -> list[float]:
    """When each record begins, in seconds: of 400 after an unclean end the first is on trial for 5 s; one comes meanwhile,
    one after it. Eight of those without a crash run ahead."""
    begun: dict[int, float] = {}

    async def play(stage: Stage) -> None:
        loop = asyncio.get_running_loop()
        began_s = loop.time()

        async def handle(record: Record, attempt: int) -> None:
            begun[record.offset] = loop.time() - began_s
            await asyncio.sleep(5)

        stage.work.handler = handle
        commit_for(stage, {0: Mark.TWO_CRASHES}, set())
        stage.send(*[f"u-{number}" for number in range(400)])
        async with stage.running(DispatchConfig(concurrency=32)):
            await asyncio.sleep(2)
            stage.send("late")
            await asyncio.sleep(6)
            stage.send("later")
            await until(stage.all_ended)

    on_stage(play)
    return [begun[offset] for offset in range(402)]


def test_caution_who_comes_later_takes_its_turn() -> None:
    """Among the many without a crash nobody is overtaken, and none waits longer than those before it take."""
    begun = late_arrivals_begin()
    others = begun[32:]  # the first `concurrency` are suspects
    assert sorted(others) == others
    assert max(others) <= 5 + 5 * len(others) / 8


def test_caution_who_comes_later_without_its_turn_overtakes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ablation: where care is for those alone that were there, one begins at once and the one before it is not looked at."""
    let_go_who_came_later(monkeypatch)
    begun = late_arrivals_begin()
    assert begun[401] + 200 < begun[400]


def given_up_of_many_that_fail_once(*, is_open: bool) -> int:
    """Of 400 records, whose second attempts succeed where they begin within 20 s of the first."""
    given_up = []

    async def play(stage: Stage) -> None:
        async def handle(record: Record, attempt: int) -> None:
            await asyncio.sleep(2)
            if attempt == 1:
                raise Unavailable("once")

        stage.work.handler = handle
        commit_for(stage, {}, set(), is_open=is_open)
        stage.send(*[f"u-{number}" for number in range(400)])
        async with stage.running(DispatchConfig(concurrency=32, retry=RetryPolicy(within_ms=20_000))):
            await until(stage.all_ended)
        given_up.extend(stage.history.given_up)

    on_stage(play)
    return len(given_up)


@pytest.mark.parametrize("is_open", [False, True], ids=["after a clean end", "after an unclean end"])
def test_caution_retries_go_before_what_has_not_begun(*, is_open: bool) -> None:
    """Also before what was put aside, to wait for the first commit or for its turn: that has no deadline yet."""
    assert 0 == given_up_of_many_that_fail_once(is_open=is_open)


def test_caution_retries_behind_what_was_put_aside_are_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ablation: put aside as if they had not begun, retries are too late."""
    monkeypatch.setattr(runner._Item, "is_retry", False)
    assert given_up_of_many_that_fail_once(is_open=True) > 200


def test_caution_trials_find_their_permits_beside_busy_partitions() -> None:
    """Eight trials and what is behind them need a deadline each and one until a permit is free, not more."""

    async def play(stage: Stage) -> None:
        loop = asyncio.get_running_loop()
        began_s = loop.time()
        begun: list[float] = []

        async def handle(record: Record, attempt: int) -> None:
            if record.partition == 5:
                begun.append(loop.time() - began_s)
            await asyncio.sleep(6)

        stage.work.handler = handle
        for partition in range(5):
            commit_for(stage, {}, set(), partition)
            stage.send(*[f"u-{partition}-{number}" for number in range(300)], partition=partition)
        commit_for(stage, dict.fromkeys(range(8), Mark.TWO_CRASHES), set(), 5)
        stage.send(*[f"tried-{number // 2}" for number in range(8)], partition=5)
        async with stage.running(DispatchConfig(concurrency=4, drain_ms=100)):
            await until(lambda: len(begun) == 8, within_seconds=9 * 6)

    on_stage(play, partitions=6)


@pytest.mark.parametrize("mark", [Mark.ONE_CRASH, Mark.TWO_CRASHES])
def test_caution_record_that_waits_for_its_retry_is_blamed_for_no_kill(mark: Mark) -> None:
    """Its announcement is withdrawn in a commit, also where nothing else ends or waits: it does not run."""

    async def play(stage: Stage) -> None:
        commit_for(stage, {0: mark}, set())

        async def handle(record: Record, attempt: int) -> None:
            if attempt == 1:
                raise Unavailable("asks for a minute")

        stage.work.handler = handle
        stage.send("u-0")
        retry = RetryPolicy(first_delay_ms=60_000, longest_delay_ms=60_000, jitter=0)
        async with stage.running(DispatchConfig(retry=retry)) as dispatcher:
            await until(lambda: dispatcher.statistics().parked == 1)
            await asyncio.sleep(5)
            known = decode_marks(*(stage.broker.committed() or CommittedOffset(0)))
            assert known is not None
            assert ({0: mark}, frozenset()) == (known.marks, known.announced)
            await until(stage.all_ended)

    on_stage(play)


def test_caution_condemned_record_is_given_up_without_running() -> None:
    """Whoever was on trial at an unclean end runs no more; its reason says so, and its lane goes on."""

    async def play(stage: Stage) -> None:
        commit_for(stage, {0: Mark.TWO_CRASHES}, {0})
        stage.send("u-0", "u-0")
        async with stage.running() as dispatcher:
            await until(stage.all_ended)
            assert (1, 1) == (dispatcher.statistics().condemned, dispatcher.statistics().given_up)
        assert [(TOPIC, 0, 1)] == stage.history.begun
        ((place, error, attempts),) = stage.history.given_up
        assert ((TOPIC, 0, 0), 0) == (place, attempts)
        assert "ended uncleanly" in error

    on_stage(play)


@pytest.mark.parametrize(
    ("before", "seconds", "most"),
    [
        (lambda number: f"u-{number}", 0.2, 4),
        (lambda number: f"u-{number}", 0, 4),
        (lambda number: "busy", 0.2, 3),
        (lambda number: "culprit", 0.2, 4),
    ],
    ids=["other keys", "other keys, quick", "one busy key", "its own key"],
)
def test_caution_culprit_behind_many_others_is_found(before: Callable[[int], str], seconds: float, most: int) -> None:
    """Hundreds of records before the culprit do not hide it for long: three crashes count, and few come before them."""

    async def play(stage: Stage) -> None:
        stage.work.handler = taking(seconds)
        stage.send(*[before(number) for number in range(600)], "culprit")
        crashes = await crash_until_done(stage, 600, DispatchConfig(concurrency=64))
        assert [(TOPIC, 0, 600)] == [place for place, _, _ in stage.history.given_up]
        assert crashes <= most

    on_stage(play)


def test_caution_culprit_beside_the_suspects_of_before_is_found() -> None:
    """After a clean end it runs unannounced, and stands behind as many suspects as are looked for; its crash counts."""

    async def play(stage: Stage) -> None:
        commit_for(stage, dict.fromkeys(range(32), Mark.ONE_CRASH), set(), is_open=False)
        stage.work.handler = taking(5)
        stage.send(*[f"u-{number}" for number in range(60)])
        assert 3 == await crash_until_done(stage, 40, DispatchConfig(concurrency=32))

    on_stage(play)


@pytest.mark.parametrize("keys", [20, 40, 200])
def test_caution_culprit_that_comes_while_others_wait_is_found(keys: int) -> None:
    """It passes by those that wait behind the heads of their lanes, and three of its crashes count."""

    async def play(stage: Stage) -> None:
        commit_for(stage, {}, set())
        stage.work.handler = taking(5)
        stage.send(*[f"u-{number % keys}" for number in range(200)])
        arriving = asyncio.get_running_loop().call_later(2, stage.send, "culprit")
        assert 3 == await crash_until_done(stage, 200, DispatchConfig(concurrency=32))
        assert [(TOPIC, 0, 200)] == [place for place, _, _ in stage.history.given_up]
        assert arriving.when() < asyncio.get_running_loop().time()

    on_stage(play)


def test_caution_clean_end_with_a_handler_cut_off_suspects_nobody() -> None:
    """A stop that cancels handlers is no crash."""

    async def play(stage: Stage) -> None:
        stage.work.handler = taking(3_600)
        stage.send("u-1", "u-2")
        for _ in range(4):
            async with stage.running(DispatchConfig(drain_ms=100)):
                await until(lambda: len(stage.history.running) == 2)
        stage.work.handler = at_once
        async with stage.running():
            await until(stage.all_ended)
        assert [] == stage.history.given_up
        assert CommittedOffset(2) == stage.broker.committed()

    on_stage(play)


def test_caution_lost_partition_counts_as_unclean() -> None:
    """An owner that was thought dead commits nothing any more, so its records are under suspicion at the next one."""

    async def play(stage: Stage) -> None:
        stage.work.handler = taking(20)
        stage.send("u-1")
        async with stage.running():
            await until(lambda: bool(stage.history.running))
            stage.broker.expel(stage.broker.consumers[0])
            await until(lambda: len(stage.history.begun) == 2)
            known = decode_marks(*(stage.broker.committed() or CommittedOffset(0)))
            assert known is not None
            assert {0: Mark.ONE_CRASH} == known.marks
            await until(stage.all_ended)

    on_stage(play)


def test_caution_hand_over_between_living_members_suspects_nobody() -> None:
    """A revoked partition was closed by its last commit: the new owner is not careful."""

    async def play(stage: Stage) -> None:
        stage.work.handler = taking(60)
        stage.send("u-1", "u-2", partition=1)
        async with stage.running(DispatchConfig(revoke_drain_ms=100)):
            await until(lambda: len(stage.history.running) == 2)
            async with stage.running(DispatchConfig(drain_ms=100)):
                await until(lambda: len(stage.history.begun) == 4)
                known = decode_marks(*(stage.broker.committed(1) or CommittedOffset(0)))
                assert known is not None
                assert ({}, frozenset()) == (known.marks, known.announced)

    on_stage(play, partitions=2)


def test_caution_last_commit_that_fails_counts_as_unclean() -> None:
    """Nobody can know then how the epoch ended: its records come under suspicion, and are handled all the same."""

    async def play(stage: Stage) -> None:
        stage.work.handler = taking(3_600)
        stage.send("u-1")
        async with stage.running(DispatchConfig(drain_ms=100)):
            await until(lambda: bool(stage.history.running))
            stage.broker.consumers[0].dead = True
        stage.work.handler = taking(1)
        async with stage.running():
            await until(lambda: bool(stage.history.running))
            known = decode_marks(*(stage.broker.committed() or CommittedOffset(0)))
            assert known is not None
            assert {0: Mark.ONE_CRASH} == known.marks
            await until(stage.all_ended)
        assert [] == stage.history.given_up

    on_stage(play)
