"""Leaks planted in a worker, one at a time: what has ended is not given back. The soak must find each."""

from typing import Any

from app.core.record import Record
from app.decisions.context import Context
from app.decisions.handling import AgentWork
from app.dispatch.lanes import Lane, Lanes
from app.serving.base import View
from app.streams.engine import Engine
from app.streams.graph import Alert
from app.streams.tables import PartitionState

FOREVER_MS = 100 * 365 * 86_400_000
WEIGHT_BYTES = 16 * 1024
"""Beside each context: the shortened soak has 200 times fewer alerts between its middle and its end than the whole one, in
which the contexts alone would show."""

_contexts: list[tuple[Context, bytes]] = []


def lanes_are_not_given_back() -> None:
    """Keeps the lane of a key of which nothing is left to do, where it is in nobody's way."""
    finish: Any = Lanes.finish

    def keep(self: Lanes[Any], lane: Lane[Any]) -> None:
        finish(self, lane)
        if lane.gone:
            self._lanes.setdefault(lane.owner, {})[object()] = lane

    Lanes.finish = keep  # type: ignore[method-assign]


def closed_windows_are_kept() -> None:
    """Keeps the entries of windows whose rows are out and committed."""

    async def keep(self: Engine, state: PartitionState) -> None:
        """Nothing is freed."""

    Engine._send_tombstones = keep  # type: ignore[method-assign]


def contexts_of_decided_alerts_are_kept() -> None:
    """Keeps what was asked and shown about each alert, and a weight."""
    make: Any = AgentWork._context

    def keep(self: AgentWork, record: Record, alert: Alert) -> Context:
        context: Context = make(self, record, alert)
        _contexts.append((context, b"." * WEIGHT_BYTES))
        return context

    AgentWork._context = keep  # type: ignore[method-assign]


def features_of_shoppers_are_kept() -> None:
    """Keeps in the store what nobody has ordered for."""
    View.ttl_ms = property(lambda self: FOREVER_MS)  # type: ignore[assignment, method-assign]
