"""Safeguards against a feature store that fails, taken out of a worker, one at a time."""

from collections.abc import Sequence

from app.core.record import TopicPartition
from app.decisions.context import Context
from app.serving.materializer import Materializer


def store_is_not_looked_at() -> None:
    """Goes on where the consumer is, wherever the store stands."""

    async def stay(self: Materializer, places: Sequence[TopicPartition]) -> None:
        self._stands.update(await self._stored(places))

    Materializer._seek = stay  # type: ignore[method-assign]


def unknown_features_are_no_concern() -> None:
    """Takes features for good that are stale, or lack the order that asks."""
    Context.concerns = lambda self: ()  # type: ignore[method-assign]
