"""The gate: heartbeats, and the reasons for which a record is bad before it is decoded."""

import pytest

from app.core.record import Record
from app.streams.gate import LATEST_MS, MAX_KEY_BYTES, is_heartbeat, reason_of_incomplete


def record(key: bytes | None, value: bytes | None, time_ms: int = 1) -> Record:
    return Record("raw.orders", 0, 0, time_ms, key, value)


@pytest.mark.parametrize("value", [b'{"heartbeat": true}', b' { "heartbeat" : true } ', b'{"heart\\u0062eat":true}'])
def test_is_heartbeat_true_without_a_key_is_one(value: bytes) -> None:
    """However its JSON is spaced."""
    assert is_heartbeat(record(None, value))
    assert is_heartbeat(record(None, value, 0))
    assert is_heartbeat(record(None, value, LATEST_MS))


@pytest.mark.parametrize(
    "value",
    [
        None,
        b"",
        b"{}",
        b"true",
        b"[true]",
        b'{"heartbeat":false}',
        b'{"heartbeat":1}',
        b'{"heartbeat":"true"}',
        b'{"heartbeat":true,"more":1}',
        b'{"heartbeat":true',
        b"\xff",
        b"[" * 100_000,
    ],
)
def test_is_heartbeat_anything_else_is_none(value: bytes | None) -> None:
    """A near miss is a bad record: its time must not move the partition's."""
    assert not is_heartbeat(record(None, value))


@pytest.mark.parametrize(("key", "time_ms"), [(b"u1", 1), (b"", 1), (None, -1), (None, LATEST_MS + 1)])
def test_is_heartbeat_with_a_key_or_an_impossible_time_is_none(key: bytes | None, time_ms: int) -> None:
    """Only a null key goes to every partition, and only a time that exists moves one."""
    assert not is_heartbeat(record(key, b'{"heartbeat": true}', time_ms))


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        (record(b"u1", None), "the value is null"),
        (record(None, None), "the value is null"),
        (record(None, b"{}"), "the key is null"),
        (record(b"", b"{}"), "the key has 0 bytes; 1 to 1,000 are taken"),
        (record(b"k" * (MAX_KEY_BYTES + 1), b"{}"), "the key has 1,001 bytes; 1 to 1,000 are taken"),
        (record(b"u1", b"{}", -5), "the record's time -5 is not between 1970 and 9999"),
    ],
)
def test_reason_of_incomplete_says_what_is_missing(bad: Record, reason: str) -> None:
    """One line, for the dead letter."""
    assert reason == reason_of_incomplete(bad)
