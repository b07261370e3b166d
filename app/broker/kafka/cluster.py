"""One cluster as this process knows it: addresses, the settings that every client shares, and one admin client.

Blocking questions are asked on a thread of its own. Each ends within `ANSWER_SECONDS`, and a few more where a client is replaced.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Collection, Iterable, Mapping
from concurrent.futures import Future
from typing import Any, TypeVar

from confluent_kafka import KafkaError, KafkaException, TopicCollection
from confluent_kafka import TopicPartition as ClientPartition
from confluent_kafka.admin import AdminClient, OffsetSpec  # type: ignore[attr-defined]

from app.broker.addresses import servers_of
from app.broker.diagnosis import diagnose
from app.broker.kafka.errors import NO_ANSWER_CODES, refused_login, translate
from app.broker.kafka.outage import Outage
from app.broker.kafka.threads import BlockingCalls
from app.core.clock import Clock
from app.core.errors import HeadraceError, Rejected, Unavailable
from app.core.record import TopicPartition
from app.core.security import OPEN_BROKER, BrokerSecurity, tls_context
from app.core.settings import in_one_form

T = TypeVar("T")
logger = logging.getLogger(__name__)

_UNHEARD = logging.Logger("librdkafka", logging.CRITICAL + 1)
"""Takes the lines that clients would write to stderr by themselves; `error_cb` hears the same."""

ANSWER_SECONDS = 6.0
"""How long a server may take to answer; the contract says unavailable within 10 s, and a command has to start too."""

ASK_AGAIN_SECONDS = 0.05
"""After which a question is repeated that the server could not answer yet."""

FIRST_ANSWER_SECONDS = 1.0
"""How long the first question waits before it is asked what keeps us out."""

PROBE_SECONDS = 3.0
"""Enough for a new connection with TLS and a login to a distant broker, some eight round trips."""

LASTING_CODES = frozenset({KafkaError._AUTHENTICATION, KafkaError._SSL})
"""Errors that clients report again and again until somebody has done something."""

TELL_AGAIN_SECONDS = 10.0
"""How often such an error is worth a line of the log."""

SCHEME = "kafka://"

CLIENT_ID = "headrace"
"""What the broker's logs and quotas call us."""

EARLIEST, LATEST = -2, -1
"""Instead of a time, when asked for an offset."""

NO_SUCH_TIME = -1
"""What a broker answers where no record has that time or a later one."""


class Cluster:
    """Shared by all consumers, producers and readers of one `KafkaBroker`."""

    def __init__(self, address: str, clock: Clock, security: BrokerSecurity = OPEN_BROKER) -> None:
        self.address = address
        self._security = security
        self._servers = servers_of(address, SCHEME)
        self._calls = BlockingCalls("kafka-admin")
        self._admin: AdminClient | None = None
        self._reached = False
        self._refusal: HeadraceError | None = None
        self._tells_again_s: dict[int, float] = {}
        self.left_at_s: dict[str, float] = {}
        """When members of this process have left their groups, by the monotonic clock: a broker that did not hear of it
        counts them until their session ends."""
        self._outage = Outage(address, clock, self.probe)

    def settings(self, **more: Any) -> dict[str, Any]:
        """Settings of a client; underscores in names stand for dots."""
        return {
            "bootstrap.servers": self._servers,
            "client.id": CLIENT_ID,
            "log_level": 2,
            "logger": _UNHEARD,
            "error_cb": self._log,
            **client_words(self._security),
            "reconnect.backoff.max.ms": 1_000,
            "socket.timeout.ms": 10_000,
            **{name.replace("_", "."): value for name, value in more.items()},
        }

    def _log(self, error: KafkaError) -> None:
        """Clients report every failed attempt to connect; that all brokers are gone is `Outage`'s to tell, for all clients.
        Before a broker was reached at all, whoever asks is told."""
        code, reason = error.code(), error.str()
        if code == KafkaError._AUTHENTICATION:
            self._refusal = refused_login(reason, self._security)
            reason = in_one_form(self._refusal)
        if code == KafkaError._ALL_BROKERS_DOWN and self._reached:
            self._outage.report()
        repeated = code in NO_ANSWER_CODES or not self._reached
        if code in LASTING_CODES and not repeated:
            now_s = time.monotonic()
            repeated = now_s < self._tells_again_s.get(code, 0.0)
            if not repeated:
                self._tells_again_s[code] = now_s + TELL_AGAIN_SECONDS
        logger.log(logging.DEBUG if repeated else logging.WARNING, "%s: %s", self.address, reason)

    def probe(self) -> object:
        """Asks with a client of its own, which has no past. Blocks for seconds where nobody answers; then it raises
        KafkaException."""
        return AdminClient(self.settings()).list_topics(timeout=PROBE_SECONDS)

    async def answers(self) -> bool:
        """Whether a client without a past is answered."""
        try:
            await self._calls.run(self.probe)
        except KafkaException:
            return False
        return True

    async def ask(self, question: Callable[[AdminClient], T]) -> T:
        """What `question(admin)` returns; it blocks on its own thread.

        Raises: the translated error of the client; SetupError when no client gets in with these settings.
        """
        return await self._calls.run(lambda: self._ask(question))

    def _ask(self, question: Callable[[AdminClient], T]) -> T:
        try:
            if self._admin is None:
                if self._security.tls:  # clients say of a wrong file no more than that they cannot be made
                    tls_context("broker", self._security)
                self._admin = AdminClient(self.settings())
            if not self._reached:
                self._reach(self._admin)
            self._refusal = None
            return question(self._admin)
        except KafkaException as error:
            failure = translate(error, self.address)
            if error.args[0].code() in NO_ANSWER_CODES:
                self._admin = None  # it may have lost its brokers, see `lost`
        except Unavailable as error:
            failure = error
            self._drop_if_lost()
        if self._refusal is not None and isinstance(failure, Unavailable):
            failure = self._refusal
        raise failure

    def _drop_if_lost(self) -> None:
        """The answers of an admin client that has lost its brokers look like those of a broker that is not ready."""
        try:
            if self._admin is not None and self._reached:
                self._admin.list_topics(timeout=FIRST_ANSWER_SECONDS)
        except KafkaException:
            self._admin = None

    def _reach(self, admin: AdminClient) -> None:
        """Returns when a broker has answered. Raises: why none does; Unavailable within `ANSWER_SECONDS` or little more."""
        deadline = time.monotonic() + ANSWER_SECONDS
        while True:
            try:
                admin.list_topics(timeout=min(FIRST_ANSWER_SECONDS, _left(deadline)))
            except KafkaException as error:
                failure = translate(error, self.address)
            else:
                self._reached = True
                return
            admin.poll(0)  # lets the client say why
            refusal = self._refusal or diagnose(self._servers, self._security, _left(deadline) - FIRST_ANSWER_SECONDS)
            if refusal is not None:
                raise refusal
            if time.monotonic() > deadline or not isinstance(failure, Unavailable):
                raise failure

    async def require_topics(self, topics: Iterable[str]) -> None:
        """Raises: Unavailable within 10 s when no broker answers; Rejected for a topic that is not there."""
        await self.ask(lambda admin: _require_topics(admin, topics, time.monotonic() + ANSWER_SECONDS))

    async def log_ids(self, topics: Collection[str]) -> dict[str, str]:
        """The id of each topic: one that is deleted and made again has another. Raises: Unavailable, Rejected."""
        return await self.ask_until(time.monotonic() + ANSWER_SECONDS, lambda admin: _log_ids(admin, topics))

    def log_id(self, topic: str) -> str:
        """By a client of its own, from any thread. Blocks. Raises: Unavailable, Rejected."""
        return _log_ids(AdminClient(self.settings()), [topic])[topic]

    async def offsets(self, wanted: Mapping[TopicPartition, int]) -> dict[TopicPartition, int]:
        """One offset a place: `EARLIEST`, `LATEST`, or of the first record at or after a time in ms; -1 where none has it.

        A new topic's broker may not know for a moment that it leads a partition, nor does anybody while a leader is
        elected: then it is asked again, for as long as an answer may take.
        Raises: Unavailable; Rejected.
        """
        if not wanted:
            return {}
        deadline = time.monotonic() + ANSWER_SECONDS
        return await self.ask_until(deadline, lambda admin: _offsets(admin, wanted, deadline))

    async def ask_until(self, deadline: float, question: Callable[[AdminClient], T]) -> T:
        """As `ask`, and again until a moment of the monotonic clock while the answer is that somebody is not ready.

        Raises: as `ask`.
        """
        while True:
            try:
                return await self.ask(question)
            except Unavailable:
                if time.monotonic() + ASK_AGAIN_SECONDS >= deadline:
                    raise
            await asyncio.sleep(ASK_AGAIN_SECONDS)

    async def close(self) -> None:
        """Ends the admin client once its calls are done. May be called twice."""
        self._outage.close()

        def drop() -> None:
            self._admin = None

        if not self._calls.stopped:
            self._calls.submit(drop)
            self._calls.stop()


def client_words(security: BrokerSecurity) -> dict[str, Any]:
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
    absent = [topic for topic in topics if topic not in known or known[topic].error is not None]
    require_visible(admin, absent, _left(deadline))
    for topic in absent:
        raise Rejected(f"{topic}: unknown topic; create it with: python -m app topics create")


def require_visible(admin: AdminClient, names: Collection[str], seconds: float) -> None:
    """Topics that one has no right to see are absent from a list of all. Raises: Rejected for such a one. Blocks."""
    if not names:
        return
    for name, answer in admin.describe_topics(TopicCollection(list(names)), request_timeout=seconds).items():
        try:
            answer.result(seconds + 1)
        except KafkaException as error:
            if error.args[0].code() == KafkaError.TOPIC_AUTHORIZATION_FAILED:
                raise translate(error, name) from None
        except TimeoutError:  # whoever asked says that it is not there
            return


def _log_ids(admin: AdminClient, topics: Collection[str]) -> dict[str, str]:
    answers = admin.describe_topics(TopicCollection(list(topics)), request_timeout=ANSWER_SECONDS)
    return {topic: str(result_of(answer, topic).topic_id) for topic, answer in answers.items()}


def _offsets(admin: AdminClient, wanted: Mapping[TopicPartition, int], deadline: float) -> dict[TopicPartition, int]:
    asked = {ClientPartition(*place): _spec_of(at) for place, at in wanted.items()}
    offsets = {}
    for partition, answer in admin.list_offsets(asked, request_timeout=_left(deadline)).items():
        place = TopicPartition(partition.topic, partition.partition)
        try:
            offset = int(result_of(answer, str(place)).offset)
        except Unavailable:  # what the client says of a topic without leaders, and of one that is not there
            _require_topics(admin, [place.topic], deadline)
            raise
        if offset < (0 if wanted[place] in (EARLIEST, LATEST) else NO_SUCH_TIME):
            raise Unavailable(f"{place}: the connection broke before its offset was known")
        offsets[place] = offset
    return offsets


def _left(deadline: float) -> float:
    return max(deadline - time.monotonic(), 0.1)


def _spec_of(at: int) -> Any:
    specs: dict[int, Any] = {EARLIEST: OffsetSpec.earliest, LATEST: OffsetSpec.latest}
    return specs[at]() if at in specs else OffsetSpec.for_timestamp(at)


def result_of(answer: Future[Any], place: str, right: str = "Describe") -> Any:
    """What an admin call answered, blocking. Raises: the translated error, about `place`, for which `right` is needed."""
    try:
        return answer.result(ANSWER_SECONDS + 1)
    except KafkaException as error:
        raise translate(error, place, right) from None
    except TimeoutError:
        raise Unavailable(f"{place}: no answer within {ANSWER_SECONDS:.0f} s") from None
