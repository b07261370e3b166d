"""Graph to Flink SQL: what the text must and must not hold. That Flink takes it and gives the same rows is tests/parity's."""

import re
from decimal import Decimal
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
import pytest

from app.core.codec import Usd
from app.core.errors import SetupError
from app.streams.expressions import Expression, Kind, col, literal
from app.streams.graph import Alert, Topic, count, maximum, mean, minimum, total
from app.streams.pipelines import Pipeline, fingerprint, pipelines_in
from app.streams.sql import Job, Settings, compile_job, jobs_of
from app.streams.sql_expressions import LONG, Typed, interval, name_of, sql_of, text_of
from app.streams.sql_job import FUNCTIONS, PARTITIONER
from features import fraud
from features.records import Id, order_events, payment_events, service_events

HERE = Settings("broker:9092")
ROOT = Path(__file__).parents[3]


class Odd(msgspec.Struct):
    key: str
    status: Literal["it's", "new"]
    amount: Usd
    number: Annotated[int, msgspec.Meta(ge=0, lt=10)]
    wide: int
    renamed: bool = msgspec.field(name="select")
    note: str = "it's"


class Seen(Alert, frozen=True):
    order_id: Id


odd = Topic("raw.odd", Odd, key="key", out_of_orderness="250ms")
seen = order_events.once("order_id", within="1m").burst(count=3, within="1m").alert(Seen, id="order_id")
seen_once_a_minute = order_events.alert(Seen, at_most_once_per="1m", rule="storm", order_id=col.user_id)


def job(settings: Settings = HERE, **pipelines: Pipeline) -> Job:
    return compile_job("job", pipelines, settings)


def table_of(compiled: Job, topic: str) -> str:
    return next(table for table in compiled.tables if f"'topic' = '{topic}'" in table)


def test_compile_job_same_graph_gives_the_same_text() -> None:
    """Savepoints are found again by what the text says."""
    texts = {compile_job("fraud", pipelines_in(fraud), HERE).text() for _ in range(3)}
    assert 1 == len(texts)


def test_compile_job_plain_alert_has_neither_state_nor_watermark() -> None:
    """It is the fast path: no record is sent from one task to another."""
    text = job(large=order_events.where(col.amount_usd > 10_000).alert(Seen, id="order_id")).text()
    assert not re.search(r"OVER|ROW_NUMBER|GROUP BY|WATERMARK", text)


def test_compile_job_two_pipelines_share_table_clock_and_once() -> None:
    """A topic is read, judged and remembered once, whatever many pipelines do with it."""
    compiled = compile_job("fraud", pipelines_in(fraud), HERE)
    assert 1 == sum("'topic' = 'raw.orders'" in table for table in compiled.tables)
    assert ["raw.orders valid", "raw.orders timed", "raw.orders once order_id 1m"] == [
        view.split("`")[1] for view in compiled.views if "VIEW `raw.orders" in view
    ]


def test_compile_job_views_carry_only_the_columns_that_are_read() -> None:
    """Every column of a view is copied for every record, and kept in the state of an OVER."""
    valid = job(n=order_events.tumbling("1m").aggregate(a=total(col.amount_usd)).to("n")).views[0]
    assert {"user_id", "amount_usd"} == set(re.findall(r"`(\w+)`", valid.split("FROM `raw.orders`")[0]))


def test_compile_job_every_declared_field_is_judged() -> None:
    """A record that is bad where nobody reads it is bad on the other engine too."""
    valid = job(n=odd.tumbling("1m").aggregate(n=count()).to("n")).views[0]
    assert "`status` IN ('it''s', 'new')" in valid
    assert "CAST(TRY_CAST(`number` AS BIGINT) AS STRING) = `number`" in valid
    assert "TRY_CAST(`number` AS BIGINT) >= 0 AND TRY_CAST(`number` AS BIGINT) < 10" in valid
    assert "`select` IN ('true', 'false')" in valid
    assert "CHAR_LENGTH(DECODE(`$key`, 'ISO-8859-1')) BETWEEN 1 AND 1000" in valid


def test_compile_job_bad_records_do_not_move_the_watermark() -> None:
    """They move no clock: the watermark is judged by the same condition as the records."""
    compiled = job(n=odd.tumbling("1m").aggregate(n=count()).to("n"))
    condition = compiled.views[0].split("WHERE ")[1]
    assert f"WATERMARK FOR `$stamp` AS CASE WHEN {condition} THEN" in table_of(compiled, "raw.odd")
    assert "`$stamp` - INTERVAL '0 00:00:00.251' DAY(2) TO SECOND(3)" in table_of(compiled, "raw.odd")


def test_compile_job_default_of_a_field_is_quoted() -> None:
    """A default may hold any text."""
    text = job(n=odd.where(col.note == "it's").tumbling("1m").aggregate(n=count()).to("n")).text()
    assert "COALESCE(`note`, 'it''s') AS `note`" in text
    assert "WHERE (`note` = 'it''s')" in text


def test_compile_job_renamed_field_is_read_by_its_name_on_the_wire() -> None:
    """The table has the names of the JSON, the views those of the record."""
    text = job(n=odd.where(col.renamed).tumbling("1m").aggregate(n=count()).to("n")).text()
    assert "(`select` = 'true') AS `renamed`" in text


def test_compile_job_outputs_have_the_prefix_of_the_settings() -> None:
    """A test or a new generation writes beside what runs, and reads the same topics."""
    settings = Settings("broker:9092", prefix="g2.")
    topics = re.findall(r"'topic' = '([^']*)'", compile_job("fraud", pipelines_in(fraud), settings).text())
    assert ["raw.orders", "g2.processed.alerts", "g2.features.order_rate_5m"] == topics[:3]
    assert "g2.raw.orders.late" == topics[-1]


def test_compile_job_is_the_same_in_whichever_order_pipelines_are_declared() -> None:
    """Flink finds state again by the places of operators: two that changed places would read each other's windows."""
    pipelines = list(pipelines_in(fraud).items())
    assert compile_job("fraud", dict(pipelines), HERE) == compile_job("fraud", dict(reversed(pipelines)), HERE)


def test_compile_job_properties_reach_every_table() -> None:
    """A table without the password is a job that never starts."""
    settings = Settings("broker:9092", {"sasl.jaas.config": "x required password='it''s';"})
    tables = compile_job("fraud", pipelines_in(fraud), settings).tables
    assert len(tables) > 1
    for table in tables:
        assert "'properties.sasl.jaas.config' = 'x required password=''it''''s'';'" in table


def test_compile_job_bounded_ends_at_what_is_there() -> None:
    """Only then does a job end by itself."""
    bounded = Settings("broker:9092", bounded=True)
    said = ("'scan.bounded.mode' = 'latest-offset'", "'scan.watermark.emit.strategy' = 'on-event'")
    for option in said:
        assert option in compile_job("fraud", pipelines_in(fraud), bounded).text()
        assert option not in compile_job("fraud", pipelines_in(fraud), HERE).text()


def test_compile_job_functions_are_classes_beside_it() -> None:
    """Those are declared that the text calls; the cluster finds them by these names."""
    assert "epoch_ms" in "".join(job(n=odd.tumbling("1m").aggregate(n=count()).to("n")).functions)
    assert "once" not in "".join(job(n=odd.tumbling("1m").aggregate(n=count()).to("n")).functions)
    compiled = compile_job("fraud", pipelines_in(fraud) | {"storm": seen_once_a_minute, "seen": seen}, HERE)
    assert [f"CREATE TEMPORARY SYSTEM FUNCTION {name} AS '{of}'" for name, of in FUNCTIONS.items()] == list(
        compiled.functions
    )
    for package, name in (of.split(".") for of in FUNCTIONS.values()):
        source = (ROOT / "flink_jobs" / "java" / package / f"{name}.java").read_text()
        assert f"package {package};" in source
        assert re.search(rf"public final class {name} extends (Keyed|Passing|ScalarFunction) ", source)


def test_compile_job_state_is_kept_by_partition_and_key() -> None:
    """So all that follows `once` sees the records of a key in their order, with as many tasks as there are."""
    text = job(Settings("broker:9092", parallelism=2), seen=seen).text()
    assert 2 == text.count("PARTITION BY `$entity`")
    assert "CAST(`$partition` AS STRING) || ' ' || `user_id` AS `$entity`" in text


def test_compile_job_state_of_functions_has_names_of_its_own() -> None:
    """Flink finds it again by them."""
    tiles = order_events.live("1m", tile="10s").aggregate(n=count()).serve("c")
    slices = order_events.alert(Seen, at_most_once_per="1m", rule="b")
    names = re.findall(r"uid => '([^']*)'", job(a=seen, b=slices, c=tiles).text())
    assert ["of-raw-orders-once-order_id-1m", "of-a-bursts", "of-b-first-of-slices", "of-c-tiles"] == names


def test_compile_job_never_expires_state_everywhere() -> None:
    """The maximum of a quiet partition would go too, and let late records in."""
    text = compile_job("fraud", pipelines_in(fraud), HERE).text()
    assert "table.exec.state.ttl" not in text
    assert "STATE_TTL" not in text


def test_compile_job_tiles_name_their_declaration() -> None:
    """Whoever reads a view refuses tiles that another declaration has made."""
    text = compile_job("fraud", pipelines_in(fraud), HERE).text()
    assert f"MAP['fingerprint', CAST('{fingerprint(fraud.user_features)}' AS BYTES)]" in text


def test_compile_job_tiles_are_kept_by_key_tile_and_partition_until_the_watermark_has_passed_them() -> None:
    """What a record adds is computed before it; where `when` does not hold that is nothing. The topic has a watermark for it."""
    sums: dict[str, Any] = {"n": count(), "few": count(when=col.number > 3), "wide": total(col.wide)}
    few = {"least": minimum(col.amount, when=col.number > 3), "most": maximum(col.amount), "two": total(literal(2))}
    compiled = job(v=odd.live("2d", tile="1d").aggregate(**sums, **few).serve("v"))
    added, (insert, _) = compiled.views[-1], compiled.inserts
    assert "`$time_ms` - MOD(`$time_ms`, 86400000) AS `tile`" in added
    assert "CAST(1 AS BIGINT) AS `n`,\n  CASE WHEN (`number` > 3) THEN CAST(1 AS BIGINT) ELSE 0 END AS `few`" in added
    assert "CAST(`wide` AS DECIMAL(38, 0)) AS `wide`" in added
    assert "CASE WHEN (`number` > 3) THEN `amount` END AS `least`,\n  `amount` AS `most`" in added
    assert "CAST(2 AS BIGINT) AS `two`" in added
    assert "TABLE `v added` PARTITION BY (`key`, `tile`, `partition`),\n  tile_ms => CAST(86400000 AS BIGINT)" in insert
    folded = re.findall(r"(\w+) => DESCRIPTOR\((.*)\)", insert)
    assert ("sums", "`n`, `few`, `wide`, `two`") == folded[0]
    assert [("smallest", "`least`"), ("largest", "`version`, `most`")] == folded[1:3]
    assert "WATERMARK" in table_of(compiled, "raw.odd")
    assert "'key.fields' = 'key;tile;partition'" in table_of(compiled, "features.v")


def test_compile_job_partitioner_is_the_class_beside_it() -> None:
    """Kafka finds it by this name alone, when the job has long been submitted."""
    package, name = PARTITIONER.split(".")
    source = (ROOT / "flink_jobs" / "java" / package / f"{name}.java").read_text()
    assert f"package {package};" in source
    assert f"class {name} implements Partitioner" in source


def test_compile_job_total_of_64_bits_is_summed_in_38_digits() -> None:
    """Flink's BIGINT overflows without a word; amounts are small enough."""
    text = job(n=odd.tumbling("1m").aggregate(w=total(col.wide), a=total(col.amount)).to("n")).text()
    assert "SUM(CAST(`wide` AS DECIMAL(38, 0))) AS `w`" in text
    assert "SUM(`amount`) AS `a`" in text


def test_compile_job_total_that_may_not_fit_is_refused() -> None:
    """Flink would give NULL."""
    with pytest.raises(SetupError, match="square: may have more than 38 digits"):
        job(n=odd.tumbling("1m").aggregate(square=total(col.wide * col.wide)).to("n"))


def test_compile_job_mean_divides_without_rounding() -> None:
    """A division of DECIMAL rounds at the sixth digit, so what does not divide is taken away first."""
    text = job(n=odd.tumbling("1m").aggregate(m=mean(col.wide, when=col.number > 3)).to("n")).text()
    assert "COALESCE(SUM(CAST(`wide` AS DECIMAL(38, 0))) FILTER (WHERE (`number` > 3)), 0) AS `m_total`" in text
    assert "CASE WHEN `m_count` > 0 THEN" in text


def test_compile_job_field_named_heartbeat_is_refused() -> None:
    """It could not be told from the heartbeat of a publisher."""
    record = msgspec.defstruct("Beat", [("key", str), ("heartbeat", bool)])
    with pytest.raises(SetupError, match="rename it"):
        job(n=Topic("raw.beat", record, key="key", out_of_orderness="1s").tumbling("1m").aggregate(n=count()).to("n"))


def test_compile_job_functions_have_no_on_time() -> None:
    """Flink 2.2 would drop what lies behind the watermark before they see it."""
    text = job(storm=seen_once_a_minute, seen=seen).text()
    assert "once(" in text
    assert "on_time =>" not in text


def test_jobs_of_joined_topics_come_into_one_job() -> None:
    """What shares a topic, even by way of a third pipeline, is one job; what does not can be stopped alone."""
    rate: dict[str, Any] = {"n": count()}
    pipelines: dict[str, Pipeline] = {
        "orders": order_events.tumbling("1m").aggregate(**rate).to("a"),
        "services": service_events.tumbling("1m").aggregate(**rate).to("b"),
        "payments": payment_events.tumbling("1m").aggregate(m=maximum(col.amount_usd)).to("c"),
        "unpaid": order_events.join(payment_events, on="order_id", within=("0s", "1h"), prefix="payment_")
        .missing()
        .alert(Seen, id="order_id"),
    }
    found = {name: sorted(members) for name, members in jobs_of(pipelines).items()}
    assert {"raw.orders+raw.payments": ["orders", "payments", "unpaid"], "raw.service_events": ["services"]} == found


@pytest.mark.parametrize(
    ("expression", "expected"),
    [
        (col.text == "it's", "(`text` = 'it''s')"),
        (~(col.text.is_in("a", "b")), "(NOT (`text` IN ('a', 'b')))"),
        (col.money > 0.5, "(`money` > 50)"),
        (col.money + Decimal("1.25"), "(`money` + 125)"),
        (col.money * col.small, "(`money` * `small`)"),
        (col.small - -3, "(`small` - (-3))"),
        (literal(2) + literal(3), "(CAST(2 AS BIGINT) + CAST(3 AS BIGINT))"),
        (col.wide + 1, "(CAST(`wide` AS DECIMAL(38, 0)) + CAST(1 AS DECIMAL(38, 0)))"),
        (col.wide > 2**63, f"(`wide` > CAST('{2**63}' AS DECIMAL(38, 0)))"),
        (col.ratio > 1.5, "(`ratio` > (1.5E0))"),
        ((col.flag == True) | col.flag, "((`flag` = TRUE) OR `flag`)"),  # noqa: E712 - it builds a tree
    ],
)
def test_sql_of_expression_is_exact(expression: Expression, expected: str) -> None:
    """Money is cents; whole numbers leave 64 bits before they can overflow; text is quoted."""
    columns = {
        "text": Typed("`text`", Kind.TEXT),
        "money": Typed("`money`", Kind.MONEY, 0, 10**12),
        "small": Typed("`small`", Kind.INTEGER, 0, 100),
        "wide": Typed("`wide`", Kind.INTEGER, -LONG - 1, LONG),
        "ratio": Typed("`ratio`", Kind.NUMBER),
        "flag": Typed("`flag`", Kind.BOOLEAN),
    }
    assert expected == sql_of(expression, columns).text


def test_name_of_any_text_stays_an_identifier() -> None:
    """A name that holds a backtick ends nowhere but at its end."""
    assert "`a``; DROP`" == name_of("a`; DROP")


def test_text_of_half_a_surrogate_pair_is_refused() -> None:
    """Nothing could be equal to it, since no record holds it."""
    with pytest.raises(SetupError, match="UTF-8"):
        text_of("\ud800")


@pytest.mark.parametrize(
    ("duration_ms", "expected"),
    [
        (5_001, "INTERVAL '0 00:00:05.001' DAY(2) TO SECOND(3)"),
        (0, "INTERVAL '0 00:00:00.000' DAY(2) TO SECOND(3)"),
        (1_800_000, "INTERVAL '0 00:30:00.000' DAY(2) TO SECOND(3)"),
        (90_061_001, "INTERVAL '1 01:01:01.001' DAY(2) TO SECOND(3)"),
        (999 * 86_400_000, "INTERVAL '999 00:00:00.000' DAY(3) TO SECOND(3)"),
    ],
)
def test_interval_milliseconds_are_kept(duration_ms: int, expected: str) -> None:
    """Whole seconds would let windows close early; of seconds alone a join takes three digits."""
    assert expected == interval(duration_ms)


def test_interval_longer_than_flink_takes_is_refused() -> None:
    """It has three digits for days."""
    with pytest.raises(SetupError, match="1000d: Flink takes no time of more than 999 days"):
        interval(1_000 * 86_400_000)
