"""How commands speak: data on stdout, the rest on stderr."""

import json
import logging
from collections.abc import Callable, Iterator
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


LONG = ("3/17", "high_value_order:u-17:o-1", "because " * 20)


def test_table_piped_has_all_columns_and_whole_cells(capsys: pytest.CaptureFixture[str]) -> None:
    """Nobody resizes a pipe: lines are as long as they must be."""
    row = {f"id{number}": "x" * 30 + str(number) for number in range(9)}
    output.table(tuple(row), [tuple(row.values())], whole=tuple(row), spare=("id0",))
    lines = capsys.readouterr().out.splitlines()
    assert any(all(cell in line for cell in row.values()) for line in lines)


@pytest.mark.parametrize(
    ("columns", "shown"), [("120", ("id", "alert", "why")), ("50", ("id", "alert")), ("9", ("id",))]
)
def test_table_narrow_terminal_leaves_out_what_is_spare(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, columns: str, shown: tuple[str, ...]
) -> None:
    """In the given order, and only as many as it takes; words wrap, ids do not."""
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", columns)
    output.table(("id", "alert", "why"), [LONG], whole=("id", "alert"), spare=("why", "alert"))
    said = capsys.readouterr()
    header = next(line for line in said.out.splitlines() if "id" in line)
    assert list(shown) == [name for name in ("id", "alert", "why") if name in header]
    assert LONG[0] in said.out
    assert ("alert" in shown) == (LONG[1] in said.out)
    assert (len(shown) < 3) == ("left out" in said.err)


def test_note_stays_off_stdout(capsys: pytest.CaptureFixture[str]) -> None:
    """A pipe sees data only."""
    output.note("waiting")
    assert ("", "waiting\n") == capsys.readouterr()


def test_json_line_of_a_mapping_reads_back(capsys: pytest.CaptureFixture[str]) -> None:
    """Any JSON reader understands it."""
    output.json_line({"a": [1, None]})
    assert {"a": [1, None]} == json.loads(capsys.readouterr().out)


HOSTILE = "a\x1b[31m\r\nerror: forged\u202eb\x9b"


def test_line_note_error_and_table_show_what_could_act_on_a_terminal_as_escapes(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Bytes of an event neither run nor forge a line, wherever they are shown."""
    output.line(HOSTILE)
    output.note(HOSTILE)
    output.error(HOSTILE)
    output.table(("what",), [(HOSTILE,)])
    said = capsys.readouterr()
    escaped = "a\\u001b[31m\\u000d\\u000aerror: forged\\u202eb\\u009b"
    assert f"{escaped}\n" == said.out.splitlines(keepends=True)[0]
    assert escaped in said.out.partition("\n")[2]
    assert f"{escaped}\nerror: a\\u001b[31m error: forged\\u202eb\\u009b\n" == said.err


def test_json_line_of_hostile_text_reads_back_as_it_was(capsys: pytest.CaptureFixture[str]) -> None:
    """Inside JSON an escape is the character itself."""
    output.json_line({"a": HOSTILE})
    said = capsys.readouterr().out
    assert {"a": HOSTILE} == json.loads(said)
    assert said[:-1].isprintable()


@pytest.fixture
def set_up(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], None]]:
    """Sets up logging as in a new process; afterwards it is as it was."""
    loggers = [logging.root, *(logging.getLogger(name) for name in output.TALKATIVE)]
    levels = [logger.level for logger in loggers]

    def call(level: str) -> None:
        monkeypatch.setattr(logging.root, "handlers", [])
        output.set_up_logs(level)

    yield call
    for logger, level in zip(loggers, levels, strict=True):
        logger.setLevel(level)


@pytest.mark.parametrize("level", ["debug", "info"])
def test_logs_never_hold_requests_of_libraries(
    set_up: Callable[[str], None], capsys: pytest.CaptureFixture[str], level: str
) -> None:
    """An address may hold a password; the HTTP client would log it with every request."""
    set_up(level)
    for name in ("httpx2", "httpcore2.http11", "anthropic._base_client", "asyncio"):
        logging.getLogger(name).info("HTTP Request: POST https://user:secret@host/?token=secret")
    logging.getLogger("app.worker").info("running")
    said = capsys.readouterr().err
    assert "secret" not in said
    assert "app.worker: running" in said


def test_logs_of_libraries_keep_a_higher_level_that_was_asked_for(
    set_up: Callable[[str], None], capsys: pytest.CaptureFixture[str]
) -> None:
    """At `error` their warnings are not shown either."""
    set_up("error")
    logging.getLogger("httpx2").warning("slow")
    assert "" == capsys.readouterr().err


def test_logs_record_is_one_line_and_a_traceback_forges_none(
    set_up: Callable[[str], None], capsys: pytest.CaptureFixture[str]
) -> None:
    """An alert id is data of an event, also inside an exception."""
    set_up("info")
    logging.getLogger("app").info("alert %s", HOSTILE)
    try:
        raise ValueError(HOSTILE)
    except ValueError:
        logging.getLogger("app").exception("failed")
    first, second, *traceback = capsys.readouterr().err.splitlines()
    assert first.endswith("alert a\\u001b[31m\\u000d\\u000aerror: forged\\u202eb\\u009b")
    assert second.endswith("app: failed")
    assert traceback
    assert all(line.startswith("  ") and line.isprintable() for line in traceback)
