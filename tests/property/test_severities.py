"""Every pair of severities, with every rule, limit, concern and switch: what stands is never milder than was allowed."""

import itertools
from typing import Any

import pytest

from app.decisions.decision import Fallback, Reason, Severity
from app.decisions.policy import Policy, judge
from tests.decisions_kit import OrderDecision, large_order

ACTIONS = ("approve", "review", "block")
RANK = OrderDecision.severities
FALLBACKS = (None, Fallback("review"), Fallback("block"))
WANTED = (None, *ACTIONS, "raises", "unheard of")
LOWERINGS = (
    frozenset[tuple[str, str]](),
    frozenset({("block", "review")}),
    frozenset({("review", "approve")}),
    frozenset({("block", "review"), ("block", "approve"), ("review", "approve")}),
)
BARRED = [frozenset(some) for count in range(4) for some in itertools.combinations(ACTIONS, count)]
CASES = list(itertools.product(ACTIONS, FALLBACKS, WANTED, LOWERINGS, (False, True), (False, True)))


def rule_wanting(wanted: str | None) -> Any:
    def rule(alert: object, decision: object) -> str | None:
        if wanted == "raises":
            raise ValueError("broken rule")
        return wanted

    return rule


def judged_with(
    answered: str,
    fallback: Fallback | None,
    wanted: str | None,
    lowerings: frozenset[tuple[str, str]],
    concern: bool,
    is_answer: bool,
    barred: frozenset[str],
    reason: Reason,
) -> tuple[str, bool, tuple[str, ...]]:
    """Action, whether it may not stand, and the reasons."""
    judged = judge(
        Policy(rules=(rule_wanting(wanted),), may_lower=lowerings),
        large_order(),
        OrderDecision(action=answered, risk_level="LOW", reason="r"),  # type: ignore[arg-type]
        (Reason.FEATURES_STALE,) if concern else (),
        fallback,
        may_lower=is_answer,
        barred=lambda action: reason if action in barred else None,
    )
    return judged.decision.action, judged.unsafe, judged.reasons


def test_severities_are_a_strict_order_of_integers() -> None:
    """Of every pair of actions one is more severe, and the names say nothing about which."""
    assert all(isinstance(severity, int) for severity in Severity)
    assert list(ACTIONS) == sorted(ACTIONS, key=RANK.__getitem__)
    assert list(ACTIONS) != sorted(ACTIONS)
    for one, other in itertools.product(ACTIONS, ACTIONS):
        assert (RANK[one] < RANK[other]) is (ACTIONS.index(one) < ACTIONS.index(other))


@pytest.mark.parametrize("reason", [Reason.SWITCHED_OFF, Reason.LIMIT_REACHED])
def test_judge_every_combination_is_never_milder_than_allowed(reason: Reason) -> None:
    """Only a declared lowering of an answer, or an operator's or a limit's word for the fallback, makes it milder; a
    concern never ends in an approval, and what is barred never stands but as the fallback."""
    for answered, fallback, wanted, lowerings, concern, is_answer in CASES:
        for barred in BARRED:
            case = (answered, fallback, wanted, lowerings, concern, is_answer, barred, reason)
            action, unsafe, reasons = judged_with(*case)
            if unsafe:
                assert fallback is None, case
                continue  # a dead letter: nothing is decided
            is_concerned = concern or wanted in ("raises", "unheard of")
            by_fallback = reason in reasons
            assert action != "approve" or not is_concerned, case
            assert action not in barred or (fallback is not None and action == fallback.action), case
            if by_fallback:
                assert fallback is not None, case
                assert fallback.action == action, case
            elif RANK[action] < RANK[answered]:
                assert is_answer, case
                assert not is_concerned, case
                assert (answered, action) in lowerings, case
            if wanted in ACTIONS and not by_fallback and RANK[wanted] > RANK[answered]:
                assert RANK[action] >= RANK[wanted], case


def test_judge_barred_nothing_is_as_if_there_were_no_switch() -> None:
    """What is not asked for, or asked for and on, changes nothing."""
    for case in CASES:
        barred = frozenset(ACTIONS)
        action, unsafe, reasons = judged_with(*case, frozenset(), Reason.SWITCHED_OFF)
        assert Reason.SWITCHED_OFF not in reasons
        if not unsafe:
            others = barred - {action}
            assert (action, unsafe, reasons) == judged_with(*case, others, Reason.SWITCHED_OFF)


def test_judge_that_takes_the_answer_for_the_fallback_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ablation: severities compared by name would let a stale approval pass."""
    by_name = {name: sorted(ACTIONS).index(name) for name in ACTIONS}
    monkeypatch.setattr(OrderDecision, "severities", by_name)
    with pytest.raises(AssertionError):
        test_judge_every_combination_is_never_milder_than_allowed(Reason.SWITCHED_OFF)
