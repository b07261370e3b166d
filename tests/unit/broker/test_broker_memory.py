"""The memory broker's faults: one coming call fails, waits, or loses its answer."""

from collections.abc import Sequence
from typing import Any, Literal

import pytest

from app.broker.base import Assignment, CommittedOffset
from app.broker.memory import Fault, MemoryBroker, MemoryConsumer
from app.broker.topics import TopicSpec
from app.core.clock import Clock, ManualClock, run_virtual
from app.core.errors import Fenced, Rejected, Unavailable
from app.core.record import TopicPartition

PLACE = TopicPartition("t", 0)


class Silent:
    """A listener that does nothing."""

    async def on_assigned(self, assignments: Sequence[Assignment]) -> None: ...

    async def on_revoked(self, assignments: Sequence[Assignment]) -> None: ...

    async def on_lost(self, assignments: Sequence[Assignment]) -> None: ...


async def broker_with_topic(clock: Clock) -> MemoryBroker:
    broker = MemoryBroker(clock)
    await broker.admin().create([TopicSpec(name="t", partitions=1)])
    return broker


async def member(broker: MemoryBroker, group: str = "g") -> MemoryConsumer:
    consumer = broker.consumer(group, ["t"], Silent())
    await consumer.start()
    await consumer.poll(timeout_ms=0)
    return consumer


def held(consumer: MemoryConsumer) -> Assignment:
    (assignment,) = consumer.assignments()
    return assignment


async def test_fault_fail_on_confirm_writes_nothing() -> None:
    """A call that fails did nothing; the next one works."""
    broker = await broker_with_topic(ManualClock())
    producer = broker.producer()
    broker.plan(Fault("confirm", "fail"))
    with pytest.raises(Unavailable):
        await producer.confirm("t", b"v")
    assert (0, 0) == await producer.confirm("t", b"v")


async def test_fault_drop_on_confirm_writes_and_says_otherwise() -> None:
    """A lost answer: the record is there, the caller cannot know it."""
    broker = await broker_with_topic(ManualClock())
    broker.plan(Fault("confirm", "drop"))
    with pytest.raises(Unavailable):
        await broker.producer().confirm("t", b"v")
    assert [b"v"] == [record.value for record in broker.logs[PLACE]]


async def test_fault_drop_on_commit_commits_and_says_otherwise() -> None:
    """A lost answer to a commit leaves the commit standing."""
    broker = await broker_with_topic(ManualClock())
    consumer = await member(broker)
    broker.plan(Fault("commit", "drop"))
    with pytest.raises(Unavailable):
        await consumer.commit({held(consumer): CommittedOffset(5)})
    assert {PLACE: CommittedOffset(5)} == await consumer.committed([PLACE])


async def test_fault_given_error_is_the_one_raised() -> None:
    """A fault may be any error of the contract."""
    broker = await broker_with_topic(ManualClock())
    broker.plan(Fault("send", "fail", error=Rejected("planned")))
    with pytest.raises(Rejected, match="planned"):
        await broker.producer().send("t", b"v")


async def test_faults_of_one_call_are_met_in_the_order_planned() -> None:
    """Each fault is for one call; other calls pass."""
    broker = await broker_with_topic(ManualClock())
    producer = broker.producer()
    broker.plan(Fault("send", "fail", error=Rejected("first")))
    broker.plan(Fault("send", "fail", error=Rejected("second")))
    await producer.confirm("t", b"v")
    for expected in ("first", "second"):
        with pytest.raises(Rejected, match=expected):
            await producer.send("t", b"v")
    await producer.send("t", b"v")


def test_fault_delay_makes_the_call_wait() -> None:
    """A delayed commit takes effect when its time has passed."""

    async def main(clock: Clock) -> int:
        broker = await broker_with_topic(clock)
        consumer = await member(broker)
        before_ms = clock.now_ms()
        broker.plan(Fault("commit", "delay", seconds=3))
        await consumer.commit({held(consumer): CommittedOffset(5)})
        return clock.now_ms() - before_ms

    assert 3_000 == run_virtual(main, start_ms=0)


async def test_fault_delay_on_commit_meets_an_epoch_that_ended_meanwhile() -> None:
    """A commit that was on its way when the partition was lost is refused."""
    broker = await broker_with_topic(ManualClock())
    consumer = await member(broker)
    assignment = held(consumer)
    broker.plan(Fault("commit", "delay", seconds=0))
    commit = consumer.commit({assignment: CommittedOffset(5)})
    broker.expel(consumer)
    with pytest.raises(Fenced):
        await commit
    assert {PLACE: None} == await consumer.committed([PLACE])


async def test_fault_full_on_try_send_queues_nothing_and_send_still_works() -> None:
    """A full queue: the caller falls back to `send`, which waits."""
    broker = await broker_with_topic(ManualClock())
    producer = broker.producer()
    broker.plan(Fault("try_send", "full"))
    assert not producer.try_send("t", b"v")
    assert [] == broker.logs[PLACE]
    await producer.send("t", b"v")
    assert producer.try_send("t", b"v")


@pytest.mark.parametrize(("action", "written"), [("fail", 0), ("drop", 2)])
async def test_fault_on_send_many_writes_all_or_nothing(action: Literal["fail", "drop"], written: int) -> None:
    """As for every other call: nothing was done, or all of it and nobody knows."""
    broker = await broker_with_topic(ManualClock())
    broker.plan(Fault("send_many", action))
    with pytest.raises(Unavailable):
        await broker.producer().send_many("t", [(b"1", None, 0), (b"2", None, 0)])
    assert written == len(broker.logs[PLACE])


@pytest.mark.parametrize(("action", "written"), [("fail", 0), ("drop", 1)])
async def test_fault_on_try_send_raises(action: Literal["fail", "drop"], written: int) -> None:
    """Without waiting, the same two."""
    broker = await broker_with_topic(ManualClock())
    broker.plan(Fault("try_send", action))
    with pytest.raises(Unavailable):
        broker.producer().try_send("t", b"v")
    assert written == len(broker.logs[PLACE])


@pytest.mark.parametrize("action", ["fail", "drop"])
async def test_fault_on_flush_leaves_single_failures_for_the_next_one(action: Literal["fail", "drop"]) -> None:
    """A flush that raises has told nobody of the records that were refused."""
    broker = await broker_with_topic(ManualClock())
    producer = broker.producer()
    await producer.send_many("t", [(b"x" * 2_000_000, None, 0)])
    broker.plan(Fault("flush", action))
    with pytest.raises(Unavailable):
        await producer.flush()
    assert 1 == len(await producer.flush())


@pytest.mark.parametrize("call", ["poll", "committed"])
async def test_fault_drop_on_a_reading_call_raises(call: Literal["poll", "committed"]) -> None:
    """Its answer is lost, and with it nothing else."""
    broker = await broker_with_topic(ManualClock())
    consumer = await member(broker)
    await broker.producer().send("t", b"v")
    broker.plan(Fault(call, "drop"))
    with pytest.raises(Unavailable):
        await (consumer.poll() if call == "poll" else consumer.committed([PLACE]))
    assert [b"v"] == [record.value for record in await consumer.poll()]


@pytest.mark.parametrize(("call", "action"), [("try_send", "delay"), ("send", "full")])
def test_fault_that_no_call_meets_is_refused(call: Any, action: Any) -> None:
    """`try_send` cannot wait, and only it says that a queue is full."""
    with pytest.raises(ValueError, match="cannot meet"):
        Fault(call, action)
