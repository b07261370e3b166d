"""What an agent has spent today is found in a real log: from its end, however much others have written since."""

import pytest

from app.broker.kafka import KafkaBroker
from app.broker.topics import TopicSpec
from app.core.clock import SystemClock
from app.core.instants import instant
from app.decisions import decided
from app.models.budget import SPENT, Spent

pytestmark = pytest.mark.kafka

CLOCK = SystemClock()


async def test_spent_today_is_found_behind_five_thousand_decisions_of_others(
    kafka_address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The larger of two, of today, in the right partition and mode."""
    topic = "spending.decisions"
    monkeypatch.setattr(decided, "DECISIONS", topic)
    today = instant(CLOCK.now_ms()).date().isoformat()
    broker = KafkaBroker(kafka_address, CLOCK)
    admin, producer, reader = broker.admin(), broker.producer(), broker.reader()
    await admin.create([TopicSpec(name=topic, partitions=2)])
    await producer.start()

    async def write(agent: str, tokens: int, partition: int = 1, mode: str = "live") -> None:
        spent = Spent(today, tokens, tokens * 3).encode()
        headers = (("agent", agent.encode()), ("mode", mode.encode()), (SPENT, spent))
        await producer.send(topic, b"{}", b"k", partition=partition, headers=headers)

    try:
        for tokens in (100, 300, 200):
            await write("judge", tokens)
        await write("judge", 900, partition=0)
        await write("judge", 900, mode="shadow")
        for number in range(5_000):
            await write("other", number)
        assert [] == await producer.flush()
        assert Spent(today, 300, 900) == await decided.spent_today(reader, CLOCK, "judge", "live", 1)
        assert await decided.spent_today(reader, CLOCK, "nobody", "live", 1) is None
    finally:
        await producer.close()
        await reader.close()
        await admin.close()
