"""Removes what is kept about one entity, such as a person: decisions, reviews, effects and features.

A decision is replaced under its key by its place in its chain and its hash, so that the chain still holds; everything else
is taken back by a tombstone. What is open is waited for, not broken off: an effect that has not ended, and features that
still count for the next decision. Compaction makes it final; until then the old bytes lie before their replacement, and
`history` shows nothing of them.
"""

from collections.abc import AsyncIterator, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import reduce

import msgspec

from app.broker.base import Admin, Producer, Reader
from app.broker.topics import TopicSpec
from app.core.clock import Clock
from app.core.codec import encode
from app.core.errors import BadRecord
from app.core.record import Headers, Record, TopicPartition
from app.core.text import one_line
from app.decisions.actions import GROUP
from app.decisions.history import PassedOver, effects_in, found_in
from app.decisions.ledger import has_ended, merged
from app.decisions.record import (
    DECISIONS,
    EFFECTS,
    REVIEWS,
    SWITCHES,
    EffectRecord,
    ForgottenRecord,
    effect_key,
    entity_of,
    forgotten_headers,
    is_forgotten,
)
from app.serving.base import FeatureStore, TileChange, View
from app.serving.tile_records import TileRecords

HANDLED = (DECISIONS, EFFECTS, REVIEWS)


class Write(msgspec.Struct, frozen=True):
    """One record that replaces or takes back another under its key; value None is a tombstone."""

    topic: str
    partition: int
    key: bytes
    value: bytes | None = None
    headers: Headers = ()


class Remains(msgspec.Struct, frozen=True):
    """A topic whose records may name the entity and go by themselves. retention_ms: None where they never do. is_left: by a declaration
    of before, until it is pruned."""

    topic: str
    retention_ms: int | None
    is_left: bool = False


@dataclass
class Plan:
    """What forgetting one entity takes. waits: what is open; nothing is removed while there is any."""

    entity: str
    writes: list[Write] = field(default_factory=list)
    waits: list[str] = field(default_factory=list)
    views: list[View] = field(default_factory=list)
    """Those whose store may hold the entity."""
    awaiting: int = 0
    """Decisions that an earlier run has replaced, whose old bytes compaction has not removed yet."""

    def count(self, topic: str) -> int:
        return sum(write.topic == topic for write in self.writes)


@dataclass
class _Partition:
    """What one partition holds about the entity."""

    decisions: dict[bytes, Write] = field(default_factory=dict)
    """By key, what shall stand there."""
    live: dict[bytes, tuple[bytes, int]] = field(default_factory=dict)
    """By key, of live decisions that are not forgotten yet: their key on `agent.effects`, and their offset."""
    pairs: set[bytes] = field(default_factory=set)
    """Keys on `agent.effects` of all."""


async def find(entity: str, reader: Reader, clock: Clock, partitions: int, views: Mapping[str, View]) -> Plan:
    """What there is of an entity, and what is open, as of now.

    Raises: Unavailable, Rejected; SetupError for a view's topic of another declaration.
    """
    search = _Search(entity, reader, clock)
    for partition in range(partitions):
        await search.in_partition(partition)
    for view in views.values():
        await search.in_view(view)
    return search.plan


async def carry_out(plan: Plan, producer: Producer, store: FeatureStore) -> int:
    """Writes and deletes everything that the plan names, decisions last; returns in how many views the store held the
    entity.

    By its decisions another run finds the rest, so one that broke off can be done again: it repeats what it did.
    Raises: Unavailable, Rejected, and then, as on cancellation, some first part is removed.
    """
    assert not plan.waits, "what is open is not broken off"
    for write in sorted(plan.writes, key=lambda write: write.topic == DECISIONS):
        await producer.confirm(write.topic, write.value, write.key, partition=write.partition, headers=write.headers)
    return sum([await store.forget(view, plan.entity) for view in plan.views])


class _Search:
    """Goes through the topics and notes what is to be written and waited for."""

    def __init__(self, entity: str, reader: Reader, clock: Clock) -> None:
        self.plan = Plan(entity)
        self._entity = entity
        self._reader = reader
        self._clock = clock

    async def in_partition(self, partition: int) -> None:
        found = await self._decisions(partition)
        await self._effects(partition, found)
        await self._reviews(partition)
        self.plan.writes += found.decisions.values()

    async def _decisions(self, partition: int) -> _Partition:
        found = _Partition()
        forgotten_ms, wanted, passed_over = self._clock.now_ms(), self._entity.encode(), PassedOver()
        async for record in _records(self._reader, TopicPartition(DECISIONS, partition)):
            if record.key is None:
                continue
            if is_forgotten(record):
                self.plan.awaiting += found.decisions.pop(record.key, None) is not None
                found.live.pop(record.key, None)
                continue
            if entity_of(record) != wanted:
                continue
            decision = found_in(record, passed_over)
            if decision is None:
                continue
            decided = decision.record
            stands = ForgottenRecord(
                writer=decided.writer,
                number=decided.number,
                previous=decided.previous,
                sha256=decision.sha256,
                forgotten_ms=forgotten_ms,
            )
            headers = forgotten_headers(record.headers, forgotten_ms)
            found.decisions[record.key] = Write(DECISIONS, partition, record.key, encode(stands), headers)
            pair = effect_key(decided.alert_id, decided.agent)
            found.pairs.add(pair)
            if decided.mode == "live":
                found.live[record.key] = pair, record.offset
        return found

    async def _effects(self, partition: int, found: _Partition) -> None:
        """Takes back what is known of effects that have ended; the others are waited for."""
        entries: dict[bytes, list[EffectRecord]] = {}
        taken_back: set[bytes] = set()
        async for record in _records(self._reader, TopicPartition(EFFECTS, partition)):
            if record.key not in found.pairs or record.key is None:
                continue
            if record.value is None:
                taken_back.add(record.key)
                continue
            taken_back.discard(record.key)
            entry = effects_in(record)
            if entry is not None:
                entries.setdefault(record.key, []).append(entry)
        waits: dict[bytes, str] = {}
        for pair in sorted({pair for pair, _ in found.live.values()} - taken_back):
            known = reduce(merged, entries[pair]) if pair in entries else None
            if known is None:
                waits[pair] = "the actions have not come to its decision yet"
            elif not has_ended(known):
                opened = [name for name, status in known.effects.items() if not status.state.ended]
                waits[pair] = f"effects are not at their end: {', '.join(opened)}"
        buried = await self._buried(partition) if waits else frozenset()
        for pair, why in waits.items():
            if not all(offset in buried for other, offset in found.live.values() if other == pair):
                self.plan.waits.append(f"{_said(pair)}: {why}")
        self.plan.writes += [Write(EFFECTS, partition, pair) for pair in entries if pair not in taken_back]

    async def _buried(self, partition: int) -> frozenset[int]:
        """Offsets of decisions that ended as dead letters: no effect of theirs is made any more."""
        offsets = set()
        async for record in _records(self._reader, TopicPartition(f"{DECISIONS}.dead", partition)):
            if record.header("group") == GROUP.encode():
                offsets.add(int(record.header("offset") or b"-1"))
        return frozenset(offsets)

    async def _reviews(self, partition: int) -> None:
        wanted = self._entity.encode()
        keys: set[bytes] = set()
        async for record in _records(self._reader, TopicPartition(REVIEWS, partition)):
            if record.key is None:
                continue
            if record.value is None:
                keys.discard(record.key)
            elif entity_of(record) == wanted:
                keys.add(record.key)
        self.plan.writes += [Write(REVIEWS, partition, key) for key in sorted(keys)]

    async def in_view(self, view: View) -> None:
        """Tiles that no longer count are taken back; while one does, a decision would see less than there was."""
        parser, partition, now_ms = TileRecords(view), view.partition_of(self._entity), self._clock.now_ms()
        keys: set[bytes] = set()
        counts_until_ms = 0
        async for record in _records(self._reader, TopicPartition(view.topic, partition)):
            try:
                change = parser.read(record)
            except BadRecord:
                continue
            if record.value is None and record.key is not None:
                keys.discard(record.key)
            elif isinstance(change, TileChange) and change.entity == self._entity and record.key is not None:
                keys.add(record.key)
                counts_until_ms = max(counts_until_ms, change.tile.start_ms + view.tile_ms + view.window_ms)
        if counts_until_ms > now_ms:
            seconds = -(-(counts_until_ms - now_ms) // 1000)
            self.plan.waits.append(f"{view.name} of {self._entity}: counts what was done lately, for {seconds} s more")
        self.plan.writes += [Write(view.topic, partition, key) for key in sorted(keys)]
        self.plan.views.append(view)


async def final_after_ms(admin: Admin, topics: Sequence[str]) -> dict[str, int | None]:
    """How long after the writing the cluster may leave what was replaced, by its settings, topic by topic; None where
    they give no bound. Raises: Unavailable, Rejected."""
    described = await admin.describe(topics)
    bounds: dict[str, int | None] = {}
    for name, found in described.items():
        if found is not None:
            lag_ms = int(found.config.get("max.compaction.lag.ms", 2**63 - 1))
            compacts = "compact" in found.config.get("cleanup.policy", "compact")
            bounds[name] = lag_ms if compacts and lag_ms < 2**63 - 1 else None
    return bounds


async def remaining(
    admin: Admin, specs: Sequence[TopicSpec], views: Mapping[str, View], left: Collection[str] = ()
) -> list[Remains]:
    """The topics of the application that may still name the entity, and how long: none of them can lose one record. left: tables of
    declarations of before, some of which may be gone.

    Raises: Unavailable, Rejected.
    """
    handled = {*HANDLED, *(view.topic for view in views.values())}
    described = await admin.describe([*(spec.name for spec in specs if spec.name not in handled), *left])
    remains = []
    for name, found in described.items():
        if found is not None and name != SWITCHES:
            retention_ms = int(found.config.get("retention.ms", -1))
            remains.append(Remains(name, retention_ms if retention_ms >= 0 else None, name in left))
    return sorted(remains, key=lambda one: one.topic)


async def _records(reader: Reader, place: TopicPartition) -> AsyncIterator[Record]:
    """What a partition holds now, from its beginning to its end."""
    end = (await reader.end_offsets([place]))[place]
    async for batch in reader.read(place, 0, end):
        for record in batch:
            yield record


def _said(pair: bytes) -> str:
    """A key of `agent.effects`, for a person."""
    named = msgspec.json.decode(pair, type=dict[str, str])
    return f"{one_line(named['alert_id'])}, {named['agent']}"
