"""Neither text from outside nor a compromised model reaches more than it may; without a safeguard it is seen to."""

from typing import Any

import pytest

from app.core.clock import run_virtual
from app.core.codec import encode
from app.decisions import context as context_module
from app.decisions.agent import Agent
from app.decisions.effects import Effects
from app.models.base import ModelAnswer, StopReason, parse_answer
from tests.decisions_kit import START_MS, OrderDecision, make_agent, with_actions
from tests.faults import hostile
from tests.faults.safety import Compromised, compromised, rendering_violations, request_violations

SEED, ALERTS = 20261125, 10_000


async def test_hostile_text_prompt_reads_back_identical() -> None:
    """Each of more than 500 strings, in every text field, arrives as that field's text and as nothing else."""
    texts = hostile.strings()
    assert len(texts) >= 500
    assert [] == list(rendering_violations(texts))
    assert [] == await request_violations(texts[::9])


def test_hostile_text_encoded_without_escapes_is_noticed() -> None:
    """Ablation: without the escapes, characters reach the prompt that are not drawn as what they are."""
    assert [] != list(rendering_violations(hostile.ODD_CHARACTERS, lambda shown: encode(shown).decode()))


def test_hostile_text_joined_as_text_is_noticed() -> None:
    """Ablation: a prompt made by joining texts does not read back."""

    def joined(shown: Any) -> str:
        return f'{{"alert":{{"order_id":"{shown["alert"].order_id}"}}}}'

    assert [] != list(rendering_violations(hostile.STRUCTURES, joined))


def run(agent: Agent[Any] | None = None) -> Compromised:
    return run_virtual(lambda clock: compromised(clock, agent or with_actions(make_agent()), ALERTS, SEED), START_MS)


def test_compromised_model_makes_no_unauthorized_effect() -> None:
    """Whatever it answers, each effect is one that its valid answer allows, with the target of the alert."""
    outcome = run()
    assert [] == outcome.violations
    assert ALERTS == outcome.alerts
    assert 0 < outcome.authorized < 2 * ALERTS


def test_compromised_model_with_stop_reason_ignored_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ablation: a refused or cut answer that counts as one makes effects that nothing allows."""

    def credulous(answer: ModelAnswer, answer_type: type[OrderDecision]) -> OrderDecision:
        whole = ModelAnswer(text=answer.text, model=answer.model, stop_reason=StopReason.COMPLETE)
        return parse_answer(whole, answer_type)

    monkeypatch.setattr(context_module, "parse_answer", credulous)
    assert [] != run().violations


def test_compromised_model_that_names_the_target_is_noticed() -> None:
    """Ablation: an action that takes its target from the answer blocks other people's orders."""
    agent = make_agent()

    @agent.action("block")
    async def block_order(decision: OrderDecision, effects: Effects) -> None:
        named = [word.strip(":;") for word in decision.reason.split() if word.startswith("o-")]
        order_id = named[0] if named else effects.alert.order_id
        await effects.post({"order_id": order_id, "reason": decision.reason})

    @agent.action("block")
    async def notify(decision: OrderDecision, effects: Effects) -> None:
        await effects.post({"alert_id": effects.alert.alert_id, "risk_level": decision.risk_level})

    assert [] != run(agent).violations
