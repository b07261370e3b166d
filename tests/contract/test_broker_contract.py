"""What every broker adapter must do for consumers: groups, rebalances, offsets, epochs."""

import asyncio
from collections.abc import Sequence

import pytest

from app.broker.base import MAX_METADATA_CHARACTERS, Assignment, CommittedOffset
from app.core.errors import Fenced, Rejected
from app.core.record import TopicPartition
from tests.contract.conftest import Cluster, Member, poll_until


def numbers(member: Member, partition: int = 0) -> list[int]:
    return [int(record.value or b"-1") for record in member.records if record.partition == partition]


async def test_consumer_new_group_reads_from_the_earliest_record(cluster: Cluster) -> None:
    """A group without commits starts at the beginning and keeps the order of each partition."""
    topic = await cluster.topic(partitions=2)
    await cluster.fill(topic, 1_200)
    await cluster.fill(topic, 7, partition=1)
    member = await cluster.join(cluster.unique("group"), topic)
    await member.poll_until(lambda: len(member.records) == 1_207)
    assert list(range(1_200)) == numbers(member)
    assert list(range(7)) == numbers(member, partition=1)
    assert list(range(1_200)) == [record.offset for record in member.records if record.partition == 0]


async def test_consumer_start_unknown_topic_is_rejected(cluster: Cluster) -> None:
    """A topic that does not exist is said at the start."""
    member = Member(cluster.broker, cluster.unique("group"), [cluster.unique("nowhere")])
    with pytest.raises(Rejected, match="topics create"):
        await member.consumer.start()
    await member.consumer.close()


async def test_consumer_poll_without_records_ends_after_its_timeout(cluster: Cluster) -> None:
    """Nothing to read is an empty list, not a wait."""
    member = await cluster.join(cluster.unique("group"), await cluster.topic())
    await member.poll_until(lambda: bool(member.places()))
    async with asyncio.timeout(5):
        assert [] == await member.consumer.poll(timeout_ms=20)


async def test_consumer_poll_returns_no_more_than_asked(cluster: Cluster) -> None:
    """What is beyond max_records comes with the next call."""
    topic = await cluster.topic()
    await cluster.fill(topic, 50)
    member = await cluster.join(cluster.unique("group"), topic)
    sizes: list[int] = []
    async with asyncio.timeout(30):
        while sum(sizes) < 50:
            records = await member.consumer.poll(max_records=7)
            member.records += records
            sizes.append(len(records))
    assert max(sizes) <= 7
    assert list(range(50)) == numbers(member)


async def test_consumer_restart_continues_at_the_committed_offset(cluster: Cluster) -> None:
    """A committed offset is the next to read, and its metadata comes back."""
    topic, group = await cluster.topic(), cluster.unique("group")
    place = TopicPartition(topic, 0)
    await cluster.fill(topic, 10)
    first = await cluster.join(group, topic)
    await first.poll_until(lambda: len(first.records) == 10)
    await first.consumer.commit({first.held(place): CommittedOffset(4, "done: 6,8")})
    assert {place: CommittedOffset(4, "done: 6,8")} == await first.consumer.committed([place])
    await first.consumer.close()
    second = await cluster.join(group, topic)
    await second.poll_until(lambda: len(second.records) == 6)
    assert [4, 5, 6, 7, 8, 9] == numbers(second)


async def test_consumer_committed_without_commit_is_none(cluster: Cluster) -> None:
    """A partition that nobody committed has no offset."""
    topic = await cluster.topic(partitions=2)
    member = await cluster.join(cluster.unique("group"), topic)
    await member.poll_until(lambda: len(member.places()) == 2)
    places = [TopicPartition(topic, 0), TopicPartition(topic, 1)]
    await member.consumer.commit({member.held(places[0]): CommittedOffset(0)})
    assert {places[0]: CommittedOffset(0), places[1]: None} == await member.consumer.committed(places)


async def test_commit_longest_metadata_passes_and_longer_is_rejected(cluster: Cluster) -> None:
    """4,095 characters travel with an offset; one more is refused and changes nothing."""
    topic = await cluster.topic()
    place = TopicPartition(topic, 0)
    member = await cluster.join(cluster.unique("group"), topic)
    await member.poll_until(lambda: place in member.places())
    longest = CommittedOffset(3, "x" * MAX_METADATA_CHARACTERS)
    await member.consumer.commit({member.held(place): longest})
    with pytest.raises(Rejected, match="metadata"):
        await member.consumer.commit({member.held(place): CommittedOffset(9, "x" * (MAX_METADATA_CHARACTERS + 1))})
    assert {place: longest} == await member.consumer.committed([place])


async def test_group_second_member_shares_and_goes_on_where_the_first_committed(cluster: Cluster) -> None:
    """Partitions move to a new member, the old one commits when it hears so, and nothing is read twice or lost."""
    topic, group = await cluster.topic(partitions=4), cluster.unique("group")
    for partition in range(4):
        await cluster.fill(topic, 20, partition)
    first = await cluster.join(group, topic)
    await first.poll_until(lambda: len(first.records) == 80)

    async def commit(assignments: Sequence[Assignment]) -> None:
        await first.consumer.commit({held: CommittedOffset(20) for held in assignments})

    first.hooks["revoked"] = commit
    second = await cluster.join(group, topic)
    await poll_until([first, second], lambda: len(second.places()) == 2 and len(first.places()) == 2)
    assert set() == first.places() & second.places()
    assert first.told("revoked")
    for partition in range(4):
        await cluster.fill(topic, 1, partition)
    await poll_until([first, second], lambda: len(first.records) + len(second.records) == 84)
    assert {20} == {record.offset for record in second.records}
    await second.consumer.close()
    await first.poll_until(lambda: len(first.places()) == 4)


async def test_group_what_a_member_keeps_is_left_alone(cluster: Cluster, request: pytest.FixtureRequest) -> None:
    """A rebalance takes away only what goes to another: the rest keeps its epoch, its lanes and its look-backs."""
    if cluster.kind == "aiokafka":
        reason = (
            "aiokafka rebalances eagerly: every change takes all partitions of all members away, and gives them anew"
        )
        request.applymarker(pytest.mark.xfail(strict=True, reason=reason, raises=AssertionError))
    topic, group = await cluster.topic(partitions=4), cluster.unique("group")
    first = await cluster.join(group, topic)
    await first.poll_until(lambda: len(first.places()) == 4)
    before = first.consumer.assignments()
    second = await cluster.join(group, topic)
    await poll_until([first, second], lambda: len(first.places()) == 2 and len(second.places()) == 2)
    assert first.consumer.assignments() < before
    assert before - first.consumer.assignments() == set(first.told("revoked"))


async def test_group_two_topics_keep_equal_partitions_together(cluster: Cluster) -> None:
    """The range assignor gives partition i of both topics to one member, so that a join needs no shuffle."""
    left, right, group = await cluster.topic(6), await cluster.topic(6), cluster.unique("group")
    members = [await cluster.join(group, left, right), await cluster.join(group, left, right)]
    await poll_until(members, lambda: all(len(member.places()) == 6 for member in members))
    for member in members:
        assert {place.partition for place in member.places() if place.topic == left} == {
            place.partition for place in member.places() if place.topic == right
        }


async def test_pause_partition_stops_it_and_not_its_neighbour(cluster: Cluster) -> None:
    """A paused partition gives nothing new until it is resumed, and then misses nothing."""
    topic = await cluster.topic(partitions=2)
    paused, other = TopicPartition(topic, 0), TopicPartition(topic, 1)
    member = await cluster.join(cluster.unique("group"), topic)
    await member.poll_until(lambda: member.places() == {paused, other})
    member.consumer.pause([paused])
    await member.poll_once()
    await cluster.fill(topic, 5, 1)
    await member.poll_until(lambda: len(numbers(member, 1)) == 5)  # the pause was carried out before
    await cluster.fill(topic, 5, 0)
    await cluster.fill(topic, 5, 1)
    await member.poll_until(lambda: len(numbers(member, 1)) == 10)
    assert [] == numbers(member, 0)
    member.consumer.resume([paused])
    await member.poll_until(lambda: len(numbers(member, 0)) == 5)
    assert [0, 1, 2, 3, 4] == numbers(member, 0)


async def test_pause_inside_on_assigned_holds_from_the_first_record(cluster: Cluster) -> None:
    """A partition paused while it is assigned gives nothing before it is resumed."""
    topic = await cluster.topic(partitions=2)
    paused = TopicPartition(topic, 0)
    await cluster.fill(topic, 5, 0)
    await cluster.fill(topic, 5, 1)
    member = Member(cluster.broker, cluster.unique("group"), [topic])

    async def pause(assignments: Sequence[Assignment]) -> None:
        member.consumer.pause([paused])

    member.hooks["assigned"] = pause
    await member.consumer.start()
    await member.poll_until(lambda: len(numbers(member, 1)) == 5)
    assert [] == numbers(member, 0)
    member.consumer.resume([paused])
    await member.poll_until(lambda: len(numbers(member, 0)) == 5)
    await member.consumer.close()


async def test_seek_back_and_ahead_next_record_is_the_asked_one(cluster: Cluster) -> None:
    """After a seek the next record of the place is the one at the offset, also when others were fetched already."""
    topic = await cluster.topic()
    place = TopicPartition(topic, 0)
    await cluster.fill(topic, 3_000)
    member = await cluster.join(cluster.unique("group"), topic)
    await member.poll_until(lambda: len(member.records) > 0)
    for offset in (2, 2_500, 0, 1_700):
        await member.consumer.seek(place, offset)
        member.records.clear()
        await member.poll_until(lambda: len(member.records) > 0)
        assert offset == member.records[0].offset
    await member.poll_until(lambda: member.records[-1].offset == 2_999)
    assert list(range(1_700, 3_000)) == numbers(member)


async def test_seek_inside_on_assigned_is_where_reading_begins(cluster: Cluster) -> None:
    """A listener decides the start; the committed offset does not count then."""
    topic, group = await cluster.topic(), cluster.unique("group")
    place = TopicPartition(topic, 0)
    await cluster.fill(topic, 10)
    member = Member(cluster.broker, group, [topic])
    known: list[CommittedOffset | None] = []

    async def start_at_six(assignments: Sequence[Assignment]) -> None:
        known.append((await member.consumer.committed([place]))[place])
        await member.consumer.seek(place, 6)

    member.hooks["assigned"] = start_at_six
    await member.consumer.start()
    await member.poll_until(lambda: len(member.records) == 4)
    assert [6, 7, 8, 9] == numbers(member)
    assert [None] == known
    await member.consumer.close()


async def test_seek_foreign_partition_is_fenced(cluster: Cluster) -> None:
    """A place that is not assigned cannot be moved."""
    topic = await cluster.topic()
    member = await cluster.join(cluster.unique("group"), topic)
    await member.poll_until(lambda: len(member.places()) == 1)
    with pytest.raises(Fenced):
        await member.consumer.seek(TopicPartition(topic, 5), 0)


async def test_commit_after_revoke_is_fenced_and_commits_nothing(cluster: Cluster) -> None:
    """One ended epoch in a commit refuses all of it."""
    topic, group = await cluster.topic(partitions=2), cluster.unique("group")
    first = await cluster.join(group, topic)
    await first.poll_until(lambda: len(first.places()) == 2)
    before = set(first.consumer.assignments())
    second = await cluster.join(group, topic)
    await poll_until([first, second], lambda: len(first.places()) == 1 and len(second.places()) == 1)
    (kept,) = first.consumer.assignments()
    gone = next(held for held in before if held.place != kept.place)
    with pytest.raises(Fenced):
        await first.consumer.commit({kept: CommittedOffset(1), gone: CommittedOffset(1)})
    assert {kept.place: None, gone.place: None} == await first.consumer.committed([kept.place, gone.place])


async def test_member_expelled_loses_its_partitions_and_rejoins(cluster: Cluster) -> None:
    """What was lost is told as lost, cannot be committed, and comes back with a new epoch and nothing skipped."""
    topic, group = await cluster.topic(partitions=2), cluster.unique("group")
    await cluster.fill(topic, 10)
    member = await cluster.join(group, topic)
    await member.poll_until(lambda: len(member.records) == 10)
    before = set(member.consumer.assignments())

    async def forget(assignments: Sequence[Assignment]) -> None:
        member.records.clear()
        with pytest.raises(Fenced):
            await member.consumer.commit({held: CommittedOffset(10) for held in assignments})

    member.hooks["lost"] = forget
    await cluster.expel(member)
    await member.poll_until(lambda: bool(member.told("lost")) and len(member.records) == 10)
    assert before == set(member.told("lost"))
    assert not before & member.consumer.assignments()
    assert min(held.epoch for held in member.consumer.assignments()) > max(held.epoch for held in before)
    assert [] == member.told("revoked")


async def test_poll_cancelled_loses_no_record(cluster: Cluster) -> None:
    """However often a poll is cancelled, every record is returned, once and in order."""
    topic = await cluster.topic()
    member = await cluster.join(cluster.unique("group"), topic)
    await member.poll_until(lambda: len(member.places()) == 1)
    filling = asyncio.ensure_future(cluster.fill(topic, 3_000))
    async with asyncio.timeout(30):
        while len(member.records) < 3_000:
            polling = asyncio.ensure_future(member.consumer.poll(max_records=100, timeout_ms=1_000))
            for _ in range(len(member.records) % 3):
                await asyncio.sleep(0)
            polling.cancel()
            try:
                member.records += await polling
            except asyncio.CancelledError:
                member.records += await member.consumer.poll(max_records=100, timeout_ms=1)
    await filling
    assert list(range(3_000)) == numbers(member)


async def test_listener_error_leaves_poll_and_the_consumer_goes_on(cluster: Cluster) -> None:
    """What a listener raises is the caller's to handle; the next poll returns records."""
    topic = await cluster.topic()
    await cluster.fill(topic, 3)
    member = Member(cluster.broker, cluster.unique("group"), [topic])

    async def fail(assignments: Sequence[Assignment]) -> None:
        raise ValueError("planned")

    member.hooks["assigned"] = fail
    await member.consumer.start()
    with pytest.raises(ValueError, match="planned"):
        await member.poll_until(lambda: False)
    await member.poll_until(lambda: len(member.records) == 3)
    await member.consumer.close()


async def test_close_lets_on_revoked_commit_and_ends_the_epochs(cluster: Cluster) -> None:
    """Closing is a revocation; after it nothing is assigned, and a second close does nothing."""
    topic, group = await cluster.topic(), cluster.unique("group")
    place = TopicPartition(topic, 0)
    member = await cluster.join(group, topic)
    await member.poll_until(lambda: len(member.places()) == 1)
    held = member.held(place)

    async def commit(assignments: Sequence[Assignment]) -> None:
        await member.consumer.commit({held: CommittedOffset(7, "last") for held in assignments})

    member.hooks["revoked"] = commit
    await member.consumer.close()
    await member.consumer.close()
    assert [held] == member.told("revoked")
    assert frozenset() == member.consumer.assignments()
    with pytest.raises(Fenced):
        await member.consumer.commit({held: CommittedOffset(8)})
    successor = await cluster.join(group, topic)
    await successor.poll_until(lambda: len(successor.places()) == 1)
    assert {place: CommittedOffset(7, "last")} == await successor.consumer.committed([place])


async def test_group_offsets_are_what_anybody_has_committed(cluster: Cluster) -> None:
    """Of any group, without being its member; nothing for a group or a partition without a commit."""
    topic, group, other = await cluster.topic(partitions=2), cluster.unique("group"), await cluster.topic()
    member = await cluster.join(group, topic)
    await member.poll_until(lambda: len(member.places()) == 2)
    await member.consumer.commit({member.held(TopicPartition(topic, 1)): CommittedOffset(7, "mark")})
    admin = cluster.broker.admin()
    assert {TopicPartition(topic, 1): CommittedOffset(7, "mark")} == await admin.group_offsets(group, [topic, other])
    await member.consumer.commit({member.held(TopicPartition(topic, 1)): CommittedOffset(9, "")})
    assert {TopicPartition(topic, 1): CommittedOffset(9, "")} == await admin.group_offsets(group, [topic])
    assert {} == await admin.group_offsets(group, [other])
    assert {} == await admin.group_offsets(cluster.unique("nobody"), [topic])
    await admin.close()


async def test_has_members_is_true_while_somebody_is_one(cluster: Cluster) -> None:
    """Not of a group that nobody knows, nor of one that all have left."""
    topic, group = await cluster.topic(), cluster.unique("group")
    admin = cluster.broker.admin()
    assert not await admin.has_members(group)
    member = await cluster.join(group, topic)
    await member.poll_until(lambda: len(member.places()) == 1)
    assert await admin.has_members(group)
    await member.consumer.close()
    assert not await admin.has_members(group)
    await admin.close()


async def test_close_that_drains_may_commit_while_another_joins(cluster: Cluster) -> None:
    """A member that leaves has its partitions until `on_revoked` has returned, whoever waits for them."""
    topic, group = await cluster.topic(), cluster.unique("group")
    place = TopicPartition(topic, 0)
    member = await cluster.join(group, topic)
    await member.poll_until(lambda: len(member.places()) == 1)

    async def drain(assignments: Sequence[Assignment]) -> None:
        successor = await cluster.join(group, topic)
        end = asyncio.get_running_loop().time() + 1.5  # longer than a heartbeat's interval
        while asyncio.get_running_loop().time() < end:
            await successor.poll_once()
            assert set() == successor.places()
        await member.consumer.commit({held: CommittedOffset(7) for held in assignments})

    member.hooks["revoked"] = drain
    await member.consumer.close()
    successor = cluster._members[-1]
    await successor.poll_until(lambda: len(successor.places()) == 1)
    assert {place: CommittedOffset(7)} == await successor.consumer.committed([place])


async def test_close_before_start_does_nothing(cluster: Cluster) -> None:
    """A consumer that never started can be closed."""
    member = Member(cluster.broker, cluster.unique("group"), [await cluster.topic()])
    await member.consumer.close()
    assert [] == member.events


async def test_known_end_offset_is_that_of_the_broker_when_caught_up(cluster: Cluster) -> None:
    """The end offset known from fetching reaches that of the log; a foreign place has none."""
    topic = await cluster.topic()
    place = TopicPartition(topic, 0)
    await cluster.fill(topic, 12)
    member = await cluster.join(cluster.unique("group"), topic)
    assert -1 == member.consumer.known_end_offset(place)
    await member.poll_until(lambda: member.consumer.known_end_offset(place) == 12)
    assert -1 == member.consumer.known_end_offset(TopicPartition(topic, 9))
