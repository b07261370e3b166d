"""Order per key: a lane for each exact key, of which only the head runs.

Lanes that can run wait in one queue and take turns, so none starves: a lane whose head ended goes to the back. A lane
whose head waits for its retry is parked: in no queue, holding no permit, and what is behind it in the lane waits with it,
but nothing else does. When the retry is due its turn comes before that of all heads that have not begun: what has begun
has a deadline. Retries are bounded by number or time, so they starve nobody either.

A record without a key has a lane of its own: there is no order to keep.
"""

from collections import OrderedDict, deque
from collections.abc import Hashable
from enum import Enum
from typing import Generic, TypeVar

T = TypeVar("T")


class _State(Enum):
    READY = 1
    RUNNING = 2
    PARKED = 3
    GONE = 4


class Lane(Generic[T]):
    """The items of one key of one owner, in order. Made and changed by `Lanes` alone."""

    __slots__ = ("_items", "_state", "key", "owner")

    def __init__(self, owner: Hashable, key: Hashable) -> None:
        self.owner = owner
        self.key = key
        self._items: deque[T] = deque()
        self._state = _State.READY

    @property
    def head(self) -> T:
        return self._items[0]

    @property
    def gone(self) -> bool:
        """Whether it was dropped, or its last item has ended."""
        return self._state is _State.GONE


class Lanes(Generic[T]):
    """All lanes of one dispatcher. An owner is what lanes are dropped by: one partition in one epoch.

    A lane is ready, running or parked, exists while it holds an item, and is never in two states at once, so no two
    items of one key run together. Every method is O(1), but `drop`: the owner's lanes.
    """

    def __init__(self) -> None:
        self._lanes: dict[Hashable, dict[Hashable, Lane[T]]] = {}
        self._ready: deque[Lane[T]] = deque()
        self._due: OrderedDict[Lane[T], None] = OrderedDict()
        self._parked = 0

    @property
    def parked(self) -> int:
        """Lanes whose head waits for its retry."""
        return self._parked

    @property
    def has_due(self) -> bool:
        """Whether the lane whose turn it is waits with a retry."""
        return bool(self._due)

    def __len__(self) -> int:
        """How many lanes there are."""
        return sum(map(len, self._lanes.values()))

    def add(self, owner: Hashable, key: bytes | None, item: T) -> Lane[T] | None:
        """Puts the item at the end of its lane; returns the lane when the item is its head."""
        lanes = self._lanes.get(owner)
        if lanes is None:
            lanes = self._lanes[owner] = {}
        name: Hashable = object() if key is None else key
        lane = lanes.get(name)
        if lane is None:
            lane = lanes[name] = Lane(owner, name)
            self._ready.append(lane)
        lane._items.append(item)
        return lane if len(lane._items) == 1 else None

    def take(self) -> Lane[T] | None:
        """The lane whose turn it is, running from now on; None when no lane can run."""
        if self._due:
            lane, _ = self._due.popitem(last=False)
            lane._state = _State.RUNNING
            return lane
        while self._ready:
            lane = self._ready.popleft()
            if lane._state is _State.READY:  # or it is gone, or was taken out of turn
                lane._state = _State.RUNNING
                return lane
        return None

    def take_out_of_turn(self, lane: Lane[T]) -> None:
        """The lane, which is ready, is running from now on."""
        assert lane._state is _State.READY
        lane._state = _State.RUNNING
        self._due.pop(lane, None)

    def finish(self, lane: Lane[T]) -> None:
        """The head has reached its end: the next item's turn comes after that of the other lanes."""
        assert lane._state is _State.RUNNING
        lane._items.popleft()
        if lane._items:
            lane._state = _State.READY
            self._ready.append(lane)
        else:
            lane._state = _State.GONE
            lanes = self._lanes[lane.owner]
            del lanes[lane.key]
            if not lanes:
                del self._lanes[lane.owner]

    def park(self, lane: Lane[T]) -> None:
        """The head waits for its retry, until `unpark`."""
        assert lane._state is _State.RUNNING
        lane._state = _State.PARKED
        self._parked += 1

    def unpark(self, lane: Lane[T]) -> None:
        """The head's retry is due: its turn comes after that of the other retries that are due now."""
        assert lane._state is _State.PARKED
        lane._state = _State.READY
        self._parked -= 1
        self._due[lane] = None

    def take_due(self, lane: Lane[T]) -> bool:
        """Takes this lane out of its turn, running from now on; False where it does not wait with a retry that is due."""
        if lane not in self._due:
            return False
        del self._due[lane]
        lane._state = _State.RUNNING
        return True

    def drop(self, owner: Hashable) -> None:
        """Forgets all lanes of the owner. Heads that run still run, but their end is nobody's."""
        for lane in self._lanes.pop(owner, {}).values():
            self._parked -= lane._state is _State.PARKED
            lane._state = _State.GONE
            lane._items.clear()
            self._due.pop(lane, None)
