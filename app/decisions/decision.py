"""What an agent answers: a typed decision, how severe it is, and the decision that stands in when there is none.

Severities and risk levels are ordered as integers; compared as text, CRITICAL would come before LOW.
"""

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from enum import IntEnum, StrEnum
from functools import cache
from typing import Annotated, ClassVar, Literal, TypeVar, get_args

import msgspec

from app.core.text import longest

MAX_REASON_CHARACTERS = 4_000

RiskName = Literal["LOW", "MEDIUM", "HIGH", "CRITICAL"]


class Severity(IntEnum):
    """What an action does to the one it concerns. APPROVE lets it pass; nothing that failed may ever end there."""

    APPROVE = 0
    REVIEW = 1
    BLOCK = 2


class RiskLevel(IntEnum):
    """How large the risk is judged to be."""

    LOW = 0
    MEDIUM = 1
    HIGH = 2
    CRITICAL = 3


class Reason(StrEnum):
    """Why a decision is not simply the agent's answer. Codes of models (`models.base.FailureCode`) stand beside them."""

    DEADLINE = "deadline"
    """The handler did not return in its time."""
    TOO_OLD = "too_old"
    """The alert had waited longer than the agent's `max_age`; no model was asked."""
    CRASHED = "crashed"
    """The process that handled the alert ended uncleanly, three times; the last time on its trial."""
    HANDLER_FAILED = "handler_failed"
    """The handler raised, at every attempt."""
    WRONG_ANSWER = "wrong_answer"
    """The handler returned something else than the declared decision."""
    UNAVAILABLE = "unavailable"
    """Something the handler needs did not answer, at every attempt."""
    FEATURES_STALE = "features_stale"
    FEATURES_MISSING = "features_missing"
    OWN_EVENT_NOT_SEEN = "own_event_not_seen"
    OWN_EVENT_LATE = "own_event_late"
    ORIGIN_UNKNOWN = "origin_unknown"
    """The alert does not say which event raised it, so nobody can tell whether the features hold that event."""
    TOO_LARGE = "too_large"
    """The decision does not fit its topic."""
    MODEL_FAILED = "model_failed"
    """The handler went on without the answer it had asked a model for."""
    FEATURES_FAILED = "features_failed"
    """The handler went on without features it had asked for."""
    POLICY_RULE = "policy_rule"
    """A rule of the agent's policy changed the action."""
    POLICY_FAILED = "policy_failed"
    """A rule raised, or named an action that does not exist."""
    LOWERING_REFUSED = "lowering_refused"
    """A rule wanted a milder action than the policy's declared limits allow."""
    SWITCHED_OFF = "switched_off"
    """An operator has switched off the action, or the agent."""
    LIMIT_REACHED = "limit_reached"
    """The action was decided as often as the policy's `limits` allow."""


class Decision(msgspec.Struct, frozen=True, kw_only=True):
    """Base of all decisions. A subclass narrows `action` to a `Literal`; `severities` ranks every name in it.

    The target of an action is no part of it: it comes from the alert.
    """

    reason: Annotated[str, msgspec.Meta(max_length=MAX_REASON_CHARACTERS)]
    risk_level: RiskName
    action: str

    severities: ClassVar[Mapping[str, Severity]] = {
        "approve": Severity.APPROVE,
        "review": Severity.REVIEW,
        "block": Severity.BLOCK,
    }

    @property
    def severity(self) -> Severity:
        return self.severities[self.action]

    @property
    def risk(self) -> RiskLevel:
        return RiskLevel[self.risk_level]


D = TypeVar("D", bound=Decision)


def actions_of(decides: type[Decision]) -> tuple[str, ...]:
    """Names that the decision's `action` may take; empty when it is not a Literal of texts."""
    hints = {field.name: field.type for field in msgspec.structs.fields(decides)}
    names = get_args(hints["action"])
    return tuple(name for name in names if isinstance(name, str))


@dataclass(frozen=True)
class Fallback:
    """The decision that stands where there is no usable answer. Never an approving one: `Agent` refuses that."""

    action: str
    risk_level: RiskName = "HIGH"

    def decision(self, decides: type[D], code: str, detail: str) -> D:
        """A valid decision that says why: with the detail as far as its `reason` has room, else with the code alone.

        Raises: msgspec.ValidationError when `decides` has no such action, other fields without defaults, or no room for
        the code.
        """
        fields = {"risk_level": self.risk_level, "action": self.action}
        if detail:
            with suppress(msgspec.ValidationError):  # it may have to look otherwise
                return msgspec.convert({**fields, "reason": f"{code}: {detail}"[: _reason_room(decides)]}, decides)
        return msgspec.convert({**fields, "reason": code}, decides)


@cache
def _reason_room(decides: type[Decision]) -> int:
    """Characters; a decision type may have less room than its base."""
    room = longest(decides, "reason")
    return MAX_REASON_CHARACTERS if room is None else room


review = Fallback("review")
"""Leave it to a person."""
