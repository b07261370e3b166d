"""Sessions over a client that behaves as the library does: it keeps a batch until the broker takes it, or it is ended."""

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest

from app.broker.aiokafka.cluster import Cluster
from app.broker.aiokafka.producer import AioKafkaProducer, Topic
from app.broker.aiokafka.sessions import Sessions
from app.broker.base import Confirmation
from app.broker.limits import NO_LIMIT_MS, Limits
from app.core.clock import ManualClock, run_virtual
from app.core.errors import Unavailable


class Log:
    """What was written, while the broker is there."""

    def __init__(self) -> None:
        self.is_up = True
        self.clients: list[Client] = []
        self.written: list[bytes] = []


class Client:
    """Looks for the broker again and again; the first one less often, so that it comes after its successor."""

    def __init__(self, log: Log) -> None:
        self._log = log
        self._closed = False
        self._delivering: set[asyncio.Task[None]] = set()
        self._sender = self.client = SimpleNamespace(close=self._close)
        self._pause_s = 0.1 if log.clients else 0.3
        log.clients.append(self)

    async def _close(self) -> None:
        for task in self._delivering:
            task.cancel()

    def create_batch(self) -> Any:
        values: list[bytes] = []
        return SimpleNamespace(append=lambda **record: values.append(record["value"]), values=values)

    async def send_batch(self, batch: Any, topic: str, partition: int) -> asyncio.Future[Any]:
        answer: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._delivering.add(asyncio.create_task(self._deliver(batch.values, answer)))
        return answer

    async def _deliver(self, values: list[bytes], answer: asyncio.Future[Any]) -> None:
        while not self._log.is_up:  # noqa: ASYNC110 - as the library does
            await asyncio.sleep(self._pause_s)
        self._log.written += values
        if not answer.done():
            answer.set_result(SimpleNamespace(offset=len(self._log.written) - len(values)))


async def producer_on(log: Log) -> AioKafkaProducer:
    async def make() -> Any:
        return Client(log)

    producer = AioKafkaProducer(Cluster("aiokafka://127.0.0.1:1"), ManualClock(), delivery_timeout_ms=10_000)
    producer._sessions = Sessions(make)
    producer._topics["t"] = Topic("t", Limits(max_bytes=1_000, max_ahead_ms=NO_LIMIT_MS), 2)
    await producer.start()
    return producer


def test_sessions_batch_given_up_is_not_written_behind_its_successor() -> None:
    """Also where another partition keeps its client: what is under way there has failed, and may be written or not."""

    async def scenario(_: Any) -> None:
        log = Log()
        producer = await producer_on(log)
        log.is_up = False
        old = asyncio.ensure_future(producer.confirm("t", b"old", partition=0))
        await asyncio.sleep(6)
        neighbour = asyncio.ensure_future(producer.confirm("t", b"neighbour", partition=1))
        with pytest.raises(Unavailable, match="10 s"):
            await old
        new = asyncio.ensure_future(producer.confirm("t", b"new", partition=0))
        await asyncio.sleep(0.05)
        log.is_up = True
        assert Confirmation(0, 0) == await new
        with pytest.raises(Unavailable):
            await neighbour
        await asyncio.sleep(10)
        assert [b"new"] == log.written
        assert [True, False] == [client._closed for client in log.clients]
        await producer.close()

    run_virtual(scenario, 0)


def test_sessions_neighbours_have_a_moment_to_be_answered() -> None:
    """The end of one partition's patience costs nobody else a batch that the broker takes."""

    async def scenario(_: Any) -> None:
        log = Log()
        producer = await producer_on(log)
        log.is_up = False
        old = asyncio.ensure_future(producer.confirm("t", b"old", partition=0))
        await asyncio.sleep(6)
        neighbour = asyncio.ensure_future(producer.confirm("t", b"neighbour", partition=1))
        await asyncio.sleep(4.5)
        log.is_up = True
        assert 1 == (await neighbour).partition
        with pytest.raises(Unavailable):
            await old
        await producer.close()

    run_virtual(scenario, 0)
