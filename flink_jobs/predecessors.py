"""Where those who computed a job's topics before have come to: the asyncio engine by its commits, a job on Flink by its own."""

from collections.abc import Collection, Mapping, Sequence
from itertools import zip_longest
from typing import NamedTuple

from app.application import STREAMS_GROUP
from app.broker.base import Broker, CommittedOffset
from app.core.record import TopicPartition
from app.streams.handover import largest_times, offsets_of
from app.streams.kept_jobs import KeptJob
from app.streams.pipelines import FinalPipeline, Pipeline, Source, fingerprint, streams_of
from app.streams.read_backs import SETTLED_MS, read_back_ms, remembered_ms
from app.streams.restore import CommitMark, parse_mark
from app.streams.takeover import ByPartition, Takeover, goes_by_all_partitions

UNKNOWN = CommitMark(-1, {})
"""Of a commit that no streams have made."""


class Ended(NamedTuple):
    """Where one partition was left. reached_ms: the largest event time before the offset, -1 for none. seen_ms: the largest that
    may have been read. by_asyncio: closed its windows by its own time; on Flink the quietest partition of the topic counts."""

    offset: int
    reached_ms: int
    seen_ms: int
    by_asyncio: bool


class Predecessors:
    """Of the jobs of one application."""

    def __init__(self, broker: Broker) -> None:
        self._broker = broker

    async def asyncio_runs(self) -> bool:
        """Whether any worker runs streams itself. Raises: Unavailable, Rejected."""
        admin = self._broker.admin()
        try:
            return await admin.has_members(STREAMS_GROUP)
        finally:
            await admin.close()

    async def asyncio_was_last(self, topics: Collection[str], jobs: Sequence[KeptJob]) -> bool:
        """Whether the asyncio engine has gone on behind where these jobs have ended, in any partition. Raises: Unavailable, Rejected."""
        return bool(await self._by_asyncio(topics, await offsets_of(self._broker, topics, jobs)))

    async def position(self, pipelines: Mapping[str, Pipeline], job: KeptJob) -> ByPartition:
        """Where a job is in the topics of these pipelines, as of its last checkpoint. Raises: Unavailable, Rejected."""
        sources, reader = _sources(pipelines), self._broker.reader()
        try:
            begun = await reader.beginning_offsets(_places(sources))
        finally:
            await reader.close()
        return _by_topic(
            sources, begun | await offsets_of(self._broker, [source.spec.name for source in sources], [job])
        )

    async def ends(self, topics: Collection[str]) -> ByPartition:
        """Where topics end now; nothing of those that are gone. Raises: Unavailable, Rejected."""
        admin, reader = self._broker.admin(), self._broker.reader()
        try:
            found = await admin.describe(sorted(topics))
            partitions = {topic: one.partitions for topic, one in found.items() if one is not None}
            places = [TopicPartition(topic, at) for topic, number in partitions.items() for at in range(number)]
            ends = await reader.end_offsets(places)
        finally:
            await admin.close()
            await reader.close()
        return {topic: [ends[TopicPartition(topic, at)] for at in range(n)] for topic, n in partitions.items()}

    async def takeover(
        self, pipelines: Mapping[str, Pipeline], jobs: Sequence[KeptJob], *, holds: bool
    ) -> Takeover | None:
        """What is to be taken over from these jobs, or from the asyncio engine; None where nobody was there. holds: they still run.

        Raises: Unavailable, Rejected.
        """
        sources = _sources(pipelines)
        ended, marks = await self._ended(sources, jobs)
        if not jobs and not marks:
            return None
        known = [job.pipelines for job in jobs]
        known += [{name: table.fingerprint for name, table in mark.tables.items()} for mark in marks.values()]
        changed = [name for name, one in pipelines.items() if not any(of.get(name) == fingerprint(one) for of in known)]
        needed_ms = max(read_back_ms(one, name in changed) for name, one in pipelines.items())
        by_all = any(goes_by_all_partitions(one, name in changed) for name, one in pipelines.items())
        read_before = {topic for job in jobs for topic in job.topics}
        times_ms = [one.reached_ms for at, one in ended.items() if one.by_asyncio or at.topic in read_before]
        quietest_ms = min(times_ms, default=-1)
        whole = {
            place: max((quietest_ms if by_all and not one.by_asyncio else one.reached_ms) - needed_ms, 0)
            for place, one in ended.items()
        }
        reader = self._broker.reader()
        try:
            from_ms = {place: max(at_ms - remembered_ms(pipelines.values()), 0) for place, at_ms in whole.items()}
            found = await reader.offsets_for_times(from_ms)
            kept = await reader.beginning_offsets(from_ms)
            gone = {place: kept[place] + 1 for place in ended if found[place] == kept[place] > 0}
            for place, first_ms in (await largest_times(reader, gone)).items():  # what lay before it is not to be had
                later_ms = first_ms + remembered_ms(pipelines.values()) + _late_ms(sources, place)
                whole[place] = min(max(whole[place], later_ms), ended[place].reached_ms + 1)
        finally:
            await reader.close()
        return Takeover(
            read=_by_topic(sources, {place: min(found[place], one.offset) for place, one in ended.items()}),
            whole_ms=_by_topic(sources, whole),
            offsets=await self.ends({source.spec.name for source in sources}) if holds else _offsets(sources, ended),
            reached_ms=_seen(sources, ended),
            closed_ms=_by_topic(sources, {place: _closed_ms(sources, ended, place) for place in ended}),
            changed=changed,
            begun_ms={
                name: begun_ms
                for name, one in pipelines.items()
                if isinstance(one, FinalPipeline) and name not in changed
                if max(begun_ms := _begun_ms(name, one, jobs, marks)) >= 0
            },
            holds=holds,
        )

    async def left(self, pipelines: Mapping[str, Pipeline], jobs: Sequence[KeptJob]) -> tuple[ByPartition, ByPartition]:
        """The offsets at which they have ended, and the largest event time before each. Raises: Unavailable, Rejected."""
        sources = _sources(pipelines)
        ended, _ = await self._ended(sources, jobs)
        return _offsets(sources, ended), _seen(sources, ended)

    async def _ended(
        self, sources: Sequence[Source], jobs: Sequence[KeptJob]
    ) -> tuple[dict[TopicPartition, Ended], dict[TopicPartition, CommitMark]]:
        topics = [source.spec.name for source in sources]
        flink = await offsets_of(self._broker, topics, jobs)
        asyncio = await self._by_asyncio(topics, flink if jobs else None)
        marks = {place: parse_mark(committed) or UNKNOWN for place, committed in asyncio.items()}
        reader = self._broker.reader()
        try:
            places = _places(sources)
            offsets = await reader.beginning_offsets(places) | flink
            ends = await reader.end_offsets(places)
            # what anybody did behind his last commit nobody knows, unless he said that it is the last one: no window of
            # which he may have seen anything is begun again
            bounds = {place: ends[place] for place, mark in marks.items() if not mark.is_last}
            for place, job in ((place, job) for place in places for job in jobs if place.topic in job.topics):
                stopped_at = job.ends[place.topic][place.partition] if job.stopped else ends[place]
                bounds[place] = max(stopped_at, bounds.get(place, 0))
            reached = await largest_times(reader, offsets)
            reached |= {place: max(mark.reached_ms, -1) for place, mark in marks.items()}
            seen = await largest_times(reader, bounds)
        finally:
            await reader.close()
        ended = {
            place: Ended(
                asyncio[place].offset if place in asyncio else offsets[place],
                reached[place],
                max(reached[place], seen.get(place, -1)),
                by_asyncio=place in asyncio,
            )
            for place in places
        }
        return ended, marks

    async def _by_asyncio(
        self, topics: Collection[str], flink: Mapping[TopicPartition, int] | None
    ) -> dict[TopicPartition, CommittedOffset]:
        """Its commits where it was the last one. flink: None where no job was there."""
        admin = self._broker.admin()
        try:
            found = await admin.group_offsets(STREAMS_GROUP, list(topics))
        finally:
            await admin.close()
        if flink is None:
            return found
        return {place: committed for place, committed in found.items() if committed.offset > flink.get(place, 0)}


def _sources(pipelines: Mapping[str, Pipeline]) -> list[Source]:
    found = {stream.source.spec.name: stream.source for one in pipelines.values() for stream in streams_of(one)}
    return list(found.values())


def _places(sources: Sequence[Source]) -> list[TopicPartition]:
    return [TopicPartition(source.spec.name, at) for source in sources for at in range(source.spec.partitions)]


def _by_topic(sources: Sequence[Source], values: Mapping[TopicPartition, int]) -> ByPartition:
    return {
        source.spec.name: [values[TopicPartition(source.spec.name, at)] for at in range(source.spec.partitions)]
        for source in sources
    }


def _offsets(sources: Sequence[Source], ended: Mapping[TopicPartition, Ended]) -> ByPartition:
    return _by_topic(sources, {place: one.offset for place, one in ended.items()})


def _seen(sources: Sequence[Source], ended: Mapping[TopicPartition, Ended]) -> ByPartition:
    return _by_topic(sources, {place: one.seen_ms for place, one in ended.items()})


def _closed_ms(sources: Sequence[Source], ended: Mapping[TopicPartition, Ended], place: TopicPartition) -> int:
    """Windows that end then or earlier have certainly had their row."""
    late_ms = _late_ms(sources, place)
    if ended[place].by_asyncio:
        return max(ended[place].reached_ms - late_ms, -1)
    quietest_ms = min(one.reached_ms for other, one in ended.items() if other.topic == place.topic)
    return max(quietest_ms - late_ms - SETTLED_MS, -1)


def _begun_ms(
    name: str, pipeline: FinalPipeline, jobs: Sequence[KeptJob], marks: Mapping[TopicPartition, CommitMark]
) -> list[int]:
    """Where the predecessors began with windows of a declaration, by partition; -1 where they did not begin behind another one."""
    source, of = pipeline.stream.source.spec, fingerprint(pipeline)
    found = [-1] * source.partitions
    for takeover in [job.takeover for job in jobs if job.takeover and job.pipelines.get(name) == of]:
        begun = takeover.reached_ms[source.name] if name in takeover.changed else takeover.begun_ms.get(name, [])
        found = [max(two) for two in zip_longest(found, begun, fillvalue=-1)]
    for place, mark in marks.items():
        if place.topic == source.name and name in mark.tables and mark.tables[name].fingerprint == of:
            found[place.partition] = max(found[place.partition], mark.tables[name].since_ms - 1)
    return found


def _late_ms(sources: Sequence[Source], place: TopicPartition) -> int:
    return next(source.out_of_orderness_ms for source in sources if source.spec.name == place.topic)
