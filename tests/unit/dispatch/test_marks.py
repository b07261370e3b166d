"""The metadata beside a committed offset: what fits, and what is not believed."""

import base64
import zlib
from random import Random

import pytest
from hypothesis import given
from hypothesis.strategies import booleans, dictionaries, integers, sampled_from, sets, text

from app.broker.base import MAX_METADATA_CHARACTERS
from app.dispatch.marks import MAX_ANNOUNCED, WINDOW, Known, Mark, decode_marks, encode_marks

POSITION = 12_345_678_901


@given(
    position=integers(0, 2**62),
    ahead=dictionaries(integers(0, WINDOW - 1), sampled_from(Mark), max_size=300),
    announced=sets(integers(0, WINDOW - 1), max_size=MAX_ANNOUNCED),
    is_open=booleans(),
    names_all=booleans(),
)
def test_encode_marks_all_that_is_known_is_read_back(
    position: int, ahead: dict[int, Mark], announced: set[int], is_open: bool, names_all: bool
) -> None:
    """What was written at an offset is read back at that offset, and fits."""
    marks = {position + distance: mark for distance, mark in ahead.items()}
    offsets = frozenset(position + distance for distance in announced)
    names_all = names_all and is_open
    metadata = encode_marks(position, marks, offsets, is_open=is_open, names_all=names_all)
    assert Known(marks, offsets, is_open, names_all) == decode_marks(position, metadata)
    assert len(metadata) <= MAX_METADATA_CHARACTERS


def test_encode_marks_full_incompressible_window_fits() -> None:
    """A window whose every offset has a mark drawn by chance fits what a broker takes, with room to spare."""
    random = Random(3)
    marks = {POSITION + ahead: random.choice(list(Mark)) for ahead in range(WINDOW)}
    announced = frozenset(range(POSITION + WINDOW - MAX_ANNOUNCED, POSITION + WINDOW))
    metadata = encode_marks(POSITION, marks, announced, is_open=True)
    assert Known(marks, announced, True) == decode_marks(POSITION, metadata)
    assert len(metadata) <= 2_950


def test_encode_marks_long_run_is_short() -> None:
    """Thousands done behind one unfinished record take a few characters, not thousands."""
    marks = {POSITION + ahead: Mark.DONE for ahead in range(1, WINDOW)}
    assert len(encode_marks(POSITION, marks)) < 100


def test_encode_marks_nothing_known_is_empty() -> None:
    """No marks, no metadata."""
    assert encode_marks(POSITION, {}) == ""
    assert decode_marks(POSITION, "") == Known({})


@pytest.mark.parametrize("offset", [POSITION - 1, POSITION + WINDOW])
def test_encode_marks_outside_window_is_a_broken_invariant(offset: int) -> None:
    """A mark outside the window is a mistake of ours, not something to write down."""
    with pytest.raises(AssertionError):
        encode_marks(POSITION, {offset: Mark.DONE})


@given(text(max_size=60))
def test_decode_marks_foreign_text_is_not_ours(foreign: str) -> None:
    """What another client wrote is not read as marks, and does not fail."""
    assert decode_marks(POSITION, foreign) == (Known({}) if foreign == "" else None)
    assert decode_marks(POSITION, "h2." + foreign) is None


def test_decode_marks_at_another_offset_are_not_ours() -> None:
    """Metadata that a tool carried along to another offset says nothing about the records there."""
    metadata = encode_marks(POSITION, {POSITION + 2: Mark.DONE})
    assert decode_marks(POSITION + 1, metadata) is None


def test_decode_marks_each_damaged_character_is_noticed() -> None:
    """One changed character anywhere, and no record is passed over because of it."""
    metadata = encode_marks(POSITION, {POSITION + ahead: Mark.DONE for ahead in (2, 5, 77)})
    for index, character in enumerate(metadata):
        damaged = metadata[:index] + ("A" if character != "A" else "B") + metadata[index + 1 :]
        assert decode_marks(POSITION, damaged) is None, f"character {index}"


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"\x07abc",
        b"\x00" + bytes(WINDOW // 4 + 1),
        b"\x01" + zlib.compress(bytes(10_000_000)),
        b"\x01" + zlib.compress(b"abc")[:-1],
        b"\x01abc",
    ],
    ids=["empty", "unknown kind", "plain too long", "inflates too far", "cut", "no deflate"],
)
def test_decode_marks_well_signed_nonsense_is_not_ours(body: bytes) -> None:
    """A right checksum over a wrong body is refused too, and a small text that inflates to megabytes is not inflated."""
    assert decode_marks(POSITION, signed("h1.", b"\x80" + body)) is None
    assert decode_marks(POSITION, signed("h2.", b"\x80" + body)) is None
    assert decode_marks(POSITION, signed("h2.", b"")) is None


def signed(version: str, body: bytes) -> str:
    checksum = zlib.crc32(body, zlib.crc32(str(POSITION).encode())).to_bytes(4, "big")
    return version + base64.b64encode(checksum + body).decode()
