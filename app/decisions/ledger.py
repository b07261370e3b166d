"""The memory of effects: one partition's standing decisions and how far each of their effects is.

Every change is acknowledged on `agent.effects` before it counts here. States move forward only, and the decision first
entered stands; so whatever order records of frozen and new owners are read back in, the result is the same. Compaction
knows no such rule: it keeps what was written last. So an owner that finds an older state behind its own, at its start and
by `mend` every minute, writes its own again, long before `min.compaction.lag.ms` is over.
"""

import asyncio
import logging
from collections.abc import AsyncIterator
from functools import reduce
from sys import intern

import msgspec

from app.broker.base import Producer, Reader
from app.core.clock import Clock
from app.core.codec import encode
from app.core.errors import Fenced
from app.core.record import Record, TopicPartition
from app.core.text import one_line
from app.decisions.record import EFFECTS, EffectRecord, EffectState, EffectStatus, effect_key
from app.decisions.remembered import HORIZON_MS, Remembered
from app.dispatch.marks import WINDOW

logger = logging.getLogger(__name__)

Pair = tuple[str, str]
"""(alert_id, agent)."""

RESTORE_OFFSETS = 24 * WINDOW
"""No restore reads more of the topic. What is open is within it: a window of decisions that are unfinished, one of those
that were when they began, and a dozen states of each."""


MAX_CLAIM_MS = 600_000
"""Far beyond what a broker may take for one record, far within the topic's compaction lag."""


def merged(known: EffectRecord, other: EffectRecord) -> EffectRecord:
    """What two records of one (alert, agent) say together: the earlier decision stands, each effect at its furthest."""
    if known.decision_offset != other.decision_offset:
        return min(known, other, key=lambda record: record.decision_offset)
    effects = dict(known.effects)
    for name, status in other.effects.items():
        if name not in effects or status.state.rank > effects[name].state.rank:
            effects[name] = status
    return msgspec.structs.replace(known, effects=effects)


def falls_short(entry: EffectRecord, known: EffectRecord) -> bool:
    """Whether `known` says more than `entry`: an earlier decision, or an effect that is further."""
    if entry.decision_offset != known.decision_offset:
        return known.decision_offset < entry.decision_offset
    return any(
        name not in entry.effects or status.state.rank > entry.effects[name].state.rank
        for name, status in known.effects.items()
    )


class _Key(msgspec.Struct):
    """See `record.effect_key`."""

    alert_id: str
    agent: str


class Ledger:
    """Standing decisions of one partition in one epoch. ended: of those whose effects have ended only the decision's
    offset is remembered, in one memory for all partitions of the process. passed_over: what is told of records that are no
    states of effects, so that each is told once a process, however often the partition comes back."""

    def __init__(
        self,
        producer: Producer,
        reader: Reader,
        clock: Clock,
        partition: int,
        writer: str,
        ended: Remembered[Pair, int],
        passed_over: set[str],
    ) -> None:
        self._producer = producer
        self._reader = reader
        self._clock = clock
        self.place = TopicPartition(EFFECTS, partition)
        self.writer = writer
        self._open: dict[Pair, EffectRecord] = {}
        self._ended = ended
        self._passed_over = passed_over
        self._next = 0
        """The offset after the last one that was restored or written here."""
        self._unread: list[tuple[int, int]] = []
        """What lies between our own records: others' (an owner that was frozen, or follows one, finds any), and own ones
        whose acknowledgement was lost."""
        self._following = asyncio.Lock()
        self._foreign: dict[Pair, list[tuple[int, EffectRecord]]] = {}
        """What others have written, of pairs that have not ended."""
        self._behind: set[Pair] = set()
        """Whose last record in the log says less than is known, or may."""
        self._writing: set[Pair] = set()

    def get(self, alert_id: str, agent: str) -> EffectRecord | None:
        """The entry whose effects have not all ended."""
        return self._open.get((alert_id, agent))

    def standing_offset(self, alert_id: str, agent: str) -> int | None:
        """Offset of the decision that stands, open or ended; None where none is known."""
        entry = self._open.get((alert_id, agent))
        return entry.decision_offset if entry else self._ended.get(self.place.partition, (alert_id, agent))

    async def restore(self, since_ms: int) -> None:
        """Reads back what was written since then, of the last `RESTORE_OFFSETS`. Raises: Unavailable, Rejected."""
        start = (await self._reader.offsets_for_times({self.place: since_ms}))[self.place]
        end = (await self._reader.end_offsets([self.place]))[self.place]
        async for pair, entry, record in self._read(max(start, end - RESTORE_OFFSETS), end):
            self._note(pair, entry)
            if entry is not None:
                known, standing = self.get(*pair), self.standing_offset(*pair)
                if known is not None:
                    self._keep(merged(known, entry), record.timestamp_ms)
                elif standing is None or entry.decision_offset < standing:
                    self._keep(entry, record.timestamp_ms)
        self._next = end
        await self._write_again()

    async def mend(self) -> int:
        """Writes again what is known of every pair behind which somebody else has written less. Returns how many.

        As a rule it asks only where the log ends. Raises: Unavailable, Rejected; what is left is for the next time.
        """
        self._pass((await self._reader.end_offsets([self.place]))[self.place])
        await self._follow()
        return await self._write_again()

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

        A worker that was frozen may still believe that the partition is its own; the log says who came first, unless it
        slept so long that compaction may have removed who did.
        Raises: Fenced when another writer has begun this effect, and then its state is known here, or may have; else as
        `enter`.
        """
        began_ms, before = self._clock.now_ms(), self._next
        assert status.state.rank > entry.effects[name].state.rank, f"{name}: {entry.effects[name]} to {status}"
        claimed = self._further(entry, name, status)
        offset = await self._write(claimed)
        if offset < 0:
            offset = await self._find(claimed, before)
        await self._follow()
        pair = (entry.alert_id, entry.agent)
        others = [other for at, other in self._foreign.get(pair, ()) if at < offset]
        if any(name in other.effects and other.effects[name].state.rank >= status.state.rank for other in others):
            known = reduce(merged, others, claimed)
            self._keep(known, self._clock.now_ms())
            if falls_short(claimed, known):
                self._behind.add(pair)
            raise Fenced(f"effect {name} of {entry.alert_id}: another worker has begun it")
        if self._clock.now_ms() - began_ms > MAX_CLAIM_MS:
            raise Fenced(f"effect {name} of {entry.alert_id}: this worker slept meanwhile, another may have begun it")
        return claimed

    def _further(self, entry: EffectRecord, name: str, status: EffectStatus) -> EffectRecord:
        return msgspec.structs.replace(entry, effects={**entry.effects, name: status}, writer=self.writer)

    async def _write(self, entry: EffectRecord) -> int:
        pair = entry.alert_id, entry.agent
        self._writing.add(pair)
        try:
            offset = await self._put(entry)
        finally:
            self._writing.discard(pair)
        self._keep(entry, self._clock.now_ms())
        return offset

    async def _put(self, entry: EffectRecord) -> int:
        confirmation = await self._producer.confirm(
            EFFECTS, encode(entry), effect_key(entry.alert_id, entry.agent), partition=self.place.partition
        )
        if confirmation.offset >= 0:  # else it is found with what lies before the next one
            self._pass(confirmation.offset)
            self._next = max(self._next, confirmation.offset + 1)
        return confirmation.offset

    def _pass(self, offset: int) -> None:
        """What lies before it, and is no known record of ours, is to be read."""
        if offset > self._next:
            self._unread.append((self._next, offset))
            self._next = offset

    async def _find(self, claimed: EffectRecord, start: int) -> int:
        """Where an acknowledged claim stands of which the broker did not say it; the last place, if it landed twice.

        Raises: Fenced when it is nowhere; Unavailable, Rejected.
        """
        end = (await self._reader.end_offsets([self.place]))[self.place]
        places = [record.offset async for _, entry, record in self._read(start, end) if entry == claimed]
        if not places:
            raise Fenced(f"{claimed.alert_id}: who was the first to begin its effect is not to be found out")
        self._pass(places[-1])
        return places[-1]

    async def _follow(self) -> None:
        """Learns what others have written between our own records. As a rule there is nothing to read."""
        async with self._following:
            while self._unread:
                async for pair, entry, record in self._read(*self._unread[0]):
                    self._note(pair, entry)
                    if entry is not None and entry.writer != self.writer:
                        self._learn(pair, entry, record)
                del self._unread[0]

    def _learn(self, pair: Pair, entry: EffectRecord, record: Record) -> None:
        """Keeps what another has written for a claim that may come; what has ended is remembered as after a restore."""
        if pair in self._open or pair in self._writing:
            self._foreign.setdefault(pair, []).append((record.offset, entry))
        elif self._ended.get(self.place.partition, pair) is None:
            others = self._foreign.setdefault(pair, [])
            others.append((record.offset, entry))
            said = reduce(merged, (other for _, other in others))
            if has_ended(said):
                self._keep(said, record.timestamp_ms)

    def _note(self, pair: Pair, entry: EffectRecord | None) -> None:
        """What is said last of a pair: less than is known, or not. None: it was forgotten.

        How the effects of a pair have ended is not remembered, so whatever another says of it later may be less.
        """
        known, ended_offset = self._furthest_open(pair), self._ended.get(self.place.partition, pair)
        if entry is not None and known is not None:
            is_behind = falls_short(entry, known)
        elif entry is not None and ended_offset is not None:
            is_ours = entry.writer == self.writer and pair not in self._behind  # else ours may be the lesser end
            is_behind = not is_ours or entry.decision_offset > ended_offset or not has_ended(entry)
        else:
            is_behind = False
        (self._behind.add if is_behind else self._behind.discard)(pair)

    def _furthest_open(self, pair: Pair) -> EffectRecord | None:
        """What all who wrote say of a pair that is open here."""
        entry = self._open.get(pair)
        return entry and reduce(merged, (other for _, other in self._foreign.get(pair, ())), entry)

    async def _write_again(self) -> int:
        ended = await self._furthest({pair for pair in self._behind if pair not in self._open})
        written = 0
        for pair in [*self._behind]:
            if pair in self._writing:  # it lands before or after what was found; the next time shows it
                continue
            entry = self._furthest_open(pair) or ended.get(pair)
            if entry is not None:  # else the last word on it is as good, or it has ended meanwhile and was written so
                await self._put(msgspec.structs.replace(entry, writer=self.writer))
                written += 1
            self._behind.discard(pair)
        return written

    async def _furthest(self, pairs: set[Pair]) -> dict[Pair, EffectRecord]:
        """What the log of the last day says of pairs whose entries are not kept here, where its last word is less."""
        found: dict[Pair, EffectRecord] = {}
        last: dict[Pair, EffectRecord] = {}
        if pairs:
            times = {self.place: self._clock.now_ms() - HORIZON_MS}
            start = (await self._reader.offsets_for_times(times))[self.place]
            async for pair, entry, _ in self._read(max(start, self._next - RESTORE_OFFSETS), self._next):
                if entry is None:
                    found.pop(pair, None)
                elif pair in pairs:
                    found[pair] = merged(found[pair], entry) if pair in found else entry
                    last[pair] = entry
        return {pair: entry for pair, entry in found.items() if falls_short(last[pair], entry)}

    async def _read(self, start: int, stop: int) -> AsyncIterator[tuple[Pair, EffectRecord | None, Record]]:
        foreign = 0
        first = ""
        async for batch in self._reader.read(self.place, start, stop):
            for record in batch:
                entry = None
                try:
                    if record.value is not None:
                        entry = msgspec.json.decode(record.value, type=EffectRecord)
                    told = entry or msgspec.json.decode(record.key or b"", type=_Key)
                except (msgspec.MsgspecError, ValueError, RecursionError) as error:
                    foreign += 1
                    first = first or f"offset {record.offset}: {one_line(error)}"
                    continue
                yield (told.alert_id, intern(told.agent)), entry, record
        line = f"{self.place}: {foreign} records are no states of effects: passed over, first {first}"
        if foreign and line not in self._passed_over:
            self._passed_over.add(line)
            logger.warning("%s", line)

    def _keep(self, entry: EffectRecord, at_ms: int) -> None:
        pair = entry.alert_id, intern(entry.agent)
        if has_ended(entry):
            self._open.pop(pair, None)
            others = (other for _, other in self._foreign.pop(pair, ()))
            if falls_short(entry, reduce(merged, others, entry)):
                self._behind.add(pair)
            self._ended.put(self.place.partition, pair, entry.decision_offset, at_ms)
        else:
            self._open[pair] = entry


def has_ended(entry: EffectRecord) -> bool:
    """Whether every effect has come to its end, whichever."""
    return all(status.state.ended for status in entry.effects.values())


def reached(entry: EffectRecord, name: str) -> EffectState:
    """How far one effect is."""
    return entry.effects[name].state
