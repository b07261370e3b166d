"""What code may change in an answer: severity is raised freely, and lowered only within declared limits, or where an
operator or a declared number says that an action may not be taken now.

Pure functions over an answer and what was known when it was given; the change is part of the decision's record.
"""

from collections.abc import Callable, Sequence
from dataclasses import KW_ONLY, dataclass
from typing import Any, Generic, NamedTuple

import msgspec

from app.core.durations import parse_duration_ms
from app.core.text import one_line
from app.decisions.decision import D, Decision, Fallback, Reason, Severity, actions_of
from app.serving.base import Features, Freshness, OwnEvent

Rule = Callable[[Any, Any], str | None]
"""`rule(alert, decision)` names the action that it wants, or None to leave the decision as it is."""


Barred = Callable[[str], Reason | None]
"""`barred(action)` says why an action may not be taken now, or None. Asked once a decision, about its last word."""


def nothing_barred(action: str) -> Reason | None:
    """Every action may be taken."""
    return None


MINUTE_MS = 60_000
LONGEST_WITHIN_MS = 86_400_000


@dataclass(frozen=True)
class Limit:
    """How often an action may be decided; beyond that the agent's fallback stands, with the reason `limit_reached`.

    an_entity: so often for one entity, the alert's key, `within` a duration of a day at most. a_minute: so often for all
    entities, at least one for each partition of the alerts' topic. None: as often as it is answered.
    A long `within` costs at each change of owners: all decisions of all agents about the partition are read so far back,
    evidence included, before the new owner decides. At 100 a second of 4 KiB each, in 12 partitions, an hour is 120 MiB a
    partition, a day 2.7 GiB.
    """

    action: str
    _: KW_ONLY
    an_entity: int | None = None
    within: str = "1m"
    a_minute: int | None = None

    @property
    def within_ms(self) -> int:
        """Raises: SetupError for what is no duration."""
        return parse_duration_ms(self.within, "within")

    @property
    def counted_ms(self) -> int:
        """How far back decisions count."""
        minute_ms = MINUTE_MS if self.a_minute is not None else 0
        return max(minute_ms, self.within_ms if self.an_entity is not None else 0)


@dataclass(frozen=True)
class Policy:
    """An agent's policy.

    rules: asked in order, each about the decision that the ones before it left. may_lower: pairs (from, to) of actions
    that rules may lower. tolerates: of stale and missing features, the own event's absence and an unknown origin, what
    does not matter to this agent; everything else raises the decision to the fallback. limits: how often actions may be
    decided; they count last.
    """

    rules: tuple[Rule, ...] = ()
    may_lower: frozenset[tuple[str, str]] = frozenset()
    tolerates: frozenset[Reason] = frozenset()
    limits: tuple[Limit, ...] = ()


class PolicyChange(msgspec.Struct, frozen=True):
    """What policy did to the answered action."""

    answered: str
    action: str
    reasons: tuple[str, ...]


class RuleFailure(NamedTuple):
    """A rule that said nothing usable. error: what it raised, None where it named what is no action."""

    rule: str
    text: str
    error: Exception | None = None


@dataclass(frozen=True)
class Judged(Generic[D]):
    """A decision after policy. `unsafe`: it may not stand, for the reasons, and there is no fallback in its place."""

    decision: D
    reasons: tuple[str, ...]
    unsafe: bool = False
    failures: tuple[RuleFailure, ...] = ()
    """Of rules, for the log: their authors must know."""


def concerns_about(seen: Sequence[Features]) -> tuple[Reason, ...]:
    """What is wrong with the features that a handler was given, each reason once."""
    found = []
    for features in seen:
        if features.freshness is Freshness.STALE:
            found.append(Reason.FEATURES_STALE)
        elif features.freshness is Freshness.MISSING:
            found.append(Reason.FEATURES_MISSING)
        if features.own_event is OwnEvent.NOT_SEEN:
            found.append(Reason.OWN_EVENT_NOT_SEEN)
        elif features.own_event is OwnEvent.LATE:
            found.append(Reason.OWN_EVENT_LATE)
    return tuple(dict.fromkeys(found))


def judge(
    policy: Policy,
    alert: object,
    decision: D,
    concerns: Sequence[Reason],
    fallback: Fallback | None,
    *,
    may_lower: bool = True,
    barred: Barred = nothing_barred,
) -> Judged[D]:
    """The decision that is allowed to stand.

    may_lower: False for a fallback's decision, which rules may only raise. Concerns count last, so that no rule undoes
    them, and with one nothing is lowered. A rule that raises an exception counts as a concern. Whatever the rules do,
    the result is at least as severe as `decision` unless the pair of both actions is in `policy.may_lower`.
    In the place of what is `barred` the fallback stands, more severe or less; nothing else may stand in for it, so a
    fallback that is barred itself stays, and only its effects are withheld.
    """
    reasons: list[str] = []
    failures: list[RuleFailure] = []
    open_concerns = [concern for concern in concerns if concern not in policy.tolerates]
    judged = decision
    for rule in policy.rules:
        name = getattr(rule, "__name__", "rule")
        try:
            wanted: object = rule(alert, judged)
        except Exception as error:  # noqa: BLE001 - a rule that fails is a concern about this decision
            failures.append(RuleFailure(name, f"{type(error).__name__}: {one_line(error)}", error))
            open_concerns.append(Reason.POLICY_FAILED)
            continue
        if wanted is None or (isinstance(wanted, str) and wanted == judged.action):
            continue
        if not isinstance(wanted, str) or wanted not in actions_of(type(decision)):
            said = one_line(wanted) if isinstance(wanted, str) else f"something of type {type(wanted).__name__}"
            failures.append(RuleFailure(name, f"{said} is no action"))
            open_concerns.append(Reason.POLICY_FAILED)
        elif _allowed(policy, decision, judged, wanted, may_lower):
            judged = msgspec.structs.replace(judged, action=wanted)
            reasons.append(f"{Reason.POLICY_RULE}:{name}")
        else:
            reasons.append(f"{Reason.LOWERING_REFUSED}:{name}")
    reasons += dict.fromkeys(open_concerns)
    if open_concerns and judged.severity < decision.severity:
        judged = decision
    if open_concerns and fallback is not None and judged.severity < decision.severities[fallback.action]:
        judged = msgspec.structs.replace(judged, action=fallback.action)
    unsafe = bool(open_concerns) and judged.severity is Severity.APPROVE
    why_barred = None if unsafe else barred(judged.action)
    if why_barred is not None:
        reasons.append(why_barred)
        unsafe = fallback is None
        if fallback is not None:
            judged = msgspec.structs.replace(judged, action=fallback.action)
    return Judged(judged, tuple(reasons), unsafe, tuple(failures))


def _allowed(policy: Policy, answered: Decision, current: Decision, wanted: str, may_lower: bool) -> bool:
    """Whether a rule may turn `current` (the answer after the rules before it) into `wanted`."""
    severity = answered.severities[wanted]
    if severity >= answered.severity:
        return severity >= current.severity  # what one rule has raised, another does not lower
    raised = current.severity > answered.severity
    return may_lower and not raised and (answered.action, wanted) in policy.may_lower


def change_between(answered: Decision, judged: Judged[D]) -> PolicyChange | None:
    """What to record; None when policy left the action alone and had nothing to say."""
    if answered.action == judged.decision.action and not judged.reasons:
        return None
    return PolicyChange(answered.action, judged.decision.action, judged.reasons)
