"""Bytes of a feature topic to changes of the store."""

import pytest

from app.core.codec import compact_key
from app.core.errors import BadRecord, SetupError
from app.core.record import Headers, Record
from app.serving.base import TileChange, View
from app.serving.tile_records import ProgressMark, TileRecords
from app.streams.aggregates import OutputField
from app.streams.expressions import Kind
from app.streams.outputs import progress_record
from app.streams.windows import Tile

VIEW = View(
    "user_features",
    "user_id",
    "features.user_features",
    "raw.orders",
    12,
    300_000,
    30_000,
    (OutputField("order_count_5m", Kind.INTEGER), OutputField("order_value_5m", Kind.MONEY)),
    True,
    "0123456789abcdef",
)
KEY = compact_key(user_id="u-17", tile=1_700_000_010_000, partition=3)
VALUE = b'{"version":4711,"order_count_5m":2,"order_value_5m":1050.00}'
FINGERPRINT: Headers = (("fingerprint", b"0123456789abcdef"),)


def record(key: bytes | None, value: bytes | None, headers: Headers = ()) -> Record:
    return Record(VIEW.topic, 3, 812, 1_700_000_012_345, key, value, headers)


def test_tile_records_tile_is_read_exactly() -> None:
    """A tile becomes a change with money in cents."""
    expected = TileChange("u-17", Tile(1_700_000_010_000, 3, 4711, (2, 105_000)))
    assert expected == TileRecords(VIEW).read(record(KEY, VALUE))


@pytest.mark.parametrize(
    ("dollars", "cents"),
    [
        ("0.00", 0),
        ("0.01", 1),
        ("0.1", 10),
        ("7", 700),
        ("-0.05", -5),
        ("9999999999999.99", 999_999_999_999_999),
        ("90000000000000000.07", 9_000_000_000_000_000_007),
        ("1e3", 100_000),
    ],
)
def test_tile_records_money_has_no_float(dollars: str, cents: int) -> None:
    """Sums are exact to the cent, also beyond what a float holds."""
    value = b'{"version":1,"order_count_5m":1,"order_value_5m":%s}' % dollars.encode()
    read = TileRecords(VIEW).read(record(KEY, value))
    assert isinstance(read, TileChange)
    assert (1, cents) == read.tile.values


def test_tile_records_unknown_value_fields_are_ignored() -> None:
    """A newer writer may say more than we know."""
    value = b'{"version":1,"order_count_5m":1,"order_value_5m":1.00,"later":[1]}'
    assert isinstance(TileRecords(VIEW).read(record(KEY, value)), TileChange)


def test_tile_records_progress_is_read_with_its_fingerprint() -> None:
    """A progress record says as of when the tiles before it are complete."""
    key, value, headers = progress_record(3, 1_700_000_012_345, 4712, VIEW.fingerprint)
    expected = ProgressMark(1_700_000_012_345)
    assert expected == TileRecords(VIEW).read(record(key, value, headers))


def test_tile_records_tombstone_is_nothing() -> None:
    """A tombstone takes nothing away: tiles go by themselves."""
    assert TileRecords(VIEW).read(record(KEY, None)) is None


@pytest.mark.parametrize(
    ("key", "value"), [(b'{"progress":3}', b'{"as_of":1}'), (KEY, VALUE)], ids=["progress", "tile"]
)
def test_tile_records_other_declaration_names_the_way_out(key: bytes, value: bytes) -> None:
    """Whatever carries another declaration's fingerprint stops the view, and says what to type."""
    with pytest.raises(SetupError, match="type: python -m app streams reset user_features"):
        TileRecords(VIEW).read(record(key, value, (("fingerprint", b"fedcba9876543210"),)))


@pytest.mark.parametrize(
    ("key", "value"),
    [
        (None, VALUE),
        (b"", VALUE),
        (b"u-17", VALUE),
        (b'{"user_id":"u-17","tile":0}', VALUE),
        (b'{"user_id":"u-17","tile":0,"partition":-1}', VALUE),
        (b'{"user_id":"u-17","tile":0,"partition":3,"more":1}', VALUE),
        (b'{"user_id":17,"tile":0,"partition":3}', VALUE),
        (b'{"user_id":"\xff","tile":0,"partition":3}', VALUE),
        (KEY, b""),
        (KEY, b"null"),
        (KEY, b'{"version":1,"order_count_5m":1}'),
        (KEY, b'{"version":-1,"order_count_5m":1,"order_value_5m":1.00}'),
        (KEY, b'{"version":1,"order_count_5m":1.5,"order_value_5m":1.00}'),
        (KEY, b'{"version":1,"order_count_5m":1,"order_value_5m":1.001}'),
        (KEY, b'{"version":1,"order_count_5m":1,"order_value_5m":1.0000000000000000000000000000001}'),
        (KEY, b'{"version":1,"order_count_5m":1,"order_value_5m":1e999999}'),
        (KEY, b'{"version":1,"order_count_5m":1,"order_value_5m":"NaN"}'),
        (KEY, b'{"version":1,"order_count_5m":1,"order_value_5m":"x"}'),
        (b'{"progress":3}', b'{"as_of":1}'),
        (b'{"progress":"u"}', b'{"as_of":1}'),
    ],
)
def test_tile_records_bad_record_says_where_it_is(key: bytes | None, value: bytes) -> None:
    """What is neither a tile nor progress is one bad record, with its place, and nothing worse."""
    with pytest.raises(BadRecord, match=r"^features\.user_features/3/812: neither a tile nor progress: "):
        TileRecords(VIEW).read(record(key, value))


def test_tile_records_key_field_named_progress_is_an_entity() -> None:
    """A view grouped by a field that is called `progress` is no progress record."""
    view = View(
        "p", "progress", "features.p", "raw.p", 1, 300_000, 30_000, (OutputField("n", Kind.INTEGER),), True, "f"
    )
    key = compact_key(progress="u", tile=0, partition=0)
    expected = TileChange("u", Tile(0, 0, 1, (2,)))
    assert expected == TileRecords(view).read(Record("features.p", 0, 0, 0, key, b'{"version":1,"n":2}'))
