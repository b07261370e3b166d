"""Records that the client gives a second time, and those of a log that is another one now."""

import time
from collections.abc import Callable, Iterator
from copy import deepcopy
from typing import Any, cast

import pytest
from confluent_kafka import Consumer as Client
from confluent_kafka import Message
from confluent_kafka import TopicPartition as ClientPartition

from app.broker.kafka.lost import Lookout
from app.broker.kafka.membership import UNNAMED
from app.broker.kafka.polling import Batch, Item, PollingThread, Rebalance
from app.broker.kafka.records import record_of
from app.broker.kafka.repeated import Repeated

OLD, NEW = "first", "second"


def message(offset: int, partition: int = 0, epoch: int | None = 3) -> Message:
    said: dict[str, Any] = {} if epoch is None else {"leader_epoch": epoch}
    return Message(topic="t", partition=partition, offset=offset, value=b"v", timestamp=(1, 5), **said)


def given(repeated: Repeated, *messages: Message) -> list[tuple[int, int]]:
    """Partition and offset of what is given on, in batches of one and all at once."""
    each = deepcopy(repeated)
    singly = [record for one in messages for record in each.without([record_of(one)], [one])]
    together = repeated.without([record_of(one) for one in messages], list(messages))
    assert singly == together
    return [(record.partition, record.offset) for record in together]


def test_record_that_comes_again_is_repeated() -> None:
    """From the first one on, of each partition by itself; what follows is new."""
    repeated = Repeated({"t": OLD}, lambda _: OLD)
    read = [message(5), message(6), message(0, 1), message(5), message(6), message(7), message(0, 1), message(1, 1)]
    assert [(0, 5), (0, 6), (1, 0), (0, 7), (1, 1)] == given(repeated, *read)


@pytest.mark.parametrize("epochs", [(3, 3), (3, 2), (None, None)])
def test_record_of_no_newer_leader_is_repeated(epochs: tuple[int | None, int | None]) -> None:
    """Also where the log says nothing of leaders."""
    repeated = Repeated({"t": OLD}, lambda _: OLD)
    assert [(0, 5)] == given(repeated, message(5, 0, epochs[0]), message(5, 0, epochs[1]))


def test_records_of_a_leader_who_lacked_the_end_are_new() -> None:
    """They stand where others stood that are gone."""
    repeated = Repeated({"t": OLD}, lambda _: OLD)
    read = [message(5), message(6), message(5, epoch=4), message(6, epoch=4), message(6, epoch=4)]
    assert [(0, 5), (0, 6), (0, 5), (0, 6)] == given(repeated, *read)


def test_records_of_a_topic_that_was_made_again_are_new() -> None:
    """In each of its partitions; after that a repeated one is known as such again."""
    repeated = Repeated({"t": OLD}, lambda _: NEW)
    read = [message(5), message(0, 1), message(0, epoch=0), message(0, 1, epoch=0), message(0, epoch=0), message(1)]
    assert [(0, 5), (1, 0), (0, 0), (1, 0), (0, 1)] == given(repeated, *read)


def test_records_of_a_forgotten_partition_are_new() -> None:
    """Of that one alone."""
    repeated = Repeated({"t": OLD}, lambda _: OLD)
    assert [(0, 5), (1, 5)] == given(repeated, message(5), message(5, 1))
    repeated.forget([("t", 1)])
    assert [(1, 5)] == given(repeated, message(5), message(5, 1))


class Scripted:
    """A client that gives one batch after the other. within: called inside of `consume`, at the first one."""

    def __init__(self, *batches: list[Message]) -> None:
        self.batches = iter(batches)
        self.within: Callable[[], None] = lambda: None
        self.hooks: dict[str, Any] = {}

    def subscribe(self, topics: list[str], **hooks: object) -> None:
        self.hooks = hooks

    def poll(self, seconds: float) -> Message | None:
        self.now = next(self.batches, [])
        return self.now.pop(0) if self.now else None

    def consume(self, count: int, seconds: float) -> list[Message]:
        within, self.within = self.within, lambda: None
        within()
        return self.now

    def incremental_assign(self, partitions: list[object]) -> None:
        pass

    incremental_unassign = incremental_assign

    def close(self) -> None:
        pass


def polled(client: Scripted, batches: int) -> list[list[int]]:
    """The offsets of so many batches."""
    items: list[Item] = []

    def deliver(item: Item) -> bool:
        items.append(item)
        if isinstance(item, Rebalance):
            polling.tell(item.finish)
        return True

    def found() -> list[list[int]]:
        return [[record.offset for record in item.records] for item in items if isinstance(item, Batch)]

    polling = PollingThread(
        cast("Client", client),
        "group",
        ["t"],
        membership=UNNAMED,
        lookout=Lookout(lambda: None),
        repeated=Repeated({"t": OLD}, lambda _: OLD),
        deliver=deliver,
        on_lost=lambda places, generation: None,
        on_end=lambda: None,
    )
    polling.start()
    deadline = time.monotonic() + 10
    while len(found()) < batches and time.monotonic() < deadline:
        time.sleep(0.001)
    polling.stop()
    return found()


def test_polling_gives_each_record_once() -> None:
    """What the client repeats reaches nobody."""
    assert [[5, 6], [7]] == polled(Scripted([message(5), message(6)], [message(6), message(7)]), 2)


def test_polling_gives_what_was_on_its_way_when_its_partition_left_and_came_back() -> None:
    """It reached nobody the first time."""
    client = Scripted([message(5)], [message(6), message(7)], [message(6), message(7)])
    place = ClientPartition("t", 0)

    def leave() -> None:
        client.within = leave_and_come_back

    def leave_and_come_back() -> None:
        client.hooks["on_revoke"](client, [place])
        client.batches = come_back(client.batches)

    def come_back(batches: Iterator[list[Message]]) -> Iterator[list[Message]]:
        client.hooks["on_assign"](client, [place])
        yield from batches

    client.within = leave
    assert [[5], [6, 7]] == polled(client, 2)
