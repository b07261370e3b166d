"""Policy raises freely and lowers only within its limits."""

import itertools

import pytest

from app.decisions.decision import Reason, review
from app.decisions.policy import Policy, change_between, concerns_about, judge
from app.serving.base import Features, Freshness, OwnEvent
from tests.decisions_kit import OrderDecision, large_order

ACTIONS = ("approve", "review", "block")
PAIRS = list(itertools.product(ACTIONS, ACTIONS))
CONCERNS = (Reason.FEATURES_STALE, Reason.FEATURES_MISSING, Reason.OWN_EVENT_NOT_SEEN, Reason.OWN_EVENT_LATE)


def decided(action: str) -> OrderDecision:
    return OrderDecision(action=action, risk_level="MEDIUM", reason="r")  # type: ignore[arg-type]


def wants(action: str) -> Policy:
    return Policy(rules=(lambda alert, decision: action,))


def features(freshness: Freshness, own_event: OwnEvent) -> Features:
    return Features(
        view="v", entity="u", values={}, window_end_ms=0, as_of_ms=0, age_ms=0, freshness=freshness, own_event=own_event
    )


@pytest.mark.parametrize(("answered", "wanted"), PAIRS)
def test_judge_rule_without_limits_only_raises(answered: str, wanted: str) -> None:
    """Of every pair the more severe action stands when no lowering is declared."""
    judged = judge(wants(wanted), large_order(), decided(answered), (), review)
    severities = OrderDecision.severities
    assert max(severities[answered], severities[wanted]) is judged.decision.severity


@pytest.mark.parametrize(("answered", "wanted"), PAIRS)
@pytest.mark.parametrize("limit", PAIRS)
def test_judge_rule_lowers_only_declared_pair(answered: str, wanted: str, limit: tuple[str, str]) -> None:
    """A milder action stands exactly when its pair is declared."""
    policy = Policy(rules=wants(wanted).rules, may_lower=frozenset({limit}))
    judged = judge(policy, large_order(), decided(answered), (), review)
    lowers = OrderDecision.severities[wanted] < OrderDecision.severities[answered]
    expected = wanted if not lowers or limit == (answered, wanted) else answered
    assert expected == judged.decision.action


@pytest.mark.parametrize(("answered", "concern"), list(itertools.product(ACTIONS, CONCERNS)))
def test_judge_concern_raises_to_fallback(answered: str, concern: Reason) -> None:
    """With a concern nothing milder than the fallback stands, and the concern is a reason."""
    judged = judge(Policy(), large_order(), decided(answered), (concern,), review)
    assert ("review" if answered == "approve" else answered) == judged.decision.action
    assert (concern.value,) == judged.reasons


@pytest.mark.parametrize("concern", CONCERNS)
def test_judge_tolerated_concern_changes_nothing(concern: Reason) -> None:
    """An agent may declare that a concern does not matter to it."""
    judged = judge(Policy(tolerates=frozenset({concern})), large_order(), decided("approve"), (concern,), review)
    assert ("approve", ()) == (judged.decision.action, judged.reasons)


def test_judge_with_concern_lowers_nothing() -> None:
    """On unfit evidence not even a declared lowering is made."""
    policy = Policy(rules=wants("approve").rules, may_lower=frozenset({("block", "approve")}))
    judged = judge(policy, large_order(), decided("block"), (Reason.FEATURES_STALE,), review)
    assert "block" == judged.decision.action


def test_judge_fallback_decision_is_never_lowered() -> None:
    """A declared lowering is for answers; what a failure decided stays."""
    policy = Policy(rules=wants("approve").rules, may_lower=frozenset({("review", "approve")}))
    judged = judge(policy, large_order(), decided("review"), (), review, may_lower=False)
    assert "review" == judged.decision.action


def test_judge_second_rule_does_not_undo_first() -> None:
    """What one rule has raised, another does not lower, not even within the limits."""
    rules = (lambda alert, decision: "block", lambda alert, decision: "approve")
    policy = Policy(rules=rules, may_lower=frozenset({("review", "approve")}))
    judged = judge(policy, large_order(), decided("review"), (), review)
    assert "block" == judged.decision.action


def test_judge_raising_rule_counts_as_concern() -> None:
    """A rule that breaks never lets an approval through."""

    def broken(alert: object, decision: OrderDecision) -> str:
        raise KeyError("user")

    judged = judge(Policy(rules=(broken,)), large_order(), decided("approve"), (), review)
    assert ("review", ("policy_failed",)) == (judged.decision.action, judged.reasons)


def test_judge_rule_naming_no_action_counts_as_concern() -> None:
    """A rule that wants an action that does not exist is broken."""
    judged = judge(wants("explode"), large_order(), decided("approve"), (), review)
    assert ("review", ("policy_failed",)) == (judged.decision.action, judged.reasons)


def test_judge_concern_without_fallback_makes_approval_unsafe() -> None:
    """Where there is nothing to raise to, the approval is called unsafe, and a block stands."""
    approved = judge(Policy(), large_order(), decided("approve"), (Reason.FEATURES_STALE,), None)
    blocked = judge(Policy(), large_order(), decided("block"), (Reason.FEATURES_STALE,), None)
    assert (True, False) == (approved.unsafe, blocked.unsafe)


def test_concerns_about_names_each_once() -> None:
    """Two stale views are one concern."""
    stale = features(Freshness.STALE, OwnEvent.NOT_SEEN)
    missing = features(Freshness.MISSING, OwnEvent.LATE)
    fine = features(Freshness.FRESH, OwnEvent.SEEN)
    expected = (Reason.FEATURES_STALE, Reason.OWN_EVENT_NOT_SEEN, Reason.FEATURES_MISSING, Reason.OWN_EVENT_LATE)
    assert expected == concerns_about([stale, stale, missing, fine])


def test_concerns_about_not_comparable_view_has_none() -> None:
    """A view that cannot show the event raises no concern by that."""
    assert () == concerns_about([features(Freshness.FRESH, OwnEvent.NOT_COMPARABLE)])


def test_change_between_says_what_and_why() -> None:
    """The record of a change holds both actions and the reasons; no change, no record."""
    answered = decided("approve")
    judged = judge(Policy(), large_order(), answered, (Reason.FEATURES_STALE,), review)
    change = change_between(answered, judged)
    assert change is not None
    assert ("approve", "review", ("features_stale",)) == (change.answered, change.action, change.reasons)
    assert change_between(answered, judge(Policy(), large_order(), answered, (), review)) is None
