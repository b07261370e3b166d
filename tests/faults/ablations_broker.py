"""Safeguards against a broker that ends, taken out of a worker, one at a time."""

from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any

from app.broker.base import Confirmation
from app.broker.kafka.producer import KafkaProducer
from app.core.errors import Unavailable
from app.decisions import log
from app.worker import Worker

GIVEN_UP_MS = 1_500


def writes_are_given_up_and_done() -> None:
    """A producer that drops what is not acknowledged soon, and a worker that takes it for written."""
    _give_up_soon()

    async def write_and_hope(what: str, write: Callable[[], Awaitable[Confirmation]]) -> Confirmation:
        with suppress(Unavailable):
            return await write()
        return Confirmation(0, 0)

    log.waited_out = write_and_hope  # type: ignore[assignment, attr-defined]


def parts_end_with_the_broker() -> None:
    """A part of the worker that an outage has ended stays so, while the others go on."""
    _give_up_soon()

    async def run_once(self: Worker, part: Any) -> None:
        try:
            with suppress(Unavailable):
                await part.make()(part.stopping)
            await part.stopping.wait()
        finally:
            part.ended.set()

    Worker._supervise = run_once  # type: ignore[method-assign]


def _give_up_soon() -> None:
    """Outages of seconds come to what otherwise only those of a minute do."""
    KafkaProducer.__init__.__defaults__ = (GIVEN_UP_MS,)
