"""The only place that reads the wall clock, and the event loop whose time is virtual.

Everything else is handed a `Clock`. Timers and timeouts are the loop's own, so under `VirtualLoop` a
`sleep(3600)` ends at once and no code knows the difference.
"""

import asyncio
import selectors
import time
from collections.abc import Callable, Coroutine
from typing import Any, Protocol, TypeVar

T = TypeVar("T")


class Clock(Protocol):
    """Wall time. Injected, never imported."""

    def now_ms(self) -> int:
        """Milliseconds since 1970-01-01 UTC."""
        ...


class SystemClock:
    """The machine's clock."""

    def now_ms(self) -> int:
        return time.time_ns() // 1_000_000


class ManualClock:
    """A clock that stands still until it is told to move."""

    def __init__(self, now_ms: int = 1_700_000_000_000) -> None:
        self.time_ms = now_ms

    def now_ms(self) -> int:
        return self.time_ms

    def advance(self, by_ms: int) -> None:
        assert by_ms >= 0
        self.time_ms += by_ms


class VirtualLoop(asyncio.SelectorEventLoop):
    """An event loop whose `time()` jumps to the next timer as soon as nothing is ready to run.

    For code that lives on one loop: a thread's result does not hold the time back.
    """

    def __init__(self) -> None:
        self._virtual_seconds = 0.0
        super().__init__(_JumpingSelector(self._jump))

    def time(self) -> float:
        return self._virtual_seconds

    def _jump(self, seconds: float) -> None:
        self._virtual_seconds += seconds


class _JumpingSelector(selectors.SelectSelector):
    """Instead of waiting `timeout` seconds, moves the loop's time by them."""

    def __init__(self, jump: Callable[[float], None]) -> None:
        super().__init__()
        self._jump = jump

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        if timeout is None:
            return super().select(None)
        ready = super().select(0)
        if not ready and timeout > 0:
            self._jump(timeout)
        return ready


class LoopClock:
    """Wall time that follows a loop's time, so that under `VirtualLoop` both jump together."""

    def __init__(self, loop: asyncio.AbstractEventLoop, start_ms: int) -> None:
        self._loop = loop
        self._start_ms = start_ms
        self._start_seconds = loop.time()

    def now_ms(self) -> int:
        return self._start_ms + round((self._loop.time() - self._start_seconds) * 1000)


def run_virtual(main: Callable[[Clock], Coroutine[Any, Any, T]], start_ms: int) -> T:
    """Runs `main(clock)` to its end on a loop of its own under virtual time that begins at `start_ms`."""
    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        clock = LoopClock(runner.get_loop(), start_ms)
        return runner.run(main(clock))
