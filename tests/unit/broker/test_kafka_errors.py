"""The client's errors: every code has a place in our tree."""

from collections import Counter

import confluent_kafka
import pytest
from confluent_kafka import KafkaError, KafkaException

from app.broker.kafka import errors
from app.broker.kafka.errors import refused_login, translate
from app.core.errors import (
    BadRecord,
    Fenced,
    HeadraceError,
    RecordError,
    RecordTooEarly,
    RecordTooLarge,
    Rejected,
    Unavailable,
)
from app.core.security import BrokerSecurity

CODES = {
    name: value
    for name in dir(KafkaError)
    if name.isupper() and not name.startswith("__") and isinstance(value := getattr(KafkaError, name), int)
}
MAPPED = [
    *errors.UNAVAILABLE,
    *errors.FENCED,
    *errors.TOO_LARGE,
    *errors.TOO_EARLY,
    *errors.BAD_RECORD,
    *errors.REJECTED,
]


def test_errors_every_code_of_the_library_is_mapped_once() -> None:
    """A new code of the client must be given a category here before it is released."""
    assert len(CODES) > 150
    assert set() == CODES.keys() - set(MAPPED)
    assert [] == [name for name, count in Counter(MAPPED).items() if count > 1]


def test_errors_the_clients_we_use_raise_nothing_but_kafka_exceptions() -> None:
    """The library's other exceptions belong to its (de)serializing and sharing clients, which we do not use."""
    raised = {name for name, value in vars(confluent_kafka).items() if _is_exception(value)}
    unused = {
        "ConcurrentModificationException",
        "ConsumeError",
        "IllegalStateException",
        "KeyDeserializationError",
        "KeySerializationError",
        "ProduceError",
        "ValueDeserializationError",
        "ValueSerializationError",
    }
    assert {"KafkaException"} == raised - unused


def _is_exception(value: object) -> bool:
    return isinstance(value, type) and issubclass(value, BaseException)


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        ("_TRANSPORT", Unavailable),
        ("_ALL_BROKERS_DOWN", Unavailable),
        ("NOT_ENOUGH_REPLICAS", Unavailable),
        ("OUT_OF_ORDER_SEQUENCE_NUMBER", Unavailable),
        ("STALE_MEMBER_EPOCH", Fenced),
        ("UNKNOWN_MEMBER_ID", Fenced),
        ("FENCED_MEMBER_EPOCH", Fenced),
        ("MSG_SIZE_TOO_LARGE", RecordTooLarge),
        ("INVALID_TIMESTAMP", RecordTooEarly),
        ("INVALID_RECORD", BadRecord),
        ("TOPIC_AUTHORIZATION_FAILED", Rejected),
        ("UNKNOWN_TOPIC_OR_PART", Rejected),
    ],
)
def test_translate_code_becomes_what_the_caller_can_do(code: str, kind: type[HeadraceError]) -> None:
    """The class says what to do, the message what it is about, in one line."""
    error = translate(KafkaError(CODES[code]), "raw.orders")
    assert kind is type(error)
    assert str(error).startswith("raw.orders: ")
    assert "\n" not in str(error)


def test_translate_exception_is_its_error() -> None:
    """The client raises its errors inside an exception."""
    error = translate(KafkaException(KafkaError(KafkaError.INVALID_TIMESTAMP)), "raw.orders")
    assert isinstance(error, RecordError)
    assert "raw.orders" == error.topic


def test_translate_fatal_error_is_never_retried() -> None:
    """A client that has failed for good cannot be used again."""
    assert isinstance(translate(KafkaError(KafkaError._TRANSPORT, "gone", fatal=True), "k"), Rejected)


@pytest.mark.parametrize(("retriable", "kind"), [(True, Unavailable), (False, Rejected)])
def test_translate_code_of_a_newer_broker_follows_the_client(retriable: bool, kind: type[HeadraceError]) -> None:
    """A code that nobody knows is retried only if the client would."""
    assert isinstance(translate(KafkaError(9_999, "new", retriable=retriable), "k"), kind)


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (KafkaError(KafkaError.TOPIC_AUTHORIZATION_FAILED), "place: the right Write on this topic is missing; "),
        (KafkaError(KafkaError.GROUP_AUTHORIZATION_FAILED), "place: the right Write on this group is missing; "),
        (
            KafkaError(KafkaError._FATAL, "Fatal error: Broker: Group authorization failed: heartbeat"),
            "place: the right Write on this group is missing; ",
        ),
    ],
)
def test_translate_missing_right_names_it(error: KafkaError, expected: str) -> None:
    """Also where the client has failed for good because of it."""
    found = translate(error, "place", "Write")
    assert isinstance(found, Rejected)
    assert str(found).startswith(expected)
    assert "python -m app topics rights" in str(found)


@pytest.mark.parametrize(
    ("reason", "expected"),
    [
        ("SASL authentication error: failed due to invalid credentials with SASL mechanism", "broker_password: the"),
        (
            "broker's supported mechanisms: SCRAM-SHA-512 (after 3ms)",
            "broker_mechanism: SCRAM-SHA-256 is not among SCRAM",
        ),
        ("handshake failed: broker's supported mechanisms:  (after 0ms in state)", "broker_user: must be empty"),
        ("Token expired", "broker_user: the brokers refuse u: Token expired"),
    ],
)
def test_refused_login_names_the_setting(reason: str, expected: str) -> None:
    """What the client says of it, as the setting to look at; never the password."""
    found = str(refused_login(reason, BrokerSecurity(user="u", password="s3cret", mechanism="SCRAM-SHA-256")))
    assert found.startswith(expected)
    assert "s3cret" not in found
