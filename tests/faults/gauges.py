"""What fills up inside a worker, written down every second from a thread of its own: for the soak."""

import os
import threading
from pathlib import Path
from typing import Any

import msgspec

from app.core.clock import SystemClock
from app.decisions.remembered import Remembered
from app.dispatch.consumer import Dispatcher
from app.streams.engine import Engine
from tests.faults.lines import LineLog

EVERY_S = 1.0
PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")


class Gauges(msgspec.Struct, frozen=True):
    """rss_bytes: memory of the process. lanes, unfinished: of its dispatchers. entries: of the streams' tables, and
    those that no commit has passed yet. remembered: ids of alerts, for their repeats."""

    at_ms: int
    rss_bytes: int
    lanes: int
    unfinished: int
    entries: int
    remembered: int


def resident_bytes(pid: int) -> int:
    """Memory of a process; 0 when it has ended."""
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * PAGE_BYTES
    except OSError:
        return 0


def write_into(path: Path, remember: int) -> None:
    """Begins to write. remember: bound of each memory of ids, so that it is reached within the run."""
    found: dict[type, list[Any]] = {Dispatcher: [], Engine: [], Remembered: []}
    Remembered.__init__.__defaults__ = (remember,)
    for kind in found:
        _collect(kind, found[kind])
    log, clock = LineLog(path), SystemClock()

    def write() -> None:
        while not ended.wait(EVERY_S):
            log.write(_gauges(clock.now_ms(), found))

    ended = threading.Event()
    threading.Thread(target=write, name="gauges", daemon=True).start()


def _collect(kind: Any, found: list[Any]) -> None:
    begin = kind.__init__

    def __init__(self: Any, *arguments: Any, **options: Any) -> None:
        begin(self, *arguments, **options)
        found.append(self)

    kind.__init__ = __init__


def _gauges(now_ms: int, found: dict[type, list[Any]]) -> Gauges:
    dispatching = [dispatcher.statistics() for dispatcher in found[Dispatcher]]
    states = [state for engine in found[Engine] for state in list(engine._states.values())]
    return Gauges(
        at_ms=now_ms,
        rss_bytes=resident_bytes(os.getpid()),
        lanes=sum(one.lanes for one in dispatching),
        unfinished=sum(one.in_flight + one.waiting for one in dispatching),
        entries=sum(len(table) for state in states for table in state.tables.values()),
        remembered=sum(len(one) for one in found[Remembered]),
    )
