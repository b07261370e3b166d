"""Topics on a Kafka cluster through aiokafka: create, describe, list, delete."""

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any

from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType
from aiokafka.errors import TopicAlreadyExistsError, UnknownTopicOrPartitionError

from app.broker.aiokafka.cluster import ANSWER_SECONDS, Cluster
from app.broker.aiokafka.coordinator import committed_of
from app.broker.aiokafka.errors import translate_code
from app.broker.aiokafka.set_configs import SetConfigs
from app.broker.base import CommittedOffset, TopicDescription
from app.broker.replication import copies_on
from app.broker.topics import TopicSpec
from app.core.errors import Unavailable
from app.core.record import TopicPartition

AGAIN_SECONDS = 0.02
TIMEOUT_MS = int(ANSWER_SECONDS * 1000)
_MEMBERS = 5
"""Their place in what is said of a group: error, name, state, and the protocol's type and data before them."""


class AioKafkaAdmin:
    """Keeps the contract of `base.Admin`. `replication`: copies of each partition, fewer on a smaller cluster."""

    def __init__(self, cluster: Cluster, replication: int) -> None:
        self._cluster = cluster
        self._replication = replication

    async def brokers(self) -> int:
        return len((await self._cluster.ask(lambda admin: admin.describe_cluster()))["brokers"])

    async def create(self, specs: Sequence[TopicSpec]) -> dict[str, bool]:
        if not specs:
            return {}
        copies, safety = copies_on(await self.brokers(), self._replication, self._cluster.address)
        topics = [NewTopic(spec.name, spec.partitions, copies, topic_configs=spec.config() | safety) for spec in specs]
        answer = await self._cluster.ask(lambda admin: admin.create_topics(topics, timeout_ms=TIMEOUT_MS))
        created = {}
        for name, code, *message in answer.topic_errors:
            created[name] = code != TopicAlreadyExistsError.errno
            error = translate_code(code, message[0] if message else None, name)
            if created[name] and error is not None:
                raise error
        await self._wait_until_known({name for name, new in created.items() if new}, known=True)
        return created

    async def describe(self, names: Sequence[str]) -> dict[str, TopicDescription | None]:
        topics = await self._cluster.topics()
        found: dict[str, TopicDescription | None] = dict.fromkeys(names)
        present = [name for name in found if name in topics and not topics[name]["error_code"]]
        configs = await topic_configs(self._cluster, present)
        for name in present:
            partitions = topics[name]["partitions"]
            replication = min(len(partition["replicas"]) for partition in partitions)
            found[name] = TopicDescription(name, len(partitions), replication, configs[name])
        return found

    async def configure(self, name: str, config: Mapping[str, str]) -> None:
        answer = await self._cluster.ask(lambda admin: _to_controller(admin, SetConfigs(name, config)))
        for code, message, _, _ in answer.resources:
            error = translate_code(code, message, name)
            if error is not None:
                raise error
        deadline = asyncio.get_running_loop().time() + ANSWER_SECONDS  # acknowledged is a moment before visible
        while not config.items() <= (await topic_configs(self._cluster, [name]))[name].items():
            if asyncio.get_running_loop().time() > deadline:
                return
            await asyncio.sleep(AGAIN_SECONDS)

    async def list(self) -> list[str]:
        return sorted(name for name in await self._cluster.topics() if not name.startswith("__"))

    async def delete(self, names: Sequence[str]) -> None:
        if not names:
            return
        answer = await self._cluster.ask(lambda admin: admin.delete_topics(list(names), timeout_ms=TIMEOUT_MS))
        for name, code, *message in answer.topic_error_codes:
            error = translate_code(code, message[0] if message else None, name)
            if error is not None and code != UnknownTopicOrPartitionError.errno:
                raise error
        await self._wait_until_known(set(names), known=False)

    async def group_offsets(self, group: str, topics: Sequence[str]) -> dict[TopicPartition, CommittedOffset]:
        found = await self._cluster.ask(lambda admin: admin.list_consumer_group_offsets(group))
        return {
            TopicPartition(place.topic, place.partition): committed_of(committed)
            for place, committed in found.items()
            if committed.offset >= 0 and place.topic in topics
        }

    async def has_members(self, group: str) -> bool:
        """Members of the classic protocol; those of the newer one are not shown to a client of the older."""
        (answer,) = await self._cluster.ask(lambda admin: admin.describe_consumer_groups([group]))
        return any(described[_MEMBERS] for described in answer.groups)

    async def close(self) -> None:
        """Nothing to end: the admin client is the cluster's."""

    async def _wait_until_known(self, names: set[str], *, known: bool) -> None:
        """A topic exists a moment after its creation was acknowledged: every partition of it with a leader."""
        deadline = asyncio.get_running_loop().time() + ANSWER_SECONDS
        while True:
            topics = await self._cluster.topics()
            waiting = names - _ready(topics) if known else names & topics.keys()
            if not waiting:
                return
            if asyncio.get_running_loop().time() > deadline:
                raise Unavailable(f"{', '.join(sorted(waiting))}: the cluster does not agree on it yet")
            await asyncio.sleep(AGAIN_SECONDS)


def _ready(topics: Mapping[str, Any]) -> set[str]:
    return {
        name
        for name, topic in topics.items()
        if not topic["error_code"]
        and topic["partitions"]
        and all(partition["leader"] >= 0 for partition in topic["partitions"])
    }


async def topic_configs(cluster: Cluster, names: Sequence[str]) -> dict[str, dict[str, str]]:
    """The settings of topics as the broker applies them, defaults among them. Raises: HeadraceError about the topic."""
    if not names:
        return {}
    resources = [ConfigResource(ConfigResourceType.TOPIC, name) for name in names]
    configs = {}
    for answer in await cluster.ask(lambda admin: admin.describe_configs(resources)):
        for code, message, _, name, entries in answer.resources:
            error = translate_code(code, message, name)
            if error is not None:
                raise error
            configs[name] = {key: value for key, value, *_ in entries if value is not None}
    return configs


async def _to_controller(admin: AIOKafkaAdminClient, request: Any) -> Any:
    return await admin._send_to_controller(request)
