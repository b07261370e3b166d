"""What a compiled job is, and how it meets its broker."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from app.streams.sql_expressions import text_of
from app.streams.takeover import Takeover

CONFIGURATION = {
    "table.local-time-zone": "UTC",
    "execution.buffer-timeout.interval": "5 ms",
    "pipeline.object-reuse": "true",
    "table.optimizer.reuse-optimize-block-with-digest-enabled": "true",
}
"""What the text relies on, and what keeps alerts fast. Never with it: `table.exec.state.ttl`, which would forget `$reached`."""

PARTITIONER = "headrace.KeyPartitioner"
"""Of keys that are JSON objects, see flink_jobs/java: tiles go where their source partition is, rows where their entity is."""


FUNCTIONS = {
    "burst": "headrace.Burst",
    "dollars": "headrace.Dollars",
    "epoch_ms": "headrace.EpochMs",
    "first_of_slices": "headrace.FirstOfSlices",
    "is_instant": "headrace.IsInstant",
    "once": "headrace.Once",
    "tiles": "headrace.Tiles",
}
"""Classes of flink_jobs/java, which the cluster and whoever submits have."""


def declared(statements: Iterable[str]) -> tuple[str, ...]:
    """The declarations of the functions that statements call."""
    said = "\n".join(statements)
    return tuple(
        f"CREATE TEMPORARY SYSTEM FUNCTION {name} AS {text_of(of)}"
        for name, of in FUNCTIONS.items()
        if re.search(rf"\b{name}\(", said)
    )


@dataclass(frozen=True)
class Settings:
    """How a job meets its broker.

    properties: more of Kafka's own settings, such as TLS and passwords. bounded: ends at what is there at its start, and closes everything;
    that is read too fast for a watermark that moves five times a second. prefix: of the names of its outputs.
    """

    bootstrap_servers: str
    properties: Mapping[str, str] = field(default_factory=dict)
    group: str = "headrace-flink"
    bounded: bool = False
    prefix: str = ""
    parallelism: int = 1
    takeover: Takeover | None = None

    def client(self) -> dict[str, str]:
        """Options of every table."""
        mine = {"bootstrap.servers": self.bootstrap_servers, **self.properties}
        return {f"properties.{name}": value for name, value in mine.items()}

    def source(self, topic: str) -> dict[str, str]:
        """Options of a topic that is read. What is no JSON object has no fields, so that no bad record stops the job."""
        options = {
            "connector": "kafka",
            "topic": topic,
            **self.client(),
            "properties.group.id": self.group,
            "properties.auto.offset.reset": "earliest",
            "key.format": "raw",
            "key.fields": "$key",
            "value.format": "json",
            "value.fields-include": "EXCEPT_KEY",
            "value.json.ignore-parse-errors": "true",
            "scan.startup.mode": "earliest-offset",
        }
        if self.takeover:
            read = ";".join(f"partition:{at},offset:{offset}" for at, offset in enumerate(self.takeover.read[topic]))
            options |= {"scan.startup.mode": "specific-offsets", "scan.startup.specific-offsets": read}
        bounded = {"scan.bounded.mode": "latest-offset", "scan.watermark.emit.strategy": "on-event"}
        return options | (bounded if self.bounded else {})

    def output(self, topic: str) -> str:
        """The name under which an output is written."""
        return f"{self.prefix}{topic}"


@dataclass(frozen=True)
class Job:
    """One Flink job. functions: of flink_jobs/java. inserts: one statement set."""

    name: str
    configuration: Mapping[str, str]
    functions: tuple[str, ...]
    tables: tuple[str, ...]
    views: tuple[str, ...]
    inserts: tuple[str, ...]

    def text(self) -> str:
        """As Flink's SQL client takes it."""
        settings = [f"SET {text_of(name)} = {text_of(value)}" for name, value in self.configuration.items()]
        inserts = "".join(f"{insert};\n\n" for insert in self.inserts)
        statements = [
            ";\n".join(settings),
            *self.functions,
            *self.tables,
            *self.views,
            f"EXECUTE STATEMENT SET BEGIN\n\n{inserts}END;\n",
        ]
        return ";\n\n".join(statements)
