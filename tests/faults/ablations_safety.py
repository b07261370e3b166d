"""Safeguards against hostile text and a compromised model, taken out of the process that is put to it, one at a time."""

from collections.abc import Mapping
from typing import Any

import msgspec

from app.decisions import context
from app.decisions.effects import Effects
from app.models import prompt
from app.models.anthropic import AnthropicModel
from app.models.base import ModelAnswer, ModelRequest, StopReason, parse_answer


def stop_reason_ignored() -> None:
    """Takes what a model that refused, or was cut, had written for its answer."""

    def credulous(answer: ModelAnswer, answer_type: type[Any]) -> Any:
        return parse_answer(msgspec.structs.replace(answer, stop_reason=StopReason.COMPLETE), answer_type)

    context.parse_answer = credulous  # type: ignore[attr-defined]


def target_from_the_answer() -> None:
    """Blocks the order that the answer names, not that of the alert."""
    post: Any = Effects.post

    async def post_as_told(self: Effects, body: Mapping[str, Any]) -> None:
        named = [word.strip(":;") for word in str(body.get("reason", "")).split() if word.startswith("o-")]
        await post(self, {**body, "order_id": named[0]} if named and "order_id" in body else body)

    Effects.post = post_as_told  # type: ignore[method-assign]


def nothing_escaped() -> None:
    """Shows a model characters that hide and reorder text as they came."""
    prompt.escape_unsafe = lambda text: text  # type: ignore[attr-defined]


def data_among_instructions() -> None:
    """Puts what an event says behind the author's instructions, as one text."""
    decide: Any = AnthropicModel.decide

    async def decide_on_all(self: AnthropicModel, request: ModelRequest) -> ModelAnswer:
        told = f"{request.instructions}\n{request.context_text}"
        return await decide(self, msgspec.structs.replace(request, instructions=told))  # type: ignore[no-any-return]

    AnthropicModel.decide = decide_on_all  # type: ignore[method-assign]
