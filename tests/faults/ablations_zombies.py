"""The safeguards against commits of streams that woke after their partitions were given away, taken out."""

from collections.abc import Sequence
from typing import Any

from app.broker.base import Assignment
from app.broker.kafka.consumer import KafkaConsumer
from app.streams.engine import Engine


def lost_streams_commit() -> None:
    """Goes on with partitions that were lost, and commits how far it had come with them."""
    lose: Any = Engine.on_lost
    write: Any = Engine.on_revoked

    async def keep(self: Engine, assignments: Sequence[Assignment]) -> None:
        """Nothing has ended."""

    async def revoked(self: Engine, assignments: Sequence[Assignment]) -> None:
        await write(self, assignments)
        await lose(self, assignments)

    Engine.on_lost = keep  # type: ignore[method-assign]
    Engine.on_revoked = revoked  # type: ignore[method-assign]
    KafkaConsumer._lose = lambda self, places, generation: None  # type: ignore[method-assign]
    KafkaConsumer._refuse_ended = lambda self, offsets: None  # type: ignore[method-assign]
