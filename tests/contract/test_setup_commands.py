"""The scripts behind `make setup` and CI, on machines that lack something."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """A folder with the install script, an empty list of requirements, and programs of its own in `bin`."""
    (tmp_path / "requirements").mkdir()
    (tmp_path / "bin").mkdir()
    shutil.copy(ROOT / "requirements" / "install", tmp_path / "requirements" / "install")
    for kind in ("runtime", "dev", "flink", "flink-2.2"):
        (tmp_path / "requirements" / f"{kind}.txt").write_text(f"# {kind}\n")
    return tmp_path


def add_program(clone: Path, name: str, script: str) -> None:
    program = clone / "bin" / name
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)


def install(clone: Path, kind: str, path: str) -> "subprocess.CompletedProcess[str]":
    for tool in ("bash", "dirname", "cat", "cksum", "rm", "env"):
        link = clone / "bin" / tool
        if not link.exists():
            link.symlink_to(shutil.which(tool) or "")
    environment = {name: value for name, value in os.environ.items() if name != "PYTHON"} | {"PATH": path}
    command = [str(clone / "requirements" / "install"), kind]
    return subprocess.run(command, capture_output=True, text=True, check=False, env=environment, timeout=100)


def test_install_without_python_says_so(clone: Path) -> None:
    """No Python on the PATH is one line, exit code 2."""
    done = install(clone, "runtime", str(clone / "bin"))
    assert (2, 1) == (done.returncode, len(done.stderr.splitlines()))
    assert "Python 3.11 or newer is needed and none is on the PATH" in done.stderr


def test_install_with_an_old_python_says_so(clone: Path) -> None:
    """A Python that fails the check of its version is none."""
    add_program(clone, "python3", "exit 1")
    done = install(clone, "runtime", str(clone / "bin"))
    assert 2 == done.returncode
    assert "Python 3.11 or newer is needed" in done.stderr


def test_install_with_a_python_without_ensurepip_says_what_to_type(clone: Path) -> None:
    """Debian splits the standard library; the package with the rest is named."""
    add_program(clone, "python3", 'case "$2" in *ensurepip*) exit 1;; *) exit 0;; esac')
    done = install(clone, "runtime", str(clone / "bin"))
    assert 2 == done.returncode
    assert "apt-get install python3-venv" in done.stderr
    assert not (clone / ".venv").exists()


def test_install_fills_once_until_the_list_changes(clone: Path) -> None:
    """The environment is made, left alone, and filled again after a change."""
    add_program(clone, "python3", f'exec "{sys.executable}" "$@"')
    path = str(clone / "bin")
    first, second = install(clone, "runtime", path), install(clone, "runtime", path)
    (clone / "requirements" / "runtime.txt").write_text("# changed\n")
    third = install(clone, "runtime", path)
    assert [0, 0, 0] == [each.returncode for each in (first, second, third)]
    assert (True, "", True) == (".venv with Python" in first.stderr, second.stderr, "installing" in third.stderr)
    assert ".venv with" not in third.stderr


def test_install_of_development_is_enough_for_runtime(clone: Path) -> None:
    """`make demo` after `make setup` installs nothing."""
    add_program(clone, "python3", f'exec "{sys.executable}" "$@"')
    path = str(clone / "bin")
    install(clone, "dev", path)
    assert "" == install(clone, "runtime", path).stderr


@pytest.mark.parametrize("kind", ["flink", "flink-2.2"])
def test_install_of_flink_fills_an_environment_of_its_own(clone: Path, kind: str) -> None:
    """Neither the one for development nor that of another release changes or counts, and it is filled once."""
    add_program(clone, "python3", f'exec "{sys.executable}" "$@"')
    path = str(clone / "bin")
    install(clone, "dev", path)
    first, second = install(clone, kind, path), install(clone, kind, path)
    assert (0, "") == (second.returncode, second.stderr), first.stderr
    assert {".venv", f".venv-{kind}"} == {folder.name for folder in clone.glob(".venv*")}
    assert (clone / f".venv-{kind}" / f"{kind}.stamp").exists()


def test_install_of_flink_where_python_is_too_new_says_so(clone: Path) -> None:
    """PyFlink knows 3.11 and 3.12; one line names them, exit code 2."""
    too_new = 'case "$2" in *version_info*"(3, 11)"*) exit 1;; *) exit 0;; esac'
    add_program(clone, "python3", too_new)
    done = install(clone, "flink", str(clone / "bin"))
    assert (2, 1) == (done.returncode, len(done.stderr.splitlines()))
    assert "Python 3.11 or 3.12 is needed and none is on the PATH" in done.stderr
    assert not (clone / ".venv-flink").exists()


@pytest.mark.parametrize(("code", "result"), [(0, "ok"), (3, "FAILED (3)")])
def test_stage_says_its_result_and_passes_it_on(code: int, result: str) -> None:
    """A stage ends as its command does, with a line that says so."""
    command = [str(ROOT / ".ci" / "stage"), "lint", "sh", "-c", f"echo found; exit {code}"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    first, *rest = done.stdout.splitlines()
    assert (code, ["found"]) == (done.returncode, rest)
    assert first.startswith(f"== lint       {result}, ")
