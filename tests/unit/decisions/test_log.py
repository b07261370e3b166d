"""Decisions are written once each, chained, and never asked for twice because a broker was away."""

import asyncio

import msgspec
import pytest

from app.broker.base import Confirmation
from app.broker.memory import Fault
from app.core.clock import Clock, run_virtual
from app.core.codec import encode
from app.core.errors import RecordTooLarge, Rejected
from app.core.record import Record
from app.decisions.log import CUT, DecisionLog, Link
from app.decisions.record import Answer, DecisionRecord, Hops, ModelUse, sha256
from tests.decisions_kit import DECISIONS, START_MS, World, broken_links


def record(link: Link, *, context: str = "{}", text: str = "answer") -> DecisionRecord:
    use = ModelUse(model="m", prompt_sha256="p", context=context, answer=Answer(text, len(text), sha256(text.encode())))
    return DecisionRecord(
        agent="judge",
        alert_id=f"a:{link.number}",
        alert_type="large_order",
        entity="u-1",
        alert_topic="processed.alerts",
        alert_partition=1,
        alert_offset=link.number,
        origin="",
        mode="live",
        decision=msgspec.Raw(b'{"action":"block"}'),
        answered=msgspec.Raw(b"null"),
        policy=None,
        reasons=(),
        attempt=1,
        features=(),
        models=(use,),
        hops=Hops(1, 2, 3, 4, 5, 6),
        alert=msgspec.Raw(b"{}"),
        writer=link.writer,
        number=link.number,
        previous=link.previous,
    )


def fields_of(one: Record) -> tuple[str, int, str]:
    decoded = msgspec.json.decode(one.value or b"", type=DecisionRecord)
    return decoded.writer, decoded.number, decoded.previous


def written_to(world: World) -> list[Record]:
    return world.records("agent.decisions")


def test_write_chains_concurrent_decisions() -> None:
    """Decisions that end at once are linked one behind the other, and the chain holds."""

    async def main(clock: Clock) -> list[Record]:
        world = await World.create(clock)
        log = DecisionLog(world.broker.producer(), "judge/1/1/0")
        await asyncio.gather(*(log.write(record) for _ in range(20)))
        return written_to(world)

    written = run_virtual(main, START_MS)
    numbers = [fields_of(one)[1] for one in written]
    assert list(range(20)) == numbers
    assert [] == broken_links(written)


def test_write_does_not_wait_for_the_record_before() -> None:
    """Twenty decisions wait for their acknowledgements at the same time."""

    async def main(clock: Clock) -> tuple[int, list[Record]]:
        world = await World.create(clock)
        log = DecisionLog(world.broker.producer(), "judge/1/1/0")
        for _ in range(20):
            world.broker.plan(Fault("confirm", "delay", seconds=1))
        await asyncio.gather(*(log.write(record) for _ in range(20)))
        return clock.now_ms() - START_MS, written_to(world)

    took_ms, written = run_virtual(main, START_MS)
    assert 1_000 == took_ms
    assert [] == broken_links(written)


def test_write_that_is_delayed_keeps_its_place() -> None:
    """A record that the broker takes late stands behind its followers in the log, and in its place in the chain."""

    async def main(clock: Clock) -> list[Record]:
        world = await World.create(clock)
        log = DecisionLog(world.broker.producer(), "judge/1/1/0")
        world.broker.plan(Fault("confirm", "fail"))
        await asyncio.gather(*(log.write(record) for _ in range(3)))
        return written_to(world)

    written = run_virtual(main, START_MS)
    assert [1, 2, 0] == [fields_of(one)[1] for one in written]
    assert [] == broken_links(written)


def test_write_too_large_for_any_form_leaves_its_place_to_the_next() -> None:
    """A decision that was never written is no gap in the chain."""

    async def main(clock: Clock) -> list[Record]:
        world = await World.create(clock)
        log = DecisionLog(world.broker.producer(), "judge/1/1/0")
        long = msgspec.Raw(b'"' + b"x" * DECISIONS.max_message_bytes + b'"')
        with pytest.raises(RecordTooLarge):
            await log.write(lambda link: msgspec.structs.replace(record(link), alert=long))
        await log.write(record)
        return written_to(world)

    (written,) = run_virtual(main, START_MS)
    assert Link("judge/1/1/0", 0, "") == Link(*fields_of(written))


@pytest.mark.parametrize("damage", ["changed", "removed", "replaced"])
def test_broken_links_finds_damage(damage: str) -> None:
    """A record that was changed, removed or written twice in two forms is found."""

    async def main(clock: Clock) -> list[Record]:
        world = await World.create(clock)
        log = DecisionLog(world.broker.producer(), "judge/1/1/0")
        for _ in range(4):
            await log.write(record)
        return written_to(world)

    written = run_virtual(main, START_MS)
    other = msgspec.structs.replace(written[1], value=(written[1].value or b"").replace(b'"block"', b'"allow"'))
    if damage == "changed":
        written[1] = other
    elif damage == "removed":
        del written[1]
    else:
        written.append(other)
    assert broken_links(written)


def test_write_waits_out_a_broker_that_is_away() -> None:
    """The same bytes are offered until they are taken, and lost answers repeat them without breaking the chain."""

    async def main(clock: Clock) -> list[Record]:
        world = await World.create(clock)
        log = DecisionLog(world.broker.producer(), "judge/1/1/0")
        world.broker.plan(Fault("confirm", "fail"))
        world.broker.plan(Fault("confirm", "drop"))
        await log.write(record)
        await log.write(record)
        return written_to(world)

    written = run_virtual(main, START_MS)
    assert 3 == len(written)
    assert 2 == len({one.value for one in written})
    assert [] == broken_links(written)


def test_write_cancelled_begins_a_new_chain() -> None:
    """After a write whose end nobody saw, the next one does not claim to follow it."""

    async def main(clock: Clock) -> tuple[list[Record], list[str]]:
        world = await World.create(clock)
        log = DecisionLog(world.broker.producer(), "judge/1/1/0")
        await log.write(record)
        world.broker.plan(Fault("confirm", "delay", seconds=60))
        task = asyncio.create_task(log.write(record))
        await asyncio.sleep(1)
        task.cancel()
        await asyncio.wait([task])
        await log.write(record)
        writers = [fields_of(one)[0] for one in written_to(world)]
        return written_to(world), writers

    written, writers = run_virtual(main, START_MS)
    assert ["judge/1/1/0", "judge/1/1/0+1"] == writers
    assert [] == broken_links(written)


def test_write_too_large_keeps_the_decision_without_texts() -> None:
    """What does not fit loses its texts and says so; decision, lengths and hashes stay."""

    async def main(clock: Clock) -> DecisionRecord:
        world = await World.create(clock)
        log = DecisionLog(world.broker.producer(), "judge/1/1/0")
        long = "x" * DECISIONS.max_message_bytes
        confirmation = await log.write(lambda link: record(link, context=long, text=long))
        assert Confirmation(1, 0) == confirmation
        return world.decisions()[0]

    kept = run_virtual(main, START_MS)
    (use,) = kept.models
    assert (CUT,) == kept.reasons
    assert use.answer is not None
    assert ("", "", DECISIONS.max_message_bytes) == (use.context, use.answer.text, use.answer.bytes)


def test_write_refused_is_raised() -> None:
    """A missing right is not waited out."""

    async def main(clock: Clock) -> None:
        world = await World.create(clock)
        world.broker.plan(Fault("confirm", "fail", Rejected("agent.decisions: not authorized")))
        with pytest.raises(Rejected):
            await DecisionLog(world.broker.producer(), "judge/1/1/0").write(record)

    run_virtual(main, START_MS)


def test_decision_record_survives_its_encoding() -> None:
    """What is read back encodes to the same bytes."""
    value = encode(record(Link("w", 0, "")))
    assert value == encode(msgspec.json.decode(value, type=DecisionRecord))
