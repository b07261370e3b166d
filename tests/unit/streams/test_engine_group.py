"""Engines that share a group: partitions move, members are thought dead, and nothing changes in the outputs."""

import asyncio
from random import Random

import pytest

from app.broker.memory import Fault, MemoryBroker, MemoryConsumer
from app.core.clock import Clock, ManualClock, run_virtual
from app.core.errors import Fenced, Unavailable
from app.core.record import TopicPartition
from app.streams.engine import Engine
from app.streams.outputs import topics_of
from app.streams.pipelines import pipelines_in
from features import fraud
from features.scenario import scenario
from tests.reference import SourceRecord, read_all
from tests.streams_kit import check_outputs

START_MS = 1_800_000_000_000
GROUP = "test.streams"
PIPELINES = pipelines_in(fraud)


class Life:
    """Engines of one group over a memory broker."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.broker = MemoryBroker(ManualClock(START_MS + 10**9))
        self.stops: list[asyncio.Event] = []

    def start(self, tasks: asyncio.TaskGroup) -> asyncio.Event:
        stopping = asyncio.Event()
        engine = Engine(self.broker, [fraud.orders.source], PIPELINES, self.clock, GROUP)
        tasks.create_task(engine.run(stopping))
        self.stops.append(stopping)
        return stopping

    def members(self) -> list[MemoryConsumer]:
        return self.broker.groups[GROUP].members

    def check(self) -> None:
        logs = self.broker.logs
        source = [record for place, log in logs.items() if place.topic == "raw.orders" for record in log]
        records = [SourceRecord(r.partition, r.offset, r.timestamp_ms, r.key, r.value) for r in source]
        check_outputs(
            lambda topic: [record for place, log in logs.items() if place.topic == topic for record in log],
            read_all(records),
        )
        committed = self.broker.groups[GROUP].committed
        for place, log in logs.items():
            if place.topic == "raw.orders":
                assert len(log) == committed[place].offset


async def play(life: Life, events: int, disturb: list[str], seed: int) -> None:
    """Publishes the scenario and disturbs the group in between."""
    chance = Random(seed)
    producer = life.broker.producer()
    await life.broker.admin().create(topics_of([fraud.orders.source], PIPELINES))
    publications = list(scenario(events, seed, START_MS))
    async with asyncio.TaskGroup() as tasks:
        life.start(tasks)
        for index, publication in enumerate(publications):
            await producer.send("raw.orders", publication.value, publication.key, timestamp_ms=publication.timestamp_ms)
            if index % 20 == 0:
                await asyncio.sleep(chance.random() * 0.3)
            if disturb and index % (events // (len(disturb) + 1)) == events // (len(disturb) + 1) - 1:
                match disturb.pop(0):
                    case "join":
                        life.start(tasks)
                    case "leave":
                        life.stops.pop(0).set()
                    case "expel":
                        life.broker.expel(chance.choice(life.members()))
                    case "fence":
                        life.broker.plan(Fault("commit", "fail", Fenced("planned: the epoch has ended")))
        await asyncio.sleep(5)
        for stopping in life.stops:
            stopping.set()


@pytest.mark.parametrize(
    "disturb",
    [
        ["join", "leave", "join", "leave"],
        ["expel", "expel", "expel"],
        ["join", "expel", "leave", "join", "expel"],
        ["fence", "join", "fence", "leave", "fence"],
    ],
    ids=" ".join,
)
def test_engines_that_share_a_group_write_what_one_writes(disturb: list[str]) -> None:
    """Whoever owns a partition, and however often it is taken away, the outputs are those of a plain reading."""

    async def main(clock: Clock) -> None:
        life = Life(clock)
        await play(life, 1_200, list(disturb), seed=5)
        life.check()

    run_virtual(main, START_MS)


def test_engine_expelled_commits_nothing_for_what_it_lost() -> None:
    """A commit of an ended epoch is refused, and the engine goes on with what it has."""

    async def main(clock: Clock) -> None:
        life = Life(clock)
        await life.broker.admin().create(topics_of([fraud.orders.source], PIPELINES))
        async with asyncio.TaskGroup() as tasks:
            stopping = life.start(tasks)
            await asyncio.sleep(2)
            before = dict(life.broker.groups[GROUP].committed)
            life.broker.expel(life.members()[0])
            assert before == life.broker.groups[GROUP].committed
            await asyncio.sleep(2)
            assert TopicPartition("raw.orders", 0) in life.broker.groups[GROUP].owner, "it has joined again"
            stopping.set()

    run_virtual(main, START_MS)


def test_engine_outage_that_the_commit_and_the_next_step_meet_at_once_is_one() -> None:
    """The step finds the commit failed before its task group does: whoever runs the engine must see the outage, and begin
    it again, as after any other."""

    class MeetsBoth(Engine):
        async def _commit(self, commits: object) -> None:
            raise Unavailable("no broker answers")

        async def _step(self, tasks: asyncio.TaskGroup) -> None:
            await super()._step(tasks)
            while self._committing is not None and not self._committing.done():  # noqa: ASYNC110 - until that very iteration
                await asyncio.sleep(0)
            await self._write_tables([])

    async def main(clock: Clock) -> None:
        life = Life(clock)
        await life.broker.admin().create(topics_of([fraud.orders.source], PIPELINES))
        await MeetsBoth(life.broker, [fraud.orders.source], PIPELINES, clock, GROUP).run(asyncio.Event())

    with pytest.raises(Unavailable, match="no broker answers"):
        run_virtual(main, START_MS)
