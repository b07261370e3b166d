"""One cluster as this process knows it: addresses, the settings that every client shares, and one admin client.

Blocking questions are asked on a thread of its own and end within `ANSWER_SECONDS`.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Future
from typing import Any, TypeVar

from confluent_kafka import KafkaError, KafkaException
from confluent_kafka import TopicPartition as ClientPartition
from confluent_kafka.admin import AdminClient, OffsetSpec  # type: ignore[attr-defined]

from app.broker.kafka.errors import translate
from app.broker.kafka.threads import BlockingCalls
from app.core.errors import Rejected, SetupError, Unavailable
from app.core.record import TopicPartition
from app.core.security import OPEN_BROKER, BrokerSecurity
from app.core.settings import without_password

T = TypeVar("T")
logger = logging.getLogger(__name__)

ANSWER_SECONDS = 8.0
"""How long a server may take to answer; the contract says unavailable within 10 s, and a command has to start too."""

ASK_AGAIN_SECONDS = 0.05
"""After which a question is repeated that the server could not answer yet."""

TELL_AGAIN_SECONDS = 10.0
"""How often a cluster that is gone is worth a line of the log."""

SCHEME = "kafka://"

CLIENT_ID = "headrace"
"""What the broker's logs and quotas call us."""

EARLIEST, LATEST = -2, -1
"""Instead of a time, when asked for an offset."""


def servers_of(address: str) -> str:
    """`kafka://a:9092,b:9092` -> `a:9092,b:9092`.

    Raises: SetupError for any other form.
    """
    servers = address.removeprefix(SCHEME).rstrip("/").split(",")
    for server in servers:
        host, separator, port = server.rpartition(":")
        if not address.startswith(SCHEME) or not host or not separator or not port.isdigit():
            shown = without_password(address)
            raise SetupError("broker", f"{shown!r} is not an address; write kafka://host:port[,host:port]")
    return ",".join(servers)


class Cluster:
    """Shared by all consumers, producers and readers of one `KafkaBroker`."""

    def __init__(self, address: str, security: BrokerSecurity = OPEN_BROKER) -> None:
        self.address = address
        self._security = security
        self._servers = servers_of(address)
        self._calls = BlockingCalls("kafka-admin")
        self._admin: AdminClient | None = None
        self._tells_again_s = 0.0

    def settings(self, **more: Any) -> dict[str, Any]:
        """Settings of a client; underscores in names stand for dots."""
        return {
            "bootstrap.servers": self._servers,
            "client.id": CLIENT_ID,
            "log_level": 2,
            "error_cb": self._log,
            **_security_settings(self._security),
            "reconnect.backoff.max.ms": 1_000,
            "socket.timeout.ms": 10_000,
            **{name.replace("_", "."): value for name, value in more.items()},
        }

    def _log(self, error: KafkaError) -> None:
        """Clients report every failed attempt to connect; that all brokers are gone is said now and then, for all of them."""
        repeated = error.code() in (KafkaError._TRANSPORT, KafkaError._RESOLVE)
        if error.code() == KafkaError._ALL_BROKERS_DOWN:
            now_s = time.monotonic()
            repeated = now_s < self._tells_again_s
            if not repeated:
                self._tells_again_s = now_s + TELL_AGAIN_SECONDS
        logger.log(logging.DEBUG if repeated else logging.WARNING, "%s: %s", self.address, error.str())

    async def ask(self, question: Callable[[AdminClient], T]) -> T:
        """What `question(admin)` returns; it blocks on its own thread.

        Raises: the translated error of the client.
        """

        def call() -> T:
            try:
                if self._admin is None:
                    self._admin = AdminClient(self.settings())
                return question(self._admin)
            except KafkaException as error:
                raise translate(error, self.address) from None

        return await self._calls.run(call)

    async def require_topics(self, topics: Iterable[str]) -> None:
        """Raises: Unavailable within 10 s when no broker answers; Rejected for a topic that is not there."""
        await self.ask(lambda admin: _require_topics(admin, topics, time.monotonic() + ANSWER_SECONDS))

    async def offsets(self, wanted: Mapping[TopicPartition, int]) -> dict[TopicPartition, int]:
        """One offset a place: `EARLIEST`, `LATEST`, or of the first record at or after a time in ms; -1 where none has it.

        A new topic's broker may not know for a moment that it leads a partition, nor does anybody while a leader is
        elected: then it is asked again, for as long as an answer may take.
        Raises: Unavailable; Rejected.
        """
        if not wanted:
            return {}
        deadline = time.monotonic() + ANSWER_SECONDS
        while True:
            try:
                return await self.ask(lambda admin: _offsets(admin, wanted, deadline))
            except Unavailable:
                if time.monotonic() + ASK_AGAIN_SECONDS >= deadline:
                    raise
            await asyncio.sleep(ASK_AGAIN_SECONDS)

    async def close(self) -> None:
        """Ends the admin client once its calls are done. May be called twice."""

        def drop() -> None:
            self._admin = None

        if not self._calls.stopped:
            self._calls.submit(drop)
            self._calls.stop()


def _security_settings(security: BrokerSecurity) -> dict[str, Any]:
    """The client's words for it; what is empty is left to the client."""
    protocol = ("SASL_" if security.user else "") + ("SSL" if security.tls else "PLAINTEXT")
    words: dict[str, Any] = {"security.protocol": protocol}
    if security.user:
        words |= {
            "sasl.mechanism": security.mechanism,
            "sasl.username": security.user,
            "sasl.password": security.password,
        }
    if security.tls:
        files = {
            "ssl.ca.location": security.ca,
            "ssl.certificate.location": security.certificate,
            "ssl.key.location": security.key,
        }
        words |= {"enable.ssl.certificate.verification": True, "ssl.endpoint.identification.algorithm": "https"}
        words |= {name: file for name, file in files.items() if file}
    return words


def _require_topics(admin: AdminClient, topics: Iterable[str], deadline: float) -> None:
    known = admin.list_topics(timeout=_left(deadline)).topics
    for topic in topics:
        if topic not in known or known[topic].error is not None:
            raise Rejected(f"{topic}: unknown topic; create it with: python -m app topics create")


def _offsets(admin: AdminClient, wanted: Mapping[TopicPartition, int], deadline: float) -> dict[TopicPartition, int]:
    asked = {ClientPartition(*place): _spec_of(at) for place, at in wanted.items()}
    offsets = {}
    for partition, answer in admin.list_offsets(asked, request_timeout=_left(deadline)).items():
        place = TopicPartition(partition.topic, partition.partition)
        try:
            offsets[place] = int(result_of(answer, str(place)).offset)
        except Unavailable:  # what the client says of a topic without leaders, and of one that is not there
            _require_topics(admin, [place.topic], deadline)
            raise
    return offsets


def _left(deadline: float) -> float:
    return max(deadline - time.monotonic(), 0.1)


def _spec_of(at: int) -> Any:
    specs: dict[int, Any] = {EARLIEST: OffsetSpec.earliest, LATEST: OffsetSpec.latest}
    return specs[at]() if at in specs else OffsetSpec.for_timestamp(at)


def result_of(answer: Future[Any], place: str) -> Any:
    """What an admin call answered, blocking. Raises: the translated error, about `place`."""
    try:
        return answer.result(ANSWER_SECONDS + 1)
    except KafkaException as error:
        raise translate(error, place) from None
    except TimeoutError:
        raise Unavailable(f"{place}: no answer within {ANSWER_SECONDS:.0f} s") from None
