"""Records that the client gives a second time.

While a rebalance stops a partition for a moment the client may lose how far it has given it, and fetch it once more from where it
began (ADR 11). A topic that was deleted and made again, and a log whose end a new leader lacks, come back with lower offsets, too: what
those hold is new.
"""

from bisect import bisect_right
from collections.abc import Callable, Iterable, Mapping
from itertools import pairwise
from operator import attrgetter

from confluent_kafka import Message

from app.core.record import Record

Place = tuple[str, int]
offset_of = attrgetter("offset")


class Repeated:
    """Of one client's records. logs: the id of each topic as it was at the start. log_of: its id now; may block, and raise."""

    def __init__(self, logs: Mapping[str, str], log_of: Callable[[str], str]) -> None:
        self._logs = dict(logs)
        self._log_of = log_of
        self._last: dict[Place, tuple[int, Message]] = {}

    def without(self, records: list[Record], messages: list[Message]) -> list[Record]:
        """What is new of a batch, whose messages are these. To be asked of each batch, in order. Raises: what `log_of` does."""
        ends = [
            index
            for index, (one, next_) in enumerate(pairwise(records), 1)
            if next_.offset <= one.offset or next_.partition != one.partition or next_.topic != one.topic
        ]
        new = list[Record]()
        for begin, end in pairwise([0, *ends, len(records)]):
            new += self._new_of(records[begin:end], messages[begin:end])
        return new

    def _new_of(self, records: list[Record], messages: list[Message]) -> list[Record]:
        """Of records of one partition, whose offsets rise."""
        if not records:
            return records
        place = records[0].topic, records[0].partition
        last = self._last.get(place)
        if last is not None and records[0].offset <= last[0] and self._is_old(place[0], messages[0], last[1]):
            records = records[bisect_right(records, last[0], key=offset_of) :]
        if records:
            self._last[place] = records[-1].offset, messages[-1]
        return records

    def forget(self, places: Iterable[Place]) -> None:
        """From here on they are read from anywhere."""
        for place in places:
            self._last.pop(place, None)

    def _is_old(self, topic: str, message: Message, last: Message) -> bool:
        now = self._log_of(topic)
        if now != self._logs[topic]:
            self._logs[topic] = now
            self.forget([place for place in self._last if place[0] == topic])
            return False
        return _epoch_of(message) <= _epoch_of(last)


def _epoch_of(message: Message) -> int:
    """Of the leader that has written it; -1 where the log does not say."""
    epoch = message.leader_epoch()
    return -1 if epoch is None else epoch
