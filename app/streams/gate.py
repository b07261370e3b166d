"""The gate: what makes a record of a raw topic valid, beside its struct's own constraints. See docs/validity.md."""

import msgspec

from app.core.record import Record

MAX_KEY_BYTES = 1_000
"""A key of 200 characters, whatever they are, in UTF-8; every output and table entry carries it."""

LATEST_MS = 253_402_300_799_999
"""The last millisecond of the year 9999, beyond which no time can be written down."""

DECODE_ERRORS = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)
"""What decoding bytes into a struct may raise; ValidationError is a DecodeError."""


class _Heartbeat(msgspec.Struct, forbid_unknown_fields=True):
    heartbeat: bool


def is_heartbeat(record: Record) -> bool:
    """Null key and `{"heartbeat": true}`: moves its partition's time and is nothing else."""
    if record.key is not None or record.value is None or not 0 <= record.timestamp_ms <= LATEST_MS:
        return False
    try:
        return msgspec.json.decode(record.value, type=_Heartbeat).heartbeat
    except DECODE_ERRORS:
        return False


def reason_of_incomplete(record: Record) -> str:
    """Why a record without a value, key or time that can be used is bad."""
    if record.value is None:
        return "the value is null"
    if record.key is None:
        return "the key is null"
    if not 0 < len(record.key) <= MAX_KEY_BYTES:
        return f"the key has {len(record.key):,} bytes; 1 to {MAX_KEY_BYTES:,} are taken"
    return f"the record's time {record.timestamp_ms} is not between 1970 and 9999"
