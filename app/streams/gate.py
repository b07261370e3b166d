"""The gate: what makes a record of a raw topic valid, beside its struct's own constraints. See docs/validity.md."""

import msgspec

from app.core.record import Record

DECODE_ERRORS = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)
"""What decoding bytes into a struct may raise; ValidationError is a DecodeError."""


def is_heartbeat(record: Record) -> bool:
    """Null key and `{"heartbeat": true}`: moves its partition's time and is nothing else."""
    if record.key is not None or record.value is None or record.timestamp_ms < 0:
        return False
    try:
        return bool(msgspec.json.decode(record.value) == {"heartbeat": True})
    except DECODE_ERRORS:
        return False


def reason_of_incomplete(record: Record) -> str:
    """Why a record without key, value or time of its own is bad."""
    if record.value is None:
        return "the value is null"
    if record.key is None:
        return "the key is null"
    return f"the record's time {record.timestamp_ms} lies before 1970"
