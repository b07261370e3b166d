"""Text from outside as people and brokers can take it: visible, on one line, bounded, always encodable."""

import functools
import re

import msgspec

CUT = "…[cut: "
"""How every mark begins that says what is not shown."""

# Control characters, everything that is drawn as nothing (zero-width, fillers, variation selectors, tags), everything
# that changes the direction of its neighbours, line and paragraph separators, private use, which has no meaning, and the
# code points that are no characters.
_UNSAFE = re.compile(
    "[\u0000-\u001f\u007f-\u009f\u00ad\u034f\u0600-\u0605\u061c\u06dd\u070f\u0890\u0891\u08e2\u115f\u1160\u17b4\u17b5"
    "\u180b-\u180f\u200b-\u200f\u2028-\u202e\u2060-\u206f\u3164\ue000-\uf8ff\ufe00-\ufe0f\ufeff\uffa0\ufff0-\ufffb"
    "\U000110bd\U000110cd\U00013430-\U0001343f\U0001bca0-\U0001bca3\U0001d173-\U0001d17a\U000e0000-\U000e0fff"
    "\U000f0000-\U0010ffff\ufdd0-\ufdef\ufffe\uffff"
    "\U0001fffe\U0001ffff\U0002fffe\U0002ffff\U0003fffe\U0003ffff\U0004fffe\U0004ffff\U0005fffe\U0005ffff"
    "\U0006fffe\U0006ffff\U0007fffe\U0007ffff\U0008fffe\U0008ffff\U0009fffe\U0009ffff\U000afffe\U000affff"
    "\U000bfffe\U000bffff\U000cfffe\U000cffff\U000dfffe\U000dffff\U000efffe\U000effff]"
)


def escape_unsafe(text: str) -> str:
    """Every character that could hide or reorder its neighbours, as \\uXXXX (two of them beyond U+FFFF).

    Inside a JSON string this changes nothing that a decoder sees.
    """
    return _UNSAFE.sub(_as_escape, text)


def cut(text: str, max_characters: int) -> str:
    """The first characters, with a mark where there are more. Half a surrogate pair, which nothing can encode, becomes
    a question mark."""
    shown = text[:max_characters].encode("utf-8", "replace").decode()
    return shown if len(text) <= max_characters else f"{shown}{CUT}{len(text) - max_characters} characters]"


def one_line(said: object, max_characters: int = 200) -> str:
    """What somebody else has said, or an exception of theirs, for a reason, an error or a log.

    Every detail that comes from outside passes through here before it is kept or shown. An exception without a text is
    its type's name; one that fails while it is asked for its text stops nothing.
    """
    try:
        text = str(said)
    except Exception:  # noqa: BLE001 - a handler's exception may do anything
        text = ""
    text = " ".join(text.split()) or (type(said).__name__ if isinstance(said, BaseException) else "")
    return escape_unsafe(cut(text, max_characters))


def _as_escape(match: re.Match[str]) -> str:
    return _escape(match[0])


@functools.lru_cache(maxsize=4_096)
def _escape(character: str) -> str:
    units = character.encode("utf-16-be")
    return "".join(f"\\u{units[i]:02x}{units[i + 1]:02x}" for i in range(0, len(units), 2))


def longest(struct: type[msgspec.Struct], field: str) -> int | None:
    """How many characters a text field of a struct may have; None where nothing bounds it."""
    shape = msgspec.inspect.type_info(struct)
    assert isinstance(shape, msgspec.inspect.StructType)
    kind = next((one.type for one in shape.fields if one.name == field), None)
    while isinstance(kind, msgspec.inspect.Metadata):
        kind = kind.type
    if isinstance(kind, msgspec.inspect.LiteralType):
        return max(len(str(value)) for value in kind.values)
    return kind.max_length if isinstance(kind, msgspec.inspect.StrType) else None
