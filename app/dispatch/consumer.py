"""From a consumer group to handlers: many at once inside one partition, and no record ever lost.

Three kinds of tasks live side by side: one polls and never waits for a handler, one commits what is done, and one runs
for each record that is handled right now. Where the records of a partition wait is in `partitions`; which offset may be
committed, in `offsets`; whose turn it is, in `lanes`; how a record reaches its end, in `runner`.

The epoch is the wall between owners. It ends when a partition is revoked (after a drain and a commit), when it is lost,
and when a commit is refused as fenced; whatever completes later changes nothing.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Collection, Iterable, Sequence
from itertools import groupby
from operator import attrgetter
from random import Random

import anyio

from app.broker.base import Assignment, Broker, CommittedOffset
from app.core.errors import Fenced, Rejected, Unavailable, cause_of
from app.core.record import Record, TopicPartition
from app.core.text import one_line
from app.dispatch.commits import Commits
from app.dispatch.partitions import Partition
from app.dispatch.runner import Runner
from app.dispatch.work import DispatchConfig, DispatchStatistics, PartitionStatistics, Work

__all__ = ["DispatchConfig", "DispatchStatistics", "Dispatcher", "Work"]

logger = logging.getLogger(__name__)

POLL_RECORDS = 500
POLL_TIMEOUT_MS = 500
CANCELLED_WITHIN_SECONDS = 1.0
"""How long polling waits for the cancelled handlers of an ended epoch."""

UNWOUND_SECONDS = 30.0
"""How long a partition that comes back waits for its handlers of before."""

LEAVE_SECONDS = 4.0
"""How long a dispatcher that has committed and left its group waits for handlers that have not ended yet."""

LONGEST_PAUSE_SECONDS = 2.0
"""Between two questions to a broker that did not answer."""

TAKE_BACK_SECONDS = 15.0
"""A partition whose commit was refused, and that the group has not taken away by then, is begun again."""

_place_of = attrgetter("topic", "partition")


class Dispatcher:
    """One member of the work's consumer group. It runs once."""

    def __init__(self, broker: Broker, work: Work, config: DispatchConfig, random: Random) -> None:
        self._work = work
        self._config = config
        self._random = random
        self._consumer = broker.consumer(work.group, work.topics, self)
        self._reader = broker.reader()
        self._runner = Runner(work, config, random, self._on_progress, self._on_hold, self._on_failure)
        self._commits = Commits(self._consumer, config.commit_interval_ms, self._runner.start)
        self._partitions: dict[TopicPartition, Partition] = {}
        self._ended: list[Partition] = []  # whose tasks have not all unwound yet
        self._begun_anew: dict[Partition, int] = {}  # whose log is another one now, and its first offset
        self._refused: dict[Partition, float] = {}  # ended by a refused commit; when to begin them again, loop time
        self._rebalancing = asyncio.Lock()
        self._tasks: asyncio.TaskGroup | None = None
        self._stopping = asyncio.Event()
        self._cancelled = False
        self._failed = asyncio.Event()
        self._failure: BaseException | None = None
        self._poll_failures = 0
        self._foreign_metadata = 0

    async def run(self, stopping: asyncio.Event) -> None:
        """Joins the group and handles its records until `stopping` is set; then lets running handlers finish for as
        long as `drain_ms`, cancels the rest uncommitted, commits and leaves the group.

        On cancellation handlers are cancelled at once; what is done is still committed, and the group is left.
        Raises: Unavailable when no broker answers at the start, Rejected at any time.
        """
        assert self._tasks is None, "a dispatcher runs once"
        try:
            await self._consumer.start()
            async with asyncio.TaskGroup() as self._tasks:
                self._runner.open()
                await self._serve(self._tasks, stopping)
        except BaseExceptionGroup as group:
            raise cause_of(group) from None
        finally:
            with anyio.CancelScope(shield=True):
                self._stopping.set()
                self._cancel_handlers()
                try:
                    await self._consumer.close()  # revokes, and so commits, what is still held
                finally:
                    await self._end(list(self._partitions.values()))
                    await self._leave()
                    await self._reader.close()
        if self._failure is not None:
            raise self._failure  # of a handler that was on its way out

    async def _serve(self, tasks: asyncio.TaskGroup, stopping: asyncio.Event) -> None:
        try:
            polling = tasks.create_task(self._stop_starting_at_end(self._poll))
            committing = tasks.create_task(self._stop_starting_at_end(self._commit))
            failing = tasks.create_task(self._fail())
            await stopping.wait()
            self._stopping.set()
            # Polling goes on during the drain: a member that is not polled is expelled.
            await self._drain(list(self._partitions.values()), self._config.drain_ms)
            self._cancel_handlers()
            async with self._rebalancing:  # never in the midst of a hand-over
                polling.cancel()
                committing.cancel()
                failing.cancel()
        finally:
            self._runner.stop()

    async def _leave(self) -> None:
        leaving = [task for one in self._ended for task in one.tasks]
        if leaving:
            _, stuck = await asyncio.wait(leaving, timeout=LEAVE_SECONDS)
            if stuck:
                logger.error("%s handlers swallow their cancellation and are left behind", len(stuck))

    def _cancel_handlers(self) -> None:
        self._cancelled = True
        for partition in self._partitions.values():
            self._runner.cancel(partition)

    def _on_hold(self) -> None:
        self._commits.hurry()

    def _on_failure(self, failure: BaseException) -> None:
        self._failure = self._failure or failure
        self._failed.set()

    async def _fail(self) -> None:
        """Ends the task group with what a handler's task has failed of."""
        await self._failed.wait()
        assert self._failure is not None
        raise self._failure

    async def _stop_starting_at_end(self, service: Callable[[], Awaitable[None]]) -> None:
        """The task group ends everything when one service fails; a handler that ends then must start no other."""
        try:
            await service()
        finally:
            self._runner.stop()

    async def _poll(self) -> None:
        failures = 0
        while True:
            try:
                await self._take_back()
                await self._follow_new_logs()
                records = await self._consumer.poll(POLL_RECORDS, POLL_TIMEOUT_MS)
            except Unavailable as error:
                failures += 1
                self._poll_failures += 1
                logger.warning("poll failed (%s), tried again: %s", failures, error)
                await self._back_off(failures)
                continue
            failures = 0
            if records:
                self._distribute(records)
                await asyncio.sleep(0)  # a poll that finds records at once does not give way to the handlers by itself

    async def _commit(self) -> None:
        await self._commits.follow(lambda: list(self._partitions.values()), self._lose)

    def _distribute(self, records: Iterable[Record]) -> None:
        for (topic, number), group in groupby(records, key=_place_of):
            partition = self._partitions.get(TopicPartition(topic, number))
            if partition is None:
                continue  # its epoch has ended, of which polling has not heard yet: the next owner reads it again
            if not partition.closing:
                partition.held.extend(group)
            self._settle(partition)
        self._runner.start()

    def _settle(self, partition: Partition) -> None:
        """Takes what there is room for, then pauses or resumes."""
        held = partition.held
        if partition.running:
            before = partition.tracker.changes
            while held and partition.has_room(held[0]):
                if partition.tracker.begins_anew(held[0].offset):
                    self._begun_anew[partition] = held[0].offset
                    self._runner.close(partition)
                    break
                self._runner.accept(partition, held.popleft())
            if partition.tracker.changes != before:
                self._commits.note()
        if not partition.paused:
            if held or not partition.running or partition.is_full:
                partition.paused = True
                self._consumer.pause([partition.assignment.place])
        elif partition.running and not held and partition.is_relieved:
            partition.paused = False
            self._consumer.resume([partition.assignment.place])

    def _on_progress(self, partition: Partition) -> None:
        if partition.tracker.ended:
            return
        self._commits.note()
        if partition.paused:
            self._settle(partition)

    async def on_assigned(self, assignments: Sequence[Assignment]) -> None:
        async with self._rebalancing:
            committed = await self._committed([assignment.place for assignment in assignments])
            for assignment in assignments:
                self._begin(assignment, committed[assignment.place])

    def _begin(self, assignment: Assignment, committed: CommittedOffset | None) -> None:
        self._take(Partition(assignment, committed, self._config))

    def _take(self, partition: Partition) -> None:
        place = partition.assignment.place
        assert place not in self._partitions, f"{place} is assigned twice"
        self._partitions[place] = partition
        self._foreign_metadata += partition.tracker.foreign_metadata
        partition.closing = self._stopping.is_set()
        self._settle(partition)  # pauses it: nothing of it runs before it is prepared
        if not self._stopping.is_set():
            assert self._tasks is not None
            partition.preparing = self._tasks.create_task(self._prepare(partition))

    async def on_revoked(self, assignments: Sequence[Assignment]) -> None:
        async with self._rebalancing:
            partitions = self._held(assignments)
            self._work.revoked([partition.assignment for partition in partitions if partition.told])
            # What is cancelled counts no more. A group that rebalances during the drain of a shutdown finds handlers running.
            await self._drain(partitions, 0 if self._cancelled else self._config.revoke_drain_ms)
            await self._commits.commit_last(partitions)
            await self._end(partitions)

    async def on_lost(self, assignments: Sequence[Assignment]) -> None:
        async with self._rebalancing:
            await self._end(self._held(assignments))

    async def _lose(self, partitions: Sequence[Partition]) -> None:
        """A refused commit means the same as lost, and may come before polling hears of it."""
        async with self._rebalancing:
            partitions = [
                partition for partition in partitions if not partition.tracker.ended
            ]  # while it was under way
            await self._end(partitions)
            due = asyncio.get_running_loop().time() + TAKE_BACK_SECONDS
            self._refused.update(dict.fromkeys(partitions, due))
            self._consumer.pause([partition.assignment.place for partition in partitions])

    async def _take_back(self) -> None:
        """Begins again, where it stood, what a refused commit has ended and the group never took away; else nobody
        would read it."""
        for partition, due in list(self._refused.items()):
            assignment = partition.assignment
            if assignment not in self._consumer.assignments():
                del self._refused[partition]
            elif asyncio.get_running_loop().time() >= due and not self._stopping.is_set():
                partition.tracker.close()  # its handlers were cancelled: nothing has crashed
                start = partition.tracker.committable()
                async with self._rebalancing:
                    if not await self._moved(assignment, start.offset):
                        self._refused[partition] = asyncio.get_running_loop().time() + TAKE_BACK_SECONDS
                        continue
                    del self._refused[partition]
                    logger.warning("%s: a commit was refused, yet the partition is still ours", assignment.place)
                    # What an earlier owner may have been running is still to be found out.
                    unclean, reach = partition.tracker.unclean, partition.caution.reach
                    self._take(Partition(assignment, start, self._config, unclean=unclean, reach=reach))

    async def _follow_new_logs(self) -> None:
        """Begins partitions again whose topic was deleted and made again, from the first record of the new log."""
        for partition, offset in list(self._begun_anew.items()):
            assignment = partition.assignment
            async with self._rebalancing:
                if self._partitions.get(assignment.place) is partition and not self._stopping.is_set():
                    if not await self._moved(assignment, offset):
                        continue
                    logger.warning("%s: the log begins anew, at offset %s", assignment.place, offset)
                    await self._end([partition])
                    self._begin(assignment, CommittedOffset(offset))
                del self._begun_anew[partition]

    async def _moved(self, assignment: Assignment, offset: int) -> bool:
        """Whether the partition goes on there. If not, polling says what became of it, and must be reached."""
        try:
            await self._consumer.seek(assignment.place, offset)
        except Fenced:
            return False
        except Unavailable as error:
            logger.warning("%s: does not go on at offset %s, later: %s", assignment.place, offset, error)
            return False
        return True

    def _held(self, assignments: Iterable[Assignment]) -> list[Partition]:
        """What is still held of these; a partition that a refused commit has ended is not."""
        held = [self._partitions.get(assignment.place) for assignment in assignments]
        return [one for one, assignment in zip(held, assignments, strict=True) if one and one.assignment == assignment]

    async def _committed(self, places: Sequence[TopicPartition]) -> dict[TopicPartition, CommittedOffset | None]:
        failures = 0
        while True:
            try:
                return await self._consumer.committed(places)
            except Unavailable as error:
                if self._stopping.is_set():  # nothing of them will run, so nothing of them is committed
                    return dict.fromkeys(places)
                failures += 1
                logger.warning("committed offsets are not to be had (%s), tried again: %s", failures, error)
                with anyio.move_on_after(self._pause_s(failures)):
                    await self._stopping.wait()

    async def _prepare(self, partition: Partition) -> None:
        """Lets the work look back, then opens the partition. Ends when the epoch does."""
        place = partition.assignment.place
        await self._unwound(place)
        failures = 0
        while not partition.prepared:
            try:
                await self._bound_suspicion(partition)
                partition.told = True
                await self._work.assigned(partition.assignment, partition.start)
                partition.prepared = True
            except Rejected:
                raise  # it will be refused again: whoever runs the dispatcher must know
            except Exception as error:  # noqa: BLE001 - the partition waits, the others go on
                failures += 1
                logger.warning("%s: preparing failed (%s), tried again: %s", place, failures, one_line(error))
                await self._back_off(failures)
        self._settle(partition)
        self._runner.start()

    async def _bound_suspicion(self, partition: Partition) -> None:
        if partition.tracker.unclean and partition.caution.reach is None:
            place = partition.assignment.place
            partition.caution.suspect_up_to(partition.start, (await self._reader.end_offsets([place]))[place])

    async def _unwound(self, place: TopicPartition) -> None:
        """Returns when the handlers of earlier epochs have ended: one at a time of a key, also of a partition that comes
        back while they are on their way out. After `UNWOUND_SECONDS` a handler that swallows its cancellation is no
        longer waited for."""
        leaving = [task for one in self._ended if one.assignment.place == place for task in one.tasks]
        if leaving:
            _, stuck = await asyncio.wait(leaving, timeout=UNWOUND_SECONDS)
            if stuck:
                logger.error("%s: begins beside %s handlers of before that do not end", place, len(stuck))

    async def _drain(self, partitions: Collection[Partition], milliseconds: int) -> None:
        """Starts nothing more of them, and waits until what runs has ended, or the time is over."""
        for partition in partitions:
            self._runner.close(partition)
            if partition.preparing is not None:
                partition.preparing.cancel()
            self._settle(partition)
        running = [task for partition in partitions for task in partition.tasks]
        if running:
            await asyncio.wait(running, timeout=milliseconds / 1000)

    async def _end(self, partitions: Sequence[Partition]) -> None:
        """Ends the epochs, cancels what still runs of them, and tells the work."""
        ended = [partition for partition in partitions if not partition.tracker.ended]
        for partition in ended:
            self._runner.end(partition)
            del self._partitions[partition.assignment.place]
            if partition.preparing is not None:
                partition.preparing.cancel()
        self._ended = [one for one in self._ended + ended if one.tasks]
        unwinding = [task for one in ended for task in {*one.tasks, one.preparing} if task is not None]
        if unwinding:
            await asyncio.wait(unwinding, timeout=CANCELLED_WITHIN_SECONDS)
        told = [partition.assignment for partition in ended if partition.told]
        if told:
            await self._work.ended(told)

    async def _back_off(self, failures: int) -> None:
        await asyncio.sleep(self._pause_s(failures))

    def _pause_s(self, failures: int) -> float:
        """The broker may be back at any time, and a whole partition waits for it."""
        return min(LONGEST_PAUSE_SECONDS, self._config.retry.delay_ms(failures, self._random) / 1000)

    def statistics(self) -> DispatchStatistics:
        partitions = tuple(self._partition_statistics(partition) for partition in self._partitions.values())
        counts = self._runner.counts
        return DispatchStatistics(
            received=counts.received,
            done=counts.done,
            passed_over=counts.passed_over,
            recorded=counts.recorded,
            vanished=counts.vanished,
            abandoned=counts.abandoned,
            given_up=counts.given_up,
            condemned=counts.condemned,
            retries=counts.retries,
            give_up_failures=counts.give_up_failures,
            in_flight=self._runner.in_flight,
            waiting=sum(one.waiting for one in partitions),
            lanes=self._runner.lanes,
            parked=self._runner.parked,
            held=sum(one.held for one in partitions),
            commits=self._commits.commits,
            commit_failures=self._commits.failures,
            poll_failures=self._poll_failures,
            foreign_metadata=self._foreign_metadata,
            lag=sum(one.lag or 0 for one in partitions),
            partitions=partitions,
        )

    def _partition_statistics(self, partition: Partition) -> PartitionStatistics:
        place, position = partition.assignment.place, partition.tracker.position
        end_offset = self._consumer.known_end_offset(place)
        return PartitionStatistics(
            place=place,
            position=position,
            lag=max(0, end_offset - position) if end_offset >= 0 else None,
            in_flight=len(partition.tasks),
            waiting=partition.waiting,
            held=len(partition.held),
            paused=partition.paused,
            prepared=partition.prepared,
        )
