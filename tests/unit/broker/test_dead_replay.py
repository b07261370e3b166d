"""Dead letters published again: as they were, each record once, whatever breaks off."""

from collections.abc import AsyncIterator, Callable

import pytest

from app.broker.base import Confirmation
from app.broker.dead_letters import COUNTED, DeadLetters, Letter, read_letters
from app.broker.dead_replay import DeadReplay, Fate, Outcome
from app.broker.memory import Fault, MemoryBroker, MemoryReader
from app.broker.topics import TopicSpec, dead_letters_of
from app.core.clock import ManualClock
from app.core.errors import SetupError, Unavailable
from app.core.record import Headers, Record, TopicPartition

NOW_MS = 1_700_000_000_000
SOURCE = TopicSpec(name="raw.orders", partitions=2, time="event", max_ahead_ms=60_000)
OTHER = TopicSpec(name="other", partitions=3)

Chosen = Callable[[Letter], bool]


def every(letter: Letter) -> bool:
    return True


def about(offset: int) -> Chosen:
    """The letters about the record at that offset."""
    return lambda letter: letter.offset == offset


async def new_broker() -> MemoryBroker:
    broker = MemoryBroker(ManualClock(NOW_MS))
    await broker.admin().create([SOURCE, dead_letters_of(SOURCE), OTHER])
    return broker


async def bury(
    broker: MemoryBroker,
    offset: int,
    *,
    headers: Headers = (),
    partition: int = 1,
    group: str = "g",
    at_ms: int = NOW_MS,
) -> Confirmation:
    record = Record("raw.orders", partition, offset, at_ms, b"u-1", b"\xff%d" % offset, headers)
    return await DeadLetters(broker.producer(), group).write(record, f"bad {offset}")


async def replay(
    broker: MemoryBroker, *, target: str = "raw.orders", again: bool = False, chosen: Chosen = every
) -> list[Outcome]:
    replaying = DeadReplay(broker, "raw.orders.dead", target, chosen, again=again)
    return [outcome async for outcome in replaying.run()]


async def break_off(broker: MemoryBroker, chosen: Chosen, *, target: str = "other", answer_lost: bool = False) -> None:
    """A replay of one letter that ends behind its first note, before or after its record."""
    broker.plan(Fault("confirm", "delay"))
    broker.plan(Fault("confirm", "drop" if answer_lost else "fail"))
    with pytest.raises(Unavailable):
        await replay(broker, target=target, chosen=chosen)


def notes(broker: MemoryBroker) -> list[bytes]:
    log = broker.logs[TopicPartition("raw.orders.dead", 1)]
    return [record.header("state") or b"" for record in log if record.header("replay_of") is not None]


def fates(outcomes: list[Outcome]) -> list[Fate]:
    return [outcome.fate for outcome in outcomes]


def source(broker: MemoryBroker, partition: int = 1) -> list[Record]:
    return broker.logs[TopicPartition("raw.orders", partition)]


async def test_replay_publishes_bytes_key_time_and_headers_as_they_were() -> None:
    """In the partition where the record was, with where it was a letter and how often."""
    broker = await new_broker()
    await bury(broker, 17, headers=(("reason", b"own"), ("x", b"\xfe"), ("x", b"2")), at_ms=NOW_MS - 5)
    (outcome,) = await replay(broker)
    (record,) = source(broker)
    assert (Fate.REPLAYED, "raw.orders/1/0") == (outcome.fate, outcome.place)
    assert (b"u-1", b"\xff17", NOW_MS - 5) == (record.key, record.value, record.timestamp_ms)
    assert (("reason", b"own"), ("x", b"\xfe"), ("x", b"2")) == record.headers[:3]
    assert (("replayed_from", b"raw.orders.dead/1/0"), ("replays", b"1")) == record.headers[3:]


async def test_replay_of_a_replayed_letter_does_nothing_unless_again() -> None:
    """A note in the dead-letter topic remembers it; notes are no letters."""
    broker = await new_broker()
    await bury(broker, 17)
    found = [fates(await replay(broker)), fates(await replay(broker)), fates(await replay(broker, again=True))]
    assert [[Fate.REPLAYED], [Fate.BEFORE], [Fate.REPLAYED]] == found
    (letter,) = [letter async for letter in read_letters(broker.reader(), "raw.orders.dead", 2, 100)]
    assert "published" == letter.replay
    assert 2 == len(source(broker))


async def test_replay_letters_about_one_record_publish_it_once() -> None:
    """Several groups, or one before and after a crash; also a letter that was written again after the replay."""
    broker = await new_broker()
    for group in ("a", "b", "b"):
        await bury(broker, 17, group=group)
    assert [Fate.REPEATED, Fate.REPEATED, Fate.REPLAYED] == fates(await replay(broker))
    await bury(broker, 17, group="b")
    assert Fate.REPLAYED not in fates(await replay(broker))
    assert 1 == len(source(broker))


async def test_replay_that_fails_again_is_a_new_letter_that_counts() -> None:
    """It is replayed anew, and says how often that was tried."""
    broker = await new_broker()
    await bury(broker, 17)
    for _ in range(2):
        await replay(broker)
        await DeadLetters(broker.producer(), "g").write(source(broker)[-1], "bad still")
    letters = [letter async for letter in read_letters(broker.reader(), "raw.orders.dead", 2, 100)]
    assert [0, 1, 2] == [letter.replays for letter in letters]
    assert ["published", "published", ""] == [letter.replay for letter in letters]
    assert 1 == sum(name == "replays" for name, _ in letters[-1].headers)


@pytest.mark.parametrize("call", range(1, 10))
async def test_replay_that_broke_off_anywhere_is_finished_by_the_next(call: int) -> None:
    """Before a write, or after it and before its answer: nothing is lost and nothing twice."""
    broker = await new_broker()
    for offset in range(3):
        await bury(broker, offset)
    for _ in range(call - 1):
        broker.plan(Fault("confirm", "delay"))
    broker.plan(Fault("confirm", "drop" if call % 2 else "fail"))
    with pytest.raises(Unavailable):
        await replay(broker)
    await replay(broker)
    assert [b"\xff0", b"\xff1", b"\xff2"] == sorted(record.value or b"" for record in source(broker))


async def test_replay_cut_letters_and_rows_of_files_are_not_published() -> None:
    """What is not whole must not look as if it were; what never was a record has its file."""
    broker = await new_broker()
    large = Record("raw.orders", 0, 3, NOW_MS, b"k", b"x" * 1_200_000)
    await DeadLetters(broker.producer(), "g").write(large, "too large")
    await DeadLetters(broker.producer(), "g").write(Record("raw.orders", 0, -1, -1, None, b"row"), "bad row")
    many = Record("raw.orders", 0, 4, NOW_MS, b"k", b"x", tuple((f"h{number}", b"") for number in range(200_000)))
    await DeadLetters(broker.producer(), "g").write(many, "odd")
    assert [Fate.CUT, Fate.NO_RECORD, Fate.CUT] == fates(await replay(broker))
    assert [] == source(broker, 0)


async def test_replay_record_that_took_its_part_goes_to_another_topic_alone() -> None:
    """Where it came from its event is in every count already; elsewhere it is new."""
    broker = await new_broker()
    record = Record("raw.orders", 1, 17, NOW_MS, b"u-1", b"order")
    await DeadLetters(broker.producer(), "g").write(record, f"{COUNTED}its alert is too large")
    assert [Fate.COUNTED] == fates(await replay(broker, again=True))
    assert [] == source(broker)
    assert [Fate.REPLAYED] == fates(await replay(broker, target="other"))


async def test_replay_foreign_record_is_no_letter_and_hides_none() -> None:
    """Anybody may write into the topic, also something that names the place of a record."""
    broker = await new_broker()
    await bury(broker, 17)
    broker.append("raw.orders.dead", b"hello", b"k", 1, 0, ())
    broker.append(
        "raw.orders.dead", b"hello", b"k", 1, 0, (("topic", b"raw.orders"), ("partition", b"1"), ("offset", b"17"))
    )
    assert [Fate.NO_LETTER, Fate.NO_LETTER, Fate.REPLAYED] == fates(await replay(broker))
    assert [b"\xff17"] == [record.value for record in source(broker)]


async def test_replay_record_that_the_topic_refuses_is_said_and_the_others_go() -> None:
    """A time too far ahead is refused by the broker; the letter stays one that can be tried again."""
    broker = await new_broker()
    await bury(broker, 1, at_ms=NOW_MS + 100_000)
    await bury(broker, 2)
    refused, replayed = await replay(broker)
    assert (Fate.REFUSED, Fate.REPLAYED) == (refused.fate, replayed.fate)
    assert "in the future" in refused.detail
    assert [b"begun", b"begun", b"refused", b"published"] == notes(broker)
    assert {Fate.REFUSED, Fate.BEFORE} == set(fates(await replay(broker)))


async def test_replay_to_another_topic_places_by_key() -> None:
    """Its partitions are its own."""
    broker = await new_broker()
    await bury(broker, 1)
    (outcome,) = await replay(broker, target="other")
    assert outcome.place is not None
    assert outcome.place.startswith("other/")
    assert [] == source(broker)


async def test_survey_writes_nothing_and_foreign_notes_are_named() -> None:
    """What would be done is what is then done."""
    broker = await new_broker()
    await bury(broker, 1)
    size = sum(map(len, broker.logs.values()))
    replaying = DeadReplay(broker, "raw.orders.dead", "raw.orders", lambda letter: True)
    assert [Fate.WAITING] == [outcome.fate async for outcome in replaying.survey()]
    assert size == sum(map(len, broker.logs.values()))
    broker.append("raw.orders.dead", None, None, 0, 0, (("replay_of", b"x"),))
    with pytest.raises(SetupError, match="no note of a replay"):
        await replay(broker)
    with pytest.raises(SetupError, match="does not exist"):
        await replay(broker, target="nowhere")


async def test_replay_asks_nothing_about_letters_that_are_not_chosen() -> None:
    """Where theirs were going may be gone, or be nobody's to see."""
    broker = await new_broker()
    await bury(broker, 1)
    await bury(broker, 2)
    await break_off(broker, about(1))
    await broker.admin().delete(["other"])
    assert [Fate.REPLAYED] == fates(await replay(broker, chosen=about(2)))


@pytest.mark.parametrize("partitions", [None, 1, 3])
async def test_replay_into_a_topic_that_is_gone_or_made_anew_has_not_arrived(partitions: int | None) -> None:
    """The record went with the topic; one of fewer partitions may lack the one it was in."""
    broker = await new_broker()
    await bury(broker, 1)
    await break_off(broker, about(1), answer_lost=True)
    await broker.admin().delete(["other"])
    if partitions is not None:
        await broker.admin().create([TopicSpec(name="other", partitions=partitions)])
    assert [Fate.REPLAYED] == fates(await replay(broker))
    assert [Fate.BEFORE] == fates(await replay(broker))


async def test_replay_finds_what_arrived_under_another_letter_about_the_same_record() -> None:
    """The letter that was replayed need not be among those that are chosen."""
    broker = await new_broker()
    for group in ("a", "b"):
        await bury(broker, 1, group=group)
    await break_off(broker, lambda letter: letter.group == "a", target="raw.orders", answer_lost=True)
    assert [Fate.BEFORE] == fates(await replay(broker, chosen=lambda letter: letter.group == "b"))


async def test_replay_reads_each_topic_once_and_nothing_for_letters_that_were_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """From where the first of those that broke off would lie, up to the end."""
    broker = await new_broker()
    for offset in (1, 2, 3):
        await bury(broker, offset)
    await bury(broker, 4, at_ms=NOW_MS + 100_000)
    await replay(broker, chosen=about(4))
    await break_off(broker, about(1), target="raw.orders", answer_lost=True)
    await break_off(broker, about(2), target="raw.orders")
    read: list[tuple[TopicPartition, int]] = []
    whole = MemoryReader.read

    def noted(self: MemoryReader, place: TopicPartition, start: int, stop: int) -> AsyncIterator[list[Record]]:
        if place.topic != "raw.orders.dead":
            read.append((place, start))
        return whole(self, place, start, stop)

    monkeypatch.setattr(MemoryReader, "read", noted)
    assert [Fate.REFUSED] == fates(await replay(broker, chosen=about(4)))
    assert [] == read
    assert {Fate.BEFORE, Fate.REPLAYED, Fate.REFUSED} == set(fates(await replay(broker)))
    assert [(TopicPartition("raw.orders", 1), 0)] == read
