"""The root of the command line: what becomes of errors, and how quickly it answers."""

import asyncio
import subprocess
import sys
from collections.abc import Iterator
from typing import NoReturn

import pytest

from app.cli.main import cli, known_errors, run
from app.core.errors import Rejected, SetupError, Unavailable

HEAVY = ("aiokafka", "confluent_kafka", "redis", "anthropic", "duckdb", "uvicorn", "starlette", "uvloop", "rich")


@pytest.fixture
def failing() -> Iterator[list[BaseException]]:
    """A command `fail` that raises what the test puts in the list."""
    errors: list[BaseException] = []

    @cli.command(name="fail")
    def fail() -> NoReturn:
        raise errors[0]

    yield errors
    cli.registered_commands.pop()


def exit_code(*arguments: str) -> object:
    with pytest.raises(SystemExit) as left:
        run(list(arguments))
    return left.value.code


def test_run_known_error_is_one_line(failing: list[BaseException], capsys: pytest.CaptureFixture[str]) -> None:
    """An error of this project is one line on stderr and exit code 2."""
    failing.append(SetupError("HEADRACE_BROKER", "must begin with\nkafka://"))
    assert 2 == exit_code("fail")
    assert ("", "error: HEADRACE_BROKER: must begin with kafka://\n") == capsys.readouterr()


def test_run_with_debug_shows_the_traceback(failing: list[BaseException], capsys: pytest.CaptureFixture[str]) -> None:
    """And ends with the same line and the same exit code."""
    failing.append(Unavailable("kafka://127.0.0.1:1: no answer"))
    assert 2 == exit_code("--debug", "fail")
    said = capsys.readouterr().err
    assert "Traceback" in said
    assert "error: kafka://127.0.0.1:1: no answer" == said.splitlines()[-1]


def test_run_setting_of_several_parts_is_told_once_as_a_variable(
    failing: list[BaseException], capsys: pytest.CaptureFixture[str]
) -> None:
    """Each part of a worker fails of the same setting; what is no setting keeps its name."""
    errors = [SetupError("instance", f"is used in group {group}") for group in ("a", "b")]
    failing.append(ExceptionGroup("tasks", [*errors, SetupError("raw.orders", "is missing")]))
    assert 2 == exit_code("fail")
    assert "error: HEADRACE_INSTANCE: is used in group a\nerror: raw.orders: is missing\n" == capsys.readouterr().err


def test_run_task_group_error_is_a_line_each(failing: list[BaseException], capsys: pytest.CaptureFixture[str]) -> None:
    """What a task group bundles is unbundled."""
    failing.append(ExceptionGroup("tasks", [Unavailable("a"), ExceptionGroup("inner", [Rejected("b")])]))
    assert 2 == exit_code("fail")
    assert "error: a\nerror: b\n" == capsys.readouterr().err


def test_run_bug_beside_known_error_is_not_hidden(failing: list[BaseException]) -> None:
    """A group with one unknown error in it is raised whole."""
    failing.append(ExceptionGroup("tasks", [Unavailable("a"), KeyError("b")]))
    with pytest.raises(ExceptionGroup):
        run(["fail"])


def test_run_interrupted_leaves_with_130(failing: list[BaseException]) -> None:
    """Ctrl-C is the shell's 128 + SIGINT."""
    failing.append(KeyboardInterrupt())
    assert 130 == exit_code("fail")


def test_run_unknown_command_leaves_with_2() -> None:
    """A wrong command line is a wrong setup."""
    assert 2 == exit_code("no-such-command")


def test_run_version_prints_it(capsys: pytest.CaptureFixture[str]) -> None:
    """`--version` needs no command."""
    assert 0 == exit_code("--version")
    assert capsys.readouterr().out.startswith("headrace 0.")


def test_known_errors_of_cancellation_are_none() -> None:
    """Cancelled work is no error of this project."""
    assert [] == known_errors(asyncio.CancelledError())


def test_command_line_imports_nothing_heavy() -> None:
    """Clients of servers are loaded by the command that uses them."""
    code = f"import sys, app.cli.main; print([name for name in {HEAVY!r} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert "[]\n" == done.stdout


@pytest.mark.parametrize("left", [True, False], ids=["a thread in a call", "none"])
def test_leave_after_does_not_free_what_a_thread_uses(left: bool) -> None:
    """The exit code and what was printed stay; Python is taken down only where nobody uses it any more."""
    code = f"""
import atexit, sys, threading
from app.cli.main import leave_after
atexit.register(print, "freed")
if {left}:
    threading.Thread(target=threading.Event().wait, daemon=True).start()
def command():
    print("said")
    sys.exit(2)
leave_after(command)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=60)
    assert (2, "said\n" if left else "said\nfreed\n") == (done.returncode, done.stdout)
