"""A member of a Kafka consumer group through aiokafka: eager rebalances, all within the event loop.

Every rebalance takes all partitions away and gives those that stay back, with new epochs. The library calls its listener
from a task of its own, logs what that raises, and does not beat its heart while partitions are being assigned. So its
callbacks only leave a note, which the next `poll` reads and tells our listener about; before a revocation they wait for
that, and newly assigned partitions are paused until then.

One call into the library that waits for records outlives the polls, so that cancelling a poll loses none; what it found
is handed out piece by piece.
"""

import asyncio
import logging
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import Literal

from aiokafka import AIOKafkaConsumer, ConsumerRebalanceListener, ConsumerRecord
from aiokafka import TopicPartition as ClientPartition
from aiokafka.coordinator.assignors.range import RangePartitionAssignor
from aiokafka.errors import GroupAuthorizationFailedError, KafkaError, TopicAuthorizationFailedError

from app.broker.aiokafka.cluster import READING, Cluster, client_places, end
from app.broker.aiokafka.coordinator import Coordinator
from app.broker.aiokafka.errors import translate
from app.broker.aiokafka.records import record_of
from app.broker.base import MAX_METADATA_CHARACTERS, Assignment, CommittedOffset, RebalanceListener
from app.core.errors import Fenced, Rejected
from app.core.record import Record, TopicPartition

logger = logging.getLogger(__name__)

SESSION_TIMEOUT_MS = 10_000
"""How long a member may be silent before its partitions are given to others: half the time that an alert has by default."""

HEARTBEAT_MS = 1_000
"""How soon a member hears of a rebalance, and so how long all of them stand still for one, beside their draining."""

REBALANCE_TIMEOUT_MS = 30_000
"""How long a member may drain its work before it joins again; the library's own is the session's 10 s."""

MAX_POLL_INTERVAL_MS = 300_000
"""A member that is not polled for so long leaves its group."""

FETCH_RECORDS = 500
FETCH_SECONDS = 1.0
CLOSE_SECONDS = 5.0
"""How long leaving the group may take before it is left to the session's timeout."""


class _Change:
    """An assignment or a revocation that our listener has not heard of."""

    def __init__(self, kind: Literal["assigned", "revoked"], places: list[TopicPartition]) -> None:
        self.kind = kind
        self.places = places
        self.told = asyncio.Event()


class AioKafkaConsumer:
    """Keeps the contract of `base.Consumer`."""

    def __init__(self, cluster: Cluster, group: str, topics: Sequence[str], listener: RebalanceListener) -> None:
        self.group = group
        self.topics = tuple(topics)
        self._cluster = cluster
        self._listener = listener
        self._client: AIOKafkaConsumer | None = None
        self._closed = False
        self._left = False
        self._epoch = 0
        self._assigned: dict[TopicPartition, Assignment] = {}
        self._coming: set[TopicPartition] = set()
        self._paused: set[TopicPartition] = set()
        self._changes: deque[_Change] = deque()
        self._arrived = asyncio.Event()
        self._fetching: asyncio.Task[dict[ClientPartition, list[ConsumerRecord]]] | None = None
        self._fetched: deque[Record] = deque()
        self._failure: Exception | None = None

    async def start(self) -> None:
        assert self._client is None, "started twice"
        await self._cluster.require_topics(self.topics)
        client = AIOKafkaConsumer(
            **self._cluster.settings(
                **READING,
                group_id=self.group,
                session_timeout_ms=SESSION_TIMEOUT_MS,
                heartbeat_interval_ms=HEARTBEAT_MS,
                rebalance_timeout_ms=REBALANCE_TIMEOUT_MS,
                max_poll_interval_ms=MAX_POLL_INTERVAL_MS,
                partition_assignment_strategy=(RangePartitionAssignor,),
            )
        )
        self._client = await self._cluster.open(client)
        self._coordinator = Coordinator(client, self.group)
        client.subscribe(list(self.topics), listener=_Notes(self))

    async def poll(self, max_records: int = 500, timeout_ms: int = 100) -> list[Record]:
        assert self._client is not None, "not started"
        loop = asyncio.get_running_loop()
        deadline = loop.time() + timeout_ms / 1000
        while True:
            self._arrived.clear()
            while self._changes:
                await self._rebalance(self._changes.popleft())
            self._take_fetched()
            if self._fetched:
                return [self._fetched.popleft() for _ in range(min(max_records, len(self._fetched)))]
            if self._fetching is None:
                self._fetching = asyncio.create_task(
                    self._client.getmany(timeout_ms=int(FETCH_SECONDS * 1000), max_records=FETCH_RECORDS)
                )
                self._fetching.add_done_callback(lambda _: self._arrived.set())
            remaining = deadline - loop.time()
            if remaining <= 0:
                return []
            try:
                async with asyncio.timeout(remaining):
                    await self._arrived.wait()
            except TimeoutError:
                return []

    def _take_fetched(self) -> None:
        """Takes what the call into the library has found, if it has ended. Raises: what it raised."""
        if self._failure is not None:
            raise self._failure
        if self._fetching is None or not self._fetching.done():
            return
        fetching, self._fetching = self._fetching, None
        try:
            found = fetching.result()
        except (TopicAuthorizationFailedError, GroupAuthorizationFailedError) as error:
            raise translate(error, self.group) from None
        except Exception as error:  # noqa: BLE001
            # What the library had taken of other partitions by then is lost with it, and it would go on behind that. So
            # this is the end, whatever it was.
            self._failure = translate(error, self.group) if isinstance(error, KafkaError) else error
            raise self._failure from None
        for records in found.values():
            self._fetched.extend(map(record_of, records))

    def _drop_fetched(self, gone: Iterable[TopicPartition]) -> None:
        """Records of these places that were fetched are returned no more."""
        fetching = self._fetching
        if self._failure is None and fetching is not None and fetching.done() and fetching.exception() is None:
            self._take_fetched()
        places = set(gone)
        self._fetched = deque(record for record in self._fetched if (record.topic, record.partition) not in places)

    # Changes of the assignment

    def note_assigned(self, places: list[TopicPartition]) -> None:
        """By the library: nothing of these places has been asked for yet."""
        assert self._client is not None
        self._coordinator.begin()
        self._client.pause(*client_places(places))
        self._note(_Change("assigned", places))

    async def note_revoked(self) -> None:
        """By the library, which joins its group again when this returns: all partitions go."""
        if not self._left and (self._assigned or self._changes):
            change = _Change("revoked", [])
            self._note(change)
            await change.told.wait()

    def _note(self, change: _Change) -> None:
        self._changes.append(change)
        self._arrived.set()

    async def _rebalance(self, change: _Change) -> None:
        """Tells the listener; whatever becomes of that, the library goes on."""
        try:
            if change.kind == "assigned":
                await self._assign(change.places)
            else:
                await self._give_up()
        finally:
            change.told.set()

    async def _assign(self, places: list[TopicPartition]) -> None:
        self._epoch += 1
        assignments = [Assignment(*place, self._epoch) for place in places]
        self._assigned = {assignment.place: assignment for assignment in assignments}
        self._coming = set(places)
        try:
            if assignments:
                await self._listener.on_assigned(assignments)
        finally:
            self._coming = set()
            self._resume(place for place in places if place not in self._paused)

    async def _give_up(self) -> None:
        """The library says the same of partitions that are only wanted back and of those that are another's already."""
        assignments = list(self._assigned.values())
        self._drop_fetched(self._assigned)
        try:
            if self._coordinator.holds():
                await self._listener.on_revoked(assignments)
            else:
                self._assigned = {}
                await self._listener.on_lost(assignments)
        finally:
            self._drop_fetched(assignment.place for assignment in assignments)
            self._assigned = {}
            self._paused.clear()

    def assignments(self) -> frozenset[Assignment]:
        if not self._assigned or not self._coordinator.holds():
            return frozenset()
        return frozenset(self._assigned.values())

    def pause(self, places: Iterable[TopicPartition]) -> None:
        held = [place for place in places if place in self._assigned]
        self._paused.update(held)
        if held and self._client is not None:
            self._client.pause(*client_places(held))

    def resume(self, places: Iterable[TopicPartition]) -> None:
        held = [place for place in places if place in self._assigned]
        self._paused.difference_update(held)
        self._resume(place for place in held if place not in self._coming)

    def _resume(self, places: Iterable[TopicPartition]) -> None:
        if self._client is not None:
            self._client.resume(*client_places(place for place in places if place in self._assigned))

    async def seek(self, place: TopicPartition, offset: int) -> None:
        assert self._client is not None, "not started"
        if place not in self._assigned or not self._coordinator.holds():
            raise Fenced(f"{place}: not assigned to this consumer")
        self._drop_fetched([place])
        self._client.seek(ClientPartition(*place), offset)

    async def commit(self, offsets: Mapping[Assignment, CommittedOffset]) -> None:
        self._refuse_ended(offsets)
        for held, committed in offsets.items():
            if len(committed.metadata) > MAX_METADATA_CHARACTERS:
                raise Rejected(f"{held.place}: commit metadata of {len(committed.metadata)} characters")
        if offsets:
            positions = {held.place: committed for held, committed in offsets.items()}
            await self._coordinator.commit(positions, partial(self._refuse_ended, offsets))

    def _refuse_ended(self, offsets: Iterable[Assignment]) -> None:
        for held in offsets:
            if self._assigned.get(held.place) != held or not self._coordinator.holds():
                raise Fenced(f"{held.place}: epoch {held.epoch} has ended")

    async def committed(self, places: Iterable[TopicPartition]) -> dict[TopicPartition, CommittedOffset | None]:
        assert self._client is not None, "not started"
        return await self._coordinator.committed(places)

    def known_end_offset(self, place: TopicPartition) -> int:
        if self._client is None or place not in self._assigned:
            return -1
        end_offset = self._client.highwater(ClientPartition(*place))
        return -1 if end_offset is None else end_offset

    async def close(self) -> None:
        if self._closed or self._client is None:
            self._closed = True
            return
        self._closed = True
        client = self._client
        try:
            if self._assigned:
                await self._give_up()
        finally:
            self._left = True
            self._assigned = {}
            for change in self._changes:
                change.told.set()
            self._changes.clear()
            self._fetched.clear()
            await self._end_fetching()
            await self._leave(client)

    async def _leave(self, client: AIOKafkaConsumer) -> None:
        try:
            async with asyncio.timeout(CLOSE_SECONDS):
                await end(client)
        except TimeoutError:  # in the midst of a rebalance that waits for others, or without a broker
            logger.warning("%s: left the group %s without an answer", self._cluster.address, self.group)
            await self._coordinator.abandon(client)

    async def _end_fetching(self) -> None:
        if self._fetching is not None:
            self._fetching.cancel()
            await asyncio.wait([self._fetching])
            if not self._fetching.cancelled():
                self._fetching.exception()  # nobody polls any more
            self._fetching = None


class _Notes(ConsumerRebalanceListener):  # type: ignore[misc]  # the library has no types
    """What the library tells."""

    def __init__(self, consumer: AioKafkaConsumer) -> None:
        self._consumer = consumer

    async def on_partitions_revoked(self, revoked: Iterable[ClientPartition]) -> None:
        await self._consumer.note_revoked()

    async def on_partitions_assigned(self, assigned: Iterable[ClientPartition]) -> None:
        self._consumer.note_assigned(sorted(TopicPartition(*place) for place in assigned))
