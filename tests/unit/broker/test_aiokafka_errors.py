"""aiokafka's exceptions: every class has a place in our tree."""

import ssl
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
from aiokafka import errors as library

from app.broker.aiokafka import errors
from app.broker.aiokafka.errors import translate, translate_code
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

MAPPED = [
    *errors.UNAVAILABLE,
    *errors.FENCED,
    *errors.TOO_LARGE,
    *errors.TOO_EARLY,
    *errors.BAD_RECORD,
    *errors.REJECTED,
]


def below(kind: type[Any]) -> Iterator[type[Any]]:
    for each in kind.__subclasses__():
        yield each
        yield from below(each)


def test_errors_every_class_of_the_library_is_mapped_once() -> None:
    """A new class of the library must be given a category here before it is released."""
    classes = {kind.__name__ for kind in below(library.KafkaError) if kind.__module__ == library.__name__}
    assert len(classes) > 90
    assert classes == set(MAPPED)
    assert [] == [name for name, count in Counter(MAPPED).items() if count > 1]


def test_errors_what_the_library_retries_is_never_refused_for_good() -> None:
    """What it calls retriable is unavailable, or our own to handle: an unknown topic is refused before it is used."""
    retriable = {kind.__name__ for kind in below(library.KafkaError) if kind.retriable}
    handled = {"UnknownTopicOrPartitionError", "CorruptRecordException", "MemberIdRequired"}
    assert set() == retriable - set(errors.UNAVAILABLE) - handled


@pytest.mark.parametrize(
    ("failure", "kind"),
    [
        (library.KafkaConnectionError("gone"), Unavailable),
        (library.NodeNotReadyError("gone"), Unavailable),
        (ConnectionRefusedError("gone"), Unavailable),
        (library.NotEnoughReplicasError(), Unavailable),
        (library.OutOfOrderSequenceNumber(), Unavailable),
        (library.IllegalGenerationError(), Fenced),
        (library.UnknownMemberIdError(), Fenced),
        (library.MessageSizeTooLargeError(), RecordTooLarge),
        (library.InvalidTimestampError(), RecordTooEarly),
        (library.CorruptRecordException(), BadRecord),
        (library.TopicAuthorizationFailedError("t"), Rejected),
        (library.AuthenticationFailedError("no\nsuch user"), Rejected),
        (ssl.SSLCertVerificationError("unknown authority"), Rejected),
        (library.UnknownTopicOrPartitionError(), Rejected),
    ],
)
def test_translate_class_becomes_what_the_caller_can_do(
    failure: library.KafkaError | OSError, kind: type[HeadraceError]
) -> None:
    """The class says what to do, the message what it is about, in one line."""
    error = translate(failure, "raw.orders")
    assert kind is type(error)
    assert str(error).startswith("raw.orders: ")
    assert "\n" not in str(error)
    assert not isinstance(error, RecordError) or error.topic == "raw.orders"


@pytest.mark.parametrize(("retriable", "kind"), [(True, Unavailable), (False, Rejected)])
def test_translate_class_of_a_newer_library_follows_it(retriable: bool, kind: type[HeadraceError]) -> None:
    """A class that nobody knows is retried only if the library would."""
    newer = type("NewerError", (library.KafkaError,), {"retriable": retriable, "__module__": "newer"})
    assert isinstance(translate(newer("new"), "k"), kind)


def test_translate_code_of_a_response_is_its_class() -> None:
    """No error is none; the broker's own words are kept."""
    assert None is translate_code(0, None, "t")
    error = translate_code(40, "no such setting", "t")
    assert isinstance(error, Rejected)
    assert "no such setting" in str(error)
