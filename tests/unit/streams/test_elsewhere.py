"""A worker whose streams run on Flink: bad records still become dead letters, and features still say up to when they are."""

import asyncio
import json

from app.broker.base import Assignment, CommittedOffset
from app.broker.memory import MemoryBroker
from app.core.clock import Clock, ManualClock, run_virtual
from app.core.record import TopicPartition
from app.streams.elsewhere import Elsewhere
from app.streams.outputs import topics_of
from app.streams.pipelines import fingerprint, pipelines_in
from features import fraud

START_MS = 1_800_000_000_000
GROUP, FLINK = "test.streams", "test.flink"
PLACE = TopicPartition("raw.orders", 0)
PIPELINES = pipelines_in(fraud)
ORDER = b'{"order_id":"o1","user_id":"u1","amount_usd":20000,"status":"placed","timestamp":"2026-01-01T00:00:00Z"}'


class Flink:
    """Commits what it is told; owns every partition of its group."""

    def __init__(self, broker: MemoryBroker) -> None:
        self._consumer = broker.consumer(FLINK, ["raw.orders"], self)

    async def on_assigned(self, assignments: object) -> None: ...

    async def on_revoked(self, assignments: object) -> None: ...

    async def on_lost(self, assignments: object) -> None: ...

    async def start(self) -> None:
        await self._consumer.start()
        await self._consumer.poll(1, 1)

    async def commit(self, offset: int) -> None:
        held: Assignment = next(one for one in self._consumer.assignments() if one.place == PLACE)
        await self._consumer.commit({held: CommittedOffset(offset)})


def progress_in(broker: MemoryBroker) -> list[dict[str, int]]:
    view = PIPELINES["user_features"]
    records = broker.logs[TopicPartition("features.user_features", 0)]
    assert {fingerprint(view).encode()} >= {record.header("fingerprint") for record in records}
    return [json.loads(record.value or b"") for record in records]


def test_elsewhere_progress_is_what_flink_has_committed() -> None:
    """Not what the gates have read: until Flink has committed beyond an end that was seen, nobody claims anything."""

    async def main(clock: Clock) -> None:
        broker = MemoryBroker(ManualClock(START_MS + 10**9))
        await broker.admin().create(topics_of([fraud.orders.source], PIPELINES))
        flink, stopping = Flink(broker), asyncio.Event()
        await flink.start()
        broker.append("raw.orders", ORDER, b"u1", 0, START_MS, ())
        broker.append("raw.orders", b"{", b"u1", 0, START_MS, ())
        elsewhere = Elsewhere(broker, [fraud.orders.source], PIPELINES, clock, GROUP, FLINK)
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(elsewhere.run(stopping))
            await asyncio.sleep(3.5)
            assert [] == progress_in(broker)
            await flink.commit(1)
            await asyncio.sleep(3)
            assert [] == progress_in(broker), "one record of those that were there is not in the tiles"
            await flink.commit(2)
            await asyncio.sleep(3)
            stopping.set()
        first = progress_in(broker)[0]
        assert START_MS < first["as_of"] <= START_MS + 10_000
        assert 2 == first["offset"]
        assert 2 == broker.groups[GROUP].committed[PLACE].offset
        assert 1 == len(broker.logs[TopicPartition("raw.orders.dead", 0)])
        assert [] == broker.logs[TopicPartition("state.order_rate", 0)]
        assert not any(log for place, log in broker.logs.items() if place.topic == "processed.alerts")

    run_virtual(main, START_MS)
