"""Owners of one partition's ledger that are frozen at any await and wake beside their successors: whatever compaction
then keeps, an effect that must not be made twice is made once, and how far it came is never forgotten."""

import asyncio
from random import Random
from typing import Any

import msgspec
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from app.broker.base import Confirmation
from app.broker.memory import MemoryBroker, MemoryProducer
from app.broker.topics import TopicSpec
from app.core.clock import Clock, ManualClock, run_virtual
from app.core.errors import Fenced
from app.decisions.ledger import Ledger
from app.decisions.record import EFFECTS, EffectRecord, EffectState, EffectStatus, effect_topic
from app.decisions.remembered import Remembered
from tests.examples import examples
from tests.frozen_broker import CompactedBroker
from tests.unit.decisions.test_ledger import entry, status

START_MS, HOUR_MS = 1_800_000_000_000, 3_600_000


class Gate:
    """Lets one step through at a time; open: all of them."""

    def __init__(self) -> None:
        self.open = False
        self._waiting: list[asyncio.Event] = []

    async def step(self) -> None:
        if not self.open:
            event = asyncio.Event()
            self._waiting.append(event)
            await event.wait()

    def release(self, *, all_of_them: bool = False) -> None:
        self.open = self.open or all_of_them
        for event in self._waiting[: None if all_of_them else 1]:
            event.set()
        del self._waiting[: None if all_of_them else 1]


class GatedProducer(MemoryProducer):
    """Frozen before a record leaves, or after it landed and before that is known. Some are never told the offset."""

    def __init__(self, broker: MemoryBroker, gate: Gate, *, hides_offsets: bool) -> None:
        super().__init__(broker)
        self._gate = gate
        self._hides_offsets = hides_offsets

    async def confirm(self, *args: Any, **kwargs: Any) -> Confirmation:
        await self._gate.step()
        confirmation = await super().confirm(*args, **kwargs)
        await self._gate.step()
        return confirmation._replace(offset=-1) if self._hides_offsets else confirmation


class Owner:
    """One process that believes to own the partition: restores, and brings the effect to its end."""

    def __init__(self, broker: MemoryBroker, clock: Clock, number: int, calls: list[int]) -> None:
        self.gate = Gate()
        self.number = number
        producer = GatedProducer(broker, self.gate, hides_offsets=number % 3 == 1)
        self.ledger = Ledger(producer, broker.reader(), clock, 0, f"w{number}", Remembered(capacity=100), set())
        self._calls = calls
        self.task = asyncio.create_task(self._run())

    async def _run(self) -> None:
        await self.ledger.restore(0)
        known = self.ledger.get("a:1", "judge")
        if known is None:
            if self.ledger.standing_offset("a:1", "judge") is not None:
                return
            known = entry("a:1", writer=self.ledger.writer)
            await self.ledger.enter(known)
        if known.effects["stop"].state is EffectState.CALLED:
            await self.ledger.advance(known, "stop", status(EffectState.UNKNOWN))
            return
        try:
            claimed = await self.ledger.claim(known, "stop", status(EffectState.CALLED))
        except Fenced:
            return
        await self.gate.step()
        self._calls.append(self.number)
        await self.ledger.advance(claimed, "stop", status(EffectState.DONE))


async def run_schedule(schedule: list[int]) -> tuple[list[int], CompactedBroker]:
    """0: the next owner takes over. 1: an hour passes, and compaction; the owner has looked behind itself by then.
    Others: one of all owners so far goes one step on. At the end all wake, and one more owner follows."""
    clock = ManualClock(START_MS)
    broker = CompactedBroker(clock)
    decisions = TopicSpec(name="agent.decisions", partitions=1)
    await broker.admin().create([effect_topic(decisions)])
    calls: list[int] = []
    owners = [Owner(broker, clock, 0, calls)]
    for choice in [*schedule, 0, 1, 0]:
        assert clock.time_ms - START_MS < 24 * HOUR_MS, "beyond the horizon"
        await settle()
        if choice == 0:
            owners.append(Owner(broker, clock, len(owners), calls))
        elif choice == 1:
            owners[-1].gate.release(all_of_them=True)
            await owners[-1].task
            await owners[-1].ledger.mend()
            clock.time_ms += HOUR_MS
            broker.compact()
        else:
            owners[choice % len(owners)].gate.release()
    for owner in owners:
        owner.gate.release(all_of_them=True)
        await owner.task
    await owners[-1].ledger.mend()
    broker.compact()
    return calls, broker


async def settle() -> None:
    for _ in range(20):
        await asyncio.sleep(0)


def check(schedule: list[int]) -> None:
    async def main(_: Clock) -> None:
        calls, broker = await run_schedule(schedule)
        assert len(calls) <= 1, f"called by {calls}"
        (kept,) = [record for log in broker.logs.values() for record in log if record.value is not None]
        furthest = max(decoded(record.value).state.rank for record in broker.history[EFFECTS])
        assert furthest == decoded(kept.value).state.rank, "no state moves back"

    run_virtual(main, START_MS)


def decoded(value: bytes | None) -> EffectStatus:
    return msgspec.json.decode(value or b"", type=EffectRecord).effects["stop"]


schedules = st.lists(st.one_of(st.integers(0, 1), st.integers(2, 7), st.integers(2, 7)), max_size=20)


@given(schedules)
@example([2, 2, 2, 0, 2, 2, 2, 1])
@example([0, 4, 3, 7, 0, 6, 6, 3, 1, 6, 1, 3, 2, 4, 2, 3, 5, 1])
@example([7, 0, 0, 6, 6, 5, 2, 3, 2, 2, 6, 1, 3, 1, 7, 4, 3, 4, 2, 2, 1])
@settings(max_examples=examples(300))
def test_ledger_frozen_owners_make_an_effect_at_most_once(schedule: list[int]) -> None:
    """Who claims first may call; what a frozen one writes later hides nothing, also not from compaction."""
    check(schedule)


@pytest.mark.parametrize("safeguard", ["the log is followed before a call", "older states are overwritten"])
def test_ledger_frozen_safeguard_removed_turns_the_proof_red(safeguard: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ablation: a claim that asks nobody, and an owner that lets an older state stand last."""

    async def nothing(ledger: Ledger) -> int:
        return 0

    name = "_follow" if safeguard == "the log is followed before a call" else "_write_again"
    monkeypatch.setattr(Ledger, name, nothing)
    with pytest.raises(AssertionError, match=r"called by \[\d, \d"):
        check_many()


def check_many() -> None:
    for seed in range(1_000):
        chance = Random(seed)
        check([chance.choice([0, 1, 2, 3, 4, 5]) for _ in range(20)])
