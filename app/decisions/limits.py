"""How often an action may be decided: for one entity, and for all of them within a minute.

Counts are those of the decisions log, by the time each was decided, so that a new owner of a partition counts on where
the old one stopped. Entities are counted exactly, since each lives in one partition. The number a minute is shared out
over the partitions; a process may use the shares of all that it owns for any of them.
"""

from collections import OrderedDict, deque
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import msgspec

from app.broker.base import Reader
from app.core.clock import Clock
from app.core.errors import SetupError
from app.core.record import TopicPartition
from app.decisions.policy import MINUTE_MS, Limit
from app.decisions.record import DECISIONS, Mode

_CLOCKS_MS = 60_000
"""How far the broker's clock, by which the log is searched, and ours may be apart."""


class Past(NamedTuple):
    """A decision that counts. at_ms: when it was decided, wall time."""

    entity: str
    action: str
    at_ms: int


class _Times:
    """When one limit's action was decided in one partition, as long as it matters."""

    def __init__(self, limit: Limit) -> None:
        self.limit = limit
        self._within_ms = limit.within_ms
        self._entities: OrderedDict[str, deque[int]] = OrderedDict()
        self._minute: deque[int] = deque()

    def of(self, entity: str, now_ms: int) -> int:
        """How often for this entity."""
        times = self._entities.get(entity)
        return _count(times, now_ms - self._within_ms) if times else 0

    def last_minute(self, now_ms: int) -> int:
        return _count(self._minute, now_ms - MINUTE_MS)

    def add(self, entity: str, at_ms: int) -> None:
        if self.limit.a_minute is not None:
            self._minute.append(at_ms)
        if self.limit.an_entity is not None:
            self._entities.setdefault(entity, deque()).append(at_ms)
            self._entities.move_to_end(entity)
            self._drop_old(at_ms)

    def give_back(self, entity: str) -> None:
        if self._minute:
            self._minute.pop()
        times = self._entities.get(entity)
        if times:
            times.pop()

    def _drop_old(self, now_ms: int) -> None:
        """Entities that have no decision that counts: the least recently decided ones, in front."""
        while True:
            entity, times = next(iter(self._entities.items()))
            if times and times[-1] > now_ms - self._within_ms:
                return
            del self._entities[entity]


def require_parts(limits: Iterable[Limit], where: str, partitions: int) -> None:
    """Raises: SetupError for a number a minute of which some partition would have no part, and so never the action."""
    for limit in limits:
        if limit.a_minute is not None and limit.a_minute < partitions:
            raise SetupError(
                f"{where}, policy, limit of {limit.action}",
                f"a_minute={limit.a_minute} is less than one for each of the topic's {partitions} partitions, which share "
                f"it; declare {partitions} or more, or a topic with fewer partitions",
            )


class Limits:
    """The counts of one agent in one process, by partition: what goes takes its counts along.

    partitions: of the alert topic, owned here or not; they share each number a minute.
    """

    def __init__(self, limits: Sequence[Limit], partitions: int) -> None:
        self._limits = limits
        self._partitions = partitions
        self._owned: dict[int, list[_Times]] = {}

    def take(self, partition: int, entity: str, action: str, now_ms: int) -> bool:
        """Whether the action may be decided once more now; True counts it."""
        owned = [times for times in self._owned.get(partition, ()) if times.limit.action == action]
        for times in owned:
            limit = times.limit
            if limit.an_entity is not None and times.of(entity, now_ms) >= limit.an_entity:
                return False
            if limit.a_minute is not None and self._last_minute(limit, now_ms) >= self._share(limit.a_minute):
                return False
        for times in owned:
            times.add(entity, now_ms)
        return True

    def give_back(self, partition: int, entity: str, action: str) -> None:
        """The decision that was counted last for this entity was not written."""
        for times in self._owned.get(partition, ()):
            if times.limit.action == action:
                times.give_back(entity)

    def _last_minute(self, limit: Limit, now_ms: int) -> int:
        return sum(
            times.last_minute(now_ms) for owned in self._owned.values() for times in owned if times.limit is limit
        )

    def _share(self, a_minute: int) -> int:
        """What the owned partitions have together; over all partitions it is exactly the whole."""
        return sum(
            (partition + 1) * a_minute // self._partitions - partition * a_minute // self._partitions
            for partition in self._owned
        )

    async def assigned(self, reader: Reader, clock: Clock, agent: str, mode: Mode, partition: int) -> None:
        """Counts what earlier owners have decided. Raises: Unavailable, Rejected."""
        now_ms = clock.now_ms()
        since_ms: dict[str, int] = {}
        for limit in self._limits:
            since_ms[limit.action] = min(now_ms - limit.counted_ms, since_ms.get(limit.action, now_ms))
        self.begin(partition, await past_decisions(reader, agent, mode, partition, since_ms) if since_ms else ())

    def begin(self, partition: int, decisions: Iterable[Past]) -> None:
        """The partition is owned, and these decisions about it count, in the order of their times."""
        owned = self._owned[partition] = [_Times(limit) for limit in self._limits]
        for past in decisions:
            for times in owned:
                if times.limit.action == past.action:
                    times.add(past.entity, past.at_ms)

    def ended(self, partition: int) -> None:
        """The partition is another's now."""
        self._owned.pop(partition, None)


class _Action(msgspec.Struct):
    action: str


class _Decided(msgspec.Struct):
    decided_ms: int


class _Decision(msgspec.Struct):
    """As little of a decision record as counts."""

    alert_id: str
    entity: str
    decision: _Action
    hops: _Decided


async def past_decisions(
    reader: Reader, agent: str, mode: Mode, partition: int, since_ms: Mapping[str, int]
) -> list[Past]:
    """An agent's decisions in a mode about one partition, each alert's first, in the order of their times.

    since_ms: by action; of others none is kept. Everything is read that all agents have decided about the partition since
    the earliest of these times: where less were read, an entity could have more than its limit.
    Raises: Unavailable, Rejected.
    """
    place = TopicPartition(DECISIONS, partition)
    start = (await reader.offsets_for_times({place: min(since_ms.values()) - _CLOCKS_MS}))[place]
    end = (await reader.end_offsets([place]))[place]
    found: dict[str, Past] = {}
    decoder = msgspec.json.Decoder(_Decision)
    async for batch in reader.read(place, start, end):
        for record in batch:
            if record.header("agent") != agent.encode() or record.header("mode") != mode.encode():
                continue
            try:
                decided = decoder.decode(record.value or b"")
            except (msgspec.MsgspecError, ValueError, RecursionError):
                continue  # no decision, or one whose person is forgotten: there is nobody to count it for
            past = Past(decided.entity, decided.decision.action, decided.hops.decided_ms)
            if past.at_ms > since_ms.get(past.action, past.at_ms):
                found.setdefault(decided.alert_id, past)
    return sorted(found.values(), key=lambda past: past.at_ms)


def _count(times: deque[int], after_ms: int) -> int:
    """How many are later; the others go."""
    while times and times[0] <= after_ms:
        times.popleft()
    return len(times)
