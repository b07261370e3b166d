"""Clients that have lost their brokers for good, on a real Kafka that goes on serving others."""

import asyncio
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any

import pytest
from confluent_kafka import OFFSET_BEGINNING, KafkaError, KafkaException
from confluent_kafka import Consumer as Client

from app.broker.base import Assignment, CommittedOffset
from app.broker.kafka import consumer, lost, membership
from app.broker.kafka.consumer import KafkaConsumer
from app.broker.kafka.lost import Lookout
from app.broker.kafka.polling import PollingThread
from app.core.errors import Fenced, Unavailable
from app.core.record import TopicPartition
from tests.contract.conftest import Cluster, Member

pytestmark = pytest.mark.kafka


@pytest.fixture(params=["kafka"])
def broker_address(request: pytest.FixtureRequest) -> str:
    """Only the real one."""
    return str(request.getfixturevalue("kafka_address"))


@pytest.fixture
def forget(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """From this call on the client that is looked after next reaches nobody, which soon counts as lost."""
    has_begun = False
    forgot: list[Client] = []

    def begin() -> None:
        nonlocal has_begun
        has_begun = True

    def reaches(self: Lookout, client: Client, topic: str) -> bool:
        if has_begun and not forgot:
            forgot.append(client)
        return client not in forgot

    monkeypatch.setattr(Lookout, "look", reaches)
    monkeypatch.setattr(lost, "LOOK_SECONDS", 0.2)
    monkeypatch.setattr(membership, "LOST_SECONDS", 0.5)
    monkeypatch.setattr(Lookout.__init__, "__defaults__", (0.5,))
    return begin


async def test_lost_consumer_joins_anew_and_goes_on_behind_its_commit(
    cluster: Cluster, forget: Callable[[], None]
) -> None:
    """Its places are lost, and its again in a new epoch. What the old client says after that, when it leaves, is not heard."""
    topic, group = await cluster.topic(2), cluster.unique("group")
    places = {TopicPartition(topic, number) for number in range(2)}
    for place in places:
        await cluster.fill(topic, 10, place.partition)
    member = await cluster.join(group, topic)
    await member.poll_until(lambda: len(member.records) == 20)
    before = member.consumer.assignments()
    await member.consumer.commit({held: CommittedOffset(7) for held in before})
    forget()
    await member.poll_until(lambda: bool(member.told("lost")))
    assert before == set(member.told("lost"))
    assert before.isdisjoint(member.consumer.assignments())
    with pytest.raises(Fenced):
        await member.consumer.commit({held: CommittedOffset(8) for held in before})
    await member.poll_until(lambda: len(member.records) == 26)
    await member.poll_until(lambda: 1 == sum(one.name == f"kafka-poll-{group}" for one in threading.enumerate()))
    for place in places:
        await cluster.fill(topic, 1, place.partition)
    await member.poll_until(lambda: len(member.records) == 28)
    assert places == member.places()
    assert ["assigned", "lost", "assigned"] == [kind for kind, _ in member.events]
    assert sorted([*range(10), 7, 8, 9, 10] * 2) == sorted(record.offset for record in member.records)
    await member.consumer.commit({held: CommittedOffset(11) for held in member.consumer.assignments()})


async def test_lost_follower_says_so(cluster: Cluster, forget: Callable[[], None]) -> None:
    """Whoever follows begins again where it was; it cannot wait for ever for a record that nobody brings."""
    topic = await cluster.topic(1)
    await cluster.fill(topic, 3)
    offsets: list[int] = []

    async def follow() -> None:
        async for records in cluster.broker.reader().follow(TopicPartition(topic, 0), 0):
            offsets.extend(record.offset for record in records)
            forget()

    with pytest.raises(Unavailable, match="has lost the brokers"):
        await follow()
    assert [0, 1, 2] == offsets


async def test_consumer_that_loses_its_brokers_while_its_listener_waits_joins_anew(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A listener that asks again and again what is committed would wait for ever: the thread stands in its callback."""
    monkeypatch.setattr(membership, "LOST_SECONDS", 0.5)
    monkeypatch.setattr(consumer, "LOOK_SECONDS", 0.5)
    topic = await cluster.topic(1)
    await cluster.fill(topic, 5)
    forgot: list[Client] = []
    look: Any = Lookout.look
    monkeypatch.setattr(Lookout, "look", lambda self, client, topic: client not in forgot and look(self, client, topic))
    committed: Any = PollingThread.committed

    def asked(self: PollingThread, places: Any, seconds: float) -> Any:
        if self._client in forgot:
            raise KafkaException(KafkaError(KafkaError._TIMED_OUT))
        return committed(self, places, seconds)

    monkeypatch.setattr(PollingThread, "committed", asked)
    member: Member

    async def ask_until_answered(assignments: Sequence[Assignment]) -> None:
        assert isinstance(member.consumer, KafkaConsumer)
        assert member.consumer._polling is not None
        if not forgot:
            forgot.append(member.consumer._polling._client)
        while True:
            with suppress(Unavailable):
                await member.consumer.committed([held.place for held in assignments])
                return

    member = await cluster.join(cluster.unique("group"), topic, assigned=ask_until_answered)
    await member.poll_until(lambda: len(member.records) == 5)
    assert ["assigned", "lost", "assigned"] == [kind for kind, _ in member.events]


async def test_consumer_begins_where_its_listener_found_it(cluster: Cluster) -> None:
    """The client looks up nothing by itself then, which may fail for ever where the coordinator moves meanwhile."""
    topic, group = await cluster.topic(2), cluster.unique("group")
    for partition in range(2):
        await cluster.fill(topic, 5, partition)
    starts: list[Mapping[TopicPartition, int]] = []
    member: Member

    async def look_up(assignments: Sequence[Assignment]) -> None:
        assert isinstance(member.consumer, KafkaConsumer)
        assert member.consumer._coming is not None
        await member.consumer.committed([held.place for held in assignments])
        starts.append(member.consumer._coming.starts)

    member = await cluster.join(group, topic, assigned=look_up)
    await member.poll_until(lambda: len(member.records) == 10)
    await member.consumer.commit({member.held(TopicPartition(topic, 1)): CommittedOffset(3)})
    await member.consumer.close()
    member = await cluster.join(group, topic, assigned=look_up)
    await member.poll_until(lambda: len(member.records) == 7)
    here, there = TopicPartition(topic, 0), TopicPartition(topic, 1)
    assert [{here: OFFSET_BEGINNING, there: OFFSET_BEGINNING}, {here: OFFSET_BEGINNING, there: 3}] == starts


@pytest.fixture
def held_up(monkeypatch: pytest.MonkeyPatch) -> Callable[[Member], threading.Event]:
    """Makes a member's client keep its next commits until the event is set. A second without an answer is long here."""
    monkeypatch.setattr(consumer, "GROUP_SECONDS", 0.5)
    monkeypatch.setattr(membership, "LOST_SECONDS", 0.5)

    def hold_up(member: Member) -> threading.Event:
        assert isinstance(member.consumer, KafkaConsumer)
        polling, answered = member.consumer._polling, threading.Event()
        assert polling is not None
        commit = polling.commit

        def commit_when_answered(offsets: Any) -> Any:
            answered.wait()
            return commit(offsets)

        monkeypatch.setattr(polling, "commit", commit_when_answered)
        return answered

    return hold_up


async def test_consumer_whose_client_keeps_a_commit_for_ever_joins_anew(
    cluster: Cluster, held_up: Callable[[Member], threading.Event], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As one does that has lost its brokers: the thread stands still, and its client is left to it."""
    topic, group = await cluster.topic(1), cluster.unique("group")
    await cluster.fill(topic, 5)
    member = await cluster.join(group, topic)
    await member.poll_until(lambda: len(member.records) == 5)
    (held,) = member.consumer.assignments()
    answered = held_up(member)
    first = asyncio.create_task(member.consumer.commit({held: CommittedOffset(3)}))
    with pytest.raises(Unavailable, match="had no answer"):
        await first
    monkeypatch.setattr(consumer, "GROUP_SECONDS", 3.0)  # until the client has been left behind
    second = asyncio.create_task(member.consumer.commit({held: CommittedOffset(4)}))
    await member.poll_until(lambda: [held] == member.told("lost"))
    with pytest.raises(Unavailable, match="had no answer"):
        await second
    assert isinstance(member.consumer, KafkaConsumer)
    joined, looking = member.consumer._polling, member.consumer._looking
    assert looking is not None
    await member.poll_until(looking.done)  # at the client that was left behind, which still keeps the commit
    answered.set()  # so that it can leave the group, as it would be expelled from it
    await member.poll_until(lambda: len(member.records) >= 7)
    (again,) = member.consumer.assignments()
    await member.consumer.commit({again: CommittedOffset(5)})
    assert (held.place, True) == (again.place, again.epoch > held.epoch)
    assert joined is member.consumer._polling
    assert ["assigned", "lost", "assigned"] == [kind for kind, _ in member.events]


async def test_consumer_whose_client_comes_back_keeps_its_places(
    cluster: Cluster, held_up: Callable[[Member], threading.Event]
) -> None:
    """After an outage others may be answered a moment before it is."""
    topic = await cluster.topic(1)
    await cluster.fill(topic, 5)
    member = await cluster.join(cluster.unique("group"), topic)
    await member.poll_until(lambda: len(member.records) == 5)
    assert isinstance(member.consumer, KafkaConsumer)
    (held,) = member.consumer.assignments()
    answered = held_up(member)
    with pytest.raises(Unavailable, match="had no answer"):
        await member.consumer.commit({held: CommittedOffset(3)})
    answered.set()
    looking = member.consumer._looking
    assert looking is not None
    await member.poll_until(looking.done)
    await member.consumer.commit({held: CommittedOffset(5)})
    assert ["assigned"] == [kind for kind, _ in member.events]
