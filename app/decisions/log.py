"""Writing decisions: one chain a writer, each record naming the hash of the one before it.

A decision that the broker does not take is offered again, the same bytes, until it is taken: asking the model a second
time would cost more and could answer differently.
"""

import asyncio
from collections.abc import Callable
from typing import NamedTuple

import msgspec

from app.broker.base import Confirmation, Producer
from app.core.codec import encode
from app.core.errors import RecordTooLarge, Rejected
from app.core.record import Headers
from app.decisions.outages import waited_out
from app.decisions.record import DECISIONS, DecisionRecord, decision_headers, decision_key, sha256

CUT = "evidence_cut"
"""Reason beside a decision whose texts did not fit the topic; lengths and hashes stayed."""

ALERT_CUT = "alert_cut"
"""Reason beside a decision of which not even the alert and the answer fit; lengths and hashes stayed."""


class Link(NamedTuple):
    """Place of a record in its writer's chain."""

    writer: str
    number: int
    previous: str


class DecisionLog:
    """Writes the decisions of one agent about one partition, in one epoch, as many at once as come.

    A record takes its place in the chain when it is offered, and keeps it however often it is offered again. So the
    numbers are the order of the chain; that of the log is the same but for what an outage has delayed.
    """

    def __init__(self, producer: Producer, writer: str, headers: Callable[[], Headers] = tuple) -> None:
        """headers: further ones, as they are when a record is offered first."""
        self._producer = producer
        self._name = writer
        self._headers = headers
        self._restarts = 0
        self._link = Link(writer, 0, "")

    async def write(self, make: Callable[[Link], DecisionRecord]) -> Confirmation:
        """Writes what `make` makes for the next place in the chain, and waits for the acknowledgement.

        Unavailable is waited out. On cancellation the record may or may not be written; what follows begins a new
        chain. Raises: Rejected; RecordTooLarge when not even the decision without its texts fits.
        """
        link = self._link
        try:
            return await self._offer(make(link))
        except RecordTooLarge:
            self._give_back(link)
        except (Rejected, asyncio.CancelledError):
            self._begin_anew(link)
            raise
        link = self._link
        try:
            return await self._offer(without_texts(make(link)))
        except RecordTooLarge:
            self._give_back(link)
            raise
        except (Rejected, asyncio.CancelledError):
            self._begin_anew(link)
            raise

    async def _offer(self, record: DecisionRecord) -> Confirmation:
        value, key, headers = encode(record), decision_key(record.writer, record.number), decision_headers(record)
        headers = (*headers, *self._headers())
        self._link = Link(record.writer, record.number + 1, sha256(value))
        return await waited_out(
            f"a decision of {record.agent}",
            lambda: self._producer.confirm(DECISIONS, value, key, partition=record.alert_partition, headers=headers),
        )

    def _give_back(self, link: Link) -> None:
        """The place of a record that was not taken: free for the next one, where none has followed it by now."""
        if (link.writer, link.number + 1) == self._link[:2]:
            self._link = link
        else:
            self._begin_anew(link)

    def _begin_anew(self, link: Link) -> None:
        """Nobody follows a record that may be missing; the first to find out ends the chain."""
        if link.writer == self._link.writer:
            self._restarts += 1
            self._link = Link(f"{self._name}+{self._restarts}", 0, "")


def without_texts(record: DecisionRecord) -> DecisionRecord:
    """The record without contexts, answers' texts and features; hashes and lengths stay."""
    models = tuple(
        msgspec.structs.replace(use, context="", answer=use.answer and msgspec.structs.replace(use.answer, text=""))
        for use in record.models
    )
    return msgspec.structs.replace(record, models=models, features=(), reasons=(*record.reasons, CUT))


def bare(record: DecisionRecord) -> DecisionRecord:
    """What always fits: the decision, with hash and length in the place of the alert and of what the agent answered."""
    return msgspec.structs.replace(
        record,
        models=(),
        features=(),
        answered=_digest(record.answered),
        alert=_digest(record.alert),
        reasons=(*record.reasons, ALERT_CUT),
    )


def _digest(value: msgspec.Raw) -> msgspec.Raw:
    data = bytes(value)
    return msgspec.Raw(encode({"bytes": len(data), "sha256": sha256(data)}))
