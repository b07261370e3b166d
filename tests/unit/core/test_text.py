"""Outside text is visible, bounded and encodable."""

import unicodedata
from typing import Annotated, Literal

import msgspec
import pytest

from app.core.text import CUT, escape_unsafe, longest, one_line

HIDING_CATEGORIES = {"Cc", "Cf", "Zl", "Zp", "Co"}


def test_escape_unsafe_every_control_and_format_character_of_unicode() -> None:
    """The list in the code holds every character that Unicode says is control, format, separator or private."""
    raw = [
        f"U+{point:04X}"
        for point in range(0x110000)
        if unicodedata.category(chr(point)) in HIDING_CATEGORIES and chr(point) in escape_unsafe(chr(point))
    ]
    assert [] == raw


def test_one_line_any_text_is_one_short_line() -> None:
    """Line breaks and hiding characters are gone, and the length is bounded."""
    line = one_line("first\nsecond\u2028\u202e" + "x" * 500, 50)
    assert 1 == len(line.splitlines())
    assert line.startswith("first second \\u202exx")
    assert CUT in line


def test_one_line_half_a_surrogate_pair_can_be_encoded() -> None:
    """File names and sockets give such text; whoever writes it down must not fail over it."""
    assert b"no file named ?" == one_line(OSError("no file named \udcff")).encode()


def test_one_line_exception_without_text_says_its_type() -> None:
    """An empty reason would say nothing."""
    assert "TimeoutError" == one_line(TimeoutError())


def test_one_line_exception_that_fails_to_speak_says_its_type() -> None:
    """The text of an exception is code of its author's."""

    class Mute(Exception):
        def __str__(self) -> str:
            raise RuntimeError("no text")

    assert "Mute" == one_line(Mute())


class Noted(msgspec.Struct):
    """Text that is bounded, with more said about it, and text that is not."""

    id: Annotated[str, msgspec.Meta(max_length=20, extra={"unit": "id"})]
    text: str
    number: int
    state: Literal["new", "newer"]


@pytest.mark.parametrize(
    ("field", "expected"), [("id", 20), ("text", None), ("number", None), ("state", 5), ("nobody", None)]
)
def test_longest_is_what_the_declaration_says(field: str, expected: int | None) -> None:
    """Whatever else it says about the field."""
    assert expected == longest(Noted, field)
