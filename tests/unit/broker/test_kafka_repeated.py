"""Records that the client gives a second time, and those of a log that is another one now."""

import time
from collections.abc import Iterator
from copy import deepcopy

import pytest
from confluent_kafka import Message

from app.broker.kafka.lost import Lookout
from app.broker.kafka.membership import UNNAMED
from app.broker.kafka.polling import Batch, Item, PollingThread
from app.broker.kafka.records import record_of
from app.broker.kafka.repeated import Repeated

OLD, NEW = "first", "second"


def message(offset: int, partition: int = 0, epoch: int | None = 3) -> Message:
    said = {} if epoch is None else {"leader_epoch": epoch}
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


class Twice:
    """A client that gives one batch, and then a part of it again."""

    def __init__(self) -> None:
        self.batches: Iterator[list[Message]] = iter([[message(5), message(6)], [message(6), message(7)]])

    def subscribe(self, topics: list[str], **hooks: object) -> None:
        pass

    def poll(self, seconds: float) -> Message | None:
        self.now = next(self.batches, [])
        return self.now.pop(0) if self.now else None

    def consume(self, count: int, seconds: float) -> list[Message]:
        return self.now

    def close(self) -> None:
        pass


def test_polling_gives_each_record_once() -> None:
    """What the client repeats reaches nobody."""
    items: list[Item] = []

    def deliver(item: Item) -> bool:
        items.append(item)
        return True

    polling = PollingThread(
        Twice(),  # type: ignore[arg-type]
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
    while len(items) < 2 and time.monotonic() < deadline:
        time.sleep(0.001)
    polling.stop()
    assert [[5, 6], [7]] == [[record.offset for record in item.records] for item in items if isinstance(item, Batch)]
