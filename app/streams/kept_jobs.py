"""What is known of the jobs on Flink when the cluster has forgotten them: a record each on `flink.jobs`, the last one counts.

{"job":"raw.orders","generation":1}  ->  {"pipelines":{"user_features":"…"},"job_id":"…","checkpoint":"file:/…/chk-17", …}

A job is named by the topics that it reads. Its generations are told apart by what they compute, or where they began.
"""

from collections.abc import Collection, Iterable

import msgspec

from app.broker.base import Broker
from app.broker.topics import TopicSpec
from app.core.codec import compact_key, encode
from app.core.errors import SetupError
from app.core.record import TopicPartition
from app.streams.takeover import ByPartition, Takeover

TOPIC = TopicSpec(name="flink.jobs", partitions=1, cleanup="compact", retention_ms=None)
PLACE = TopicPartition(TOPIC.name, 0)


class KeptJob(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One generation of a job.

    pipelines: their fingerprints, by name. text_hash: of its text, by the places in which its state is found again, and of
    what keeps it. group: under which it commits its offsets. job_id: empty until the cluster has taken it.
    checkpoint: the last one that was seen, or the savepoint that it was begun or stopped with; empty for neither. folders: where its
    checkpoints go, the present one last. takeover: of whom was there before; None where it began at the earliest record. stopped:
    by somebody, and to stay so; ends: where its topics ended then. is_being_given: to the cluster, which may have it already. over:
    another one has taken its place. at_ms: wall time.
    """

    name: str
    generation: int
    pipelines: dict[str, str]
    group: str
    parallelism: int
    text_hash: str = ""
    job_id: str = ""
    checkpoint: str = ""
    folders: tuple[str, ...] = ()
    takeover: Takeover | None = None
    stopped: bool = False
    ends: ByPartition = {}
    is_being_given: bool = False
    over: bool = False
    at_ms: int = 0

    @property
    def topics(self) -> frozenset[str]:
        """That it reads."""
        return topics_of_job(self.name)

    @property
    def label(self) -> str:
        """What the cluster calls it. No topic's name holds a slash."""
        return f"{self.name}/{self.generation}"

    @property
    def holds(self) -> bool:
        """Whether it still fills itself beside the one that it is to replace."""
        return self.takeover is not None and self.takeover.holds

    @property
    def stands(self) -> bool:
        """Whether the cluster has taken it, and nobody has stopped it."""
        return bool(self.job_id) and not (self.stopped or self.over)

    @property
    def is_silent(self) -> bool:
        """Whether it has never said anything: it holds, or the cluster never took it."""
        return self.holds or not (self.job_id or self.checkpoint)


def topics_of_job(name: str) -> frozenset[str]:
    """The topics that a job of this name reads."""
    return frozenset(name.split("+"))


def computing(jobs: Iterable[KeptJob], name: str, fingerprint: str) -> list[KeptJob]:
    """The jobs that compute a pipeline as it is declared."""
    return [job for job in jobs if not job.over and job.pipelines.get(name) == fingerprint]


async def require_no_job(broker: Broker, topics: Collection[str]) -> None:
    """Streams run in one place. Raises: SetupError where a job on Flink reads one of these topics; Unavailable, Rejected."""
    for job in await KeptJobs(broker).read():
        if (job.stands or (job.is_being_given and not job.over)) and job.topics & set(topics):
            raise SetupError(
                "engine",
                f"these streams run on Flink, as job {job.name}; say --engine flink, or stop it: python -m flink_jobs stop {job.name}",
            )


class _Key(msgspec.Struct):
    job: str
    generation: int


class KeptJobs:
    """Reads and writes them; what was read once is not read again."""

    def __init__(self, broker: Broker) -> None:
        self._broker = broker
        self._found: dict[tuple[str, int], KeptJob] = {}
        self._next = 0

    async def read(self) -> list[KeptJob]:
        """As of now, those that are over among them, oldest generations first. Raises: Unavailable, Rejected; SetupError for
        what another version has written."""
        reader = self._broker.reader()
        try:
            end = (await reader.end_offsets([PLACE]))[PLACE]
            start = max(self._next, (await reader.beginning_offsets([PLACE]))[PLACE])
            async for records in reader.read(PLACE, start, end):
                for record in records:
                    if record.key is not None and record.value is not None:
                        self._learn(record.key, record.value)
            self._next = end
        finally:
            await reader.close()
        return sorted(self._found.values(), key=lambda job: (job.name, job.generation))

    def _learn(self, key: bytes, value: bytes) -> None:
        try:
            of = msgspec.json.decode(key, type=_Key)
            self._found[of.job, of.generation] = msgspec.json.decode(value, type=KeptJob)
        except msgspec.DecodeError as error:
            raise SetupError(
                TOPIC.name,
                f"was written by another version or tool ({error}); cancel the jobs on the cluster, delete the topic, and submit "
                "them --anew",
            ) from None

    async def write(self, job: KeptJob) -> None:
        """Returns when the broker has acknowledged it. Raises: Unavailable, Rejected."""
        producer = self._broker.producer()
        await producer.start()
        try:
            key = compact_key(job=job.name, generation=job.generation)
            await producer.confirm(TOPIC.name, encode(job), key, partition=0)
        finally:
            await producer.close()
