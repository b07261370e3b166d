"""What is written down keeps its limits, and its topics fit together."""

import pytest

from app.broker.topics import TopicSpec
from app.core.record import Headers, Record
from app.decisions.record import (
    MAX_ANSWER_BYTES,
    EffectState,
    decision_key,
    decision_topic,
    effect_key,
    effect_topic,
    entity_of,
    idempotency_key,
    kept_answer,
    review_key,
    review_topic,
    sha256,
)


def test_kept_answer_short_text_is_whole() -> None:
    """A usual answer is kept as it came, with its length in bytes."""
    answer = kept_answer("größer")
    assert ("größer", 8) == (answer.text, answer.bytes)


def test_kept_answer_long_text_is_cut_between_characters() -> None:
    """At most 64 KiB are kept; length and hash are those of the whole."""
    text = "ä" * MAX_ANSWER_BYTES + "end"
    answer = kept_answer(text[1:])
    assert len(answer.text.encode()) <= MAX_ANSWER_BYTES
    assert text.startswith(answer.text)
    assert (len(text[1:].encode()), sha256(text[1:].encode())) == (answer.bytes, answer.sha256)


def test_effect_state_order_is_the_only_way() -> None:
    """Intended, called, then an end; every end counts as one."""
    assert ["intended", "called", "withheld", "unknown", "failed", "logged", "done"] == [
        state.value for state in EffectState
    ]
    assert {"withheld", "unknown", "failed", "logged", "done"} == {state.value for state in EffectState if state.ended}


def test_idempotency_key_names_agent_effect_and_alert() -> None:
    """The same text whoever repeats the effect."""
    assert "judge:stop:large_order:u-1:o-1" == idempotency_key("judge", "stop", "large_order:u-1:o-1")


def test_effect_key_is_compact_json() -> None:
    """Keys of compacted topics are the same bytes everywhere."""
    assert b'{"alert_id":"a:1","agent":"judge"}' == effect_key("a:1", "judge")


def test_decision_key_is_its_place_in_its_chain() -> None:
    """No two decisions share a key, and none names a person."""
    assert b'{"writer":"judge/3/1/17","number":4}' == decision_key("judge/3/1/17", 4)


def test_review_key_names_nobody() -> None:
    """A request and its verdict have a key each, the same for every repeat; the alert in the id is not shown."""
    request, verdict = review_key("review_request", "judge:queue:a:1"), review_key("review_verdict", "judge:queue:a:1")
    assert request == review_key("review_request", "judge:queue:a:1")
    assert request != verdict
    assert b"a:1" not in request + verdict


@pytest.mark.parametrize(
    ("value", "headers", "expected"),
    [
        (b"{}", (("entity", b"u-1"),), b"u-1"),
        (b'{"entity":"u-2","more":1}', (), b"u-2"),
        (b"{}", (), None),
        (b"\xff", (), None),
        (None, (), None),
    ],
)
def test_entity_of_is_the_header_or_stands_in_the_value(
    value: bytes | None, headers: Headers, expected: bytes | None
) -> None:
    """Whom a record concerns is known without decoding it, and also where no header says so."""
    assert expected == entity_of(Record("agent.decisions", 0, 0, 0, b"k", value, headers))


def test_topics_follow_the_largest_alert_topic() -> None:
    """An alert's partition number exists in all three, and a record of an alert of the largest size fits."""
    alerts = [TopicSpec(name="a", partitions=3), TopicSpec(name="b", partitions=6, max_message_bytes=5_000_000)]
    decisions = decision_topic(alerts)
    effects, reviews = effect_topic(decisions), review_topic(decisions)
    assert [6, 6, 6] == [spec.partitions for spec in (decisions, effects, reviews)]
    assert decisions.max_message_bytes > 6_000_000
    assert ("compact,delete", 3_600_000) == (effects.cleanup, effects.min_compaction_lag_ms)
    assert ["compact,delete"] * 2 == [spec.cleanup for spec in (decisions, reviews)]
    assert ["86400000"] * 3 == [spec.config()["max.compaction.lag.ms"] for spec in (decisions, effects, reviews)]
    assert ["written"] * 3 == [spec.time for spec in (decisions, effects, reviews)]
