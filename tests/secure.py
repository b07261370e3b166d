"""Commands against servers with passwords and rights: who they are, what they may do, what became of them."""

import os
import re
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

from confluent_kafka import KafkaException, TopicPartition
from confluent_kafka.admin import (  # type: ignore[attr-defined]
    AclBinding,
    AclBindingFilter,
    AclOperation,
    AclPermissionType,
    AdminClient,
    ListOffsetsResultInfo,
    OffsetSpec,
    ResourcePatternType,
    ResourceType,
)

from app.broker.base import Right
from app.local.secure import ADMIN, HOST

ROOT = Path(__file__).resolve().parents[1]
PATIENCE_SECONDS = 30.0
LIMIT_SECONDS = 10.0
"""Until a command that is kept out has said so."""
SETTLE_SECONDS = 0.3
"""Until a right that was given or taken counts: the controller answers before the broker has heard of it."""
LOG_LINE = re.compile(r"\d{4}-\d\d-\d\d ")

OPERATIONS = {
    "Read": AclOperation.READ,
    "Write": AclOperation.WRITE,
    "Create": AclOperation.CREATE,
    "Delete": AclOperation.DELETE,
    "Describe": AclOperation.DESCRIBE,
    "DescribeConfigs": AclOperation.DESCRIBE_CONFIGS,
    "AlterConfigs": AclOperation.ALTER_CONFIGS,
}


class Ended(NamedTuple):
    """What became of a command."""

    code: int
    out: str
    err: str
    seconds: float

    @property
    def complaint(self) -> str:
        """Its one line about what is wrong: exit code 2, nothing else on stderr but a worker's log."""
        lines = [line for line in self.err.splitlines() if not LOG_LINE.match(line)]
        assert (2, 1) == (self.code, len(lines)), self
        assert lines[0].startswith("error: "), self
        return lines[0].removeprefix("error: ")

    @property
    def refusal(self) -> str:
        """The same of a command that could not even begin: in time."""
        assert self.seconds < LIMIT_SECONDS, self
        return self.complaint

    @property
    def warnings(self) -> list[str]:
        """Lines of its log that are worth a second look."""
        return [line for line in self.err.splitlines() if " INFO " not in line and LOG_LINE.match(line)]


class Running:
    """A command as a child process. What it says is in files."""

    def __init__(self, arguments: Iterable[str], variables: Mapping[str, str], directory: Path) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self._out, self._err = directory / "out", directory / "err"
        kept = {name: value for name, value in os.environ.items() if not name.startswith("HEADRACE_")}
        self._began = time.monotonic()
        with self._out.open("w") as out, self._err.open("w") as err:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "app", *arguments],
                cwd=directory,
                env=kept | {"PYTHONPATH": str(ROOT), "COLUMNS": "200"} | dict(variables),
                stdout=out,
                stderr=err,
            )

    @property
    def err(self) -> str:
        return self._err.read_text()

    def wait_until_it_says(self, text: str) -> None:
        end = time.monotonic() + PATIENCE_SECONDS
        while text not in self.err:
            assert self.process.poll() is None, self.err
            assert time.monotonic() < end, f"{text!r} is not said: {self.err}"
            time.sleep(0.05)

    def ended(self) -> Ended:
        """Waits for its end."""
        code = self.process.wait(PATIENCE_SECONDS)
        return Ended(code, self._out.read_text(), self.err, time.monotonic() - self._began)

    def end(self) -> Ended:
        """Tells it to leave in order, and waits for that."""
        self.process.terminate()
        return self.ended()

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()


class Secured(NamedTuple):
    """Kafka and Redis of `app.local.secure`. kafka, redis: their directories. variables: the administrator's.
    certificate_address: where client certificates count."""

    kafka: Path
    redis: Path
    certificate_address: str
    variables: dict[str, str]
    admin: AdminClient

    def password(self, user: str) -> str:
        return (self.kafka / f"{user}.password").read_text()

    def secrets(self) -> list[str]:
        return [file.read_text() for place in (self.kafka, self.redis) for file in place.glob("*.password")]

    def as_user(self, user: str, store_user: str = ADMIN) -> dict[str, str]:
        """The settings of one of Kafka's users, and one of Redis'."""
        return self.variables | {
            "HEADRACE_BROKER_USER": user,
            "HEADRACE_BROKER_PASSWORD_FILE": str(self.kafka / f"{user}.password"),
            "HEADRACE_STORE_USER": store_user,
            "HEADRACE_STORE_PASSWORD_FILE": str(self.redis / f"{store_user}.password"),
        }

    def as_certificate(self, user: str, store_user: str = ADMIN) -> dict[str, str]:
        """The same, where the user shows a certificate instead."""
        kept = {name: value for name, value in self.as_user(user, store_user).items() if "BROKER" not in name}
        return kept | {
            "HEADRACE_BROKER": self.certificate_address,
            "HEADRACE_BROKER_TLS": "true",
            "HEADRACE_BROKER_CA": str(self.kafka / "ca.pem"),
            "HEADRACE_BROKER_CERTIFICATE": str(self.kafka / f"{user}.pem"),
            "HEADRACE_BROKER_KEY": str(self.kafka / f"{user}.key"),
        }

    def ends(self, topic: str) -> list[ListOffsetsResultInfo]:
        """The end of each partition."""
        partitions = self.admin.list_topics(topic, timeout=10).topics[topic].partitions
        latest = OffsetSpec.latest()  # type: ignore[no-untyped-call]
        asked = {TopicPartition(topic, number): latest for number in partitions}
        end = time.monotonic() + PATIENCE_SECONDS
        while True:
            try:
                return [answer.result(10) for answer in self.admin.list_offsets(asked).values()]
            except KafkaException:  # a new topic's broker does not know for a moment that it leads it
                if time.monotonic() > end:
                    raise
            time.sleep(0.1)

    def grant(self, user: str, rights: Iterable[Right]) -> None:
        answers = self.admin.create_acls([binding(user, right) for right in rights])
        for answer in answers.values():
            answer.result(10)
        time.sleep(SETTLE_SECONDS)

    def take(self, user: str, right: Right) -> None:
        kind, name, pattern, principal, host, operation, permission = _words(user, right)
        wanted = AclBindingFilter(kind, name, pattern, principal, host, operation, permission)
        for answer in self.admin.delete_acls([wanted]).values():
            assert 1 == len(answer.result(10)), right
        time.sleep(SETTLE_SECONDS)


def binding(user: str, right: Right) -> AclBinding:
    return AclBinding(*_words(user, right))


def _words(
    user: str, right: Right
) -> tuple[ResourceType, str, ResourcePatternType, str, str, AclOperation, AclPermissionType]:
    kind = {"topic": ResourceType.TOPIC, "group": ResourceType.GROUP}[right.kind]
    operation = OPERATIONS[right.operation]
    pattern = ResourcePatternType.PREFIXED if right.name.endswith("*") else ResourcePatternType.LITERAL
    return kind, right.name.removesuffix("*"), pattern, f"User:{user}", "*", operation, AclPermissionType.ALLOW


def secured_by(directory: Path, variables: Mapping[str, str]) -> Secured:
    """What the servers that were started in this directory are to a test."""
    kafka, redis = directory / "secure-kafka", directory / "secure-redis"
    properties = (kafka / "server.properties").read_text()
    port = properties.partition(f"CERTIFICATES://{HOST}:")[2].partition(",")[0]
    admin = AdminClient(
        {
            "log_level": 0,
            "bootstrap.servers": variables["HEADRACE_BROKER"].removeprefix("kafka://"),
            "security.protocol": "SASL_SSL",
            "ssl.ca.location": variables["HEADRACE_BROKER_CA"],
            "sasl.mechanism": "SCRAM-SHA-512",
            "sasl.username": ADMIN,
            "sasl.password": (kafka / f"{ADMIN}.password").read_text(),
        }
    )
    return Secured(kafka, redis, f"kafka://{HOST}:{port}", dict(variables), admin)


def elsewhere(address: str) -> str:
    """The same place under a name that is not in its certificate."""
    return address.replace(HOST, "localhost")
