"""The ledger of effects: acknowledged, forward only, bounded."""

from collections.abc import AsyncIterator, Iterable

import msgspec
import pytest

from app.broker.base import Assignment
from app.broker.memory import Fault, MemoryReader
from app.core.clock import Clock, run_virtual
from app.core.errors import Fenced, Unavailable
from app.core.record import Record, TopicPartition
from app.decisions import ledger as ledger_module
from app.decisions.ledger import Ledger, has_ended
from app.decisions.record import EffectRecord, EffectState, EffectStatus, effect_key
from app.decisions.remembered import Remembered
from tests.decisions_kit import START_MS, World, make_agent


def len_or_none(value: bytes | None) -> str:
    return str(len(value or b""))


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


class CountingReader(MemoryReader):
    """Notes what is read."""

    def __init__(self, world: World) -> None:
        super().__init__(world.broker)
        self.reads: list[tuple[int, int]] = []

    async def read(self, place: TopicPartition, start: int, stop: int) -> AsyncIterator[list[Record]]:
        self.reads.append((start, stop))
        async for batch in super().read(place, start, stop):
            yield batch


class CutReader(MemoryReader):
    """Sees the log only as it was."""

    def __init__(self, world: World, end: int) -> None:
        super().__init__(world.broker)
        self._end = end

    async def end_offsets(self, places: Iterable[TopicPartition]) -> dict[TopicPartition, int]:
        return dict.fromkeys(places, self._end)


def ledger_of(world: World, writer: str = "first", reader: MemoryReader | None = None) -> Ledger:
    return Ledger(
        world.broker.producer(),
        reader or world.broker.reader(),
        world.clock,
        0,
        writer,
        Remembered(capacity=100),
        set(),
    )


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
        assert (0, None) == (second.standing_offset("a:1", "judge"), second.get("a:1", "judge"))

    run_virtual(main, START_MS)


def last_state(world: World) -> EffectState:
    (record,) = [record for record in world.records("agent.effects") if record.value is not None][-1:]
    return msgspec.json.decode(record.value or b"", type=EffectRecord).effects["stop"].state


def test_restore_writes_the_furthest_state_again_where_it_is_not_the_last() -> None:
    """Or compaction would keep the older one and the effect would be open again; a second restore writes nothing."""

    async def main(clock: Clock) -> None:
        world = await World.create(clock)
        first = ledger_of(world)
        await first.enter(entry("a:1"))
        await first.advance(entry("a:1"), "stop", status(EffectState.DONE))
        await ledger_of(world, "frozen").enter(entry("a:1", writer="frozen"))
        for writer in ("second", "third"):
            await ledger_of(world, writer).restore(0)
            assert (EffectState.DONE, 4) == (last_state(world), len(world.records("agent.effects")))

    run_virtual(main, START_MS)


@pytest.mark.parametrize("known", [EffectState.CALLED, EffectState.DONE])
def test_mend_writes_again_what_lies_before_an_older_state(known: EffectState) -> None:
    """Open entries are in memory, ended ones are read back; without another writer nothing is read or written."""

    async def main(clock: Clock) -> None:
        world = await World.create(clock)
        reader = CountingReader(world)
        owner = ledger_of(world, reader=reader)
        await owner.enter(entry("a:1"))
        await owner.advance(entry("a:1"), "stop", status(known))
        assert (0, []) == (await owner.mend(), reader.reads)
        await ledger_of(world, "frozen").enter(entry("a:1", writer="frozen"))
        assert [1, 0] == [await owner.mend(), await owner.mend()]
        assert (known, 4) == (last_state(world), len(world.records("agent.effects")))

    run_virtual(main, START_MS)


def test_mend_writes_again_how_an_effect_has_ended_where_another_says_less() -> None:
    """Done is not forgotten for a frozen owner's failed, neither by the owner nor by the next one; a further end stands."""

    async def main(clock: Clock) -> None:
        world = await World.create(clock)
        owner, frozen = ledger_of(world), ledger_of(world, "frozen")
        await owner.enter(entry("a:1", EffectState.DONE))
        await frozen.enter(entry("a:1", EffectState.FAILED, writer="frozen"))
        assert [1, 0] == [await owner.mend(), await owner.mend()]
        assert EffectState.DONE is last_state(world)
        await frozen.enter(entry("a:1", EffectState.FAILED, writer="frozen"))
        await ledger_of(world, "second").restore(0)
        assert (EffectState.DONE, 5) == (last_state(world), len(world.records("agent.effects")))
        await owner.enter(entry("a:2", EffectState.FAILED))
        await frozen.enter(entry("a:2", EffectState.DONE, writer="frozen"))
        assert [0, 0] == [await owner.mend(), await owner.mend()]

    run_virtual(main, START_MS)


def test_follow_keeps_of_others_only_what_has_not_ended() -> None:
    """What has ended is remembered as by a restore; what is open may be claimed, and is kept until it ends."""

    async def main(clock: Clock) -> None:
        world = await World.create(clock)
        owner, other = ledger_of(world), ledger_of(world, "other")
        for number in range(100):
            await other.enter(entry(f"a:{number}", EffectState.FAILED, writer="other"))
        called = await other.claim(entry("b:1", writer="other"), "stop", status(EffectState.CALLED))
        await owner.mend()
        assert [("b:1", "judge")] == list(owner._foreign)
        assert 0 == owner.standing_offset("a:1", "judge")
        await owner.enter(entry("b:1"))
        with pytest.raises(Fenced):
            await owner.claim(entry("b:1"), "stop", status(EffectState.CALLED))
        await other.advance(called, "stop", status(EffectState.DONE))
        await owner.advance(called, "stop", status(EffectState.UNKNOWN))
        await owner.mend()
        assert [] == list(owner._foreign)

    run_virtual(main, START_MS)


def test_mend_brings_back_nothing_that_was_forgotten() -> None:
    """A tombstone is the last word on what stood before it."""

    async def main(clock: Clock) -> None:
        world = await World.create(clock)
        owner = ledger_of(world)
        await owner.enter(entry("a:1", EffectState.DONE))
        await ledger_of(world, "frozen").enter(entry("a:1", writer="frozen"))
        world.broker.append("agent.effects", None, effect_key("a:1", "judge"), 0, 0, ())
        assert 0 == await owner.mend()

    run_virtual(main, START_MS)


def test_claim_that_slept_is_fenced() -> None:
    """After ten minutes compaction may have removed who was first."""

    async def main(clock: Clock) -> None:
        world = await World.create(clock)
        owner = ledger_of(world)
        await owner.enter(entry("a:1"))
        world.broker.plan(Fault("confirm", "delay", seconds=601))
        with pytest.raises(Fenced, match="slept"):
            await owner.claim(entry("a:1"), "stop", status(EffectState.CALLED))

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
        assert (0, None) == (second.standing_offset("a:1", "judge"), second.get("a:1", "judge"))

    run_virtual(main, START_MS)


@pytest.mark.parametrize("is_first", [True, False])
def test_claim_without_an_offset_looks_where_it_stands(is_first: bool) -> None:
    """A broker that had taken the claim before says no offset: its place among others' is read in the log."""

    async def main(clock: Clock) -> None:
        world = await World.create(clock)
        first, second = ledger_of(world), ledger_of(world, "second")
        await first.enter(entry("a:1"))
        await second.restore(0)
        if not is_first:
            await first.claim(entry("a:1"), "stop", status(EffectState.CALLED))
        world.broker.plan(Fault("confirm", "hide"))
        if is_first:
            await second.claim(entry("a:1"), "stop", status(EffectState.CALLED))
        with pytest.raises(Fenced, match="another worker"):
            await (first if is_first else second).claim(entry("a:1"), "stop", status(EffectState.CALLED))

    run_virtual(main, START_MS)


def test_claim_that_is_not_found_is_fenced() -> None:
    """Nobody can tell then who was first."""

    async def main(clock: Clock) -> None:
        world = await World.create(clock)
        ledger = ledger_of(world)
        await ledger.enter(entry("a:1"))
        end = len(world.broker.log(ledger.place))
        world.broker.plan(Fault("confirm", "hide"))
        reader = CutReader(world, end)
        ledger = ledger_of(world, reader=reader)
        await ledger.restore(0)
        with pytest.raises(Fenced, match="not to be found out"):
            await ledger.claim(entry("a:1"), "stop", status(EffectState.CALLED))

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


def test_claims_of_the_only_writer_read_nothing() -> None:
    """What lies between our own acknowledged records can only be somebody else's; where nothing does, none is read."""

    async def main(clock: Clock) -> None:
        world = await World.create(clock)
        reader = CountingReader(world)
        ledger = ledger_of(world, reader=reader)
        for number in range(5):
            await ledger.enter(entry(f"a:{number}"))
            await ledger.claim(entry(f"a:{number}"), "stop", status(EffectState.CALLED))
        assert [] == reader.reads
        await ledger_of(world, "second").enter(entry("a:9", writer="second"))
        await ledger.enter(entry("a:9"))
        for alert_id in ("a:9", "a:8"):
            await ledger.enter(entry(alert_id))
            await ledger.claim(entry(alert_id), "stop", status(EffectState.CALLED))
        assert [(10, 11)] == reader.reads

    run_virtual(main, START_MS)


def test_ended_entries_share_one_bounded_memory() -> None:
    """The bound costs the oldest ended entry of the process; an effect that is open is never forgotten."""

    async def main(clock: Clock) -> None:
        world = await World.create(clock)
        ended: Remembered[tuple[str, str], int] = Remembered(capacity=1)
        producer, reader = world.broker.producer(), world.broker.reader()
        one, other = (Ledger(producer, reader, clock, number, "first", ended, set()) for number in range(2))
        await one.enter(entry("a:open"))
        await one.enter(entry("a:old", EffectState.DONE))
        await other.enter(entry("a:new", EffectState.DONE))
        assert [0, None] == [one.standing_offset(alert_id, "judge") for alert_id in ("a:open", "a:old")]
        assert 0 == other.standing_offset("a:new", "judge")

    run_virtual(main, START_MS)


def test_restore_reads_a_bounded_part_of_the_topic(monkeypatch: pytest.MonkeyPatch) -> None:
    """However much was written since the time asked for, only the last part is read."""
    monkeypatch.setattr(ledger_module, "RESTORE_OFFSETS", 3)

    async def main(clock: Clock) -> None:
        world = await World.create(clock)
        for number in range(10):
            await ledger_of(world).enter(entry(f"a:{number}"))
        reader = CountingReader(world)
        await ledger_of(world, reader=reader).restore(0)
        assert [(7, 10)] == reader.reads

    run_virtual(main, START_MS)


@pytest.mark.parametrize("value", [b'{"alert_id":"\xff\xfe"}', b"[" * 100_000, b"{}", None], ids=len_or_none)
def test_restore_foreign_record_is_passed_over(value: bytes | None) -> None:
    """Whatever somebody writes there keeps no partition closed."""

    async def main(clock: Clock) -> None:
        world = await World.create(clock)
        world.broker.append("agent.effects", value, b"x", 0, 0, ())
        await ledger_of(world).enter(entry("a:1"))
        ledger = ledger_of(world)
        await ledger.restore(0)
        assert 0 == ledger.standing_offset("a:1", "judge")

    run_virtual(main, START_MS)


def test_foreign_record_is_told_once_a_process(caplog: pytest.LogCaptureFixture) -> None:
    """A partition that comes and goes reads the same old record each time; that is no news, and nothing is to be done."""

    async def main(clock: Clock) -> None:
        world = await World.create(clock)
        world.broker.append("agent.effects", b"{}", b"x", 0, 0, ())
        actions = world.actions_work(make_agent())
        for epoch in range(3):
            await actions.assigned(Assignment("agent.decisions", 0, epoch), 0)
        (line,) = [record for record in caplog.records if "no states of effects" in record.getMessage()]
        assert "WARNING" == line.levelname

    run_virtual(main, START_MS)


def test_has_ended_needs_every_effect() -> None:
    """An entry without effects has ended; one open effect keeps it open."""
    assert has_ended(entry("a:1", EffectState.FAILED))
    assert not has_ended(entry("a:1", EffectState.CALLED))
