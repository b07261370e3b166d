"""The checker finds every violation that is planted in a history, and none in a clean one."""

from collections.abc import Callable

import msgspec
import pytest

from app.dispatch.marks import Mark, encode_marks
from tests.faults.checker import Verdict, check
from tests.faults.history import (
    ACTIONS_GROUP,
    ALERTS_GROUP,
    Accepted,
    Asked,
    Call,
    Committed,
    Decided,
    EffectEntry,
    Ended,
    Fault,
    Held,
    History,
    Owned,
    Post,
    Published,
    Raw,
)

ALERTS = 6


def decided(
    number: int, *, offset: int = -1, at_ms: int = 0, action: str = "", reason: str = "call 1", mode: str = "live"
) -> Decided:
    """The decision about an alert of the clean history: blocked where its number is even."""
    return Decided(
        alert_id=f"a-{number}",
        partition=number % 2,
        offset=offset if offset >= 0 else number // 2,
        at_ms=at_ms or 1_300 + number * 100,
        mode=mode,
        action=action or ("review" if number % 2 else "block"),
        reason=reason,
        is_fallback=False,
    )


def ended(decision: Decided, *, at_ms: int = 0) -> EffectEntry:
    states = {"block_order": "done"} if decision.action == "block" else {"queue_for_review": "done"}
    return EffectEntry(
        decision.alert_id, decision.partition, 2, at_ms or decision.at_ms + 20, decision.offset, states, ended=True
    )


def asked(decision: Decided, *, review_id: str = "") -> Asked:
    review_id = review_id or f"judge:queue_for_review:{decision.alert_id}"
    return Asked(review_id, decision.alert_id, decision.offset, decision.at_ms + 10)


def clean() -> History:
    """Six alerts on two partitions, one a tenth of a second; the worker of the third is killed, and its successor asks
    again. The other partition is another worker's."""
    decisions = [decided(number) for number in range(ALERTS)]
    calls = [Call(f"a-{number}", 1, 1_010 + number * 100, 1_290 + number * 100) for number in range(ALERTS)]
    calls[2] = Call("a-2", 1, 1_210, 0)
    calls.append(Call("a-2", 2, 1_260, 1_490))
    decisions[2] = decided(2, reason="call 2")
    posts = [
        Post(
            f"judge:block_order:a-{number}",
            "block_order",
            f"a-{number}",
            decisions[number].reason,
            1_310 + number * 100,
            True,
        )
        for number in range(0, ALERTS, 2)
    ]
    posts.append(Post("judge:block_order:a-4", "block_order", "a-4", "call 1", 1_715, applied=False))
    commits = [
        Committed(group, number % 2, number // 2 + 1, "", 1_340 + number * 100)
        for number in range(ALERTS)
        for group in (ALERTS_GROUP, ACTIONS_GROUP)
    ]
    return History(
        published=[Published(f"a-{number}", number % 2, number // 2, 1_000 + number * 100) for number in range(ALERTS)],
        calls=calls,
        decisions=decisions,
        effects=[ended(decision) for decision in decisions],
        posts=posts,
        commits=commits,
        faults=[Fault("kill -9", "worker-1", 1_250)],
        owned=[Owned("worker-1", 0, 900, 0), Owned("worker-2", 1, 900, 2_000), Owned("worker-2", 0, 1_255, 2_000)],
        posting={"block": ("block_order",)},
        reviewing={"review": ("queue_for_review",)},
        reviews=[asked(decisions[number]) for number in (1, 1, 3, 5)],
        ended=[Ended("worker-1", -9, "kill", "worker-1.log"), Ended("worker-2", 0, "SIGTERM", "worker-2.log")],
        held=[Held("worker-1", "alerts", 0, 900), Held("worker-2", "alerts", 0, 1_255)],
        accepted=[Accepted("worker-1", "alerts", 0, 1, 1_240), Accepted("worker-2", "alerts", 0, 2, 1_540)],
    )


def test_check_clean_history_nothing_found() -> None:
    """A history with a kill, a repeated call and a repeated post in which every promise was kept."""
    verdict = check(clean())
    assert ((), True) == (verdict.problems, verdict.zeros_hold)
    assert (6, 1, 1, 2, 3, 4) == (
        verdict.alerts,
        verdict.kills,
        verdict.repeated,
        verdict.in_flight,
        verdict.applied,
        verdict.attempts,
    )
    assert (0.34, 0.04, 0.04) == (verdict.recovery_s, verdict.commit_p50_s, verdict.commit_p99_s)


def lose_a_decision(history: History) -> None:
    del history.decisions[5], history.effects[5]


def shadow_in_its_place(history: History) -> None:
    history.decisions[5] = msgspec.structs.replace(history.decisions[5], mode="shadow")


def bury_an_alert(history: History) -> None:
    lose_a_decision(history)
    history.dead["a-5"] = 1_800


def send_a_commit_early(history: History) -> None:
    """Found when all was at its end."""
    history.accepted.append(Accepted("worker-2", "processed.alerts", 1, 3, 1_600))


def apply_a_key_twice(history: History) -> None:
    history.posts[-1] = msgspec.structs.replace(history.posts[-1], applied=True)


def apply_under_two_keys(history: History) -> None:
    history.posts[-1] = msgspec.structs.replace(history.posts[-1], applied=True, key="judge:block_order:other")


def apply_nothing(history: History) -> None:
    del history.posts[0]


def fail_without_a_word(history: History) -> None:
    apply_nothing(history)
    history.effects[0] = msgspec.structs.replace(history.effects[0], states={"block_order": "failed"})


def ask_about_what_is_open(history: History) -> None:
    apply_nothing(history)
    history.asked.append("judge:block_order:a-0")


def commit_before_the_decision(history: History) -> None:
    history.commits.append(Committed(ALERTS_GROUP, 0, 2, "", 1_400))


def commit_far_ahead(history: History) -> None:
    history.commits.append(Committed(ALERTS_GROUP, 1, 3, "", 1_345))


def mark_done_before_the_decision(history: History) -> None:
    metadata = encode_marks(0, {2: Mark.DONE}, is_open=True)
    history.commits.append(Committed(ALERTS_GROUP, 1, 0, metadata, 1_300))


def commit_before_the_effect(history: History) -> None:
    history.commits.append(Committed(ACTIONS_GROUP, 0, 3, "", 1_705))


def commit_what_was_never_decided(history: History) -> None:
    lose_a_decision(history)


def act_on_a_later_decision(history: History) -> None:
    history.posts[0] = msgspec.structs.replace(history.posts[0], reason="call 2")


def act_against_the_decision(history: History) -> None:
    history.posts.append(Post("judge:block_order:a-1", "block_order", "a-1", "call 1", 1_500, applied=True))


def enter_a_later_decision(history: History) -> None:
    later = decided(1, offset=7, at_ms=1_900, action="block", reason="call 2")
    history.decisions.append(later)
    history.effects.append(ended(later))
    history.commits.append(Committed(ACTIONS_GROUP, 1, 8, "", 2_000))


def set_a_commit_back(history: History) -> None:
    history.commits.append(Committed(ALERTS_GROUP, 0, 1, "", 1_900))


def leave_a_partition_behind(history: History) -> None:
    history.commits[:] = [one for one in history.commits if (one.group, one.offset) != (ALERTS_GROUP, 3)]


def leave_a_decision_behind(history: History) -> None:
    history.commits[:] = [one for one in history.commits if (one.group, one.offset) != (ACTIONS_GROUP, 3)]


def hold_a_partition_twice(history: History) -> None:
    history.owned.append(Owned("worker-3", 0, 1_800, 2_100))


def hold_on_after_sigterm(history: History) -> None:
    history.faults[0] = Fault("SIGTERM", "worker-1", 1_250, breaks=False)


def hold_on_after_being_added(history: History) -> None:
    history.faults[0] = Fault("added", "worker-1", 1_250, breaks=False)


def hold_on_while_frozen(history: History) -> None:
    history.faults[0] = Fault("SIGSTOP", "worker-1", 1_250)


def die_after_the_successor_came(history: History) -> None:
    history.faults[0] = Fault("killed at: effect posted", "worker-1", 1_260)


def bury_what_is_decided(history: History) -> None:
    history.dead["a-5"] = 1_800


def apply_before_the_decision(history: History) -> None:
    history.posts[0] = msgspec.structs.replace(history.posts[0], at_ms=1_290)


def ask_a_person_before_the_decision(history: History) -> None:
    history.reviews[0] = msgspec.structs.replace(history.reviews[0], at_ms=1_390)


def lose_a_review(history: History) -> None:
    del history.reviews[-1]


def ask_under_two_ids(history: History) -> None:
    history.reviews.append(asked(history.decisions[5], review_id="judge:queue_for_review:other"))


def ask_for_another_decision(history: History) -> None:
    history.reviews[-1] = msgspec.structs.replace(history.reviews[-1], decision_offset=7)


def ask_about_what_is_blocked(history: History) -> None:
    history.reviews.append(asked(history.decisions[4]))


def commit_what_is_another_s(history: History) -> None:
    history.accepted.append(Accepted("worker-1", "alerts", 0, 2, 1_600))


def end_by_itself(history: History) -> None:
    history.ended.append(Ended("worker-3", 1, "", "worker-3.log"))


def end_by_itself_in_order(history: History) -> None:
    history.ended.append(Ended("worker-3", 0, "", "worker-3.log"))


def end_badly_when_told(history: History) -> None:
    history.ended[1] = Ended("worker-2", 1, "SIGTERM", "worker-2.log")


def end_before_it_was_killed(history: History) -> None:
    history.ended[0] = Ended("worker-1", 1, "kill", "worker-1.log")


def repeat_what_another_worker_had_begun(history: History) -> None:
    """Its call was under way when worker-1 was killed."""
    history.calls.append(Call("a-1", 2, 1_500, 1_600))


def repeat_what_another_worker_that_held_nothing_was_killed_beside(history: History) -> None:
    """It had only begun, and its death is nobody else's."""
    history.ended.append(Ended("worker-3", -9, "kill", "worker-3.log"))
    history.faults.append(Fault("killed at: looked back", "worker-3", 1_250))
    history.calls.append(Call("a-1", 2, 1_260, 1_390))


def repeat_what_was_decided_before_the_kill(history: History) -> None:
    history.decisions[0] = decided(0, at_ms=1_240)
    history.calls.append(Call("a-0", 2, 1_500, 1_600))


def repeat_what_was_begun_after_the_kill(history: History) -> None:
    history.calls.append(Call("a-4", 2, 1_900, 1_950))


def repeat_twice_after_one_kill(history: History) -> None:
    history.calls.append(Call("a-2", 3, 1_900, 1_950))


def move_without_a_drain(history: History) -> None:
    """The call is under way, and was given no time."""
    history.owned[1] = Owned("worker-2", 1, 900, 1_395, 1_390)
    history.owned.append(Owned("worker-3", 1, 1_396, 2_000))
    history.calls.append(Call("a-1", 2, 1_500, 1_600))


def leave_bytes_unburied(history: History) -> None:
    history.undecodable.append(Raw(0, 1, 1_100, b"no alert"))


def bury_other_bytes(history: History) -> None:
    leave_bytes_unburied(history)
    history.letters.append(Raw(0, 1, 1_110, b"no aler"))


def bury_bytes_twice(history: History) -> None:
    leave_bytes_unburied(history)
    history.letters += [Raw(0, 1, 1_110, b"no alert")] * 2


def bury_bytes_after_their_commit(history: History) -> None:
    history.undecodable.append(Raw(0, 1, 1_100, b"no alert"))
    history.letters.append(Raw(0, 1, 1_990, b"no alert"))


def decide_again_what_is_published_twice(history: History) -> None:
    publish_twice(history)
    history.decisions.append(decided(1, offset=3, at_ms=1_850))


def publish_twice(history: History) -> None:
    history.published.append(Published("a-1", 1, 3, 1_800))
    history.commits += [Committed(group, 1, 4, "", 1_900) for group in (ALERTS_GROUP, ACTIONS_GROUP)]


PLANTED: tuple[tuple[Callable[[History], None], str, int], ...] = (
    (lose_a_decision, "lost", 1),
    (shadow_in_its_place, "lost", 1),
    (bury_an_alert, "lost", 1),
    (send_a_commit_early, "early_commits", 1),
    (apply_a_key_twice, "effects_twice", 1),
    (apply_under_two_keys, "effects_twice", 1),
    (apply_nothing, "effects_missing", 1),
    (fail_without_a_word, "effects_missing", 1),
    (ask_about_what_is_open, "effects_missing", 1),
    (commit_before_the_decision, "early_commits", 1),
    (commit_far_ahead, "early_commits", 3),
    (mark_done_before_the_decision, "early_commits", 1),
    (commit_before_the_effect, "early_commits", 1),
    (commit_what_was_never_decided, "early_commits", 1),
    (act_on_a_later_decision, "conflicting", 1),
    (act_against_the_decision, "conflicting", 1),
    (enter_a_later_decision, "conflicting", 1),
    (set_a_commit_back, "set_back", 1),
    (leave_a_partition_behind, "unfinished", 2),
    (leave_a_decision_behind, "unfinished", 2),
    (hold_a_partition_twice, "two_owners", 1),
    (hold_on_after_sigterm, "two_owners", 1),
    (hold_on_after_being_added, "two_owners", 1),
    (hold_on_while_frozen, "two_owners", 1),
    (die_after_the_successor_came, "two_owners", 1),
    (bury_what_is_decided, "dead_and_decided", 1),
    (apply_before_the_decision, "effects_early", 1),
    (ask_a_person_before_the_decision, "effects_early", 1),
    (lose_a_review, "effects_missing", 1),
    (ask_under_two_ids, "effects_twice", 1),
    (ask_for_another_decision, "conflicting", 1),
    (ask_about_what_is_blocked, "conflicting", 1),
    (commit_what_is_another_s, "late_commits", 1),
    (end_by_itself, "workers_died", 1),
    (end_by_itself_in_order, "workers_died", 1),
    (end_badly_when_told, "workers_died", 1),
    (end_before_it_was_killed, "workers_died", 1),
    (repeat_what_another_worker_had_begun, "repeats_unexplained", 1),
    (repeat_what_another_worker_that_held_nothing_was_killed_beside, "repeats_unexplained", 1),
    (repeat_what_was_decided_before_the_kill, "repeats_unexplained", 1),
    (repeat_what_was_begun_after_the_kill, "repeats_unexplained", 1),
    (repeat_twice_after_one_kill, "repeats_unexplained", 1),
    (move_without_a_drain, "repeats_unexplained", 1),
    (leave_bytes_unburied, "dead_missing", 1),
    (bury_other_bytes, "dead_missing", 1),
    (bury_bytes_twice, "dead_again", 1),
    (bury_bytes_after_their_commit, "early_commits", 1),
    (decide_again_what_is_published_twice, "decided_again", 1),
)


DEMANDED_BY_ROWS = ("two_owners", "repeats_unexplained", "dead_again", "decided_again")
"""Counts that are 0 only under some faults."""


@pytest.mark.parametrize(("plant", "kind", "count"), PLANTED, ids=[plant.__name__ for plant, _, _ in PLANTED])
def test_check_planted_violation_is_counted(plant: Callable[[History], None], kind: str, count: int) -> None:
    """Each violation is counted where it belongs, and described."""
    history = clean()
    plant(history)
    verdict = check(history)
    assert count == getattr(verdict, kind)
    assert any(problem.startswith(f"{kind}: ") for problem in verdict.problems)
    assert not verdict.zeros_hold or kind in DEMANDED_BY_ROWS


def test_check_alert_published_twice_and_decided_once_is_clean() -> None:
    """The second one is at its end with the decision about the first, and was not waited for since then."""
    history = clean()
    publish_twice(history)
    verdict = check(history)
    assert ((), 0.1) == (verdict.problems, verdict.commit_p99_s)


def test_check_record_that_is_no_alert_is_waited_for() -> None:
    """A partition is not at its end before what cannot be decoded has been passed, too."""
    history = clean()
    history.undecodable.append(Raw(0, 3, 1_600, b"no alert"))
    history.letters.append(Raw(0, 3, 1_610, b"no alert"))
    assert 1 == check(history).unfinished
    history.commits.append(Committed(ALERTS_GROUP, 0, 4, "", 1_990))
    assert () == check(history).problems


def test_check_effect_put_before_a_person_is_not_missing() -> None:
    """It is on record as failed, and somebody was asked: counted apart."""
    history = clean()
    fail_without_a_word(history)
    history.asked.append("judge:block_order:a-0")
    verdict = check(history)
    assert (0, 1, True) == (verdict.effects_missing, verdict.effects_to_a_person, verdict.zeros_hold)


def test_check_review_not_completed_and_reported_is_not_missing() -> None:
    """A request that could not be written as asked is one under the same id that says so."""
    history = clean()
    del history.reviews[-1]
    history.effects[5] = msgspec.structs.replace(history.effects[5], states={"queue_for_review": "withheld"})
    history.asked.append("judge:queue_for_review:a-5")
    verdict = check(history)
    assert (0, 1, True) == (verdict.effects_missing, verdict.effects_to_a_person, verdict.zeros_hold)


def test_check_repeats_count_beyond_one_call_an_alert() -> None:
    """A second and third call of an alert count; in flight at the killed worker were the two that it had begun."""
    history = clean()
    history.calls += [Call("a-0", 2, 1_500, 1_600), Call("a-0", 3, 1_700, 1_800)]
    verdict: Verdict = check(history)
    assert (3, 2, 1) == (verdict.repeated, verdict.in_flight, verdict.repeats_unexplained)


@pytest.mark.parametrize(("revoked_ms", "unexplained"), [(1_395, 0), (100, 1)])
def test_check_call_that_outlasts_the_drain_excuses_its_repeat(revoked_ms: int, unexplained: int) -> None:
    """The partition was taken away, and the call had the drain's whole time; one that began within the drain is no excuse."""
    history = clean()
    history.owned[1] = Owned("worker-2", 1, 50, 6_400, revoked_ms)
    history.owned.append(Owned("worker-3", 1, 6_401, 9_000))
    history.decisions[1] = decided(1, at_ms=7_000)
    history.calls[1] = Call("a-1", 1, 1_110, 6_900)
    history.calls.append(Call("a-1", 2, 6_500, 6_990))
    verdict = check(history)
    assert (2, 1 - unexplained, unexplained) == (verdict.repeated, verdict.in_flight_moved, verdict.repeats_unexplained)


def test_check_call_that_failed_excuses_another() -> None:
    """An agent asks again after an answer that was none."""
    history = clean()
    history.calls[1] = Call("a-1", 1, 1_110, 1_200, "overloaded")
    history.calls.append(Call("a-1", 2, 1_250, 1_390))
    verdict = check(history)
    assert (2, 0) == (verdict.repeated, verdict.repeats_unexplained)


@pytest.mark.parametrize(("is_killed", "expected"), [(False, (2.0, 2.0)), (True, (2.0, 0.04))])
def test_check_commit_delays_are_told_apart_by_what_was_done_to_the_owner(
    is_killed: bool, expected: tuple[float, float]
) -> None:
    """A commit that came two seconds after its decision, with and without a death in between."""
    history = clean()
    history.commits = [
        msgspec.structs.replace(one, at_ms=3_800) if (one.partition, one.offset) == (1, 3) else one
        for one in history.commits
    ]
    if is_killed:
        history.owned[1] = Owned("worker-2", 1, 900, 0)
        history.faults.append(Fault("kill -9", "worker-2", 1_850))
    verdict = check(history)
    assert expected == (verdict.commit_p99_s, verdict.commit_p99_undisturbed_s)


def test_check_dead_letter_ends_its_alert_for_commits() -> None:
    """A commit past a dead letter is not early, though the alert counts as lost."""
    history = clean()
    bury_an_alert(history)
    history.dead["a-5"] = 1_700
    verdict = check(history)
    assert (1, 0) == (verdict.lost, verdict.early_commits)
