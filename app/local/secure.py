"""Kafka and Redis that ask everybody who he is: TLS, SCRAM users or client certificates, and only the rights given.

Each has an authority, certificates and passwords of its own, made anew, in its directory. The Kafka has two doors: one for
users with passwords, one for client certificates (`CN=agents` is the user `agents`). Nobody but `admin` may do anything
there before somebody gives him rights: `python -m app topics rights`.
"""

import hashlib
import secrets
import socket
import ssl
from pathlib import Path
from typing import ClassVar

from app.local.certificates import Certificate, issue, make_authority, write_private
from app.local.java import find_java
from app.local.kafka import JARS, KafkaServer, count_brokers
from app.local.process import free_ports, run_quietly
from app.local.redis import RedisServer
from app.rights import ROLES, STORE_COMMANDS

HOST = "127.0.0.1"
"""The one name in the servers' certificates: by another, such as `localhost`, a client must refuse them."""

ADMIN = "admin"
KAFKA_USERS = (ADMIN, *ROLES)
REDIS_USERS = (ADMIN, *STORE_COMMANDS)

SECURE_PROPERTIES = """\
listeners=USERS://{host}:{port},CERTIFICATES://{host}:{certificate_port},CONTROLLER://{host}:{controller_port}
advertised.listeners=USERS://{host}:{port},CERTIFICATES://{host}:{certificate_port}
listener.security.protocol.map=USERS:SASL_SSL,CERTIFICATES:SSL,CONTROLLER:SSL
inter.broker.listener.name=CERTIFICATES
sasl.enabled.mechanisms=SCRAM-SHA-512,SCRAM-SHA-256
listener.name.users.scram-sha-512.sasl.jaas.config=org.apache.kafka.common.security.scram.ScramLoginModule required;
listener.name.users.scram-sha-256.sasl.jaas.config=org.apache.kafka.common.security.scram.ScramLoginModule required;
listener.name.certificates.ssl.client.auth=required
listener.name.controller.ssl.client.auth=required
ssl.principal.mapping.rules=RULE:^CN=([^,]+).*$/$1/
ssl.keystore.type=PEM
ssl.keystore.location={directory}/broker.keystore
ssl.truststore.type=PEM
ssl.truststore.location={directory}/ca.pem
authorizer.class.name=org.apache.kafka.metadata.authorizer.StandardAuthorizer
super.users=User:{admin};User:broker
"""

TLS_CONFIGURATION = """\
port 0
tls-port {port}
tls-cert-file {directory}/server.pem
tls-key-file {directory}/server.key
tls-ca-cert-file {directory}/ca.pem
tls-auth-clients optional
user default off
"""


class SecureKafka(KafkaServer, frozen=True, tag="secure-kafka"):
    """The broker; its `port` is that for users with passwords."""

    certificate_port: int = 0

    name: ClassVar[str] = "secure-kafka"

    @classmethod
    def plan(cls, directory: Path) -> "SecureKafka":
        return cls(str(directory), *free_ports(3))

    @property
    def certificate_address(self) -> str:
        """Where client certificates count instead of passwords."""
        return f"kafka://{HOST}:{self.certificate_port}"

    @property
    def variables(self) -> dict[str, str]:
        return {
            "HEADRACE_BROKER": self.address,
            "HEADRACE_BROKER_TLS": "true",
            "HEADRACE_BROKER_CA": f"{self.directory}/ca.pem",
            "HEADRACE_BROKER_USER": ADMIN,
            "HEADRACE_BROKER_PASSWORD_FILE": f"{self.directory}/{ADMIN}.password",
        }

    def properties(self) -> str:
        kept = [line for line in super().properties().splitlines() if "listener" not in line.partition("=")[0]]
        more = SECURE_PROPERTIES.format(
            host=HOST,
            port=self.port,
            certificate_port=self.certificate_port,
            controller_port=self.controller_port,
            directory=self.directory,
            admin=ADMIN,
        )
        return "\n".join(["controller.listener.names=CONTROLLER", *kept, more])

    def prepare(self) -> None:
        """As for the plain one, with certificates and passwords. Raises: SetupError without `openssl`, too."""
        directory = Path(self.directory)
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        authority = make_authority(directory, "local Kafka")
        broker = issue(directory, authority, "broker", HOST)
        for user in KAFKA_USERS:
            issue(directory, authority, user)
        write_private(directory / "broker.keystore", broker.key.read_text() + broker.certificate.read_text())
        super().prepare()

    def format_storage(self, arguments: list[str]) -> None:
        """Creates the users. The passwords pass in a file: everybody sees the arguments of a process."""
        directory = Path(self.directory)
        for user in KAFKA_USERS:
            password = _new_password(directory, user)
            for mechanism in ("SCRAM-SHA-512", "SCRAM-SHA-256"):
                arguments = [*arguments, "--add-scram", f"{mechanism}=[name={user},password={password}]"]
        file = directory / "format.arguments"
        quoted = "\n".join(f'"{word}"' for word in ["-cp", f"{JARS}/*", *arguments])
        write_private(file, quoted)
        try:
            run_quietly([str(find_java()), f"@{file}"], "formatting Kafka's storage")
        finally:
            file.unlink()

    def answers(self) -> bool:
        broker = Certificate(Path(self.directory) / "broker.pem", Path(self.directory) / "broker.key")
        return count_brokers(HOST, self.certificate_port, _client_context(self.directory, broker)) > 0


class SecureRedis(RedisServer, frozen=True, tag="secure-redis"):
    """The server; over TCP only with TLS."""

    name: ClassVar[str] = "secure-redis"

    @property
    def address(self) -> str:
        return f"rediss://{HOST}:{self.port}/0"

    @property
    def variables(self) -> dict[str, str]:
        return {
            "HEADRACE_STORE": self.address,
            "HEADRACE_STORE_CA": f"{self.directory}/ca.pem",
            "HEADRACE_STORE_USER": ADMIN,
            "HEADRACE_STORE_PASSWORD_FILE": f"{self.directory}/{ADMIN}.password",
        }

    def configuration_text(self) -> str:
        plain = [line for line in super().configuration_text().splitlines() if not line.startswith("port ")]
        directory = Path(self.directory)
        users = []
        for user in REDIS_USERS:
            digest = hashlib.sha256(_new_password(directory, user).encode()).hexdigest()
            users.append(f"user {user} on #{digest}" + (" ~* &* +@all" if user == ADMIN else ""))
        return "\n".join([*plain, TLS_CONFIGURATION.format(port=self.port, directory=directory), *users, ""])

    def prepare(self) -> None:
        directory = Path(self.directory)
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        issue(directory, make_authority(directory, "local Redis"), "server", HOST)
        super().prepare()

    def answers(self) -> bool:
        try:
            context = _client_context(self.directory)
            with (
                socket.create_connection((HOST, self.port), timeout=2) as plain,
                context.wrap_socket(plain, server_hostname=HOST) as connection,
            ):
                connection.sendall(b"PING\r\n")
                return connection.recv(16).startswith(b"-NOAUTH")
        except OSError:
            return False


def _new_password(directory: Path, user: str) -> str:
    """In `directory/user.password`."""
    password = secrets.token_urlsafe(24)
    write_private(directory / f"{user}.password", password)
    return password


def _client_context(directory: str, own: Certificate | None = None) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=f"{directory}/ca.pem")
    if own is not None:
        context.load_cert_chain(own.certificate, own.key)
    return context
