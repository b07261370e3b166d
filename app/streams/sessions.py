"""Open sessions of one pipeline in one partition: one value a key, all its open sessions.

A session leaves its key's value as soon as it closes, since its row is acknowledged before the value may be written. A key
without any keeps its place in the table until a commit has passed its last close; a replay of what came before would
otherwise begin a part of that session anew.
"""

import heapq
from collections import deque
from collections.abc import Mapping, Sequence
from itertools import count

from app.core.record import TopicPartition
from app.streams.aggregates import Accumulator, merge_into
from app.streams.tables import FOREVER_MS, Entry, Over, Place, Row
from app.streams.windows import NEVER_MS

FIRST, LAST, OFFSET, AMOUNTS = 0, 1, 2, 3
"""Of a session: first and last event time, offset of its last record, then the accumulators."""

SESSIONS = 2
"""Of an entry: where its sessions begin."""

Session = list[int | None]


class Sessions:
    """Keeps the contract of `tables.Table`."""

    emits_rows = True

    def __init__(
        self, place: TopicPartition, gap_ms: int, out_of_orderness_ms: int, accumulators: Sequence[Accumulator]
    ) -> None:
        self.place = place
        self.gap_ms = gap_ms
        self.since_ms = NEVER_MS
        self.table_position = self.checked = 0
        self.open: dict[str, Entry] = {}
        self.over: deque[Over] = deque()
        self.rows: list[Row] = []
        self._accumulators = accumulators
        self._changed: list[tuple[int, str, Entry]] = []
        self._emptied: dict[str, int] = {}
        """Keys without an open session, and the offset that closed the last one."""
        self._ends: list[tuple[int, int, str, Session]] = []
        """A heap with one end of each open session, its true one or an earlier one."""
        self._numbers = count()
        self._written_after_ms = gap_ms + out_of_orderness_ms
        """What is open at a watermark was last written when the watermark was less than this behind it."""
        self._moments: deque[tuple[int, int]] = deque([(NEVER_MS, 0)])
        """Watermarks, and where the table ended then."""
        self._over_ms = NEVER_MS

    def add(self, key: str, time_ms: int, offset: int, amounts: Sequence[int | None]) -> int | None:
        """Takes a record that is on time; returns the end of a session that it has begun. amounts: of this record."""
        entry = self.open.get(key)
        if entry is None:
            self.open[key] = entry = [-1, False]
        if offset <= entry[0]:
            return None
        entry[0] = offset
        if not entry[1]:
            entry[1] = True
            self._changed.append((0, key, entry))
        record: Session = [time_ms, time_ms, offset, *amounts]
        touching = [one for one in entry[SESSIONS:] if one[FIRST] - self.gap_ms <= time_ms <= one[LAST] + self.gap_ms]
        if not touching:
            entry.append(record)
            return self._watch(key, record)
        for other in (record, *touching[1:]):
            self._merge(touching[0], other)
        entry[SESSIONS:] = [one for one in entry[SESSIONS:] if not any(one is gone for gone in touching[1:])]
        return None

    def _merge(self, session: Session, other: Session) -> None:
        session[FIRST] = min(session[FIRST], other[FIRST])  # type: ignore[type-var]
        session[LAST] = max(session[LAST], other[LAST])  # type: ignore[type-var]
        session[OFFSET] = max(session[OFFSET], other[OFFSET])  # type: ignore[type-var]
        amounts = session[AMOUNTS:]
        merge_into(amounts, other[AMOUNTS:], self._accumulators)
        session[AMOUNTS:] = amounts

    def _watch(self, key: str, session: Session) -> int:
        end_ms = session[LAST] + self.gap_ms  # type: ignore[operator]
        heapq.heappush(self._ends, (end_ms, next(self._numbers), key, session))
        return end_ms

    def advance(self, over_ms: int, offset: int) -> int:
        emptied: list[Place] = []
        position = self._position(self._over_ms)  # what closes now was open then
        self._over_ms = over_ms
        while self._ends and self._ends[0][0] <= over_ms:
            _, _, key, session = heapq.heappop(self._ends)
            entry = self.open.get(key, ())
            if not any(one is session for one in entry[SESSIONS:]):
                continue  # merged into another one
            if session[LAST] + self.gap_ms > over_ms:  # type: ignore[operator]
                self._watch(key, session)
                continue
            entry[SESSIONS:] = [one for one in entry[SESSIONS:] if one is not session]  # type: ignore[index]
            self._close(key, session)
            if len(entry) == SESSIONS:
                self._emptied[key] = offset
                emptied.append((0, key))
        if emptied:
            self.over.append(Over(offset, emptied, position))
        return self._ends[0][0] if self._ends else FOREVER_MS

    def _close(self, key: str, session: Session) -> None:
        first_ms, last_ms, offset, *amounts = session
        assert first_ms is not None
        assert last_ms is not None
        assert offset is not None
        if first_ms >= self.since_ms + self.gap_ms:
            self.rows.append(Row(first_ms, last_ms + self.gap_ms, key, offset, amounts))

    def changes(self) -> list[tuple[int, str, Entry]]:
        """A key without an open session needs no writing: until its tombstone a replay closes the same ones again."""
        changed = [item for item in self._changed if len(item[2]) > SESSIONS]
        for _, _, entry in self._changed:
            entry[1] = False
        self._changed.clear()
        return changed

    def entry(self, place: Place) -> Entry | None:
        return self.open.get(place[1])

    def rewrite(self, place: Place) -> None:
        entry = self.open[place[1]]
        if not entry[1]:
            entry[1] = True
            self._changed.append((0, place[1], entry))

    def restore(self, entries: Mapping[Place, Entry], over_ms: int, position: int) -> None:
        self._over_ms = over_ms
        self._moments = deque([(NEVER_MS, position)])
        for (_, key), entry in entries.items():
            still = [one for one in entry[SESSIONS:] if one[LAST] + self.gap_ms > over_ms]
            if still:  # others had their row
                self.open[key] = [*entry[:SESSIONS], *still]
                for session in still:
                    self._watch(key, session)

    def is_over(self, place: Place, over_ms: int) -> bool:
        return True

    def passed(self, committed: int) -> list[Place]:
        gone = []
        while self.over and self.over[0].closed_at < committed:
            over = self.over.popleft()
            for place in over.entries:
                key = place[1]
                if key not in self.open:
                    gone.append(place)
                elif self._emptied.get(key) == over.closed_at and len(self.open[key]) == SESSIONS:
                    del self.open[key], self._emptied[key]
                    gone.append(place)
        return gone

    def __len__(self) -> int:
        return len(self.open)

    def restore_position(self, over_ms: int) -> int:
        if over_ms >= self._moments[-1][0] + self.gap_ms // 8:
            self._moments.append((over_ms, self.table_position))
        return min([self.checked, self._position(over_ms), *(over.table_position for over in self.over)])

    def _position(self, over_ms: int) -> int:
        """Where in the table, or before it, everything was last written that is open at this watermark."""
        while len(self._moments) > 1 and self._moments[1][0] <= over_ms - self._written_after_ms:
            self._moments.popleft()
        return self._moments[0][1]
