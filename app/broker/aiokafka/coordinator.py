"""What a group's coordinator is told and asked on behalf of one member: commits, and what was committed.

The library's own commit tries again for ever, each time under the generation that the member has by then; and a member
that was expelled commits under none, which a broker takes from anybody while the group is empty. Here a commit carries
the generation that its partitions were assigned in: later ones are refused, by us and by the broker.

The library keeps the coordinator to itself; this module is the only one that reaches for it.
"""

import asyncio
import logging
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from aiokafka import AIOKafkaConsumer
from aiokafka.errors import GroupCoordinatorNotAvailableError, KafkaError, NotCoordinatorForGroupError
from aiokafka.protocol.commit import OffsetCommitRequest
from aiokafka.structs import OffsetAndMetadata

from app.broker.aiokafka.cluster import client_places
from app.broker.aiokafka.errors import translate, translate_code
from app.broker.base import CommittedOffset
from app.core.errors import HeadraceError, Unavailable
from app.core.record import TopicPartition

logger = logging.getLogger(__name__)

GROUP_SECONDS = 10.0
"""After this a commit is unavailable; a broker that gets it later takes it only under the same generation."""

RETRY_SECONDS = 0.05
ABANDON_SECONDS = 1.0
ELSEWHERE_CODES = (GroupCoordinatorNotAvailableError.errno, NotCoordinatorForGroupError.errno)


class Coordinator:
    """generation: of the assignment that holds now, as the broker counts; -1 for none."""

    def __init__(self, client: AIOKafkaConsumer, group: str) -> None:
        self.generation = -1
        self._group = group
        self._library: Any = client._coordinator

    def begin(self) -> None:
        """Partitions have been assigned."""
        self.generation = self._library.generation

    def holds(self) -> bool:
        """Whether the broker, as far as we know, still takes us for the member that was assigned."""
        return bool(0 <= self.generation == self._library.generation)

    async def commit(self, offsets: Mapping[TopicPartition, CommittedOffset], refuse_ended: Callable[[], None]) -> None:
        """refuse_ended: raises Fenced when an epoch has ended; asked before every attempt.

        Raises: Fenced; Unavailable; Rejected.
        """
        topics: defaultdict[str, list[tuple[int, int, str]]] = defaultdict(list)
        for place, committed in offsets.items():
            topics[place.topic].append((place.partition, committed.offset, _ended(committed.metadata)))
        member = self._library.member_id
        request = OffsetCommitRequest(self._group, self.generation, member, -1, list(topics.items()))
        failure: HeadraceError | None = None
        try:
            async with asyncio.timeout(GROUP_SECONDS):
                while True:
                    refuse_ended()
                    failure = await self._send(request)
                    if failure is None:
                        return
                    if not isinstance(failure, Unavailable):
                        raise failure
                    await asyncio.sleep(RETRY_SECONDS)
        except TimeoutError:
            raise failure or Unavailable(f"group {self._group} had no answer for {GROUP_SECONDS:.0f} s") from None

    async def _send(self, request: OffsetCommitRequest) -> HeadraceError | None:
        """The first partition's error, or None when the broker has them all."""
        library = self._library
        about = f"commit of {self._group}"
        try:
            await library.ensure_coordinator_known()
            response = await library._send_req(request)
        except (KafkaError, OSError) as error:
            return translate(error, about)
        code = next((code for _, places in response.topics for _, code in places if code), 0)
        if code in ELSEWHERE_CODES:
            library.coordinator_dead()  # it is looked up again
        return translate_code(code, None, about)

    async def committed(self, places: Iterable[TopicPartition]) -> dict[TopicPartition, CommittedOffset | None]:
        """Raises: Unavailable; Rejected."""
        wanted = list(places)
        try:
            async with asyncio.timeout(GROUP_SECONDS):
                found = await self._library.fetch_committed_offsets(client_places(wanted))
        except TimeoutError:
            raise Unavailable(f"group {self._group} had no answer for {GROUP_SECONDS:.0f} s") from None
        except (KafkaError, OSError) as error:
            raise translate(error, f"group {self._group}") from None
        return {place: committed_of(found[place]) if place in found else None for place in wanted}

    async def abandon(self, client: AIOKafkaConsumer) -> None:
        """Ends what the library left running when its own end was given up."""
        library: Any = self._library
        try:
            async with asyncio.timeout(ABANDON_SECONDS):
                await library._stop_heartbeat_task()
                await library._stop_commit_offsets_refresh_task()
                await library._maybe_leave_group()
        except (KafkaError, OSError) as error:
            logger.debug("%s: %s", self._group, error)
        finally:
            await client._fetcher.close()
            await client._client.close()


def _ended(metadata: str) -> str:
    """With the zero that librdkafka commits behind its strings: confluent-kafka reads on until it meets one, whoever
    committed."""
    return metadata + "\0" if metadata else ""


def committed_of(found: OffsetAndMetadata) -> CommittedOffset:
    """What was committed, by whichever client."""
    return CommittedOffset(found.offset, (found.metadata or "").removesuffix("\0"))
