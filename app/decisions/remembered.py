"""A memory bounded by number and by age, by partition: what makes a repeat recognizable, for as long as is promised."""

from collections import OrderedDict
from typing import Generic, TypeVar

K = TypeVar("K")
V = TypeVar("V")

CAPACITY = 1_000_000
HORIZON_MS = 86_400_000


class Remembered(Generic[K, V]):
    """The newest `capacity` entries of all partitions together, none older than a day before the newest of its partition.
    Newest: put in last."""

    def __init__(self, capacity: int = CAPACITY) -> None:
        self._capacity = capacity
        self._partitions: dict[int, OrderedDict[K, tuple[int, V]]] = {}
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def get(self, partition: int, key: K) -> V | None:
        entries = self._partitions.get(partition)
        entry = entries.get(key) if entries else None
        return entry[1] if entry else None

    def put(self, partition: int, key: K, value: V, at_ms: int) -> None:
        """Remembers an entry of that time; what is too old, and what is too many, goes."""
        entries = self._partitions.setdefault(partition, OrderedDict())
        self._count += key not in entries
        entries[key] = (at_ms, value)
        entries.move_to_end(key)
        while _oldest_ms(entries) < at_ms - HORIZON_MS:
            self._drop_oldest(entries)
        while self._count > self._capacity:
            self._drop_oldest(min(filter(None, self._partitions.values()), key=_oldest_ms))

    def forget(self, partition: int) -> None:
        """The partition is another's now."""
        self._count -= len(self._partitions.pop(partition, ()))

    def _drop_oldest(self, entries: OrderedDict[K, tuple[int, V]]) -> None:
        entries.popitem(last=False)
        self._count -= 1


def _oldest_ms(entries: OrderedDict[K, tuple[int, V]]) -> int:
    return next(iter(entries.values()))[0]
