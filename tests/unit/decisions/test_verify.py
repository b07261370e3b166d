"""The check of chains finds what was changed, removed, added or taken back, and nothing where nothing was."""

from collections.abc import Callable, Iterable

import msgspec
import pytest

from app.core.clock import Clock, run_virtual
from app.core.codec import encode
from app.core.record import Record, TopicPartition
from app.decisions.record import (
    DECISIONS,
    DecisionRecord,
    ForgottenRecord,
    decision_key,
    forgotten_headers,
    sha256,
)
from app.decisions.verify import check_partition
from tests.decisions_kit import START_MS, World, answering, broken_links, large_order, make_agent, until, with_actions

Damage = Callable[[list[Record]], Iterable[Record]]


def chain(count: int, writer: str = "judge/1/1/0") -> list[Record]:
    """The records of one chain, as they lie in the log."""
    records: list[Record] = []
    previous = ""
    for number in range(count):
        value = encode({"writer": writer, "number": number, "previous": previous, "action": "block"})
        records.append(Record(DECISIONS, 1, number, 0, decision_key(writer, number), value))
        previous = sha256(value)
    return records


def links(record: Record) -> dict[str, object]:
    found: dict[str, object] = msgspec.json.decode(record.value or b"")
    return found


def forgotten(record: Record) -> Record:
    """What stands in the place of a record once its entity is forgotten."""
    found = msgspec.json.decode(record.value or b"", type=dict[str, object])
    stands = ForgottenRecord(
        writer=str(found["writer"]),
        number=int(str(found["number"])),
        previous=str(found["previous"]),
        sha256=sha256(record.value or b""),
        forgotten_ms=1,
    )
    headers = forgotten_headers(record.headers, 1)
    return msgspec.structs.replace(record, value=encode(stands), headers=headers)


def changed(record: Record) -> Record:
    return msgspec.structs.replace(record, value=(record.value or b"").replace(b"block", b"allow"))


def renumbered(record: Record, number: int) -> Record:
    fields = links(record) | {"number": number}
    return msgspec.structs.replace(record, key=decision_key(str(fields["writer"]), number), value=encode(fields))


@pytest.mark.parametrize(
    "noise",
    [
        lambda log: log,
        lambda log: [*log, log[2]],
        lambda log: [*log[:1], log[2], log[1], *log[3:]],
        lambda log: [log[2], log[1], log[0], *log[3:]],
        lambda log: [*log[:2], forgotten(log[2]), *log[3:]],
        lambda log: [*log, forgotten(log[2]), forgotten(log[3])],
        lambda log: [*log, *chain(3, "judge/1/2/0")],
    ],
)
def test_check_of_what_may_happen_finds_nothing(noise: Damage) -> None:
    """Lost answers, outages, forgotten people and new writers break no chain."""
    assert [] == broken_links(noise(chain(6)))


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda log: [*log[:2], changed(log[2]), *log[3:]], "record 3 does not follow record 2"),
        (lambda log: [*log, changed(log[2])], "two records have number 2"),
        (lambda log: [changed(log[2]), *log], "two records have number 2"),
        (lambda log: [*log[:2], *log[3:]], "record 2 is missing"),
        (lambda log: [*log[:2], *log[4:]], "records 2 to 3 are missing"),
        (lambda log: log[1:], "record 0 is missing"),
        (lambda log: [*log[:2], renumbered(log[3], 2), renumbered(log[2], 3), *log[4:]], "does not follow"),
        (lambda log: [*log, msgspec.structs.replace(log[2], value=None)], "a tombstone"),
        (lambda log: [*log, msgspec.structs.replace(log[2], value=b"x")], "is no decision"),
        (lambda log: [*log[:2], msgspec.structs.replace(log[2], key=b"u-1"), *log[3:]], "its key is not that of"),
        (lambda log: [*log, forgotten(changed(log[2]))], "two records have number 2"),
        (lambda log: [*log[:2], forgotten(changed(log[2])), *log[3:]], "record 3 does not follow record 2"),
        (lambda log: [renumbered(log[0], -1), *log[1:]], "follows what it cannot follow"),
    ],
)
def test_check_names_what_is_broken(damage: Damage, said: str) -> None:
    """Each kind of damage is said in words, with place or writer and number."""
    found = broken_links(damage(chain(6)))
    assert any(said in what for what in found), found


def test_check_of_a_log_whose_beginning_is_gone_accepts_a_missing_beginning() -> None:
    """Retention takes the oldest records; only where it took none must a chain begin with its first."""
    assert [] == broken_links(chain(6)[3:], beginning=3)
    assert broken_links(chain(6)[3:], beginning=0)


async def decided(clock: Clock) -> World:
    """A world with three decisions whose effects are made."""
    world = await World.create(clock, answering("block"))
    agent = with_actions(make_agent())
    for number in range(3):
        world.send(large_order(order=f"o-{number}"))
    async with world.running(world.agent_work(agent), world.actions_work(agent)):
        await until(lambda: len(world.receiver.calls) == 6)
    return world


def test_check_partition_reads_decisions_and_what_effects_say_of_them() -> None:
    """What was written by the agents and the actions is whole."""

    async def main(clock: Clock) -> None:
        world = await decided(clock)
        check = await check_partition(world.broker.reader(), 1)
        assert ([], 3, 1, 0) == (check.broken, check.decisions, check.chains, check.forgotten)
        other = await check_partition(world.broker.reader(), 0)
        assert ([], 0, 0) == (other.broken, other.decisions, other.chains)

    run_virtual(main, START_MS)


def test_check_partition_misses_the_last_decision_by_its_effects() -> None:
    """The end of a chain is nobody's predecessor; its effects know that it was there."""

    async def main(clock: Clock) -> list[str]:
        world = await decided(clock)
        del world.broker.logs[TopicPartition(DECISIONS, 1)][2:]
        return (await check_partition(world.broker.reader(), 1)).broken

    assert [f"{DECISIONS}/1/2: the decision that effects came from is missing"] == run_virtual(main, START_MS)


def test_check_partition_finds_another_last_decision_by_its_effects() -> None:
    """A changed last record breaks no chain; its effects came from another one."""

    async def main(clock: Clock) -> list[str]:
        world = await decided(clock)
        log = world.broker.logs[TopicPartition(DECISIONS, 1)]
        log[2] = msgspec.structs.replace(log[2], value=(log[2].value or b"").replace(b"o-2", b"o-3"))
        return (await check_partition(world.broker.reader(), 1)).broken

    assert [f"{DECISIONS}/1/2: is not the decision that its effects came from"] == run_virtual(main, START_MS)


def compacted(records: Iterable[Record]) -> list[Record]:
    """What compaction leaves: the last record of each key."""
    return sorted({record.key: record for record in records}.values(), key=lambda record: record.offset)


def test_compaction_takes_no_decision_since_keys_are_unique() -> None:
    """Ablation: keyed by their entity, as decisions would be to keep an order, compaction breaks every chain."""

    async def main(clock: Clock) -> list[Record]:
        return (await decided(clock)).records(DECISIONS)

    log = run_virtual(main, START_MS)
    assert log == compacted(log)
    by_entity = compacted(msgspec.structs.replace(record, key=record.header("entity")) for record in log)
    unkeyed = [msgspec.structs.replace(one, key=decision_key(*_place(one))) for one in by_entity]
    assert broken_links(unkeyed)


def _place(record: Record) -> tuple[str, int]:
    found = msgspec.json.decode(record.value or b"", type=DecisionRecord)
    return found.writer, found.number
