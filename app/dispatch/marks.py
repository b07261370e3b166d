"""What is known of the offsets beyond a committed one, in the characters that travel with it.

Two bits an offset: nothing known, unfinished in one or two crashes, or done. A window of `WINDOW` offsets is 2,048 bytes,
so the text always fits what a broker takes beside an offset, however the done ones are scattered.

The text is bound to its offset by a checksum: one that another client wrote, or that was carried to another offset, is
not ours, and no record is passed over because of it.
"""

import base64
import zlib
from collections.abc import Mapping
from enum import IntEnum

from app.broker.base import MAX_METADATA_CHARACTERS

WINDOW = 8_192
"""Offsets from the first unfinished one up to which records are taken."""

_VERSION = "h1."
_PLAIN, _DEFLATED = b"\x00", b"\x01"
_CHECKSUM_BYTES = 4
_PACKED_BYTES = WINDOW // 4


class Mark(IntEnum):
    """What is known of one offset; an offset without a mark is merely unfinished."""

    ONE_CRASH = 1
    TWO_CRASHES = 2
    DONE = 3


def encode_marks(position: int, marks: Mapping[int, Mark]) -> str:
    """The metadata of a commit at `position`: at most 4,095 characters, empty when there are no marks.

    Args: marks: by offset, each with `position <= offset < position + WINDOW`.
    """
    if not marks:
        return ""
    ahead = max(marks) - position
    assert ahead < WINDOW, f"offset {max(marks)} lies beyond the window of {position}"
    packed = bytearray(ahead // 4 + 1)
    for offset, mark in marks.items():
        ahead = offset - position
        assert ahead >= 0, f"offset {offset} lies before {position}"
        packed[ahead >> 2] |= mark << ((ahead & 3) << 1)
    deflated = zlib.compress(packed, level=1)
    body = _DEFLATED + deflated if len(deflated) < len(packed) else _PLAIN + packed
    text = _VERSION + base64.b64encode(_checksum(position, body) + body).decode()
    assert len(text) <= MAX_METADATA_CHARACTERS
    return text


def decode_marks(position: int, metadata: str) -> dict[int, Mark] | None:
    """The marks that `encode_marks` wrote for this position; None when the text is not ours or is damaged."""
    if not metadata:
        return {}
    if not metadata.startswith(_VERSION):
        return None
    try:
        blob = base64.b64decode(metadata[len(_VERSION) :], validate=True)
    except ValueError:
        return None
    checksum, body = blob[:_CHECKSUM_BYTES], blob[_CHECKSUM_BYTES:]
    if checksum != _checksum(position, body):
        return None
    packed = _unpack(body)
    if packed is None:
        return None
    marks = {}
    for index, four in enumerate(packed):
        if four:
            for place in range(4):
                if bits := (four >> (place << 1)) & 3:
                    marks[position + index * 4 + place] = Mark(bits)
    return marks


def _unpack(body: bytes) -> bytes | None:
    kind, packed = body[:1], body[1:]
    if kind == _DEFLATED:
        inflater = zlib.decompressobj()
        try:
            packed = inflater.decompress(packed, _PACKED_BYTES)
        except zlib.error:
            return None
        if not inflater.eof:  # cut short, or larger than any window
            return None
    elif kind != _PLAIN:
        return None
    return packed if len(packed) <= _PACKED_BYTES else None


def _checksum(position: int, body: bytes) -> bytes:
    return zlib.crc32(body, zlib.crc32(str(position).encode())).to_bytes(_CHECKSUM_BYTES, "big")
