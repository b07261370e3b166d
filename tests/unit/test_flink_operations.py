"""What `submit --keep` starts again, and what it leaves alone."""

import asyncio
from typing import Any, cast

import msgspec
import pytest

from app.core.clock import ManualClock
from app.streams.pipelines import pipelines_in
from app.streams.sql import Settings
from features import fraud
from flink_jobs.child import Submitter
from flink_jobs.cluster import FlinkCluster, JobStatus
from flink_jobs.compiled import CompiledJobs
from flink_jobs.kept import KeptJob, KeptJobs
from flink_jobs.operations import ENDING_MS, Jobs

NOW = 1_800_000_000_000
KEPT = KeptJob(job_id="1", fingerprint="f", folder="", checkpoint="file:/chk-7", at_ms=NOW)


class Cluster:
    """Knows one job, which is in some state; a new one runs at once."""

    address = "http://127.0.0.1:1"
    is_gone = False

    def __init__(self, state: str, since_ms: int) -> None:
        self.known = {"1": JobStatus(job_id="1", name="raw.orders", state=state, since_ms=since_ms)} if state else {}

    async def job(self, job_id: str) -> JobStatus | None:
        return self.known.get(job_id)

    async def checkpoint_folder(self, job_id: str) -> str:
        return ""

    async def submit(self, job: Any, configuration: dict[str, str]) -> str:
        """As the submitter's."""
        self.known["2"] = JobStatus(job_id="2", name="raw.orders", state="RUNNING", since_ms=NOW)
        return "2"


class Kept:
    """What is kept of it."""

    def __init__(self, job: KeptJob) -> None:
        self.jobs = {"raw.orders": job}

    async def read(self) -> dict[str, KeptJob]:
        return self.jobs

    async def write(self, name: str, job: KeptJob) -> None:
        self.jobs[name] = job


async def looked_after(state: str, since_ms: int = NOW, job: KeptJob = KEPT) -> str:
    """The id of the job that is kept after a first look."""
    cluster, kept, stopping = Cluster(state, since_ms), Kept(job), asyncio.Event()
    compiled = CompiledJobs({"raw.orders": pipelines_in(fraud)}, {"raw.orders": "f"}, Settings(bootstrap_servers=""))
    jobs = Jobs(cast(FlinkCluster, cluster), cast(KeptJobs, kept), ManualClock(NOW), compiled)
    keeping = asyncio.create_task(jobs.keep(["raw.orders"], cast(Submitter, cluster), stopping))
    await asyncio.sleep(0.1)
    stopping.set()
    await keeping
    return kept.jobs["raw.orders"].job_id


@pytest.mark.parametrize(
    ("state", "since_ms", "job", "expected"),
    [
        ("RUNNING", NOW, KEPT, "1"),
        ("FAILED", NOW, KEPT, "2"),
        ("", NOW, KEPT, "2"),
        ("FINISHED", NOW, KEPT, "1"),
        ("CANCELED", NOW, KEPT, "1"),
        ("FINISHED", NOW - ENDING_MS - 1, KEPT, "2"),
        ("FINISHED", NOW - ENDING_MS - 1, msgspec.structs.replace(KEPT, stopped=True), "1"),
        ("FAILED", NOW, msgspec.structs.replace(KEPT, fingerprint="of before"), "1"),
    ],
)
async def test_keeper_starts_again_what_nobody_has_ended(
    state: str, since_ms: int, job: KeptJob, expected: str
) -> None:
    """A job that is just being stopped, upgraded or begun anew is not submitted twice, nor state of another declaration read."""
    assert expected == await looked_after(state, since_ms, job)
