"""One partition while it belongs to this dispatcher: its tracker, what waits, and whether it has room for more."""

import asyncio
from collections import deque
from typing import Any

from app.broker.base import Assignment, CommittedOffset
from app.core.record import Record
from app.dispatch.caution import Caution
from app.dispatch.lanes import Lane
from app.dispatch.marks import WINDOW
from app.dispatch.offsets import OffsetTracker
from app.dispatch.work import DispatchConfig

MAX_UNFINISHED_BYTES = 16 * 1024 * 1024
"""Values of the unfinished records of one partition, together; above it the partition is paused."""


class Partition:
    """State of one assignment. Another assignment of the same partition is another object, so nothing that belongs to
    an ended epoch can reach the new one: neither a late completion nor a record under a reused offset.
    """

    def __init__(
        self,
        assignment: Assignment,
        committed: CommittedOffset | None,
        config: DispatchConfig,
        *,
        unclean: bool = False,
        reach: int | None = None,
    ) -> None:
        """unclean, reach: the care of an earlier epoch that this one goes on with."""
        self.assignment = assignment
        self.start = committed.offset if committed else 0
        self.tracker = OffsetTracker(committed, unclean=unclean)
        self.committed_changes = 0
        """The tracker's `changes` when it was last committed."""
        self.caution = Caution(self.tracker, config.concurrency, reach)
        self.aside: tuple[deque[Lane[Any]], ...] = tuple(deque() for _ in range(6))
        """Lanes whose turn it was and whose heads may not run yet. Two for each step of `Caution.step`: those that have not
        begun, and retries."""
        self.prepared = False
        self.closing = False
        """No record of it is started any more."""
        self.paused = False
        self.told = False
        """The work knows of it."""
        self.preparing: asyncio.Task[None] | None = None
        self.held: deque[Record] = deque()
        """What came while there was no room: no more than was fetched before the pause."""
        self.tasks: set[asyncio.Task[None]] = set()
        self.cancelled = False
        """What runs of it was told to stop: it may have stopped anywhere, so its end does not count."""
        self.timers: set[asyncio.TimerHandle] = set()
        self.waiting = 0
        """Records taken that do not run now; those that wait for a retry among them."""
        self.unfinished_bytes = 0
        self._max_waiting = config.max_waiting

    def committable(self) -> CommittedOffset:
        return self.tracker.committable(names_all=self.caution.names_all)

    @property
    def running(self) -> bool:
        """Whether its records may be started."""
        return self.prepared and not self.closing

    def has_room(self, record: Record) -> bool:
        return (
            self.waiting < self._max_waiting
            and self.unfinished_bytes < MAX_UNFINISHED_BYTES
            and self.tracker.has_room(record.offset)
        )

    @property
    def is_full(self) -> bool:
        """Time to pause."""
        return (
            self.waiting >= self._max_waiting
            or self.tracker.span >= WINDOW
            or self.unfinished_bytes >= MAX_UNFINISHED_BYTES
        )

    @property
    def is_relieved(self) -> bool:
        """Time to resume: well below the bounds, so that a partition does not flutter. Of the window a few batches are
        enough: behind a record that is stuck it does not move, and what fits may still run."""
        return (
            self.waiting <= self._max_waiting // 2
            and self.tracker.span <= WINDOW * 7 // 8
            and self.unfinished_bytes <= MAX_UNFINISHED_BYTES // 2
        )
