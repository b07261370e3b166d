"""The jobs of an application, as text, and what their state belongs to."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path

import msgspec

from app.application import FLINK_GROUP, App
from app.core.errors import SetupError
from app.core.security import BrokerSecurity
from app.core.settings import Settings
from app.streams import sql
from app.streams.kept_jobs import KeptJob
from app.streams.pipelines import Pipeline, fingerprint, sources_of

JAVA = Path(__file__).with_name("java")


@cache
def java_digest() -> bytes:
    """Of all sources, also of those that a job does not call."""
    return hashlib.sha256(b"".join(source.read_bytes() for source in sorted(JAVA.glob("**/*.java")))).digest()


@dataclass(frozen=True)
class CompiledJobs:
    """The jobs that are declared, by name, compiled when they are asked for."""

    pipelines: Mapping[str, Mapping[str, Pipeline]]
    given: sql.Settings
    _hashes: dict[str, str] = field(default_factory=dict)

    def named(self, wanted: Sequence[str]) -> list[str]:
        """Those that are wanted, all where none is named. Raises: SetupError for a job that there is not."""
        for name in wanted:
            if name not in self.pipelines:
                raise SetupError(name, f"no job is called that; there are {', '.join(self.pipelines)}")
        return list(wanted) or list(self.pipelines)

    def fingerprints(self, name: str) -> dict[str, str]:
        """Of the pipelines of a job; state made by one is never read by another."""
        return {pipeline: fingerprint(declared) for pipeline, declared in sorted(self.pipelines[name].items())}

    def text_hash(self, name: str) -> str:
        """Of a job's text, without what differs from one start to the next, and of the Java that it calls. State is found again by the
        places of operators, and laid out by their classes, so what another text has made is not read. Raises: as `shown`."""
        if name not in self._hashes:
            plain = sql.compile_job(name, self.pipelines[name], sql.Settings(bootstrap_servers=""))
            self._hashes[name] = hashlib.sha256(plain.text().encode() + java_digest()).hexdigest()[:16]
        return self._hashes[name]

    def require_parallelism(self, name: str, parallelism: int) -> None:
        """Raises: SetupError for more tasks than its topics have partitions: one without a partition would hold the event time of all
        others back for ever."""
        largest = min(source.spec.partitions for source in sources_of(self.pipelines[name].values()).values())
        if parallelism > largest:
            raise SetupError(
                name, f"parallelism {parallelism}: at most {largest}, the partitions of a topic that it reads"
            )

    def computes(self, kept: KeptJob) -> bool:
        """Whether a generation is what is declared now, and its state that of the present text."""
        if kept.pipelines != self.fingerprints(kept.name):
            return False
        try:
            return kept.text_hash == self.text_hash(kept.name)
        except SetupError:  # Flink cannot run it, so nobody does; whoever submits it is told
            return False

    def shown(self, name: str) -> sql.Job:
        """As it would begin where nobody was before. Raises: SetupError for what Flink cannot run, naming the operator and the
        way out."""
        return sql.compile_job(name, self.pipelines[name], self.given)

    def job(self, kept: KeptJob) -> sql.Job:
        """The text of a generation, the same whenever it is started again. Raises: as `shown`."""
        assert self.computes(kept)
        settings = replace(self.given, group=kept.group, parallelism=kept.parallelism, takeover=kept.takeover)
        return sql.compile_job(kept.label, self.pipelines[kept.name], settings)


def compile_jobs(app: App, settings: Settings, *, shown: bool = False) -> CompiledJobs:
    """shown: to a person, without passwords."""
    security = settings.broker_security
    given = sql.Settings(
        bootstrap_servers=settings.broker.partition("://")[2].rstrip("/"),
        properties=java_properties(msgspec.structs.replace(security, password="***") if shown else security),
        group=FLINK_GROUP,
    )
    return CompiledJobs(sql.jobs_of(app.pipelines), given)


def java_properties(security: BrokerSecurity) -> dict[str, str]:
    """What Kafka's Java client calls our settings. Files must be where the task managers are."""
    properties = {"security.protocol": ("SASL_" if security.user else "") + ("SSL" if security.tls else "PLAINTEXT")}
    if security.ca:
        properties |= {"ssl.truststore.type": "PEM", "ssl.truststore.location": security.ca}
    if security.certificate:
        raise SetupError(
            "broker_certificate", "Flink's client takes certificate and key in one PEM file only; use a password"
        )
    if security.user:
        module = "plain.PlainLoginModule" if security.mechanism == "PLAIN" else "scram.ScramLoginModule"
        user, password = _quoted(security.user), _quoted(security.password)
        properties["sasl.mechanism"] = security.mechanism
        properties["sasl.jaas.config"] = (
            f"org.apache.flink.kafka.shaded.org.apache.kafka.common.security.{module} required "
            f"username={user} password={password};"
        )
    return properties if properties != {"security.protocol": "PLAINTEXT"} else {}


def _quoted(text: str) -> str:
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'
