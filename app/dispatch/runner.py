"""Runs records: at most so many at once, in order within a lane, again after a failure, and to an end in any case."""

import asyncio
import logging
import math
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from functools import partial
from random import Random

from app.core.errors import HeadraceError, RecordError, Rejected
from app.core.record import Record
from app.core.text import one_line
from app.dispatch.caution import CONDEMNED
from app.dispatch.lanes import Lane, Lanes
from app.dispatch.partitions import Partition
from app.dispatch.work import Crashed, DispatchConfig, Work

logger = logging.getLogger(__name__)

_TRIAL = 2
"""The step of `Caution.step` at which nothing else of the partition runs."""

_TRIALS, _RETRIES, _ALL = (5, 4), (5, 3, 1), (5, 4, 3, 2, 1, 0)
"""Which of what a partition has aside, in the order in which it is looked at."""


@dataclass(slots=True)
class _Item:
    """One record on its way to its end.

    error: why it is given up; from then on `give_up` is what is called. attempts: begun, but for those that were refused
    before anything was tried. failure: of the last attempt. ends_at: loop time in seconds after which it is not tried.
    """

    record: Record
    error: Exception | None = None
    attempts: int = 0
    refusals: int = 0
    failure: Exception | None = None
    ends_at: float = math.inf
    give_up_failures: int = 0

    @property
    def is_retry(self) -> bool:
        return self.failure is not None or self.give_up_failures > 0


@dataclass(slots=True)
class Counts:
    """Since the start; the words are explained at `DispatchStatistics`."""

    received: int = 0
    done: int = 0
    passed_over: int = 0
    recorded: int = 0
    vanished: int = 0
    abandoned: int = 0
    given_up: int = 0
    retries: int = 0
    give_up_failures: int = 0
    condemned: int = 0


class Runner:
    """Handlers as tasks. A permit is held only while a handler runs.

    A record whose time is up while its retry waits for a permit is given up without one: that runs no handler.

    The tasks are in no task group: that would wait without bound for a handler that swallows its cancellation. They are
    in `Partition.tasks`, and whoever ends a partition waits for them, for as long as it will.
    on_progress: called after each record that runs no more: there may be something to commit, and room in its partition
    again. on_hold: when a record may not run before the next commit. on_failure: of what must end the dispatcher: a broken invariant, or
    Rejected by the last resort.
    """

    def __init__(
        self,
        work: Work,
        config: DispatchConfig,
        random: Random,
        on_progress: Callable[[Partition], None],
        on_hold: Callable[[], None],
        on_failure: Callable[[BaseException], None],
    ) -> None:
        self.counts = Counts()
        self._work = work
        self._retry = config.retry
        self._concurrency = config.concurrency
        self._random = random
        self._on_progress = on_progress
        self._on_hold = on_hold
        self._on_failure = on_failure
        self._lanes: Lanes[_Item] = Lanes()
        self._holding: dict[Partition, None] = {}  # those with lanes aside; whoever got a permit last is the last
        self._running = 0
        self._started = False

    def open(self) -> None:
        """From here on handlers are started, until `stop`."""
        self._loop = asyncio.get_running_loop()
        self._started = True

    @property
    def in_flight(self) -> int:
        return self._running

    @property
    def lanes(self) -> int:
        return len(self._lanes)

    @property
    def parked(self) -> int:
        return self._lanes.parked

    def accept(self, partition: Partition, record: Record) -> None:
        """Takes the partition's next record, which has room. `start` runs what can run."""
        self.counts.received += 1
        is_first = not partition.tracker.started
        is_new = partition.tracker.receive(record.offset)
        if is_first and partition.tracker.vanished:
            self.counts.vanished += partition.tracker.vanished
            place, vanished = partition.assignment.place, partition.tracker.vanished
            logger.warning("%s: of %s offsets behind the committed one no record is left", place, vanished)
        if not is_new:
            self.counts.recorded += 1
            return
        error = None
        try:
            passes_over = self._work.passes_over(record)
            key = None if passes_over else self._work.lane(record)
        except Exception as failure:  # noqa: BLE001 - one record that cannot be judged must not stop its neighbours
            passes_over, key, error = False, record.key, failure
        if passes_over:
            partition.tracker.finish(record.offset)
            self.counts.passed_over += 1
            return
        partition.waiting += 1
        partition.unfinished_bytes += len(record.value or b"")
        lane = self._lanes.add(partition, key, _Item(record, error))
        partition.caution.receive(record.offset, is_first_of_key=lane is not None)
        if lane is not None:
            self._is_ready(partition, lane)

    def _is_ready(self, partition: Partition, lane: Lane[_Item]) -> None:
        """Who is to be tried waits for no other partition's turn: all of its own wait for it."""
        if partition.caution.step(lane.head.record.offset) == _TRIAL:
            self._lanes.take_out_of_turn(lane)
            self._put_aside(partition, lane)

    def _put_aside(self, partition: Partition, lane: Lane[_Item]) -> None:
        partition.aside[2 * partition.caution.step(lane.head.record.offset) + lane.head.is_retry].append(lane)
        self._holding.setdefault(partition)

    def start(self) -> None:
        """Starts handlers while there are permits: trials, then retries, then what has not begun. Of each first what was put
        aside, one of each partition after the other, then lanes whose turn it is. To be called after each commit: some may
        have waited for it."""
        for holding in [*self._holding]:
            if self._started and self._running < self._concurrency:
                self._start_one(holding, _TRIALS)
        while self._start_round(_RETRIES):
            pass
        while self._has_permit and self._lanes.has_due:
            self._start_lane()
        while self._start_round(_ALL):
            pass
        while self._has_permit and self._start_lane():
            pass

    def _start_lane(self) -> bool:
        """Starts the lane whose turn it is, or puts it aside. Whether there was one."""
        lane = self._lanes.take()
        if lane is None:
            return False
        partition = lane.owner
        assert isinstance(partition, Partition)
        if self._may_start(partition, lane.head):
            self._run(partition, lane)
        else:
            self._put_aside(partition, lane)
        return True

    @property
    def _has_permit(self) -> bool:
        """Whether there is one for who is not tried. A trial that waits only for a commit finds its permit free."""
        trials = sum(any(holding.aside[at] for at in _TRIALS) and not holding.tasks for holding in self._holding)
        return self._started and self._running + trials < self._concurrency

    def _start_round(self, which: Sequence[int]) -> bool:
        """One more of each partition with such lanes aside. Whether anything was started."""
        started = [self._start_one(holding, which) for holding in [*self._holding] if self._has_permit]
        return any(started)

    def _start_one(self, partition: Partition, which: Sequence[int]) -> bool:
        """Starts one of what was put aside and may run by now. Few are looked at: they may start in their order only."""
        for queue in which:
            waiting = partition.aside[queue]
            for at in range(min(len(waiting), partition.caution.most_at_once(queue // 2))):
                lane = waiting[at]
                if self._may_start(partition, lane.head):
                    del waiting[at], self._holding[partition]
                    self._run(partition, lane)
                    if any(partition.aside):
                        self._holding[partition] = None
                    return True
        return False

    def _may_start(self, partition: Partition, item: _Item) -> bool:
        offset, caution, committed = item.record.offset, partition.caution, partition.committed_changes
        if caution.may_start(offset, committed, others_run=bool(partition.tasks)):
            if item.error is None and caution.is_condemned(offset):
                item.error = Crashed(f"the process that handled it ended uncleanly, {CONDEMNED} times")
                self.counts.condemned += 1
            return True
        if caution.wants_commit(committed):
            self._on_hold()
        return False

    def _run(self, partition: Partition, lane: Lane[_Item]) -> None:
        task = self._loop.create_task(self._run_head(partition, lane, lane.head))
        self._running += 1
        partition.waiting -= 1
        partition.tasks.add(task)
        # Not in the task's own `finally`: a task that is cancelled before its first step runs none of it.
        task.add_done_callback(partial(self._release, partition))

    def stop(self) -> None:
        """Nothing is started from here on."""
        self._started = False

    def close(self, partition: Partition) -> None:
        """Starts no more of the partition; what runs goes on, and its end counts. What waits is dropped unfinished."""
        partition.closing = True
        partition.waiting = 0
        self._lanes.drop(partition)
        partition.held.clear()
        for lanes in partition.aside:
            lanes.clear()
        self._holding.pop(partition, None)
        for timer in partition.timers:
            timer.cancel()
        partition.timers.clear()

    def end(self, partition: Partition) -> None:
        """Ends the epoch: completions change nothing from here on, and what still runs is cancelled."""
        if not partition.closing:
            self.close(partition)
        self.counts.abandoned += partition.tracker.unfinished
        partition.tracker.end()
        self.cancel(partition)

    def cancel(self, partition: Partition) -> None:
        """Cancels what runs of the partition: unfinished, for whoever owns it next."""
        partition.cancelled = True
        for task in partition.tasks:
            task.cancel()

    def _release(self, partition: Partition, task: asyncio.Task[None]) -> None:
        self._running -= 1
        partition.tasks.discard(task)
        if not task.cancelled() and task.exception() is not None:
            self.stop()
            self._on_failure(task.exception() or AssertionError())
        self.start()

    async def _run_head(self, partition: Partition, lane: Lane[_Item], item: _Item) -> None:
        delay_ms = await self._bring_to_end(partition, item)
        if partition.cancelled:  # and the handler has swallowed it
            return
        if delay_ms is None:
            partition.unfinished_bytes -= len(item.record.value or b"")
            if partition.tracker.finish(item.record.offset):
                self.counts.done += 1
                self.counts.given_up += item.error is not None
                partition.caution.stopped(item.record.offset)
            if not lane.gone:
                self._lanes.finish(lane)
                if not lane.gone:
                    self._is_ready(partition, lane)
            self._on_progress(partition)
        elif not lane.gone:
            partition.caution.stopped(item.record.offset)
            partition.waiting += 1
            self._lanes.park(lane)
            self._wake_later(partition, lane, item, delay_ms)
            self._on_progress(partition)  # a withdrawn announcement is to be committed, or a kill is laid to its charge

    async def _bring_to_end(self, partition: Partition, item: _Item) -> float | None:
        """One attempt. None when the record has reached its end, else ms to wait before the next one."""
        if item.error is None:
            item.attempts += 1
            if item.failure is None and self._retry.within_ms is not None:
                item.ends_at = self._loop.time() + self._retry.within_ms / 1000
            error = await _failure(partition, self._work.handle(item.record, item.attempts))
            if error is None:
                return None
            delay_ms = self._delay_of_retry_ms(item, error)
            if delay_ms is not None:
                item.failure = error
                return delay_ms
            item.error = error
        error = await _failure(partition, self._work.give_up(item.record, item.error, item.attempts))
        if error is None:
            return None
        if isinstance(error, Rejected):
            raise error  # it will be refused again: whoever runs the dispatcher must know
        self.counts.give_up_failures += 1
        item.give_up_failures += 1
        place = f"{item.record.topic}/{item.record.partition}/{item.record.offset}"
        logger.warning("%s: giving up failed (%s), tried again: %s", place, item.give_up_failures, one_line(error))
        return self._retry.delay_ms(item.give_up_failures, self._random)

    def _delay_of_retry_ms(self, item: _Item, error: Exception) -> float | None:
        """None where it is not tried again."""
        if isinstance(error, (RecordError, Rejected)):
            return None
        asked_ms, was_tried = None, True
        if isinstance(error, HeadraceError):
            asked_ms, was_tried = error.retry_after_ms, error.was_tried or self._retry.within_ms is None
        left_ms = (item.ends_at - self._loop.time()) * 1000
        if (was_tried and item.attempts >= self._retry.max_attempts) or self._retry.is_too_late(asked_ms, left_ms):
            return None
        if not was_tried:
            item.attempts -= 1
            item.refusals += 1
        self.counts.retries += 1
        return self._retry.delay_ms(item.attempts + item.refusals, self._random, asked_ms, left_ms)

    def _wake_later(self, partition: Partition, lane: Lane[_Item], item: _Item, delay_ms: float) -> None:
        def wake() -> None:
            self._lanes.unpark(lane)
            self._is_ready(partition, lane)
            self.start()
            if item.error is None and item.ends_at < math.inf:
                self._call_at(partition, item.ends_at, lambda: self._end_in_time(partition, lane, item))

        self._call_at(partition, self._loop.time() + delay_ms / 1000, wake)

    def _end_in_time(self, partition: Partition, lane: Lane[_Item], item: _Item) -> None:
        """Gives up a record that still waits for its retry to begin."""
        if not self._started or lane.gone or lane.head is not item:
            return
        if self._lanes.take_due(lane) or self._take_aside(partition, lane):
            item.error = item.failure
            self._run(partition, lane)

    def _take_aside(self, partition: Partition, lane: Lane[_Item]) -> bool:
        for waiting in partition.aside:
            if lane in waiting:
                waiting.remove(lane)
                if not any(partition.aside):
                    del self._holding[partition]
                return True
        return False

    def _call_at(self, partition: Partition, when: float, call: Callable[[], None]) -> None:
        """Unless the partition goes before."""

        def due() -> None:
            partition.timers.discard(timer)
            call()

        timer = self._loop.call_at(when, due)
        partition.timers.add(timer)


async def _failure(partition: Partition, handling: Awaitable[None]) -> Exception | None:
    """Awaits a handler: what it raised, or None. The partition's cancellation passes through."""
    try:
        await handling
    except asyncio.CancelledError:
        if partition.cancelled:
            raise
        # Something that it awaited was cancelled, or it cancelled itself. Without this the record would never end.
        return RuntimeError("a task or future that the handler awaited was cancelled")
    except Exception as error:  # noqa: BLE001 - whatever a handler raises is retried, then given up
        return error
    return None
