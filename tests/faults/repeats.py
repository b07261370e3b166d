"""Which repeated calls of the model are explained by what was done to whoever had begun the call before.

A call is attributed to the worker that held its alert's partition then. Only what broke off that worker's work excuses a
repeat, and only where the decision was not yet in the log by then: calls of other workers excuse nothing.
"""

from bisect import bisect_right
from collections import defaultdict
from collections.abc import Iterator, Mapping
from itertools import pairwise
from typing import Literal, NamedTuple

from app.dispatch.work import DispatchConfig
from tests.faults.history import Call, Decided, History, Owned

LONGEST_CALL_MS = 20_000
"""An agent's deadline: no call is under way for longer."""

STRAGGLES_MS = 1_000
"""So much later than its death a worker's last call may be read by the model from its socket, under load."""

DRAIN_MS = DispatchConfig().revoke_drain_ms
DRAIN_SLACK_MS = 100
"""Timers of the drain and the trace are not read in one moment."""


class Broken(NamedTuple):
    """When a worker's work at a partition was broken off, and by what: something was done to it, or the partition moved."""

    at_ms: int
    by: Literal["fault", "move"]


def workers_of(history: History) -> set[str]:
    """All there were. What was done to anything else was done to each of them: to Kafka, or to the network."""
    names = {one.worker for one in history.ended} | {one.worker for one in history.held}
    return names | {one.worker for one in history.owned}


class Owners:
    """Who held which partition of the alerts when, and when that was broken off."""

    def __init__(self, history: History) -> None:
        self._spans: dict[int, list[Owned]] = defaultdict(list)
        for one in sorted(history.owned, key=lambda one: one.start_ms):
            self._spans[one.partition].append(one)
        workers = workers_of(history)
        self._faults: dict[str, list[int]] = defaultdict(list)
        for fault in sorted(history.faults, key=lambda one: one.at_ms):
            if fault.breaks:
                for worker in [fault.whom] if fault.whom in workers else workers:
                    self._faults[worker].append(fault.at_ms)

    def at(self, partition: int, at_ms: int) -> Owned | None:
        """Who was given it last."""
        spans = self._spans[partition]
        index = bisect_right(spans, at_ms, key=lambda one: one.start_ms)
        return spans[index - 1] if index else None

    def fault_after(self, held: Owned, at_ms: int) -> int | None:
        """When the owner's work was broken off by a fault, at that time or later."""
        moments = [moment for moment in self._faults[held.worker] if moment >= at_ms]
        if moments:
            return moments[0]
        last = self._faults[held.worker][-1:]
        return last[0] if last and not held.end_ms and last[0] >= at_ms - STRAGGLES_MS else None

    def broken(self, held: Owned, at_ms: int) -> Broken | None:
        """What came first of a fault and the end of holding it, which excuses only where the drain was given in full: a
        partition that was lost, not revoked, has none."""
        fault_ms = self.fault_after(held, at_ms)
        if fault_ms is not None and not (held.end_ms and held.end_ms < fault_ms):
            return Broken(fault_ms, "fault")
        if held.end_ms and not (held.revoked_ms and held.end_ms - held.revoked_ms < DRAIN_MS - DRAIN_SLACK_MS):
            return Broken(held.end_ms, "move")
        return None


class Repeats(NamedTuple):
    """in_flight: alerts whose calls were begun by a worker to which something was done, and whose decision was not yet in
    the log then. moved: those of partitions that were taken away, whose handlers outlasted the drain. unexplained: repeats of
    alerts that were neither; a call that was begun within the drain excuses none."""

    in_flight: int
    moved: int
    unexplained: list[str]


def repeats(history: History, standing: Mapping[str, Decided]) -> Repeats:
    """Judges each repeat by what happened to the call before it."""
    partitions = {one.alert_id: one.partition for one in history.published}
    owners = Owners(history)
    calls: dict[str, list[Call]] = defaultdict(list)
    for call in history.calls:
        calls[call.alert_id].append(call)
    cut: set[tuple[str, Broken]] = set()
    unexplained: list[str] = []
    for alert_id, asked in calls.items():
        decision = standing.get(alert_id)
        broken = []
        for call in sorted(asked, key=lambda one: (one.start_ms, one.number)):
            broken.append((call, _broken(owners, partitions.get(alert_id, -1), call, decision)))
        cut.update((alert_id, by) for _, by in broken if by is not None)
        unexplained += _unexplained(broken)
    return Repeats(sum(by.by == "fault" for _, by in cut), sum(by.by == "move" for _, by in cut), unexplained)


def _broken(owners: Owners, partition: int, call: Call, decision: Decided | None) -> Broken | None:
    """What left this call without a decision; None where the decision came, or nothing happened meanwhile."""
    held = owners.at(partition, call.start_ms)
    found = owners.broken(held, call.start_ms) if held is not None else None
    if found is None or found.at_ms > call.start_ms + LONGEST_CALL_MS:
        return None
    if found.by == "move" and held is not None and 0 < held.revoked_ms < call.start_ms - STRAGGLES_MS:
        return None
    return None if decision is not None and decision.at_ms < found.at_ms else found


def _unexplained(calls: list[tuple[Call, Broken | None]]) -> Iterator[str]:
    for (before, broken), (after, _) in pairwise(calls):
        if before.fault or (broken is not None and broken.at_ms <= after.start_ms):
            continue
        yield f"call {after.number} of {after.alert_id} at {after.start_ms}; call {before.number} began at {before.start_ms}"
