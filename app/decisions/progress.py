"""What has come of decisions, newest first: how far the effects of each are.

`agent.effects` is read backwards in step with `agent.decisions`, as far as the decisions have come; a day farther for one of
which nothing is known, since it may repeat an older one. So what is kept are the entries whose decision is still to come, of
a day at most, and memory does not grow with the log.
"""

import sys
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack, aclosing
from typing import NamedTuple

from app.broker.base import Reader
from app.core.record import Record, TopicPartition
from app.decisions.history import Found, PassedOver, Wanted, backwards, effects_in, newest
from app.decisions.ledger import merged
from app.decisions.record import EFFECTS, EffectRecord, EffectState
from app.decisions.remembered import HORIZON_MS

OPEN, REPEATED, NONE = "open", "repeated", "none"
_FOR_A_PERSON = (EffectState.FAILED.value, EffectState.UNKNOWN.value, EffectState.WITHHELD.value)
STATES = (*_FOR_A_PERSON, OPEN, EffectState.LOGGED.value, EffectState.DONE.value, REPEATED, NONE)
"""What a decision's effects can be, what a person must look at first. open: not begun, or not at their end. repeated:
another decision about the alert stands. none: the action has no effects."""

SKEW_MS = 60_000
"""Clocks of brokers may differ by so much; an entry is written after its decision."""

PRUNED_EACH = 1_000
BEGINNING = -sys.maxsize
"""Before the time of any record."""


class Progressed(NamedTuple):
    """A decision, and the `STATES` that its effects are in; none where it is not live, since nobody acts on it."""

    found: Found
    states: tuple[str, ...]


async def newest_with_effects(
    reader: Reader, partitions: int, wanted: Wanted, state: str | None, limit: int, passed_over: PassedOver
) -> AsyncGenerator[Progressed]:
    """The last `limit` decisions that are wanted and have effects in a state of `STATES`, None for any. To be closed.

    Raises: Unavailable, Rejected.
    """
    async with AsyncExitStack() as stack:
        decisions = newest(reader, partitions, wanted, limit if state is None else sys.maxsize, passed_over)
        await stack.enter_async_context(aclosing(decisions))
        logs: list[_Entries] = []
        for number in range(partitions):
            records = backwards(reader, TopicPartition(EFFECTS, number), 0)
            logs.append(_Entries(await stack.enter_async_context(aclosing(records))))
        async for found in decisions:
            entered = await logs[found.partition].of(found) if found.record.mode == "live" else None
            one = Progressed(found, states_of(found, entered))
            if state is None or state in one.states:
                yield one
                limit -= 1
                if not limit:
                    return


def states_of(found: Found, entered: EffectRecord | None) -> tuple[str, ...]:
    """See `Progressed`. entered: what `agent.effects` has about the alert and the agent."""
    if found.record.mode != "live":
        return ()
    if entered is None:
        return (OPEN,)
    if entered.decision_sha256 != found.sha256:
        return (REPEATED,)
    states = {status.state.value if status.state.ended else OPEN for status in entered.effects.values()}
    return tuple(state for state in STATES if state in states) or (NONE,)


class _Entries:
    """What one partition of `agent.effects` says, read back as far as was asked."""

    def __init__(self, records: AsyncGenerator[Record]) -> None:
        self._records = records
        self._reached_ms = sys.maxsize
        self._known: dict[tuple[str, str], EffectRecord] = {}
        self._taken_back: set[bytes | None] = set()
        """Keys of what was forgotten: whatever lies before says nothing any more."""
        self._kept = 0

    async def of(self, found: Found) -> EffectRecord | None:
        """What there is about a decision; whoever asks next asks about an older one. Raises: Unavailable, Rejected."""
        pair = found.record.alert_id, found.record.agent
        while self._reached_ms >= found.written_ms - SKEW_MS:
            await self._read_one()
        while pair not in self._known and self._reached_ms >= found.written_ms - HORIZON_MS:
            await self._read_one()
        entered = self._known.get(pair)
        if len(self._known) > 2 * self._kept + PRUNED_EACH:
            self._known = {
                pair: entry for pair, entry in self._known.items() if entry.decision_offset <= found.offset
            }  # a decision lies where its entry says, or, written twice and compacted, behind that
            self._kept = len(self._known)
        return entered

    async def _read_one(self) -> None:
        record = await anext(self._records, None)
        if record is None:
            self._reached_ms = BEGINNING
            return
        self._reached_ms = record.timestamp_ms
        if record.value is None:
            self._taken_back.add(record.key)
        elif record.key not in self._taken_back and (entry := effects_in(record)) is not None:
            pair = entry.alert_id, entry.agent
            known = self._known.get(pair)
            self._known[pair] = entry if known is None else merged(entry, known)
