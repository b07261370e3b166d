"""What the outputs of the fraud streams must be, given a brute-force reading of their input."""

from collections.abc import Callable

import msgspec

from app.core.record import Record
from features import fraud
from tests.reference import Reading, Slice, Total


def check_outputs(records_of: Callable[[str], list[Record]], reading: Reading) -> None:
    """Alerts, rows, tiles, late references and dead letters are those of the reading; repeats are identical."""
    seen: dict[bytes, bytes | None] = {}
    for record in records_of("processed.alerts"):
        origin = dict(record.headers)["origin"]
        assert seen.setdefault(origin, record.value) == record.value, "one record, one alert"
    expected = {f"raw.orders/{alert.partition}/{alert.offset}".encode(): alert for alert in reading.alerts}
    assert expected.keys() == seen.keys()
    for origin, value in seen.items():
        alert = msgspec.json.decode(value or b"", type=fraud.HighValueOrder)
        assert (expected[origin].alert_id, expected[origin].cents) == (alert.alert_id, int(alert.amount_usd * 100))
    for record in records_of("processed.alerts"):
        headers = dict(record.headers)
        assert ("user_features" in expected[headers["origin"]].late_for) == (
            headers.get("late_for") == b"user_features"
        )

    rows: dict[Slice, tuple[int, int]] = {}
    for record in records_of("features.order_rate_5m"):
        row = msgspec.json.decode(record.value or b"")
        where = Slice(row["user_id"], row["window_start"], record.partition)
        totals = (row["order_count_5m"], round(row["order_value_5m"] * 100))
        assert rows.setdefault(where, totals) == totals, "never two values for one key"
    assert {where: (total.orders, total.cents) for where, total in reading.final_rows.items()} == rows

    tiles: dict[Slice, Total] = {}
    for record in records_of("features.user_features"):
        key, value = msgspec.json.decode(record.key or b""), msgspec.json.decode(record.value or b"")
        if "progress" in key:
            continue
        where = Slice(key["user_id"], key["tile"], key["partition"])
        tile = Total(value["order_count_5m"], round(value["order_value_5m"] * 100), value["version"])
        if where not in tiles or tile.version > tiles[where].version:
            tiles[where] = tile
        else:
            assert tile.version < tiles[where].version or tile == tiles[where]
    assert reading.tiles == tiles

    late = {
        (value["pipeline"], value["partition"], value["offset"], value["event_time_ms"])
        for value in (msgspec.json.decode(record.value or b"") for record in records_of("raw.orders.late"))
    }
    assert {tuple(reference) for reference in reading.late_references} == late
    dead = {
        (record.partition, dict(record.headers)["offset"]): record.value for record in records_of("raw.orders.dead")
    }
    assert {(record.partition, b"%d" % record.offset): record.value for record in reading.malformed} == dead
