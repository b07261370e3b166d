"""Dead letters of decisions come back only as decisions, and never out of what was forgotten."""

from app.broker.dead_letters import DeadLetters
from app.broker.dead_replay import Bar, DeadReplay, Fate
from app.broker.memory import MemoryBroker
from app.broker.topics import dead_letters_of
from app.core.clock import ManualClock
from app.core.codec import encode
from app.core.record import TopicPartition
from app.decisions.letters import DecisionBar
from app.decisions.record import DECISIONS, decision_headers, decision_key, effect_topic, forgotten_headers
from app.decisions.verify import check_partition
from tests.decisions_kit import DECISIONS as SPEC
from tests.decisions_kit import START_MS
from tests.unit.decisions.test_history import written

PLACE = TopicPartition(DECISIONS, 1)


async def broker_with_letters() -> MemoryBroker:
    """Letters about two decisions, of which the second was forgotten later, and about what is no decision: garbage, and
    a decision under another's key."""
    broker = MemoryBroker(ManualClock(START_MS))
    await broker.admin().create([SPEC, dead_letters_of(SPEC), effect_topic(SPEC)])
    letters = DeadLetters(broker.producer(), "headrace.actions")
    decisions = [written(number) for number in range(2)]
    keyed = [(decision_key(one.writer, one.number), encode(one), decision_headers(one)) for one in decisions]
    for key, value, headers in [*keyed, (b"k", b"\xff", ()), (b"k", encode(written(7)), ())]:
        broker.append(DECISIONS, value, key, 1, 0, headers)
        record = broker.logs[PLACE][-1]
        await letters.write(record, "is no decision")
    broker.append(DECISIONS, b"{}", keyed[1][0], 1, 0, forgotten_headers(keyed[1][2], START_MS))
    return broker


async def replayed(broker: MemoryBroker, bar: Bar | None) -> list[Fate]:
    replaying = DeadReplay(broker, f"{DECISIONS}.dead", DECISIONS, lambda letter: True, bar=bar)
    return [outcome.fate async for outcome in replaying.run()]


async def test_bar_lets_through_what_is_a_decision_and_not_forgotten() -> None:
    """The others are named, and stay where they are however often one tries."""
    broker = await broker_with_letters()
    held = [Fate.FORGOTTEN, Fate.UNREADABLE, Fate.UNREADABLE]
    before = len(broker.logs[PLACE])
    assert sorted(held + [Fate.REPLAYED], key=str) == sorted(await replayed(broker, DecisionBar(broker)), key=str)
    assert [Fate.BEFORE, *held] == await replayed(broker, DecisionBar(broker))
    assert before + 1 == len(broker.logs[PLACE])
    assert broker.logs[PLACE][0].value == broker.logs[PLACE][-1].value


async def test_without_the_bar_verify_finds_more_and_the_forgotten_are_back() -> None:
    """Ablation: every letter is published."""
    broker = await broker_with_letters()
    red = len((await check_partition(broker.reader(), 1)).broken)
    await replayed(broker, None)
    assert red < len((await check_partition(broker.reader(), 1)).broken)
    assert encode(written(1)) in [record.value for record in broker.logs[PLACE][5:]]


async def test_bar_learns_at_each_look_what_was_forgotten_by_then() -> None:
    """A person who is asked before it goes on may take an hour."""
    broker = await broker_with_letters()
    bar = DecisionBar(broker)
    replaying = DeadReplay(broker, f"{DECISIONS}.dead", DECISIONS, lambda letter: True, bar=bar)
    assert Fate.WAITING in [outcome.fate async for outcome in replaying.survey()]
    broker.append(DECISIONS, b"{}", decision_key(written(0).writer, 0), 1, 0, forgotten_headers((), START_MS))
    assert Fate.REPLAYED not in [outcome.fate async for outcome in replaying.run()]
