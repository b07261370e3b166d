"""A declared agent: which alerts it decides, what it may answer, what stands in when it fails, and what its actions do.

    @app.agent("processed.alerts", alert=HighValueOrder, decides=FraudDecision, fallback=review, deadline="20s")
    async def judge_order(alert: HighValueOrder, context: Context) -> FraudDecision: ...

    @judge_order.action("block")
    async def block_transaction(decision: FraudDecision, effects: Effects) -> None: ...

A mistake in a declaration is a `SetupError` on the line that makes it.
"""

import inspect
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Generic, Literal, TypeVar

import msgspec

from app.broker.topics import record_types
from app.core.durations import format_duration, parse_duration_ms
from app.core.errors import SetupError
from app.decisions.context import Context
from app.decisions.decision import D, Decision, Fallback, Reason, Severity, actions_of
from app.decisions.effects import Effects
from app.decisions.policy import LONGEST_WITHIN_MS, Limit, Policy
from app.models.base import FailureCode
from app.models.budget import Budget
from app.models.prompt import answer_schema
from app.streams.graph import Alert

Handler = Callable[[Any, Context], Awaitable[D]]
ActionHandler = Callable[[Any, Effects], Awaitable[None]]
AH = TypeVar("AH", bound=ActionHandler)

CONCURRENCY, DEADLINE, MAX_ATTEMPTS, MAX_AGE = 64, "20s", 3, "15m"
"""What an agent has that declares nothing else."""

Receiver = Literal["keyed", "at_most_once", "may_repeat"]
"""What a receiver does with a repeated call. keyed: applies an idempotency key once. at_most_once: would apply it
again, so it is never called twice. may_repeat: a second application does no harm."""


@dataclass(frozen=True)
class Action:
    """One effect of an action. `name` is its handler's and part of its idempotency key."""

    action: str
    name: str
    handler: ActionHandler
    receiver: Receiver


class Agent(Generic[D]):
    """One handler with its declaration. Only `action` adds to it, while the application is being declared."""

    def __init__(
        self,
        handler: Handler[D],
        topic: str,
        *,
        alert: Any,
        decides: type[D],
        fallback: Fallback | None = None,
        policy: Policy | None = None,
        concurrency: int = CONCURRENCY,
        deadline: str = DEADLINE,
        max_attempts: int = MAX_ATTEMPTS,
        max_age: str = MAX_AGE,
        budget: Budget | None = None,
    ) -> None:
        """
        Args: alert: one alert type, or a union of several. fallback: None sends what fails to the dead letters.
              concurrency: handlers at once in this process. deadline: for one alert in one process, from the first run
              of the handler on, with all its attempts. budget: what its model calls may cost a day; None for no limit.
              max_attempts: runs of the handler for one alert. max_age: how long an alert may have waited and still be
              worth a model call.
        Raises: SetupError that names the wrong argument, or the part of `decides` that no model could answer.
        """
        self.name = str(getattr(handler, "__name__", ""))
        where = f"agent {self.name or handler!r}"
        _require_async(handler, where, "(alert, context)")
        self.handler = handler
        self.topic = topic
        self.alert_types = _alert_types(alert, where)
        self.decides = decides
        self.actions_allowed = _actions(decides, where)
        self.fallback = fallback
        self.policy = policy or Policy()
        self.concurrency = concurrency
        self.deadline_ms = _positive_ms(deadline, f"{where}, deadline")
        self.max_attempts = max_attempts
        self.budget = budget
        self.max_age_ms = _positive_ms(max_age, f"{where}, max_age")
        for setting, value in (("concurrency", concurrency), ("max_attempts", max_attempts)):
            if value < 1:
                raise SetupError(f"{where}, {setting}", f"{value} is less than 1")
        self._require_safe_fallback(where)
        self._require_known_limits(where)
        for limit in self.policy.limits:
            self._require_sound_limit(limit, f"{where}, policy, limit of {limit.action}")
        self._actions: dict[str, Action] = {}

    @property
    def group(self) -> str:
        """The consumer group that reads its alerts."""
        return f"headrace.agent.{self.name}"

    def action(self, action: str, *, at_most_once: bool = False, may_repeat: bool = False) -> Callable[[AH], AH]:
        """Declares what happens when `action` is decided: one effect, applied once per alert.

        The receiver is called again with the same idempotency key after a failure or a crash. One that knows no keys
        is `at_most_once` (never called again; how a broken call ended is then for a person to find out) or
        `may_repeat`.
        Raises: SetupError for an unknown action, a name that is taken, or a handler that is not `async` with
        (decision, effects).
        """

        def declare(handler: AH) -> AH:
            name = str(getattr(handler, "__name__", ""))
            where = f"agent {self.name}, action {name or handler!r}"
            _require_async(handler, where, "(decision, effects)")
            if action not in self.actions_allowed:
                raise SetupError(
                    where, f"{self.decides.__name__} has no action {action!r}; {_listed(self.actions_allowed)}"
                )
            if name in self._actions:
                raise SetupError(where, "the name is taken; it is part of the idempotency key and must be unique")
            if at_most_once and may_repeat:
                raise SetupError(where, "a receiver is either at_most_once or may_repeat")
            receiver: Receiver = "at_most_once" if at_most_once else "may_repeat" if may_repeat else "keyed"
            self._actions[name] = Action(action, name, handler, receiver)
            return handler

        return declare

    @property
    def action_names(self) -> tuple[str, ...]:
        """Names of all its effects."""
        return tuple(self._actions)

    def effect(self, name: str) -> Action | None:
        """The effect of that name, None where it is not declared."""
        return self._actions.get(name)

    def actions(self, action: str) -> tuple[Action, ...]:
        """The effects of a decided action, in the order of their declaration."""
        return tuple(declared for declared in self._actions.values() if declared.action == action)

    def _require_safe_fallback(self, where: str) -> None:
        if self.fallback is None:
            return
        setting = f"{where}, fallback"
        if self.fallback.action not in self.actions_allowed:
            raise SetupError(setting, f"{self.fallback.action!r} is no action; {_listed(self.actions_allowed)}")
        if self.decides.severities[self.fallback.action] is Severity.APPROVE:
            raise SetupError(setting, f"{self.fallback.action!r} approves; a failure never approves")
        for code in (one.value for one in (*Reason, *FailureCode)):
            try:
                self.fallback.decision(self.decides, code, "")
            except msgspec.ValidationError as error:
                said = f"makes no valid {self.decides.__name__} with the reason {code!r}: {error}"
                raise SetupError(setting, said) from None

    def _require_known_limits(self, where: str) -> None:
        severities = self.decides.severities
        for pair in self.policy.may_lower:
            for name in pair:
                if name not in self.actions_allowed:
                    raise SetupError(f"{where}, policy", f"may_lower names {name!r}; {_listed(self.actions_allowed)}")
            if severities[pair[1]] >= severities[pair[0]]:
                raise SetupError(f"{where}, policy", f"may_lower {pair[0]} to {pair[1]} lowers nothing")

    def _require_sound_limit(self, limit: Limit, setting: str) -> None:
        if limit.action not in self.actions_allowed:
            raise SetupError(setting, f"there is no such action; {_listed(self.actions_allowed)}")
        if self.fallback is None:
            raise SetupError(setting, "needs a fallback, which stands when the limit is reached")
        if limit.action == self.fallback.action:
            raise SetupError(setting, "is the fallback, which stands when a limit is reached: it cannot have one")
        numbers = [number for number in (limit.an_entity, limit.a_minute) if number is not None]
        if not numbers or min(numbers) < 1:
            raise SetupError(setting, "needs an_entity, a_minute or both, each at least 1")
        if _positive_ms(limit.within, f"{setting}, within") > LONGEST_WITHIN_MS:
            raise SetupError(f"{setting}, within", f"is more than {format_duration(LONGEST_WITHIN_MS)}")


def _require_async(handler: object, where: str, parameters: str) -> None:
    if not inspect.iscoroutinefunction(handler):
        raise SetupError(where, f"must be an async function of {parameters}")
    try:
        inspect.signature(handler).bind(None, None)
    except TypeError:
        raise SetupError(where, f"must take {parameters}") from None


def _alert_types(alert: Any, where: str) -> dict[str, type[Alert]]:
    """Alert types by tag."""
    found: dict[str, type[Alert]] = {}
    for alert_type in record_types(alert):
        if not _is_class(alert_type, Alert):
            raise SetupError(f"{where}, alert", f"{alert_type!r} is not an Alert")
        found[tag_of(alert_type)] = alert_type
    if not found:
        raise SetupError(f"{where}, alert", "needs an alert type")
    return found


def _is_class(value: object, base: type) -> bool:
    return isinstance(value, type) and issubclass(value, base)


def tag_of(alert_type: type[Alert]) -> str:
    """What `alert_type` says in records of this type."""
    return str(alert_type.__struct_config__.tag)


def _actions(decides: type[Decision], where: str) -> tuple[str, ...]:
    setting = f"{where}, decides"
    if not _is_class(decides, Decision):
        raise SetupError(setting, f"{decides!r} is not a Decision")
    names = actions_of(decides)
    if not names:
        raise SetupError(setting, f"{decides.__name__}.action must be a Literal of the action names")
    answer_schema(decides)
    unranked = [name for name in names if name not in decides.severities]
    if unranked:
        raise SetupError(setting, f"{decides.__name__}.severities does not rank {', '.join(unranked)}")
    return names


def _positive_ms(text: str, setting: str) -> int:
    duration_ms = parse_duration_ms(text, setting)
    if duration_ms <= 0:
        raise SetupError(setting, "must be longer than nothing")
    return duration_ms


def _listed(names: tuple[str, ...]) -> str:
    return f"there are {', '.join(names)}"
