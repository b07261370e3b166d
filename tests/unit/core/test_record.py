"""A record and its place."""

import pytest

from app.core.record import Record, TopicPartition


def test_record_header_is_the_last_of_its_name() -> None:
    """A header that was added later counts, as in Kafka's own clients."""
    record = Record("t", 0, 0, 0, None, None, (("a", b"1"), ("b", b"2"), ("a", b"3")))
    assert (b"3", None) == (record.header("a"), record.header("c"))


def test_record_does_not_change() -> None:
    """What was read stays as it was read."""
    with pytest.raises(AttributeError):
        Record("t", 0, 0, 0, None, None).offset = 1  # type: ignore[misc]


def test_topic_partition_reads_as_a_place() -> None:
    """Errors name places in one form."""
    assert "raw.orders/3" == str(TopicPartition("raw.orders", 3))
