"""What is known of jobs when the cluster has forgotten them: one record a job on `flink.jobs`, the last one counts.

{"job":"raw.orders"}  ->  {"job_id":"…","fingerprint":"…","folder":"file:/…","checkpoint":"file:/…/chk-17", …}
"""

from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import msgspec

from app.broker.base import Broker
from app.broker.topics import TopicSpec
from app.core.codec import compact_key, encode
from app.core.errors import SetupError
from app.core.record import TopicPartition

TOPIC = TopicSpec(name="flink.jobs", partitions=1, cleanup="compact", retention_ms=None)
PLACE = TopicPartition(TOPIC.name, 0)


class KeptJob(msgspec.Struct, frozen=True, kw_only=True):
    """checkpoint: of the last one that was seen, or the savepoint that it was begun or stopped with; empty for neither. folder: where
    its checkpoints go. stopped: by somebody, and to stay so. at_ms: wall time."""

    job_id: str
    fingerprint: str
    folder: str
    checkpoint: str = ""
    stopped: bool = False
    at_ms: int


class _Key(msgspec.Struct):
    job: str


class KeptJobs:
    """Reads and writes them; what was read once is not read again."""

    def __init__(self, broker: Broker) -> None:
        self._broker = broker
        self._found: dict[str, KeptJob] = {}
        self._next = 0

    async def start(self) -> None:
        """Makes the topic if there is none. Raises: Unavailable, Rejected."""
        admin = self._broker.admin()
        try:
            await admin.create([TOPIC])
        finally:
            await admin.close()

    async def read(self) -> dict[str, KeptJob]:
        """By name, as of now. Raises: Unavailable, Rejected."""
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
        return self._found

    def _learn(self, key: bytes, value: bytes) -> None:
        try:
            name = msgspec.json.decode(key, type=_Key).job
            self._found[name] = msgspec.json.decode(value, type=KeptJob)
        except msgspec.DecodeError as error:
            raise SetupError(
                TOPIC.name,
                f"was written by another version or tool ({error}); delete the topic, and submit the jobs --anew",
            ) from None

    async def write(self, name: str, job: KeptJob) -> None:
        """Returns when the broker has acknowledged it. Raises: Unavailable, Rejected."""
        producer = self._broker.producer()
        await producer.start()
        try:
            await producer.confirm(TOPIC.name, encode(job), compact_key(job=name), partition=0)
        finally:
            await producer.close()


def newest_checkpoint(job: KeptJob) -> str:
    """The path to go on from; empty where there is none. The cluster may have completed more of them than were seen: where the folder
    can be read here, the newest one counts."""
    folder = Path(urlsplit(job.folder).path)
    numbers = sorted(_completed(folder)) if urlsplit(job.folder).scheme == "file" and not job.stopped else []
    return f"file:{folder}/chk-{numbers[-1]}" if numbers else job.checkpoint


def _completed(folder: Path) -> Iterator[int]:
    """A checkpoint has its metadata only when it is complete."""
    for found in folder.glob("chk-*/_metadata"):
        yield int(found.parent.name.removeprefix("chk-"))
