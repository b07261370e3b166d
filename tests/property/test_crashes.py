"""Records that take their process with them, and processes that are killed from outside: seeded plays with real
dispatchers, judged by what was committed when each process died.

A process that dies is thrown out of its group in that moment, so that nothing of it is committed any more, and cancelled.
"""

import asyncio
from collections import Counter
from collections.abc import Callable
from random import Random

import msgspec
import pytest

from app.broker.base import CommittedOffset
from app.core.clock import Clock, run_virtual
from app.core.errors import Unavailable
from app.core.record import Record, TopicPartition
from app.dispatch.caution import Caution
from app.dispatch.marks import WINDOW, Known, Mark, decode_marks
from app.dispatch.offsets import OffsetTracker
from app.dispatch.retries import RetryPolicy
from app.dispatch.work import DispatchConfig
from tests.dispatching import GROUP, START_MS, TOPIC, Stage, WatchedConsumer, staged, until
from tests.examples import examples
from tests.unit.dispatch.test_caution import commit_for, let_go_who_came_later

SEEDS = range(examples(60))
ABLATION_SEEDS = range(200)
PARTITIONS = 2
RECORDS = 40
"""Of a partition. All of them can be suspects at once, so that every crash of a culprit counts."""

CONFIG = DispatchConfig(
    concurrency=RECORDS, retry=RetryPolicy(max_attempts=3, first_delay_ms=300, longest_delay_ms=2_000), drain_ms=1_000
)
FEW = 8
"""Permits, where a backlog is far longer."""

BACKLOG = 200
CRASHES = 3


class Processes:
    """One process after another on one stage, until all records have ended. The records come in waves, each with its own
    culprits, and each once all before it have ended.

    backlog: so many records of each partition were there before, in the midst of which a process has died; then there are
    far more than `concurrency`, no clean ends, and a wave comes as soon as all culprits before it are given up.
    """

    def __init__(self, stage: Stage, seed: int, *, culprits: int, kills: int, waves: int = 1, backlog: int = 0) -> None:
        self.stage = stage
        self.random = Random(seed)
        self.kills = kills
        self.waves = waves
        self.backlog = backlog
        self.config = msgspec.structs.replace(CONFIG, concurrency=FEW) if backlog else CONFIG
        self.culprits = {
            (self.random.randrange(PARTITIONS), backlog + wave * RECORDS + self.random.randrange(RECORDS))
            for wave in range(waves)
            for _ in range(culprits)
        }
        self.waiting: list[int] = []
        """How many records of a partition were unfinished, at least, when a wave came."""
        self.crashes: Counter[tuple[int, int]] = Counter()
        self.on_trial: set[tuple[int, int]] = set()
        self.unclean: set[int] = set()
        self.died = asyncio.Event()
        stage.work.handler = self.handle

    async def feed(self) -> None:
        for partition in range(PARTITIONS if self.backlog else 0):
            commit_for(self.stage, {}, set(), partition)
            self.stage.send(*self.keys(self.backlog, 2 * FEW), partition=partition)
        await asyncio.sleep(self.random.random() * 5)
        for wave in range(self.waves):
            self.waiting.append(min(map(self.unfinished, range(PARTITIONS))))
            for partition in range(PARTITIONS):
                self.stage.send(*self.keys(RECORDS, RECORDS, f"w-{wave}"), partition=partition)
            in_midst = self.backlog and wave + 1 < self.waves
            await until(self.all_culprits_given_up if in_midst else self.stage.all_ended, within_seconds=3_600)

    def keys(self, count: int, different: int, name: str = "u") -> list[str]:
        return [f"{name}-{self.random.randrange(different)}" for _ in range(count)]

    def all_culprits_given_up(self) -> bool:
        """Of those that have come."""
        return all(
            offset >= self.end(partition) or (partition, offset) in self.given_up()
            for partition, offset in self.culprits
        )

    def end(self, partition: int) -> int:
        return len(self.stage.broker.logs[TopicPartition(TOPIC, partition)])

    def unfinished(self, partition: int) -> int:
        ended = sum(place[1] == partition for place in self.stage.history.ends)
        return self.end(partition) - ended

    async def handle(self, record: Record, attempt: int) -> None:
        if (record.partition, record.offset) in self.culprits:
            await asyncio.sleep(self.random.choice([0, 0, 0.3, 2]))
            self.crashes[record.partition, record.offset] += 1
            self.die()
            await asyncio.Event().wait()
        await asyncio.sleep(self.random.choice([0, 0.05, 1, 5]))
        if self.random.random() < 0.1:
            raise Unavailable("by chance")

    def die(self) -> None:
        """Nothing of this process is committed from here on; the books are taken as they are."""
        if self.died.is_set():
            return
        for partition in range(PARTITIONS):
            self.take_stock(partition)
        self.stage.broker.consumers[-1].die()
        self.died.set()

    def take_stock(self, partition: int) -> None:
        known = self.known(partition)
        if known.is_open:
            self.unclean.add(partition)
        on_trial = {offset for offset in known.announced if known.marks.get(offset) is Mark.TWO_CRASHES}
        fresh = on_trial - {offset for number, offset in self.on_trial if number == partition}
        running = {key for number, key in self.stage.history.running if number == partition}
        if len(fresh) > 1:
            self.stage.history.violations.append(f"{fresh} were on trial together")
        if fresh and len(running) > 1:
            self.stage.history.violations.append(f"{fresh} was on trial beside {running}")
        self.on_trial |= {(partition, offset) for offset in on_trial}

    def known(self, partition: int) -> Known:
        known = decode_marks(*(self.stage.broker.committed(partition) or CommittedOffset(0)))
        assert known is not None
        return known

    async def perform(self) -> None:
        feeding = asyncio.create_task(self.feed())
        await asyncio.sleep(0)
        while not feeding.done() and self.crashes.total() < 100:
            self.died.clear()
            stopping = asyncio.Event()
            running = asyncio.create_task(self.stage.dispatcher(self.config).run(stopping))
            how = self.random.choice(["kill", "stop"]) if self.kills else "stop"
            patience_s = self.random.random() * (8 if how == "kill" else 60)
            with_patience = asyncio.timeout(3_600 if self.backlog else patience_s)
            try:
                async with with_patience:
                    await self.died.wait()
            except TimeoutError:
                if how == "kill" and self.stage.broker.groups.get(GROUP):
                    self.kills -= 1
                    self.die()
            stopping.set()
            if self.died.is_set():
                running.cancel()
            await asyncio.wait([running])
            if not running.cancelled():
                running.result()
                self.check_clean()
        feeding.cancel()
        await asyncio.wait([feeding])

    def check_clean(self) -> None:
        """A clean end leaves no partition open, and nobody under suspicion where nothing has ever crashed."""
        for partition in range(PARTITIONS):
            known = self.known(partition)
            if known.is_open and partition not in self.unclean:
                self.stage.history.violations.append("a clean end looks unclean")
            if partition not in self.unclean and any(mark is not Mark.DONE for mark in known.marks.values()):
                self.stage.history.violations.append("an innocent was suspected after clean ends")

    def given_up(self) -> set[tuple[int, int]]:
        """For their crashes."""
        return {(place[1], place[2]) for place, error, _ in self.stage.history.given_up if "uncleanly" in error}

    def judge(self) -> list[str]:
        violations = list(self.stage.history.violations)
        if not self.stage.all_ended():
            violations.append("a record was lost, or crashes for ever")
        given_up = self.given_up()
        violations += [f"{place} was given up, and never on trial" for place in given_up - self.on_trial]
        violations += [f"{place} crashed {count} times" for place, count in self.crashes.items() if count > CRASHES]
        violations += [f"{place} kills, and was not given up" for place in self.culprits - given_up]
        return violations


def play(seed: int, *, culprits: int, kills: int, waves: int = 1, backlog: int = 0) -> Processes:
    async def main(clock: Clock) -> Processes:
        stage = await staged(clock, PARTITIONS)
        processes = Processes(stage, seed, culprits=culprits, kills=kills, waves=waves, backlog=backlog)
        await processes.perform()
        return processes

    return run_virtual(main, START_MS)


@pytest.mark.parametrize("seed", SEEDS)
def test_crashes_any_history_loses_nothing_and_blames_only_those_on_trial(seed: int) -> None:
    """Culprits, kills from outside and clean ends: every record ends, a culprit after three crashes at most, and nobody is
    given up who was not on trial, alone in its partition, at an unclean end."""
    assert [] == play(seed, culprits=2, kills=8).judge()


@pytest.mark.parametrize("seed", range(examples(40)))
def test_crashes_single_culprit_is_given_up_after_exactly_three(seed: int) -> None:
    """Without kills from outside the culprit's own crashes are all there are, and it is the only one of its partition that
    is given up."""
    processes = play(seed, culprits=1, kills=0)
    assert [] == processes.judge()
    assert [CRASHES] == list(processes.crashes.values())
    ((partition, _),) = processes.culprits
    assert processes.culprits == {place for place in processes.given_up() if place[0] == partition}


@pytest.mark.parametrize("seed", range(examples(20)))
def test_crashes_culprits_that_come_later_are_given_up_after_three_of_their_own(seed: int) -> None:
    """A record that was not there yet when a process died has no part in that, whoever owns its partition then."""
    processes = play(seed, culprits=1, kills=0, waves=3)
    assert [] == processes.judge()
    assert [CRASHES] * 3 == list(processes.crashes.values())


@pytest.mark.parametrize("seed", range(examples(20)))
def test_crashes_culprits_that_come_into_a_backlog_are_given_up_after_three_of_their_own(seed: int) -> None:
    """From an unclean end on, until all that were there have ended, every crash counts, however many wait before it: few
    keys have long lanes, which who comes later passes by."""
    processes = play(seed, culprits=1, kills=0, waves=3, backlog=BACKLOG)
    assert [] == processes.judge()
    assert [CRASHES] * 3 == list(processes.crashes.values())
    assert min(processes.waiting) > 2 * FEW


@pytest.mark.parametrize("seed", range(examples(40)))
def test_crashes_clean_ends_count_against_nobody(seed: int) -> None:
    """However often a process is stopped in the midst of its work, nothing comes under suspicion."""
    processes = play(seed, culprits=0, kills=0)
    assert [] == processes.judge()
    assert not processes.on_trial


def count_nothing_before_running(patch: pytest.MonkeyPatch) -> None:
    may_start = Caution.may_start

    def at_once(self: Caution, offset: int, committed: int, *, others_run: bool) -> bool:
        return may_start(self, offset, 2**60, others_run=others_run)

    patch.setattr(Caution, "may_start", at_once)


def try_together(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Caution, "_begin_trial", lambda self, offset: None)


def ignore_how_it_ended(patch: pytest.MonkeyPatch) -> None:
    init = OffsetTracker.__init__

    def always_unclean(self: OffsetTracker, start: CommittedOffset | None, *, unclean: bool = False) -> None:
        init(self, start, unclean=start is not None)

    patch.setattr(OffsetTracker, "__init__", always_unclean)


def announce_suspects_alone(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Caution, "_is_careful", False)


def test_crashes_without_the_logs_end_are_laid_to_later_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ablation: whatever comes within the window is suspected, and culprits that come later have a crash too many."""
    monkeypatch.setattr(Caution, "suspect_up_to", lambda self, start, end: setattr(self, "reach", start + WINDOW))
    assert any([CRASHES] * 3 != list(play(seed, culprits=1, kills=0, waves=3).crashes.values()) for seed in range(20))


@pytest.mark.parametrize("remove", [let_go_who_came_later, announce_suspects_alone])
def test_crashes_in_a_backlog_without_safeguard_are_not_counted(
    remove: Callable[[pytest.MonkeyPatch], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ablation: who came later runs as it comes; who runs ahead of suspects is not named."""
    remove(monkeypatch)
    plays = (play(seed, culprits=1, kills=0, waves=3, backlog=BACKLOG) for seed in range(20))
    assert any(max(processes.crashes.values()) > CRASHES for processes in plays)


@pytest.mark.parametrize(
    ("remove", "culprits", "found"),
    [
        (count_nothing_before_running, 1, "times"),
        (try_together, 2, "on trial together"),
        (ignore_how_it_ended, 0, "an innocent was suspected"),
    ],
)
def test_crashes_without_safeguard_are_noticed(
    remove: Callable[[pytest.MonkeyPatch], None], culprits: int, found: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ablation: counts that are not committed before anything runs, trials that are not alone, clean ends that count."""
    remove(monkeypatch)
    kills = 8 if culprits else 0
    assert any(found in line for seed in ABLATION_SEEDS for line in play(seed, culprits=culprits, kills=kills).judge())


@pytest.mark.parametrize("seed", range(2))
def test_crashes_kills_from_outside_stall_nothing_and_blame_few(seed: int) -> None:
    """Two processes with calls of one and of six seconds, one of them killed every six seconds: a minute after the last
    kill all is done, and of the alerts that were interrupted over and over few have ended in their fallback."""
    count, span_s, kills, partitions = 3_000, 60, 10, 12

    async def main(clock: Clock) -> None:
        random = Random(seed)
        stage = await staged(clock, partitions)

        async def handle(record: Record, attempt: int) -> None:
            await asyncio.sleep(6 if record.offset % 10 == 7 else 1)

        async def feed() -> None:
            for _ in range(count):
                stage.send(f"u-{random.randrange(1_000)}", partition=random.randrange(partitions))
                await asyncio.sleep(span_s / count)

        async def join(after_s: float) -> None:
            await asyncio.sleep(after_s)
            stopping = asyncio.Event()
            running = asyncio.create_task(stage.dispatcher().run(stopping))
            members.append((running, stopping, stage.broker.consumers[-1]))

        stage.work.handler = handle
        members: list[tuple[asyncio.Task[None], asyncio.Event, WatchedConsumer]] = []
        await join(0)
        await join(0)
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(feed())
            for _ in range(kills):
                await asyncio.sleep(random.random() * 2 * span_s / kills)
                running, _, consumer = members.pop(0)
                consumer.die()
                running.cancel()
                tasks.create_task(join(2))
        await until(lambda: count == sum(map(stage.broker.position, range(partitions))), within_seconds=60)
        for running, stopping, _ in members:
            stopping.set()
            await running
        assert [] == [line for line in stage.history.violations if "at once" not in line]
        assert len(stage.history.given_up) <= count // 50

    run_virtual(main, START_MS)
