"""A cluster of Flink that only remembers its jobs, a broker in memory, and applications of a pipeline or two."""

import asyncio
from collections.abc import Callable
from typing import Any, cast

import msgspec

from app.broker.base import Assignment, CommittedOffset
from app.broker.memory import MemoryBroker
from app.core.clock import ManualClock
from app.core.record import TopicPartition
from app.streams.aggregates import Aggregate
from app.streams.graph import count
from app.streams.kept_jobs import TOPIC, KeptJob
from app.streams.pipelines import Pipeline, fingerprint
from app.streams.sql import Settings, jobs_of
from features import fraud
from features.records import order_events, payment_events
from flink_jobs.child import Submitter
from flink_jobs.cluster import FlinkCluster, JobStatus
from flink_jobs.compiled import CompiledJobs
from flink_jobs.generations import Generations
from flink_jobs.operations import Jobs

NOW = 1_800_000_000_000
ORDERS, PAYMENTS = "raw.orders", "raw.payments"
N: dict[str, Aggregate] = {"n": count()}
ORDER_RATE: dict[str, Pipeline] = {"rate": order_events.tumbling("1m").aggregate(**N).to("rate")}
HOUR_RATE: dict[str, Pipeline] = {"rate": order_events.tumbling("1h").aggregate(**N).to("rate")}
PAYMENT_RATE: dict[str, Pipeline] = {"paid": payment_events.tumbling("1m").aggregate(**N).to("paid")}
BOTH = {
    **ORDER_RATE,
    "unpaid": order_events.join(payment_events, on="order_id", within=("0s", "5m"), prefix="paid_")
    .missing()
    .alert(fraud.HighValueOrder, id="order_id"),
}
PLACES = [TopicPartition(ORDERS, partition) for partition in range(12)]


class Cluster:
    """Knows jobs by what was submitted; one that is stopped or cancelled has ended. Submits too."""

    address = "http://127.0.0.1:1"
    is_gone = False

    def __init__(self) -> None:
        self.known: dict[str, JobStatus] = {}
        self.submitted: list[tuple[str, str]] = []
        """Name and checkpoint of each."""

    def add(self, name: str, state: str = "RUNNING", since_ms: int = NOW) -> str:
        job_id = str(len(self.known) + 1)
        self.known[job_id] = JobStatus(job_id=job_id, name=name, state=state, since_ms=since_ms)
        return job_id

    async def job(self, job_id: str) -> JobStatus | None:
        return self.known.get(job_id)

    async def running(self, name: str, since_ms: int) -> list[str]:
        named = [one for one in self.known.values() if one.name == name and one.state == "RUNNING"]
        return [one.job_id for one in named if one.since_ms >= since_ms]

    def configuration(self, checkpoint: str) -> dict[str, str]:
        return {"path": checkpoint}

    async def checkpoint_folder(self, job_id: str) -> str:
        return ""

    async def submit(self, job: Any, configuration: dict[str, str]) -> str:
        """As the submitter's."""
        self.submitted.append((job.name, configuration["path"]))
        return self.add(job.name)

    async def stop(self, job_id: str) -> str:
        await self.cancel(job_id)
        return f"savepoint-{job_id}"

    async def cancel(self, job_id: str) -> None:
        self.known[job_id] = msgspec.structs.replace(self.known[job_id], state="FINISHED")

    def names(self) -> list[str]:
        return [one.name for one in self.known.values() if one.state == "RUNNING"]


class Member:
    """Of a group; owns all partitions of a topic, and commits."""

    def __init__(self, broker: MemoryBroker, group: str, topic: str) -> None:
        self._consumer = broker.consumer(group, [topic], self)

    async def on_assigned(self, assignments: object) -> None: ...

    async def on_revoked(self, assignments: object) -> None: ...

    async def on_lost(self, assignments: object) -> None: ...

    async def commit(self, offset: int, metadata: str = "") -> None:
        await self._consumer.start()
        await self._consumer.poll(1, 1)
        held: frozenset[Assignment] = self._consumer.assignments()
        await self._consumer.commit({one: CommittedOffset(offset, metadata) for one in held})

    async def leave(self) -> None:
        await self._consumer.close()


class Setting:
    """A broker with ten orders in each partition, one a second, and a cluster."""

    def __init__(self) -> None:
        self.broker = MemoryBroker(ManualClock(NOW))
        self.cluster = Cluster()
        self.clock = ManualClock(NOW)

    async def begin(self) -> "Setting":
        await self.broker.admin().create([order_events.source.spec, payment_events.source.spec, TOPIC])
        for place in PLACES:
            for number in range(10):
                self.broker.append(place.topic, b"{}", b"u", place.partition, NOW - 100_000 + number * 1_000, ())
        return self

    def of(self, pipelines: dict[str, Pipeline]) -> Generations:
        """As an application with these pipelines sees it."""
        compiled = CompiledJobs(jobs_of(pipelines), Settings(bootstrap_servers=""))
        return Generations(cast(FlinkCluster, self.cluster), self.broker, self.clock, compiled)

    async def submit(self, pipelines: dict[str, Pipeline], name: str = ORDERS) -> list[str]:
        """What was told meanwhile."""
        told: list[str] = []
        submitting = Jobs(self.of(pipelines)).submit(name, cast(Submitter, self.cluster), tell=told.append)
        await asyncio.wait_for(submitting, 20)
        return told

    async def noted(self, **changes: Any) -> KeptJob:
        """A job of the order rate, as it is noted and known to the cluster."""
        of = {"rate": fingerprint(ORDER_RATE["rate"])}
        job = KeptJob(
            name=ORDERS, generation=1, pipelines=of, group="g.1", parallelism=3, checkpoint="chk-7", at_ms=NOW
        )
        known = self.of(ORDER_RATE)
        job = msgspec.structs.replace(job, **{"text_hash": known.compiled.text_hash(ORDERS), **changes})
        await known.kept.write(job)
        return job

    async def jobs(self) -> list[KeptJob]:
        return await self.of(ORDER_RATE).kept.read()


async def until(holds: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while True:
            if holds():
                return
            await asyncio.sleep(0.05)
