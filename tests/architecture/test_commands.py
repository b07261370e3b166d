"""Commands that documents and the Makefile show, against those that exist."""

import importlib.util
import re
from pathlib import Path
from typing import Any

import pytest
import typer

from app.cli.main import cli

ROOT = Path(__file__).resolve().parents[2]
MAKEFILE = (ROOT / "Makefile").read_text()
DOCUMENTS = [path for path in (*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")) if path.is_file()]
TEXTS = {
    str(path.relative_to(ROOT)): path.read_text() for path in [*DOCUMENTS, ROOT / "Makefile", ROOT / ".ci" / "run"]
}
MAKE = re.compile(r"\bmake (?:--[\w-]+ )*([a-z][a-z-]*)\b")
APP = re.compile(r"python -m app[ \t]+([^\n`|&;)\"']+)")
BENCHMARK = re.compile(r"python -m (benchmarks\.\w+)")
IN_CODE = re.compile(r"```.*?```|`[^`\n]+`", re.DOTALL)


def code_in(name: str) -> str:
    """The parts of a Markdown text that are commands; all of any other file."""
    text = TEXTS[name]
    return "\n".join(IN_CODE.findall(text)) if name.endswith(".md") else text


@pytest.mark.parametrize("command", [MAKE, APP, BENCHMARK])
def test_commands_of_each_kind_are_found(command: re.Pattern[str]) -> None:
    """What nothing is found of would hold whatever the documents say."""
    assert [name for name in TEXTS if command.search(code_in(name))]


@pytest.mark.parametrize("name", sorted(TEXTS.keys() - {"Makefile"}))
def test_commands_make_targets_exist(name: str) -> None:
    """Each `make X` is a target."""
    targets = set(re.findall(r"^([a-z-]+):", MAKEFILE, re.MULTILINE))
    assert set() == set(MAKE.findall(code_in(name))) - targets


@pytest.mark.parametrize("name", sorted(TEXTS))
def test_commands_of_the_command_line_exist(name: str) -> None:
    """Each `python -m app GROUP [COMMAND]` is one, and so are the long options behind it."""
    for line in APP.findall(code_in(name)):
        words = line.split()
        command: Any = typer.main.get_command(cli)
        while words and hasattr(command, "commands") and re.fullmatch(r"[a-z]+", words[0]):
            assert words[0] in command.commands, f"python -m app {line}"
            command = command.commands[words.pop(0)]
        options = {option for parameter in command.params for option in (*parameter.opts, *parameter.secondary_opts)}
        shown = {word.split("=")[0].strip("[]") for word in words if word.strip("[").startswith("--")}
        assert set() == shown - options - {"--help"}, f"python -m app {line}"


@pytest.mark.parametrize("name", sorted(TEXTS))
def test_commands_of_benchmarks_exist(name: str) -> None:
    """Each `python -m benchmarks.X` is a module."""
    modules = set(BENCHMARK.findall(code_in(name)))
    assert set() == {module for module in modules if importlib.util.find_spec(module) is None}


def test_commands_ci_runs_the_tests_that_developers_run() -> None:
    """CI has no commands of its own."""
    assert "make --no-print-directory test" in TEXTS[".ci/run"]
