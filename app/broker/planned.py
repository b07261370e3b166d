"""Faults that tests plan for calls of the memory broker: a call that fails, waits, or loses its answer."""

import asyncio
from collections import deque
from dataclasses import dataclass, field
from typing import Literal

from app.core.errors import HeadraceError, Unavailable


@dataclass(frozen=True)
class Fault:
    """What one coming call does instead. fail: nothing happens and `error` is raised. delay: it happens after
    `seconds`. drop: it happens, but the answer is lost and `error` is raised. full: `try_send` finds the queue full. hide: `confirm` does
    not say the offset."""

    call: Literal["try_send", "send", "send_many", "confirm", "flush", "poll", "commit", "committed"]
    action: Literal["fail", "delay", "drop", "full", "hide"]
    error: HeadraceError = field(default_factory=lambda: Unavailable("memory broker: planned fault"))
    seconds: float = 0.0

    def __post_init__(self) -> None:
        if self.action == ("delay" if self.call == "try_send" else "full"):
            raise ValueError(f"{self.call} cannot meet {self.action!r}")
        if self.action == "hide" and self.call != "confirm":
            raise ValueError(f"{self.call} says no offset")


class PlannedFaults:
    """What is planned and was not met yet."""

    def __init__(self) -> None:
        self._faults: deque[Fault] = deque()

    def plan(self, fault: Fault) -> None:
        self._faults.append(fault)

    def take(self, call: str) -> Fault | None:
        """The next fault of that call, which is met now."""
        for fault in self._faults:
            if fault.call == call:
                self._faults.remove(fault)
                return fault
        return None


async def meet(fault: Fault | None) -> Fault | None:
    """Fails or waits, where that is planned; what is left of the fault."""
    if fault is not None and fault.action == "fail":
        raise fault.error
    if fault is not None and fault.action == "delay":
        await asyncio.sleep(fault.seconds)
    return fault


def lose_answer(fault: Fault | None) -> None:
    """Raises, where that is planned, although everything has happened."""
    if fault is not None and fault.action == "drop":
        raise fault.error
