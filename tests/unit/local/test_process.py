"""Child processes: found by pid file, never lost, and nobody else's touched."""

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from app.core.errors import SetupError
from app.local import process

SLEEP = [sys.executable, "-c", "import time; time.sleep(60)", "marker"]


@pytest.fixture
def pid_file(tmp_path: Path) -> Iterator[Path]:
    """Where a child's pid is written; the child ends with the test."""
    file = tmp_path / "pid"
    yield file
    process.kill(file, "marker")


@pytest.fixture
def ctrl_c() -> Iterator[None]:
    """SIGINT interrupts, also where a shell has the tests run in the background, which ignores it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("ctrl_c")
def test_spawn_interrupted_before_it_returns_has_written_the_pid(
    pid_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ctrl-C waits until whoever comes later can find the child, and the child itself can still be ended."""
    # Another thread is there, as in any process with a Kafka client: it takes signals that the main thread blocks.
    start = os.posix_spawn

    def interrupted(*arguments: object, **options: object) -> int:
        pid = start(*arguments, **options)  # type: ignore[arg-type]
        os.kill(os.getpid(), signal.SIGINT)
        return pid

    monkeypatch.setattr(os, "posix_spawn", interrupted)
    ended = threading.Event()
    other = threading.Thread(target=ended.wait)
    other.start()
    try:
        with pytest.raises(KeyboardInterrupt):
            process.spawn(SLEEP, tmp_path / "log", pid_file, os.environ)
    finally:
        ended.set()
        other.join()
    assert process.find(pid_file, "marker") is not None
    os.kill(int(pid_file.read_text()), signal.SIGTERM)
    assert process.wait_until(lambda: process.find(pid_file, "marker") is None, 10)


def test_spawn_returns_when_the_child_can_be_known(
    pid_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For a moment a new process shows no command line; whoever looked then would take it for gone and lose it."""
    shown = process.command_line
    early = iter(["", "", ""])
    monkeypatch.setattr(process, "command_line", lambda pid: next(early, shown(pid)))
    process.spawn(SLEEP, tmp_path / "log", pid_file, os.environ)
    assert process.find(pid_file, "marker") is not None


def test_spawn_of_what_is_no_program_is_a_setup_error(tmp_path: Path) -> None:
    """The message names it, and no pid is left."""
    with pytest.raises(SetupError, match="nothing-here: cannot be started"):
        process.spawn([str(tmp_path / "nothing-here")], tmp_path / "log", tmp_path / "pid", os.environ)
    assert not (tmp_path / "pid").exists()


def test_command_line_of_a_child_that_another_part_started_leaves_its_exit_code(tmp_path: Path) -> None:
    """Only whoever started a process waits for it."""
    child = subprocess.Popen([sys.executable, "-c", "raise SystemExit(7)"])
    assert process.wait_until(lambda: process.command_line(child.pid) == "", 10)
    assert 7 == child.wait()


def test_command_line_of_a_child_that_has_ended_is_empty(pid_file: Path, tmp_path: Path) -> None:
    """A child of our own is asked for, so that its number is free again."""
    pid = process.spawn([*SLEEP[:2], "", "marker"], tmp_path / "log", pid_file, os.environ)

    def gone() -> bool:
        if process.command_line(pid):
            return False
        with suppress(ProcessLookupError):
            os.kill(pid, 0)
            return False
        return True

    assert process.wait_until(gone, 10)
