"""The brute-force reading on records small enough to check by hand."""

from app.core.codec import encode, to_dollars
from features.scenario import EPOCH
from tests.reference import LIVE, TUMBLING, LateReference, Rules, Slice, SourceRecord, Total, read_all, valid_order

RULES = Rules(out_of_orderness_ms=5, once_within_ms=60, tile_ms=30, live_ms=300, tumbling_ms=300, limit_cents=1_000)


def order(
    offset: int, t: int, name: str, cents: int = 100, user: str = "u-1", at_ms: int | None = None
) -> SourceRecord:
    value = encode(
        {
            "order_id": name,
            "user_id": user,
            "amount_usd": to_dollars(cents),
            "status": "placed",
            "timestamp": EPOCH,
        }
    )
    return SourceRecord(0, offset, t, user.encode(), value, t if at_ms is None else at_ms)


def test_read_all_record_at_the_edge_of_a_tile_decides_late() -> None:
    """With B = 5 the tile [0, 30) takes records until m reaches 35, and none from then on."""
    on_time = read_all([order(0, 34, "a"), order(1, 29, "b")], RULES)
    assert {LIVE: 0, TUMBLING: 0} == on_time.late
    late = read_all([order(0, 35, "a"), order(1, 29, "b")], RULES)
    assert [LateReference(LIVE, 0, 1, 29)] == late.late_references
    assert {Slice("u-1", 30, 0): Total(1, 100, 0)} == late.tiles


def test_read_all_final_row_appears_when_the_watermark_passes() -> None:
    """The window [0, 300) is final as soon as m is 305, and open before."""
    before = read_all([order(0, 10, "a", 7), order(1, 304, "b")], RULES)
    assert {} == before.final_rows
    after = read_all([order(0, 10, "a", 7), order(1, 305, "b"), order(2, 299, "late")], RULES)
    assert {Slice("u-1", 0, 0): Total(1, 7, 0)} == after.final_rows
    assert {Slice("u-1", 300, 0): Total(1, 100, 1)} == after.open_rows
    assert 1 == after.late[TUMBLING]


def test_read_all_heartbeat_closes_and_counts_nothing() -> None:
    """A heartbeat moves m and is nothing else."""
    heartbeat = SourceRecord(0, 1, 305, None, b'{"heartbeat": true}')
    reading = read_all([order(0, 10, "a"), heartbeat], RULES)
    assert (2, 1, []) == (reading.events, reading.heartbeats, reading.malformed)
    assert {Slice("u-1", 0, 0): Total(1, 100, 0)} == reading.final_rows


def test_read_all_repeat_within_the_promise_is_dropped() -> None:
    """A repeat counts again only when m has moved on by more than `within` since its last sighting."""
    reading = read_all(
        [order(0, 0, "a"), order(1, 60, "b"), order(2, 0, "a"), order(3, 61, "b"), order(4, 0, "a")], RULES
    )
    assert {Slice("u-1", 0, 0): Total(1, 100, 0), Slice("u-1", 60, 0): Total(1, 100, 1)} == reading.tiles
    assert [(LIVE, 4)] == [(late.pipeline, late.offset) for late in reading.late_references]


def test_read_all_alert_sees_its_own_order_and_the_window_before_it() -> None:
    """An alert's features hold every tile whose end lies after now - window, with the order itself."""
    records = [order(0, 29, "a", 1), order(1, 30, "b", 2), order(2, 330, "c", 2_000)]
    (alert,) = read_all(records, RULES).alerts
    assert "high_value_order:u-1:c" == alert.alert_id
    assert Total(2, 2_002, 2) == alert.features


def test_read_all_late_alert_does_not_see_its_own_order() -> None:
    """An order that is late for its tile alerts all the same, and its features are without it."""
    (alert,) = read_all([order(0, 100, "a", 1), order(1, 10, "b", 2_000, at_ms=101)], RULES).alerts
    assert ((LIVE,), Total(1, 1, 0)) == (alert.late_for, alert.features)


def test_read_all_alert_id_escapes_its_parts() -> None:
    """A colon or percent sign in an id cannot make two alerts look the same."""
    (alert,) = read_all([order(0, 0, "a:b%", 2_000, "u:1")], RULES).alerts
    assert "high_value_order:u%3A1:a%3Ab%25" == alert.alert_id


def test_read_all_bad_record_moves_nothing() -> None:
    """A record that is not valid is counted and does not move the partition's clock."""
    bad = [
        SourceRecord(0, 1, 10_000, b"u-2", order(0, 0, "a").value),
        SourceRecord(0, 2, 10_000, b"u-1", None),
        SourceRecord(0, 3, 10_000, None, b'{"heartbeat": true, "more": 1}'),
        SourceRecord(0, 4, -1, b"u-1", order(0, 0, "a").value),
        SourceRecord(0, 5, 10_000, b"u-1", b"[" * 100_000),
    ]
    reading = read_all([order(0, 0, "a"), *bad, order(6, 1, "b")], RULES)
    assert bad == reading.malformed
    assert {LIVE: 0, TUMBLING: 0} == reading.late


def test_valid_order_amounts() -> None:
    """Amounts are judged by value: at most two decimals, 0 to 10^12 cents."""
    value = order(0, 0, "a").value
    assert value is not None
    judged = {
        text: valid_order(SourceRecord(0, 0, 0, b"u-1", value.replace(b"1.00", text.encode()))) is not None
        for text in ("0", "-0", "1.500", "15e-1", '"1.5"', "10000000000", "1.005", "-1", "1e-999999999", "1e999999999")
        + ('"NaN"', '"Infinity"', "10000000000.01", "true", "null")
    }
    good = {"0", "-0", "1.500", "15e-1", '"1.5"', "10000000000"}
    assert {text: text in good for text in judged} == judged
