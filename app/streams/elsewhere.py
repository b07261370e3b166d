"""What a worker does for streams that run on Flink: it judges the records, and says how far the features are.

Flink drops what the gate refuses, so somebody must put it into the dead letters: an engine without pipelines for each topic, in a
group of its own. And Flink cannot say up to when its tiles hold everything. It commits offsets when a checkpoint is complete, and
then every tile of what lies before them is acknowledged; so whoever owns a partition's gate follows these offsets, and writes the
view's progress. A view that no job computes as it is declared has none.
"""

import asyncio
import logging
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from typing import NamedTuple

import anyio

from app.broker.base import Broker, CommittedOffset
from app.core.clock import Clock
from app.core.errors import Unavailable, cause_of
from app.core.notices import Notices
from app.core.record import TopicPartition
from app.streams.as_of import AsOf
from app.streams.engine import Engine
from app.streams.handover import gates_group, handed_to_gate
from app.streams.kept_jobs import KeptJob, KeptJobs, computing
from app.streams.outputs import progress_record
from app.streams.pipelines import LivePipeline, Pipeline, Source, fingerprint, sources_of

logger = logging.getLogger(__name__)

PROGRESS_S = 1.0


class _Gate(NamedTuple):
    """Of one topic, while it runs."""

    engine: Engine
    stopping: asyncio.Event
    task: asyncio.Task[None]


class Elsewhere:
    """The streams' part of a worker whose pipelines run on Flink. gates: what the groups of the gates begin with. group: in which
    the asyncio engine commits where it runs these streams."""

    def __init__(
        self,
        broker: Broker,
        sources: Sequence[Source],
        pipelines: Mapping[str, Pipeline],
        clock: Clock,
        gates: str,
        group: str,
    ) -> None:
        self._broker = broker
        self._clock = clock
        self._sources = {source.spec.name: source for source in sources}
        self._gates_group = gates
        self._engine_group = group
        self._gates: dict[str, _Gate] = {}
        self._jobs = KeptJobs(broker)
        self._noted: list[KeptJob] | None = None
        """As of the last answer; None before the first."""
        self._streamed = set(sources_of(pipelines.values()))
        self._views = {name: one for name, one in pipelines.items() if isinstance(one, LivePipeline)}
        self._as_of = defaultdict[tuple[str, TopicPartition], AsOf](AsOf)
        self._told: dict[tuple[str, TopicPartition], int] = {}
        self._notices = Notices(logger, logging.WARNING)

    async def run(self, stopping: asyncio.Event) -> None:
        """As `Engine.run`. A topic is judged while a job stands that reads it, or where no pipeline does."""
        try:
            async with asyncio.TaskGroup() as tasks:
                telling = tasks.create_task(self._tell_progress())
                while not stopping.is_set():
                    await self._read_notes()
                    await self._judge(self._to_judge(), tasks)
                    with anyio.move_on_after(PROGRESS_S):
                        await stopping.wait()
                telling.cancel()
                await self._judge((), tasks)
        except BaseExceptionGroup as group:
            raise cause_of(group) from None

    async def _read_notes(self) -> None:
        """What is known already counts on where nobody answers."""
        try:
            self._noted = await self._jobs.read()
        except Unavailable as error:
            self._notices.tell("jobs", f"which jobs there are on Flink is not known: {error}")

    def _to_judge(self) -> set[str]:
        standing = {topic for job in self._noted or () if job.stands for topic in job.topics}
        missing = sorted(self._streamed - standing)
        if missing and self._noted is not None:
            self._notices.tell(
                "topics",
                f"{', '.join(missing)}: no job on Flink reads it, and nobody judges its records; submit it: "
                "python -m flink_jobs submit",
            )
        return {topic for topic in self._sources if topic in standing or topic not in self._streamed}

    async def _judge(self, topics: Collection[str], tasks: asyncio.TaskGroup) -> None:
        """Begins and ends gates, so that they are those of these topics."""
        ending = [self._gates.pop(topic) for topic in self._gates.keys() - set(topics)]
        for gate in ending:
            gate.stopping.set()
        for gate in ending:
            await gate.task
        for topic in topics - self._gates.keys():
            source, group, stopping = self._sources[topic], gates_group(self._gates_group, topic), asyncio.Event()
            handed = await handed_to_gate(self._broker, source, self._engine_group)
            engine = Engine(self._broker, [source], {}, self._clock, group, handed, said_by=self._engine_group)
            self._gates[topic] = _Gate(engine, stopping, tasks.create_task(engine.run(stopping)))

    async def _tell_progress(self) -> None:
        """Without an answer the progress stands still, and the features say their age."""
        producer, reader, admin = self._broker.producer(), self._broker.reader(), self._broker.admin()
        await producer.start()
        try:
            while True:
                await asyncio.sleep(PROGRESS_S)
                noted = self._noted or []
                computed = {name: computing(noted, name, fingerprint(view)) for name, view in self._views.items()}
                asked = {job.label: job for jobs in computed.values() for job in jobs}
                places = [place for gate in self._gates.values() for place in gate.engine.places]
                try:
                    asked_ms = self._clock.now_ms()
                    ends = await reader.end_offsets(places)
                    read = {
                        label: await admin.group_offsets(job.group, list(job.topics)) for label, job in asked.items()
                    }
                except Unavailable as error:
                    self._notices.tell("progress", f"the progress of features is not known: {error}")
                    continue
                for name, view in self._views.items():
                    jobs, topic = computed[name], view.stream.source.spec.name
                    done = _foremost([read[job.label] for job in jobs])
                    for place in [place for place in ends if place.topic == topic] if jobs else []:
                        self._as_of[name, place].learn_end(asked_ms, ends[place])
                        as_of_ms = self._as_of[name, place].at(done.get(place, 0))
                        if as_of_ms > max(self._told.get((name, place), 0), _whole_ms(jobs, view, place)):
                            self._told[name, place] = as_of_ms
                            partition, offset = place.partition, done.get(place, 0)
                            key, value, headers = progress_record(partition, as_of_ms, offset, fingerprint(view))
                            await producer.send(view.topic, value, key, partition=partition, headers=headers)
        finally:
            for close in (producer.close, reader.close, admin.close):
                await close()


def _foremost(read: Sequence[Mapping[TopicPartition, CommittedOffset]]) -> dict[TopicPartition, int]:
    """Where the foremost of some jobs is in each partition: tiles of one declaration are the same, whoever made them."""
    found: dict[TopicPartition, int] = {}
    for committed in read:
        for place, one in committed.items():
            found[place] = max(one.offset, found.get(place, 0))
    return found


def _whole_ms(jobs: Sequence[KeptJob], view: LivePipeline, place: TopicPartition) -> int:
    """From when on all tiles of a window are there: what a topic held no more could not be read back."""
    begun = [job.takeover.whole_ms[place.topic][place.partition] if job.takeover else 0 for job in jobs]
    return min(begun) + view.size_ms + view.tile_ms if min(begun) else 0
