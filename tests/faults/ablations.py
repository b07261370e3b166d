"""Safeguards taken out of a worker, one at a time: the checker must then find what each of them prevents.

An ablation is a function without arguments in a file `ablations*.py`; its name is what a row calls it by.
"""

import asyncio
import importlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from uuid import uuid4

from app.broker.base import Assignment, Confirmation
from app.broker.dead_letters import DeadLetters
from app.decisions import effects
from app.decisions.handling import AgentWork
from app.decisions.log import DecisionLog
from app.dispatch import offsets
from app.dispatch.consumer import Dispatcher

WRITTEN_LATER_S = 1.5
_left: set[asyncio.Task[Any]] = set()


def named(name: str) -> Callable[[], None]:
    """The ablation of that name. Raises: LookupError."""
    for file in sorted(Path(__file__).parent.glob("ablations*.py")):
        found = vars(importlib.import_module(f"tests.faults.{file.stem}")).get(name)
        if callable(found):
            return found  # type: ignore[no-any-return]
    raise LookupError(f"no ablation is called {name}")


def commit_highest_seen() -> None:
    """Commits the offset behind the last record received, as most frameworks do."""
    offsets.OffsetTracker.position = property(lambda self: self._next)  # type: ignore[method-assign, assignment]


def done_before_decided() -> None:
    """Takes an alert for done while its decision waits to be written with others."""
    write: Any = DecisionLog.write

    async def later(self: DecisionLog, make: Any) -> Confirmation:
        async def write_later() -> None:
            await asyncio.sleep(WRITTEN_LATER_S)
            await write(self, make)

        task = asyncio.ensure_future(write_later())
        _left.add(task)
        task.add_done_callback(_left.discard)
        return Confirmation(0, 0)

    DecisionLog.write = later  # type: ignore[method-assign]


def key_of_its_own_each_time() -> None:
    """Sends another idempotency key with every attempt."""
    effects.header_text = lambda key: f"{uuid4()}"


def failures_are_done() -> None:
    """Takes an alert whose handler raises for done, as Faust and FastStream do by default."""
    handle: Any = AgentWork.handle

    async def swallow(self: AgentWork, record: Any, attempt: int) -> None:
        try:
            await handle(self, record, attempt)
        except Exception:  # noqa: BLE001 - the fault itself
            return

    AgentWork.handle = swallow  # type: ignore[method-assign]


def partitions_are_one_lane() -> None:
    """Keeps the order of a whole partition, which then waits for the attempts at any of its alerts."""
    AgentWork.lane = lambda self, record: b""  # type: ignore[method-assign]


def no_order_is_kept() -> None:
    """Handles alerts of one key at once."""
    AgentWork.lane = lambda self, record: None  # type: ignore[method-assign]


def nothing_is_buried() -> None:
    """Passes over what it cannot decode."""

    async def pass_over(self: DeadLetters, record: Any, reason: str) -> Confirmation:
        return Confirmation(0, 0)

    DeadLetters.write = pass_over  # type: ignore[method-assign]


def nothing_is_known_again() -> None:
    """Decides an alert as often as it comes."""
    AgentWork._is_repeated = lambda self, record, alert: False  # type: ignore[method-assign]


def crashes_not_counted() -> None:
    """Runs what has killed its process again and again."""
    offsets.OffsetTracker.crashes = lambda self, offset: 0  # type: ignore[method-assign]


def no_drain() -> None:
    """Cancels at once what runs, at shutdown and when a partition is revoked."""
    drain: Any = Dispatcher._drain

    async def at_once(self: Dispatcher, partitions: Any, milliseconds: int) -> None:
        await drain(self, partitions, 0)

    Dispatcher._drain = at_once  # type: ignore[method-assign]


def revoked_is_kept() -> None:
    """Goes on with a partition that was given to another worker."""

    async def keep(self: Dispatcher, assignments: Sequence[Assignment]) -> None:
        return None

    Dispatcher.on_revoked = keep  # type: ignore[method-assign]
