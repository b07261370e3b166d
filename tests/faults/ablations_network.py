"""Safeguards against a network that fails, taken out of a worker, one at a time."""

import asyncio
from contextlib import suppress
from typing import Any

from app.broker.base import Confirmation
from app.broker.kafka.consumer import KafkaConsumer
from app.broker.kafka.lost import Lookout
from app.core.errors import Unavailable
from app.decisions.log import DecisionLog

PATIENCE_S = 1.0


def commits_without_an_answer_are_done() -> None:
    """Takes a commit for done that was refused, or has had no answer."""
    commit: Any = KafkaConsumer.commit

    async def commit_and_hope(self: KafkaConsumer, offsets: Any) -> None:
        with suppress(Unavailable):
            await commit(self, offsets)

    KafkaConsumer.commit = commit_and_hope  # type: ignore[method-assign]


def writes_without_an_answer_are_done() -> None:
    """Takes a decision for written that has had no answer for a second."""
    write: Any = DecisionLog.write

    async def write_and_hope(self: DecisionLog, make: Any) -> Confirmation:
        with suppress(Unavailable, TimeoutError):
            async with asyncio.timeout(PATIENCE_S):
                return await write(self, make)  # type: ignore[no-any-return]
        return Confirmation(0, 0)

    DecisionLog.write = write_and_hope  # type: ignore[method-assign]


def polls_without_waiting() -> None:
    """Asks for records again at once when there were none."""
    poll: Any = KafkaConsumer.poll

    async def poll_at_once(self: KafkaConsumer, max_records: int = 500, timeout_ms: int = 0) -> Any:
        await asyncio.sleep(0)
        return await poll(self, max_records, 0)

    KafkaConsumer.poll = poll_at_once  # type: ignore[method-assign]


def lost_clients_are_left_alone() -> None:
    """A client that has forgotten its brokers stays in its place."""
    Lookout.is_lost = lambda self, client, topic: False  # type: ignore[method-assign]

    async def look_away(self: KafkaConsumer, polling: Any) -> None:
        return None

    KafkaConsumer._look_whether_lost = look_away  # type: ignore[method-assign]
