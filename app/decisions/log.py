"""Writing decisions: one chain a writer, each record naming the hash of the one before it.

A decision that the broker does not take is offered again, the same bytes, until it is taken: asking the model a second
time would cost more and could answer differently.
"""

import asyncio
import logging
from collections.abc import Callable, Iterable
from typing import NamedTuple

import msgspec

from app.broker.base import Confirmation, Producer
from app.core.codec import encode
from app.core.errors import RecordTooLarge, Unavailable
from app.decisions.record import DECISIONS, DecisionRecord, decision_headers, sha256

logger = logging.getLogger(__name__)

FIRST_DELAY_SECONDS = 0.1
LONGEST_DELAY_SECONDS = 5.0

CUT = "evidence_cut"
"""Reason beside a decision whose texts did not fit the topic; lengths and hashes stayed."""


class Link(NamedTuple):
    """Place of a record in its writer's chain."""

    writer: str
    number: int
    previous: str


class DecisionLog:
    """Writes the decisions of one agent about one partition, in one epoch. One record at a time, so the chain holds."""

    def __init__(self, producer: Producer, writer: str) -> None:
        self._producer = producer
        self._name = writer
        self._restarts = 0
        self._lock = asyncio.Lock()
        self._link = Link(writer, 0, "")

    async def write(self, make: Callable[[Link], DecisionRecord]) -> Confirmation:
        """Writes what `make` makes for the next place in the chain, and waits for the acknowledgement.

        Unavailable is waited out. On cancellation the record may or may not be written; what follows begins a new
        chain. Raises: Rejected; RecordTooLarge when not even the bare decision fits.
        """
        async with self._lock:
            record = make(self._link)
            try:
                try:
                    value, confirmation = await self._offer(record)
                except RecordTooLarge:
                    value, confirmation = await self._offer(without_texts(record))
            except asyncio.CancelledError:
                self._restarts += 1
                self._link = Link(f"{self._name}+{self._restarts}", 0, "")
                raise
            self._link = Link(self._link.writer, self._link.number + 1, sha256(value))
            return confirmation

    async def _offer(self, record: DecisionRecord) -> tuple[bytes, Confirmation]:
        value, key, headers = encode(record), record.entity.encode(), decision_headers(record)
        delay = FIRST_DELAY_SECONDS
        while True:
            try:
                return value, await self._producer.confirm(
                    DECISIONS, value, key, partition=record.alert_partition, headers=headers
                )
            except Unavailable as error:
                logger.warning("a decision of %s waits to be written: %s", record.agent, error)
                await asyncio.sleep(delay)
                delay = min(delay * 2, LONGEST_DELAY_SECONDS)


def without_texts(record: DecisionRecord) -> DecisionRecord:
    """The record without contexts, answers' texts and features; hashes and lengths stay."""
    models = tuple(
        msgspec.structs.replace(use, context="", answer=use.answer and msgspec.structs.replace(use.answer, text=""))
        for use in record.models
    )
    return msgspec.structs.replace(record, models=models, features=(), reasons=(*record.reasons, CUT))


def broken_links(values: Iterable[bytes]) -> list[str]:
    """What is wrong with the chains in one partition's decisions, in log order; empty when nothing is.

    A repeated record is no break (a write whose answer was lost), nor is a missing beginning (retention).
    """
    broken = []
    last: dict[str, tuple[int, str]] = {}
    for value in values:
        record = msgspec.json.decode(value, type=DecisionRecord)
        own = sha256(value)
        known = last.get(record.writer)
        if known == (record.number, own):
            continue
        if known is not None and (record.number != known[0] + 1 or record.previous != known[1]):
            broken.append(f"{record.writer}: record {record.number} does not follow record {known[0]}")
        last[record.writer] = (record.number, own)
    return broken
