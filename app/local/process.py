"""Child processes that outlive the command which starts them, and are found again by pid file and command line.

A pid alone proves nothing: numbers are used again. So a process counts as ours only while its command line holds the
configuration file that we started it with, and nothing else is ever signalled.
"""

import fcntl
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from app.core.errors import SetupError
from app.core.text import escape_unsafe

ROOT = Path(__file__).resolve().parents[2]
"""The clone that this code runs from."""

LOCAL = ROOT / ".local"
"""Where servers keep what they need; ignored by git."""

_spawned: set[int] = set()
"""Children of this process that nobody has waited for."""

POLL_SECONDS = 0.05
SPAWN_SECONDS = 1.0
"""How long a new process may show no command line; the kernel sets it a moment after the start."""

KILL_SECONDS = 10.0
RUN_SECONDS = 600.0

SHOWN_LINES = 15
"""So much of what a program wrote is said where it failed."""


def say(text: str) -> None:
    """One line of progress for a person, on stderr: stdout is for data."""
    sys.stderr.write(f"{escape_unsafe(text)}\n")
    sys.stderr.flush()


@contextmanager
def locked(directory: Path) -> Iterator[None]:
    """Holds `directory` against other processes; waits until it is free. Creates it, and leaves no lock file."""
    directory.mkdir(parents=True, exist_ok=True)
    handle = os.open(directory, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def free_ports(count: int) -> list[int]:
    """TCP ports on loopback that nobody listens on now, all different."""
    sockets = [socket.socket() for _ in range(count)]
    try:
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]
    finally:
        for each in sockets:
            each.close()


def spawn(command: Sequence[str], log: Path, pid_file: Path, environment: Mapping[str, str]) -> int:
    """Starts a process in a session of its own, output to `log` (emptied first). Returns its pid, which `pid_file` holds.

    posix_spawn rather than Popen: no object is left that must be waited for, the child outlives us. Ctrl-C waits until
    the pid is written and the child can be known by its command line, or nobody could end it.
    Raises: SetupError when the program cannot be started.
    """
    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    nothing = os.open(os.devnull, os.O_RDONLY)
    moves = [(os.POSIX_SPAWN_DUP2, nothing, 0), (os.POSIX_SPAWN_DUP2, output, 1), (os.POSIX_SPAWN_DUP2, output, 2)]
    try:
        with _signals_later():
            pid = os.posix_spawn(command[0], list(command), environment, file_actions=moves, setsid=True)
            _spawned.add(pid)
            pid_file.write_text(str(pid))
            wait_until(lambda: command_line(pid) != "" or pid not in _spawned, SPAWN_SECONDS)
            return pid
    except OSError as error:
        raise SetupError(command[0], f"cannot be started: {error.strerror}") from None
    finally:
        os.close(output)
        os.close(nothing)


@contextmanager
def _signals_later() -> Iterator[None]:
    """What would end this process waits until the block has.

    A mask would not do: it is one thread's, and another thread takes the signal, upon which Python interrupts the main
    one. No other thread is ever interrupted.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    arrived: list[int] = []
    before = {
        number: signal.signal(number, lambda number, _: arrived.append(number))
        for number in (signal.SIGHUP, signal.SIGTERM, signal.SIGINT)
    }
    try:
        yield
    finally:
        for number, handler in before.items():  # Ctrl-C is the last, since the next one may raise here
            signal.signal(number, handler)
        for arrival in arrived:
            signal.raise_signal(arrival)


def command_line(pid: int) -> str:
    """The arguments of a running process, NUL or space between them; empty when it has ended."""
    if pid in _spawned and os.waitpid(pid, os.WNOHANG)[0]:  # an ended child keeps its number until somebody asks
        _spawned.discard(pid)
    if Path("/proc/self/cmdline").exists():
        try:
            return Path(f"/proc/{pid}/cmdline").read_text(errors="replace")
        except OSError:
            return ""
    listed = subprocess.run(["ps", "-p", str(pid), "-o", "args="], capture_output=True, text=True, check=False)
    return listed.stdout.strip()


def find(pid_file: Path, marker: str) -> int | None:
    """The pid in a file, while that process runs and its command line holds `marker`; else None."""
    try:
        pid = int(pid_file.read_text())
    except (OSError, ValueError):
        return None
    return pid if pid > 0 and marker in command_line(pid) else None


def kill(pid_file: Path, marker: str) -> None:
    """Ends the process of a pid file at once, if it is ours, and removes the file.

    SIGKILL: what the process has stored is deleted next, so there is nothing to save.
    Raises: SetupError when it does not end within 10 s.
    """
    pid = find(pid_file, marker)
    if pid is not None:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
        if not wait_until(lambda: find(pid_file, marker) is None, KILL_SECONDS):
            raise SetupError(str(pid_file), f"process {pid} does not end")
    pid_file.unlink(missing_ok=True)


def wait_until(condition: Callable[[], bool], seconds: float) -> bool:
    """Asks again and again until it holds (True) or `seconds` have passed (False)."""
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            return False
        time.sleep(POLL_SECONDS)
    return True


def last_lines(log: Path) -> list[str]:
    try:
        return log.read_text(errors="replace").splitlines()[-SHOWN_LINES:]
    except OSError:
        return []


def find_program(name: str) -> Path | None:
    """A program on the PATH, as an absolute path."""
    found = shutil.which(name)
    return Path(found).absolute() if found else None


def run_quietly(command: Sequence[str], what: str, environment: Mapping[str, str] | None = None) -> None:
    """Runs a command to its end without output.

    Raises: SetupError naming the program, after its last lines were said, when it fails or takes too long.
    """
    name = Path(command[0]).name
    try:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            env=environment,
            timeout=RUN_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise SetupError(name, f"{what} took more than {RUN_SECONDS:.0f} s") from None
    if done.returncode != 0:
        for line in done.stdout.splitlines()[-SHOWN_LINES:]:
            say(f"  {line}")
        raise SetupError(name, f"{what} failed with exit code {done.returncode}; its last lines are above")
