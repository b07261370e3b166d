"""A broker that is killed: what is said, how long it takes, and that everything goes on when it is back."""

import asyncio
import os
import signal
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from pathlib import Path

import pytest

from app.broker.base import Assignment, CommittedOffset
from app.broker.kafka import KafkaBroker
from app.broker.kafka.producer import KafkaProducer
from app.broker.topics import TopicSpec
from app.core.clock import SystemClock
from app.core.errors import Unavailable
from app.local.services import own_directory, running, status, up
from tests.contract.conftest import Member

pytestmark = [pytest.mark.kafka, pytest.mark.slow]


class Killable:
    """A Kafka of this test's own."""

    def __init__(self, directory: Path, address: str) -> None:
        self.directory = directory
        self.broker = KafkaBroker(address, SystemClock())

    async def kill(self) -> None:
        (server,) = await asyncio.to_thread(status, self.directory)
        assert server.pid is not None
        os.kill(server.pid, signal.SIGKILL)

    async def restart(self) -> None:
        await asyncio.to_thread(up, self.directory, ["kafka"])


@pytest.fixture
def killable(kafka_address: str) -> Iterator[Killable]:
    """kafka_address: skips this where there is no Kafka."""
    with running(own_directory("gone"), ["kafka"]) as addresses:
        yield Killable(own_directory("gone"), addresses.kafka)


async def timed(call: Awaitable[object]) -> float:
    """Seconds until the call said that the server is unavailable."""
    began = time.monotonic()
    with pytest.raises(Unavailable):
        await call
    return time.monotonic() - began


async def test_broker_killed_and_back_nothing_is_lost_and_the_group_goes_on(killable: Killable) -> None:
    """Records sent while no broker is there arrive when it is back, and the consumer reads on without being told."""
    broker = killable.broker
    await broker.admin().create([TopicSpec(name="orders", partitions=2)])
    producer, member = broker.producer(), Member(broker, "group", ["orders"])
    await producer.start()
    await member.consumer.start()
    await producer.send("orders", b"before", b"k")
    await member.poll_until(lambda: len(member.records) == 1)
    await killable.kill()
    for number in range(100):
        await producer.send("orders", b"%d" % number, b"k")
    confirming = asyncio.ensure_future(producer.confirm("orders", b"confirmed", b"k"))
    assert [] == await member.consumer.poll(timeout_ms=200)
    await killable.restart()
    await member.poll_until(lambda: len(member.records) == 102)
    await confirming
    assert [] == await producer.flush()
    values = [record.value for record in member.records if record.value not in (b"before", b"confirmed")]
    assert [b"%d" % number for number in range(100)] == values
    await member.consumer.close()
    await producer.close()
    await broker.close()


async def test_broker_killed_every_call_ends_in_time(killable: Killable) -> None:
    """Commit, committed, flush and both closes are bounded, and the record's failure is not blamed on the record."""
    broker = killable.broker
    await broker.admin().create([TopicSpec(name="orders", partitions=1)])
    producer = KafkaProducer(broker._cluster, SystemClock(), delivery_timeout_ms=3_000)
    member = Member(broker, "group", ["orders"])
    await producer.start()
    await member.consumer.start()
    await producer.send("orders", b"v", b"k")
    await member.poll_until(lambda: len(member.records) == 1)
    (held,) = member.consumer.assignments()
    await killable.kill()
    await producer.send("orders", b"lost", b"k")
    assert await timed(producer.confirm("orders", b"lost", b"k")) < 8
    assert await timed(producer.flush()) < 8
    assert [] == await producer.flush()
    assert 2 == producer.statistics().failed
    assert await timed(member.consumer.commit({held: CommittedOffset(1)})) < 12
    member.hooks["revoked"] = commit_quietly(member)
    began = time.monotonic()
    await member.consumer.close()
    await producer.close()
    await broker.close()
    assert time.monotonic() - began < 20


def commit_quietly(member: Member) -> Callable[[Sequence[Assignment]], Awaitable[None]]:
    async def commit(assignments: Sequence[Assignment]) -> None:
        await timed(member.consumer.commit({held: CommittedOffset(1) for held in assignments}))

    return commit
