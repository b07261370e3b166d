"""Decisions, their severities, and fallbacks."""

from typing import Annotated, Literal

import msgspec
import pytest

from app.decisions.decision import MAX_REASON_CHARACTERS, Decision, Fallback, RiskLevel, Severity, actions_of, review
from tests.decisions_kit import OrderDecision


def test_risk_level_critical_is_above_low() -> None:
    """As text CRITICAL would come before LOW."""
    assert [RiskLevel.LOW, RiskLevel.MEDIUM, RiskLevel.HIGH, RiskLevel.CRITICAL] == sorted(RiskLevel)


def test_decision_severity_comes_from_its_action() -> None:
    """The severity and the risk of a decision are integers that can be compared."""
    decision = OrderDecision(action="block", risk_level="CRITICAL", reason="r")
    assert (Severity.BLOCK, RiskLevel.CRITICAL) == (decision.severity, decision.risk)


def test_actions_of_literal_gives_its_names() -> None:
    """The names of a narrowed action, none of the base's plain text."""
    assert ("approve", "review", "block") == actions_of(OrderDecision)
    assert () == actions_of(Decision)


def test_fallback_makes_valid_decision_with_code() -> None:
    """A fallback's decision passes the same validation as an answer and begins with its reason code."""
    decision = review.decision(OrderDecision, "timeout", "no answer within 8000 ms")
    assert "timeout: no answer within 8000 ms" == decision.reason
    assert decision == msgspec.json.decode(msgspec.json.encode(decision), type=OrderDecision)


def test_fallback_long_detail_is_cut() -> None:
    """However long an error is, the decision stays valid."""
    decision = review.decision(OrderDecision, "handler_failed", "x" * 100_000)
    assert MAX_REASON_CHARACTERS == len(decision.reason)


class BriefDecision(Decision, frozen=True, kw_only=True):
    """Its reason has little room, as where a screen shows it."""

    reason: Annotated[str, msgspec.Meta(max_length=40)]
    action: Literal["approve", "review"]


class CodedDecision(Decision, frozen=True, kw_only=True):
    """Its reason is a word."""

    reason: Annotated[str, msgspec.Meta(pattern=r"^\w+$")]
    action: Literal["approve", "review"]


def test_fallback_says_as_much_as_the_decision_has_room_for() -> None:
    """Whatever the error was: a decision that nothing can make would be tried for ever."""
    assert f"handler_failed: {'x' * 24}" == review.decision(BriefDecision, "handler_failed", "x" * 1_000).reason
    assert "handler_failed" == review.decision(CodedDecision, "handler_failed", "no such file").reason


def test_fallback_unknown_action_is_refused() -> None:
    """A fallback cannot name an action that the decision does not have."""
    with pytest.raises(msgspec.ValidationError):
        Fallback("escalate").decision(OrderDecision, "timeout", "")


def test_decision_own_severities_rank_own_actions() -> None:
    """A decision with other actions brings their severities."""

    class ServiceDecision(Decision, frozen=True, kw_only=True):
        action: Literal["ignore", "page"]
        severities = {"ignore": Severity.APPROVE, "page": Severity.REVIEW}  # noqa: RUF012 - annotated in the base

    page = ServiceDecision(action="page", risk_level="HIGH", reason="r")
    ignore = ServiceDecision(action="ignore", risk_level="LOW", reason="r")
    assert page.severity > ignore.severity
