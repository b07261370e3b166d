"""The one thread that uses a Kafka consumer's client, and what it hands to the loop.

The client lets in one thread at a time: a call from another one waits until a poll has ended, and for ever while a
rebalance callback waits for that other one. So everything is done here: the loop puts calls into this thread's inbox, it
puts batches and rebalances, in the order they happened, into the loop's.

While a rebalance waits for the listener the thread stands still inside the client's callback, and still serves its inbox,
so that the listener may commit. The client goes on sending heartbeats meanwhile.
"""

import logging
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from queue import Empty, SimpleQueue
from typing import Literal, NamedTuple, TypeVar

from confluent_kafka import OFFSET_INVALID, KafkaError, KafkaException, Message
from confluent_kafka import Consumer as Client
from confluent_kafka import TopicPartition as ClientPartition

from app.broker.kafka.errors import translate
from app.broker.kafka.lost import Lookout
from app.broker.kafka.membership import Membership
from app.broker.kafka.records import record_of
from app.broker.kafka.repeated import Repeated
from app.core.errors import Unavailable
from app.core.record import Record, TopicPartition

T = TypeVar("T")
logger = logging.getLogger(__name__)

BATCH_RECORDS = 500
"""More makes the loop stutter, fewer costs throughput."""

BATCHES_AHEAD = 4
"""Batches handed over and not yet taken; then the thread stops fetching."""

POLL_SECONDS = 0.01
"""How long a call in the inbox, such as a commit, may wait for a fetch that finds nothing."""

ENDS_SECONDS = 0.02
"""How often the end offsets that came with the fetches are looked up."""


class Batch(NamedTuple):
    """Records fetched while `generation` was the newest one."""

    generation: int
    records: list[Record]


@dataclass(eq=False)
class Rebalance:
    """A change that the listener must hear of. `finish`, called on the polling thread, lets it go on.

    generation: of every record of these places from now on. starts: offsets that the listener asked to begin at.
    """

    kind: Literal["assigned", "revoked", "lost"]
    places: list[TopicPartition]
    generation: int
    starts: dict[TopicPartition, int] = field(default_factory=dict)
    finished: bool = False

    def finish(self) -> None:
        self.finished = True


class BrokersLost(Exception):
    """The client has lost its brokers for good (see `lost`): this thread ends, and another one must take its place."""


Item = Batch | Rebalance | Exception


class PollingThread:
    """Polls a client from `start` to `stop`.

    generation: of the thread before it. lookout, repeated: of this client.
    failure: what ended the polling for good, None while it goes on. ends: end offsets as of the last fetches.
    deliver: hands an item to the loop; False when the loop is gone. on_lost: called at once, on this thread, for places
    that are another member's already. on_end: called on this thread when it has left the group. has_just_left: whether
    another member of this process had been in the group until a moment ago, under the same name if it has one.
    """

    def __init__(
        self,
        client: Client,
        group: str,
        topics: Sequence[str],
        membership: Membership,
        lookout: Lookout,
        repeated: Repeated,
        deliver: Callable[[Item], bool],
        on_lost: Callable[[list[TopicPartition], int], None],
        on_end: Callable[[], object],
        generation: int = 0,
        *,
        has_just_left: bool = False,
    ) -> None:
        self.ends: dict[TopicPartition, int] = {}
        self.failure: Exception | None = None
        self.is_lost = False
        """Its client has lost its brokers: another thread is to take its place."""
        self._client = client
        self._lookout = lookout
        self._repeated = repeated
        self._group = group
        self._topics = list(topics)
        self._membership = membership
        self._is_eager = membership.is_eager(len(topics))
        self._tell_loop = deliver
        self._tell_lost = on_lost
        self._on_end = on_end
        self._next_ends = 0.0
        self._inbox: SimpleQueue[Callable[[], None]] = SimpleQueue()
        self._room = BATCHES_AHEAD
        self._generation = generation
        self._has_just_left = has_just_left
        self._abandoned = False
        self._paused: set[TopicPartition] = set()
        self._given_up: set[TopicPartition] = set()
        self._held: dict[TopicPartition, ClientPartition] = {}
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name=f"kafka-poll-{group}", daemon=True)

    # Called on the loop.

    @property
    def answers(self) -> int:
        """How often the client was answered; does not stand still while it reaches a broker."""
        return self._lookout.answers

    def start(self) -> None:
        self._thread.start()

    def tell(self, call: Callable[[], None]) -> None:
        """Runs `call()` on this thread, soon, between two fetches."""
        self._inbox.put(call)

    def took_batch(self) -> None:
        self._inbox.put(self._add_room)

    def stop(self) -> None:
        """Leaves the group and ends; `on_end` is called when it has."""
        self._inbox.put(self._begin_stopping)

    def abandon(self) -> int:
        """As `stop`, and nobody hears of it any more, however long its client keeps it. Returns: a generation that is newer
        than all of its own."""
        self._abandoned = True
        self.stop()
        return self._generation + 1

    # Called on this thread, through `tell`. Each raises KafkaException.

    def seek(self, place: TopicPartition, offset: int) -> int:
        """Moves the position; returns the generation of the records read from there."""
        self._client.seek(ClientPartition(*place, offset))
        self._repeated.forget([place])
        self._generation += 1
        return self._generation

    def commit(self, offsets: list[ClientPartition]) -> KafkaError | None:
        """The first partition's error, or None when the broker has them all."""
        committed = self._answered(lambda: self._client.commit(offsets=offsets, asynchronous=False))
        return next((at.error for at in committed if at.error is not None), None)

    def committed(self, places: list[ClientPartition], timeout_seconds: float) -> list[ClientPartition]:
        return self._answered(lambda: self._client.committed(places, timeout=timeout_seconds))

    def look(self) -> None:
        """Has the client ask a broker, and counts its answer."""
        self._lookout.look(self._client, self._topics[0])

    def pause(self, places: Sequence[TopicPartition]) -> None:
        self._paused.update(places)
        self._each(places, self._client.pause)

    def resume(self, places: Sequence[TopicPartition]) -> None:
        self._paused.difference_update(places)
        self._each(places, self._client.resume)

    # This thread's own.

    def _answered(self, call: Callable[[], T]) -> T:
        """What a call returns. A refusal is an answer, too; what the client itself says, by numbers below 0, is none."""
        try:
            answer = call()
        except KafkaException as failure:
            if failure.args[0].code() > 0:
                self._lookout.heard()
            raise
        self._lookout.heard()
        return answer

    def _deliver(self, item: Item) -> bool:
        return not self._abandoned and self._tell_loop(item)

    def _on_lost(self, places: list[TopicPartition], generation: int) -> None:
        if not self._abandoned:
            self._tell_lost(places, generation)

    def _add_room(self) -> None:
        self._room += 1

    def _begin_stopping(self) -> None:
        self._stopping = True

    def _each(self, places: Sequence[TopicPartition], act: Callable[[list[ClientPartition]], None]) -> None:
        try:
            act([ClientPartition(*place) for place in places])
        except KafkaException as error:  # a partition that has gone meanwhile
            logger.debug("%s: %s", self._group, error)

    def _run(self) -> None:
        try:
            self._client.subscribe(self._topics, on_assign=self._assigned, on_revoke=self._revoked, on_lost=self._lost)
            while not self._stopping:
                self._serve_inbox(wait=self._room <= 0)
                if self._room > 0 and not self._stopping:
                    self._fetch()
                    self._look_up_ends()
        except BrokersLost as lost:
            self._deliver(lost)
        except Exception as error:  # noqa: BLE001  every poll raises it from now on
            self.failure = translate(error, self._group, "Read") if isinstance(error, KafkaException) else error
            self._generation += 1
            self._on_lost(list(self._held), self._generation)
            self._deliver(self.failure)
            while not self._stopping:
                self._serve_inbox(wait=True)
        finally:
            self._stopping = True
            self._client.close()
            self._on_end()

    def _serve_inbox(self, *, wait: bool) -> None:
        while True:
            try:
                self._serve_one(wait=wait)
            except Empty:
                return
            wait = False

    def _serve_one(self, *, wait: bool) -> None:
        """Raises: Empty where none is there and it is not to wait."""
        self._inbox.get(wait)()

    def _fetch(self) -> None:
        message = self._client.poll(POLL_SECONDS)
        if message is None:
            if self._inbox.empty() and self._lookout.is_lost(self._client, self._topics[0]):
                raise BrokersLost
            return
        self._lookout.heard()
        self._given_up.clear()
        messages = [message, *self._client.consume(BATCH_RECORDS - 1, 0)]
        records = self._records_of(messages)
        # A rebalance inside consume() happens when some of the records it returns were taken out already. (No place comes
        # back within one call: that takes two more heartbeats.)
        if self._given_up:
            records = [record for record in records if (record.topic, record.partition) not in self._given_up]
        if records:
            self._room -= 1
            self._stopping |= not self._deliver(Batch(self._generation, records))

    def _look_up_ends(self) -> None:
        now = time.monotonic()
        if now < self._next_ends:
            return
        self._next_ends = now + ENDS_SECONDS
        for place, partition in self._held.items():
            try:
                _, self.ends[place] = self._client.get_watermark_offsets(partition, cached=True)
            except KafkaException:  # not fetched yet
                self.ends[place] = -1

    def _records_of(self, messages: list[Message]) -> list[Record]:
        good = []
        for message in messages:
            if message.error() is None:
                good.append(message)
            else:
                self._report(message)
        return self._repeated.without([record_of(message) for message in good], good)

    def _report(self, message: Message) -> None:
        error = message.error()
        assert error is not None
        taken = self._membership.name_taken(error, self._group)
        if taken is not None:
            if not self._has_just_left:
                raise taken
            said = "the broker still counts this process's member of before, which has its name"
            raise Unavailable(f"{self._group}: {said}")
        topic = message.topic() if error.code() == KafkaError.TOPIC_AUTHORIZATION_FAILED else None
        failure = translate(error, topic or self._group, "Read")
        if error.fatal() or not isinstance(failure, Unavailable):
            self._deliver(failure)
        else:  # the client tries again by itself
            logger.warning("%s", failure)

    # Called by the client on this thread, inside poll, consume or close.

    def _assigned(self, _: Client, partitions: list[ClientPartition]) -> None:
        rebalance = self._new("assigned", partitions)
        self._announce(rebalance)
        self._repeated.forget(rebalance.places)  # also what was taken out of the client while it gave them up
        if not self._stopping:
            starts = rebalance.starts
            placed = [ClientPartition(*place, starts.get(place, OFFSET_INVALID)) for place in rebalance.places]
            assign = self._client.assign if self._is_eager else self._client.incremental_assign
            assign(placed)
            self._held.update({place: ClientPartition(*place) for place in rebalance.places})
            paused = [place for place in rebalance.places if place in self._paused]
            if paused:
                self.pause(paused)

    def _revoked(self, _: Client, partitions: list[ClientPartition]) -> None:
        self._give_up(self._new("revoked", partitions), partitions)

    def _lost(self, _: Client, partitions: list[ClientPartition]) -> None:
        rebalance = self._new("lost", partitions)
        self._on_lost(rebalance.places, rebalance.generation)
        self._give_up(rebalance, partitions)

    def _give_up(self, rebalance: Rebalance, partitions: list[ClientPartition]) -> None:
        self._announce(rebalance)
        self._paused.difference_update(rebalance.places)
        self._given_up.update(rebalance.places)
        for place in rebalance.places:
            self._held.pop(place, None)
            self.ends.pop(place, None)
        if self._is_eager:  # then these are all there are
            self._client.unassign()
        else:
            self._client.incremental_unassign(partitions)

    def _new(self, kind: Literal["assigned", "revoked", "lost"], partitions: list[ClientPartition]) -> Rebalance:
        self._generation += 1
        places = sorted(TopicPartition(partition.topic, partition.partition) for partition in partitions)
        return Rebalance(kind, places, self._generation)

    def _announce(self, rebalance: Rebalance) -> None:
        """Waits until the listener has heard of it. Calls made after that wait for the change itself."""
        if self._stopping or not self._deliver(rebalance):
            return
        while not (rebalance.finished or self._stopping):
            self._serve_one(wait=True)
