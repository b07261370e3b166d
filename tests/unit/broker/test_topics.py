"""Topics: the broker's settings, key placement, and the registry."""

import confluent_kafka.cimpl
import msgspec
import pytest
from hypothesis import given
from hypothesis.strategies import binary, integers

from app.broker.topics import TopicRegistry, TopicSpec, dead_letters_of, partition_of
from app.core.errors import SetupError


class Order(msgspec.Struct, tag="order"):
    user_id: str


class Refund(msgspec.Struct, tag="refund"):
    user_id: str


@given(key=binary(min_size=1, max_size=40), partitions=integers(1, 64))
def test_partition_of_equals_the_clients(key: bytes, partitions: int) -> None:
    """Our placement of a key is librdkafka's, which is Java's."""
    assert confluent_kafka.cimpl.murmur2(key, partitions) == partition_of(key, partitions)


def test_topic_spec_event_time_keeps_the_publishers() -> None:
    """Without a limit of its own an event topic lifts the broker's hour."""
    config = TopicSpec(name="t", partitions=1, time="event", retention_ms=None).config()
    assert "CreateTime" == config["message.timestamp.type"]
    assert str(2**63 - 1) == config["message.timestamp.after.max.ms"]
    assert "-1" == config["retention.ms"]


@pytest.mark.parametrize("name", ["", "a b", "raw:orders", "raw/orders", "größe", "a\n", "x" * 250, ".", ".."])
def test_topic_spec_name_that_no_broker_takes_is_refused(name: str) -> None:
    """A wrong name is said where it is declared, not by the broker."""
    with pytest.raises(SetupError, match="is no topic name"):
        TopicSpec(name=name, partitions=1)


def test_dead_letters_of_topic_takes_more_than_its_source() -> None:
    """Reason and place fit beside the largest original."""
    spec = TopicSpec(name="raw.orders", partitions=12, max_message_bytes=1_000)
    dead = dead_letters_of(spec)
    assert ("raw.orders.dead", 12, 66_536) == (dead.name, dead.partitions, dead.max_message_bytes)


def test_registry_finds_topics_by_name_and_by_each_type_of_a_union() -> None:
    """A union's members all belong to its topic."""
    registry = TopicRegistry()
    spec = TopicSpec(name="events", partitions=1, type=Order | Refund)
    registry.add(spec)
    registry.add(spec)
    assert [spec] * 3 == [registry.named("events"), registry.of(Order), registry.of(Refund)]
    assert [spec] == registry.all()


def test_registry_contradictions_and_unknown_names_are_setup_errors() -> None:
    """Two declarations of a name, two topics of a type, a name nobody declared."""
    registry = TopicRegistry()
    registry.add(TopicSpec(name="events", partitions=1, type=Order))
    with pytest.raises(SetupError, match="twice"):
        registry.add(TopicSpec(name="events", partitions=2, type=Order))
    with pytest.raises(SetupError, match="already the record of events"):
        registry.add(TopicSpec(name="others", partitions=1, type=Order))
    with pytest.raises(SetupError, match="there are events"):
        registry.named("orders")
    with pytest.raises(SetupError, match="Refund"):
        registry.of(Refund)
