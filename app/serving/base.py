"""The feature store contract: tiles in, merged values out, and how fresh they are.

A store holds, for each view, the tiles of every entity and the *progress* of every feature-topic partition: up to which
offset it was materialized, and up to when the view had seen everything. Offsets live beside the values and move with
them, in one step, only from the position the writer expects; so a store that was emptied or set back says so at the next
write, and a second writer cannot move it.
"""

from collections.abc import Sequence
from decimal import Decimal
from enum import Enum
from typing import NamedTuple, Protocol

import msgspec

from app.streams.graph import LivePipeline, OutputField
from app.streams.windows import Tile


class View(msgspec.Struct, frozen=True):
    """What a store must know of a view. `comparable`: every valid event of the source shows in it."""

    name: str
    key_field: str
    topic: str
    source_topic: str
    partitions: int
    window_ms: int
    tile_ms: int
    fields: tuple[OutputField, ...]
    comparable: bool
    fingerprint: str


class Freshness(Enum):
    FRESH = "fresh"
    STALE = "stale"
    MISSING = "missing"


class OwnEvent(Enum):
    """Whether an answer includes the event that asks. LATE: it came too late for the view and never will."""

    SEEN = "seen"
    NOT_SEEN = "not seen"
    LATE = "late"
    NOT_COMPARABLE = "not comparable"


class TileChange(NamedTuple):
    """The absolute state of one tile of one entity. A change replaces what is stored when its version is newer."""

    entity: str
    tile: Tile


class Progress(NamedTuple):
    """How far one partition of a view is.

    offset: next record of the feature topic to apply. as_of_ms: every event published before it is in the tiles.
    """

    offset: int
    as_of_ms: int


class StoredFeatures(NamedTuple):
    """What a store holds of one entity: tiles, unmerged, and the progress of the entity's partition (None: nothing)."""

    tiles: tuple[Tile, ...]
    progress: Progress | None


class FeatureStore(Protocol):
    """Memory and Redis keep this contract."""

    address: str

    async def start(self) -> None:
        """Raises: Unavailable within 10 s when no server answers."""
        ...

    async def position(self, view: View, partition: int) -> int | None:
        """Next feature-topic offset to apply; None where the store has nothing of that partition."""
        ...

    async def apply(
        self, view: View, partition: int, expected: int | None, progress: Progress, changes: Sequence[TileChange]
    ) -> bool:
        """Merges the changes and moves the position from `expected` to `progress.offset`, in one step.

        Returns False, and changes nothing, when the stored position is not `expected`: read `position` and go on there.
        Tiles whose version is not newer are passed over, so a repeat is harmless. On cancellation all or nothing was
        applied. Raises: Unavailable.
        """
        ...

    async def read(self, view: View, entity: str) -> StoredFeatures:
        """Tiles are at least as new as the progress says. Raises: Unavailable."""
        ...

    async def close(self) -> None: ...


class Features(msgspec.Struct, frozen=True, kw_only=True):
    """One entity's features as an agent sees them. Money is a Decimal of dollars.

    as_of_ms: every event published before it is in the values (0 when missing). age_ms: now - as_of. window_end_ms: the
    moment up to which they count.
    """

    view: str
    entity: str
    values: dict[str, int | Decimal]
    window_end_ms: int
    as_of_ms: int
    age_ms: int
    freshness: Freshness
    own_event: OwnEvent = OwnEvent.NOT_COMPARABLE


def view_of(pipeline: LivePipeline, partitions: int, fingerprint: str) -> View:
    """The view that a live pipeline fills."""
    source = pipeline.stream.source
    return View(
        pipeline.view,
        source.key,
        pipeline.topic,
        source.spec.name,
        partitions,
        pipeline.size_ms,
        pipeline.tile_ms,
        pipeline.outputs,
        pipeline.comparable,
        fingerprint,
    )
