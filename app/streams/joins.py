"""An interval join in one partition of its two topics: the records of either side that may still find a partner.

Both topics have a clock of their own. A left record waits until the right side's has passed the last moment of a partner
(and the left side's too, where having none gives an alert); a right record waits for the left side's. Each is one value of
the table, written once, and once more when it has found a partner where that matters.
"""

import heapq
from collections import deque
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from app.core.record import TopicPartition
from app.streams.pipelines import Join
from app.streams.tables import FOREVER_MS, Entry, Over, Place
from app.streams.windows import NEVER_MS

if TYPE_CHECKING:
    from app.streams.tables import PartitionState

Side = Literal["left", "right"]

VERSION, CHANGED, TIME, MATCHED, VALUES, SIDE, WAITS = range(7)
"""Of an entry. version: twice the source offset, and one more when a partner was found. values: what the pipeline reads of the
record, `on` fields first. waits: for how many clocks."""


class At(NamedTuple):
    """Where a record came from."""

    place: str
    offset: int
    time_ms: int


class Pair(NamedTuple):
    """What a join gives. right: None for a left record without a partner."""

    key: str
    left: Sequence[Any]
    left_at: At
    right: Sequence[Any] | None
    right_at: At | None


class _Dead(NamedTuple):
    """An entry that waits for the commits which no replay of it comes before."""

    place: Place
    needs: Mapping[Side, int]
    table_position: int


def place_of(side: Side, offset: int, key: str) -> Place:
    """Right records are told by a negative number."""
    return (offset if side == "left" else -1 - offset), key


def side_of(place: Place) -> Side:
    return "left" if place[0] >= 0 else "right"


def offset_of(place: Place) -> int:
    return place[0] if place[0] >= 0 else -1 - place[0]


class JoinTable:
    """State of one join in one partition. `side(...)` is what the streams of either topic see of it."""

    def __init__(self, join: Join, place: TopicPartition) -> None:
        self.join = join
        self.place = place
        self.table_position = self.checked = 0
        self.rows: list[Pair] = []
        self.entries: dict[Place, Entry] = {}
        self.changed: list[tuple[int, str, Entry]] = []
        self.sides: dict[Side, JoinSide] = {}
        self._meeting: dict[Side, dict[tuple[Any, ...], list[Place]]] = {"left": {}, "right": {}}
        """Of either side those that meet there: key and `on` fields."""
        self._dead: deque[_Dead] = deque()
        self._moments: deque[tuple[int, int, int]] = deque([(NEVER_MS, NEVER_MS, 0)])
        """Event times that left and right had reached, and where the table ended then."""
        self._read_back: dict[Place, Entry] | None = None

    def side(self, sides: Sequence[Side], out_of_orderness_ms: int) -> "JoinSide":
        """What one topic's streams see: both sides where a topic is joined with itself."""
        seen = JoinSide(self, out_of_orderness_ms)
        self.sides.update(dict.fromkeys(sides, seen))
        return seen

    def add(self, side: Side, key: str, time_ms: int, offset: int, values: tuple[Any, ...]) -> None:
        """Takes a record that is on time, and pairs it with those of the other side."""
        place = place_of(side, offset, key)
        held = self.entries.get(place)
        entry: Entry = [2 * offset, True, time_ms, False, values, side, 0] if held is None else held
        if held is None:
            self.entries[place] = entry
            self.changed.append((*place, entry))
        other: Side = "right" if side == "left" else "left"
        where = self._where(place, entry)
        for partner in self._meeting[other].get(where, ()):
            found = self.entries[partner]
            ahead_ms = found[TIME] - time_ms if side == "left" else time_ms - found[TIME]
            if self.join.lower_ms <= ahead_ms <= self.join.upper_ms:
                pair = (entry, place, found, partner) if side == "left" else (found, partner, entry, place)
                self._give(key, *pair)
        if held is None:  # read again it meets the same partners: that one was found may not have been written
            self._meet(side, where, place)
            self._watch(side, place, entry)

    def _give(self, key: str, left: Entry, left_place: Place, right: Entry, right_place: Place) -> None:
        left_at, right_at = self._at("left", left_place, left), self._at("right", right_place, right)
        if self.join.how != "missing":
            self.rows.append(Pair(key, left[VALUES], left_at, right[VALUES], right_at))
        if self.join.how != "inner" and not left[MATCHED]:
            left[MATCHED] = True
            left[VERSION] += 1
            self.rewrite(left_place)

    def _at(self, side: Side, place: Place, entry: Entry) -> At:
        return At(self.sides[side].part.place_text, offset_of(place), entry[TIME])

    def _meet(self, side: Side, where: tuple[Any, ...], place: Place) -> None:
        held = self._meeting[side].get(where)
        if held is None:
            self._meeting[side][where] = [place]  # as a rule the only one: room for one is what it takes
        else:
            held.append(place)

    def _where(self, place: Place, entry: Entry) -> tuple[Any, ...]:
        """Key and `on` fields."""
        return (place[1], *entry[VALUES][: len(self.join.on)])

    def _dues(self, side: Side, entry: Entry) -> dict[Side, int]:
        """Until which moments of which clocks the entry matters."""
        if side == "right":
            return {"left": entry[TIME] - self.join.lower_ms}
        due_ms = entry[TIME] + self.join.upper_ms
        return {"right": due_ms} if self.join.how == "inner" else {"right": due_ms, "left": due_ms}

    def _watch(self, side: Side, place: Place, entry: Entry) -> None:
        for clock, due_ms in self._dues(side, entry).items():
            if due_ms > self.sides[clock].over_ms:
                entry[WAITS] += 1
                self.sides[clock].wait(due_ms, place)
        if entry[WAITS] == 0:
            self._close(place)

    def passed_by(self, place: Place) -> None:
        """One clock has passed the entry."""
        entry = self.entries[place]
        entry[WAITS] -= 1
        if entry[WAITS] == 0:
            self._close(place)

    def _close(self, place: Place) -> None:
        entry = self.entries.pop(place)
        side, where = side_of(place), self._where(place, entry)
        is_alone = side == "left" and self.join.how != "inner" and not entry[MATCHED]
        if is_alone and entry[TIME] + self.join.lower_ms >= self.sides["right"].since_ms:
            self.rows.append(Pair(place[1], entry[VALUES], self._at(side, place, entry), None, None))
        held = self._meeting[side][where]
        held.remove(place)
        if not held:
            del self._meeting[side][where]
        self._bury(place)

    def _bury(self, place: Place) -> None:
        needs = {side: seen.clock_offset for side, seen in self.sides.items()}
        own = side_of(place)
        needs[own] = max(needs[own], offset_of(place))
        self._dead.append(_Dead(place, needs, self._moments[0][2]))

    def forget_closed(self) -> None:
        """What was closed so far was never written, and says nothing."""
        self._dead.clear()
        self.rows.clear()

    def passed(self) -> list[Place]:
        """What needs a tombstone now."""
        gone = []
        while self._dead and all(offset < self.sides[side].committed for side, offset in self._dead[0].needs.items()):
            gone.append(self._dead.popleft().place)
        return gone

    def changes(self) -> list[tuple[int, str, Entry]]:
        """What is dead already needs no writing: until its tombstone, a replay lets it meet the same partners again."""
        changed = [item for item in self.changed if self.entries.get(item[:2]) is item[2]]
        for _, _, entry in self.changed:
            entry[CHANGED] = False
        self.changed.clear()
        return changed

    def rewrite(self, place: Place) -> None:
        entry = self.entries[place]
        if not entry[CHANGED]:
            entry[CHANGED] = True
            self.changed.append((*place, entry))

    def restore(self, entries: Mapping[Place, Entry], position: int) -> None:
        """Takes what was read back for one of the topics; with the last one it is known what still matters."""
        if self._read_back is None:
            self._read_back = {}
            self._moments = deque([(NEVER_MS, NEVER_MS, position)])
        self._moments[0] = (NEVER_MS, NEVER_MS, min(self._moments[0][2], position))
        for place, entry in entries.items():
            held = self._read_back.get(place)
            if held is None or entry[VERSION] > held[VERSION]:
                self._read_back[place] = entry
        if all(seen.is_restored for seen in self.sides.values()):
            for place, entry in self._read_back.items():
                if any(
                    due_ms > self.sides[clock].over_ms for clock, due_ms in self._dues(side_of(place), entry).items()
                ):
                    self.entries[place] = entry
                    self._meet(side_of(place), self._where(place, entry), place)
                    self._watch(side_of(place), place, entry)
                else:  # it had its alert, if any
                    self._bury(place)
            self._read_back = None

    def __len__(self) -> int:
        return len(self.entries) + len(self._dead)

    def restore_position(self) -> int:
        """From where in the table a restore must read: what may matter was written when the clock of its own side was at its
        time, or later."""
        left, right = self.sides["left"], self.sides["right"]
        step_ms = (self.join.upper_ms - self.join.lower_ms) // 32
        if left.reached_ms >= self._moments[-1][0] + step_ms and right.reached_ms >= self._moments[-1][1] + step_ms:
            self._moments.append((left.reached_ms, right.reached_ms, self.table_position))
        limit_ms = right.over_ms if self.join.how == "inner" else min(left.over_ms, right.over_ms)
        oldest_left_ms, oldest_right_ms = limit_ms - self.join.upper_ms, left.over_ms + self.join.lower_ms
        while (
            len(self._moments) > 1 and self._moments[1][0] <= oldest_left_ms and self._moments[1][1] <= oldest_right_ms
        ):
            self._moments.popleft()
        waiting = [self._dead[0].table_position] if self._dead else []
        waiting += [over.table_position for seen in (left, right) for over in seen.over]
        return min([self.checked, self._moments[0][2], *waiting])


class JoinSide:
    """What the streams of one topic see of a join. Keeps the contract of `tables.Table`."""

    emits_rows = True

    def __init__(self, table: JoinTable, out_of_orderness_ms: int) -> None:
        self.part: PartitionState
        self.table = table
        self.place = table.place
        self.since_ms = NEVER_MS
        self.committed = -1
        self.clock_offset = -1
        """Of the record that set the clock; whoever reads again from there sees the same clock again."""
        self.is_restored = False
        self.over: deque[Over] = deque()
        self.rows: list[Any] = table.rows
        self._over_ms = NEVER_MS
        self._lateness_ms = out_of_orderness_ms
        self._waiting: list[tuple[int, Place]] = []

    @property
    def table_position(self) -> int:
        return self.table.table_position

    @table_position.setter
    def table_position(self, position: int) -> None:
        self.table.table_position = position

    @property
    def checked(self) -> int:
        return self.table.checked

    @checked.setter
    def checked(self, position: int) -> None:
        self.table.checked = position

    @property
    def over_ms(self) -> int:
        """What lies before it is over on this side."""
        self._tell(self.part.reached_ms - self._lateness_ms, self.part.position - 1)
        return self._over_ms

    @property
    def reached_ms(self) -> int:
        return self.over_ms + self._lateness_ms

    def _tell(self, over_ms: int, offset: int) -> None:
        if over_ms > self._over_ms:
            self._over_ms, self.clock_offset = over_ms, offset

    def add(self, side: Side, key: str, time_ms: int, offset: int, values: tuple[Any, ...], reached_ms: int) -> int:
        """Takes a record that is on time; returns when the next thing of its partition closes. reached_ms: of its partition."""
        self._tell(reached_ms - self._lateness_ms, offset)
        self.table.add(side, key, time_ms, offset, values)
        return self.part.closing_ms

    def wait(self, due_ms: int, place: Place) -> None:
        """The entry is told when this side's clock has passed `due_ms`."""
        heapq.heappush(self._waiting, (due_ms, place))
        self.part.closes_at(due_ms)

    def advance(self, over_ms: int, offset: int) -> int:
        self._tell(over_ms, offset)
        while self._waiting and self._waiting[0][0] <= over_ms:
            self.table.passed_by(heapq.heappop(self._waiting)[1])
        return self._waiting[0][0] if self._waiting else FOREVER_MS

    def changes(self) -> list[tuple[int, str, Entry]]:
        return self.table.changes()

    def entry(self, place: Place) -> Entry | None:
        return self.table.entries.get(place)

    def rewrite(self, place: Place) -> None:
        self.table.rewrite(place)

    def restore(self, entries: Mapping[Place, Entry], over_ms: int, position: int) -> None:
        self._tell(over_ms, self.part.position - 1)
        self.committed = self.part.position
        self.is_restored = True
        self.table.restore(entries, position)

    def is_over(self, place: Place, over_ms: int) -> bool:
        return True

    def passed(self, committed: int) -> list[Place]:
        self.committed = committed
        gone = self.table.passed()
        while self.over and self.over[0].closed_at < committed:
            gone += [place for place in self.over.popleft().entries if place not in self.table.entries]
        return gone

    def __len__(self) -> int:
        return len(self.table)

    def restore_position(self, over_ms: int) -> int:
        return self.table.restore_position()
