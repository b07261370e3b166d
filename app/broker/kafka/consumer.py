"""A member of a Kafka consumer group, as the loop sees it. The polling itself is `polling`'s.

Which records count is decided here, when they are taken: every batch carries a generation, and a place knows since which
one it is held, or was moved. So records that a lost partition or a seek left behind are never returned.

A commit checks the epochs on the polling thread, which also gives partitions up: none can pass the check and reach the
broker after the epoch's end. One that is under way in a client which is left behind may; the broker takes it only as long as
it counts that member as the owner, and then nobody else has begun.
"""

import asyncio
import logging
import math
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from typing import TypeVar

from confluent_kafka import OFFSET_BEGINNING, KafkaError, KafkaException
from confluent_kafka import Consumer as Client
from confluent_kafka import TopicPartition as ClientPartition

from app.broker.base import MAX_METADATA_CHARACTERS, Assignment, CommittedOffset, RebalanceListener
from app.broker.kafka.cluster import ANSWER_SECONDS, Cluster
from app.broker.kafka.errors import translate
from app.broker.kafka.lost import LOOK_SECONDS, Lookout
from app.broker.kafka.membership import INSTANCE_SESSION_MS, UNNAMED, Membership
from app.broker.kafka.polling import Batch, BrokersLost, Item, PollingThread, Rebalance
from app.broker.kafka.repeated import Repeated
from app.broker.kafka.threads import call_loop, run_through
from app.core.errors import Fenced, Rejected, Unavailable
from app.core.record import Record, TopicPartition
from app.core.text import one_line

T = TypeVar("T")
logger = logging.getLogger(__name__)

GROUP_SECONDS = 10.0
"""After this a commit is unavailable; the client may still send it, but only while the partition is held."""

STALE_CODES = (KafkaError.STALE_MEMBER_EPOCH, KafkaError.ILLEGAL_GENERATION)
STALE_ATTEMPTS = 20
RETRY_SECONDS = 0.05
"""A living member's epoch, or generation, is stale for the moment between two heartbeats; after a second it has lost its
partitions."""

CLOSE_SECONDS = 5.0
"""How long leaving the group may take before its thread is left behind."""


class KafkaConsumer:
    """Keeps the contract of `base.Consumer`."""

    def __init__(
        self,
        cluster: Cluster,
        group: str,
        topics: Sequence[str],
        listener: RebalanceListener,
        membership: Membership = UNNAMED,
    ) -> None:
        self.group = group
        self.topics = tuple(topics)
        self._cluster = cluster
        self._listener = listener
        self._membership = membership
        self._polling: PollingThread | None = None
        self._ended = asyncio.Event()
        self._closed = self._was_member = False
        self._logs: dict[str, str] = {}
        self._inbox: deque[Item] = deque()
        self._arrived = asyncio.Event()
        # The next three are changed in single steps: by the loop, and by the polling thread for a seek or a loss.
        self._assigned: dict[TopicPartition, Assignment] = {}
        self._since: dict[TopicPartition, int] = {}
        self._newest = 0
        self._coming: Rebalance | None = None
        self._looking: asyncio.Task[None] | None = None

    async def start(self) -> None:
        assert self._polling is None, "started twice"
        await self._cluster.require_topics(self.topics)
        self._logs = await self._cluster.log_ids(self.topics)
        self._poll_with(self._new_client(), 0)

    def _new_client(self) -> Client:
        try:
            return Client(
                self._cluster.settings(
                    group_id=self.group,
                    logger=_ClientLog(),
                    **self._membership.settings(len(self.topics)),
                    enable_auto_commit=False,
                    enable_auto_offset_store=False,
                    auto_offset_reset="earliest",
                    fetch_queue_backoff_ms=5,
                    fetch_wait_max_ms=100,
                    queued_max_messages_kbytes=16_384,
                )
            )
        except KafkaException as error:
            raise translate(error, self.group) from None

    def _poll_with(self, client: Client, generation: int) -> None:
        """generation: of what came before."""
        loop, self._ended = asyncio.get_running_loop(), asyncio.Event()
        polling = self._polling = PollingThread(
            client,
            self.group,
            self.topics,
            membership=self._membership,
            lookout=Lookout(self._cluster.probe, self._membership.lost_after_s),
            repeated=Repeated(self._logs, self._cluster.log_id),
            deliver=lambda item: call_loop(loop, self._arrive, polling, item),
            on_lost=self._lose,
            on_end=partial(call_loop, loop, self._ended.set),
            generation=generation,
            has_just_left=time.monotonic()
            < self._cluster.left_at_s.get(self.group, -math.inf) + INSTANCE_SESSION_MS / 1000,
        )
        polling.start()

    def _arrive(self, polling: PollingThread, item: Item) -> None:
        if polling is self._polling:  # else it was on its way when that thread was left behind
            self._inbox.append(item)
            self._arrived.set()

    def _lose(self, places: list[TopicPartition], generation: int) -> None:
        """On the polling thread: from here on nothing of these places is committed or returned."""
        self._newest = generation
        for place in places:
            self._since.pop(place, None)

    async def poll(self, max_records: int = 500, timeout_ms: int = 100) -> list[Record]:
        assert self._polling is not None, "not started"
        loop = asyncio.get_running_loop()
        deadline = loop.time() + timeout_ms / 1000
        while True:
            self._arrived.clear()
            while self._inbox:
                item = self._inbox[0]
                if isinstance(item, Batch):
                    records = self._take(item, max_records)
                    if records:
                        return records
                    continue
                if isinstance(item, BrokersLost):
                    await self._join_anew("this member has lost the brokers, which others reach")
                    continue
                self._inbox.popleft()
                if isinstance(item, Exception):
                    raise item
                await self._rebalance(item)
            failure = self._polling.failure
            if isinstance(failure, Unavailable):  # as the caller was told a poll ago
                await self._join_anew(one_line(failure))
            elif failure is not None:
                raise failure
            remaining = deadline - loop.time()
            if remaining <= 0:
                return []
            try:
                async with asyncio.timeout(remaining):
                    await self._arrived.wait()
            except TimeoutError:
                return []

    def _take(self, batch: Batch, max_records: int) -> list[Record]:
        """Takes the first batch of the inbox, or its beginning: what of it still counts."""
        assert self._polling is not None
        records = batch.records
        if len(records) > max_records:
            self._inbox[0] = Batch(batch.generation, records[max_records:])
            records = records[:max_records]
        else:
            self._inbox.popleft()
            self._polling.took_batch()
        if batch.generation < self._newest:
            newer = batch.generation + 1
            since = self._since
            records = [r for r in records if since.get(TopicPartition(r.topic, r.partition), newer) < newer]
        return records

    async def _rebalance(self, change: Rebalance) -> None:
        """Tells the listener; whatever becomes of that, the polling thread goes on."""
        assert self._polling is not None
        self._newest = max(self._newest, change.generation)
        if change.kind == "assigned":
            assignments = [Assignment(*place, change.generation) for place in change.places]
            for assignment in assignments:
                self._assigned[assignment.place] = assignment
                self._since[assignment.place] = change.generation
            self._coming, self._was_member = change, True
        else:
            assignments = [self._assigned[place] for place in change.places if place in self._assigned]
        try:
            if change.kind == "assigned":
                await self._listener.on_assigned(assignments)
            elif change.kind == "revoked":
                await self._listener.on_revoked(assignments)
            else:
                self._forget(change.places)
                await self._listener.on_lost(assignments)
        except BrokersLost:
            self._arrive(self._polling, BrokersLost())  # of `committed`
        finally:
            self._coming = None
            if change.kind != "assigned":
                self._forget(change.places)
            self._polling.tell(change.finish)

    async def _join_anew(self, why: str) -> None:
        """With another client on another thread; everything is lost that was held. Raises: what `start` raises where no
        client can be opened; to be called again after Unavailable."""
        assert self._polling is not None, "not started"
        client = self._new_client()
        logger.warning("%s: %s; it joins anew", self.group, why)
        self._note_left()
        self._newest = self._polling.abandon()
        self._inbox.clear()
        held = list(self._assigned.values())
        self._forget([one.place for one in held])
        self._poll_with(client, self._newest)
        if held:
            await self._listener.on_lost(held)

    def _note_left(self) -> None:
        if self._was_member:
            self._cluster.left_at_s[self.group] = time.monotonic()
            self._was_member = False

    def _forget(self, places: Iterable[TopicPartition]) -> None:
        for place in places:
            self._assigned.pop(place, None)
            self._since.pop(place, None)

    def assignments(self) -> frozenset[Assignment]:
        return frozenset(held for place, held in self._assigned.items() if place in self._since)

    def pause(self, places: Iterable[TopicPartition]) -> None:
        self._tell_places(places, PollingThread.pause)

    def resume(self, places: Iterable[TopicPartition]) -> None:
        self._tell_places(places, PollingThread.resume)

    def _tell_places(
        self, places: Iterable[TopicPartition], act: Callable[[PollingThread, list[TopicPartition]], None]
    ) -> None:
        held, polling = [place for place in places if place in self._assigned], self._polling
        if held and polling is not None:
            polling.tell(lambda: act(polling, held))

    async def seek(self, place: TopicPartition, offset: int) -> None:
        assert self._polling is not None, "not started"
        deadline = asyncio.get_running_loop().time() + ANSWER_SECONDS
        while True:
            if place not in self._since:
                raise Fenced(f"{place}: not assigned to this consumer")
            if self._coming is not None and place in self._coming.places:
                self._coming.starts[place] = offset
                return
            error = await self._move(self._polling, place, offset)
            if error is None:
                return
            if error.code() != KafkaError._STATE:
                raise translate(error, str(place))
            if asyncio.get_running_loop().time() > deadline:
                raise Unavailable(f"{place}: its position had no answer for {ANSWER_SECONDS:.0f} s")
            await asyncio.sleep(RETRY_SECONDS)  # just assigned: its first position is still being looked up

    async def _move(self, polling: PollingThread, place: TopicPartition, offset: int) -> KafkaError | None:
        def move() -> KafkaError | None:  # on the polling thread
            try:
                generation = polling.seek(place, offset)
            except KafkaException as failure:
                return _error_of(failure)
            if place in self._since:
                self._since[place] = self._newest = generation
            return None

        return await self._ask(move)

    async def commit(self, offsets: Mapping[Assignment, CommittedOffset]) -> None:
        self._refuse_ended(offsets)
        for assignment, committed in offsets.items():
            if len(committed.metadata) > MAX_METADATA_CHARACTERS:
                raise Rejected(f"{assignment.place}: commit metadata of {len(committed.metadata)} characters")
        if not offsets:
            return
        for attempt in range(STALE_ATTEMPTS):
            assert self._polling is not None, "not started"
            error = await self._ask(partial(self._commit_once, self._polling, offsets))
            if error is None:
                return
            if error.code() not in STALE_CODES or attempt + 1 == STALE_ATTEMPTS:
                raise translate(error, f"commit of {self.group}", "Read")
            await asyncio.sleep(RETRY_SECONDS)

    def _commit_once(self, polling: PollingThread, offsets: Mapping[Assignment, CommittedOffset]) -> KafkaError | None:
        """On the polling thread; of one that was left behind every epoch has ended."""
        self._refuse_ended(offsets)
        try:
            return polling.commit([ClientPartition(*at.place, to.offset, to.metadata) for at, to in offsets.items()])
        except KafkaException as error:
            return _error_of(error)

    async def _ask(self, call: Callable[[], T]) -> T:
        polling = self._polling
        assert polling is not None, "not started"
        try:
            async with asyncio.timeout(GROUP_SECONDS):
                return await run_through(polling.tell, call)
        except TimeoutError:
            # A client that has lost its brokers keeps a commit for its session's time, and its thread with it.
            self._look(polling)
            message = f"{self._cluster.address}: group {self.group} had no answer for {GROUP_SECONDS:.0f} s"
            raise Unavailable(message) from None
        except Unavailable:
            self._look(polling)
            raise

    def _look(self, polling: PollingThread) -> None:
        if polling is self._polling and (self._looking is None or self._looking.done()):
            self._looking = asyncio.create_task(self._look_whether_lost(polling))

    async def _look_whether_lost(self, polling: PollingThread) -> None:
        """A client is lost that has no answer while others have. It is still to be waited for when it had no broker either,
        while nobody had one; and where it was asked nothing it is asked."""
        answers = polling.answers
        if not await self._cluster.answers():
            return
        await asyncio.sleep(self._membership.lost_after_s)
        if polling.answers == answers:
            with suppress(TimeoutError):
                async with asyncio.timeout(2 * LOOK_SECONDS):
                    await run_through(polling.tell, polling.look)
        if polling.answers == answers and await self._cluster.answers():
            polling.is_lost = True
            self._arrive(polling, BrokersLost())

    def _refuse_ended(self, offsets: Iterable[Assignment]) -> None:
        for held in offsets:
            if self._assigned.get(held.place) != held or held.place not in self._since:
                raise Fenced(f"{held.place}: epoch {held.epoch} has ended")

    async def committed(self, places: Iterable[TopicPartition]) -> dict[TopicPartition, CommittedOffset | None]:
        polling = self._polling
        assert polling is not None, "not started"
        wanted = [ClientPartition(*place) for place in places]
        if self._coming is not None and polling.is_lost:  # what has come is no more, and its listener need not wait
            raise BrokersLost

        def ask() -> dict[TopicPartition, CommittedOffset | None]:
            try:
                found = polling.committed(wanted, ANSWER_SECONDS)
            except KafkaException as error:
                raise translate(error, f"group {self.group}", "Read") from None
            return {TopicPartition(at.topic, at.partition): _committed_of(at) for at in found}

        found = await self._ask(ask) if wanted else {}
        if self._coming is not None:
            # Else the client looks them up once more, and waits for ever where the coordinator moves meanwhile (librdkafka 5586).
            for place, committed in found.items():
                self._coming.starts.setdefault(place, committed.offset if committed else OFFSET_BEGINNING)
        return found

    def known_end_offset(self, place: TopicPartition) -> int:
        if self._polling is None or place not in self._since:
            return -1
        return max(self._polling.ends.get(place, -1), -1)

    async def close(self) -> None:
        if self._closed or self._polling is None:
            self._closed = True
            return
        self._closed = True
        if self._looking is not None:
            self._looking.cancel()
        try:
            for item in self._inbox:
                if isinstance(item, Rebalance) and item.kind == "lost":
                    await self._listener.on_lost([self._assigned[p] for p in item.places if p in self._assigned])
            held = list(self.assignments())
            if held:
                await self._listener.on_revoked(held)
        finally:
            self._assigned.clear()
            self._since.clear()
            self._inbox.clear()
            self._polling.stop()
            await self._wait_until_ended()
            self._note_left()

    async def _wait_until_ended(self) -> None:
        try:
            async with asyncio.timeout(CLOSE_SECONDS):
                await self._ended.wait()
        except TimeoutError:
            logger.warning("%s: left the group %s without an answer", self._cluster.address, self.group)


class _ClientLog:
    """Takes the client's own last words, which would go to stderr: what they say reaches the caller as an error."""

    def log(self, level: int, *words: object) -> None:
        logger.debug(*words)


def _error_of(failure: KafkaException) -> KafkaError:
    error = failure.args[0]
    assert isinstance(error, KafkaError)
    return error


def _committed_of(at: ClientPartition) -> CommittedOffset | None:
    """None where nothing was committed. Raises: the translated error of this partition."""
    if at.error is not None:
        raise translate(at.error, f"{at.topic}/{at.partition}", "Read")
    return CommittedOffset(at.offset, at.metadata or "") if at.offset >= 0 else None
