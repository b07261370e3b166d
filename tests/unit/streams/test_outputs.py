"""What streams write beside their rows: ids, headers, references, topics."""

import json
from typing import Literal

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.broker.topics import DEFAULT_MAX_MESSAGE_BYTES, TopicSpec
from app.core.errors import SetupError
from app.core.record import Record
from app.streams.expressions import col
from app.streams.graph import Alert, Topic, count
from app.streams.outputs import alert_headers, derived_id, late_reference, topics_of
from app.streams.pipelines import Pipeline, pipelines_in
from features import fraud, fraud_patterns
from features.records import Id, OrderEvent, order_events, payment_events

parts = st.one_of(st.text(max_size=8), st.text(":%3A25", max_size=6))


class Other(Alert, frozen=True):
    user_id: str


class Busy(Alert, frozen=True):
    user_id: str
    stars: int


class Comment(msgspec.Struct):
    comment_id: Id
    user_id: Id
    text: str
    mood: Literal["good", "bad"]
    stars: int


class Said(Alert, frozen=True):
    user_id: str
    text: str
    again: str
    stars: int


COMMENTS = Topic("raw.comments", Comment, key="user_id", out_of_orderness="5s", partitions=2)


@pytest.mark.parametrize(
    ("pipeline", "expected"),
    [
        (pipelines_in(fraud)["high_value_orders"], DEFAULT_MAX_MESSAGE_BYTES),
        (COMMENTS.alert(Said, id="comment_id", text=col.mood, again=col.mood), DEFAULT_MAX_MESSAGE_BYTES),
        (COMMENTS.alert(Said, id="comment_id", again=col.mood), DEFAULT_MAX_MESSAGE_BYTES + 200 * 6 + 4 * 6 + 65_536),
        (
            COMMENTS.derive(copy=col.text).alert(Said, id="comment_id", again=col.copy),
            2 * DEFAULT_MAX_MESSAGE_BYTES + 200 * 6 + 65_536,
        ),
        (
            COMMENTS.join(COMMENTS, within=("0s", "5s"), prefix="next_").alert(
                Said, id=("comment_id", "next_comment_id"), again=col.next_text
            ),
            2 * DEFAULT_MAX_MESSAGE_BYTES + 200 * 6 + 65_536,
        ),
        (COMMENTS.tumbling("5m").aggregate(stars=count()).alert(Busy), DEFAULT_MAX_MESSAGE_BYTES),
    ],
)
def test_topics_of_alerts_take_the_largest_that_records_may_raise(pipeline: Pipeline, expected: int) -> None:
    """One that did not fit would stop a job on Flink again and again: whoever may publish could do so."""
    specs = {spec.name: spec for spec in topics_of([], {"said": pipeline})}
    assert expected == specs["processed.alerts"].max_message_bytes


@given(st.tuples(parts, parts), st.tuples(parts, parts))
def test_derived_id_different_parts_give_different_ids(one: tuple[str, str], other: tuple[str, str]) -> None:
    """However the parts are written, no two events share an id; and one event has one."""
    assert (one == other) == (derived_id("rule", *one) == derived_id("rule", *other))


def test_derived_id_separators_inside_a_part_are_escaped() -> None:
    """The id is read by people: only what would be mistaken is changed."""
    assert "large:u-1:o/7" == derived_id("large", "u-1", "o/7")
    assert "large:a%3Ab:50%25" == derived_id("large", "a:b", "50%")


def test_alert_headers_say_where_the_alert_comes_from() -> None:
    """`late_for` stands there only where there is something to say."""
    headers = alert_headers("large", "raw.orders/3", 17, 5, 6, ())
    expected = {"alert_type": b"large", "origin": b"raw.orders/3/17", "event_ms": b"5", "received_ms": b"6"}
    assert expected == dict(headers)
    assert {**expected, "late_for": b"one,two"} == dict(
        alert_headers("large", "raw.orders/3", 17, 5, 6, ("one", "two"))
    )


def test_late_reference_names_the_record() -> None:
    """It holds the place, not the record."""
    record = Record("raw.orders", 3, 17, 1_000, b"u-1", b"{}")
    expected = {"pipeline": "rate", "topic": "raw.orders", "partition": 3, "offset": 17, "event_time_ms": 1_000}
    assert expected == json.loads(late_reference("rate", record))


def test_topics_of_fraud_are_all_that_is_read_and_written() -> None:
    """Tables and views keep their source's partitions and are compacted; each has an hour before it is."""
    specs = {spec.name: spec for spec in topics_of([order_events.source], pipelines_in(fraud))}
    expected = {"raw.orders", "raw.orders.dead", "raw.orders.late", "processed.alerts", "processed.alerts.dead"}
    expected |= {"features.user_features", "features.order_rate_5m", "state.order_rate"}
    assert expected == specs.keys()
    assert OrderEvent is specs["raw.orders"].type
    for name in ("features.user_features", "features.order_rate_5m", "state.order_rate"):
        assert order_events.source.spec.partitions == specs[name].partitions
    assert ("compact,delete", 3_600_000) == (
        specs["features.user_features"].cleanup,
        specs["features.user_features"].min_compaction_lag_ms,
    )
    assert ("compact", None) == (specs["state.order_rate"].cleanup, specs["state.order_rate"].retention_ms)
    assert "delete" == specs["features.order_rate_5m"].cleanup


def test_topics_of_live_view_is_kept_longer_than_its_window() -> None:
    """A tile that still counts must not be deleted."""
    day_ms = 86_400_000
    view = order_events.live("3d", tile="1h").aggregate(n=count()).serve("long")
    (spec,) = [spec for spec in topics_of([], {"long": view}) if spec.name == "features.long"]
    assert spec.retention_ms is not None
    assert spec.retention_ms > 3 * day_ms + 3_600_000


def test_topics_of_live_view_keeps_every_version_as_long_as_a_tile_counts() -> None:
    """Behind the newest value of a tile that the engine has freed an older one may be written: compaction must not
    choose between them while somebody may ask for it; and its two bounds must not contradict each other."""
    view = order_events.live("3d", tile="1h").aggregate(n=count()).serve("long")
    (spec,) = [spec for spec in topics_of([], {"long": view}) if spec.name == "features.long"]
    counts_ms = 3 * 86_400_000 + 3_600_000
    assert spec.min_compaction_lag_ms >= counts_ms
    assert int(spec.config()["max.compaction.lag.ms"]) >= spec.min_compaction_lag_ms


def test_topics_of_alerts_on_one_topic_share_it() -> None:
    """Its type is the union of theirs."""
    pipelines: dict[str, Pipeline] = {
        "large": fraud.high_value_orders,
        "other": order_events.where(col.amount_usd > 5).alert(Other, id="order_id"),
    }
    (spec,) = [spec for spec in topics_of([], pipelines) if spec.name == "processed.alerts"]
    assert fraud.HighValueOrder | Other == spec.type


def test_topics_of_one_topic_used_in_two_ways_is_refused() -> None:
    """Rows of sources of different partitions, or rows where alerts go, would not be found again."""
    rows: Pipeline = order_events.tumbling("1m").aggregate(n=count()).to("processed.alerts")
    with pytest.raises(SetupError, match="used in two ways"):
        topics_of([], {"large": fraud.high_value_orders, "rows": rows})
    with pytest.raises(SetupError, match="used in two ways"):
        topics_of(
            [payment_events.source], {"rows": order_events.tumbling("1m").aggregate(n=count()).to("raw.payments")}
        )


def test_topics_of_joins_take_what_is_kept_of_the_largest_record() -> None:
    """Or one record that its own topic takes would stop the streams."""
    pipelines = {"other_amounts": fraud_patterns.other_amounts}
    table = next(spec for spec in topics_of([], pipelines) if spec.name == "state.other_amounts")
    assert table.max_message_bytes >= 2 * order_events.source.spec.max_message_bytes


def test_topics_of_sessions_take_all_that_a_key_may_have_open() -> None:
    """They are one value; where there may be millions of them, the declaration is refused."""

    def table_of_sessions(gap: str) -> TopicSpec:
        sessions = order_events.session(gap=gap).aggregate(n=count()).to("sessions")
        return next(spec for spec in topics_of([], {"all": sessions}) if spec.name == "state.all")

    assert 1_048_588 == table_of_sessions("5m").max_message_bytes
    slow = Topic("slow", OrderEvent, key="user_id", out_of_orderness="1h")
    with pytest.raises(SetupError, match="all: a key may have 3,600,002 open sessions; make their gap longer"):
        topics_of([], {"all": slow.session(gap="1ms").aggregate(n=count()).to("sessions")})
