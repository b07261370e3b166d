"""The root of the command line: its groups, its options, and what becomes of errors.

Every start pays for what is imported here, so a group's file imports typer and no more than that; each command imports
what it needs when it runs.
"""

import contextlib
import logging
import os
import sys
import threading
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, NoReturn

import typer

from app.cli import (
    agents,
    dead,
    decisions,
    demo,
    features,
    local,
    output,
    replay,
    send,
    streams,
    switch,
    topics,
    worker,
)
from app.core.errors import HeadraceError, SetupError
from app.core.settings import in_one_form

WRONG_SETUP = 2
"""Exit code when a setting, a declaration or a server is wrong; typer uses it for wrong options too."""

DebugOption = Annotated[bool, typer.Option("--debug", help="Show tracebacks of errors.")]


def command_line(name: str) -> typer.Typer:
    """The root of a command line, for `run`."""
    return typer.Typer(
        name=name,
        no_args_is_help=True,
        add_completion=False,
        pretty_exceptions_enable=False,
        rich_markup_mode="markdown",
        context_settings={"help_option_names": ["-h", "--help"]},
    )


cli = command_line("app")
cli.command()(demo.demo)
cli.command()(worker.worker)
cli.command()(replay.replay)
cli.command()(send.send)
cli.add_typer(agents.commands, name="agents")
cli.add_typer(streams.commands, name="streams")
cli.add_typer(features.commands, name="features")
cli.add_typer(decisions.commands, name="decisions")
cli.add_typer(topics.commands, name="topics")
cli.add_typer(dead.commands, name="dead")
cli.add_typer(switch.commands, name="switch")
cli.add_typer(local.commands, name="local")


@dataclass
class Session:
    """What the root options say, for the whole run."""

    debug: bool = False


def show_version(asked: bool) -> None:
    if asked:
        output.line(f"headrace {read_version()}")
        raise typer.Exit


@cli.callback(epilog="A newcomer's first commands: `make demo`, then `python -m app local up`.")
def root(
    context: typer.Context,
    debug: DebugOption = False,
    _version: Annotated[
        bool, typer.Option("--version", help="Print the version and leave.", callback=show_version, is_eager=True)
    ] = False,
) -> None:
    """Agents that act on what happens now: streams, fresh features and safe decisions over Kafka.

    Settings come from `[tool.headrace]` in pyproject.toml, then `HEADRACE_*` variables, then options.
    """
    context.obj.debug = debug


def read_version() -> str:
    import tomllib
    from pathlib import Path

    project = Path(__file__).resolve().parents[2] / "pyproject.toml"
    return str(tomllib.loads(project.read_text())["project"]["version"])


def run(arguments: list[str] | None = None, *, commands: typer.Typer = cli, name: str = "python -m app") -> NoReturn:
    """Runs one command and leaves with its exit code: 0; 1 for no; 2 for a wrong setup; 130 for Ctrl-C.

    Errors of this project are one line on stderr; `--debug` shows their traceback too.
    """
    session = Session()
    try:
        commands(arguments, prog_name=name, obj=session)
    except Exception as error:
        known = known_errors(error)
        if not known:
            raise
        if session.debug:
            traceback.print_exception(error)
        for told in lines_of(known):
            output.error(told)
        sys.exit(WRONG_SETUP)
    sys.exit(0)


def leave_after(command: Callable[[], NoReturn]) -> NoReturn:
    """Runs what leaves with an exit code, such as `run`, and ends the process with that code also where a client's thread is
    still in a call. Python would free what the call still uses: one of some hundred workers that ended for a missing right
    ended with SIGSEGV."""
    try:
        command()
    except SystemExit as ended:
        if isinstance(ended.code, int) and any(thread.daemon for thread in threading.enumerate()):
            logging.shutdown()
            for stream in (sys.stdout, sys.stderr):
                with contextlib.suppress(OSError, ValueError):  # whoever read it is gone
                    stream.flush()
            os._exit(ended.code)
        raise


def lines_of(errors: list[HeadraceError]) -> list[str]:
    """What is told of them; of several parts that a setting has ended, the first speaks for all."""
    lines: dict[str, str] = {}
    for error in errors:
        lines.setdefault(error.setting if isinstance(error, SetupError) else str(error), in_one_form(error))
    return list(lines.values())


def known_errors(error: BaseException) -> list[HeadraceError]:
    """The errors of this project in `error`, which a task group may have bundled; none if there are others in it."""
    if isinstance(error, HeadraceError):
        return [error]
    if not isinstance(error, BaseExceptionGroup):
        return []
    found = [known_errors(each) for each in error.exceptions]
    return [each for some in found for each in some] if all(found) else []
