"""Which alerts an agent has decided: so none is sent to the model again after a restart, or when it is repeated.

The memory is bounded by number and by age; an alert repeated beyond that is decided again. The first decision still
stands for as long as the actions remember it, which is bounded too (ADR 30, Horizons): beyond that the second one is acted
upon.
"""

from contextlib import aclosing

from app.broker.base import Assignment, Reader
from app.core.clock import Clock
from app.core.record import Record, TopicPartition
from app.decisions.record import DECISIONS, Mode, is_forgotten
from app.decisions.remembered import Remembered
from app.dispatch.marks import WINDOW
from app.models.budget import SPENT, Spent

LOOK_BACK_MS = 600_000
"""How long before the first unfinished alert was written a repeat of it may have been decided."""

DAY_MS = 86_400_000

FIRST_STEP = 1_000
"""Offsets that a search for the last decision of an agent reads first; then four times as many each time."""

LOOK_BACK_OFFSETS = 8 * WINDOW
"""No look-back reads more of the log, however old the first unfinished alert is: decisions about alerts behind it are
among the last ones of its agent, since no more than a window of alerts was ever begun beyond it."""


async def look_back(
    reader: Reader,
    clock: Clock,
    agent: str,
    mode: Mode,
    assignment: Assignment,
    first_unfinished: int,
    decided: Remembered[str, bool],
) -> None:
    """Fills `decided` from `agent.decisions`: what was written since ten minutes before the first unfinished alert.

    A live decision counts in every mode, another one only in its own. Raises: Unavailable, Rejected.
    """
    place = TopicPartition(DECISIONS, assignment.partition)
    oldest_ms = await written_ms(reader, clock, assignment.place, first_unfinished)
    start = (await reader.offsets_for_times({place: oldest_ms - LOOK_BACK_MS}))[place]
    end = (await reader.end_offsets([place]))[place]
    async for batch in reader.read(place, max(start, end - LOOK_BACK_OFFSETS), end):
        for record in batch:
            if record.header("agent") == agent.encode() and _counts(record, mode) and not is_forgotten(record):
                alert_id = (record.header("alert_id") or b"").decode(errors="replace")
                decided.put(place.partition, alert_id, True, record.timestamp_ms)


async def spent_today(reader: Reader, clock: Clock, agent: str, mode: Mode, partition: int) -> Spent | None:
    """What the agent's newest decisions about a partition say that it has spent since midnight UTC, in its mode.

    Searched from the end of the log: its first step finds it, unless the agent was quiet while others were not.
    Raises: Unavailable, Rejected.
    """
    place = TopicPartition(DECISIONS, partition)
    midnight_ms = clock.now_ms() // DAY_MS * DAY_MS
    start = (await reader.offsets_for_times({place: midnight_ms}))[place]
    end = (await reader.end_offsets([place]))[place]
    step = FIRST_STEP
    while end > start:
        begin = max(start, end - step)
        found = [
            spent
            async for batch in reader.read(place, begin, end)
            for record in batch
            if record.header("agent") == agent.encode() and record.header("mode") == mode.encode()
            if (spent := Spent.decode(record.header(SPENT) or b"")) is not None
        ]
        if found:
            return max(found, key=lambda spent: (spent.day, spent.tokens, spent.micro_usd))
        end, step = begin, step * 4
    return None


async def written_ms(reader: Reader, clock: Clock, place: TopicPartition, offset: int) -> int:
    """When the first record at or after `offset` was written; now where there is none."""
    end = (await reader.end_offsets([place]))[place]
    async with aclosing(reader.read(place, offset, end)) as batches:  # type: ignore[type-var]
        async for batch in batches:
            if batch:
                return batch[0].timestamp_ms
    return clock.now_ms()


def _counts(record: Record, mode: Mode) -> bool:
    return record.header("mode") in (b"live", mode.encode())
