"""What is known of the offsets beyond a committed one, in the characters that travel with it.

Two bits an offset: nothing known, unfinished in one or two crashes, or done. A window of `WINDOW` offsets is 2,048 bytes,
so the text always fits what a broker takes beside an offset, however the done ones are scattered. Before them stands
whether the owner still held the partition, and the few records that it had announced (see `caution`).

The text is bound to its offset by a checksum: one that another client wrote, or that was carried to another offset, is
not ours, and no record is passed over because of it.
"""

import base64
import zlib
from collections.abc import Collection, Mapping
from enum import IntEnum
from typing import NamedTuple

from app.broker.base import MAX_METADATA_CHARACTERS

WINDOW = 8_192
"""Offsets from the first unfinished one up to which records are taken."""

MAX_ANNOUNCED = 63
"""Announced records that fit: two bytes each, 172 of the characters."""

_VERSION = "h2."

_PLAIN, _DEFLATED = b"\x00", b"\x01"
_OPEN, _ALL_NAMED = 128, 64
_CHECKSUM_BYTES = 4
_PACKED_BYTES = WINDOW // 4


class Mark(IntEnum):
    """What is known of one offset; an offset without a mark is merely unfinished."""

    ONE_CRASH = 1
    TWO_CRASHES = 2
    DONE = 3


class Known(NamedTuple):
    """What one commit says beside its offset.

    announced: records that may have been running. is_open: its owner meant to commit again, so when this is the last
    commit, that owner did not end cleanly. names_all: no other record was running.
    """

    marks: dict[int, Mark]
    announced: frozenset[int] = frozenset()
    is_open: bool = False
    names_all: bool = False


def encode_marks(
    position: int,
    marks: Mapping[int, Mark],
    announced: Collection[int] = (),
    *,
    is_open: bool = False,
    names_all: bool = False,
) -> str:
    """The metadata of a commit at `position`: at most 4,095 characters, empty when there is nothing to say.

    Args: marks: by offset. announced: `MAX_ANNOUNCED` offsets at most. All with `position <= offset < position + WINDOW`.
    """
    if not (marks or announced or is_open):
        return ""
    assert len(announced) <= MAX_ANNOUNCED
    packed = bytearray(_ahead(max(marks), position) // 4 + 1 if marks else 0)
    for offset, mark in marks.items():
        ahead = _ahead(offset, position)
        packed[ahead >> 2] |= mark << ((ahead & 3) << 1)
    head = bytes([is_open * _OPEN + names_all * _ALL_NAMED + len(announced)])
    head += b"".join(_ahead(offset, position).to_bytes(2, "big") for offset in sorted(announced))
    deflated = zlib.compress(packed, level=1)
    body = head + (_DEFLATED + deflated if len(deflated) < len(packed) else _PLAIN + packed)
    text = _VERSION + base64.b64encode(_checksum(position, body) + body).decode()
    assert len(text) <= MAX_METADATA_CHARACTERS
    return text


def decode_marks(position: int, metadata: str) -> Known | None:
    """What `encode_marks` wrote for this position; None when the text is not ours or is damaged."""
    if not metadata:
        return Known({})
    version, text = metadata[: len(_VERSION)], metadata[len(_VERSION) :]
    if version != _VERSION:
        return None
    try:
        blob = base64.b64decode(text, validate=True)
    except ValueError:
        return None
    checksum, body = blob[:_CHECKSUM_BYTES], blob[_CHECKSUM_BYTES:]
    if checksum != _checksum(position, body) or not body:
        return None
    count = body[0] & MAX_ANNOUNCED
    head, packed_marks = body[1 : 1 + 2 * count], body[1 + 2 * count :]
    announced = frozenset(position + int.from_bytes(head[at : at + 2], "big") for at in range(0, len(head), 2))
    packed = _unpack(packed_marks)
    if packed is None:
        return None
    marks = {}
    for index, four in enumerate(packed):
        if four:
            for place in range(4):
                if bits := (four >> (place << 1)) & 3:
                    marks[position + index * 4 + place] = Mark(bits)
    return Known(marks, announced, bool(body[0] & _OPEN), bool(body[0] & _ALL_NAMED))


def _ahead(offset: int, position: int) -> int:
    assert offset >= position, f"offset {offset} lies before {position}"
    assert offset - position < WINDOW, f"offset {offset} lies beyond the window of {position}"
    return offset - position


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
