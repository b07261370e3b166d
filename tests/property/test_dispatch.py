"""Dispatchers under seeded kills, hand-overs and broker faults: whatever happens, no record is lost.

The watched broker checks every commit against what has truly ended; the rest is checked when the last dispatcher has
found time to finish. Each safeguard is taken away once, and the same plays must notice.
"""

import asyncio
from collections.abc import Callable, Hashable
from random import Random
from typing import Any

import pytest

from app.broker.base import CommittedOffset
from app.broker.memory import Fault
from app.core.clock import Clock, run_virtual
from app.core.errors import BadRecord, Fenced, Unavailable
from app.core.record import Record, TopicPartition
from app.dispatch import partitions as partitions_module
from app.dispatch.consumer import Dispatcher
from app.dispatch.lanes import Lane, Lanes
from app.dispatch.offsets import OffsetTracker
from app.dispatch.retries import RetryPolicy
from app.dispatch.work import DispatchConfig
from tests.dispatching import START_MS, Stage, staged, until
from tests.examples import examples

SEEDS = range(examples(60))
ABLATION_SEEDS = range(40)
PARTITIONS = 3
CONFIG = DispatchConfig(
    concurrency=12,
    retry=RetryPolicy(max_attempts=3, first_delay_ms=300, longest_delay_ms=5_000),
    max_waiting=60,
    revoke_drain_ms=1_000,
    drain_ms=2_000,
)


class Troupe:
    """Dispatchers that come and go on one stage, as chance has it."""

    def __init__(self, stage: Stage, random: Random) -> None:
        self.stage = stage
        self.random = random
        self.members: list[tuple[asyncio.Task[None], asyncio.Event, int]] = []

    def join(self) -> None:
        stopping = asyncio.Event()
        running = asyncio.create_task(self.stage.dispatcher(CONFIG).run(stopping))
        self.members.append((running, stopping, len(self.stage.broker.consumers) - 1))

    async def leave(self, how: str) -> None:
        """stop: cleanly. cancel: at once. kill: as a dead process, which commits nothing more. expel: it is thought
        dead, and lives."""
        index = self.random.randrange(len(self.members))
        running, stopping, number = self.members[index]
        consumer = self.stage.broker.consumers[number]
        if how in ("kill", "expel") and consumer in self.stage.broker.groups[consumer.group].members:
            self.stage.broker.expel(consumer)
        if how == "expel":
            return
        del self.members[index]
        stopping.set()
        if how != "stop":
            running.cancel()
        await asyncio.wait([running])
        if not running.cancelled():
            running.result()

    async def act(self) -> None:
        """One thing that happens in a cluster."""
        random, broker = self.random, self.stage.broker
        if not self.members or (len(self.members) < 3 and random.random() < 0.3):
            self.join()
        elif random.random() < 0.5:
            await self.leave(random.choice(["stop", "cancel", "kill", "expel"]))
        else:
            call: Any = random.choice(["commit", "commit", "poll", "committed"])
            action: Any = random.choice(["fail", "drop", "delay"] if call == "commit" else ["fail", "delay"])
            fenced = call == "commit" and random.random() < 0.2
            error = Fenced("planned") if fenced else Unavailable("planned")
            broker.plan(Fault(call, action, error=error, seconds=random.random() * 3))


async def play(stage: Stage, seed: int) -> None:
    """Records arrive and members come and go for a while; then one member is left in peace until all is done."""
    random = Random(seed)

    async def handle(record: Record, attempt: int) -> None:
        await asyncio.sleep(random.choice([0, 0.01, 0.5, 2, 6]))
        if random.random() < 0.1:
            raise Unavailable("by chance")
        if record.offset % 29 == 7:
            raise BadRecord("planted")

    async def give_up(record: Record, attempts: int) -> None:
        if random.random() < 0.3:
            raise Unavailable("by chance")

    stage.work.handler = handle
    stage.work.give_up_handler = give_up
    troupe = Troupe(stage, random)
    for _ in range(random.randrange(10, 30)):
        for _ in range(random.randrange(40)):
            stage.send(
                random.choice(["-", *[f"u-{number}" for number in range(15)]]), partition=random.randrange(PARTITIONS)
            )
        await asyncio.sleep(random.random() * 4)
        await troupe.act()
    for running, _, _ in troupe.members:
        running.cancel()
    if troupe.members:
        await asyncio.wait([running for running, _, _ in troupe.members])
    ends = [len(log) for log in stage.broker.logs.values()]
    async with stage.running(CONFIG) as dispatcher:
        await until(lambda: ends == [stage.broker.position(partition) for partition in range(PARTITIONS)], 3_600)
        if dispatcher.statistics().lag:
            stage.history.violations.append("positions are at the end, records are not")
    if not stage.all_ended():
        stage.history.violations.append("a record was lost")
    if repeats := check_clean(stage):
        stage.history.violations.append(repeats)


def check_clean(stage: Stage) -> str | None:
    """What a last start finds to do, after a clean stop: nothing."""
    for place in stage.broker.logs:
        committed = stage.broker.committed(place.partition)
        if stage.broker.logs[place] and committed != CommittedOffset(len(stage.broker.logs[place])):
            return f"{place} was left at {committed}"
    return None


def violations_of(seed: int, scene: Callable[[Stage, int], Any] = play) -> list[str]:
    """The rules that one play broke."""

    async def main(clock: Clock) -> list[str]:
        stage = await staged(clock, PARTITIONS)
        await scene(stage, seed)
        return stage.history.violations

    return run_virtual(main, START_MS)


@pytest.mark.parametrize("seed", SEEDS)
def test_dispatch_any_history_loses_nothing(seed: int) -> None:
    """Nothing is committed unfinished, nothing is lost, no two of a key run at once in one dispatcher's epochs."""
    assert [] == [line for line in violations_of(seed) if "at once" not in line]


def alone(stage: Stage, seed: int) -> Any:
    """One member that is stopped, expelled and started again: one owner's view, where order per key must hold too."""

    async def perform() -> None:
        random = Random(seed)

        async def handle(record: Record, attempt: int) -> None:
            try:
                await asyncio.sleep(random.choice([0, 0.2, 3]))
                if random.random() < 0.2:
                    raise Unavailable("by chance")
            finally:
                await asyncio.sleep(random.choice([0, 0, 2]))  # takes its time, also when cancelled

        stage.work.handler = handle
        for partition in range(PARTITIONS):
            stage.send(*[f"u-{random.randrange(8)}" for _ in range(60)], partition=partition)
        while not stage.all_ended():
            async with stage.running(CONFIG):
                for _ in range(random.randrange(4)):
                    await asyncio.sleep(random.random() * 5)
                    member = stage.broker.consumers[-1]
                    if random.random() < 0.5 and not member.expelled:
                        stage.broker.expel(member)
                await asyncio.sleep(random.random() * 10)

    return perform()


@pytest.mark.parametrize("seed", range(examples(25)))
def test_dispatch_one_owner_keeps_order_per_key(seed: int) -> None:
    """However often a partition goes and comes back, one owner runs one record of a key at a time."""
    assert [] == violations_of(seed, alone)


class HighestSeen(OffsetTracker):
    def committable(self, *, names_all: bool = False) -> CommittedOffset:
        return CommittedOffset(self._next)


class FinishedAtBegin(OffsetTracker):
    """Counts a record as done when it is taken, as consumers with automatic commits do."""

    def receive(self, offset: int) -> bool:
        took = super().receive(offset)
        if took:
            super().finish(offset)
        return took

    def finish(self, offset: int) -> bool:
        return True

    def suspect(self, offset: int) -> None:
        """What is done is under no suspicion."""

    def crashes(self, offset: int) -> int:
        return 0


@pytest.mark.parametrize("broken", [HighestSeen, FinishedAtBegin])
def test_dispatch_broken_tracker_is_noticed(broken: type[OffsetTracker], monkeypatch: pytest.MonkeyPatch) -> None:
    """Ablation: a tracker that commits what is not done is caught by the plays."""
    monkeypatch.setattr(partitions_module, "OffsetTracker", broken)
    assert any("unfinished" in line for seed in ABLATION_SEEDS for line in violations_of(seed))


def test_dispatch_without_lanes_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ablation: with every record in a lane of its own, two of one key run at once."""
    add = Lanes.add

    def add_apart(self: Lanes[Any], owner: Hashable, key: bytes | None, item: Any) -> Lane[Any] | None:
        return add(self, owner, None, item)

    monkeypatch.setattr(Lanes, "add", add_apart)
    assert any("at once" in line for line in violations_of(0, alone))


def test_dispatch_without_waiting_for_ended_epochs_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ablation: a partition that comes back at once meets handlers of its last epoch, which are on their way out."""

    async def at_once(self: Dispatcher, place: TopicPartition) -> None:
        """Does not wait."""

    monkeypatch.setattr(Dispatcher, "_unwound", at_once)
    assert any("at once" in line for seed in ABLATION_SEEDS for line in violations_of(seed, alone))
