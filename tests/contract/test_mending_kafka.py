"""An engine on a real cluster counts its own table records, and sees at once what somebody else has written there."""

import asyncio
from collections.abc import Sequence

import pytest

from app.broker.base import Broker, Reader
from app.broker.kafka import KafkaBroker
from app.core.clock import SystemClock
from app.core.record import TopicPartition
from app.streams import engine as engine_module
from app.streams.engine import Engine
from app.streams.expressions import col
from app.streams.graph import Topic, count, total
from app.streams.mending import Tail, read_tails
from app.streams.outputs import topics_of
from app.streams.pipelines import Pipeline
from features.records import OrderEvent
from tests.contract.conftest import read_range

pytestmark = pytest.mark.kafka

ORDERS = Topic("mended.orders", OrderEvent, key="user_id", out_of_orderness="5s", partitions=1)
PIPELINES: dict[str, Pipeline] = {
    "mended": ORDERS.tumbling("1h").aggregate(n=count(), usd=total(col.amount_usd)).to("features.mended"),
    "mended_view": ORDERS.live("5m", tile="30s").aggregate(n=count()).serve("mended_view"),
}
TABLE = TopicPartition("state.mended", 0)


async def last_value(broker: Broker, part: bytes) -> tuple[bytes | None, bytes | None]:
    """The table's last entry, once its value contains this."""
    reader = broker.reader()
    try:
        while True:
            end = (await reader.end_offsets([TABLE]))[TABLE]
            records = await read_range(reader, TABLE, 0, end)
            entries = [record for record in records if b"progress" not in (record.key or b"")]
            if entries and part in (entries[-1].value or b""):
                return entries[-1].key, entries[-1].value
            await asyncio.sleep(0.1)
    finally:
        await reader.close()


async def test_engine_on_kafka_finds_only_what_others_wrote(
    kafka_address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Alone it reads nothing back, however often it looks; an older value behind its own is overwritten."""
    monkeypatch.setattr(engine_module, "CHECK_S", 0.5)
    found: list[int] = []

    async def counted(tails: Sequence[Tail], reader: Reader) -> list[Tail]:
        found.append(sum(tail.foreign for tail in tails))
        return await read_tails(tails, reader)

    monkeypatch.setattr(engine_module, "read_tails", counted)
    clock = SystemClock()
    broker = KafkaBroker(kafka_address, clock)
    admin, producer = broker.admin(), broker.producer()
    specs = topics_of([ORDERS.source], PIPELINES)
    await admin.delete([spec.name for spec in specs])
    await admin.create(specs)
    await producer.start()
    stopping = asyncio.Event()
    engine = Engine(broker, [ORDERS.source], PIPELINES, clock, "mended.streams")
    value = '{"order_id":"o%d","user_id":"u1","amount_usd":2.50,"status":"placed","timestamp":"2026-01-01T00:00:00Z"}'
    now_ms = clock.now_ms() // 3_600_000 * 3_600_000 + 1
    try:
        async with asyncio.timeout(60), asyncio.TaskGroup() as tasks:
            tasks.create_task(engine.run(stopping))
            for number in range(30):
                await producer.confirm(
                    "mended.orders", (value % number).encode(), b"u1", partition=0, timestamp_ms=now_ms
                )
                await asyncio.sleep(0.1)
            key, newest = await last_value(broker, b'"n":30')
            assert [] == found
            await producer.confirm(TABLE.topic, b'{"version":0,"n":1,"usd":2.50}', key, partition=0)
            assert (key, newest) == await last_value(broker, b'"n":30')
            stopping.set()
    finally:
        for client in (producer, admin, broker):
            await client.close()
    assert ([1], 1) == (found, engine.statistics.mended)
