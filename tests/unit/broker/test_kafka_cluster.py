"""Questions to a cluster whose partitions have no leader, or which lets nobody in, and what is said of it."""

import time
from collections.abc import Iterator
from concurrent.futures import Future
from types import SimpleNamespace
from typing import Any, cast

import pytest
from confluent_kafka import KafkaError, KafkaException
from confluent_kafka import TopicPartition as ClientPartition

from app.broker.kafka import cluster as module
from app.broker.kafka.admin import KafkaAdmin
from app.broker.kafka.cluster import EARLIEST, LATEST, Cluster, client_words
from app.core.clock import ManualClock
from app.core.errors import Rejected, SetupError, Unavailable
from app.core.record import TopicPartition
from app.core.security import BrokerSecurity

PLACES = [TopicPartition("orders", 0), TopicPartition("orders", 1)]


class Leaderless:
    """An admin client whose broker learns only after `refusals` questions that it leads partition 1."""

    def __init__(self, refusals: float, topics: tuple[str, ...] = ("orders",)) -> None:
        self.refusals = refusals
        self.topics = topics
        self.asked = 0

    def list_offsets(self, wanted: dict[ClientPartition, Any], request_timeout: float) -> dict[ClientPartition, Any]:
        assert 0 < request_timeout <= module.ANSWER_SECONDS
        self.asked += 1
        answers = {}
        for partition in wanted:
            answer = answers[partition] = Future[Any]()
            if partition.partition == 1 and self.asked <= self.refusals:
                answer.set_exception(KafkaException(KafkaError(KafkaError.NOT_LEADER_FOR_PARTITION)))
            else:
                answer.set_result(SimpleNamespace(offset=40 + partition.partition))
        return answers

    def describe_topics(self, _: Any, request_timeout: float) -> dict[str, Future[Any]]:
        return {}

    def list_topics(self, timeout: float) -> Any:
        return SimpleNamespace(topics={name: SimpleNamespace(error=None) for name in self.topics})


class Lost:
    """An admin client that has lost its brokers: a question for the whole cluster fails at once, others say what they do."""

    def __init__(self, error: Exception) -> None:
        self.error = error

    def list_topics(self, timeout: float) -> None:
        raise KafkaException(KafkaError(KafkaError._TRANSPORT))

    def ask(self) -> None:
        raise self.error


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    cluster = Cluster("kafka://127.0.0.1:1", ManualClock())
    yield cluster
    cluster._calls.stop()
    cluster._calls.join()


async def test_offsets_partition_without_leader_is_asked_again(cluster: Cluster) -> None:
    """Right after a topic is made its broker may not know that it leads; the caller does not notice."""
    admin: Any = Leaderless(refusals=2)
    cluster._admin = admin
    assert {PLACES[0]: 40, PLACES[1]: 41} == await cluster.offsets(dict.fromkeys(PLACES, LATEST))
    assert 3 == admin.asked


async def test_offsets_partition_without_leader_for_good_is_unavailable(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Asking again has an end, and the error names the partition."""
    monkeypatch.setattr(module, "ANSWER_SECONDS", 0.3)
    admin: Any = Leaderless(refusals=float("inf"))
    cluster._admin = admin
    began = time.monotonic()
    with pytest.raises(Unavailable, match="orders/1"):
        await cluster.offsets(dict.fromkeys(PLACES, LATEST))
    assert admin.asked > 1
    assert time.monotonic() - began < 5


@pytest.mark.parametrize(("at", "nothing"), [(LATEST, -1001), (EARLIEST, -1001), (LATEST, -1), (1_000, -1001)])
async def test_offsets_without_an_answer_are_asked_for_again(cluster: Cluster, at: int, nothing: int) -> None:
    """Where a connection breaks the client may give neither an answer nor an error: no end of a partition, and no time that it lacks."""
    admin: Any = Leaderless(refusals=0)
    first = admin.list_offsets(dict.fromkeys([ClientPartition(*PLACES[0])], None), 1)
    next(iter(first.values())).result().offset = nothing
    later, answers = admin.list_offsets, [first]
    admin.list_offsets = lambda wanted, request_timeout: answers.pop() if answers else later(wanted, request_timeout)
    cluster._admin = admin
    assert {PLACES[0]: 40} == await cluster.offsets({PLACES[0]: at})
    assert [] == answers


async def test_offsets_of_a_time_that_no_record_has_are_minus_one(cluster: Cluster) -> None:
    """That is an answer."""
    admin: Any = Leaderless(refusals=0)
    answer = admin.list_offsets(dict.fromkeys([ClientPartition(*PLACES[0])], None), 1)
    next(iter(answer.values())).result().offset = -1
    admin.list_offsets = lambda wanted, request_timeout: answer
    cluster._admin = admin
    assert {PLACES[0]: -1} == await cluster.offsets({PLACES[0]: 1_000})


async def test_members_of_a_group_without_a_coordinator_are_asked_for_again(cluster: Cluster) -> None:
    """The first question to a cluster that has just started may come before any of its brokers keeps groups."""
    answers: list[Any] = [
        KafkaException(KafkaError(KafkaError.COORDINATOR_NOT_AVAILABLE)),
        SimpleNamespace(members=[1]),
    ]

    def describe(groups: list[str], request_timeout: float) -> dict[str, Future[Any]]:
        found, answer = Future[Any](), answers.pop(0)
        found.set_exception(answer) if isinstance(answer, Exception) else found.set_result(answer)
        return {groups[0]: found}

    admin: Any = Leaderless(refusals=0)
    admin.describe_consumer_groups = describe
    cluster._admin, cluster._reached = admin, True
    assert await KafkaAdmin(cluster, 1).has_members("streams")
    assert [] == answers


async def test_offsets_unknown_topic_is_refused_at_once(cluster: Cluster) -> None:
    """The client says the same of a topic that is not there; nobody waits for that one."""
    admin: Any = Leaderless(refusals=float("inf"), topics=())
    cluster._admin = admin
    with pytest.raises(Rejected, match="orders: unknown topic"):
        await cluster.offsets(dict.fromkeys(PLACES, LATEST))
    assert 1 == admin.asked


def test_log_of_an_absent_cluster_is_left_to_its_outage(
    cluster: Cluster, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each of its clients says every second that all brokers are down; nobody wants to read that. Before the first answer
    whoever asks is told."""
    reports: list[str] = []
    monkeypatch.setattr(cluster._outage, "report", lambda: reports.append("down"))
    tell = cluster.settings()["error_cb"]
    tell(KafkaError(KafkaError._ALL_BROKERS_DOWN))
    assert [] == reports
    cluster._reached = True
    for _ in range(20):
        tell(KafkaError(KafkaError._ALL_BROKERS_DOWN))
        tell(KafkaError(KafkaError._TRANSPORT))
    assert (["down"] * 20, []) == (reports, caplog.messages)


async def test_ask_with_a_file_that_holds_no_certificate_names_its_setting() -> None:
    """The client's own error is about options of its library."""
    cluster = Cluster("kafka://127.0.0.1:1", ManualClock(), BrokerSecurity(tls=True, ca=__file__))
    with pytest.raises(SetupError, match=r"^broker_ca: .*test_kafka_cluster.py holds no certificate"):
        await cluster.ask(lambda _: None)
    await cluster.close()


def test_answer_leaves_time_to_start_within_ten_seconds() -> None:
    """A command needs a second or two before it asks; the contract is ten for the whole."""
    assert module.ANSWER_SECONDS + module.FIRST_ANSWER_SECONDS <= 7


def test_log_of_a_refused_login_names_the_setting_now_and_then(caplog: pytest.LogCaptureFixture) -> None:
    """A password that was changed while we run is told by its setting, not ten times a second."""
    cluster = Cluster("kafka://127.0.0.1:1", ManualClock(), BrokerSecurity(user="u", password="s3cret"))
    cluster._reached = True
    for _ in range(20):
        cluster.settings()["error_cb"](KafkaError(KafkaError._AUTHENTICATION, "invalid credentials"))
    (line,) = caplog.messages
    assert "kafka://127.0.0.1:1: HEADRACE_BROKER_PASSWORD: the brokers do not know user u" in line
    assert "s3cret" not in line


async def test_ask_with_a_refused_login_says_so_instead_of_no_answer() -> None:
    """Whatever client it happened to; the next question begins anew."""
    cluster = Cluster("kafka://127.0.0.1:1", ManualClock(), BrokerSecurity(user="u", password="s3cret"))
    cluster._reached, cluster._admin = True, cast(Any, object())

    def question(_: object) -> None:
        cluster.settings()["error_cb"](KafkaError(KafkaError._AUTHENTICATION, "invalid credentials"))
        raise KafkaException(KafkaError(KafkaError._TRANSPORT))

    with pytest.raises(SetupError, match=r"^broker_password: "):
        await cluster.ask(question)
    assert 7 == await cluster.ask(lambda _: 7)
    await cluster.close()


def test_client_words_verify_certificate_and_name() -> None:
    """There is no setting that turns it off."""
    words = client_words(BrokerSecurity(tls=True, ca="/ca", certificate="/c", key="/k", user="u", password="p"))
    assert ("SASL_SSL", True, "https") == (
        words["security.protocol"],
        words["enable.ssl.certificate.verification"],
        words["ssl.endpoint.identification.algorithm"],
    )
    assert ("/ca", "/c", "/k", "SCRAM-SHA-512", "u", "p") == tuple(
        words[name]
        for name in ("ssl.ca.location", "ssl.certificate.location", "ssl.key.location")
        + ("sasl.mechanism", "sasl.username", "sasl.password")
    )
    assert {"security.protocol": "PLAINTEXT"} == client_words(BrokerSecurity())


@pytest.mark.parametrize("error", [Unavailable("orders: timed out"), KafkaException(KafkaError(KafkaError._TRANSPORT))])
async def test_ask_admin_client_that_has_lost_its_brokers_is_opened_anew(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    """Whatever its question said; one that reaches a broker is kept."""
    lost: Any = Lost(error)
    fresh: Any = Leaderless(refusals=0)
    monkeypatch.setattr(module, "AdminClient", lambda settings: fresh)
    cluster._admin, cluster._reached = lost, True
    with pytest.raises(Unavailable):
        await cluster.ask(lambda admin: cast(Any, admin).ask())
    assert fresh is await cluster.ask(lambda admin: admin)
    with pytest.raises(Unavailable):
        await cluster.ask(lambda admin: Lost(Unavailable("orders: no leader")).ask())
    monkeypatch.setattr(module, "AdminClient", lambda settings: lost)
    assert fresh is await cluster.ask(lambda admin: admin)
