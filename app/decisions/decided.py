"""Which alerts an agent has decided: so none is sent to the model again after a restart, or when it is repeated.

The memory is bounded by number and by age; an alert repeated beyond that may be decided again, and then the decision
that stands is still the first one in the log.
"""

from collections import deque
from collections.abc import Mapping

from app.broker.base import Assignment, CommittedOffset, Reader
from app.core.clock import Clock
from app.core.record import Record, TopicPartition
from app.decisions.record import DECISIONS, Mode

LOOK_BACK_MS = 600_000
"""How long before the first unfinished alert was written a repeat of it may have been decided."""

HORIZON_MS = 86_400_000
CAPACITY = 1_000_000


class DecidedAlerts:
    """Ids of decided alerts by partition, the newest `capacity` of the last `horizon_ms`."""

    def __init__(self, capacity: int = CAPACITY, horizon_ms: int = HORIZON_MS) -> None:
        self._capacity = capacity
        self._horizon_ms = horizon_ms
        self._ids: dict[int, dict[str, int]] = {}
        self._order: deque[tuple[int, str, int]] = deque()

    def __len__(self) -> int:
        return sum(map(len, self._ids.values()))

    def holds(self, partition: int, alert_id: str) -> bool:
        return alert_id in self._ids.get(partition, ())

    def add(self, partition: int, alert_id: str, decided_ms: int) -> None:
        """Remembers an id; the oldest ones go where there are too many."""
        self._ids.setdefault(partition, {})[alert_id] = decided_ms
        self._order.append((partition, alert_id, decided_ms))
        while len(self._order) > self._capacity or self._order[0][2] < decided_ms - self._horizon_ms:
            oldest_partition, oldest_id, oldest_ms = self._order.popleft()
            known = self._ids.get(oldest_partition, {})
            if known.get(oldest_id) == oldest_ms:
                del known[oldest_id]

    def forget(self, partition: int) -> None:
        """The partition is another's now."""
        self._ids.pop(partition, None)


async def look_back(
    reader: Reader,
    clock: Clock,
    agent: str,
    mode: Mode,
    first_unfinished: Mapping[Assignment, CommittedOffset],
    decided: DecidedAlerts,
) -> None:
    """Fills `decided` from `agent.decisions`: everything since ten minutes before the first unfinished alert.

    A live decision counts in every mode, another one only in its own. Raises: Unavailable, Rejected.
    """
    times_ms: dict[TopicPartition, int] = {}
    for assignment, committed in first_unfinished.items():
        oldest_ms = await written_ms(reader, clock, assignment.place, committed.offset)
        times_ms[TopicPartition(DECISIONS, assignment.partition)] = oldest_ms - LOOK_BACK_MS
    starts = await reader.offsets_for_times(times_ms)
    ends = await reader.end_offsets(times_ms)
    for place, start in starts.items():
        async for batch in reader.read(place, start, ends[place]):
            for record in batch:
                if record.header("agent") == agent.encode() and _counts(record, mode):
                    alert_id = (record.header("alert_id") or b"").decode()
                    decided.add(place.partition, alert_id, record.timestamp_ms)


async def written_ms(reader: Reader, clock: Clock, place: TopicPartition, offset: int) -> int:
    """When the first record at or after `offset` was written; now where there is none."""
    begin = (await reader.beginning_offsets([place]))[place]
    end = (await reader.end_offsets([place]))[place]
    async for batch in reader.read(place, max(begin, offset), min(max(begin, offset) + 1, end)):
        for record in batch:
            return record.timestamp_ms
    return clock.now_ms()


def _counts(record: Record, mode: Mode) -> bool:
    return record.header("mode") in (b"live", mode.encode())
