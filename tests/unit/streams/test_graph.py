"""Declarations: what they say, what they refuse, and their fingerprints."""

from collections.abc import Callable
from types import ModuleType

import msgspec
import pytest

from app.core.codec import Usd
from app.core.errors import SetupError
from app.decisions.record import MAX_ID_BYTES
from app.streams.declaring import MAX_ID_CHARACTERS
from app.streams.expressions import col
from app.streams.gate import MAX_KEY_BYTES
from app.streams.graph import Alert, Topic, count, total
from app.streams.outputs import derived_id, topics_of
from app.streams.pipelines import fingerprint, pipelines_in, unique_names
from features import fraud
from features.records import OrderEvent


class Keyed(msgspec.Struct):
    progress: str


class Cents(msgspec.Struct):
    user_id: str
    amount_usd: int


class Weighed(msgspec.Struct):
    user_id: str
    weight: float


WEIGHED = Topic("t", Weighed, key="user_id", out_of_orderness="5s")


class Note(msgspec.Struct):
    user_id: str
    text: str


class Noted(Alert, frozen=True):
    user_id: str


class LargeOrder(Alert, frozen=True):
    order_id: str
    user_id: str
    amount_usd: Usd


def orders(out_of_orderness: str = "5s") -> Topic:
    return Topic("raw.orders", OrderEvent, key="user_id", out_of_orderness=out_of_orderness)


def test_alert_tag_is_its_class_name_in_snake_case() -> None:
    """`alert_type` on the wire reads like a name, not like a class."""
    assert "large_order" == LargeOrder.__struct_config__.tag


@pytest.mark.parametrize(
    ("declare", "complaint"),
    [
        (lambda: Topic("t", OrderEvent, key="nobody", out_of_orderness="5s"), "key 'nobody'"),
        (lambda: Topic("t", OrderEvent, key="user_id", out_of_orderness="soon"), "not a duration"),
        (lambda: orders().where(col.amount_usd), "not true or false"),
        (
            lambda: WEIGHED.join(WEIGHED, on="weight", within=("0s", "5s"), prefix="n_"),
            "join on a text or a whole number",
        ),
        (lambda: orders().where(col.amount_usd > 1).once("order_id", within="1m"), "directly behind"),
        (lambda: orders().once("amount_usd", within="1m"), "not a text field"),
        (lambda: orders().live("5m", tile="7s"), "whole number of tiles"),
        (lambda: orders().live("5m", tile="30s").aggregate(), "at least one"),
        (lambda: orders().live("5m", tile="30s").aggregate(version=count()), "taken"),
        (lambda: orders().live("5m", tile="30s").aggregate(n=count()).to("t"), "serve"),
        (lambda: orders().tumbling("5m").aggregate(n=count()).serve("v"), "only live"),
        *(
            (lambda view=view: orders().live("5m", tile="30s").aggregate(n=count()).serve(view), "a view's name")
            for view in ("", "headrace", "a:b", "a b", "v\n", "größe")
        ),
        (lambda: orders().tumbling("5m").aggregate(n=total(col.status)), "not exact"),
        (lambda: orders().tumbling("5m").aggregate(**{"share%": count()}), "is no name"),
        (lambda: orders().derive(**{"class": col.amount_usd + 1}), "is no name"),
        (lambda: Topic("t", Keyed, key="progress", out_of_orderness="5s"), "taken"),
        (lambda: orders().derive(amount_usd=col.amount_usd + 1), "already"),
        (lambda: orders().alert(LargeOrder, id="amount_usd"), "not a text field"),
        (
            lambda: Topic("t", Note, key="user_id", out_of_orderness="5s").alert(Noted, id="text"),
            "any length; bound it to 400",
        ),
        (
            lambda: Topic("t", Note, key="user_id", out_of_orderness="5s").derive(o=col.text).alert(Noted, id="o"),
            "any length",
        ),
        (lambda: orders().alert(LargeOrder, id="order_id", wrong=col.status), "no field wrong"),
        (lambda: orders().alert(LargeOrder, id="order_id", amount_usd=col.status), "not text"),
    ],
)
def test_declaration_mistake_is_refused_where_it_stands(declare: Callable[[], object], complaint: str) -> None:
    """A wrong declaration names itself and its reason."""
    with pytest.raises(SetupError, match=complaint):
        declare()


def test_fingerprint_changes_with_what_is_computed_and_with_nothing_else() -> None:
    """Same computation, same fingerprint; any other step, size or field, another one."""
    base = orders().tumbling("5m").aggregate(n=count()).to("t")
    assert fingerprint(base) == fingerprint(orders().tumbling("300s").aggregate(n=count()).to("t"))
    others = [
        orders("6s").tumbling("5m").aggregate(n=count()).to("t"),
        orders().tumbling("6m").aggregate(n=count()).to("t"),
        orders().tumbling("5m").aggregate(m=count()).to("t"),
        orders().tumbling("5m").aggregate(n=count(when=col.amount_usd > 1)).to("t"),
        orders().where(col.amount_usd > 1).tumbling("5m").aggregate(n=count()).to("t"),
        orders().once("order_id", within="1m").tumbling("5m").aggregate(n=count()).to("t"),
    ]
    assert len({fingerprint(pipeline) for pipeline in [base, *others]}) == 1 + len(others)


def test_fingerprint_changes_with_the_kind_of_a_field() -> None:
    """1050 cents must not be read back as 1,050 dollars."""
    cents = Topic("raw.orders", Cents, key="user_id", out_of_orderness="5s")
    pipelines = [topic.tumbling("5m").aggregate(n=total(col.amount_usd)).to("t") for topic in (cents, orders())]
    assert str(pipelines[0]) == str(pipelines[1])
    assert fingerprint(pipelines[0]) != fingerprint(pipelines[1])


def test_topics_of_streams_one_topic_in_two_ways_is_refused() -> None:
    """Rows into a raw topic, or into the alerts, would be read as what they are not."""
    for target in ("raw.orders", "raw.orders.dead"):
        rate = orders().tumbling("5m").aggregate(n=count()).to(target)
        with pytest.raises(SetupError, match="used in two ways"):
            topics_of([orders().source], {"rate": rate})


def test_topics_of_streams_view_topic_keeps_longer_than_its_window() -> None:
    """An emptied store must find every tile that counts."""
    view = orders().live("7d", tile="1h").aggregate(n=count()).serve("v")
    spec = next(spec for spec in topics_of([orders().source], {"v": view}) if spec.name == "features.v")
    assert spec.retention_ms is not None
    assert spec.retention_ms >= 2 * 7 * 86_400_000


def test_unique_names_two_writers_of_one_target_are_refused() -> None:
    """Two pipelines under one rule would give one id to two alerts."""
    alert = orders().alert(LargeOrder, id="order_id")
    with pytest.raises(SetupError, match="written by first"):
        unique_names({"first": alert, "second": alert})


def test_pipelines_in_module_are_named_by_their_variables() -> None:
    """A pipeline is known by the name that its author gave it."""
    module = ModuleType("example")
    module.rate = orders().tumbling("5m").aggregate(n=count()).to("t")  # type: ignore[attr-defined]
    assert ["rate"] == list(pipelines_in(module))


def test_derived_id_escapes_what_separates_its_parts() -> None:
    """Different keys and ids never make one alert id."""
    assert "r:a%3Ab:c" == derived_id("r", "a:b", "c")
    assert derived_id("r", "a", "b:c") != derived_id("r", "a:b", "c")
    assert derived_id("r", "a%3A", "b") != derived_id("r", "a:", "b")


def test_topics_of_streams_hold_all_that_is_read_or_written() -> None:
    """Whoever creates these topics can start a worker."""
    names = {spec.name: spec for spec in topics_of([fraud.orders.source], pipelines_in(fraud))}
    expected = {
        "raw.orders",
        "raw.orders.dead",
        "raw.orders.late",
        "processed.alerts",
        "processed.alerts.dead",
        "features.user_features",
        "features.order_rate_5m",
        "state.order_rate",
    }
    assert expected == names.keys()
    assert "CreateTime" == names["raw.orders"].config()["message.timestamp.type"]
    assert "compact" == names["state.order_rate"].config()["cleanup.policy"]
    assert 12 == names["state.order_rate"].partitions == names["features.user_features"].partitions


def test_alert_id_may_be_a_field_by_another_name() -> None:
    """Its bound is that of the field."""
    assert ("o",) == orders().derive(o=col.order_id).alert(LargeOrder, id="o").raised.id_fields


def test_longest_alert_id_is_one_that_agents_take() -> None:
    """Whatever characters key and id are of: nobody chooses an id that is not judged."""
    for character in (":", "%", "a", "ş", "😀"):
        key = character * (MAX_KEY_BYTES // len(character.encode()))
        assert len(derived_id("r" * 100, key, character * MAX_ID_CHARACTERS).encode()) <= MAX_ID_BYTES
