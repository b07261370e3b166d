"""Declarations of agents: what is right is kept, what is wrong is named at once."""

from collections.abc import Callable
from typing import Annotated, Any, Literal

import msgspec
import pytest

from app.core.errors import SetupError
from app.decisions.agent import Agent
from app.decisions.context import Context
from app.decisions.decision import Decision, Fallback, Severity, review
from app.decisions.effects import Effects
from app.decisions.policy import Policy
from app.streams.graph import Alert
from tests.decisions_kit import LargeOrder, OrderDecision, make_agent


class SmallOrder(Alert, frozen=True):
    """A second alert type."""

    order_id: str


class Loose(Decision, frozen=True, kw_only=True):
    """A decision whose action is any text."""


class Unranked(Decision, frozen=True, kw_only=True):
    """A decision with an action that has no severity."""

    action: Literal["approve", "explode"]


class Open(Decision, frozen=True, kw_only=True):
    """A decision with a part that structured output cannot express."""

    action: Literal["approve", "review"]
    scores: dict[str, int] | None = None


class Demanding(Decision, frozen=True, kw_only=True):
    """A decision that a fallback cannot make."""

    action: Literal["approve", "review"]
    account: str


class Terse(Decision, frozen=True, kw_only=True):
    """A decision whose reason has no room for every code."""

    reason: Annotated[str, msgspec.Meta(max_length=10)]
    action: Literal["approve", "review"]


async def judge(alert: LargeOrder, context: Context) -> OrderDecision:
    return await context.decide("Judge this order.", alert=alert)


def declare(handler: Any = judge, **changed: Any) -> Agent[Any]:
    options: dict[str, Any] = {"alert": LargeOrder, "decides": OrderDecision, "fallback": review}
    return Agent(handler, "processed.alerts", **{**options, **changed})


def test_agent_declaration_is_kept() -> None:
    """Name, group, durations in ms and alert types by tag."""
    agent = declare(alert=LargeOrder | SmallOrder, deadline="5s", max_age="1h")
    assert ("judge", "headrace.agent.judge") == (agent.name, agent.group)
    assert (5_000, 3_600_000) == (agent.deadline_ms, agent.max_age_ms)
    assert {"large_order": LargeOrder, "small_order": SmallOrder} == agent.alert_types


def not_async(alert: object, context: object) -> None: ...


async def one_parameter(alert: object) -> None: ...


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"handler": not_async}, "async function"),
        ({"handler": one_parameter}, "must take"),
        ({"alert": OrderDecision}, "not an Alert"),
        ({"alert": None}, "needs an alert type"),
        ({"decides": LargeOrder}, "not a Decision"),
        ({"decides": Loose}, "must be a Literal"),
        ({"decides": Unranked}, "does not rank explode"),
        ({"fallback": Fallback("explode")}, "'explode' is no action"),
        ({"fallback": Fallback("approve")}, "never approves"),
        ({"decides": Demanding}, "no valid Demanding"),
        ({"decides": Terse}, "no valid Terse with the reason 'handler_failed'"),
        ({"deadline": "soon"}, "deadline"),
        ({"deadline": "0s"}, "deadline"),
        ({"max_age": "20"}, "max_age"),
        ({"concurrency": 0}, "concurrency"),
        ({"max_attempts": 0}, "max_attempts"),
        ({"policy": Policy(may_lower=frozenset({("explode", "review")}))}, "may_lower names 'explode'"),
        ({"policy": Policy(may_lower=frozenset({("review", "block")}))}, "lowers nothing"),
    ],
)
def test_agent_wrong_declaration_is_refused(changed: dict[str, Any], named: str) -> None:
    """Each mistake is one line that names it."""
    with pytest.raises(SetupError, match=named):
        declare(**changed)


async def tell(decision: OrderDecision, effects: Effects) -> None: ...


def test_action_declares_effects_in_order() -> None:
    """The effects of an action come in the order of their declaration, with what their receivers do."""
    agent = make_agent()

    async def stop(decision: OrderDecision, effects: Effects) -> None: ...

    agent.action("block", at_most_once=True)(stop)
    agent.action("block", may_repeat=True)(tell)
    assert [("stop", "at_most_once"), ("tell", "may_repeat")] == [
        (action.name, action.receiver) for action in agent.actions("block")
    ]
    assert () == agent.actions("review")


@pytest.mark.parametrize(
    ("declaration", "named"),
    [
        (lambda agent: agent.action("explode")(tell), "no action 'explode'"),
        (lambda agent: agent.action("block")(not_async), "async function"),
        (lambda agent: agent.action("block")(one_parameter), "must take"),
        (lambda agent: agent.action("review")(agent.action("block")(tell)), "name is taken"),
        (lambda agent: agent.action("block", at_most_once=True, may_repeat=True)(tell), "either"),
    ],
)
def test_action_wrong_declaration_is_refused(declaration: Callable[[Agent[Any]], object], named: str) -> None:
    """Each mistake is one line that names it."""
    with pytest.raises(SetupError, match=named):
        declaration(make_agent())


def test_severity_of_block_is_highest() -> None:
    """The order that everything above relies on."""
    assert Severity.APPROVE < Severity.REVIEW < Severity.BLOCK


def test_agent_decision_that_no_model_could_answer_is_refused() -> None:
    """Found where it is declared, not by the first alert."""
    with pytest.raises(SetupError, match="Open: an answer cannot hold a dictionary"):
        declare(decides=Open)
