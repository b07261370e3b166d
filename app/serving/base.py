"""The feature store contract: tiles in, merged values out, and how fresh they are.

A store holds, for each view, the tiles of every entity and the *progress* of every feature-topic partition: up to which
offset it was materialized, and up to when the view had seen everything. Offsets live beside the values and move with
them, in one step, only from the position the writer expects; so a store that was emptied or set back says so at the next
write, and a second writer cannot move it.
"""

from collections.abc import Mapping, Sequence
from decimal import Decimal
from enum import Enum
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import msgspec

from app.broker.topics import MAX_AHEAD_MS, partition_of
from app.core.errors import SetupError
from app.streams.aggregates import Accumulator, OutputField, accumulators_of
from app.streams.pipelines import LivePipeline, of_generation
from app.streams.windows import Tile

SPARE_MS = 3_600_000
"""How much longer than its tiles count an entity nobody writes to is kept, so that clocks need not agree."""


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
    generation: int = 1

    @property
    def stored(self) -> str:
        """Under which name the store keeps it: each generation is kept for itself."""
        return of_generation(self.name, self.generation)

    @property
    def accumulators(self) -> tuple[Accumulator, ...]:
        """What a tile holds, in order."""
        return accumulators_of(self.fields)

    @property
    def kept_ms(self) -> int:
        """A tile is dropped from storage when it ends this long, or longer, before the entity's newest tile ends.

        The newest tile has begun, or lies at most MAX_AHEAD_MS in the future (its topic refuses more), so now is at
        least its start less MAX_AHEAD_MS; and a tile counts while it ends after now - window. So nothing that counts,
        or may count again, is ever dropped.
        """
        return self.window_ms + self.tile_ms + MAX_AHEAD_MS

    @property
    def ttl_ms(self) -> int:
        """How long after its last change an entity is kept."""
        return self.kept_ms + SPARE_MS

    def partition_of(self, entity: str) -> int:
        """The feature-topic partition of an entity, the same as its source partition."""
        return partition_of(entity.encode(), self.partitions)

    def other_declaration(self) -> SetupError:
        """What to say where a store or topic holds another declaration's tiles."""
        return SetupError(
            self.name,
            f"holds the tiles of another declaration; to begin anew, type: python -m app streams reset {self.name}",
        )


class Freshness(Enum):
    """MISSING: nothing of the entity's partition was ever materialized, so its zeros mean nothing."""

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

    offset: next record of the feature topic to apply. as_of_ms: every event published before it is in the tiles (0: not
    known yet).
    """

    offset: int
    as_of_ms: int


class StoredFeatures(NamedTuple):
    """What a store holds of one entity: tiles, unmerged, and the progress of the entity's partition (None: nothing)."""

    tiles: tuple[Tile, ...]
    progress: Progress | None


class FeatureStore(Protocol):
    """Memory and Redis keep this contract. `address` is safe to show: it holds no password.

    Every method that takes a view raises SetupError when the store holds tiles of another declaration of it.
    """

    address: str

    async def start(self) -> None:
        """Raises: Unavailable within 10 s when no server answers; SetupError for one that may lose what it holds."""
        ...

    async def progress(self, view: View) -> Mapping[int, Progress]:
        """Progress of every partition of which anything was applied; none for a store that was emptied.

        Raises: Unavailable.
        """
        ...

    async def apply(
        self, view: View, partition: int, expected: int | None, progress: Progress, changes: Sequence[TileChange]
    ) -> bool:
        """Merges the changes and moves the partition from offset `expected` (None: nothing stored) to `progress`.

        Returns False, and moves nothing, when the stored offset is not `expected`: read `progress` and go on there.
        Tiles whose version is not newer are passed over, so a repeat is harmless. The progress moves last, in one step
        with the last changes, so it never claims more than the tiles hold. After a cancellation or Unavailable it has
        moved with everything, or has not moved; some of the changes may then be there, which a repeat leaves alone.
        """
        ...

    async def read(self, view: View, entity: str) -> StoredFeatures:
        """Tiles are at least as new as the progress says. Cancellation harms nobody else's read. Raises: Unavailable."""
        ...

    async def forget(self, view: View, entity: str) -> bool:
        """Deletes what is stored of one entity; whether there was anything. The progress stays, so that its zeros mean
        that it did nothing; a materializer that is set back brings back what its topic still holds. Raises: Unavailable.
        """
        ...

    async def clear(self, view: View) -> None:
        """Forgets the view, whatever its declaration was: the progress first, so that an interrupted call heals by
        itself. Raises: Unavailable."""
        ...

    async def close(self) -> None:
        """May be called twice."""
        ...


if TYPE_CHECKING:
    FeatureValue = Any  # a handler knows from the declaration what a type cannot say: that a count is never null
else:
    FeatureValue = int | Decimal | None


class Features(msgspec.Struct, frozen=True, kw_only=True):
    """One entity's features as an agent sees them. Money is a Decimal of dollars; of nothing there is no smallest, largest
    or mean: None.

    as_of_ms: every event published before it is in the values (0 when nothing is known). age_ms: now - as_of, at least
    0. window_end_ms: the moment up to which they count, which is that of reading.
    """

    view: str
    entity: str
    values: dict[str, FeatureValue]
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
        pipeline.aggregates.outputs,
        pipeline.comparable,
        fingerprint,
        pipeline.generation,
    )
