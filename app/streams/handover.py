"""Where one engine goes on when the other one has ended: the asyncio engine after a job on Flink, and gates after the asyncio engine.

Each commits in groups of its own, so that none hides how far another one has come. Whoever begins behind somebody else says so in
all of his commits (`after`), and so does not begin there again.
"""

import logging
from collections.abc import Collection, Mapping, Sequence

from app.broker.base import Broker, CommittedOffset, Reader
from app.core.record import TopicPartition
from app.streams.compiled import load_topic
from app.streams.gate import LATEST_MS
from app.streams.kept_jobs import KeptJob, KeptJobs
from app.streams.pipelines import JoinPipeline, Pipeline, Source, streams_of
from app.streams.read_backs import SETTLED_MS
from app.streams.restore import CommitMark, encode_mark, parse_mark
from app.streams.windows import NEVER_MS

logger = logging.getLogger(__name__)

LONGEST_WAIT_MS = 3_600_000
"""A partition that was silent for longer holds back nobody else's records: they would all be read again."""

FIRST_SPAN_MS = 1_000


def gates_group(gates: str, topic: str) -> str:
    """The group in which one topic is judged. gates: what it begins with."""
    return f"{gates}.{topic}"


def begins_at(committed: CommittedOffset | None, handed: CommittedOffset | None) -> CommittedOffset | None:
    """Where a partition's owner begins: behind whoever was there last. committed: in his own group."""
    handed_mark = parse_mark(handed)
    if handed is None or handed_mark is None:
        return committed
    if committed is None:
        return handed
    mark = parse_mark(committed)
    is_set_by_hand = mark is None
    is_newer = committed.offset >= handed_mark.after or (mark is not None and mark.after >= handed_mark.after)
    return committed if is_set_by_hand or is_newer else handed


async def handed_to_gate(broker: Broker, source: Source, group: str) -> dict[TopicPartition, CommittedOffset]:
    """For the gate of a topic: what the asyncio engine has judged. group: of that engine. Raises: Unavailable, Rejected."""
    admin = broker.admin()
    try:
        found = await admin.group_offsets(group, [source.spec.name])
    finally:
        await admin.close()
    reached = {place: mark.reached_ms if (mark := parse_mark(one)) else NEVER_MS for place, one in found.items()}
    return {place: _handed(one.offset, reached[place], one.offset) for place, one in found.items()}


async def handed_to_engine(
    broker: Broker, sources: Mapping[str, Source], pipelines: Mapping[str, Pipeline], group: str, gates: str
) -> dict[TopicPartition, CommittedOffset]:
    """For the asyncio engine: where jobs on Flink have ended and it has not been since, or the gates beside them where that is the
    lower one; nothing behind it must go unsaid, or unjudged where there were gates. What the jobs have said of it nobody knows. group:
    of that engine. gates: what the groups of gates begin with.

    Raises: Unavailable, Rejected, SetupError.
    """
    noted = await KeptJobs(broker).read()
    read = {stream.source.spec.name for pipeline in pipelines.values() for stream in streams_of(pipeline)}
    if (
        not noted and sources.keys() <= read
    ):  # gates judge without a job what nobody reads; no group but its own need be asked for
        return {}
    jobs = [job for job in noted if not (job.over or job.is_silent)]
    streamed = {topic for job in jobs for topic in job.topics}
    admin, judged = broker.admin(), dict[TopicPartition, int]()
    try:
        own = await admin.group_offsets(group, list(sources))
        for topic in sources:
            for place, one in (await admin.group_offsets(gates_group(gates, topic), [topic])).items():
                judged[place] = max(one.offset, own[place].offset if place in own else 0)
    finally:
        await admin.close()
    places = [TopicPartition(one.spec.name, at) for one in sources.values() for at in range(one.spec.partitions)]
    reader = broker.reader()
    try:
        ended = await reader.beginning_offsets([place for place in places if place.topic in streamed])
        ended |= {p: o for p, o in (await offsets_of(broker, streamed, jobs)).items() if p in ended}
        ended |= {place: offset for place, offset in judged.items() if place.topic not in read}
        begun = {place: min(offset, judged.get(place, offset)) for place, offset in ended.items()}
        handed = {place: _handed(offset, NEVER_MS, ended[place]) for place, offset in begun.items()}
        begun = {place: begun[place] for place, one in handed.items() if begins_at(own.get(place), one) is one}
        if begun:
            lower = await _where_lone_records_wait(reader, sources, pipelines, ended)
            begun = {place: min(offset, lower.get(place, offset)) for place, offset in begun.items()}
            logger.info("streams go on where jobs on Flink have ended, in %d partitions", len(begun))
        clocks = await clocks_before(reader, sources, begun)
    finally:
        await reader.close()
    seen = {place: _seen([job for job in jobs if place.topic in job.topics], place) for place in begun}
    return {place: _handed(offset, clocks[place], ended[place], seen[place]) for place, offset in begun.items()}


def _handed(offset: int, reached_ms: int, after: int, seen: int | None = None) -> CommittedOffset:
    return CommittedOffset(offset, encode_mark(CommitMark(reached_ms, {}, after=after, seen=seen)))


def _seen(jobs: Sequence[KeptJob], place: TopicPartition) -> int | None:
    """The offset up to which jobs may have read, since their topic ended there when they were stopped; None where nobody knows."""
    if not all(job.stopped and place.topic in job.ends for job in jobs):
        return None
    return max((job.ends[place.topic][place.partition] for job in jobs), default=None)


async def _where_lone_records_wait(
    reader: Reader,
    sources: Mapping[str, Source],
    pipelines: Mapping[str, Pipeline],
    ended: Mapping[TopicPartition, int],
) -> dict[TopicPartition, int]:
    """Offsets before which no left record waits on Flink that may stay without a partner. There it waits for the quietest partition
    of both topics, and here for no more than `LONGEST_WAIT_MS` behind the others."""
    found: dict[TopicPartition, int] = {}
    for pipeline in pipelines.values():
        if not isinstance(pipeline, JoinPipeline) or pipeline.join.how == "inner":
            continue
        topics = {stream.source.spec.name for stream in streams_of(pipeline)}
        clocks = await clocks_before(reader, sources, {p: offset for p, offset in ended.items() if p.topic in topics})
        over = [reached_ms - sources[place.topic].out_of_orderness_ms for place, reached_ms in clocks.items()]
        if over:
            since_ms = max(min(over), max(over) - LONGEST_WAIT_MS, SETTLED_MS) - SETTLED_MS
            for place, offset in (await reader.offsets_for_times(dict.fromkeys(clocks, since_ms))).items():
                found[place] = min(offset, found.get(place, offset))
    return found


async def clocks_before(
    reader: Reader, sources: Mapping[str, Source], offsets: Mapping[TopicPartition, int]
) -> dict[TopicPartition, int]:
    """The event time that each partition had reached before an offset, in ms: that of valid records and heartbeats alone, so they
    are judged, from a time on behind which there is one. Raises: Unavailable."""
    found = {}
    topics = {topic: load_topic(sources[topic], {}) for topic in {place.topic for place in offsets}}
    for place, latest_ms in (await largest_times(reader, offsets)).items():
        topic, span_ms, since_ms = topics[place.topic], FIRST_SPAN_MS, latest_ms + 1
        state = topic.new_state(place)
        while state.reached_ms < since_ms and since_ms > 0:
            since_ms = max(latest_ms - span_ms, 0)
            start = (await reader.offsets_for_times({place: since_ms}))[place]
            async for records in reader.read(place, start, offsets[place]):
                topic.process(records, state, 0)
                state.rejected.clear()
            span_ms *= 4
        found[place] = state.reached_ms
    return found


async def offsets_of(broker: Broker, topics: Collection[str], jobs: Sequence[KeptJob]) -> dict[TopicPartition, int]:
    """Where the foremost of these jobs is in each partition of some topics, as of its last checkpoint; nothing where none has come
    to one yet. Raises: Unavailable, Rejected."""
    found: dict[TopicPartition, int] = {}
    admin = broker.admin()
    try:
        for job in jobs:
            for place, committed in (await admin.group_offsets(job.group, list(topics))).items():
                found[place] = max(committed.offset, found.get(place, 0))
            for topic, offsets in job.takeover.offsets.items() if job.takeover and not job.holds else ():
                for place, offset in ((TopicPartition(topic, at), offset) for at, offset in enumerate(offsets)):
                    if topic in topics:  # before that it says nothing, however far it has come
                        found[place] = max(offset, found.get(place, 0))
    finally:
        await admin.close()
    return found


async def largest_times(reader: Reader, bounds: Mapping[TopicPartition, int]) -> dict[TopicPartition, int]:
    """The largest record time before an offset of each partition, in ms; -1 where there is none. By halves: a time is reached
    before the offset when the first record of that time or a later one lies there. Raises: Unavailable."""
    low, high = dict.fromkeys(bounds, -1), dict.fromkeys(bounds, LATEST_MS + 1)
    while asked := {place: (low[place] + high[place]) // 2 for place in bounds if high[place] - low[place] > 1}:
        for place, offset in (await reader.offsets_for_times(asked)).items():
            side = low if offset < bounds[place] else high
            side[place] = asked[place]
    return low
