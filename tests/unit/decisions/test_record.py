"""What is written down keeps its limits, and its topics fit together."""

from app.broker.topics import TopicSpec
from app.decisions.record import (
    MAX_ANSWER_BYTES,
    EffectState,
    decision_topic,
    effect_key,
    effect_topic,
    idempotency_key,
    kept_answer,
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
    assert ["intended", "called", "unknown", "failed", "logged", "done"] == [state.value for state in EffectState]
    assert {"unknown", "failed", "logged", "done"} == {state.value for state in EffectState if state.ended}


def test_idempotency_key_names_agent_effect_and_alert() -> None:
    """The same text whoever repeats the effect."""
    assert "judge:stop:large_order:u-1:o-1" == idempotency_key("judge", "stop", "large_order:u-1:o-1")


def test_effect_key_is_compact_json() -> None:
    """Keys of compacted topics are the same bytes everywhere."""
    assert b'{"alert_id":"a:1","agent":"judge"}' == effect_key("a:1", "judge")


def test_topics_follow_the_largest_alert_topic() -> None:
    """An alert's partition number exists in all three, and a record of an alert of the largest size fits."""
    alerts = [TopicSpec(name="a", partitions=3), TopicSpec(name="b", partitions=6, max_message_bytes=5_000_000)]
    decisions = decision_topic(alerts)
    effects, reviews = effect_topic(decisions), review_topic(decisions)
    assert [6, 6, 6] == [spec.partitions for spec in (decisions, effects, reviews)]
    assert decisions.max_message_bytes > 6_000_000
    assert ("compact,delete", 3_600_000) == (effects.cleanup, effects.min_compaction_lag_ms)
    assert ["written"] * 3 == [spec.time for spec in (decisions, effects, reviews)]
