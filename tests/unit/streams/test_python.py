"""Graph to Python: the text of every kind of pipeline loads and runs, and its encoders write what can be read back."""

import ast
import json
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.core.codec import compact_key, to_cents
from app.core.record import Record, TopicPartition
from app.streams.compiled import CompiledTopic, load_topic
from app.streams.expressions import col
from app.streams.graph import count, total
from app.streams.pipelines import Once, Pipeline, pipelines_in
from app.streams.python import compile_topic, once_name, once_rules
from app.streams.tables import Entry, PartitionState, Row, Slices
from features import fraud
from features.records import order_events
from tests.examples import examples

SOURCE = order_events.source
PLACE = TopicPartition("raw.orders", 3)
START_MS = 1_800_000_000_000
SUMS: dict[str, Any] = {"n": count(), "paid": count(when=col.status == "paid"), "usd": total(col.amount_usd)}

placed = order_events.where(col.status == "placed").derive(double=col.amount_usd * 2)
once = order_events.once("order_id", within="1m")
KINDS: dict[str, dict[str, Pipeline]] = {
    "nothing": {},
    "alert": {"large": fraud.high_value_orders},
    "live": {"tiles": order_events.live("5m", tile="30s").aggregate(**SUMS).serve("tiles")},
    "tumbling": {"rate": order_events.tumbling("1m").aggregate(**SUMS).to("rate")},
    "once in some": {
        "rate": order_events.tumbling("1m").aggregate(**SUMS).to("rate"),
        "tiles": once.live("5m", tile="30s").aggregate(**SUMS).serve("tiles"),
        "other": order_events.once("order_id", within="2m").tumbling("1m").aggregate(**SUMS).to("other"),
    },
    "steps": {
        "rate": placed.where(col.double > 5).tumbling("1m").aggregate(usd=total(col.double)).to("rate"),
        "large": placed.alert(fraud.HighValueOrder, id="order_id", amount_usd=col.double),
    },
    "all of fraud": pipelines_in(fraud),
}


def order(offset: int, amount: str, user: str = "u1", time_ms: int = START_MS, order_id: str = "") -> Record:
    value = {"order_id": order_id or f"o{offset}", "user_id": user, "amount_usd": amount, "status": "placed"}
    data = json.dumps({**value, "timestamp": "2026-01-01T00:00:00Z"}).encode()
    return Record("raw.orders", 3, offset, time_ms, user.encode(), data)


def changes(state: PartitionState, name: str) -> list[tuple[int, str, Entry]]:
    return state.tables[name].changes()


def loaded(pipelines: dict[str, Pipeline]) -> CompiledTopic:
    return load_topic(SOURCE, pipelines)


def test_compile_topic_wrong_amount_is_told_by_its_field() -> None:
    """Whoever sent it looks for the field, not for what it means."""
    topic = loaded(KINDS["all of fraud"])
    state = topic.new_state(PLACE)
    topic.process([order(0, "NaN")], state, 1)
    assert ["amount_usd: NaN is not an amount"] == [reason for _, reason in state.rejected]


@pytest.mark.parametrize("kind", KINDS)
def test_compile_topic_every_kind_of_pipeline_runs(kind: str) -> None:
    """Good, bad and late records, windows that close: the generated text stands them all."""
    topic = loaded(KINDS[kind])
    state = topic.new_state(PLACE)
    late = order(2, "3", time_ms=START_MS - 600_000)
    bad = Record("raw.orders", 3, 3, START_MS, b"u1", b"{")
    heartbeat = Record("raw.orders", 3, 4, START_MS + 600_000, None, b'{"heartbeat":true}')
    topic.process([order(0, "20000"), order(1, "7"), late, bad, heartbeat], state, 5)
    assert START_MS + 600_000 == state.reached_ms
    assert [bad] == [record for record, _ in state.rejected]
    assert sorted(topic.tables) == sorted(name for name, record in state.late if record is late)
    assert [] == [table for table in state.tables.values() if isinstance(table, Slices) and table.open]


@pytest.mark.parametrize("kind", KINDS)
def test_compile_topic_same_graph_gives_the_same_text(kind: str) -> None:
    """Its text is what is shown, what is fingerprinted and what runs; and it names every pipeline."""
    text = compile_topic(SOURCE, KINDS[kind])
    assert text == compile_topic(SOURCE, dict(KINDS[kind]))
    functions = {node.name for node in ast.parse(text).body if isinstance(node, ast.FunctionDef)}
    tables = loaded(KINDS[kind]).tables
    rows = {f"row_{name}" for name, table in tables.items() if table.row is not None}
    assert {"process", *rows, *(f"{part}_{name}" for name in tables for part in ("key", "value"))} == functions
    assert [] == [name for name in KINDS[kind] if f"# {name}" not in text]


def test_compile_topic_text_literals_cannot_leave_their_quotes() -> None:
    """A constant of any text is a constant."""
    nasty = 'it\'s "quoted" \\ \n {x} %s'
    topic = loaded({"rate": order_events.tumbling("1m").aggregate(n=count(when=col.order_id == nasty)).to("rate")})
    state = topic.new_state(PLACE)
    topic.process([order(0, "1", order_id=nasty), order(1, "1")], state, 0)
    ((start_ms, user, entry),) = changes(state, "rate")
    assert (START_MS, "u1", [1, False, 1]) == (start_ms, user, entry)


def test_once_rules_are_shared_by_what_they_say() -> None:
    """One memory for each rule, whoever declares it."""
    again = order_events.once("order_id", within="1m").live("5m", tile="30s").aggregate(n=count()).serve("more")
    rules = once_rules(SOURCE, {**KINDS["once in some"], "again": again})
    assert {Once("order_id", 60_000), Once("order_id", 120_000)} == set(rules)
    assert ["once_order_id_60000", "once_order_id_120000"] == [once_name(rule) for rule in rules]
    assert [] == once_rules(SOURCE, KINDS["tumbling"])


entities = st.one_of(
    st.text(min_size=1, max_size=20), st.sampled_from(['"', "\\", "\x00\x1f\x7f", "ü😀\u2028", "%s{}"])
)
cents = st.integers(-(10**14), 10**14)


@given(
    user=entities, start=st.integers(0, 10**13), version=st.integers(0, 2**62), numbers=st.tuples(cents, cents, cents)
)
@settings(max_examples=examples(200))
def test_encoders_any_entry_is_json_that_decodes_to_it(
    user: str, start: int, version: int, numbers: tuple[int, int, int]
) -> None:
    """Keys are the bytes of `compact_key`, amounts are numbers of two decimals, and the table reads its own back."""
    entry = [version, True, *numbers]
    dollars = [numbers[0], numbers[1], Decimal(numbers[2]).scaleb(-2)]
    tiles, rate = loaded(KINDS["live"]).tables["tiles"], loaded(KINDS["tumbling"]).tables["rate"]
    assert compact_key(user_id=user, tile=start, partition=3) == tiles.key(start, user, 3)
    assert compact_key(user_id=user, window_start=start) == rate.key(start, user, 3)
    assert (start, user) == tiles.parse_key(tiles.key(start, user, 3)) == rate.parse_key(rate.key(start, user, 3))
    expected = {"version": version, **dict(zip(SUMS, dollars, strict=True))}
    for table in (tiles, rate):
        assert expected == json.loads(table.value(entry), parse_float=Decimal)
        assert [version, False, *numbers] == table.parse_value(table.value(entry))
    assert tiles.row is None
    assert rate.row is not None
    made = rate.row(Row(start, start + 60_000, user, version, numbers), "raw.orders/3", 0)
    assert made is not None
    assert rate.key(start, user, 3) == made[0]
    row = json.loads(made[1], parse_float=Decimal)
    window = {"user_id": user, "window_start": start, "window_end": start + 60_000}
    assert {**window, **dict(zip(SUMS, dollars, strict=True))} == row


def test_process_amounts_are_cents_in_entries_and_dollars_in_alerts() -> None:
    """Derived money too."""
    topic = loaded(KINDS["steps"])
    state = topic.new_state(PLACE)
    topic.process([order(0, "2.51"), order(1, "9999.99")], state, 5)
    ((_, _, entry),) = changes(state, "rate")
    assert [1, False, 2 * (to_cents(Decimal("2.51")) + to_cents(Decimal("9999.99")))] == entry
    alerts = [json.loads(value, parse_float=str) for _, _, value, _ in state.alerts]
    assert ["5.02", "19999.98"] == [alert["amount_usd"] for alert in alerts]
