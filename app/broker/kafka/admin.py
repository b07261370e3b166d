"""Topics on a Kafka cluster: create, describe, list, delete; and who may use them."""

import asyncio
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from confluent_kafka import Consumer as Client
from confluent_kafka import KafkaError, KafkaException
from confluent_kafka import TopicPartition as ClientPartition
from confluent_kafka.admin import (  # type: ignore[attr-defined]
    AclBinding,
    AclBindingFilter,
    AclOperation,
    AclPermissionType,
    AdminClient,
    AlterConfigOpType,
    ConfigEntry,
    ConfigResource,
    NewTopic,
    ResourcePatternType,
    ResourceType,
)

from app.broker.base import CommittedOffset, Right, TopicDescription
from app.broker.kafka.cluster import ANSWER_SECONDS, Cluster, require_visible, result_of
from app.broker.kafka.errors import UNKNOWN_TOPIC_CODES, translate
from app.broker.replication import copies_on
from app.broker.topics import TopicSpec
from app.core.errors import Unavailable
from app.core.record import TopicPartition


class KafkaAdmin:
    """Keeps the contract of `base.Admin`. `replication`: copies of each partition, fewer on a smaller cluster."""

    def __init__(self, cluster: Cluster, replication: int) -> None:
        self._cluster = cluster
        self._replication = replication
        self._members: dict[str, Client] = {}
        """Of the groups that were asked about; each has joined nothing."""

    async def brokers(self) -> int:
        return await self._cluster.ask(_brokers)

    async def create(self, specs: Sequence[TopicSpec]) -> dict[str, bool]:
        return await self._cluster.ask(lambda admin: self._create(admin, specs))

    def _create(self, admin: AdminClient, specs: Sequence[TopicSpec]) -> dict[str, bool]:
        if not specs:
            return {}
        replication, safety = copies_on(_brokers(admin), self._replication, self._cluster.address)
        topics = [NewTopic(spec.name, spec.partitions, replication, config=spec.config() | safety) for spec in specs]
        created = {}
        for name, answer in admin.create_topics(topics, request_timeout=ANSWER_SECONDS).items():
            try:
                answer.result()
            except KafkaException as error:
                if error.args[0].code() != KafkaError.TOPIC_ALREADY_EXISTS:
                    raise translate(error, name, "Create") from None
                created[name] = False
            else:
                created[name] = True
        _wait_until_known(admin, {name for name, new in created.items() if new}, known=True)
        return created

    async def describe(self, names: Sequence[str]) -> dict[str, TopicDescription | None]:
        return await self._cluster.ask(lambda admin: _describe(admin, names))

    async def configure(self, name: str, config: Mapping[str, str]) -> None:
        def call(admin: AdminClient) -> None:
            entries = [
                ConfigEntry(key, value, incremental_operation=AlterConfigOpType.SET) for key, value in config.items()
            ]
            resource = ConfigResource(ResourceType.TOPIC, name, incremental_configs=entries)
            (answer,) = admin.incremental_alter_configs([resource], request_timeout=ANSWER_SECONDS).values()
            result_of(answer, name, "AlterConfigs")
            deadline = time.monotonic() + ANSWER_SECONDS  # acknowledged is a moment before visible
            while not config.items() <= topic_configs(admin, [name])[name].items() and time.monotonic() < deadline:
                time.sleep(0.02)

        await self._cluster.ask(call)

    async def list(self) -> list[str]:
        topics = await self._cluster.ask(lambda admin: admin.list_topics(timeout=ANSWER_SECONDS).topics)
        return sorted(name for name in topics if not name.startswith("__"))

    async def delete(self, names: Sequence[str]) -> None:
        def call(admin: AdminClient) -> None:
            if not names:
                return
            for name, answer in admin.delete_topics(list(names), request_timeout=ANSWER_SECONDS).items():
                try:
                    answer.result()
                except KafkaException as error:
                    if error.args[0].code() not in UNKNOWN_TOPIC_CODES:
                        raise translate(error, name, "Delete") from None
            _wait_until_known(admin, set(names), known=False)

        await self._cluster.ask(call)

    async def group_offsets(self, group: str, topics: Sequence[str]) -> dict[TopicPartition, CommittedOffset]:
        """By a client of that group which joins nothing. The admin client's own call ends the process where the coordinator that it asks is
        none any more, or not yet (librdkafka, issue 5040)."""

        def call(admin: AdminClient) -> dict[TopicPartition, CommittedOffset]:
            known = admin.list_topics(timeout=ANSWER_SECONDS).topics
            places = [
                ClientPartition(name, number) for name in topics if name in known for number in known[name].partitions
            ]
            if not places:
                return {}
            client = self._members.pop(group, None)
            if client is None:
                _members_of(group, admin)  # names a missing right, for which the client would wait
                client = Client(self._cluster.settings(group_id=group, enable_auto_commit=False))
            try:
                found = client.committed(places, timeout=ANSWER_SECONDS)
                for one in found:
                    if one.error is not None:
                        raise KafkaException(one.error)
            except KafkaException:
                client.close()
                raise
            self._members[group] = client
            return {
                TopicPartition(one.topic, one.partition): CommittedOffset(one.offset, one.metadata or "")
                for one in found
                if one.offset >= 0
            }

        return await self._cluster.ask_until(time.monotonic() + ANSWER_SECONDS, call)

    async def has_members(self, group: str) -> bool:
        members = await self._cluster.ask_until(
            time.monotonic() + ANSWER_SECONDS, lambda admin: _members_of(group, admin)
        )
        return bool(members)

    async def grant(self, user: str, rights: Iterable[Right]) -> None:
        """Gives rights to a user, besides those that he has. May be repeated.

        Raises: Rejected where we may not, or the cluster asks for no rights at all; Unavailable.
        """
        bindings = [_binding(user, right) for right in rights]

        def call(admin: AdminClient) -> None:
            for answer in admin.create_acls(bindings, request_timeout=ANSWER_SECONDS).values():
                result_of(answer, self._cluster.address, "Alter")
            _wait_until_granted(admin, user, set(bindings))

        await self._cluster.ask(call)

    async def close(self) -> None:
        """The admin client is the cluster's, and goes on."""
        while self._members:
            await asyncio.to_thread(self._members.popitem()[1].close)


def _binding(user: str, right: Right) -> AclBinding:
    """Of the user by his name, from any host."""
    kind, operation = _KINDS[right.kind], _OPERATIONS[right.operation]
    pattern = ResourcePatternType.PREFIXED if right.name.endswith("*") else ResourcePatternType.LITERAL
    name, allowed = right.name.removesuffix("*"), AclPermissionType.ALLOW
    return AclBinding(kind, name, pattern, f"User:{user}", "*", operation, allowed)


def _wait_until_granted(admin: AdminClient, user: str, bindings: set[AclBinding]) -> None:
    """Rights count a moment after they were acknowledged, on a busy cluster some seconds."""
    kind, pattern, any_ = ResourceType.ANY, ResourcePatternType.ANY, AclOperation.ANY
    words: Any = (kind, None, pattern, f"User:{user}", None, any_, AclPermissionType.ANY)
    of_user = AclBindingFilter(*words)  # None is for any
    deadline = time.monotonic() + ANSWER_SECONDS
    while True:
        given = result_of(admin.describe_acls(of_user, request_timeout=ANSWER_SECONDS), user)
        if bindings <= set(given):
            return
        if time.monotonic() > deadline:
            raise Unavailable(f"{user}: the cluster does not know its new rights yet; give them again")
        time.sleep(0.05)


_KINDS = {"topic": ResourceType.TOPIC, "group": ResourceType.GROUP}
_OPERATIONS = {
    "Read": AclOperation.READ,
    "Write": AclOperation.WRITE,
    "Create": AclOperation.CREATE,
    "Delete": AclOperation.DELETE,
    "Describe": AclOperation.DESCRIBE,
    "DescribeConfigs": AclOperation.DESCRIBE_CONFIGS,
    "AlterConfigs": AclOperation.ALTER_CONFIGS,
}


def _brokers(admin: AdminClient) -> int:
    return len(admin.list_topics(timeout=ANSWER_SECONDS).brokers)


def _describe(admin: AdminClient, names: Sequence[str]) -> dict[str, TopicDescription | None]:
    topics = admin.list_topics(timeout=ANSWER_SECONDS).topics
    found: dict[str, TopicDescription | None] = dict.fromkeys(names)
    present = [name for name in names if name in topics and topics[name].error is None]
    require_visible(admin, [name for name in names if name not in present], ANSWER_SECONDS)
    configs = topic_configs(admin, present)
    for name in present:
        partitions = topics[name].partitions
        replication = min(len(partition.replicas) for partition in partitions.values())
        found[name] = TopicDescription(name, len(partitions), replication, dict(configs[name]))
    return found


def _members_of(group: str, admin: AdminClient) -> Sequence[object]:
    """Of a group that nobody knows, none. Blocks. Raises: KafkaException; HeadraceError about the group."""
    (answer,) = admin.describe_consumer_groups([group], request_timeout=ANSWER_SECONDS).values()
    try:
        return list(answer.result().members)
    except KafkaException as error:
        if error.args[0].code() == KafkaError.GROUP_ID_NOT_FOUND:
            return []
        raise translate(error, group, "Describe") from None


def topic_configs(admin: AdminClient, names: Sequence[str]) -> Mapping[str, Mapping[str, str]]:
    """The settings of topics as the broker applies them, defaults among them. Blocks.

    Raises: KafkaException; HeadraceError about the topic.
    """
    if not names:
        return {}
    resources = [ConfigResource(ResourceType.TOPIC, name) for name in names]
    configs = {}
    for resource, answer in admin.describe_configs(resources, request_timeout=ANSWER_SECONDS).items():
        entries = result_of(answer, resource.name, "DescribeConfigs").values()
        configs[resource.name] = {entry.name: entry.value for entry in entries if entry.value is not None}
    return configs


def _wait_until_known(admin: AdminClient, names: set[str], *, known: bool) -> None:
    """A topic exists a moment after its creation was acknowledged: every partition of it with a leader."""
    deadline = time.monotonic() + ANSWER_SECONDS
    while True:
        topics = admin.list_topics(timeout=ANSWER_SECONDS).topics
        ready = {
            name
            for name, topic in topics.items()
            if topic.error is None and topic.partitions and all(p.leader >= 0 for p in topic.partitions.values())
        }
        waiting = names - ready if known else names & topics.keys()
        if not waiting:
            return
        if time.monotonic() > deadline:
            raise Unavailable(f"{', '.join(sorted(waiting))}: the cluster does not agree on it yet")
        time.sleep(0.02)
