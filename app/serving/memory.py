"""The feature store in this process, for tests, the demo and one-machine trials."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from app.core.clock import Clock
from app.serving.base import Progress, StoredFeatures, TileChange, View
from app.streams.windows import Tile


@dataclass
class _Entity:
    """The tiles of one entity by (start, source partition), and when they may be forgotten."""

    tiles: dict[tuple[int, int], Tile] = field(default_factory=dict)
    expires_ms: int = 0

    def merge(self, tile: Tile) -> bool:
        """Keeps the tile when it is newer than what is held; whether it was."""
        place = (tile.start_ms, tile.partition)
        held = self.tiles.get(place)
        if held is not None and held.version >= tile.version:
            return False
        self.tiles[place] = tile
        return True

    def drop_older(self, kept_ms: int) -> None:
        newest_start_ms = max(start_ms for start_ms, _ in self.tiles)
        for place in [place for place in self.tiles if place[0] <= newest_start_ms - kept_ms]:
            del self.tiles[place]


@dataclass
class _Shelf:
    """All that is held of one view. Entities stand in the order of their last change, so the first expires first."""

    fingerprint: str
    progress: dict[int, Progress] = field(default_factory=dict)
    entities: dict[str, _Entity] = field(default_factory=dict)

    def expire(self, now_ms: int) -> None:
        while self.entities:
            name, entity = next(iter(self.entities.items()))
            if entity.expires_ms > now_ms:
                return
            del self.entities[name]


class MemoryStore:
    """Keeps the contract of `base.FeatureStore`. No method waits, so each is one step."""

    address = "memory://"

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._shelves: dict[str, _Shelf] = {}

    async def start(self) -> None:
        """Nothing to connect."""

    async def progress(self, view: View) -> Mapping[int, Progress]:
        return dict(self._shelf(view).progress)

    async def apply(
        self, view: View, partition: int, expected: int | None, progress: Progress, changes: Sequence[TileChange]
    ) -> bool:
        shelf = self._shelf(view)
        held = shelf.progress.get(partition)
        if (held.offset if held else None) != expected:
            return False
        now_ms = self._clock.now_ms()
        shelf.expire(now_ms)
        for name, tile in changes:
            entity = shelf.entities.get(name) or _Entity()
            if entity.merge(tile):
                entity.drop_older(view.kept_ms)
                entity.expires_ms = now_ms + view.ttl_ms
                shelf.entities.pop(name, None)
                shelf.entities[name] = entity
        shelf.progress[partition] = progress
        self._shelves[view.stored] = shelf
        return True

    async def read(self, view: View, entity: str) -> StoredFeatures:
        shelf = self._shelf(view)
        held = shelf.entities.get(entity)
        tiles = tuple(held.tiles.values()) if held is not None and held.expires_ms > self._clock.now_ms() else ()
        return StoredFeatures(tiles, shelf.progress.get(view.partition_of(entity)))

    async def forget(self, view: View, entity: str) -> bool:
        return self._shelf(view).entities.pop(entity, None) is not None

    async def clear(self, view: View) -> None:
        self._shelves.pop(view.stored, None)

    async def close(self) -> None:
        """Nothing to end; values stay readable."""

    def _shelf(self, view: View) -> _Shelf:
        shelf = self._shelves.get(view.stored) or _Shelf(view.fingerprint)
        if shelf.fingerprint != view.fingerprint:
            raise view.other_declaration()
        return shelf
