"""What a dispatcher asks of the work it dispatches, how it is configured and what it counts."""

from collections.abc import Sequence
from typing import Protocol

import msgspec

from app.broker.base import Assignment
from app.core.errors import HeadraceError, SetupError
from app.core.record import Record, TopicPartition
from app.dispatch.marks import WINDOW
from app.dispatch.retries import RetryPolicy


class Crashed(HeadraceError):
    """The record was on trial when its process ended uncleanly for the third time: it is given up without running."""


class Work(Protocol):
    """What is done with each record of some topics: one consumer group, handlers that run at once.

    For one partition the calls come in this order: `assigned`, then `handle` and `give_up` for its records, then `revoked`
    (also during `assigned`; not where it was lost, a commit was refused, or its log begins anew), then `ended`. A record is
    repeated after a crash, so `handle` and `give_up` must stand being called again for it.
    """

    topics: Sequence[str]
    group: str

    def passes_over(self, record: Record) -> bool:
        """Whether the record is none of this work's: it is done at once. Cheap; an exception counts as a failure that
        no retry helps, and leads to `give_up`."""
        ...

    def lane(self, record: Record) -> bytes | None:
        """The key whose records are handled in order, one at a time, within their partition. None: no order to keep.
        Exceptions as in `passes_over`."""
        ...

    async def handle(self, record: Record, attempt: int) -> None:
        """Returns when the record has reached its end: whatever must survive a crash is written.

        attempt: 1 for the first in this process. On cancellation (partition revoked or lost, shutdown) the record is
        unfinished, and comes again to whoever owns the partition then.
        Raises: RecordError and Rejected, which no retry helps: `give_up` follows at once. Anything else is retried by
        the policy, and then given up.
        """
        ...

    async def give_up(self, record: Record, error: Exception, attempts: int) -> None:
        """Brings a record to its end that `handle` could not: a fallback, or a dead letter. It must succeed: when it
        raises it is called again, without bound and with backoff, and the record's lane waits.

        attempts: how often `handle` was called; 0 when the record failed before.
        Raises: Rejected, which ends the dispatcher: it would be refused for ever.
        """
        ...

    async def assigned(self, assignment: Assignment, first_unfinished: int) -> None:
        """Before any record of the partition runs; the place for look-backs. Other partitions are prepared and run at
        the same time, and polling goes on. It is cancelled when the partition goes.

        first_unfinished: the offset from which records will come, as committed; 0 where nothing was committed yet.
        Raises: Rejected, which ends the dispatcher. After anything else it is called again, with backoff.
        """
        ...

    def revoked(self, assignments: Sequence[Assignment]) -> None:
        """These partitions are being taken away: what has begun may still end, for `revoke_drain_ms`, and is cancelled
        then. A handler that waits for something costly had better leave it to the next owner: where it raises what is
        worth another attempt, and has time for one, the record stays unfinished, since that attempt never comes."""
        ...

    async def ended(self, assignments: Sequence[Assignment]) -> None:
        """These partitions are gone: forget what was kept for them. Called once for each that `assigned` was called
        for, also when that failed or was cancelled."""
        ...


class DispatchConfig(msgspec.Struct, frozen=True, kw_only=True):
    """Bounds of one dispatcher."""

    concurrency: int = 64
    """Handlers that run at once, over all partitions."""
    retry: RetryPolicy = RetryPolicy()
    max_waiting: int = 2_048
    """Records of one partition that may wait for their turn; above it the partition is paused."""
    commit_interval_ms: int = 400
    """How long after a record's end its offset is committed, at most."""
    revoke_drain_ms: int = 5_000
    """How long running handlers may finish when their partition is revoked."""
    drain_ms: int = 25_000
    """How long running handlers may finish at shutdown."""

    def __post_init__(self) -> None:
        if self.concurrency < 1:
            raise SetupError("concurrency", "must be at least 1")
        if not 1 <= self.max_waiting <= WINDOW:
            raise SetupError("max_waiting", f"must be 1 to {WINDOW}")
        for name in ("commit_interval_ms", "revoke_drain_ms", "drain_ms"):
            if getattr(self, name) < 0:
                raise SetupError(name, "must not be negative")


class PartitionStatistics(msgspec.Struct, frozen=True):
    """One partition now. lag: records from the first unfinished one to the end; None while the end is unknown."""

    place: TopicPartition
    position: int
    lag: int | None
    in_flight: int
    waiting: int
    held: int
    paused: bool
    prepared: bool


class DispatchStatistics(msgspec.Struct, frozen=True):
    """Counts since the start of one dispatcher, and its partitions now.

    received: every record taken; each then counts once in done, passed_over, recorded (an earlier owner had recorded it
    as done), or abandoned (unfinished when its partition went), or is in flight or waiting. lanes: keys that have records
    here now; parked: those of them that wait for a retry.
    given_up: those of done that `give_up` brought to their end. condemned: those that were given up because their
    process had ended uncleanly three times. held: received from the broker, not taken yet.
    vanished: offsets behind a committed one that held no record any more when their partition came (retention).
    """

    received: int
    done: int
    passed_over: int
    recorded: int
    vanished: int
    abandoned: int
    given_up: int
    condemned: int
    retries: int
    give_up_failures: int
    in_flight: int
    waiting: int
    lanes: int
    parked: int
    held: int
    commits: int
    commit_failures: int
    poll_failures: int
    foreign_metadata: int
    lag: int
    partitions: tuple[PartitionStatistics, ...]

    @property
    def paused(self) -> tuple[TopicPartition, ...]:
        """The partitions that are not fetched now."""
        return tuple(partition.place for partition in self.partitions if partition.paused)
