"""Both group protocols and static members on a real Kafka: who holds what, and who hears of it when others come and go."""

from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack

import pytest

from app.broker.base import CommittedOffset
from app.broker.kafka import KafkaBroker
from app.broker.kafka.consumer import KafkaConsumer
from app.broker.kafka.membership import PROTOCOLS, Membership
from app.core.clock import SystemClock
from app.core.errors import SetupError, Unavailable
from app.core.record import TopicPartition
from tests.contract.conftest import Cluster, Member, poll_until

pytestmark = pytest.mark.kafka

Join = Callable[[Membership], Cluster]


@pytest.fixture
async def as_member(kafka_address: str, unique: Callable[[str], str]) -> AsyncIterator[Join]:
    """Processes of one application, each with its own broker object and its own membership."""
    async with AsyncExitStack() as stack:

        def process(membership: Membership) -> Cluster:
            broker = KafkaBroker(kafka_address, SystemClock(), membership=membership)
            cluster = Cluster("kafka", broker, unique)
            stack.push_async_callback(cluster.close)
            return cluster

        yield process


def have(members: list[Member], *counts: int) -> Callable[[], bool]:
    return lambda: list(counts) == [len(member.places()) for member in members]


@pytest.mark.parametrize("topics", [1, 2])
async def test_classic_group_second_member_shares_and_goes_on_where_the_first_committed(
    as_member: Join, topics: int
) -> None:
    """The same hand-over as with the newer protocol: revoked, committed, assigned. What joins stays together; one topic's
    partitions move singly, those of several topics all at once."""
    process = as_member(Membership("classic"))
    names = [await process.topic(2) for _ in range(topics)]
    group = process.unique("group")
    for name in names:
        for partition in range(2):
            await process.fill(name, 10, partition)

    async def commit(assignments: object) -> None:
        at = {held: CommittedOffset(7, "h") for held in first.consumer.assignments()}
        await first.consumer.commit(at)

    first = await process.join(group, *names, revoked=commit)
    await first.poll_until(lambda: len(first.records) == 20 * topics)
    kept = first.consumer.assignments()
    second = await process.join(group, *names)
    await poll_until([first, second], have([first, second], topics, topics))
    await second.poll_until(lambda: len(second.records) >= 3 * topics)
    assert {7} == {min(r.offset for r in second.records if r.topic == name) for name in names}
    assert [topics, topics] == [len(m.places()) for m in (first, second)]
    assert all(1 == len({place.partition for place in member.places()}) for member in (first, second))
    moved = {held.place for held in first.told("revoked")}
    if topics == 1:
        assert second.places() == moved
        assert first.consumer.assignments() <= kept
    else:
        assert {held.place for held in kept} == moved


@pytest.mark.parametrize("protocol", PROTOCOLS)
async def test_static_member_that_restarts_gets_its_partitions_back_unheard(as_member: Join, protocol: str) -> None:
    """A process that comes back within its session goes on with what it had, and the others hear of nothing."""
    one, two = as_member(Membership(protocol, "pod-1")), as_member(Membership(protocol, "pod-2"))
    topic, group = await one.topic(4), one.unique("group")

    async def commit(assignments: object) -> None:
        await first.consumer.commit({held: CommittedOffset(0, "closed") for held in first.consumer.assignments()})

    first, second = await one.join(group, topic, revoked=commit), await two.join(group, topic)
    await poll_until([first, second], have([first, second], 2, 2))
    places, events = first.places(), list(second.events)
    await first.consumer.close()
    back = await as_member(Membership(protocol, "pod-1")).join(group, topic)
    await poll_until([back, second], have([back, second], 2, 2))
    assert places == back.places()
    assert events == second.events
    committed = await back.consumer.committed(places)
    assert {CommittedOffset(0, "closed")} == set(committed.values())


@pytest.mark.parametrize("protocol", PROTOCOLS)
async def test_static_member_whose_name_is_taken_is_refused(as_member: Join, protocol: str) -> None:
    """Of two processes with one name, one is refused, in one line that names the setting; the other goes on."""
    one, two = as_member(Membership(protocol, "pod-1")), as_member(Membership(protocol, "pod-1"))
    topic, group = await one.topic(1), one.unique("group")
    first = await one.join(group, topic)
    await first.poll_until(have([first], 1))
    second = await two.join(group, topic)
    with pytest.raises(SetupError, match=r"^HEADRACE_INSTANCE: 'pod-1' is used by another process"):
        await poll_until([second, first], lambda: False)
    survivor = second if protocol == "classic" else first
    await survivor.poll_until(have([survivor], 1))
    assert {TopicPartition(topic, 0)} == survivor.places()


async def test_static_member_that_the_broker_did_not_hear_leave_is_waited_for(as_member: Join) -> None:
    """A part that is made anew after an outage is not taken for another process: it joins when its member of before is gone."""
    cluster = as_member(Membership("consumer", "pod-1"))
    topic, group = await cluster.topic(1), cluster.unique("group")
    before = await cluster.join(group, topic)
    await before.poll_until(have([before], 1))
    assert isinstance(before.consumer, KafkaConsumer)
    before.consumer._note_left()
    after = await cluster.join(group, topic)
    with pytest.raises(Unavailable, match="the broker still counts this process's member of before"):
        await after.poll_until(lambda: False)
    await before.consumer.close()
    await after.poll_until(have([after], 1))
    assert ["assigned"] == [kind for kind, _ in after.events]
