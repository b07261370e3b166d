"""Flink over a log: topics filled on a real broker, one bounded job, its outputs read back."""

import asyncio
from collections import defaultdict
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass

from app.broker.base import Broker
from app.broker.topics import TopicSpec
from app.http.client import HttpClient
from app.streams.pipelines import Pipeline, raised_by, streams_of
from app.streams.sql import Settings, compile_job, jobs_of
from flink_jobs.child import Submitter, submitter
from flink_jobs.cluster import ENDED, FlinkCluster
from tests.parity.asyncio_engine import bad_by_gates
from tests.parity.meaning import SourceRecord
from tests.parity.reference import Outputs
from tests.parity.written import outputs_of, read_back

RUN_SECONDS = 300.0
LOOK_SECONDS = 0.1


@dataclass
class Flink:
    """A cluster, its broker, and PyFlink."""

    broker: Broker
    cluster: FlinkCluster
    pyflink: Submitter

    async def run(
        self, pipelines: Mapping[str, Pipeline], records: Sequence[SourceRecord], *, prefix: str, parallelism: int = 1
    ) -> Outputs:
        """What the pipelines write for records, each partition's in this order, and the gates of a worker beside them; everything closes at the end. prefix: before the
        names of the outputs, so that runs do not meet. The topics are gone afterwards."""
        host = self.broker.address.partition("://")[2].rstrip("/")
        given = Settings(bootstrap_servers=host, bounded=True, prefix=prefix, parallelism=parallelism)
        sources = {stream.source for pipeline in pipelines.values() for stream in streams_of(pipeline)}
        partitions = {source.spec.name: source.spec.partitions for source in sources}
        outputs = _outputs(pipelines, max(partitions.values()))
        specs = [
            TopicSpec(name=name, partitions=count, retention_ms=None, time="event")
            for name, count in partitions.items()
        ]
        specs += [TopicSpec(name=given.output(name), partitions=count) for name, count in outputs.items()]
        admin = self.broker.admin()
        await admin.create(specs)
        try:
            await self._fill(records)
            for name, members in jobs_of(pipelines).items():
                job = compile_job(name, members, given)
                await self._finish(await self.pyflink.submit(job, self._configuration()))
            written = await read_back(self.broker, {given.output(name): count for name, count in outputs.items()})
            found = outputs_of(pipelines, lambda topic: written.get(given.output(topic), []))
            found.bad = bad_by_gates(list(sources), records)
            return found
        finally:
            await admin.delete([spec.name for spec in specs])
            await admin.close()

    def _configuration(self) -> dict[str, str]:
        host, _, port = self.cluster.address.partition("//")[2].partition(":")
        return {
            "execution.target": "remote",
            "execution.attached": "false",
            "rest.address": host,
            "rest.port": port,
            "restart-strategy.type": "disable",
        }

    async def _fill(self, records: Sequence[SourceRecord]) -> None:
        producer = self.broker.producer()
        await producer.start()
        try:
            for record in records:
                await producer.send(
                    record.topic,
                    record.value,
                    record.key,
                    partition=record.partition,
                    timestamp_ms=record.timestamp_ms,
                )
            assert [] == await producer.flush()
        finally:
            await producer.close()

    async def _finish(self, job_id: str) -> None:
        async with asyncio.timeout(RUN_SECONDS):
            while True:
                status = await self.cluster.job(job_id)
                if status is not None and status.state in ENDED:
                    assert "FINISHED" == status.state, status.cause
                    return
                await asyncio.sleep(LOOK_SECONDS)


def _outputs(pipelines: Mapping[str, Pipeline], partitions: int) -> dict[str, int]:
    """Names and partitions of all topics that are written."""
    found = defaultdict[str, int](lambda: partitions)
    for pipeline in pipelines.values():
        raised = raised_by(pipeline)
        found[pipeline.topic if raised is None else raised.topic]
        for stream in streams_of(pipeline):
            found[f"{stream.source.spec.name}.late"]
    return dict(found)


@asynccontextmanager
async def flink_on(broker: Broker, address: str) -> AsyncIterator[Flink]:
    """Raises: SetupError when there is no cluster, or no PyFlink."""
    async with HttpClient() as http, submitter() as pyflink:
        cluster = FlinkCluster(address, http)
        await cluster.require()
        yield Flink(broker, cluster, pyflink)
