"""What streams remember of single keys without a table: it is bounded in event time, so that a restart reads the source back.

Each memory forgets by two generations: what was last touched in the older one is `keeps_ms` of event time old, or older, when
that one is dropped.
"""

from typing import Any

from app.streams.pipelines import AlertPipeline
from app.streams.windows import NEVER_MS


class Memory:
    """A dictionary that forgets. keeps_ms: how far back in event time lies what may still matter."""

    __slots__ = ("_newer", "_older", "_turn_ms", "keeps_ms")

    def __init__(self, keeps_ms: int) -> None:
        self.keeps_ms = keeps_ms
        self._newer: dict[Any, Any] = {}
        self._older: dict[Any, Any] = {}
        self._turn_ms = NEVER_MS

    @property
    def reads_back_ms(self) -> int:
        """How far back the source must be read for it to be as it was."""
        return self.keeps_ms

    def _held(self, key: Any, reached_ms: int) -> Any:
        if reached_ms > self._turn_ms:
            self._older, self._newer = self._newer, {}
            self._turn_ms = reached_ms + self.keeps_ms
        held = self._newer.get(key)
        return self._older.get(key) if held is None else held


class OnceMemory(Memory):
    """Ids seen, per key, with the largest event time of their records; forgets what is older than `within_ms`."""

    __slots__ = ()

    def is_repeat(self, key: tuple[str, str], time_ms: int, reached_ms: int) -> bool:
        """Whether this id was seen within `within_ms` of `reached_ms`, the partition's time; and remembers it."""
        last_ms = self._held(key, reached_ms)
        if last_ms is None:
            self._newer[key] = time_ms
            return False
        self._newer[key] = max(last_ms, time_ms)
        return bool(reached_ms - last_ms <= self.keeps_ms)


class BurstMemory(Memory):
    """The last event times of each key, and whether they are a burst.

    Times that are older than the burst's length and the out-of-orderness make none with what may still come on time.
    """

    __slots__ = ("_count", "_within_ms")

    def __init__(self, count: int, within_ms: int, out_of_orderness_ms: int) -> None:
        super().__init__(within_ms + out_of_orderness_ms)
        self._count = count
        self._within_ms = within_ms

    @property
    def reads_back_ms(self) -> int:
        """Whether the times before the last one were a burst hangs on one that lies as much earlier once more."""
        return self.keeps_ms + self._within_ms

    def begins(self, key: str, time_ms: int, reached_ms: int) -> bool:
        """Takes a record that is on time; whether the key's last ones are a burst now, and were none before it."""
        held = self._held(key, reached_ms)
        if held is None:
            held = [False]
        self._newer[key] = held
        if len(held) > self._count:
            del held[1]
        held.append(time_ms)
        was = held[0]
        held[0] = len(held) > self._count and max(held[1:]) - min(held[1:]) <= self._within_ms
        return held[0] and not was


class SliceMemory(Memory):
    """The latest slice in which each key has raised an alert."""

    __slots__ = ()

    def __init__(self, per_ms: int, out_of_orderness_ms: int) -> None:
        super().__init__(per_ms + out_of_orderness_ms)

    def is_first(self, key: str, start_ms: int, reached_ms: int) -> bool:
        """Whether a slice that is not over lies behind all in which the key has raised one; and remembers it."""
        latest_ms = self._held(key, reached_ms)
        is_first = latest_ms is None or start_ms > latest_ms
        self._newer[key] = start_ms if is_first else latest_ms
        return is_first


def memories_of(name: str, alert: AlertPipeline) -> dict[str, Memory]:
    """An alert pipeline's own, by what generated text calls them, in the order in which records come to them."""
    late_ms, own = alert.stream.source.out_of_orderness_ms, dict[str, Memory]()
    if alert.burst is not None:
        own[f"burst_{name}"] = BurstMemory(alert.burst.count, alert.burst.within_ms, late_ms)
    if alert.raised.per_ms is not None:
        own[f"slices_{name}"] = SliceMemory(alert.raised.per_ms, late_ms)
    return own
