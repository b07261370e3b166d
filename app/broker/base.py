"""The broker contract, and the vocabulary of offsets in one place.

- An **offset** numbers the records of a partition from 0; compacted topics have gaps.
- A **position** is the offset of the next record to read. A **committed offset** is a position too: the next to read,
  never the last one done. **end offset**: the position after the newest record. **lag** = end offset - position.
- An **epoch** numbers one assignment of a partition to one consumer. Kafka checks who commits, not what: a living
  member may commit a partition that it lost, and backwards. So the epoch, on our side, is what forbids it.

The order that a consumer keeps: `on_assigned` runs before the first record of those partitions is returned;
`on_revoked` runs while the partitions may still be committed; after it, or after `on_lost`, no record of the ended
epoch is returned and every commit for it is refused with `Fenced`. All three run inside `poll`, on the caller's task, so
a consumer must be polled all the time, also when every partition is paused. An exception in one of them leaves `poll`.
"""

from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from typing import NamedTuple, Protocol

import msgspec

from app.broker.topics import TopicSpec
from app.core.errors import RecordError
from app.core.record import Headers, Record, TopicPartition

MAX_METADATA_CHARACTERS = 4_095
"""What a broker takes beside one committed offset. Source: Kafka's offset.metadata.max.bytes, 4,096, less one."""


class Assignment(NamedTuple):
    """One partition while it belongs to one consumer. `epoch` grows with every assignment of that consumer."""

    topic: str
    partition: int
    epoch: int

    @property
    def place(self) -> TopicPartition:
        return TopicPartition(self.topic, self.partition)


class CommittedOffset(NamedTuple):
    """A position, and up to 4,095 characters that travel with it."""

    offset: int
    metadata: str = ""


class Confirmation(NamedTuple):
    """Where the broker put a record that it acknowledged.

    offset: -1 where it did not say. When the answer to a first attempt is lost, the second one may be told only that the
    record is there. Whoever needs the offset must be able to do without, or look for the record.
    """

    partition: int
    offset: int

    def place_in(self, topic: str) -> str:
        """For people: `raw.orders/3/17`, or `raw.orders/3` where the offset was not said."""
        return f"{topic}/{self.partition}" + (f"/{self.offset}" if self.offset >= 0 else "")


class DeliveryFailure(NamedTuple):
    """A record that the broker did not take, and why."""

    error: RecordError
    key: bytes | None
    value: bytes | None


class ProducerStatistics(msgspec.Struct, frozen=True):
    """Counts since the start of one producer; `queued` is the records that wait for their acknowledgement now."""

    sent: int
    acknowledged: int
    failed: int
    queued: int


class TopicDescription(msgspec.Struct, frozen=True):
    """What the broker says about a topic that exists."""

    name: str
    partitions: int
    replication: int
    config: dict[str, str]


class RebalanceListener(Protocol):
    """Told of every change of a consumer's partitions, inside its `poll`."""

    async def on_assigned(self, assignments: Sequence[Assignment]) -> None:
        """These partitions are new. `committed`, `seek` and `pause` may be called; nothing of them was read yet."""
        ...

    async def on_revoked(self, assignments: Sequence[Assignment]) -> None:
        """These partitions go. Last chance to commit: their epochs end when this returns."""
        ...

    async def on_lost(self, assignments: Sequence[Assignment]) -> None:
        """These partitions are another member's already: their epochs have ended, nothing can be committed."""
        ...


class Consumer(Protocol):
    """A member of a consumer group. Starts at the committed offset, or at the earliest one."""

    async def start(self) -> None:
        """Joins the group.

        Raises: Unavailable within 10 s when no broker answers; Rejected for a missing right.
        """
        ...

    async def poll(self, max_records: int = 500, timeout_ms: int = 100) -> list[Record]:
        """The next records, in order within each partition; empty after `timeout_ms` without any.

        Cancellation loses no record: what was not returned is returned by the next call.
        Raises: Unavailable, Rejected, and whatever a listener raised.
        """
        ...

    def assignments(self) -> frozenset[Assignment]: ...

    def pause(self, places: Iterable[TopicPartition]) -> None:
        """Stops fetching. Records already fetched may still be returned."""
        ...

    def resume(self, places: Iterable[TopicPartition]) -> None: ...

    async def seek(self, place: TopicPartition, offset: int) -> None:
        """The next record of the place to be returned is the first one at or after `offset`, also when records
        behind it had been fetched."""
        ...

    async def commit(self, offsets: Mapping[Assignment, CommittedOffset]) -> None:
        """Returns when the broker has acknowledged.

        Raises: Fenced when an epoch has ended, and then commits none of them; Unavailable.
        """
        ...

    async def committed(self, places: Iterable[TopicPartition]) -> dict[TopicPartition, CommittedOffset | None]: ...

    def known_end_offset(self, place: TopicPartition) -> int:
        """The end offset as of the last fetch, without asking the broker; -1 when unknown."""
        ...

    async def close(self) -> None:
        """Leaves the group, after `on_revoked` for what it holds. May be called twice."""
        ...


class Producer(Protocol):
    """Writes records; idempotent, acknowledged by all in-sync replicas. Key placement: `topics.partition_of`.

    `send` only counts (nothing calls back for a success), `confirm` awaits its own acknowledgement. Records of one
    partition keep their order within each of the two.
    """

    async def start(self) -> None:
        """Raises: Unavailable within 10 s when no broker answers."""
        ...

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
        """Queues one record without waiting; False when `send` would wait, and then nothing was queued: the queue is full,
        or what the topic takes is not known yet.

        partition: -1 places it by its key. timestamp_ms: 0 means now.
        Raises: RecordTooLarge, RecordTooEarly for this record alone.
        """
        ...

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
        """Like `try_send`, but waits for room. On cancellation nothing was queued.

        Raises: as `try_send`; Unavailable, Rejected when the broker does not say what the topic takes.
        """
        ...

    async def send_many(
        self, topic: str, records: Iterable[tuple[bytes | None, bytes | None, int]], partition: int = -1
    ) -> int:
        """Sends many records of (value, key, timestamp_ms), to one partition or placed by key, as fast as can be; waits
        while the queue is full and lets other tasks run in between. Returns how many were queued.

        A record that is too large or too early is not queued: it is among the failures of the next flush, and its
        neighbours go on. On cancellation, or where `records` raises, some first part was queued.
        """
        ...

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
        """Writes one record and awaits its acknowledgement. On cancellation the record may or may not be written.

        Raises: RecordTooLarge, RecordTooEarly; Unavailable; Rejected.
        """
        ...

    async def flush(self) -> list[DeliveryFailure]:
        """Returns when everything sent before is acknowledged or has failed: the failures since the last flush.

        Raises: Unavailable when the broker did not take some of them within the delivery timeout, Rejected when it
        refused some for another reason than the record; those are lost and counted as failed, and the failures of
        single records are left for the next flush.
        """
        ...

    def statistics(self) -> ProducerStatistics: ...

    async def close(self) -> None:
        """Flushes, then ends. May be called twice."""
        ...


class Reader(Protocol):
    """Reads partitions outside any group: restores, look-backs, listings, switches."""

    async def beginning_offsets(self, places: Iterable[TopicPartition]) -> dict[TopicPartition, int]: ...

    async def end_offsets(self, places: Iterable[TopicPartition]) -> dict[TopicPartition, int]: ...

    async def offsets_for_times(self, times_ms: Mapping[TopicPartition, int]) -> dict[TopicPartition, int]:
        """The earliest offset whose record time is at or after the given one; the end offset where there is none."""
        ...

    def read(self, place: TopicPartition, start: int, stop: int) -> AsyncIterator[list[Record]]:
        """The records with `start <= offset < stop`, in batches, then ends; gaps of compaction are passed over."""
        ...

    def follow(self, place: TopicPartition, start: int) -> AsyncIterator[list[Record]]:
        """The records with `offset >= start`, in batches as they come, until the reader is closed; the iterator that is
        closed or cancelled before holds nothing. While the broker is away it waits, and then goes on where it was.

        Raises: Unavailable when no broker answers at the beginning; Rejected.
        """
        ...

    async def close(self) -> None: ...


class Right(NamedTuple):
    """What a user of a cluster may do. kind: `topic` or `group`. name: with `*` behind it, of all whose names begin so.
    operation: as Kafka spells it."""

    kind: str
    name: str
    operation: str


class Admin(Protocol):
    """Topics: create, describe, delete; and what groups have committed."""

    async def brokers(self) -> int:
        """How many brokers the cluster has."""
        ...

    async def create(self, specs: Sequence[TopicSpec]) -> dict[str, bool]:
        """Creates what is missing; True for a topic that was created, False for one that existed.

        Raises: Unavailable, Rejected.
        """
        ...

    async def describe(self, names: Sequence[str]) -> dict[str, TopicDescription | None]: ...

    async def configure(self, name: str, config: Mapping[str, str]) -> None:
        """Changes these settings of a topic that exists, and leaves its others. Raises: Unavailable, Rejected."""
        ...

    async def list(self) -> list[str]:
        """Names of all topics but the broker's own."""
        ...

    async def delete(self, names: Sequence[str]) -> None: ...

    async def group_offsets(self, group: str, topics: Sequence[str]) -> dict[TopicPartition, CommittedOffset]:
        """What a group, anybody's, has committed for these topics; partitions without a commit are left out.

        Raises: Unavailable, Rejected.
        """
        ...

    async def has_members(self, group: str) -> bool:
        """Whether anybody is a member of a group now. Raises: Unavailable, Rejected."""
        ...

    async def close(self) -> None: ...


class Broker(Protocol):
    """A cluster: where consumers, producers, readers and the admin come from. `address` as the user gave it."""

    address: str

    def consumer(self, group: str, topics: Sequence[str], listener: RebalanceListener) -> Consumer: ...

    def producer(self) -> Producer: ...

    def reader(self) -> Reader: ...

    def admin(self) -> Admin: ...

    async def close(self) -> None: ...
