"""A client's message as our record."""

import pytest
from confluent_kafka import Message

from app.broker.kafka.records import record_of
from app.core.record import Record


def message(headers: list[tuple[str, str | bytes | None]] | None = None) -> Message:
    return Message(topic="t", partition=1, offset=7, key=b"k", value=b"v", headers=headers, timestamp=(1, 5))


def test_record_of_message_has_its_fields() -> None:
    """Place, time, key, value and headers; a header without a value is an empty one."""
    expected = Record("t", 1, 7, 5, b"k", b"v", (("a", b"1"), ("b", b"")))
    assert expected == record_of(message([("a", b"1"), ("b", None)]))
    assert () == record_of(message()).headers


def test_record_of_message_with_an_undecodable_header_name_goes_on_without_headers() -> None:
    """One odd record of somebody else's must not stop the partition."""

    class Odd:
        def __getattr__(self, name: str) -> object:
            return getattr(message(), name)

        def headers(self) -> None:
            raise UnicodeDecodeError("utf-8", b"\xff", 0, 1, "invalid start byte")

    odd = Odd()
    assert Record("t", 1, 7, 5, b"k", b"v") == record_of(odd)  # type: ignore[arg-type]
    with pytest.raises(UnicodeDecodeError):
        odd.headers()
