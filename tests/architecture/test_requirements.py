"""Pinned requirements against pyproject.toml and the decisions about libraries."""

import re
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
RUNTIME: list[str] = PROJECT["project"]["dependencies"]
DEV: list[str] = PROJECT["dependency-groups"]["dev"]
FLINK: list[str] = PROJECT["dependency-groups"]["flink"]
FILES = ["runtime.txt", "dev.txt", "flink.txt", "flink-2.2.txt"]


def name_of(requirement: str) -> str:
    match = re.match(r"[A-Za-z0-9._-]+", requirement)
    assert match is not None
    return match[0].lower()


def pins(file: str) -> dict[str, str]:
    """Pinned lines by name, without their hashes."""
    text = (ROOT / "requirements" / file).read_text().replace("\\\n", "")
    return {name_of(line): line.split("--hash")[0].strip() for line in text.splitlines() if line}


@pytest.mark.parametrize("file", FILES)
def test_requirements_every_line_is_pinned_and_hashed(file: str) -> None:
    """What is installed is what was tested, from whatever index."""
    text = (ROOT / "requirements" / file).read_text().replace("\\\n", "")
    lines = text.splitlines()
    assert lines
    for line in lines:
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
    for file in ("flink.txt", "flink-2.2.txt"):
        assert set(map(name_of, FLINK)) <= pins(file).keys()


def test_requirements_of_development_include_runtime() -> None:
    """Tests run with the very versions that users run with."""
    assert pins("runtime.txt").items() <= pins("dev.txt").items()


@pytest.mark.parametrize(("file", "release"), [("flink.txt", "2.3."), ("flink-2.2.txt", "2.2.")])
def test_requirements_of_flink_share_the_pins_that_declarations_import(file: str, release: str) -> None:
    """What describes a stream is the same code in both environments; the rest of them differs."""
    runtime, flink = pins("runtime.txt"), pins(file)
    shared = {name_of(line) for line in FLINK} & runtime.keys()
    assert {"anyio", "msgspec"} == shared
    assert {name: runtime[name] for name in shared} == {name: flink[name] for name in shared}
    assert flink["apache-flink"].startswith(f"apache-flink=={release}")


def test_requirements_are_all_decided_for() -> None:
    """Each library that we chose has its line in the decision about libraries, and no other has."""
    text = (ROOT / "docs" / "adr" / "0001-libraries.md").read_text()
    decided = set(re.findall(r"^\| `([\w-]+)` \|", text, re.MULTILINE))
    assert set(map(name_of, RUNTIME + DEV + FLINK)) == decided
