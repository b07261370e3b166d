"""How many bytes a record takes on the broker, which limits the batch it travels in and not the record.

Source: Kafka's record batch format v2; sizes of DefaultRecordBatch and DefaultRecord.
"""

from app.core.record import Headers

BATCH_HEADER_BYTES = 61

LARGEST_OVERHEAD_BYTES = BATCH_HEADER_BYTES + 5 + 3 + 5 + 5 + 1
"""Batch header, length, attributes and deltas, lengths of key and value, no headers: never more than this."""


def batch_bytes(value: bytes | None, key: bytes | None, headers: Headers = ()) -> int:
    """Size of an uncompressed batch that holds this one record: what `max.message.bytes` is compared with."""
    body = 3 + _field_bytes(key) + _field_bytes(value) + _varint_bytes(len(headers))  # 3: attributes, two zero deltas
    for name, text in headers:
        body += _field_bytes(name.encode()) + _field_bytes(text)
    return BATCH_HEADER_BYTES + _varint_bytes(body) + body


def _field_bytes(data: bytes | None) -> int:
    return 1 if data is None else _varint_bytes(len(data)) + len(data)


def _varint_bytes(length: int) -> int:
    """A zigzag varint: 7 bits a byte, of twice the number."""
    return max(1, -(-(2 * length).bit_length() // 7))
