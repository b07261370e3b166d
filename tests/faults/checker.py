"""The checker: one pure function over a history. It knows nothing of how the system works, only what was promised."""

from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping
from itertools import pairwise

import msgspec

from tests.faults.history import ACTIONS_GROUP, ALERTS_GROUP, Committed, Decided, History

SHOWN = 5
"""So many violations of a kind are described; all are counted."""

UNKNOWN = "unknown"
"""State of an effect whose call broke off."""

ZEROS = ("lost", "effects_twice", "effects_missing", "early_commits", "conflicting", "set_back", "unfinished")
"""Counts that must be 0, whatever the fault."""

REPORTED = ("failed", "unknown", "withheld")
"""Ends of an effect about which a person is asked."""


class Verdict(msgspec.Struct, kw_only=True):
    """What a history comes to.

    lost: alerts without a standing decision. effects_twice: effects applied more than once at the sink.
    effects_missing: effects of standing decisions that the sink never applied, but for those that are on record as not
    completed and put before a person: effects_to_a_person. early_commits: alerts (or decisions) that
    a commit had passed, or marked as done, before their end was in the log. conflicting: alerts with effects of another
    decision than the standing one. set_back: commits behind an earlier one. unfinished: partitions whose lag never came
    to 0. repeated: model calls beyond one an alert; in_flight: model calls that were under way when work was broken off.
    attempts, applied: what the sink was asked for, and what it did. two_owners: partitions that two workers held at once.
    commit_p50_s, commit_p99_s: how long after its decision an alert was committed, of all that were; None of none.
    recovery_s: from the last fault, or the last alert where that came later, to lag 0; None where it never came.
    """

    alerts: int
    kills: int
    lost: int
    effects_twice: int
    effects_missing: int
    effects_to_a_person: int
    early_commits: int
    conflicting: int
    set_back: int
    unfinished: int
    repeated: int
    in_flight: int
    attempts: int
    applied: int
    two_owners: int
    fallbacks: dict[str, int]
    commit_p50_s: float | None
    commit_p99_s: float | None
    recovery_s: float | None
    problems: tuple[str, ...]

    @property
    def zeros_hold(self) -> bool:
        return all(getattr(self, name) == 0 for name in ZEROS)


def check(history: History) -> Verdict:
    """Counts every violation of the promises, and describes the first of each kind."""
    standing = standing_decisions(history)
    missing, to_a_person = _effects_missing(history, standing)
    found = {
        "lost": list(_lost(history, standing)),
        "effects_twice": list(_effects_twice(history)),
        "effects_missing": missing,
        "early_commits": [*_early_alerts(history, standing), *_early_decisions(history, standing)],
        "conflicting": list(_conflicting(history, standing)),
        "set_back": list(_set_back(history)),
        "two_owners": list(_two_owners(history)),
    }
    reached, unfinished = _lag_zero(history)
    found["unfinished"] = unfinished
    asked = Counter(call.alert_id for call in history.calls)
    delays = _commit_delays(history, standing)
    last = max([*(fault.at_ms for fault in history.faults), *(one.at_ms for one in history.published)], default=0)
    return Verdict(
        alerts=len(history.published),
        kills=sum(fault.breaks for fault in history.faults),
        effects_to_a_person=to_a_person,
        repeated=sum(number - 1 for number in asked.values()),
        in_flight=_in_flight(history),
        attempts=len(history.posts),
        applied=sum(post.applied for post in history.posts),
        fallbacks=dict(Counter(code for one in standing.values() if one.is_fallback for code in one.codes[:1])),
        commit_p50_s=_rank(delays, 50),
        commit_p99_s=_rank(delays, 99),
        recovery_s=None if unfinished else max(0, reached - last) / 1000,
        problems=tuple(f"{kind}: {text}" for kind, texts in found.items() for text in texts[:SHOWN]),
        **{kind: len(texts) for kind, texts in found.items()},
    )


def standing_decisions(history: History) -> dict[str, Decided]:
    """The first live decision of each published alert, in the order of the log."""
    published = {one.alert_id for one in history.published}
    standing: dict[str, Decided] = {}
    for decision in sorted(history.decisions, key=lambda one: (one.partition, one.offset)):
        if decision.mode == "live" and decision.alert_id in published:
            standing.setdefault(decision.alert_id, decision)
    return standing


def _lost(history: History, standing: Mapping[str, Decided]) -> Iterator[str]:
    for one in history.published:
        if one.alert_id not in standing:
            where = "is a dead letter" if one.alert_id in history.dead else "has no decision"
            yield f"{one.alert_id} ({one.partition}/{one.offset}) {where}"


def _effects_twice(history: History) -> Iterator[str]:
    """One key applied twice, or one effect of an alert applied under two keys."""
    applied: dict[tuple[str, str], list[str]] = defaultdict(list)
    for post in history.posts:
        if post.applied:
            applied[post.alert_id, post.effect].append(post.key)
    for (alert_id, effect), keys in applied.items():
        if len(keys) > 1:
            yield f"{effect} of {alert_id} applied {len(keys)} times, under {sorted(set(keys))}"


def _effects_missing(history: History, standing: Mapping[str, Decided]) -> tuple[list[str], int]:
    """What was neither applied nor put before a person; and how many were put before one."""
    applied = {(post.alert_id, post.effect) for post in history.posts if post.applied}
    states = {entry.alert_id: entry.states for entry in history.effects if entry.ended}
    asked, missing, to_a_person = set(history.asked), [], 0
    for alert_id, decision in standing.items():
        for effect in history.posting.get(decision.action, ()):
            if (alert_id, effect) in applied:
                continue
            state = states.get(alert_id, {}).get(effect, "open")
            if state in REPORTED and any(key.endswith(f":{effect}:{alert_id}") for key in asked):
                to_a_person += 1
            else:
                missing.append(f"{effect} of {alert_id} was never applied; on record it is {state}")
    return missing, to_a_person


def _conflicting(history: History, standing: Mapping[str, Decided]) -> Iterator[str]:
    """Effects of an alert that are not those of its standing decision, at the sink or on record."""
    wrong: dict[str, str] = {}
    for post in history.posts:
        decision = standing.get(post.alert_id)
        if not post.applied:
            continue
        if decision is None:
            wrong.setdefault(post.alert_id, f"{post.effect} of {post.alert_id}, of which no decision stands")
        elif post.effect not in history.posting.get(decision.action, ()) or post.reason != decision.reason:
            wrong.setdefault(
                post.alert_id,
                f"{post.effect} of {post.alert_id} says {post.reason!r}; {decision.action}, {decision.reason!r} stands",
            )
    for entry in history.effects:
        decision = standing.get(entry.alert_id)
        if decision is not None and entry.decision_offset != decision.offset:
            wrong.setdefault(
                entry.alert_id,
                f"{entry.alert_id}: effects of the decision at {entry.decision_offset}; that at {decision.offset} stands",
            )
    yield from wrong.values()


def _early_alerts(history: History, standing: Mapping[str, Decided]) -> Iterator[str]:
    ends = {
        (one.partition, one.offset): standing[one.alert_id].at_ms
        if one.alert_id in standing
        else history.dead.get(one.alert_id)
        for one in history.published
    }
    yield from _early(ALERTS_GROUP, history.commits, ends)


def _early_decisions(history: History, standing: Mapping[str, Decided]) -> Iterator[str]:
    """A decision that stands is at its end when all its effects are; any other one from the beginning."""
    ended: dict[tuple[int, int], int] = {}
    for entry in history.effects:
        if entry.ended:
            place = (entry.partition, entry.decision_offset)
            ended[place] = min(ended.get(place, entry.at_ms), entry.at_ms)
    ends: dict[tuple[int, int], int | None] = {}
    for decision in history.decisions:
        if standing.get(decision.alert_id) is decision:
            ends[decision.partition, decision.offset] = ended.get((decision.partition, decision.offset))
    yield from _early(ACTIONS_GROUP, history.commits, ends)


def _early(group: str, commits: Iterable[Committed], ends: Mapping[tuple[int, int], int | None]) -> Iterator[str]:
    """ends: when each record was at its end; None where it never was."""
    for (partition, offset), at_ms in _covered(group, commits, ends).items():
        end_ms = ends[partition, offset]
        if end_ms is None or end_ms > at_ms:
            yield f"{group} {partition}/{offset} committed at {at_ms}, at its end at {end_ms}"


def _covered(
    group: str, commits: Iterable[Committed], places: Collection[tuple[int, int]]
) -> dict[tuple[int, int], int]:
    """When each of these places was first covered by a commit: passed, or recorded as done beyond it."""
    offsets: dict[int, list[int]] = defaultdict(list)
    for partition, offset in sorted(places):
        offsets[partition].append(offset)
    passed: dict[int, int] = defaultdict(int)
    covered: dict[tuple[int, int], int] = {}
    for commit in sorted(commits, key=lambda one: one.at_ms):
        if commit.group != group:
            continue
        known, now = offsets[commit.partition], list(commit.done_beyond())
        while passed[commit.partition] < len(known) and known[passed[commit.partition]] < commit.offset:
            now.append(known[passed[commit.partition]])
            passed[commit.partition] += 1
        for offset in now:
            if (commit.partition, offset) in places:
                covered.setdefault((commit.partition, offset), commit.at_ms)
    return covered


def _commit_delays(history: History, standing: Mapping[str, Decided]) -> list[int]:
    """ms from decisions to the first commit that covers them, in order."""
    decided = {
        (one.partition, one.offset): standing[one.alert_id].at_ms
        for one in history.published
        if one.alert_id in standing
    }
    covered = _covered(ALERTS_GROUP, history.commits, decided)
    return sorted(max(0, at_ms - decided[place]) for place, at_ms in covered.items())


def _rank(ordered_ms: list[int], percent: int) -> float | None:
    """By nearest rank, in seconds."""
    return ordered_ms[-(-len(ordered_ms) * percent // 100) - 1] / 1000 if ordered_ms else None


def _set_back(history: History) -> Iterator[str]:
    highest: dict[tuple[str, int], int] = {}
    for commit in sorted(history.commits, key=lambda one: one.at_ms):
        place = commit.group, commit.partition
        if commit.offset < highest.get(place, 0):
            yield f"{commit.group} {commit.partition}: committed {commit.offset} after {highest[place]}"
        highest[place] = max(highest.get(place, 0), commit.offset)


def _lag_zero(history: History) -> tuple[int, list[str]]:
    """When the last partition's lag was 0, and the partitions where it never came to that."""
    ends: dict[tuple[str, int], int] = {}
    for kind, records in ((ALERTS_GROUP, history.published), (ACTIONS_GROUP, history.decisions)):
        for record in records:
            place = kind, record.partition
            ends[place] = max(ends.get(place, 0), record.offset + 1)
    reached: dict[tuple[str, int], int] = {}
    for commit in history.commits:
        place = commit.group, commit.partition
        if commit.offset >= ends.get(place, commit.offset + 1):
            reached[place] = min(reached.get(place, commit.at_ms), commit.at_ms)
    unfinished = [f"{kind} {partition}: not committed to its end" for kind, partition in ends.keys() - reached.keys()]
    return max(reached.values(), default=0), unfinished


def _in_flight(history: History) -> int:
    """Model calls that were begun and not answered at each moment when work was broken off, together."""
    moments = [fault.at_ms for fault in history.faults if fault.breaks]
    return sum(
        call.start_ms <= moment and (not call.end_ms or call.end_ms >= moment)
        for moment in moments
        for call in history.calls
        if call.start_ms > moment - LONGEST_CALL_MS
    )


LONGEST_CALL_MS = 20_000
"""An agent's deadline: no call is under way for longer."""


def _two_owners(history: History) -> Iterator[str]:
    """An owner that died gave its partition up when it died."""
    deaths: dict[str, int] = {}
    for fault in history.faults:
        deaths[fault.whom] = max(deaths.get(fault.whom, 0), fault.at_ms)
    by_partition: dict[int, list[tuple[int, int, str]]] = defaultdict(list)
    for one in history.owned:
        end_ms = one.end_ms or deaths.get(one.worker, 0)
        by_partition[one.partition].append((one.start_ms, end_ms, one.worker))
    for partition, spans in sorted(by_partition.items()):
        for (_, end_ms, before), (start_ms, _, after) in pairwise(sorted(spans)):
            if before != after and (not end_ms or start_ms < end_ms):
                yield f"partition {partition}: {after} held it from {start_ms}, {before} to {end_ms or 'the end'}"
