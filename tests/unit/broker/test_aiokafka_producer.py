"""The producer over aiokafka without a broker: lanes, batches, refusals, and what becomes of records that nobody takes."""

import asyncio
from collections.abc import Sequence
from typing import Any, cast

import pytest
from aiokafka.errors import InvalidTimestampError, TopicAuthorizationFailedError
from hypothesis import given
from hypothesis.strategies import lists, sampled_from

from app.broker.aiokafka import producer as module
from app.broker.aiokafka.cluster import Cluster
from app.broker.aiokafka.producer import AioKafkaProducer, Lane, Topic
from app.broker.aiokafka.sessions import Outgoing, Sessions
from app.broker.base import Confirmation
from app.broker.limits import NO_LIMIT_MS, Limits
from app.core.clock import ManualClock, run_virtual
from app.core.errors import RecordTooEarly, Rejected, Unavailable

LIMITS = Limits(max_bytes=1_000, max_ahead_ms=NO_LIMIT_MS)


class Sink:
    """Stands for the sessions: refuses a batch with a bad record in it, as a broker does; `gate` holds batches up."""

    def __init__(self) -> None:
        self.batches: list[list[bytes]] = []
        self.error: Exception | None = None
        self.gate = asyncio.Event()
        self.gate.set()

    async def current(self) -> None: ...

    async def close(self) -> None: ...

    async def send(self, topic: str, partition: int, records: Sequence[Outgoing]) -> int:
        await asyncio.sleep(0.01)
        await self.gate.wait()
        if self.error is not None:
            raise self.error
        values = [record.value or b"" for record in records]
        if b"bad" in values:
            raise InvalidTimestampError
        before = sum(map(len, self.batches))
        self.batches.append(values)
        return before

    def values(self) -> list[bytes]:
        return [value for batch in self.batches for value in batch]


class Bench:
    """A started producer for one topic, and where its batches end."""

    def __init__(self, partitions: int = 1) -> None:
        self.sink = Sink()
        self.producer = AioKafkaProducer(Cluster("aiokafka://127.0.0.1:1"), ManualClock())
        self.producer._sessions = cast(Sessions, self.sink)
        self.producer._topics["t"] = Topic("t", LIMITS, partitions)

    async def start(self) -> "Bench":
        await self.producer.start()
        return self


def record(size: int) -> Outgoing:
    return Outgoing(b"x" * size, b"k", 1, (), None, 1.0)


def run(scenario: Any) -> Any:
    return run_virtual(lambda clock: scenario(), start_ms=0)


@given(lists(sampled_from([b"good", b"bad"]), max_size=60))
def test_deliver_bad_records_among_others_only_they_fail(values: list[bytes]) -> None:
    """Whatever a batch holds: the good ones arrive once and in order, each bad one is told once, and none is forgotten."""

    async def scenario() -> None:
        bench = await Bench().start()
        named = [value if value == b"bad" else b"%d" % number for number, value in enumerate(values)]
        await bench.producer.send_many("t", [(value, b"k", 1) for value in named])
        failures = await bench.producer.flush()
        assert [value for value in named if value != b"bad"] == bench.sink.values()
        assert [RecordTooEarly] * named.count(b"bad") == [type(failure.error) for failure in failures]
        statistics = bench.producer.statistics()
        assert (len(values), named.count(b"bad"), 0) == (statistics.sent, statistics.failed, statistics.queued)
        await bench.producer.close()

    run(scenario)


def test_next_batch_stays_within_what_the_topic_takes() -> None:
    """Batches hold as much as fits, in order; one record that fills the topic's limit travels alone."""
    lane = Lane("t", 0, LIMITS)
    sizes = [300, 300, 300, 900, 10, 10]
    lane.waiting.extend(map(record, sizes))
    batches = []
    while lane.waiting:
        batches.append([len(each.value or b"") for each in lane.next_batch()])
    assert [[300, 300], [300], [900], [10, 10]] == batches


def test_confirm_says_partition_and_offset_of_its_own_record() -> None:
    """Records that travel together have each their own place."""

    async def scenario() -> None:
        bench = await Bench(partitions=2).start()
        answers = await asyncio.gather(*(bench.producer.confirm("t", b"%d" % n, partition=1) for n in range(5)))
        assert [Confirmation(1, offset) for offset in range(5)] == answers
        assert 5 == bench.producer.statistics().acknowledged
        with pytest.raises(Rejected, match="unknown partition"):
            await bench.producer.confirm("t", b"v", partition=2)
        await bench.producer.close()

    run(scenario)


def test_delivery_timeout_fails_what_nobody_took() -> None:
    """After the timeout flush says so, a waiting confirm too, and what comes later is delivered."""

    async def scenario() -> None:
        bench = await Bench().start()
        bench.sink.gate.clear()
        await bench.producer.send("t", b"lost")
        waiting = asyncio.ensure_future(bench.producer.confirm("t", b"lost too"))
        with pytest.raises(Unavailable, match="60 s"):
            await bench.producer.flush()
        with pytest.raises(Unavailable):
            await waiting
        bench.sink.gate.set()
        await bench.producer.send("t", b"later")
        assert [] == await bench.producer.flush()
        assert [b"later"] == bench.sink.values()
        assert (3, 1, 2, 0) == tuple(vars_of(bench.producer))
        await bench.producer.close()

    run(scenario)


def vars_of(producer: AioKafkaProducer) -> list[int]:
    statistics = producer.statistics()
    return [statistics.sent, statistics.acknowledged, statistics.failed, statistics.queued]


def test_session_that_does_not_open_is_tried_until_the_records_are_due() -> None:
    """A broker that is away for a while costs nothing; one that refuses us is told at once."""

    async def scenario() -> None:
        bench = await Bench().start()
        bench.sink.error = Unavailable("no broker answers")
        await bench.producer.send("t", b"patient")
        await asyncio.sleep(30)
        assert 1 == bench.producer.statistics().queued
        bench.sink.error = None
        assert [] == await bench.producer.flush()
        assert [b"patient"] == bench.sink.values()
        bench.sink.error = TopicAuthorizationFailedError("t")
        await bench.producer.send("t", b"forbidden")
        with pytest.raises(Rejected):
            await bench.producer.flush()
        bench.sink.error = AssertionError("unrecognized partition")
        with pytest.raises(Rejected, match="unrecognized"):
            await bench.producer.confirm("t", b"unexpected")
        await bench.producer.close()

    run(scenario)


def test_full_queue_try_send_says_so_and_send_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    """A full queue is no error: try_send returns False, the others wait, nothing is lost."""
    monkeypatch.setattr(module, "QUEUED_RECORDS", 10)

    async def scenario() -> None:
        bench = await Bench().start()
        taken = [bench.producer.try_send("t", b"burst") for _ in range(30)]
        assert 10 == taken.count(True)
        for _ in range(30):
            await bench.producer.send("t", b"waited")
        assert 30 == await bench.producer.send_many("t", [(b"many", None, 1)] * 30)
        await asyncio.gather(*(bench.producer.confirm("t", b"confirmed") for _ in range(30)))
        assert [] == await bench.producer.flush()
        assert 100 == len(bench.sink.values())
        await bench.producer.close()

    run(scenario)


def test_flush_ends_under_a_steady_stream() -> None:
    """A flush is for what was sent before it, so those who go on sending cannot hold it up."""

    async def scenario() -> None:
        bench = await Bench().start()

        async def stream() -> None:
            while True:
                await bench.producer.send("t", b"v")
                await asyncio.sleep(0.001)

        streaming = asyncio.ensure_future(stream())
        await asyncio.sleep(0.1)
        async with asyncio.timeout(0.1):
            assert [] == await bench.producer.flush()
        streaming.cancel()
        await bench.producer.close()

    run(scenario)


def test_close_without_a_broker_says_how_many_are_lost() -> None:
    """Closing waits ten seconds, then gives up; who awaits an acknowledgement is told."""

    async def scenario() -> None:
        bench = await Bench().start()
        bench.sink.gate.clear()
        await bench.producer.send("t", b"v")
        waiting = asyncio.ensure_future(bench.producer.confirm("t", b"v"))
        await asyncio.sleep(0.001)
        with pytest.raises(Unavailable, match="2 records"):
            await bench.producer.close()
        with pytest.raises(Unavailable, match="ended"):
            await waiting
        await bench.producer.close()

    run(scenario)
