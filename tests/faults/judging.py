"""What every row demands in the end, beside the checker's zeros."""

import math
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable
from itertools import pairwise
from typing import NamedTuple

from app.core.settings import load_settings
from app.decisions.record import DECISIONS
from tests.faults.checker import REPORTED, SHOWN, Verdict, check, standing_decisions
from tests.faults.history import Fault, Held, History, Owned
from tests.faults.repeats import STRAGGLES_MS, workers_of
from tests.faults.run import LAG_LIMIT_S, Run
from tests.faults.sink import KEYLESS

TIMEOUT_MS = load_settings({}).action_timeout_ms
LEAST_CRASHES = 2
"""Before an alert is given up: one crash may be laid to its charge that was before it, see ADR 21."""

TRIALS = 3
"""After so many processes a decision's effects are given up."""


class Judged(NamedTuple):
    """failures: what is wrong beyond the verdict."""

    verdict: Verdict
    history: History
    failures: list[str]


async def judged(
    run: Run, settle_s: float = LAG_LIMIT_S, *, limit_s: float = LAG_LIMIT_S, causes: Collection[str] = ()
) -> Judged:
    """Waits for the lag, stops the workers and reads what happened.

    limit_s: by then the lag is 0 again. causes: reason codes of the fallbacks that this fault may bring.
    """
    failures = [] if await run.settled(settle_s) else [f"lag not 0 {settle_s:g} s later"]
    failures += [f"a worker ended with {code}" for code in await run.workers.stop() if code != 0]
    history = await run.finish()
    verdict = check(history)
    if verdict.recovery_s is None or verdict.recovery_s > limit_s:
        failures.append(f"lag 0 after {verdict.recovery_s} s")
    failures += [f"{count} alerts fell back: {code}" for code, count in verdict.fallbacks.items() if code not in causes]
    return Judged(verdict, history, [*failures, *reported_beyond(history), *condemned_beyond(history)])


def condemned_beyond(history: History) -> list[str]:
    """What is wrong when alerts are in their fallback because their process died: each unclean end of a partition's owner
    condemns one at the most, and nobody after fewer than two of them. An end is judged when the next owner begins: it is
    clean where the partition was given up in order by then."""
    owners: dict[int, list[Owned]] = defaultdict(list)
    for one in sorted(history.owned, key=lambda one: one.start_ms):
        owners[one.partition].append(one)
    ends = {
        partition: [
            after.start_ms
            for before, after in pairwise(spans)
            if not (before.revoked_ms and 0 < before.end_ms <= after.start_ms)
        ]
        for partition, spans in owners.items()
    }
    published = {one.alert_id: one.at_ms for one in reversed(history.published)}
    condemned = [one for one in standing_decisions(history).values() if one.is_fallback and "crashed" in one.codes]
    wrong = [
        f"{one.alert_id} is condemned after {number} unclean ends"
        for one in condemned
        if (number := sum(published[one.alert_id] <= end <= one.at_ms for end in ends.get(one.partition, ())))
        < LEAST_CRASHES
    ]
    for partition, number in Counter(one.partition for one in condemned).items():
        unclean = len(ends.get(partition, ()))
        if number > unclean:
            wrong.append(f"{number} alerts of partition {partition} condemned by {unclean} unclean ends")
    return wrong[:SHOWN]


def reported_beyond(history: History) -> list[str]:
    """What is wrong when a person is asked about an effect for no reason: one whose receiver knows no keys was claimed and
    whoever had it was broken off before it had ended, or its receiver said nothing for as long as it may take; or three
    owners died of a decision, which is then given up."""
    broken = _broken_off(history)
    decided = {(one.partition, one.offset): one.at_ms for one in history.decisions}
    first: dict[tuple[str, str, str], int] = {}
    places: dict[str, tuple[int, int]] = {}
    for entry in sorted(history.effects, key=lambda one: one.at_ms):
        places[entry.alert_id] = entry.partition, entry.decision_offset
        for name, state in entry.states.items():
            first.setdefault((entry.alert_id, name, state), entry.at_ms)
    wrong = []
    for (alert_id, name, state), at_ms in first.items():
        if state in REPORTED:
            is_claimed = state == "unknown" and name in KEYLESS
            place = places[alert_id]
            begun_ms = first.get((alert_id, name, "called"), at_ms) if is_claimed else decided.get(place, at_ms)
            if is_claimed and at_ms - begun_ms >= TIMEOUT_MS:
                continue
            reasons = sum(begun_ms - STRAGGLES_MS <= moment <= at_ms for moment in broken[place[0]])
            if reasons < (1 if is_claimed else TRIALS):
                wrong.append(
                    f"{name} of {alert_id} is {state} since {at_ms}, and nothing done to a worker was the reason"
                )
    return wrong[:SHOWN]


def _broken_off(history: History) -> dict[int, list[int]]:
    """When the work of whoever held a partition of the decisions was broken off: by what was done to it, or to all, or
    because another one was given the partition."""
    workers = workers_of(history)
    broken: dict[int, list[int]] = defaultdict(list)
    for (topic, partition), spans in _spans(history.held).items():
        if topic == DECISIONS:
            for number, (begin_ms, worker) in enumerate(spans):
                end_ms = spans[number + 1][0] if number + 1 < len(spans) else math.inf
                broken[partition] += [
                    fault.at_ms
                    for fault in history.faults
                    if fault.breaks
                    and begin_ms <= fault.at_ms < end_ms
                    and (fault.whom == worker or fault.whom not in workers)
                ]
                if end_ms < math.inf:
                    broken[partition].append(int(end_ms))
    return broken


def not_taken_over(faults: Iterable[Fault], held: Iterable[Held]) -> list[str]:
    """Freezes that show nothing: no other worker was given a partition of the frozen one's before it woke."""
    spans = _spans(held)
    wrong = []
    frozen: dict[str, int] = {}
    for fault in faults:
        if fault.what == "SIGSTOP":
            frozen[fault.whom] = fault.at_ms
        elif fault.what == "SIGCONT":
            since_ms = frozen.pop(fault.whom)
            taken = [
                place
                for place, given in spans.items()
                for (_, before), (at_ms, after) in pairwise(given)
                if before == fault.whom != after and since_ms < at_ms < fault.at_ms
            ]
            if not taken:
                wrong.append(f"{fault.whom} was frozen at {since_ms}, and lost nothing by it")
    return wrong


def _spans(held: Iterable[Held]) -> dict[tuple[str, int], list[tuple[int, str]]]:
    """By topic and partition: since when which worker had it, without those who were given it again."""
    spans: dict[tuple[str, int], list[tuple[int, str]]] = defaultdict(list)
    for one in sorted(held, key=lambda one: one.at_ms):
        given = spans[one.topic, one.partition]
        if not given or given[-1][1] != one.worker:
            given.append((one.at_ms, one.worker))
    return spans
