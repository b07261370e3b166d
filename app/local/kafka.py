"""One Kafka broker as a local process: jars by Maven, KRaft, loopback, groups that notice a dead member in 6 s.

The jars of `deploy/pom.xml` are fetched once into `.local/kafka/jars` and again when that file changes.
"""

import base64
import os
import socket
import ssl
import struct
import uuid
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import ClassVar

import msgspec

from app.local.java import LOGGING, fetch_jars, find_java
from app.local.process import LOCAL, ROOT, free_ports, run_quietly

POM = ROOT / "deploy" / "pom.xml"
JARS = LOCAL / "kafka" / "jars"

PROPERTIES = """\
process.roles=broker,controller
node.id=1
controller.quorum.bootstrap.servers=127.0.0.1:{controller_port}
listeners=PLAINTEXT://127.0.0.1:{port},CONTROLLER://127.0.0.1:{controller_port}
advertised.listeners=PLAINTEXT://127.0.0.1:{port}
controller.listener.names=CONTROLLER
listener.security.protocol.map=PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT
log.dirs={data}
auto.create.topics.enable=false
broker.session.timeout.ms=4000
broker.heartbeat.interval.ms=500
num.network.threads=2
num.io.threads=4
log.cleaner.dedupe.buffer.size=16777216
offsets.topic.replication.factor=1
offsets.topic.num.partitions=4
transaction.state.log.replication.factor=1
transaction.state.log.min.isr=1
transaction.state.log.num.partitions=1
share.coordinator.state.topic.replication.factor=1
share.coordinator.state.topic.min.isr=1
share.coordinator.state.topic.num.partitions=1
group.initial.rebalance.delay.ms=0
group.min.session.timeout.ms=1000
group.consumer.min.session.timeout.ms=1000
group.consumer.session.timeout.ms=6000
group.consumer.min.heartbeat.interval.ms=500
group.consumer.heartbeat.interval.ms=1000
"""


class KafkaServer(msgspec.Struct, frozen=True, tag="kafka", tag_field="service"):
    """A broker whose files are all in `directory`. `prepare` once, then run `command` as often as needed."""

    directory: str
    port: int
    controller_port: int

    name: ClassVar[str] = "kafka"
    start_seconds: ClassVar[float] = 60.0

    @classmethod
    def plan(cls, directory: Path) -> "KafkaServer":
        port, controller_port = free_ports(2)
        return cls(str(directory), port, controller_port)

    @property
    def address(self) -> str:
        return f"kafka://127.0.0.1:{self.port}"

    @property
    def variables(self) -> dict[str, str]:
        """The settings of ours that lead there."""
        return {"HEADRACE_BROKER": self.address}

    @property
    def configuration(self) -> str:
        """The file that stands on the command line, by which the process is known again."""
        return f"{self.directory}/server.properties"

    def prepare(self) -> None:
        """Fetches the jars, writes the configuration, formats the storage.

        Raises: SetupError without Java or Maven, or when one of them fails.
        """
        fetch_jars(KafkaServer.name, POM, JARS)
        directory = Path(self.directory)
        directory.mkdir(parents=True, exist_ok=True)
        Path(self.configuration).write_text(self.properties())
        (directory / "log4j2.properties").write_text(LOGGING)
        tool = ["kafka.tools.StorageTool", "format", "--standalone", "-t", cluster_id(), "-c", self.configuration]
        self.format_storage(tool)

    def properties(self) -> str:
        """What its configuration says."""
        values = {"port": self.port, "controller_port": self.controller_port, "data": f"{self.directory}/data"}
        return PROPERTIES.format(**values)

    def format_storage(self, arguments: list[str]) -> None:
        """Runs Kafka's tool with these arguments."""
        run_quietly([str(find_java()), "-cp", f"{JARS}/*", *arguments], "formatting Kafka's storage")

    def command(self) -> list[str]:
        logging = f"-Dlog4j2.configurationFile={self.directory}/log4j2.properties"
        memory = ["-Xms256m", "-Xmx512m"]
        return [str(find_java()), *memory, logging, "-cp", f"{JARS}/*", "kafka.Kafka", self.configuration]

    def environment(self) -> Mapping[str, str]:
        return os.environ

    def answers(self) -> bool:
        """Whether the broker has joined its own cluster and serves clients."""
        return count_brokers("127.0.0.1", self.port) > 0


def cluster_id() -> str:
    """A random id in Kafka's form: 22 characters that do not begin like an option."""
    while (text := base64.urlsafe_b64encode(uuid.uuid4().bytes).decode().rstrip("=")).startswith("-"):
        pass
    return text


def count_brokers(host: str, port: int, tls: ssl.SSLContext | None = None) -> int:
    """How many brokers a server lists in its metadata; 0 while it does not answer. tls: None for plain text.

    Asked in Kafka's own protocol, since an open port says only that the process has begun.
    Source: Kafka protocol, Metadata request and response, version 1.
    """
    client = b"headrace"
    header = struct.pack(">hhih", 3, 1, 1, len(client)) + client
    request = header + struct.pack(">i", 0)  # an empty list of topics: brokers only
    try:
        with ExitStack() as opened:
            connection = opened.enter_context(socket.create_connection((host, port), timeout=2))
            if tls is not None:
                connection = opened.enter_context(tls.wrap_socket(connection, server_hostname=host))
            connection.sendall(struct.pack(">i", len(request)) + request)
            answer = connection.makefile("rb").read(12)
    except OSError:
        return 0
    if len(answer) < 12:
        return 0
    _size, _correlation, brokers = struct.unpack(">iii", answer)
    return int(brokers)
