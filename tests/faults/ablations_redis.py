"""Safeguards against a feature store that fails, taken out of a worker, one at a time."""

import asyncio
from collections.abc import Sequence
from typing import Any

from app.core.record import TopicPartition
from app.decisions.context import Context
from app.serving.base import Progress, View
from app.serving.materializer import Materializer
from app.serving.redis import RedisStore

BETWEEN_S = 0.05
"""How long tiles follow their progress: so that many a kill comes in between."""


def store_is_not_looked_at() -> None:
    """Goes on where the consumer is, wherever the store stands."""

    async def stay(self: Materializer, places: Sequence[TopicPartition]) -> None:
        self._stands.update(await self._stored(places))

    Materializer._seek = stay  # type: ignore[method-assign]


def progress_before_tiles() -> None:
    """Keeps how far a partition is before the tiles that make it so."""
    apply: Any = RedisStore.apply

    async def progress_first(
        self: RedisStore, view: View, partition: int, expected: int | None, progress: Progress, changes: Any
    ) -> Any:
        moved = await apply(self, view, partition, expected, progress, ())
        if moved:
            await asyncio.sleep(BETWEEN_S)
            await apply(self, view, partition, progress.offset, progress, changes)
        return moved

    RedisStore.apply = progress_first  # type: ignore[method-assign]


def unknown_features_are_no_concern() -> None:
    """Takes features for good that are stale, or lack the order that asks."""
    Context.concerns = lambda self: ()  # type: ignore[method-assign]
