"""What docs/flink.md tells to type exists: commands, options and make targets."""

import re
import shlex
from pathlib import Path

import pytest
from typer.testing import CliRunner

from app.cli.main import Session
from app.cli.main import cli as app_cli
from flink_jobs.cli import cli as jobs_cli

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "flink.md").read_text()
LINES = [
    line.partition("#")[0].strip()
    for block in re.findall(r"```sh\n(.*?)```", PAGE, re.DOTALL)
    for line in block.splitlines()
]
COMMANDS = [match[0] for line in LINES if (match := re.search(r"python -m (?:app|flink_jobs) [^)\"]+", line))]


@pytest.mark.parametrize("command", COMMANDS)
def test_flink_page_command_is_known_with_its_options(command: str) -> None:
    """Typer knows the command, and its help every option."""
    _, _, program, *words = shlex.split(command)
    name = [word for word in words if not word.startswith("-")]
    options = [word for word in words if word.startswith("--")]
    groups = 2 if program == "app" and name[0] in ("local", "topics", "streams") else 1
    cli = app_cli if program == "app" else jobs_cli
    shown = CliRunner().invoke(cli, [*name[:groups], "--help"], obj=Session(), env={"COLUMNS": "200", "TERM": "dumb"})
    assert 0 == shown.exit_code, shown.output
    assert [] == [option for option in options if option not in shown.output]


def test_flink_page_make_targets_are_there() -> None:
    """A target that is gone is no way to begin."""
    makefile = (ROOT / "Makefile").read_text()
    assert len(COMMANDS) > 10
    for target in {match[1] for match in re.finditer(r"make ([a-z-]+)", PAGE)}:
        assert f"\n{target}:" in makefile, target
