"""One cluster as this process knows it through aiokafka: addresses, the settings that every client shares, and the two
clients that questions are asked with. Every question ends within `ANSWER_SECONDS`.
"""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import Any, TypeVar

from aiokafka import AIOKafkaConsumer, AIOKafkaProducer
from aiokafka import TopicPartition as ClientPartition
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.client import AIOKafkaClient
from aiokafka.conn import create_conn
from aiokafka.errors import KafkaError, UnknownTopicOrPartitionError
from aiokafka.protocol.metadata import MetadataRequest

from app.broker.addresses import servers_of
from app.broker.aiokafka.errors import refused_login, translate, translate_code
from app.broker.diagnosis import diagnose
from app.core.errors import HeadraceError, Rejected, Unavailable
from app.core.record import TopicPartition
from app.core.security import OPEN_BROKER, BrokerSecurity, tls_context

T = TypeVar("T")
AnyClient = TypeVar("AnyClient", AIOKafkaAdminClient, AIOKafkaConsumer, AIOKafkaProducer)
logger = logging.getLogger(__name__)

ANSWER_SECONDS = 8.0
"""How long a server may take to answer; the contract says unavailable within 10 s, and a command has to start too."""

START_SECONDS = 5.0
WHY_SECONDS = 1.0
"""How long a client's first answer may take, and twice how long is asked why there was none."""

REQUEST_TIMEOUT_MS = 40_000
"""Of one request; a join waits inside of one for all members of its group (`consumer.REBALANCE_TIMEOUT_MS`)."""

METADATA_AGE_MS = 60_000
"""After so long a client looks at the leaders and partitions again, also where nothing failed."""

SCHEME = "aiokafka://"

CLIENT_ID = "headrace"
"""What the broker's logs and quotas call us."""

TELL_AGAIN_SECONDS = 10.0
"""How often what the library complains of is worth a line of the log."""


class Cluster:
    """Shared by all consumers, producers and readers of one `AioKafkaBroker`."""

    def __init__(self, address: str, security: BrokerSecurity = OPEN_BROKER) -> None:
        self.address = address
        self._servers = servers_of(address, SCHEME)
        self._security = security
        self._words = _security_words(security)
        self._opening = asyncio.Lock()
        self._admin: AIOKafkaAdminClient | None = None
        self._looker: AIOKafkaConsumer | None = None

    def settings(self, **more: Any) -> dict[str, Any]:
        """Settings of a client."""
        return {
            "bootstrap_servers": self._servers,
            "client_id": CLIENT_ID,
            "request_timeout_ms": REQUEST_TIMEOUT_MS,
            "metadata_max_age_ms": METADATA_AGE_MS,
            **self._words,
            **more,
        }

    async def open(self, client: AnyClient) -> AnyClient:
        """Starts a client; one that does not start is ended.

        Raises: Unavailable within 10 s when no broker answers; Rejected when one does, and takes us for nobody.
        """
        _never_create_topics(client)
        try:
            started = await self._within(_start(client), START_SECONDS)
            _complaints.shown = True
            return started
        except Unavailable:
            raise await self._why_not() from None

    async def _why_not(self) -> HeadraceError:
        """The library keeps to itself why a server would not have it."""
        found = await asyncio.to_thread(diagnose, self._servers, self._security, WHY_SECONDS)
        if found is not None:
            return found
        failure: HeadraceError = Unavailable(f"{self.address}: no broker answers")
        try:
            async with asyncio.timeout(WHY_SECONDS):
                for server in self._servers.split(","):
                    host, _, port = server.rpartition(":")
                    try:
                        (await create_conn(host, int(port), client_id=CLIENT_ID, **self._words)).close()
                    except (KafkaError, OSError) as error:
                        failure = translate(error, self.address)
                        if isinstance(error, KafkaError) and (login := refused_login(error, self._security)):
                            return login
        except TimeoutError:
            pass
        return failure

    async def ask(self, question: Callable[[AIOKafkaAdminClient], Awaitable[T]]) -> T:
        """What `question(admin)` returns. Raises: Unavailable; Rejected; the translated error of the client."""
        async with self._opening:
            if self._admin is None:
                self._admin = await self.open(AIOKafkaAdminClient(**self.settings()))
        return await self._within(question(self._admin))

    async def _within(self, answer: Awaitable[T], seconds: float = ANSWER_SECONDS) -> T:
        try:
            async with asyncio.timeout(seconds):
                return await answer
        except TimeoutError:
            raise Unavailable(f"{self.address}: no answer within {seconds:.0f} s") from None
        except (KafkaError, OSError) as error:
            raise translate(error, self.address) from None

    async def topics(self, names: list[str] | None = None) -> dict[str, Any]:
        """What the cluster says of these topics, or of all that we may see, by name."""
        request = MetadataRequest(names, allow_auto_topic_creation=False)
        answer = await self.ask(lambda admin: admin._send_request(request))
        return {topic["topic"]: topic for topic in answer.to_object()["topics"]}

    async def require_topics(self, names: Iterable[str]) -> dict[str, int]:
        """How many partitions each of these topics has.

        Raises: Unavailable within 10 s when no broker answers; Rejected for a topic that is not there.
        """
        wanted, known = list(names), await self.topics()
        absent = [name for name in wanted if name not in known]
        if absent:  # those that one has no right to see are absent too
            known |= await self.topics(absent)
        partitions = {}
        for name in wanted:
            if name not in known or known[name]["error_code"] == UnknownTopicOrPartitionError.errno:
                raise Rejected(f"{name}: unknown topic; create it with: python -m app topics create")
            error = translate_code(known[name]["error_code"], None, name)
            if error is not None:
                raise error
            partitions[name] = len(known[name]["partitions"])
        return partitions

    async def require_places(self, places: Iterable[TopicPartition]) -> None:
        """Raises: Unavailable; Rejected for a topic or partition that is not there."""
        wanted = list(places)
        partitions = await self.require_topics({place.topic for place in wanted})
        for place in wanted:
            if not 0 <= place.partition < partitions[place.topic]:
                raise Rejected(f"{place}: unknown partition, the topic has {partitions[place.topic]}")

    async def look_up(
        self, places: Iterable[TopicPartition], question: Callable[[AIOKafkaConsumer], Awaitable[Mapping[Any, T]]]
    ) -> dict[TopicPartition, T]:
        """What `question(consumer)` says of each of these places, which are there.

        Raises: Unavailable; Rejected.
        """
        await self.require_places(places)
        async with self._opening:
            if self._looker is None:
                self._looker = await self.open(AIOKafkaConsumer(**self.settings(**READING)))
        found = await self._within(question(self._looker))
        return {TopicPartition(*place): value for place, value in found.items()}

    async def close(self) -> None:
        """Ends the clients that questions are asked with. May be called twice."""
        admin, self._admin = self._admin, None
        looker, self._looker = self._looker, None
        for client in (admin, looker):
            if client is not None:
                await end(client)


READING = {
    "auto_offset_reset": "earliest",
    "enable_auto_commit": False,
    "isolation_level": "read_committed",
    "fetch_max_wait_ms": 100,
    "max_partition_fetch_bytes": 1_048_576,
    "fetch_max_bytes": 33_554_432,
}
"""Of every client that reads. The library's own: `latest`, which passes over what came before the group; a commit every
5 s of what was fetched, done or not; records of transactions that were given up."""


class _Seldom(logging.Handler):
    """The library repeats its complaints several times a second while a broker is away. Before a client has started at
    all, whoever starts it is told."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.shown = False
        self._again_s = 0.0

    def emit(self, record: logging.LogRecord) -> None:
        now_s = time.monotonic()
        if self.shown and now_s >= self._again_s:
            self._again_s = now_s + TELL_AGAIN_SECONDS
            logger.warning("%s", record.getMessage())


_library_log = logging.getLogger("aiokafka")
_library_log.propagate = False
_complaints = _Seldom()
_library_log.addHandler(_complaints)


def client_places(places: Iterable[TopicPartition]) -> list[ClientPartition]:
    return [ClientPartition(*place) for place in places]


async def _start(client: AnyClient) -> AnyClient:
    try:
        await client.start()
        await asyncio.sleep(0)  # one of its tasks, ended before it began, would break off the end of the client
    except BaseException:
        await end(client)
        raise
    return client


async def end(client: AIOKafkaAdminClient | AIOKafkaConsumer | AIOKafkaProducer) -> None:
    """Ends a client, started or not."""
    await (client.close() if isinstance(client, AIOKafkaAdminClient) else client.stop())


def _never_create_topics(client: AIOKafkaAdminClient | AIOKafkaConsumer | AIOKafkaProducer) -> None:
    """A question about one topic creates it where the cluster allows that, with no setting of ours, and the library has
    no option against it; the question about all of them creates none."""
    inner: Any = client.client if isinstance(client, AIOKafkaProducer) else client._client
    assert isinstance(inner, AIOKafkaClient)
    update = inner._metadata_update
    inner._metadata_update = lambda metadata, topics: update(metadata, None)


def _security_words(security: BrokerSecurity) -> dict[str, Any]:
    """The library's words for it. Raises: SetupError for certificates that cannot be used."""
    protocol = ("SASL_" if security.user else "") + ("SSL" if security.tls else "PLAINTEXT")
    words: dict[str, Any] = {"security_protocol": protocol}
    if security.user:
        words |= {
            "sasl_mechanism": security.mechanism,
            "sasl_plain_username": security.user,
            "sasl_plain_password": security.password,
        }
    if security.tls:
        words["ssl_context"] = tls_context("broker", security)
    return words
