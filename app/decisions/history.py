"""Reading back what was decided: newest first and by what one looks for, or everything about one alert.

Partitions are read in pieces of a few MiB, from their end backwards, so memory does not grow with the log. A decision behind
whose key a later record says that it was forgotten is not shown, though its bytes lie there until compaction.
"""

import heapq
from collections.abc import AsyncGenerator, Sequence
from contextlib import AsyncExitStack, aclosing
from dataclasses import dataclass
from functools import reduce
from typing import Any, NamedTuple

import msgspec

from app.broker.base import Reader
from app.core.record import Record, TopicPartition
from app.decisions.ledger import merged
from app.decisions.record import DECISIONS, EFFECTS, DecisionRecord, EffectRecord, effect_key, is_forgotten, sha256

FIRST_PIECE, LONGEST_PIECE = 64, 4_096
PIECE_BYTES = 4 * 1_048_576
"""Offsets read at once backwards: about so many bytes, by what the piece before held."""


class Found(NamedTuple):
    """A decision and where it lies."""

    partition: int
    offset: int
    written_ms: int
    sha256: str
    record: DecisionRecord

    @property
    def place(self) -> str:
        return f"{self.partition}/{self.offset}"

    @property
    def decision(self) -> dict[str, Any]:
        """What was decided, as JSON has it."""
        return msgspec.json.decode(self.record.decision, type=dict[str, Any])


class Wanted(msgspec.Struct, frozen=True, kw_only=True):
    """What one looks for; None finds all. reason: a code, with or without what stands behind its colon. Times are those
    of writing, wall ms: since <= written < until."""

    agent: str | None = None
    entity: str | None = None
    action: str | None = None
    reason: str | None = None
    mode: str | None = None
    since_ms: int | None = None
    until_ms: int | None = None

    def by_headers(self, record: Record) -> bool:
        """Whether the record may be one of them, as far as its headers tell."""
        asked = (("agent", self.agent), ("entity", self.entity), ("mode", self.mode))
        return all(text is None or record.header(name) in (None, text.encode()) for name, text in asked)

    def matches(self, found: Found) -> bool:
        record = found.record
        asked = (
            (self.agent, record.agent),
            (self.entity, record.entity),
            (self.mode, record.mode),
        )
        if any(wanted not in (None, said) for wanted, said in asked):
            return False
        if self.action is not None and found.decision.get("action") != self.action:
            return False
        return self.reason is None or any(
            self.reason in (reason, reason.partition(":")[0]) for reason in record.reasons
        )


@dataclass
class PassedOver:
    """Records that were read and are no decisions (any more). forgotten: what says so, not the old bytes."""

    forgotten: int = 0
    unreadable: int = 0


def found_in(record: Record, passed_over: PassedOver) -> Found | None:
    """The decision in a record of `agent.decisions`; None, and counted, where there is none."""
    if is_forgotten(record):
        passed_over.forgotten += 1
        return None
    value = record.value or b""
    try:
        decided = msgspec.json.decode(value, type=DecisionRecord)
        found = Found(record.partition, record.offset, record.timestamp_ms, sha256(value), decided)
        _ = found.decision  # anything but an object is no decision
    except (msgspec.MsgspecError, ValueError, RecursionError):
        passed_over.unreadable += 1
        return None
    return found


async def newest(
    reader: Reader, partitions: int, wanted: Wanted, limit: int, passed_over: PassedOver
) -> AsyncGenerator[Found]:
    """The last `limit` decisions that are wanted, of all partitions, newest first. To be closed.

    Raises: Unavailable, Rejected.
    """
    ranges = await _ranges(reader, partitions, wanted)
    async with AsyncExitStack() as stack:
        heads: list[tuple[int, int, Found, AsyncGenerator[Found]]] = []

        async def advance(one: AsyncGenerator[Found]) -> None:
            found = await anext(one, None)
            if found is not None:
                heapq.heappush(heads, (-found.written_ms, found.partition, found, one))

        for place, (start, stop) in ranges.items():
            one = _newest_of(reader, place, start, stop, wanted, passed_over)
            await advance(await stack.enter_async_context(aclosing(one)))
        while heads and limit > 0:
            _, _, found, one = heapq.heappop(heads)
            yield found
            limit -= 1
            if limit:
                await advance(one)


async def _ranges(reader: Reader, partitions: int, wanted: Wanted) -> dict[TopicPartition, tuple[int, int]]:
    places = [TopicPartition(DECISIONS, partition) for partition in range(partitions)]
    starts, stops = await reader.beginning_offsets(places), await reader.end_offsets(places)
    if wanted.since_ms is not None:
        starts = await reader.offsets_for_times(dict.fromkeys(places, wanted.since_ms))
    if wanted.until_ms is not None:
        stops = await reader.offsets_for_times(dict.fromkeys(places, wanted.until_ms))
    return {place: (starts[place], stops[place]) for place in places}


async def _newest_of(
    reader: Reader, place: TopicPartition, start: int, stop: int, wanted: Wanted, passed_over: PassedOver
) -> AsyncGenerator[Found]:
    """The wanted decisions of one partition, the last one first. What lies behind `stop` is read, too: it may say that
    one of them was forgotten."""
    forgotten: set[bytes | None] = set()
    async with aclosing(backwards(reader, place, start)) as records:
        async for record in records:
            if is_forgotten(record):
                forgotten.add(record.key)
                passed_over.forgotten += record.offset < stop
            elif record.offset < stop and record.key not in forgotten and wanted.by_headers(record):
                found = found_in(record, passed_over)
                if found is not None and wanted.matches(found):
                    yield found


async def backwards(reader: Reader, place: TopicPartition, start: int) -> AsyncGenerator[Record]:
    """What lies in a partition from `start` to its end of now, the last record first. To be closed.

    Raises: Unavailable, Rejected.
    """
    stop, piece = (await reader.end_offsets([place]))[place], FIRST_PIECE
    while stop > start:
        begin = max(start, stop - piece)
        records = [record async for batch in reader.read(place, begin, stop) for record in batch]
        size = sum(len(record.value or b"") for record in records)
        while records:
            yield records.pop()
        piece = max(FIRST_PIECE, min(LONGEST_PIECE, piece * PIECE_BYTES // max(size, 1)))
        stop = begin


async def about_alert(reader: Reader, partitions: int, alert_id: str, passed_over: PassedOver) -> list[Found]:
    """Every decision about one alert, in the order of the log. Raises: Unavailable, Rejected."""
    wanted = alert_id.encode()
    decisions: list[Found] = []
    for partition in range(partitions):
        place = TopicPartition(DECISIONS, partition)
        end = (await reader.end_offsets([place]))[place]
        own: list[tuple[bytes | None, Found]] = []
        async for batch in reader.read(place, 0, end):
            for record in batch:
                if is_forgotten(record):
                    passed_over.forgotten += 1
                    own = [(key, found) for key, found in own if key != record.key]
                elif record.header("alert_id") in (None, wanted):
                    found = found_in(record, passed_over)
                    if found is not None and found.record.alert_id == alert_id:
                        own.append((record.key, found))
        decisions += [found for _, found in own]
    return decisions


async def at_place(reader: Reader, partition: int, offset: int, passed_over: PassedOver) -> Found | None:
    """The decision at one offset; None where none lies there (any more), or it was forgotten since.

    Raises: Unavailable, Rejected.
    """
    place = TopicPartition(DECISIONS, partition)
    first = next(iter([record async for batch in reader.read(place, offset, offset + 1) for record in batch]), None)
    found = None if first is None else found_in(first, passed_over)
    if first is None or found is None:
        return None
    end = (await reader.end_offsets([place]))[place]
    async for batch in reader.read(place, offset + 1, end):
        if any(is_forgotten(record) and record.key == first.key for record in batch):
            return None
    return found


def effects_in(record: Record) -> EffectRecord | None:
    """The entry in a record of `agent.effects`; None where there is none."""
    try:
        return msgspec.json.decode(record.value or b"", type=EffectRecord)
    except (msgspec.MsgspecError, ValueError, RecursionError):
        return None


async def effects_of(reader: Reader, partition: int, alert_id: str, agent: str) -> EffectRecord | None:
    """The standing decision of an (alert, agent) and how far its effects are, of everything that was written about it.

    Raises: Unavailable, Rejected.
    """
    place, key = TopicPartition(EFFECTS, partition), effect_key(alert_id, agent)
    end = (await reader.end_offsets([place]))[place]
    entries: list[EffectRecord] = []
    async for batch in reader.read(place, 0, end):
        for record in batch:
            if record.key != key:
                continue
            if record.value is None:
                entries.clear()
            elif (entry := effects_in(record)) is not None:
                entries.append(entry)
    return reduce(merged, entries) if entries else None


def standing(decisions: Sequence[Found], agent: str, entered: EffectRecord | None) -> Found | None:
    """Which of the decisions about one alert stands for an agent: the one that was entered on `agent.effects`, and until
    then the first live one in the log."""
    own = [found for found in decisions if found.record.agent == agent and found.record.mode == "live"]
    if entered is not None:
        return next((found for found in own if found.sha256 == entered.decision_sha256), None)
    return own[0] if own else None
