"""The id of a topic's log on a real Kafka, by which a record that comes twice is told from one of a topic that was made again."""

import asyncio
from collections.abc import Callable

import pytest

from app.broker.kafka.admin import KafkaAdmin
from app.broker.kafka.cluster import Cluster
from app.broker.topics import TopicSpec
from app.core.clock import SystemClock

pytestmark = pytest.mark.kafka


async def test_log_id_of_a_topic_that_was_made_again_is_another(
    kafka_address: str, unique: Callable[[str], str]
) -> None:
    """And otherwise it is the same, for the cluster's client and for one of its own."""
    cluster, spec = Cluster(kafka_address, SystemClock()), TopicSpec(name=unique("log"), partitions=1)
    admin = KafkaAdmin(cluster, 1)
    await admin.create([spec])
    first = await cluster.log_ids([spec.name])
    assert first == {spec.name: await asyncio.to_thread(cluster.log_id, spec.name)}
    await admin.delete([spec.name])
    await admin.create([spec])
    assert first[spec.name] != await asyncio.to_thread(cluster.log_id, spec.name)
    await cluster.close()
