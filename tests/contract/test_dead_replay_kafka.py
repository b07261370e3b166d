"""Dead letters on a real cluster: cut off by the gate's words, published again, remembered."""

import pytest

from app.broker.dead_letters import DeadLetters, read_letters
from app.broker.dead_replay import DeadReplay, Fate
from app.broker.kafka import KafkaBroker
from app.broker.topics import TopicSpec, dead_letters_of
from app.core.clock import SystemClock
from app.core.record import Record, TopicPartition
from tests.contract.conftest import read_range

pytestmark = pytest.mark.kafka


async def test_dead_replay_on_kafka_publishes_each_letter_once(kafka_address: str) -> None:
    """Bytes, key, time and headers come back as they were; a second replay finds its notes. One into a topic that is gone
    had been begun before."""
    source = TopicSpec(name="replayed.orders", partitions=2, time="event", max_ahead_ms=60_000)
    broker = KafkaBroker(kafka_address, SystemClock())
    admin, producer, reader = broker.admin(), broker.producer(), broker.reader()
    await admin.delete([source.name, f"{source.name}.dead"])
    await admin.create([source, dead_letters_of(source)])
    await producer.start()
    letters = DeadLetters(producer, "g")
    for offset in range(3):
        headers = (("alert_type", b"x"), ("odd", b"\xff"))
        await letters.write(Record(source.name, 1, offset, 1_000 + offset, b"u-1", b"\xff%d" % offset, headers), "bad")
    gone = (
        ("replay_of", b"0"),
        ("state", b"begun"),
        ("topic", b"replayed.gone"),
        ("partition", b"0"),
        ("offset", b"0"),
    )
    await producer.confirm(f"{source.name}.dead", None, None, partition=1, headers=gone)
    found = []
    for _ in range(2):
        replaying = DeadReplay(broker, f"{source.name}.dead", source.name, lambda letter: True)
        found.append([outcome.fate async for outcome in replaying.run()])
        await replaying.close()
    assert [[Fate.REPLAYED] * 3, [Fate.BEFORE] * 3] == found
    place = TopicPartition(source.name, 1)
    end = (await reader.end_offsets([place]))[place]
    records = await read_range(reader, place, 0, end)
    assert [(b"u-1", b"\xff%d" % number, 1_000 + number) for number in range(3)] == [
        (record.key, record.value, record.timestamp_ms) for record in records
    ]
    assert (("alert_type", b"x"), ("odd", b"\xff")) == records[0].headers[:2]
    assert ["published"] * 3 == [letter.replay async for letter in read_letters(reader, f"{source.name}.dead", 2, 10)]
    for client in (producer, reader, admin):
        await client.close()
    await broker.close()
