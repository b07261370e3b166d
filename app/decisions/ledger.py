"""The memory of effects: one partition's standing decisions and how far each of their effects is.

Every change is acknowledged on `agent.effects` before it counts here. States move forward only, and the decision first
entered stands; so whatever order records of frozen and new owners are read back in, the result is the same.
"""

import asyncio
import logging
from collections.abc import AsyncIterator
from functools import reduce

import msgspec

from app.broker.base import Producer, Reader
from app.core.codec import encode
from app.core.errors import Fenced
from app.core.record import TopicPartition
from app.decisions.record import EFFECTS, EffectRecord, EffectState, EffectStatus, effect_key

logger = logging.getLogger(__name__)

Pair = tuple[str, str]
"""(alert_id, agent)."""


def merged(known: EffectRecord, other: EffectRecord) -> EffectRecord:
    """What two records of one (alert, agent) say together: the earlier decision stands, each effect at its furthest."""
    if known.decision_offset != other.decision_offset:
        return min(known, other, key=lambda record: record.decision_offset)
    effects = dict(known.effects)
    for name, status in other.effects.items():
        if name not in effects or status.state.rank > effects[name].state.rank:
            effects[name] = status
    return msgspec.structs.replace(known, effects=effects)


class Ledger:
    """Standing decisions of one partition in one epoch, at most `capacity` of them: the oldest ended ones go first."""

    def __init__(self, producer: Producer, reader: Reader, partition: int, writer: str, capacity: int) -> None:
        self._producer = producer
        self._reader = reader
        self._place = TopicPartition(EFFECTS, partition)
        self.writer = writer
        self._capacity = capacity
        self._entries: dict[Pair, EffectRecord] = {}
        self._seen_to = 0
        """Every record of the topic before this offset is known here."""
        self._following = asyncio.Lock()
        self._foreign: dict[Pair, list[tuple[int, EffectRecord]]] = {}
        """What others have written since the restore: only an owner that was frozen, or follows one, finds any."""

    def __len__(self) -> int:
        return len(self._entries)

    def get(self, alert_id: str, agent: str) -> EffectRecord | None:
        return self._entries.get((alert_id, agent))

    async def restore(self, since_ms: int) -> None:
        """Reads back what was written since then. Raises: Unavailable, Rejected."""
        start = (await self._reader.offsets_for_times({self._place: since_ms}))[self._place]
        end = (await self._reader.end_offsets([self._place]))[self._place]
        async for entry, _ in self._read(start, end):
            known = self.get(entry.alert_id, entry.agent)
            self._keep(entry if known is None else merged(known, entry))
        self._seen_to = end

    async def enter(self, entry: EffectRecord) -> None:
        """Writes a standing decision and the effects it intends.

        Raises: as `Producer.confirm`. On failure and cancellation nothing is known here, though it may be written.
        """
        await self._write(entry)

    async def advance(self, entry: EffectRecord, name: str, status: EffectStatus) -> EffectRecord:
        """Writes a further state of one effect, and returns the entry that has it. Raises: as `enter`."""
        assert status.state.rank > entry.effects[name].state.rank, f"{name}: {entry.effects[name]} to {status}"
        further = self._further(entry, name, status)
        await self._write(further)
        return further

    async def claim(self, entry: EffectRecord, name: str, status: EffectStatus) -> EffectRecord:
        """Like `advance`, for the state before a call that must not be made twice: only the first to write it may call.

        A worker that was frozen may still believe that the partition is its own; the log says who came first.
        Raises: Fenced when another writer has begun this effect, and then its state is known here; else as `enter`.
        """
        assert status.state.rank > entry.effects[name].state.rank, f"{name}: {entry.effects[name]} to {status}"
        claimed = self._further(entry, name, status)
        offset = await self._write(claimed)
        await self._follow(offset)
        pair = (entry.alert_id, entry.agent)
        others = [other for at, other in self._foreign.get(pair, ()) if at < offset]
        if any(name in other.effects and other.effects[name].state.rank >= status.state.rank for other in others):
            self._keep(reduce(merged, others, claimed))
            raise Fenced(f"effect {name} of {entry.alert_id}: another worker has begun it")
        return claimed

    def _further(self, entry: EffectRecord, name: str, status: EffectStatus) -> EffectRecord:
        return msgspec.structs.replace(entry, effects={**entry.effects, name: status}, writer=self.writer)

    async def _write(self, entry: EffectRecord) -> int:
        confirmation = await self._producer.confirm(
            EFFECTS, encode(entry), effect_key(entry.alert_id, entry.agent), partition=self._place.partition
        )
        self._keep(entry)
        return confirmation.offset

    async def _follow(self, stop: int) -> None:
        """Learns what others have written before `stop`. Each record is read once in the life of a ledger."""
        async with self._following:
            async for entry, offset in self._read(self._seen_to, stop):
                if entry.writer != self.writer:
                    self._foreign.setdefault((entry.alert_id, entry.agent), []).append((offset, entry))
            self._seen_to = max(self._seen_to, stop)

    async def _read(self, start: int, stop: int) -> AsyncIterator[tuple[EffectRecord, int]]:
        async for batch in self._reader.read(self._place, start, stop):
            for record in batch:
                if record.value is None:
                    continue
                try:
                    entry = msgspec.json.decode(record.value, type=EffectRecord)
                except msgspec.MsgspecError as error:
                    logger.error(
                        "%s/%s is no state of effects and is passed over: %s", self._place, record.offset, error
                    )
                    continue
                yield entry, record.offset

    def _keep(self, entry: EffectRecord) -> None:
        self._entries[entry.alert_id, entry.agent] = entry
        if len(self._entries) > self._capacity:
            oldest = next((pair for pair, entry in self._entries.items() if has_ended(entry)), None)
            if oldest is not None:
                del self._entries[oldest]


def has_ended(entry: EffectRecord) -> bool:
    """Whether every effect has come to its end, whichever."""
    return all(status.state.ended for status in entry.effects.values())


def reached(entry: EffectRecord, name: str) -> EffectState:
    """How far one effect is."""
    return entry.effects[name].state
