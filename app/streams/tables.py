"""State of one partition: its clock, its open slices and sessions, and what it remembers.

A table is a compacted topic with one value a key; the source offset of a key's last change stands inside as its version.
So a record that is read again, at or below the version its key holds, changes nothing.
"""

from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Protocol

from app.core.record import Headers, Record, TopicPartition
from app.streams.aggregates import Accumulator, merge_into
from app.streams.as_of import AsOf
from app.streams.memories import Memory
from app.streams.windows import NEVER_MS

FOREVER_MS = 2**63 - 1

Entry = list[Any]
"""[version, changed since it was last written, value, value, ...]: of a slice its accumulators, of a session's key a list of
[first, last, accumulator, ...]."""

Place = tuple[int, str]
"""A key of a table: the start of the slice (0 where there are none), and the entity."""


class Over(NamedTuple):
    """Entries that are over. They stay in the table until a commit has passed `closed_at`, the source offset that closed
    them, so that a crash before that commit closes them again with the same values."""

    closed_at: int
    entries: Sequence[Place]
    table_position: int


class Row(NamedTuple):
    """Final values of one key and window."""

    start_ms: int
    end_ms: int
    key: str
    version: int
    amounts: Sequence[int | None]


class Table(Protocol):
    """Open state of one pipeline in one partition, kept in a table.

    place: the table. emits_rows: False for tiles, which are only written. table_position: its end, as far as this writer knows (never beyond the true end of what was
    acknowledged). checked: up to where no value of somebody else lies behind a newer one of ours, see `mending`. since_ms: what
    starts before it is not ours to count: the pipeline joined in its middle. over: waits for its tombstone. rows: wait to be
    written.
    """

    place: TopicPartition
    emits_rows: bool
    since_ms: int
    table_position: int
    checked: int
    over: deque[Over]
    rows: list[Any]

    def advance(self, over_ms: int, offset: int) -> int:
        """Closes what is over when the watermark has passed `over_ms` - 1; returns the next such moment."""
        ...

    def changes(self) -> list[tuple[int, str, Entry]]:
        """What must be written now; marks it as written."""
        ...

    def entry(self, place: Place) -> Entry | None: ...

    def rewrite(self, place: Place) -> None:
        """The entry goes out with the next changes."""
        ...

    def restore(self, entries: Mapping[Place, Entry], over_ms: int, position: int) -> None:
        """Takes what was read back from `position` on, as of a commit at which all before `over_ms` was over."""
        ...

    def is_over(self, place: Place, over_ms: int) -> bool:
        """Whether an entry that is not held can never be held again."""
        ...

    def passed(self, committed: int) -> list[Place]:
        """What needs a tombstone now: it was closed before the offset `committed`."""
        ...

    def __len__(self) -> int:
        """How many entries it holds, those among them that wait for their tombstone."""
        ...

    def restore_position(self, over_ms: int) -> int:
        """From where in the table a restore must read to find everything that is not yet over at this watermark, and all
        that was not checked."""
        ...


class Slices:
    """The slices of one pipeline: tiles, or the steps of its windows, which end `window_ms` after they begin."""

    def __init__(
        self, place: TopicPartition, step_ms: int, window_ms: int, accumulators: Sequence[Accumulator], emits_rows: bool
    ) -> None:
        self.place = place
        self.step_ms = step_ms
        self.window_ms = window_ms if emits_rows else step_ms
        self.emits_rows = emits_rows
        self.since_ms = NEVER_MS
        self.table_position = self.checked = 0
        self.open: dict[int, dict[str, Entry]] = {}
        self.opened_at: dict[int, int] = {}
        self.changed: list[tuple[int, str, Entry]] = []
        self.over: deque[Over] = deque()
        self.rows: list[Row] = []
        self._accumulators = accumulators
        self._over_ms = NEVER_MS

    def open_slice(self, start_ms: int) -> dict[str, Entry]:
        """A new slice."""
        entries: dict[str, Entry] = {}
        self.open[start_ms] = entries
        self.opened_at[start_ms] = self.table_position
        return entries

    def advance(self, over_ms: int, offset: int) -> int:
        if self.emits_rows:
            for end_ms in sorted({end_ms for start_ms in self.open for end_ms in self._ends(start_ms, over_ms)}):
                self._close_window(end_ms - self.window_ms)
        self._over_ms = over_ms
        next_ms = FOREVER_MS
        for start_ms in sorted(self.open):
            if start_ms + self.window_ms > over_ms:
                next_ms = min(next_ms, self._first_end(start_ms))
                continue
            entries, position = self.open.pop(start_ms), self.opened_at.pop(start_ms)
            if self.emits_rows:
                self.over.append(Over(offset, [(start_ms, key) for key in entries], position))
        return next_ms

    def _first_end(self, start_ms: int) -> int:
        """When the next window that holds the slice is over."""
        passed = max(0, self._over_ms - start_ms) // self.step_ms
        return start_ms + (passed + 1) * self.step_ms

    def _ends(self, start_ms: int, over_ms: int) -> range:
        """Ends of the windows that hold the slice and are over now."""
        return range(self._first_end(start_ms), min(start_ms + self.window_ms, over_ms) + 1, self.step_ms)

    def _close_window(self, start_ms: int) -> None:
        if start_ms < self.since_ms:
            return
        end_ms = start_ms + self.window_ms
        if self.window_ms == self.step_ms:
            self.rows += [Row(start_ms, end_ms, key, e[0], e[2:]) for key, e in self.open[start_ms].items()]
            return
        merged: dict[str, Entry] = {}
        for step_ms in range(start_ms, end_ms, self.step_ms):
            for key, entry in self.open.get(step_ms, {}).items():
                held = merged.get(key)
                if held is None:
                    merged[key] = [entry[0], entry[2:]]
                else:
                    held[0] = max(held[0], entry[0])
                    merge_into(held[1], entry[2:], self._accumulators)
        self.rows += [Row(start_ms, end_ms, key, version, amounts) for key, (version, amounts) in merged.items()]

    def changes(self) -> list[tuple[int, str, Entry]]:
        """A slice that is over needs no more writing: its rows are out, and until the commit that passes it a replay makes
        the same values again."""
        changed = [item for item in self.changed if not self.emits_rows or item[0] in self.open]
        self.changed.clear()
        for _, _, entry in changed:
            entry[1] = False
        return changed

    def entry(self, place: Place) -> Entry | None:
        return self.open.get(place[0], {}).get(place[1])

    def rewrite(self, place: Place) -> None:
        entry = self.open[place[0]][place[1]]
        if not entry[1]:
            entry[1] = True
            self.changed.append((*place, entry))

    def restore(self, entries: Mapping[Place, Entry], over_ms: int, position: int) -> None:
        self._over_ms = over_ms  # windows that end before it had their row
        for (start_ms, key), entry in entries.items():
            if start_ms + self.window_ms > over_ms:
                self.open.setdefault(start_ms, {})[key] = entry
                self.opened_at[start_ms] = position

    def is_over(self, place: Place, over_ms: int) -> bool:
        return self.emits_rows and place[0] + self.window_ms <= over_ms

    def passed(self, committed: int) -> list[Place]:
        gone: list[Place] = []
        while self.over and self.over[0].closed_at < committed:
            gone += self.over.popleft().entries
        return gone

    def __len__(self) -> int:
        return sum(map(len, list(self.open.values()))) + sum(len(over.entries) for over in list(self.over))

    def restore_position(self, over_ms: int) -> int:
        return min([self.checked, *self.opened_at.values(), *(over.table_position for over in self.over)])


class PartitionState:
    """Everything that the streams of one partition know. `position`: next source offset to process."""

    def __init__(
        self,
        place: TopicPartition,
        out_of_orderness_ms: int,
        tables: Mapping[str, Table],
        memories: Mapping[str, Memory],
    ) -> None:
        self.place = place
        self.place_text = f"{place.topic}/{place.partition}"
        self.out_of_orderness_ms = out_of_orderness_ms
        self.tables = dict(tables)
        self.memories = dict(memories)
        self.position = 0
        self.committed = -1
        self.after = 0
        self.progress_told = False
        self.is_given_up = False
        self.reached_ms = NEVER_MS
        self.as_of = AsOf()
        self.closing_ms = FOREVER_MS
        self.alerts: list[tuple[Record, str, bytes, Headers]] = []
        self.late: list[tuple[str, Record]] = []
        self.rejected: list[tuple[Record, str]] = []

    def reject(self, record: Record, reason: str) -> None:
        self.rejected.append((record, reason))

    def closes_at(self, end_ms: int) -> int:
        """Something of this partition is over when the watermark passes `end_ms` - 1; returns the event time at which the next
        thing closes."""
        self.closing_ms = min(self.closing_ms, end_ms + self.out_of_orderness_ms)
        return self.closing_ms

    def advance(self, reached_ms: int, offset: int) -> int:
        """Closes what is over; returns the event time at which the next thing closes."""
        next_ms = FOREVER_MS
        for table in self.tables.values():
            next_ms = min(next_ms, table.advance(reached_ms - self.out_of_orderness_ms, offset))
        self.closing_ms = next_ms + self.out_of_orderness_ms if next_ms != FOREVER_MS else FOREVER_MS
        return self.closing_ms
