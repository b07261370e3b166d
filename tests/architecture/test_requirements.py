"""Pinned requirements against pyproject.toml and the decisions about libraries."""

import re
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
RUNTIME: list[str] = PROJECT["project"]["dependencies"]
DEV: list[str] = PROJECT["dependency-groups"]["dev"]


def name_of(requirement: str) -> str:
    match = re.match(r"[A-Za-z0-9._-]+", requirement)
    assert match is not None
    return match[0].lower()


def pins(file: str) -> dict[str, str]:
    """Pinned lines by name, without their hashes."""
    text = (ROOT / "requirements" / file).read_text().replace("\\\n", "")
    return {name_of(line): line.split("--hash")[0].strip() for line in text.splitlines() if line}


@pytest.mark.parametrize("file", ["runtime.txt", "dev.txt"])
def test_requirements_every_line_is_pinned_and_hashed(file: str) -> None:
    """What is installed is what was tested, from whatever index."""
    text = (ROOT / "requirements" / file).read_text().replace("\\\n", "")
    for line in text.splitlines():
        assert re.match(r"[\w.-]+==[\w.+-]+ .*--hash=sha256:[0-9a-f]{64}", line), line


def test_requirements_name_no_index() -> None:
    """Where packages come from is the machine's setting."""
    texts = [
        path.read_text() for path in [*(ROOT / "requirements").iterdir(), ROOT / "pyproject.toml", ROOT / "Makefile"]
    ]
    assert [] == [text for text in texts if "index-url" in text or "https://pypi" in text]


def test_requirements_hold_what_pyproject_asks_for() -> None:
    """After a change of dependencies comes `make lock`."""
    assert set(map(name_of, RUNTIME)) <= pins("runtime.txt").keys()
    assert set(map(name_of, RUNTIME + DEV)) <= pins("dev.txt").keys()


def test_requirements_of_development_include_runtime() -> None:
    """Tests run with the very versions that users run with."""
    assert pins("runtime.txt").items() <= pins("dev.txt").items()


def test_requirements_are_all_decided_for() -> None:
    """Each library that we chose has its line in the decision about libraries, and no other has."""
    text = (ROOT / "docs" / "adr" / "0001-libraries.md").read_text()
    decided = set(re.findall(r"^\| `([\w-]+)` \|", text, re.MULTILINE))
    assert set(map(name_of, RUNTIME + DEV)) == decided
