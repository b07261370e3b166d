"""What a worker does for streams that run on Flink: it judges the records, and says how far the features are.

Flink drops what the gate refuses, so somebody must put it into the dead letters: an engine without pipelines. And Flink cannot
say up to when its tiles hold everything. It commits offsets when a checkpoint is complete, and then every tile of what lies before
them is acknowledged; so whoever owns a partition's gate follows these offsets, and writes the view's progress. A view that no
job computes as it is declared has none.
"""

import asyncio
import logging
from collections import defaultdict
from collections.abc import Mapping, Sequence

import anyio

from app.broker.base import Broker, CommittedOffset
from app.core.clock import Clock
from app.core.errors import Unavailable, cause_of
from app.core.notices import Notices
from app.core.record import TopicPartition
from app.streams.as_of import AsOf
from app.streams.engine import Engine
from app.streams.kept_jobs import KeptJob, KeptJobs, computing
from app.streams.pipelines import LivePipeline, Pipeline, Source, fingerprint, streams_of

logger = logging.getLogger(__name__)

PROGRESS_S = 1.0


class Elsewhere:
    """The streams' part of a worker whose pipelines run on Flink. group: of the gates."""

    def __init__(
        self, broker: Broker, sources: Sequence[Source], pipelines: Mapping[str, Pipeline], clock: Clock, group: str
    ) -> None:
        self._broker = broker
        self._clock = clock
        self._group = group
        self._sources = {source.spec.name: source for source in sources}
        self._gates: Engine | None = None
        self._jobs = KeptJobs(broker)
        self._streamed = {stream.source.spec.name for one in pipelines.values() for stream in streams_of(one)}
        self._views = {name: one for name, one in pipelines.items() if isinstance(one, LivePipeline)}
        self._as_of = defaultdict[tuple[str, TopicPartition], AsOf](AsOf)
        self._told: dict[tuple[str, TopicPartition], int] = {}
        self._notices = Notices(logger, logging.WARNING)

    async def run(self, stopping: asyncio.Event) -> None:
        """As `Engine.run`. The gate of a topic begins when a job is noted that reads it: before that what lies in the group is for
        that job to take over."""
        judged: frozenset[str] = frozenset()
        try:
            async with asyncio.TaskGroup() as tasks:
                telling = tasks.create_task(self._tell_progress())
                while not stopping.is_set():
                    others = asyncio.Event()
                    looking = tasks.create_task(self._until_others(judged, stopping, others))
                    if judged:
                        sources = [self._sources[topic] for topic in sorted(judged)]
                        self._gates = Engine(self._broker, sources, {}, self._clock, self._group)
                        await self._gates.run(others)
                    judged = await looking
                telling.cancel()
        except BaseExceptionGroup as group:
            raise cause_of(group) from None

    async def _until_others(
        self, judged: frozenset[str], stopping: asyncio.Event, others: asyncio.Event
    ) -> frozenset[str]:
        """Sets `others` when the topics to judge are not these any more, or it is to stop; returns them."""
        found = judged
        while found == judged and not stopping.is_set():
            noted = {topic for job in await self._noted() for topic in job.topics}
            found = judged | frozenset(
                topic for topic in self._sources if topic in noted or topic not in self._streamed
            )
            missing = sorted(self._streamed - found)
            if missing:
                self._notices.tell(
                    "jobs",
                    f"{', '.join(missing)}: no job on Flink reads it yet, and nobody judges its records; submit it: "
                    "python -m flink_jobs submit",
                )
            if found == judged:
                with anyio.move_on_after(PROGRESS_S):
                    await stopping.wait()
        others.set()
        return found

    async def _noted(self) -> list[KeptJob]:
        """All of them; none where nobody answers."""
        try:
            return await self._jobs.read()
        except Unavailable as error:
            self._notices.tell("progress", f"the progress of features is not known: {error}")
            return []

    async def _tell_progress(self) -> None:
        """Without an answer the progress stands still, and the features say their age."""
        producer, reader, admin = self._broker.producer(), self._broker.reader(), self._broker.admin()
        await producer.start()
        try:
            while True:
                await asyncio.sleep(PROGRESS_S)
                noted = await self._noted()
                computed = {name: computing(noted, name, fingerprint(view)) for name, view in self._views.items()}
                asked = {job.label: job for jobs in computed.values() for job in jobs}
                try:
                    asked_ms = self._clock.now_ms()
                    ends = await reader.end_offsets(self._gates.places if self._gates else [])
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
                            value = b'{"as_of":%d,"offset":%d}' % (as_of_ms, done.get(place, 0))
                            key, made_by = b'{"progress":%d}' % place.partition, fingerprint(view).encode()
                            headers = (("fingerprint", made_by),)
                            await producer.send(view.topic, value, key, partition=place.partition, headers=headers)
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
