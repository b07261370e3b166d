"""State of one partition: its clock, its open slices, and its memory of ids seen.

A table is a compacted topic with one value a key; the source offset of a key's last change stands inside as its version.
So a record that is read again, at or below the version its key holds, changes nothing.
"""

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, NamedTuple

from app.core.record import Headers, Record, TopicPartition
from app.streams.windows import NEVER_MS

FOREVER_MS = 2**63 - 1
MOST_ENDS = 60

Entry = list[Any]
"""[version, changed since it was last written, value, value, ...]; values are integers, money in cents."""


class ClosedSlice(NamedTuple):
    """A slice whose end the watermark has reached. It stays until a commit has passed `closed_at`, the source offset
    that closed it, so that a crash before that commit closes it again with the same values."""

    closed_at: int
    start_ms: int
    entries: dict[str, Entry]
    table_position: int


@dataclass(slots=True)
class Slices:
    """The slices (tumbling windows or tiles) of one pipeline in one partition.

    table: where they are kept. table_position: its end, as far as this writer knows (never beyond the true end of what
    was acknowledged). checked: up to where no value of somebody else lies behind a newer one of ours, see `mending`.
    since_ms: slices that start before it are not ours to count: the pipeline joined in their middle.
    """

    name: str
    size_ms: int
    table: TopicPartition
    emits_rows: bool
    since_ms: int = NEVER_MS
    table_position: int = 0
    checked: int = 0
    open: dict[int, dict[str, Entry]] = field(default_factory=dict)
    opened_at: dict[int, int] = field(default_factory=dict)
    changed: list[tuple[int, str, Entry]] = field(default_factory=list)
    closed: deque[ClosedSlice] = field(default_factory=deque)
    rows: list[ClosedSlice] = field(default_factory=list)

    def close(self, start_ms: int, offset: int) -> None:
        """Takes a slice out; the rows of a window go to `rows`."""
        closed = ClosedSlice(offset, start_ms, self.open.pop(start_ms), self.opened_at.pop(start_ms))
        if self.emits_rows:
            self.rows.append(closed)
            self.closed.append(closed)

    def restore_position(self) -> int:
        """From where in the table a restore must read to find everything that is not yet over, and all that was not
        checked."""
        return min([self.checked, *self.opened_at.values(), *(closed.table_position for closed in self.closed)])

    def changes(self) -> list[tuple[int, str, Entry]]:
        """What must be written now; marks it as written. A window that has closed meanwhile needs no more writing: its
        row is out, and until the commit that passes it a replay makes the same values again."""
        changed = [item for item in self.changed if not self.emits_rows or item[0] in self.open]
        self.changed.clear()
        for _, _, entry in changed:
            entry[1] = False
        return changed


class OnceMemory:
    """Ids seen, per key, with the largest event time of their records; forgets what is older than `within_ms`.

    Two generations: an id last seen in the older one is at least `within_ms` old when that one is dropped.
    """

    __slots__ = ("_newer", "_older", "_turn_ms", "within_ms")

    def __init__(self, within_ms: int) -> None:
        self.within_ms = within_ms
        self._newer: dict[tuple[str, str], int] = {}
        self._older: dict[tuple[str, str], int] = {}
        self._turn_ms = NEVER_MS

    def is_repeat(self, key: tuple[str, str], time_ms: int, reached_ms: int) -> bool:
        """Whether this id was seen within `within_ms` of `reached_ms`, the partition's time; and remembers it."""
        if reached_ms > self._turn_ms:
            self._older, self._newer = self._newer, {}
            self._turn_ms = reached_ms + self.within_ms
        last_ms = self._newer.get(key)
        if last_ms is None:
            last_ms = self._older.get(key)
            if last_ms is None:
                self._newer[key] = time_ms
                return False
        self._newer[key] = max(last_ms, time_ms)
        return reached_ms - last_ms <= self.within_ms


class PartitionState:
    """Everything that the streams of one partition know. `position`: next source offset to process."""

    def __init__(
        self,
        place: TopicPartition,
        out_of_orderness_ms: int,
        slices: Mapping[str, Slices],
        once: Mapping[str, OnceMemory],
    ) -> None:
        self.place = place
        self.place_text = f"{place.topic}/{place.partition}"
        self.out_of_orderness_ms = out_of_orderness_ms
        self.slices = dict(slices)
        self.once = dict(once)
        self.position = 0
        self.committed = -1
        self.progress_told = False
        self.reached_ms = NEVER_MS
        self._ends: deque[tuple[int, int]] = deque()
        self.closing_ms = FOREVER_MS
        self._as_of_ms = 0
        self.alerts: list[tuple[Record, str, bytes, Headers]] = []
        self.late: list[tuple[str, Record]] = []
        self.rejected: list[tuple[Record, str]] = []

    def learn_end(self, asked_ms: int, end: int) -> None:
        """Notes when it was asked where the partition ends, and the answer."""
        if len(self._ends) >= MOST_ENDS:
            self._ends = deque(islice(self._ends, 0, None, 2))
        self._ends.append((asked_ms, end))

    def as_of_ms(self) -> int:
        """Wall time before which everything published has been processed; 0 while that is not known."""
        while self._ends and self.position >= self._ends[0][1]:
            self._as_of_ms = self._ends.popleft()[0]
        return self._as_of_ms

    def reject(self, record: Record, reason: str) -> None:
        self.rejected.append((record, reason))

    def open_slice(self, slices: Slices, start_ms: int) -> tuple[dict[str, Entry], int]:
        """A new slice, and the event time at which the next slice of this partition closes."""
        entries: dict[str, Entry] = {}
        slices.open[start_ms] = entries
        slices.opened_at[start_ms] = slices.table_position
        self.closing_ms = min(self.closing_ms, start_ms + slices.size_ms + self.out_of_orderness_ms)
        return entries, self.closing_ms

    def advance(self, reached_ms: int, offset: int) -> int:
        """Closes the slices whose end the watermark has reached; returns when the next one closes."""
        closing_ms = FOREVER_MS
        for slices in self.slices.values():
            for start_ms in sorted(slices.open):
                end_ms = start_ms + slices.size_ms + self.out_of_orderness_ms
                if reached_ms >= end_ms:
                    slices.close(start_ms, offset)
                else:
                    closing_ms = min(closing_ms, end_ms)
        self.closing_ms = closing_ms
        return closing_ms
