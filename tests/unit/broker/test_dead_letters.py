"""Dead letters: what is kept of a record that could not be handled, and how it is read back."""

from hashlib import sha256

from app.broker.dead_letters import DeadLetters, Letter, letter_of, read_letters
from app.broker.memory import MemoryBroker
from app.broker.topics import TopicSpec, dead_letters_of
from app.core.clock import ManualClock
from app.core.record import Record, TopicPartition

SOURCE = TopicSpec(name="raw.orders", partitions=2)
BAD = Record("raw.orders", 1, 17, 1_700_000_000_000, b"u-1", b"\xff{")


async def broker_with_topics() -> MemoryBroker:
    broker = MemoryBroker(ManualClock())
    await broker.admin().create([SOURCE, dead_letters_of(SOURCE)])
    return broker


async def letters(broker: MemoryBroker, newest: int = 100) -> list[Letter]:
    return [letter async for letter in read_letters(broker.reader(), "raw.orders.dead", 2, newest)]


async def test_write_keeps_original_bytes_place_and_reason() -> None:
    """Key and value are untouched; the rest is in the headers, the reason in one line."""
    broker = await broker_with_topics()
    confirmation = await DeadLetters(broker.producer(), "headrace.streams").write(BAD, "not\nJSON")
    assert 1 == confirmation.partition
    (letter,) = await letters(broker)
    assert (b"u-1", b"\xff{", "not JSON") == (letter.key, letter.value, letter.reason)
    assert ("raw.orders", 1, 17, "headrace.streams") == letter.identity
    assert BAD.timestamp_ms == letter.timestamp_ms
    assert ("raw.orders.dead", 1, 0) == letter.lies_at
    assert letter.length is None


async def test_write_value_too_large_keeps_its_beginning_length_and_hash() -> None:
    """What even the dead-letter topic does not take is cut to 64 KiB and stays recognizable."""
    broker = await broker_with_topics()
    value = bytes(range(256)) * 5_000
    await DeadLetters(broker.producer(), "g").write(Record("raw.orders", 0, 3, 1, b"k", value), "too large")
    (letter,) = await letters(broker)
    assert value[:65_536] == letter.value
    assert (len(value), sha256(value).hexdigest()) == (letter.length, letter.sha256)


async def test_read_letters_repeated_after_a_crash_are_one() -> None:
    """A record that died twice in one group is listed once, with the last reason; another group's is its own."""
    broker = await broker_with_topics()
    for group, reason in (("a", "first"), ("a", "again"), ("b", "too")):
        await DeadLetters(broker.producer(), group).write(BAD, reason)
    assert [("a", "again"), ("b", "too")] == [(letter.group, letter.reason) for letter in await letters(broker)]


async def test_read_letters_without_an_original_place_stay_apart() -> None:
    """Rows of a file never had an offset; each of their letters counts."""
    broker = await broker_with_topics()
    for _ in range(2):
        await DeadLetters(broker.producer(), "replay").write(Record("raw.orders", 0, -1, -1, None, b"x"), "bad row")
    assert 2 == len(await letters(broker))


async def test_read_letters_returns_the_newest_of_each_partition() -> None:
    """A long topic is not held in memory whole."""
    broker = await broker_with_topics()
    for offset in range(10):
        await DeadLetters(broker.producer(), "g").write(Record("raw.orders", 0, offset, 1, b"k", b"x"), "bad")
    assert [7, 8, 9] == [letter.offset for letter in await letters(broker, newest=3)]


async def test_letter_of_foreign_record_is_shown_as_far_as_it_goes() -> None:
    """Headers that are missing or odd do not hide the letter."""
    record = Record("raw.orders.dead", 0, 5, 1, None, None, (("offset", b"x\xff"), ("file", b"a.csv")))
    letter = letter_of(record)
    assert ("raw.orders", -1, "", {"file": "a.csv"}) == (letter.topic, letter.offset, letter.reason, letter.more)
    assert (*TopicPartition("raw.orders.dead", 0), 5, "") == letter.identity
