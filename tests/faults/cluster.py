"""A real Kafka and a real Redis of the harness's own, reachable directly and through fault proxies."""

import asyncio
import os
import signal
from collections.abc import Iterator
from contextlib import AsyncExitStack, contextmanager
from pathlib import Path

from confluent_kafka.admin import (  # type: ignore[attr-defined]
    AdminClient,
    AlterConfigOpType,
    ConfigEntry,
    ConfigResource,
    ResourceType,
)

from app.application import STREAMS_GROUP, App
from app.broker.kafka import KafkaBroker
from app.core.clock import SystemClock
from app.core.errors import Unavailable
from app.core.record import TopicPartition
from app.decisions.actions import GROUP as ACTIONS
from app.local import kafka, process, services
from app.serving.materializer import GROUP as FEATURES
from tests.faults.proxy import TcpProxy

SESSION_MS, HEARTBEAT_MS = 2_000, 500
START_S, STOP_S = 60.0, 30.0

PROXIED = """\
listeners=PLAINTEXT://127.0.0.1:{port},PROXIED://127.0.0.1:%d,CONTROLLER://127.0.0.1:{controller_port}
advertised.listeners=PLAINTEXT://127.0.0.1:{port},PROXIED://127.0.0.1:%d
listener.security.protocol.map=PLAINTEXT:PLAINTEXT,PROXIED:PLAINTEXT,CONTROLLER:PLAINTEXT
inter.broker.listener.name=PLAINTEXT
"""


class Cluster:
    """`async with`. kafka, redis: the addresses of the servers. kafka_proxied, redis_proxied: the same through
    `kafka_proxy` and `redis_proxy`, which do nothing until they are told to."""

    def __init__(self, app: App, directory: Path) -> None:
        self.app = app
        self.directory = directory
        self.groups = [*(agent.group for agent in app.agents.values()), ACTIONS, FEATURES, STREAMS_GROUP]
        self.kafka = self.redis = self.kafka_proxied = self.redis_proxied = ""
        self._stack = AsyncExitStack()

    async def __aenter__(self) -> "Cluster":
        stack = self._stack
        try:
            listener_port, proxy_port = process.free_ports(2)
            stack.push_async_callback(asyncio.to_thread, services.down, self.directory)
            with _properties(PROXIED % (listener_port, proxy_port)):
                addresses = await asyncio.to_thread(services.up, self.directory)
            self.kafka, self.redis = addresses.kafka, addresses.redis
            self.kafka_proxy = await stack.enter_async_context(TcpProxy(listener_port, proxy_port))
            self.redis_proxy = await stack.enter_async_context(TcpProxy(_port(self.redis)))
            self.kafka_proxied = f"kafka://127.0.0.1:{self.kafka_proxy.port}"
            self.redis_proxied = f"redis://127.0.0.1:{self.redis_proxy.port}/0"
            self.broker = KafkaBroker(self.kafka, SystemClock(), replication=1)
            stack.push_async_callback(self.broker.close)
            admin = self.broker.admin()
            await admin.create(self.app.topics.all())
            await admin.close()
            await self._until_topics_answer()
            await asyncio.to_thread(self._notice_dead_members_soon)
        except BaseException:
            await stack.aclose()
            raise
        return self

    async def __aexit__(self, *exception: object) -> None:
        await self._stack.aclose()

    async def _until_topics_answer(self) -> None:
        """A topic that was just created has no leader for a moment."""
        specs, reader = self.app.topics.all(), self.broker.reader()
        places = [TopicPartition(spec.name, number) for spec in specs for number in range(spec.partitions)]
        async with asyncio.timeout(START_S):
            while True:
                try:
                    await reader.end_offsets(places)
                    break
                except Unavailable:
                    await asyncio.sleep(0.2)
        await reader.close()

    @property
    def servers(self) -> str:
        """`host:port` of Kafka, for clients of the library."""
        return self.kafka.removeprefix("kafka://")

    async def kill(self, service: str) -> None:
        """SIGKILL for `kafka` or `redis`; what they had stored is kept. Returns when it has ended."""
        await asyncio.to_thread(process.kill, self.directory / service / "pid", self._marker(service))

    async def stop(self, service: str) -> None:
        """SIGTERM; returns when it has ended."""
        await self.signal(service, signal.SIGTERM)
        await asyncio.to_thread(process.wait_until, lambda: self._pid(service) is None, STOP_S)

    async def signal(self, service: str, number: int) -> None:
        """Any signal, such as SIGSTOP and SIGCONT."""
        pid = await asyncio.to_thread(self._pid, service)
        assert pid is not None, f"{service} does not run"
        os.kill(pid, number)

    async def restart(self, service: str) -> None:
        """Starts a server that has ended, over its data, at its address; returns when it answers."""
        await asyncio.to_thread(services.up, self.directory, [service])

    def _pid(self, service: str) -> int | None:
        return process.find(self.directory / service / "pid", self._marker(service))

    def _marker(self, service: str) -> str:
        file = {"kafka": "server.properties", "redis": "redis.conf"}[service]
        return str(self.directory.absolute() / service / file)

    def _notice_dead_members_soon(self) -> None:
        """After 2 s instead of 6, which each of the kills would wait for."""
        settings = {
            "consumer.session.timeout.ms": str(SESSION_MS),
            "consumer.heartbeat.interval.ms": str(HEARTBEAT_MS),
        }
        entries = [
            ConfigEntry(name, value, incremental_operation=AlterConfigOpType.SET) for name, value in settings.items()
        ]
        client = AdminClient({"bootstrap.servers": self.servers})
        for group in self.groups:
            resource = ConfigResource(ResourceType.GROUP, group, incremental_configs=entries)
            (answer,) = client.incremental_alter_configs([resource]).values()
            answer.result(10)


@contextmanager
def _properties(more: str) -> Iterator[None]:
    """Servers planned inside get these properties too, in the place of those of the same name."""
    original = kafka.PROPERTIES
    names = {line.partition("=")[0] for line in more.splitlines()}
    kept = [line for line in original.splitlines() if line.partition("=")[0] not in names]
    kafka.PROPERTIES = "\n".join([*kept, more])
    try:
        yield
    finally:
        kafka.PROPERTIES = original


def _port(address: str) -> int:
    return int(address.rpartition(":")[2].partition("/")[0])
