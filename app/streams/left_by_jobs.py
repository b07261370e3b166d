"""Where jobs on Flink have left their topics, and how the asyncio engine goes on there in their place.

While a job runs, workers judge its records, and commit how far; that may be further than the job has come, whose last checkpoint is
older. So the first owner that runs the streams itself begins at the lower one of both.
"""

from collections.abc import Collection, Mapping, Sequence

from app.broker.base import Broker, CommittedOffset, Reader
from app.core.record import TopicPartition
from app.streams.gate import LATEST_MS
from app.streams.kept_jobs import KeptJob, KeptJobs
from app.streams.pipelines import Source
from app.streams.restore import CommitMark, encode_mark, parse_mark
from app.streams.windows import NEVER_MS


async def left_by_jobs(broker: Broker, sources: Mapping[str, Source]) -> dict[TopicPartition, CommittedOffset]:
    """A commit for each partition of these topics that a job has left, as an owner would have made it that crashed there: nobody
    knows what of the records behind it the job has seen. Raises: Unavailable, Rejected, SetupError."""
    jobs = [job for job in await KeptJobs(broker).read() if not (job.over or job.is_silent)]
    read = {topic for job in jobs for topic in job.topics} & sources.keys()
    places = [TopicPartition(topic, at) for topic in sorted(read) for at in range(sources[topic].spec.partitions)]
    if not places:
        return {}
    reader = broker.reader()
    try:
        offsets = await reader.beginning_offsets(places) | await offsets_of(broker, read, jobs)
        reached = await largest_times(reader, offsets)
    finally:
        await reader.close()
    return {
        place: CommittedOffset(
            offsets[place], encode_mark(CommitMark(reached_ms if reached_ms >= 0 else NEVER_MS, {}, is_gate=True))
        )
        for place, reached_ms in reached.items()
    }


def go_on_at(committed: CommittedOffset | None, left: CommittedOffset | None) -> CommittedOffset | None:
    """Where a partition's owner begins. left: by a job, None where none was there."""
    mark = parse_mark(committed)
    if committed is None or left is None or mark is None or not mark.is_gate:
        return committed  # the asyncio engine was there after the job
    gates = CommittedOffset(committed.offset, encode_mark(CommitMark(mark.reached_ms, {}, is_gate=True)))
    return min(left, gates, key=lambda one: one.offset)


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
