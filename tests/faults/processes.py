"""Child processes of the harness: started, killed, frozen and stopped by their handle, and gone when the harness is."""

import ctypes
import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from app.local.process import ROOT

PR_SET_PDEATHSIG = 1


def die_with_parent() -> None:
    """Called by a child: the kernel kills it when whoever started it ends, however that ends. Nothing outside Linux."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def wait_for_go() -> None:
    """Called by a child that was started ahead of time."""
    sys.stdin.read()


class Child:
    """One process. Its output goes to `log`, but for stdout where an address is read from there."""

    def __init__(
        self,
        module: str,
        arguments: Sequence[str],
        log: Path,
        environment: Mapping[str, str],
        *,
        has_address: bool = False,
        waits: bool = False,
    ) -> None:
        """has_address: whether the first line of its output says where it listens; that is waited for. waits: it calls
        `wait_for_go` when it has begun, and goes on after `go`."""
        self.log = log
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("ab") as output:
            self._process = subprocess.Popen(
                [sys.executable, "-m", module, *arguments],
                cwd=ROOT,
                env={**os.environ, **environment},
                stdin=subprocess.PIPE if waits else subprocess.DEVNULL,
                stdout=subprocess.PIPE if has_address else output,
                stderr=output,
            )
        self.address = ""
        if has_address:
            assert self._process.stdout is not None
            self.address = self._process.stdout.readline().decode().strip()
            if not self.address:
                self.kill()
                raise RuntimeError(f"{module} did not start: see {log}")

    def go(self) -> None:
        """Lets one go on that waits."""
        if self._process.stdin is not None:
            with suppress(BrokenPipeError):
                self._process.stdin.close()

    @property
    def code(self) -> int | None:
        """The exit code; minus the signal's number where one ended it; None while it runs."""
        return self._process.poll()

    @property
    def pid(self) -> int:
        return self._process.pid

    def send(self, number: int) -> None:
        """A signal. Nothing, when the process has ended."""
        with suppress(ProcessLookupError):
            self._process.send_signal(number)

    def kill(self) -> None:
        """Ends it at once, frozen or not, and waits until it is gone."""
        self.send(signal.SIGKILL)
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                pipe.close()
