"""Event data reaches a model as visible, bounded JSON; the schema of an answer is one that a model can keep."""

import enum
import json
import unicodedata
from datetime import UTC, datetime, timedelta, timezone
from decimal import Decimal
from typing import Any, Literal

import msgspec
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from app.core.codec import encode
from app.core.errors import SetupError
from app.core.text import CUT, escape_unsafe
from app.models import prompt
from app.models.prompt import (
    MAX_CONTEXT_CHARACTERS,
    MAX_DEPTH,
    MAX_STRING_CHARACTERS,
    answer_schema,
    render_context,
)

HIDING = [
    *range(0x20),
    *range(0x7F, 0xA0),
    0xAD,
    0x034F,
    0x061C,
    0x115F,
    0x180E,
    *range(0x200B, 0x2010),
    0x2028,
    0x2029,
    *range(0x202A, 0x202F),
    *range(0x2060, 0x2070),
    0x3164,
    0xE000,
    *range(0xFE00, 0xFE10),
    0xFEFF,
    0xFFA0,
    *range(0xFFF9, 0xFFFC),
    *range(0xE0000, 0xE0080),
    *range(0xE0100, 0xE01F0),
    0x10FFFD,
]
HIDING_CATEGORIES = {"Cc", "Cf", "Zl", "Zp", "Co"}

json_leaves = st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text(max_size=30)
json_values = st.recursive(
    json_leaves, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4)
)
names = st.text("abcdef_", min_size=1, max_size=8)


class Size(enum.Enum):
    LARGE = "large"


class Rank(enum.IntEnum):
    HIGH = 3


class Order(msgspec.Struct, tag="order", tag_field="alert_type"):
    amount_usd: Decimal
    at: datetime
    size: Size
    rank: Rank


def test_render_context_struct_has_wire_form() -> None:
    """Money is a number with its cents, instants end in Z, enums are their values, the tag comes first."""
    at = datetime(2024, 5, 1, 14, 0, tzinfo=timezone(timedelta(hours=2)))
    text = render_context({"alert": Order(Decimal("10.50"), at, Size.LARGE, Rank.HIGH)})
    expected = '{"alert":{"alert_type":"order","amount_usd":10.50,"at":"2024-05-01T12:00:00Z","size":"large","rank":3}}'
    assert expected == text


def test_render_context_empty_is_an_empty_object() -> None:
    """No data is still JSON."""
    assert "{}" == render_context({})


def test_render_context_sets_have_one_order() -> None:
    """The same data gives the same text in every process, whatever its hash seed."""
    assert '{"tags":["a","b","c"]}' == render_context({"tags": {"c", "a", "b"}})


@pytest.mark.parametrize("point", HIDING, ids=lambda point: f"U+{point:04X}")
def test_render_context_hiding_character_is_escaped(point: int) -> None:
    """Characters that hide, reorder or break lines never appear raw, and decode to themselves."""
    character = chr(point)
    text = render_context({"note": f"a{character}b"})
    assert character not in text
    assert {"note": f"a{character}b"} == json.loads(text)


@given(st.dictionaries(names, json_values, max_size=5))
def test_render_context_that_fits_decodes_to_the_same_data(context: dict[str, Any]) -> None:
    """Where there is room for all of it, a decoder sees exactly the data, and no raw character that hides."""
    assume(len(escape_unsafe(encode(context).decode())) <= MAX_CONTEXT_CHARACTERS)
    text = render_context(context)
    assert context == json.loads(text)
    assert not {character for character in text if unicodedata.category(character) in HIDING_CATEGORIES}


def test_render_context_nested_fields_that_fit_are_whole() -> None:
    """Shares of shares are small long before anything is: they count only for what does not fit."""
    nested: Any = {"a": 1, "b": "\x1f" * 30}
    for _ in range(8):
        nested = {"a": nested, "b": 1, "c": 2, "d": 3}
    assert {"alert": nested} == json.loads(render_context({"alert": nested}))
    beside = json.loads(render_context({"alert": {"a_nested": nested, "b_note": ["x" * 2_000] * 50}}))["alert"]
    assert nested == beside["a_nested"]
    assert CUT in beside["b_note"][-1]


@pytest.mark.parametrize("missing", [0, 1])
def test_render_context_is_whole_up_to_the_last_character_of_the_room(missing: int) -> None:
    """The limit is the limit: what takes just as much is shown whole, and one character more is not."""
    texts = ["x" * 1_000] * (MAX_CONTEXT_CHARACTERS // 1_003)
    used = len(encode({"alert": [*texts, ""], "user": {}}))
    context = {"alert": [*texts, "x" * (MAX_CONTEXT_CHARACTERS - used + missing)], "user": {}}
    assert bool(missing) == (CUT in render_context(context))


@given(st.text(min_size=1, max_size=40), st.integers(1, 4), st.integers(0, 300))
def test_render_context_any_size_stays_valid_and_bounded(piece: str, depth: int, count: int) -> None:
    """However much an outsider writes, the result is valid JSON within its limit."""
    value: Any = [piece * 100] * count
    for _ in range(depth):
        value = {piece: value, "more": [{piece: count}] * 50}
    text = render_context({"alert": value, "user": [value], "short": 1})
    decoded = json.loads(text)
    assert MAX_CONTEXT_CHARACTERS >= len(text)
    assert {"alert", "user", "short"} == decoded.keys()
    assert 1 == decoded["short"]


@pytest.mark.parametrize("entries", [1, 2, 7])
def test_render_context_full_entries_use_the_room_and_no_more(entries: int) -> None:
    """Where all entries are too long, together they fill the limit and never pass it."""
    text = render_context({f"entry{i}": ["\u202e" * 50] * 5_000 for i in range(entries)})
    assert MAX_CONTEXT_CHARACTERS * 0.9 < len(text) <= MAX_CONTEXT_CHARACTERS


def test_render_context_long_string_is_cut_visibly() -> None:
    """A mark says how much is missing."""
    text = json.loads(render_context({"note": "x" * (MAX_STRING_CHARACTERS + 5)}))["note"]
    assert "x" * MAX_STRING_CHARACTERS + f"{CUT}5 characters]" == text


def test_render_context_long_entry_does_not_crowd_out_another() -> None:
    """One entry's length costs only itself: the other is whole."""
    user = {"order_count_5m": 4, "note": "y" * 1_000}
    decoded = json.loads(render_context({"alert": ["x" * 1_999] * 1_000, "user": user}))
    assert user == decoded["user"]
    assert decoded["alert"][-1].startswith(CUT)


@pytest.mark.parametrize("note", ["x" * 1_000_000, "\u202e" * 2_000, "\U000e0041" * 2_000, ["x" * 2_000] * 500])
def test_render_context_long_field_does_not_hide_those_after_it(note: Any) -> None:
    """Whoever may write the notes of an order cannot write its amount out of the model's sight."""
    order = {"a_note": note, "b_note": note, "c_note": note, "d_amount_usd": 12_000, "e_user": "u-17"}
    decoded = json.loads(render_context({"alert": order, "user": order}))
    for entry in decoded.values():
        assert order.keys() == entry.keys()
        assert (12_000, "u-17") == (entry["d_amount_usd"], entry["e_user"])
        assert CUT in json.dumps(entry["c_note"], ensure_ascii=False)


BUSHY: Any = "\u202e" * 2_000
for _ in range(10):
    BUSHY = [BUSHY, {"a": BUSHY, "b": 1}]


@pytest.mark.parametrize(
    "value",
    [
        ["\u202e" * 2_000] * 1_000,
        [["\u202e" * 2_000] * 100] * 100,
        [{"a": ["\U000e0041" * 700]}] * 2_000,
        {f"k{i}": "\u202e" * 300 for i in range(5_000)},
        {"\u202e" * 1_900 + str(i): 1 for i in range(1_000)},
        ["x" * 100_000] * 1_000,
        list(range(100_000)),
        BUSHY,
    ],
)
def test_render_context_hostile_size_costs_bounded_work(value: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """How much is encoded to find out what fits is bounded by the limit, not by what an outsider sends."""
    encoded_bytes = 0

    def counting_encode(value: Any) -> bytes:
        nonlocal encoded_bytes
        encoded = encode(value)
        encoded_bytes += len(encoded)
        return encoded

    monkeypatch.setattr(prompt, "encode", counting_encode)
    text = render_context({"alert": value, "user": value})
    assert MAX_CONTEXT_CHARACTERS >= len(text)
    assert encoded_bytes <= 4 * MAX_CONTEXT_CHARACTERS


def test_render_context_many_fields_end_in_a_mark() -> None:
    """An object that is too wide says how many fields are not shown."""
    decoded = json.loads(render_context({"alert": {f"field{i:05}": "x" * 100 for i in range(1_000)}}))["alert"]
    shown = len(decoded) - 1
    assert f"{CUT}{1_000 - shown} fields]" == decoded["…"]


def test_render_context_deep_value_is_cut() -> None:
    """Nesting has an end."""
    value: Any = "core"
    for _ in range(MAX_DEPTH + 5):
        value = [value]
    text = render_context({"alert": value})
    assert "core" not in text
    assert f"{CUT}1 items]" in text


def test_render_context_long_names_stay_apart() -> None:
    """Two field names that are equal after the cut do not hide each other."""
    name = "n" * MAX_STRING_CHARACTERS
    decoded = json.loads(render_context({"alert": {name + "a": 1, name + "b": 2}}))["alert"]
    assert [1, 2] == list(decoded.values())


def test_render_context_half_surrogate_is_replaced() -> None:
    """Text without a UTF-8 form is shown as far as it has one."""
    assert {"note": "a?b"} == json.loads(render_context({"note": "a\ud800b"}))


def test_render_context_number_without_json_form_is_text() -> None:
    """A Decimal NaN would not be JSON."""
    assert {"amount": "NaN"} == json.loads(render_context({"amount": Decimal("NaN")}))


def test_render_context_instant_without_zone_stays_as_it_is() -> None:
    """No zone is invented."""
    naive = datetime(2024, 5, 1, tzinfo=UTC).replace(tzinfo=None)
    assert '{"at":"2024-05-01T00:00:00"}' == render_context({"at": naive})


def test_render_context_unknown_type_is_an_error() -> None:
    """What has no JSON form is the author's mistake, not a repr in a prompt."""
    with pytest.raises(TypeError, match="cannot show a object"):
        render_context({"thing": object()})


class Detail(msgspec.Struct):
    code: int


class Decision(msgspec.Struct, frozen=True):
    """What to do."""

    action: Literal["approve", "block"]
    details: list[Detail]
    note: str | None = None


class WithDictionary(msgspec.Struct):
    scores: dict[str, int]


class WithOpenDictionary(msgspec.Struct):
    scores: dict[str, Any]


class WithTuple(msgspec.Struct):
    pair: tuple[int, str]


class WithAny(msgspec.Struct):
    anything: Any


class WithItself(msgspec.Struct):
    children: list["WithItself"]


def test_answer_schema_has_its_object_at_the_root_and_closes_all() -> None:
    """The decision is the root, parts are definitions, and no object takes undeclared fields."""
    schema = answer_schema(Decision)
    assert "object" == schema["type"]
    assert ["action", "details"] == schema["required"]
    assert schema["additionalProperties"] is False
    assert schema["$defs"]["Detail"]["additionalProperties"] is False


@pytest.mark.parametrize("answer_type", [WithDictionary, WithOpenDictionary, WithTuple, WithAny, WithItself])
def test_answer_schema_type_that_no_model_can_answer_is_refused(answer_type: type[msgspec.Struct]) -> None:
    """Found when the agent is declared, and the error names the type."""
    with pytest.raises(SetupError, match=answer_type.__name__):
        answer_schema(answer_type)
