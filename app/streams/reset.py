"""The way out where state is damaged or gone: a pipeline forgets it and joins anew.

The group's commits lose what they say of the pipeline; everything else stays. At the next start it joins as a new one does, see
`filling`. Its topic is made anew: a group whose commits are gone, or a store that is filled again, reads it from its beginning.
"""

import asyncio
from collections.abc import Sequence

import msgspec

from app.broker.base import Assignment, Broker, CommittedOffset, Consumer
from app.broker.topics import TopicSpec
from app.core.errors import SetupError
from app.core.record import TopicPartition
from app.streams.compiled import CompiledTopic
from app.streams.restore import CommitMark, encode_mark, parse_mark

JOIN_LIMIT_S = 20.0


class _Member:
    """A member of the streams group that reads nothing."""

    def __init__(self) -> None:
        self.held: dict[TopicPartition, Assignment] = {}
        self.consumer: Consumer | None = None

    async def on_assigned(self, assignments: Sequence[Assignment]) -> None:
        assert self.consumer is not None
        self.consumer.pause([assignment.place for assignment in assignments])
        self.held.update((assignment.place, assignment) for assignment in assignments)

    async def on_revoked(self, assignments: Sequence[Assignment]) -> None:
        for assignment in assignments:
            self.held.pop(assignment.place, None)

    async def on_lost(self, assignments: Sequence[Assignment]) -> None:
        await self.on_revoked(assignments)


async def reset(broker: Broker, group: str, read: Sequence[CompiledTopic], name: str, topics: Sequence[str]) -> int:
    """Resets one pipeline; returns how many partitions it had state in.

    read: the topics that it reads. topics: all source topics of the group, so that the partitions are spread as workers would have them. Where a commit
    cannot be read, all pipelines of its partition join anew, from the event time that it names.
    Raises: SetupError while a worker still runs these streams, and for a commit that names no event time; Unavailable.
    """
    member = _Member()
    member.consumer = consumer = broker.consumer(group, topics, member)
    specs = [topic.source.spec for topic in read]
    places = [TopicPartition(spec.name, partition) for spec in specs for partition in range(spec.partitions)]
    await consumer.start()
    try:
        try:
            async with asyncio.timeout(JOIN_LIMIT_S):
                while not all(place in member.held for place in places):
                    await consumer.poll(timeout_ms=100)
        except TimeoutError:
            raise SetupError("streams reset", "a worker still runs these streams; stop all of them first") from None
        changed: dict[Assignment, CommittedOffset] = {}
        for place, committed in (await consumer.committed(places)).items():
            if committed is None or not committed.metadata:
                continue
            metadata = _without(name, committed)
            if metadata != committed.metadata:
                changed[member.held[place]] = CommittedOffset(committed.offset, metadata)
        if changed:
            await consumer.commit(changed)
        return len(changed)
    finally:
        await consumer.close()


class _Reached(msgspec.Struct):
    """What every version of a commit says."""

    m: int


def _without(name: str, committed: CommittedOffset) -> str:
    """The commit's metadata without a pipeline, or without all where it is of another version."""
    try:
        mark = parse_mark(committed)
    except SetupError:
        try:
            mark = CommitMark(msgspec.json.decode(committed.metadata, type=_Reached).m, {})
        except msgspec.DecodeError:
            raise SetupError(
                "streams reset",
                f"the group's commit at {committed.offset} is not of streams: {committed.metadata[:80]!r}; delete the group "
                "with a tool of Kafka's, and the streams begin at the earliest record",
            ) from None
    assert mark is not None
    tables = {other: table for other, table in mark.tables.items() if other != name}
    return encode_mark(msgspec.structs.replace(mark, tables=tables))


async def empty(broker: Broker, spec: TopicSpec) -> None:
    """Makes a topic anew: what another declaration wrote there would be read as this one's whenever a store is filled.

    Interrupted, it may leave no topic; doing it again makes it. Raises: Unavailable, Rejected.
    """
    admin = broker.admin()
    try:
        await admin.delete([spec.name])
        await admin.create([spec])
    finally:
        await admin.close()
