"""How commands speak: data on stdout, the rest on stderr."""

import json
from decimal import Decimal

import msgspec
import pytest

from app.cli import output


class Row(msgspec.Struct):
    name: str
    amount: Decimal


def test_json_line_is_one_compact_line(capsys: pytest.CaptureFixture[str]) -> None:
    """A struct becomes one JSON object with exact numbers."""
    output.json_line(Row("a\nb", Decimal("10.50")))
    assert '{"name":"a\\nb","amount":10.50}\n' == capsys.readouterr().out


def test_error_of_many_lines_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    """Whatever a library says, the user sees one line, on stderr."""
    output.error("first\n  second")
    assert ("", "error: first second\n") == capsys.readouterr()


def test_table_shows_text_as_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    """Brackets in data are not markup, and nothing is cut."""
    output.table(("id", "what"), [("[red]o-1[/red]", "x" * 150), ("o-2", None)])
    shown = capsys.readouterr().out
    assert "[red]o-1[/red]" in shown
    assert "x" * 150 in shown


def test_note_stays_off_stdout(capsys: pytest.CaptureFixture[str]) -> None:
    """A pipe sees data only."""
    output.note("waiting")
    assert ("", "waiting\n") == capsys.readouterr()


def test_json_line_of_a_mapping_reads_back(capsys: pytest.CaptureFixture[str]) -> None:
    """Any JSON reader understands it."""
    output.json_line({"a": [1, None]})
    assert {"a": [1, None]} == json.loads(capsys.readouterr().out)
