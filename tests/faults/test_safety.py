"""Neither text from outside nor a compromised model reaches more than it may; without a safeguard it is seen to."""

from collections.abc import Mapping
from typing import Any

import pytest

from agents.fraud import judge_order
from app.core.clock import run_virtual
from app.core.codec import encode
from app.decisions import context as context_module
from app.decisions.effects import Effects
from app.decisions.policy import Policy
from app.models.base import parse_answer
from features.fraud import HighValueOrder
from tests.decisions_kit import START_MS
from tests.faults import ablations_safety, hostile, safety
from tests.faults.safety import PLACES, Compromised, compromised, rendering_violations, request_violations

SEED, ALERTS = 20261125, 10_000


async def test_hostile_text_prompt_reads_back_identical() -> None:
    """Each of more than 500 strings, in every text field, arrives as that field's text and as nothing else."""
    texts = hostile.strings()
    assert len(texts) >= 500
    assert [] == await rendering_violations(texts)
    assert [] == await request_violations(texts[::9])


def test_hostile_text_stands_in_every_text_field_of_the_shipped_agent() -> None:
    """A field that is added to the alert or the features is tried, too."""
    alert = {"alert.alert_id", "alert.order_id", "alert.user_id"}
    assert alert | {"user.view", "user.entity", "user.values"} == set(PLACES)
    assert [HighValueOrder] == list(judge_order.alert_types.values())


async def test_hostile_text_encoded_without_escapes_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ablation: without the escapes, characters reach the prompt that are not drawn as what they are."""
    monkeypatch.setattr(context_module, "render_context", lambda shown: encode(shown).decode())
    assert [] != await rendering_violations(hostile.ODD_CHARACTERS)


async def test_hostile_text_joined_as_text_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ablation: a prompt made by joining texts does not read back."""

    def joined(shown: Mapping[str, Any]) -> str:
        return f'{{"alert":{{"order_id":"{shown["alert"].order_id}"}}}}'

    monkeypatch.setattr(context_module, "render_context", joined)
    assert [] != await rendering_violations(hostile.STRUCTURES)


async def test_hostile_text_that_the_handler_puts_into_its_instructions_is_noticed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Ablation: an agent that speaks of the order in its instructions lets it speak, too."""

    async def talkative(alert: HighValueOrder, context: context_module.Context) -> Any:
        return await context.decide(f"judge order {alert.order_id}", alert=alert)

    monkeypatch.setattr(judge_order, "handler", talkative)
    assert any("reached the instructions" in found for found in await rendering_violations(hostile.ORDERS))


def run(alerts: int = 1_000) -> Compromised:
    return run_virtual(lambda clock: compromised(clock, alerts, SEED), START_MS)


def test_compromised_model_makes_no_unauthorized_effect() -> None:
    """Whatever it answers, each effect is one that its valid answer allows, with the target of the alert."""
    outcome = run(ALERTS)
    assert [] == outcome.violations
    assert ALERTS == outcome.alerts
    assert 0 < outcome.authorized < 2 * ALERTS


def test_compromised_model_with_stop_reason_ignored_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ablation: a refused or cut answer that counts as one makes effects that nothing allows."""
    monkeypatch.setattr(context_module, "parse_answer", parse_answer)  # put back at the end
    ablations_safety.stop_reason_ignored()
    assert [] != run().violations


def test_compromised_model_that_names_the_target_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ablation: an action that takes its target from the answer blocks other people's orders."""
    monkeypatch.setattr(Effects, "post", Effects.post)  # put back at the end
    ablations_safety.target_from_the_answer()
    assert any(" was made with " in found for found in run().violations)


def test_compromised_model_without_the_agents_policy_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ablation: then it approves what a person must see, and blocks at a low risk."""
    monkeypatch.setattr(judge_order, "policy", Policy())
    found = run().violations
    assert any("was decided approve, review is allowed" in one for one in found)
    assert any("which no answer allows" in one for one in found)


def test_a_limit_that_hides_an_effect_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The agent's limits are on: alerts that come all at once reach them, and what is withheld then is no silent success."""
    monkeypatch.setattr(safety, "BATCH", 2_000)
    assert any("was decided review, block is allowed" in found for found in run(2_000).violations)
