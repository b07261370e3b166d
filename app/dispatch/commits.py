"""Commits follow completions: soon, one at a time, and never for an epoch that has ended."""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterable, Sequence

import anyio

from app.broker.base import Consumer
from app.core.errors import Fenced, Unavailable
from app.dispatch.partitions import Partition

logger = logging.getLogger(__name__)

LAST_COMMIT_SECONDS = 5.0
"""How long the commit before a partition goes is tried. What it misses is handled again, not lost."""

_LAST_COMMIT_PAUSE_SECONDS = 0.1


class Commits:
    """The one place that commits. Idle while nothing changes.

    Two commits never overlap: an older one that arrived last would set the position back.
    """

    def __init__(self, consumer: Consumer, interval_ms: int, on_committed: Callable[[], None]) -> None:
        """on_committed: called after each commit."""
        self.commits = 0
        self.failures = 0
        self._consumer = consumer
        self._interval_seconds = interval_ms / 1000
        self._on_committed = on_committed
        self._changed = asyncio.Event()
        self._urgent = asyncio.Event()
        self._one_at_a_time = asyncio.Lock()

    def note(self) -> None:
        """Something is done: a commit follows within the interval."""
        self._changed.set()

    def hurry(self) -> None:
        """Something waits for a commit: it follows at once."""
        self._changed.set()
        self._urgent.set()

    async def follow(
        self, partitions: Callable[[], Iterable[Partition]], lost: Callable[[Sequence[Partition]], Awaitable[None]]
    ) -> None:
        """Commits whenever something has changed, for ever. `lost` is told of epochs that turn out to have ended."""
        while True:
            await self._changed.wait()
            with anyio.move_on_after(self._interval_seconds):
                await self._urgent.wait()
            self._changed.clear()
            self._urgent.clear()
            try:
                fenced = await self.commit(partitions())
            except Unavailable as error:
                logger.warning("commit failed, tried again: %s", error)
                await asyncio.sleep(self._interval_seconds)
                self._changed.set()
                continue
            if fenced:
                await lost(fenced)

    async def commit(self, partitions: Iterable[Partition]) -> list[Partition]:
        """Commits what has changed; returns the partitions whose epoch turned out to have ended.

        Raises: Unavailable, Rejected. On cancellation the offsets may or may not be committed.
        """
        async with self._one_at_a_time:
            changed = [one for one in partitions if one.tracker.changes != one.committed_changes]
            try:
                await self._send(changed)
            except Fenced:
                if len(changed) == 1:
                    return changed
                return await self._send_singly(changed)
            return []

    async def commit_last(self, partitions: Iterable[Partition]) -> None:
        """Commits before the partitions go, for as long as `LAST_COMMIT_SECONDS`, and says that they ended cleanly.

        Raises: Rejected.
        """
        partitions = list(partitions)
        for partition in partitions:
            partition.tracker.close()
        try:
            async with asyncio.timeout(LAST_COMMIT_SECONDS):
                while True:
                    try:
                        await self.commit(partitions)
                        return
                    except Unavailable:
                        await asyncio.sleep(_LAST_COMMIT_PAUSE_SECONDS)
        except TimeoutError:
            places = ", ".join(str(one.assignment.place) for one in partitions)
            logger.warning("%s: left without a last commit; what ended since is handled again", places)

    async def _send_singly(self, partitions: list[Partition]) -> list[Partition]:
        """One ended epoch makes the broker refuse all: each is committed alone. At the same time, since a refusal may
        take a consumer a second to be sure of."""
        results = await asyncio.gather(*(self._send([one]) for one in partitions), return_exceptions=True)
        for result in results:
            if result is not None and not isinstance(result, Fenced):
                raise result
        return [one for one, result in zip(partitions, results, strict=True) if result is not None]

    async def _send(self, partitions: list[Partition]) -> None:
        live = [(one, one.tracker.changes) for one in partitions if not one.tracker.ended]
        if not live:
            return
        try:
            await self._consumer.commit({one.assignment: one.committable() for one, _ in live})
        except (Fenced, Unavailable):
            self.failures += 1
            raise
        self.commits += 1
        for partition, changes in live:
            partition.committed_changes = changes
        self._on_committed()
