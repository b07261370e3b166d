"""Answers become decisions here or not at all."""

from decimal import Decimal
from typing import Literal

import msgspec
import pytest

from app.models.base import FailureCode, ModelAnswer, ModelFailure, StopReason, parse_answer


class Verdict(msgspec.Struct, frozen=True):
    action: Literal["approve", "review", "block"]
    limit_usd: Decimal = Decimal(0)


class CarefulVerdict(msgspec.Struct, frozen=True):
    action: str

    def __post_init__(self) -> None:
        if self.action == "approve":
            raise ValueError("never\nthis")


def answer(text: str, stop_reason: StopReason = StopReason.COMPLETE) -> ModelAnswer:
    return ModelAnswer(text=text, model="m", stop_reason=stop_reason, input_tokens=7)


def failure_of(answer: ModelAnswer, answer_type: type[msgspec.Struct] = Verdict) -> ModelFailure:
    with pytest.raises(ModelFailure) as caught:
        parse_answer(answer, answer_type)
    return caught.value


def test_parse_answer_valid_text_returns_decision() -> None:
    """A complete, valid answer is the decision; money is exact."""
    parsed = parse_answer(answer('{"action":"block","limit_usd":10.10}'), Verdict)
    assert Verdict("block", Decimal("10.10")) == parsed


@pytest.mark.parametrize(
    "text",
    [
        "",
        "I would block it.",
        '{"action":"block"',
        '{"action":"delete"}',
        '{"action":1}',
        "{}",
        "null",
        '["block"]',
        '{"action":"block"} {"action":"approve"}',
        '{"action":"block","limit_usd":[]}',
        "[" * 100_000,
        '{"action":"\ud800"}',
    ],
)
def test_parse_answer_other_text_is_invalid_and_kept(text: str) -> None:
    """What is not the declared decision fails with one line, and the raw text stays as evidence."""
    failure = failure_of(answer(text))
    assert FailureCode.INVALID_ANSWER is failure.code
    assert not failure.retriable
    assert failure.answer is not None
    assert text == failure.answer.text
    assert 1 == len(str(failure).splitlines())


def test_parse_answer_type_with_own_check_is_invalid_on_one_line() -> None:
    """A struct's own checks count, and their words are made one line."""
    failure = failure_of(answer('{"action":"approve"}'), CarefulVerdict)
    assert "invalid_answer: never this" == str(failure)


def test_parse_answer_hostile_text_is_visible_in_the_error() -> None:
    """What a model writes cannot reorder a line of the log."""
    failure = failure_of(answer('{"action":"\u202eevorppa"}'))
    assert "\u202e" not in str(failure)


@pytest.mark.parametrize(
    ("stop_reason", "code"),
    [
        (StopReason.TRUNCATED, FailureCode.TRUNCATED),
        (StopReason.REFUSED, FailureCode.REFUSED),
        (StopReason.CONTEXT_TOO_LONG, FailureCode.CONTEXT_TOO_LONG),
        (StopReason.OTHER, FailureCode.INVALID_ANSWER),
    ],
)
def test_parse_answer_stopped_early_fails_before_reading(stop_reason: StopReason, code: FailureCode) -> None:
    """Text that is valid by chance is no decision when the model did not finish; its tokens are still known."""
    failure = failure_of(answer('{"action":"approve"}', stop_reason))
    assert code is failure.code
    assert failure.answer is not None
    assert 7 == failure.answer.input_tokens


def test_stop_reasons_every_one_is_handled() -> None:
    """Only COMPLETE passes."""
    for stop_reason in set(StopReason) - {StopReason.COMPLETE}:
        failure_of(answer('{"action":"approve"}', stop_reason))


def test_failure_codes_only_passing_troubles_are_retriable() -> None:
    """Nothing that would be refused again, or judged again, is retried."""
    retriable = {code.value for code in FailureCode if code.retriable}
    assert {"timeout", "overloaded", "rate_limited", "unavailable", "gate_closed", "breaker_open"} == retriable
