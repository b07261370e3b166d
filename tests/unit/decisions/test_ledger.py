"""The ledger of effects: acknowledged, forward only, bounded."""

import pytest

from app.broker.memory import Fault
from app.core.clock import Clock, run_virtual
from app.core.errors import Fenced, Unavailable
from app.decisions.ledger import Ledger, has_ended
from app.decisions.record import EffectRecord, EffectState, EffectStatus
from tests.decisions_kit import START_MS, World


def entry(alert_id: str, state: EffectState = EffectState.INTENDED, writer: str = "first") -> EffectRecord:
    return EffectRecord(
        alert_id=alert_id,
        agent="judge",
        action="block",
        decision_offset=0,
        decision_sha256="",
        effects={"stop": status(state)},
        writer=writer,
    )


def status(state: EffectState) -> EffectStatus:
    return EffectStatus(state, "k", "at_most_once", 0)


def ledger_of(world: World, writer: str = "first", capacity: int = 100) -> Ledger:
    return Ledger(world.broker.producer(), world.broker.reader(), 0, writer, capacity)


def test_enter_that_fails_is_not_known() -> None:
    """What was not acknowledged does not count."""

    async def main(clock: Clock) -> None:
        world = await World.create(clock)
        ledger = ledger_of(world)
        world.broker.plan(Fault("confirm", "drop"))
        with pytest.raises(Unavailable):
            await ledger.enter(entry("a:1"))
        assert ledger.get("a:1", "judge") is None

    run_virtual(main, START_MS)


def test_advance_backwards_is_a_broken_invariant() -> None:
    """A state never moves back."""

    async def main(clock: Clock) -> None:
        ledger = ledger_of(await World.create(clock))
        await ledger.enter(entry("a:1"))
        done = await ledger.advance(entry("a:1"), "stop", status(EffectState.DONE))
        with pytest.raises(AssertionError):
            await ledger.advance(done, "stop", status(EffectState.CALLED))

    run_virtual(main, START_MS)


def test_restore_takes_the_furthest_state() -> None:
    """An older state that a frozen owner wrote last changes nothing."""

    async def main(clock: Clock) -> None:
        world = await World.create(clock)
        first = ledger_of(world)
        await first.enter(entry("a:1"))
        await first.advance(entry("a:1"), "stop", status(EffectState.DONE))
        await ledger_of(world, "frozen").enter(entry("a:1", writer="frozen"))
        second = ledger_of(world, "second")
        await second.restore(0)
        restored = second.get("a:1", "judge")
        assert restored is not None
        assert EffectState.DONE is restored.effects["stop"].state

    run_virtual(main, START_MS)


def test_claim_of_the_second_is_fenced_and_learns_the_first() -> None:
    """Of two that believe to own a partition only the first may call; the other knows its state from then on."""

    async def main(clock: Clock) -> None:
        world = await World.create(clock)
        first, second = ledger_of(world), ledger_of(world, "second")
        await first.enter(entry("a:1"))
        await second.enter(entry("a:1", writer="second"))
        called = await first.claim(entry("a:1"), "stop", status(EffectState.CALLED))
        await first.advance(called, "stop", status(EffectState.DONE))
        with pytest.raises(Fenced):
            await second.claim(entry("a:1", writer="second"), "stop", status(EffectState.CALLED))
        known = second.get("a:1", "judge")
        assert known is not None
        assert EffectState.DONE is known.effects["stop"].state

    run_virtual(main, START_MS)


def test_claim_whose_answer_was_lost_is_claimed_again() -> None:
    """An own claim that nobody acknowledged called nobody: the next attempt may."""

    async def main(clock: Clock) -> None:
        world = await World.create(clock)
        ledger = ledger_of(world)
        await ledger.enter(entry("a:1"))
        world.broker.plan(Fault("confirm", "drop"))
        with pytest.raises(Unavailable):
            await ledger.claim(entry("a:1"), "stop", status(EffectState.CALLED))
        claimed = await ledger.claim(entry("a:1"), "stop", status(EffectState.CALLED))
        assert EffectState.CALLED is claimed.effects["stop"].state

    run_virtual(main, START_MS)


def test_capacity_drops_ended_entries_and_no_open_ones() -> None:
    """The bound costs the oldest ended entry; an effect that is open is never forgotten."""

    async def main(clock: Clock) -> None:
        ledger = ledger_of(await World.create(clock), capacity=2)
        await ledger.enter(entry("a:open"))
        await ledger.enter(entry("a:old", EffectState.DONE))
        await ledger.enter(entry("a:new", EffectState.DONE))
        assert 2 == len(ledger)
        assert ledger.get("a:old", "judge") is None
        assert ledger.get("a:open", "judge") is not None

    run_virtual(main, START_MS)


def test_has_ended_needs_every_effect() -> None:
    """An entry without effects has ended; one open effect keeps it open."""
    assert has_ended(entry("a:1", EffectState.FAILED))
    assert not has_ended(entry("a:1", EffectState.CALLED))
