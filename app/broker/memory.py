"""A broker in this process, for tests, the demo and one-machine trials. It keeps the contract of `base`, not just a dict.

Groups follow Kafka's incremental protocol: a partition is free only when its old owner has let it go, members learn of
changes in their next `poll`, a member that is expelled learns it too late, and commits of an ended epoch are refused.
`broker.plan(Fault(...))` makes one coming call fail, wait or lose its answer.
"""

import asyncio
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from app.broker.base import (
    MAX_METADATA_CHARACTERS,
    Assignment,
    CommittedOffset,
    Confirmation,
    DeliveryFailure,
    ProducerStatistics,
    RebalanceListener,
    TopicDescription,
)
from app.broker.planned import Fault, PlannedFaults, lose_answer, meet
from app.broker.sizes import batch_bytes
from app.broker.topics import TopicSpec, partition_of, too_early
from app.core.clock import Clock
from app.core.errors import Fenced, RecordError, RecordTooLarge, Rejected
from app.core.record import Headers, Record, TopicPartition

__all__ = ["Fault", "MemoryAdmin", "MemoryBroker", "MemoryConsumer", "MemoryProducer", "MemoryReader"]


@dataclass
class _Group:
    """Who should own each partition, who does, and what is committed."""

    members: "list[MemoryConsumer]" = field(default_factory=list)
    target: "dict[TopicPartition, MemoryConsumer]" = field(default_factory=dict)
    owner: "dict[TopicPartition, MemoryConsumer]" = field(default_factory=dict)
    committed: dict[TopicPartition, CommittedOffset] = field(default_factory=dict)


class MemoryBroker:
    """One cluster of one broker, as long as the object lives."""

    def __init__(self, clock: Clock) -> None:
        self.address = "memory://"
        self.clock = clock
        self.specs: dict[str, TopicSpec] = {}
        self.configs: dict[str, dict[str, str]] = {}
        self.logs: dict[TopicPartition, list[Record]] = {}
        self.groups: dict[str, _Group] = {}
        self.followers: set[asyncio.Event] = set()
        """Of readers that wait for the next record, whatever its topic."""
        self.faults = PlannedFaults()

    def consumer(self, group: str, topics: Sequence[str], listener: RebalanceListener) -> "MemoryConsumer":
        return MemoryConsumer(self, group, topics, listener)

    def producer(self) -> "MemoryProducer":
        return MemoryProducer(self)

    def reader(self) -> "MemoryReader":
        return MemoryReader(self)

    def admin(self) -> "MemoryAdmin":
        return MemoryAdmin(self)

    async def close(self) -> None:
        """Nothing to end; records stay readable."""

    def plan(self, fault: Fault) -> None:
        """The next call of that kind meets this fault; several of a kind are met in the order planned."""
        self.faults.plan(fault)

    def log(self, place: TopicPartition) -> list[Record]:
        """Raises: Rejected for an unknown topic or partition."""
        if place not in self.logs:
            raise Rejected(f"{place}: unknown topic or partition; create it with: python -m app topics create")
        return self.logs[place]

    def append(
        self, topic: str, value: bytes | None, key: bytes | None, partition: int, timestamp_ms: int, headers: Headers
    ) -> Confirmation:
        spec = self.specs.get(topic)
        if spec is None:
            raise Rejected(f"{topic}: unknown topic; create it with: python -m app topics create")
        now_ms = self.clock.now_ms()
        size = batch_bytes(value, key, headers)
        if size > spec.max_message_bytes:
            raise RecordTooLarge(f"record of {size} bytes, the topic takes {spec.max_message_bytes}", topic=topic)
        stamped = spec.time == "written" or not timestamp_ms
        if not stamped and spec.max_ahead_ms is not None and timestamp_ms > now_ms + spec.max_ahead_ms:
            raise too_early(topic, timestamp_ms - now_ms, spec.max_ahead_ms)
        if partition < 0:
            partition = partition_of(key, spec.partitions) if key is not None else now_ms % spec.partitions
        log = self.log(TopicPartition(topic, partition))
        log.append(Record(topic, partition, len(log), now_ms if stamped else timestamp_ms, key, value, headers))
        for group in self.groups.values():
            owner = group.owner.get(TopicPartition(topic, partition))
            if owner is not None:
                owner.wake()
        for follower in self.followers:
            follower.set()
        return Confirmation(partition, len(log) - 1)

    def rebalance(self, group: _Group) -> None:
        """Range assignment: partition i of every topic goes to the same member. Members learn it when they poll."""
        group.target.clear()
        topics = {topic for member in group.members for topic in member.topics}
        for topic in topics:
            subscribed = [member for member in group.members if topic in member.topics]
            partitions = self.specs[topic].partitions
            share, extra = divmod(partitions, len(subscribed))
            start = 0
            for index, member in enumerate(subscribed):
                stop = start + share + (index < extra)
                for partition in range(start, stop):
                    group.target[TopicPartition(topic, partition)] = member
                start = stop
        for member in group.members:
            member.wake()

    def expel(self, consumer: "MemoryConsumer") -> None:
        """As after a missed session: its partitions are free at once; it learns so in its next poll and rejoins."""
        group = self.groups[consumer.group]
        group.members.remove(consumer)
        for place in [place for place, owner in group.owner.items() if owner is consumer]:
            del group.owner[place]
        consumer.expelled = True
        consumer.wake()
        self.rebalance(group)


class MemoryConsumer:
    """A member of a group on a `MemoryBroker`."""

    def __init__(self, broker: MemoryBroker, group: str, topics: Sequence[str], listener: RebalanceListener) -> None:
        self.group = group
        self.topics = tuple(topics)
        self.expelled = False
        self._broker = broker
        self._listener = listener
        self._epoch = 0
        self._assigned: dict[TopicPartition, Assignment] = {}
        self._positions: dict[TopicPartition, int] = {}
        self._paused: set[TopicPartition] = set()
        self._wakened = asyncio.Event()
        self._started = False

    def wake(self) -> None:
        self._wakened.set()

    async def start(self) -> None:
        for topic in self.topics:
            if topic not in self._broker.specs:
                raise Rejected(f"{topic}: unknown topic; create it with: python -m app topics create")
        self._started = True
        self._join()

    def _join(self) -> None:
        group = self._broker.groups.setdefault(self.group, _Group())
        group.members.append(self)
        self._broker.rebalance(group)

    async def poll(self, max_records: int = 500, timeout_ms: int = 100) -> list[Record]:
        lose_answer(await self._meet_fault("poll"))
        deadline = asyncio.get_running_loop().time() + timeout_ms / 1000
        while True:
            self._wakened.clear()
            await self._reconcile()
            records = self._take(max_records)
            remaining = deadline - asyncio.get_running_loop().time()
            if records or remaining <= 0:
                return records
            try:
                async with asyncio.timeout(remaining):
                    await self._wakened.wait()
            except TimeoutError:
                return []

    def _take(self, max_records: int) -> list[Record]:
        records: list[Record] = []
        for place in self._assigned:
            if place in self._paused or len(records) >= max_records:
                continue
            position = self._positions[place]
            fetched = self._broker.logs[place][position : position + max_records - len(records)]
            self._positions[place] = position + len(fetched)
            records += fetched
        if records:  # the next poll begins with another partition, so that none starves
            first = next(iter(self._assigned))
            self._assigned[first] = self._assigned.pop(first)
        return records

    async def _reconcile(self) -> None:
        group = self._broker.groups[self.group]
        if self.expelled:
            lost = list(self._assigned.values())
            self._forget(lost)
            self.expelled = False
            self._join()
            if lost:
                await self._listener.on_lost(lost)
        leaving = [held for place, held in self._assigned.items() if group.target.get(place) is not self]
        if leaving:
            await self._listener.on_revoked(leaving)
            self._release(leaving)
        coming = [place for place, member in group.target.items() if member is self and place not in group.owner]
        if coming:
            assignments = []
            for place in sorted(coming):
                self._epoch += 1
                group.owner[place] = self
                assignments.append(Assignment(*place, self._epoch))
                self._assigned[place] = assignments[-1]
                committed = group.committed.get(place)
                self._positions[place] = committed.offset if committed else 0
            await self._listener.on_assigned(assignments)

    def _forget(self, assignments: Iterable[Assignment]) -> None:
        for assignment in assignments:
            self._assigned.pop(assignment.place, None)
            self._positions.pop(assignment.place, None)
            self._paused.discard(assignment.place)

    def _release(self, assignments: Iterable[Assignment]) -> None:
        group = self._broker.groups[self.group]
        for assignment in assignments:
            if group.owner.get(assignment.place) is self:
                del group.owner[assignment.place]
        self._forget(assignments)
        for member in group.members:
            member.wake()

    def assignments(self) -> frozenset[Assignment]:
        return frozenset(self._assigned.values())

    def pause(self, places: Iterable[TopicPartition]) -> None:
        self._paused.update(place for place in places if place in self._assigned)

    def resume(self, places: Iterable[TopicPartition]) -> None:
        self._paused.difference_update(places)
        self.wake()

    async def seek(self, place: TopicPartition, offset: int) -> None:
        if place not in self._assigned:
            raise Fenced(f"{place}: not assigned to this consumer")
        self._positions[place] = offset
        self.wake()

    async def commit(self, offsets: Mapping[Assignment, CommittedOffset]) -> None:
        self._refuse_ended(offsets)
        fault = await self._meet_fault("commit")
        self._refuse_ended(offsets)  # again: the epoch may have ended during a delay
        group = self._broker.groups[self.group]
        for assignment, committed in offsets.items():
            if len(committed.metadata) > MAX_METADATA_CHARACTERS:
                raise Rejected(f"{assignment.place}: commit metadata of {len(committed.metadata)} characters")
            group.committed[assignment.place] = committed
        lose_answer(fault)

    def _refuse_ended(self, offsets: Mapping[Assignment, CommittedOffset]) -> None:
        for assignment in offsets:
            if self.expelled or self._assigned.get(assignment.place) != assignment:
                raise Fenced(f"{assignment.place}: epoch {assignment.epoch} has ended")

    async def committed(self, places: Iterable[TopicPartition]) -> dict[TopicPartition, CommittedOffset | None]:
        lose_answer(await self._meet_fault("committed"))
        group = self._broker.groups[self.group]
        return {place: group.committed.get(place) for place in places}

    def known_end_offset(self, place: TopicPartition) -> int:
        return len(self._broker.logs[place]) if place in self._assigned else -1

    async def close(self) -> None:
        if not self._started:
            return
        self._started = False
        group = self._broker.groups[self.group]
        try:
            if self._assigned and not self.expelled:
                await self._listener.on_revoked(list(self._assigned.values()))
        finally:
            if self in group.members:
                group.members.remove(self)
            self._release(list(self._assigned.values()))
            self._broker.rebalance(group)

    async def _meet_fault(self, call: str) -> Fault | None:
        return await meet(self._broker.faults.take(call))


class MemoryProducer:
    """Writes to a `MemoryBroker`; every record is acknowledged at once."""

    def __init__(self, broker: MemoryBroker) -> None:
        self._broker = broker
        self._sent = 0
        self._acknowledged = 0
        self._failures: list[DeliveryFailure] = []

    async def start(self) -> None:
        """Nothing to connect."""

    def try_send(
        self,
        topic: str,
        value: bytes | None,
        key: bytes | None = None,
        *,
        partition: int = -1,
        timestamp_ms: int = 0,
        headers: Headers = (),
    ) -> bool:
        fault = self._broker.faults.take("try_send")
        if fault is not None and fault.action == "full":
            return False
        if fault is not None and fault.action == "fail":
            raise fault.error
        self._append(topic, value, key, partition, timestamp_ms, headers)
        lose_answer(fault)
        return True

    def _append(
        self, topic: str, value: bytes | None, key: bytes | None, partition: int, timestamp_ms: int, headers: Headers
    ) -> Confirmation:
        confirmation = self._broker.append(topic, value, key, partition, timestamp_ms, headers)
        self._sent += 1
        self._acknowledged += 1
        return confirmation

    async def send(
        self,
        topic: str,
        value: bytes | None,
        key: bytes | None = None,
        *,
        partition: int = -1,
        timestamp_ms: int = 0,
        headers: Headers = (),
    ) -> None:
        fault = await meet(self._broker.faults.take("send"))
        self._append(topic, value, key, partition, timestamp_ms, headers)
        lose_answer(fault)

    async def send_many(
        self, topic: str, records: Iterable[tuple[bytes | None, bytes | None, int]], partition: int = -1
    ) -> int:
        fault = await meet(self._broker.faults.take("send_many"))
        queued = 0
        for count, (value, key, timestamp_ms) in enumerate(records):
            if count % 500 == 499:
                await asyncio.sleep(0)
            try:
                self._append(topic, value, key, partition, timestamp_ms, ())
                queued += 1
            except RecordError as error:
                self._failures.append(DeliveryFailure(error, key, value))
        lose_answer(fault)
        return queued

    async def confirm(
        self,
        topic: str,
        value: bytes | None,
        key: bytes | None = None,
        *,
        partition: int = -1,
        timestamp_ms: int = 0,
        headers: Headers = (),
    ) -> Confirmation:
        fault = await meet(self._broker.faults.take("confirm"))
        confirmation = self._append(topic, value, key, partition, timestamp_ms, headers)
        lose_answer(fault)
        return confirmation._replace(offset=-1) if fault is not None and fault.action == "hide" else confirmation

    async def flush(self) -> list[DeliveryFailure]:
        lose_answer(await meet(self._broker.faults.take("flush")))
        failures, self._failures = self._failures, []
        return failures

    def statistics(self) -> ProducerStatistics:
        return ProducerStatistics(self._sent, self._acknowledged, len(self._failures), 0)

    async def close(self) -> None:
        await self.flush()


class MemoryReader:
    """Reads a `MemoryBroker` outside any group."""

    def __init__(self, broker: MemoryBroker) -> None:
        self._broker = broker
        self._closed = False

    async def beginning_offsets(self, places: Iterable[TopicPartition]) -> dict[TopicPartition, int]:
        return {place: 0 for place in places if self._broker.log(place) is not None}

    async def end_offsets(self, places: Iterable[TopicPartition]) -> dict[TopicPartition, int]:
        return {place: len(self._broker.log(place)) for place in places}

    async def offsets_for_times(self, times_ms: Mapping[TopicPartition, int]) -> dict[TopicPartition, int]:
        offsets = {}
        for place, time_ms in times_ms.items():
            log = self._broker.log(place)
            offsets[place] = next((record.offset for record in log if record.timestamp_ms >= time_ms), len(log))
        return offsets

    async def read(self, place: TopicPartition, start: int, stop: int) -> AsyncIterator[list[Record]]:
        log = self._broker.log(place)
        for batch_start in range(max(start, 0), min(stop, len(log)), 500):
            yield log[batch_start : min(batch_start + 500, stop)]

    async def follow(self, place: TopicPartition, start: int) -> AsyncIterator[list[Record]]:
        position = max(start, 0)
        written = asyncio.Event()
        self._broker.followers.add(written)
        try:
            while not self._closed:
                written.clear()
                batch = self._broker.log(place)[position : position + 500]
                position += len(batch)
                if batch:
                    yield batch
                else:
                    await written.wait()
        finally:
            self._broker.followers.discard(written)

    async def close(self) -> None:
        self._closed = True
        for follower in self._broker.followers:
            follower.set()


class MemoryAdmin:
    """Topics of a `MemoryBroker`."""

    def __init__(self, broker: MemoryBroker) -> None:
        self._broker = broker

    async def brokers(self) -> int:
        return 1

    async def create(self, specs: Sequence[TopicSpec]) -> dict[str, bool]:
        created = {}
        for spec in specs:
            created[spec.name] = spec.name not in self._broker.specs
            if created[spec.name]:
                self._broker.specs[spec.name] = spec
                for partition in range(spec.partitions):
                    self._broker.logs[TopicPartition(spec.name, partition)] = []
        return created

    async def describe(self, names: Sequence[str]) -> dict[str, TopicDescription | None]:
        found: dict[str, TopicDescription | None] = {}
        for name in names:
            spec = self._broker.specs.get(name)
            changed = self._broker.configs.get(name, {})
            found[name] = TopicDescription(name, spec.partitions, 1, spec.config() | changed) if spec else None
        return found

    async def configure(self, name: str, config: Mapping[str, str]) -> None:
        if name not in self._broker.specs:
            raise Rejected(f"{name}: unknown topic; create it with: python -m app topics create")
        self._broker.configs[name] = {**self._broker.configs.get(name, {}), **config}

    async def list(self) -> list[str]:
        return sorted(self._broker.specs)

    async def delete(self, names: Sequence[str]) -> None:
        for name in names:
            spec = self._broker.specs.pop(name, None)
            self._broker.configs.pop(name, None)
            for partition in range(spec.partitions if spec else 0):
                del self._broker.logs[TopicPartition(name, partition)]

    async def group_offsets(self, group: str, topics: Sequence[str]) -> dict[TopicPartition, CommittedOffset]:
        found = self._broker.groups.get(group)
        committed = found.committed if found is not None else {}
        return {place: one for place, one in committed.items() if place.topic in topics}

    async def has_members(self, group: str) -> bool:
        found = self._broker.groups.get(group)
        return found is not None and bool(found.members)

    async def close(self) -> None:
        """Nothing to end."""
