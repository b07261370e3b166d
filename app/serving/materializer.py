"""Brings the tiles of the feature topics into the store, and heals a store that was emptied or set back.

Where to go on is what the store says, never what the consumer group says: the position lies beside the values and moves
with them, only from where it is expected. When it is found elsewhere, because the store was emptied or restored, or because
another materializer was at work, the partition is sought to where the store stands. The group is for assignment alone.

Bad records are counted, told once a partition, and passed over. They have no dead letters: a feature topic is derived, its
origin lies in the raw topic and its bytes stay where they are.
"""

import asyncio
import logging
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass

import anyio
import msgspec

from app.broker.base import Assignment, Broker, Consumer
from app.core.errors import BadRecord, Fenced, Unavailable
from app.core.record import Record, TopicPartition
from app.serving.base import FeatureStore, Progress, TileChange, View
from app.serving.tile_records import ProgressMark, TileRecords

GROUP = "headrace.features"
POLL_RECORDS = 500
POLL_TIMEOUT_MS = 100
CHECK_INTERVAL_S = 1.0
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.1, 2.0
"""Between attempts to reach a store that is away; doubled each time."""

logger = logging.getLogger(__name__)


class MaterializerStatistics(msgspec.Struct, frozen=True):
    """Counts since the start. rewinds: partitions found elsewhere than expected. outages: times the store was away;
    `away` whether it is now. lag: records of the feature topics that are not in the store yet."""

    records: int
    tiles: int
    batches: int
    bad_records: int
    rewinds: int
    outages: int
    away: bool
    lag: int


@dataclass
class _Stand:
    """Where one partition stands in the store, as far as we know. offset: None for nothing stored."""

    offset: int | None
    as_of_ms: int


class Materializer:
    """One member of the materializers' group. One `run` an object."""

    def __init__(self, broker: Broker, store: FeatureStore, views: Mapping[str, View]) -> None:
        self._store = store
        self._views = {view.topic: view for view in views.values()}
        self._parsers = {view.topic: TileRecords(view) for view in views.values()}
        self._reader = broker.reader()
        self._consumer: Consumer = broker.consumer(GROUP, sorted(self._views), self)
        self._stands: dict[TopicPartition, _Stand] = {}
        self._told: set[tuple[str, TopicPartition]] = set()
        self._next_check_s = 0.0
        self._retry_at_s: float | None = None
        self._waits_for = ""
        self._pause_s = FIRST_PAUSE_S
        self._records = self._tiles = self._batches = self._bad_records = self._rewinds = self._outages = 0

    async def run(self, stopping: asyncio.Event) -> None:
        """Until `stopping` is set. On cancellation each batch is in the store as a whole, or will be read again.

        Raises: Unavailable when the broker is away; SetupError for a topic or store of another declaration.
        """
        await self._consumer.start()
        try:
            while not stopping.is_set():
                await self._step()
        finally:
            with anyio.CancelScope(shield=True):
                await self._consumer.close()
                await self._reader.close()

    async def _step(self) -> None:
        records = await self._consumer.poll(POLL_RECORDS, POLL_TIMEOUT_MS)
        now_s = asyncio.get_running_loop().time()
        try:
            if self._retry_at_s is not None:
                if now_s >= self._retry_at_s:  # what was polled meanwhile is read again from the store's position
                    await self._return()
                return
            await self._apply_all(records)
            if now_s >= self._next_check_s:
                self._next_check_s = now_s + CHECK_INTERVAL_S
                await self._check()
        except Unavailable as error:
            self._leave(error)

    async def _apply_all(self, records: Sequence[Record]) -> None:
        batches: dict[TopicPartition, list[Record]] = {}
        for record in records:
            batches.setdefault(TopicPartition(record.topic, record.partition), []).append(record)
        for place, batch in batches.items():
            await self._apply(place, batch)

    async def _apply(self, place: TopicPartition, batch: Sequence[Record]) -> None:
        """One batch of one partition, in one call. Changes of one tile become its newest."""
        stand = self._stands[place]
        newest: dict[tuple[str, int, int], TileChange] = {}
        as_of_ms = stand.as_of_ms
        for record in batch:
            read = self._read(place, record)
            if isinstance(read, ProgressMark):
                as_of_ms = max(as_of_ms, read.as_of)  # a frozen engine that wakes still writes an older one
            elif read is not None:
                tile = read.tile
                key = (read.entity, tile.start_ms, tile.partition)
                if key not in newest or newest[key].tile.version < tile.version:
                    newest[key] = read
        progress = Progress(batch[-1].offset + 1, as_of_ms)
        changes = list(newest.values())
        if not await self._store.apply(self._views[place.topic], place.partition, stand.offset, progress, changes):
            await self._rewind([place])
            return
        self._stands[place] = _Stand(*progress)
        self._records += len(batch)
        self._tiles += len(changes)
        self._batches += 1

    def _read(self, place: TopicPartition, record: Record) -> TileChange | ProgressMark | None:
        try:
            return self._parsers[place.topic].read(record)
        except BadRecord as error:
            self._bad_records += 1
            self._tell_once("bad", place, f"passed over: {error}; further ones of this partition are only counted")
            return None

    async def _check(self) -> None:
        """Finds a store that was emptied or set back while no batch came."""
        stored = await self._stored(self._stands)
        moved = [place for place, stand in self._stands.items() if stored[place].offset != stand.offset]
        if moved:
            await self._rewind(moved)

    async def _rewind(self, places: Sequence[TopicPartition]) -> None:
        self._rewinds += len(places)
        expected = {place: self._stands[place].offset for place in places}
        await self._seek(places)
        for place in places:
            found = self._stands[place].offset
            self._tell_once(
                "moved", place, f"the store stands at {found}, not at {expected[place]}: going on from there"
            )

    async def _seek(self, places: Sequence[TopicPartition]) -> None:
        """Goes on where the store stands: at the beginning where it has nothing, or more than the topic ever had."""
        stored = await self._stored(places)
        beginnings = await self._reader.beginning_offsets(places)
        ends = await self._reader.end_offsets(places)
        for place in places:
            stand = self._stands[place] = stored[place]
            if stand.offset is not None and stand.offset > ends[place]:
                stand.as_of_ms = 0
                self._tell_once(
                    "anew", place, f"the topic ends before {stand.offset}: it was made anew, and is read anew"
                )
            known = stand.offset is not None and beginnings[place] <= stand.offset <= ends[place]
            start = stand.offset if known and stand.offset is not None else beginnings[place]
            with suppress(Fenced):  # it was lost a moment ago, and the next poll says so
                await self._consumer.seek(place, start)

    async def _stored(self, places: Iterable[TopicPartition]) -> dict[TopicPartition, _Stand]:
        stored = {}
        for topic in {place.topic for place in places}:
            progress = await self._store.progress(self._views[topic])
            for place in places:
                if place.topic == topic:
                    held = progress.get(place.partition)
                    stored[place] = _Stand(held.offset, held.as_of_ms) if held else _Stand(None, 0)
        return stored

    def _leave(self, error: Unavailable) -> None:
        """The store, or the broker, is away: fetch nothing, keep polling so that the group keeps us, and try again later."""
        if self._retry_at_s is None:
            self._outages += 1
            self._consumer.pause(self._stands)
        if self._retry_at_s is None or f"{error}" != self._waits_for:
            self._waits_for = f"{error}"
            logger.warning("features wait: %s", error)
        self._retry_at_s = asyncio.get_running_loop().time() + self._pause_s
        self._pause_s = min(2 * self._pause_s, LONGEST_PAUSE_S)

    async def _return(self) -> None:
        """Tries again: where the store stands now is where every partition goes on. Raises: Unavailable."""
        await self._seek(list(self._stands))
        self._consumer.resume(self._stands)
        self._retry_at_s, self._pause_s = None, FIRST_PAUSE_S
        logger.warning("features go on")

    async def on_assigned(self, assignments: Sequence[Assignment]) -> None:
        places = [assignment.place for assignment in assignments]
        self._stands.update({place: _Stand(None, 0) for place in places})
        for place in places:  # else the client looks for an offset that is never committed, and may wait for ever
            with suppress(Fenced):
                await self._consumer.seek(place, 0)
        try:
            if self._retry_at_s is not None:
                self._consumer.pause(places)
            else:
                await self._seek(places)
        except Unavailable as error:
            self._leave(error)

    async def on_revoked(self, assignments: Sequence[Assignment]) -> None:
        for assignment in assignments:
            self._stands.pop(assignment.place, None)

    async def on_lost(self, assignments: Sequence[Assignment]) -> None:
        await self.on_revoked(assignments)

    def statistics(self) -> MaterializerStatistics:
        lag = 0
        for place, stand in self._stands.items():
            lag += max(0, self._consumer.known_end_offset(place) - (stand.offset or 0))
        return MaterializerStatistics(
            records=self._records,
            tiles=self._tiles,
            batches=self._batches,
            bad_records=self._bad_records,
            rewinds=self._rewinds,
            outages=self._outages,
            away=self._retry_at_s is not None,
            lag=lag,
        )

    def _tell_once(self, kind: str, place: TopicPartition, text: str) -> None:
        if (kind, place) not in self._told:
            self._told.add((kind, place))
            logger.warning("%s: %s", place, text)
