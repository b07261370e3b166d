"""The checker: one pure function over a history. It knows nothing of how the system works, only what was promised."""

import signal
from bisect import bisect_right
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping
from itertools import pairwise

import msgspec

from tests.faults.history import (
    ACTIONS_GROUP,
    ALERTS_GROUP,
    Accepted,
    Committed,
    Decided,
    Ended,
    Held,
    History,
    Published,
    Raw,
)
from tests.faults.repeats import Owners, repeats

SHOWN = 5
"""So many violations of a kind are described; all are counted."""

GRANULARITY_MS = 1
"""Clocks are read in whole milliseconds."""

ZEROS = (
    "lost",
    "dead_and_decided",
    "dead_missing",
    "effects_twice",
    "effects_missing",
    "effects_early",
    "early_commits",
    "conflicting",
    "set_back",
    "late_commits",
    "out_of_order",
    "unfinished",
    "workers_died",
)
"""Counts that must be 0, whatever the fault."""

TOPICS = {ALERTS_GROUP: "processed.alerts", ACTIONS_GROUP: "agent.decisions"}
"""What each group reads."""

REPORTED = ("failed", "unknown", "withheld")
"""Ends of an effect about which a person is asked."""


class Verdict(msgspec.Struct, kw_only=True):
    """What a history comes to.

    lost: alerts without a standing decision. dead_and_decided: alerts that have one and are a dead letter too.
    dead_missing: records that cannot be decoded, without a dead letter that has their bytes. dead_again: dead letters of
    those beyond one each, as there are after a worker that died before its commit. decided_again: live decisions beyond one
    an alert.
    effects_twice: effects applied more than once at the sink, or put before a person under more than one id.
    effects_missing: effects of standing decisions that were never made, but for those that are on record as not
    completed and put before a person: effects_to_a_person. effects_early: effects made before their decision was in the
    log. early_commits: alerts (or decisions) that
    a commit had passed, or marked as done, before their end was in the log. conflicting: alerts with effects of another
    decision than the standing one. set_back: commits behind an earlier one. late_commits: commits that were accepted of
    a worker when its partition was already another's. out_of_order: alerts whose call was begun before the one in front of
    them, of the same key and under the same owner, had come to its end. unfinished: partitions whose lag never came to 0. workers_died:
    workers that ended though nobody had ended them, or not as they should.
    repeated: model calls beyond one an alert; in_flight: alerts whose call was begun by a worker to which something was
    done, and whose decision was not yet in the log then; in_flight_moved: those of partitions that were taken away, whose
    handlers outlasted the drain; repeats_unexplained: repeated calls of none of these,
    as a frozen worker makes them that wakes and does not know yet what it has lost.
    attempts, applied: what the sink was asked for, and what it did. two_owners: partitions that two workers held at once.
    commit_p50_s, commit_p99_s: how long after its decision an alert was committed, of all that were committed; None where none was.
    commit_p99_undisturbed_s: the same of alerts to whose owner nothing was done in between. sample_gap_s: the longest time
    without a look at what is committed.
    recovery_s: from the last fault, or the last alert where that came later, to lag 0; None where it never came.
    """

    alerts: int
    kills: int
    lost: int
    dead_and_decided: int
    dead_missing: int
    dead_again: int
    decided_again: int
    effects_twice: int
    effects_missing: int
    effects_early: int
    effects_to_a_person: int
    early_commits: int
    conflicting: int
    set_back: int
    late_commits: int
    out_of_order: int
    unfinished: int
    workers_died: int
    repeated: int
    in_flight: int
    in_flight_moved: int
    repeats_unexplained: int
    attempts: int
    applied: int
    two_owners: int
    fallbacks: dict[str, int]
    commit_p50_s: float | None
    commit_p99_s: float | None
    commit_p99_undisturbed_s: float | None
    sample_gap_s: float
    recovery_s: float | None
    problems: tuple[str, ...]

    @property
    def zeros_hold(self) -> bool:
        return all(getattr(self, name) == 0 for name in ZEROS)


def check(history: History) -> Verdict:
    """Counts every violation of the promises, and describes the first of each kind."""
    standing = standing_decisions(history)
    missing, to_a_person = _effects_missing(history, standing)
    again = repeats(history, standing)
    found = {
        "lost": list(_lost(history, standing)),
        "dead_and_decided": [f"{alert_id} is a dead letter" for alert_id in standing.keys() & history.dead.keys()],
        "dead_missing": list(_dead_missing(history)),
        "dead_again": list(_dead_again(history)),
        "decided_again": list(_decided_again(history, standing)),
        "effects_twice": [*_effects_twice(history), *_reviews_twice(history)],
        "effects_missing": missing,
        "effects_early": list(_effects_early(history, standing)),
        "early_commits": [*_early_alerts(history, standing), *_early_decisions(history, standing)],
        "conflicting": list(_conflicting(history, standing)),
        "set_back": list(set_back(history.commits)),
        "late_commits": list(late_commits(history.held, history.accepted)),
        "out_of_order": list(_out_of_order(history, standing)),
        "workers_died": list(_workers_died(history.ended)),
        "repeats_unexplained": again.unexplained,
        "two_owners": list(_two_owners(history)),
    }
    reached, unfinished = _lag_zero(history)
    found["unfinished"] = unfinished
    asked = Counter(call.alert_id for call in history.calls)
    delays = _commit_delays(history, standing)
    undisturbed = sorted(delay_ms for delay_ms, is_disturbed in delays if not is_disturbed)
    every = sorted(delay_ms for delay_ms, _ in delays)
    last = max([*(fault.at_ms for fault in history.faults), *(one.at_ms for one in history.published)], default=0)
    return Verdict(
        alerts=len(history.published),
        kills=sum(fault.breaks for fault in history.faults),
        effects_to_a_person=to_a_person,
        repeated=sum(number - 1 for number in asked.values()),
        in_flight=again.in_flight,
        in_flight_moved=again.moved,
        attempts=len(history.posts),
        applied=sum(post.applied for post in history.posts),
        fallbacks=dict(Counter(code for one in standing.values() if one.is_fallback for code in one.codes[:1])),
        commit_p50_s=_rank(every, 50),
        commit_p99_s=_rank(every, 99),
        commit_p99_undisturbed_s=_rank(undisturbed, 99),
        sample_gap_s=history.sample_gap_ms / 1000,
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


def _dead_missing(history: History) -> Iterator[str]:
    buried = {(letter.partition, letter.offset, letter.value) for letter in history.letters}
    for one in history.undecodable:
        if (one.partition, one.offset, one.value) not in buried:
            yield f"{one.partition}/{one.offset} has no dead letter with its bytes"


def _dead_again(history: History) -> Iterator[str]:
    seen: set[tuple[int, int]] = set()
    for letter in history.letters:
        if (letter.partition, letter.offset) in seen:
            yield f"{letter.partition}/{letter.offset} is a dead letter once more"
        seen.add((letter.partition, letter.offset))


def _decided_again(history: History, standing: Mapping[str, Decided]) -> Iterator[str]:
    for decision in history.decisions:
        first = standing.get(decision.alert_id)
        if first is not None and decision is not first and decision.mode == "live":
            yield f"{decision.alert_id} is decided at {first.offset} and at {decision.offset}"


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
    """What was neither made nor put before a person as not completed; and how many were put before one so."""
    applied = {(post.alert_id, post.effect) for post in history.posts if post.applied}
    reviewed = {request.alert_id for request in history.reviews}
    states = {entry.alert_id: entry.states for entry in history.effects if entry.ended}
    asked, missing, to_a_person = set(history.asked), [], 0
    for alert_id, decision in standing.items():
        reviewing = history.reviewing.get(decision.action, ())
        for effect in (*history.posting.get(decision.action, ()), *reviewing):
            if (alert_id, effect) in applied or (effect in reviewing and alert_id in reviewed):
                continue
            state = states.get(alert_id, {}).get(effect, "open")
            if state in REPORTED and any(key.endswith(f":{effect}:{alert_id}") for key in asked):
                to_a_person += 1
            else:
                missing.append(f"{effect} of {alert_id} was never made; on record it is {state}")
    return missing, to_a_person


def _reviews_twice(history: History) -> Iterator[str]:
    """The same request may be written again; under another id it is another one, and two people decide."""
    ids: dict[str, set[str]] = defaultdict(set)
    for request in history.reviews:
        ids[request.alert_id].add(request.review_id)
    for alert_id, known in ids.items():
        if len(known) > 1:
            yield f"{alert_id} is put before a person under {sorted(known)}"


def _effects_early(history: History, standing: Mapping[str, Decided]) -> Iterator[str]:
    """The broker stamps a decision when it appends it; the sink is of the same machine and looks at the same clock."""
    made = [(post.alert_id, post.effect, post.at_ms) for post in history.posts if post.applied]
    made += [(request.alert_id, "review", request.at_ms) for request in history.reviews]
    for alert_id, effect, at_ms in made:
        decision = standing.get(alert_id)
        if decision is not None and at_ms < decision.at_ms - GRANULARITY_MS:
            yield f"{effect} of {alert_id} made at {at_ms}, decided at {decision.at_ms}"


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
    for request in history.reviews:
        decision = standing.get(request.alert_id)
        if decision is None or decision.action not in history.reviewing or request.decision_offset != decision.offset:
            wrong.setdefault(
                request.alert_id,
                f"{request.alert_id} is put before a person by the decision at {request.decision_offset}",
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
    ends |= {(one.partition, one.offset): None for one in history.undecodable}
    for letter in sorted(history.letters, key=lambda one: one.at_ms, reverse=True):
        ends[letter.partition, letter.offset] = letter.at_ms
    yield from _early(ALERTS_GROUP, _commits(history, ALERTS_GROUP), ends)


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
    yield from _early(ACTIONS_GROUP, _commits(history, ACTIONS_GROUP), ends)


def _commits(history: History, group: str) -> list[Committed]:
    """As found, and as sent: what is committed before its time may be in time when it is found."""
    sent = [one for one in history.accepted if TOPICS[group] == one.topic]
    return [*history.commits, *(Committed(group, one.partition, one.offset, one.metadata, one.at_ms) for one in sent)]


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


def _commit_delays(history: History, standing: Mapping[str, Decided]) -> list[tuple[int, bool]]:
    """ms from decisions to the first commit that covers them, and whether something was done to the owner in between."""
    decided = {
        (one.partition, one.offset): max(standing[one.alert_id].at_ms, one.at_ms)  # it may be published again later
        for one in history.published
        if one.alert_id in standing
    }
    covered = _covered(ALERTS_GROUP, history.commits, decided)
    owners, delays = Owners(history), []
    for (partition, offset), at_ms in covered.items():
        decided_ms = decided[partition, offset]
        held = owners.at(partition, decided_ms)
        fault_ms = owners.fault_after(held, decided_ms) if held is not None else None
        delays.append((max(0, at_ms - decided_ms), fault_ms is not None and fault_ms <= at_ms))
    return delays


def _rank(ordered_ms: list[int], percent: int) -> float | None:
    """By nearest rank, in seconds."""
    return ordered_ms[-(-len(ordered_ms) * percent // 100) - 1] / 1000 if ordered_ms else None


def set_back(commits: Iterable[Committed]) -> Iterator[str]:
    highest: dict[tuple[str, int], int] = {}
    for commit in sorted(commits, key=lambda one: one.at_ms):
        place = commit.group, commit.partition
        if commit.offset < highest.get(place, 0):
            yield f"{commit.group} {commit.partition}: committed {commit.offset} after {highest[place]}"
        highest[place] = max(highest.get(place, 0), commit.offset)


def _lag_zero(history: History) -> tuple[int, list[str]]:
    """When the last partition's lag was 0, and the partitions where it never came to that."""
    ends: dict[tuple[str, int], int] = {}
    written: list[tuple[str, Published | Raw | Decided]] = [(ALERTS_GROUP, one) for one in history.published]
    written += [(ALERTS_GROUP, one) for one in history.undecodable]
    written += [(ACTIONS_GROUP, one) for one in history.decisions]
    for kind, record in written:
        place = kind, record.partition
        ends[place] = max(ends.get(place, 0), record.offset + 1)
    reached: dict[tuple[str, int], int] = {}
    for commit in history.commits:
        place = commit.group, commit.partition
        if commit.offset >= ends.get(place, commit.offset + 1):
            reached[place] = min(reached.get(place, commit.at_ms), commit.at_ms)
    unfinished = [f"{kind} {partition}: not committed to its end" for kind, partition in ends.keys() - reached.keys()]
    return max(reached.values(), default=0), unfinished


def late_commits(held: Iterable[Held], accepted: Iterable[Accepted]) -> Iterator[str]:
    """Who is given a partition is not given it before the broker has taken it from whoever had it."""
    given: dict[tuple[str, int], list[Held]] = defaultdict(list)
    for one in sorted(held, key=lambda one: one.at_ms):
        given[one.topic, one.partition].append(one)
    for commit in accepted:
        known = given[commit.topic, commit.partition]
        index = bisect_right(known, commit.at_ms, key=lambda one: one.at_ms)
        if index and known[index - 1].worker != commit.worker:
            owner = known[index - 1]
            yield (
                f"{commit.topic}/{commit.partition}: {commit.worker} committed {commit.offset} at {commit.at_ms}; "
                f"{owner.worker} was given it at {owner.at_ms}"
            )


def _workers_died(ended: Iterable[Ended]) -> Iterator[str]:
    for one in ended:
        due = {"kill": -signal.SIGKILL, "SIGTERM": 0}.get(one.told)
        if one.code is not None and one.code != due:
            yield f"{one.worker} ended with {one.code} after {one.told or 'nothing was done to it'}: see {one.log}"


def _out_of_order(history: History, standing: Mapping[str, Decided]) -> Iterator[str]:
    called: dict[str, list[int]] = defaultdict(list)
    for call in history.calls:
        called[call.alert_id].append(call.start_ms)
    lanes: dict[tuple[int, str], dict[str, int]] = defaultdict(dict)
    for one in history.published:
        lanes[one.partition, key_of(one.alert_id)].setdefault(one.alert_id, one.offset)
    spans = _spans(history)
    for (partition, _), offsets in lanes.items():
        ordered = sorted(offsets, key=lambda alert_id: offsets[alert_id])
        for start_ms, end_ms, worker in spans[partition] if len(ordered) > 1 else ():
            begun = [
                (min(within), alert_id)
                for alert_id in ordered
                if (within := [at for at in called[alert_id] if start_ms <= at and (not end_ms or at <= end_ms)])
            ]
            for (_, before), (at_ms, after) in pairwise(begun):
                ended_ms = standing[before].at_ms if before in standing else history.dead.get(before)
                if ended_ms is None or at_ms < ended_ms - GRANULARITY_MS:
                    yield f"{after} was begun by {worker} at {at_ms}, {before} in front of it ended at {ended_ms}"


def key_of(alert_id: str) -> str:
    """Whose alert it is: `type:key:natural id`."""
    return alert_id.split(":")[1] if alert_id.count(":") > 1 else alert_id


def _two_owners(history: History) -> Iterator[str]:
    for partition, spans in sorted(_spans(history).items()):
        for (_, end_ms, before), (start_ms, _, after) in pairwise(spans):
            if before != after and (not end_ms or start_ms < end_ms):
                yield f"partition {partition}: {after} held it from {start_ms}, {before} to {end_ms or 'the end'}"


def _spans(history: History) -> dict[int, list[tuple[int, int, str]]]:
    """By partition of the alerts: from when to when who held it, ms; 0 for to the end. An owner that died gave it up then."""
    deaths: dict[str, int] = {}
    for fault in history.faults:
        if fault.is_death:
            deaths[fault.whom] = max(deaths.get(fault.whom, 0), fault.at_ms)
    spans: dict[int, list[tuple[int, int, str]]] = defaultdict(list)
    for one in history.owned:
        spans[one.partition].append((one.start_ms, one.end_ms or deaths.get(one.worker, 0), one.worker))
    return defaultdict(list, {partition: sorted(found) for partition, found in spans.items()})
