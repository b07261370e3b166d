"""What a Flink cluster says over REST, and what it is asked to do."""

import asyncio
import re
from typing import Any
from urllib.parse import quote, urlsplit

import msgspec

from app.core.errors import Rejected, SetupError, Unavailable
from app.core.text import one_line
from app.http.client import HttpClient
from app.local.java import find_java

ANSWER_MS = 10_000
SAVEPOINT_SECONDS = 300.0
POLL_SECONDS = 0.25
CHECKPOINT_MS = 1_000
KEPT_CHECKPOINTS = 20

LOOKED_AT, FOLLOWS = 10, "FlinkExpectedException"
"""Failures of a job, the last one first, and how one begins that only follows from another."""

UNKNOWN_JOB = "NotFoundException"
"""How the job manager's own answer begins."""

ENDED = frozenset({"FINISHED", "CANCELED", "FAILED"})


class JobStatus(msgspec.Struct, frozen=True, kw_only=True):
    """One job as the cluster sees it now.

    state: Flink's own word; RUNNING only when all of its tasks run. checkpoint: path of the last completed one, its end in ms and
    its length in ms; restarts: since it was submitted. cause: what went wrong last, in one line.
    """

    job_id: str
    name: str
    state: str
    since_ms: int
    parallelism: int = 0
    restarts: int = 0
    checkpoint: str = ""
    checkpoint_at_ms: int = 0
    checkpoint_took_ms: int = 0
    cause: str = ""


class FlinkCluster:
    """A job manager by its REST address."""

    def __init__(self, address: str, http: HttpClient) -> None:
        self.address = address.rstrip("/")
        self._http = http

    async def require(self) -> None:
        """Raises: SetupError in one line when no job manager answers, or one without task managers."""
        try:
            overview = await self._get("/overview")
        except Unavailable as error:
            raise SetupError(
                "flink",
                f"{self.address}: no job manager answers ({error}); HEADRACE_FLINK names it, and a local one comes "
                "with: python -m app local up --flink",
            ) from None
        if not overview.get("taskmanagers"):
            raise SetupError("flink", f"{self.address}: has no task manager; start one, or wait until it is back")

    async def job(self, job_id: str) -> JobStatus | None:
        """None for a job that it does not know, or knows no more. Raises: Unavailable; Rejected where somebody else answers."""
        try:
            job = await self._get(f"/jobs/{quote(job_id)}")
            checkpoints = await self._get(f"/jobs/{quote(job_id)}/checkpoints")
        except Rejected as error:
            if UNKNOWN_JOB in str(error):
                return None
            raise  # of a proxy, or who is not let in: what runs is not to be started once more
        running = all(vertex["status"] in ("RUNNING", "FINISHED") for vertex in job["vertices"])
        state = "STARTING" if job["state"] == "RUNNING" and not running else job["state"]
        completed = (checkpoints.get("latest") or {}).get("completed") or {}
        savepoint = (checkpoints.get("latest") or {}).get("savepoint") or {}
        newest = max((completed, savepoint), key=lambda one: one.get("latest_ack_timestamp", 0))
        restarts = await self._restarts(job_id)
        return JobStatus(
            job_id=job_id,
            name=job["name"],
            state=state,
            since_ms=job["timestamps"].get(job["state"], job["start-time"]),
            parallelism=max((vertex["parallelism"] for vertex in job["vertices"]), default=0),
            restarts=restarts,
            checkpoint=newest.get("external_path") or "",
            checkpoint_at_ms=newest.get("latest_ack_timestamp", 0),
            checkpoint_took_ms=completed.get("end_to_end_duration", 0),
            cause=await self._cause(job_id) if restarts or job["state"] in ("FAILED", "FAILING", "RESTARTING") else "",
        )

    async def running(self, name: str, since_ms: int) -> list[str]:
        """The ids of the jobs of this name that were submitted since then, in ms, and have not ended. Raises: Unavailable."""
        jobs = [job for job in (await self._get("/jobs/overview"))["jobs"] if job["name"] == name]
        return [str(job["jid"]) for job in jobs if job["state"] not in ENDED and job["start-time"] >= since_ms]

    def configuration(self, checkpoint: str) -> dict[str, str]:
        """What a job is submitted with, to go on from a checkpoint unless that is empty. The cluster's own settings say where
        checkpoints go and how state is kept."""
        url = urlsplit(self.address)
        values = {
            "execution.target": "remote",
            "execution.attached": "false",
            "rest.address": str(url.hostname),
            "rest.port": str(url.port or {"http": 80, "https": 443}[url.scheme]),
            "execution.checkpointing.interval": f"{CHECKPOINT_MS} ms",
            "execution.checkpointing.num-retained": str(KEPT_CHECKPOINTS),
            "execution.checkpointing.externalized-checkpoint-retention": "RETAIN_ON_CANCELLATION",
        }
        if url.scheme == "https":
            trusted = find_java().resolve().parent.parent / "lib" / "security" / "cacerts"
            values |= {
                "security.ssl.rest.enabled": "true",
                "security.ssl.rest.truststore": str(trusted),
                "security.ssl.rest.truststore-password": "changeit",  # what Java comes with
            }
        return values | ({"execution.state-recovery.path": checkpoint} if checkpoint else {})

    async def _restarts(self, job_id: str) -> int:
        metrics = await self._get(f"/jobs/{quote(job_id)}/metrics?get=numRestarts")
        return int(float(metrics[0]["value"])) if metrics else 0

    async def _cause(self, job_id: str) -> str:
        """Of the last failure that has one of its own: a task manager that ends says only that it does."""
        found = await self._get(f"/jobs/{quote(job_id)}/exceptions?maxExceptions={LOOKED_AT}")
        entries = (found.get("exceptionHistory") or {}).get("entries") or [{}]
        causes = [root_cause(entry.get("stacktrace") or found.get("root-exception") or "") for entry in entries]
        return next((cause for cause in causes if not cause.startswith(FOLLOWS)), causes[0])

    async def checkpoint_folder(self, job_id: str) -> str:
        """Where the checkpoints of a job go; empty where the cluster keeps none. Raises: Unavailable."""
        found = {each["key"]: each["value"] for each in await self._get("/jobmanager/config")}
        root = found.get("execution.checkpointing.dir", found.get("state.checkpoints.dir", ""))
        return f"{root.rstrip('/')}/{job_id}" if root else ""

    async def stop(self, job_id: str) -> str:
        """Stops a job with a savepoint; returns its path. Raises: Rejected when that fails, Unavailable."""
        started = await self._post(f"/jobs/{quote(job_id)}/stop", {"drain": False})
        return await self._savepoint(job_id, started["request-id"])

    async def savepoint(self, job_id: str) -> str:
        """Takes a savepoint of a job that goes on; returns its path. Raises: Rejected when that fails, Unavailable."""
        started = await self._post(f"/jobs/{quote(job_id)}/savepoints", {"cancel-job": False})
        return await self._savepoint(job_id, started["request-id"])

    async def _savepoint(self, job_id: str, request: str) -> str:
        try:
            async with asyncio.timeout(SAVEPOINT_SECONDS):
                while True:
                    found = await self._get(f"/jobs/{quote(job_id)}/savepoints/{quote(request)}")
                    if found["status"]["id"] == "COMPLETED":
                        break
                    await asyncio.sleep(POLL_SECONDS)
        except TimeoutError:
            raise Unavailable(f"{self.address}: no savepoint within {SAVEPOINT_SECONDS:.0f} s") from None
        operation = found["operation"]
        if "failure-cause" in operation:
            raise Rejected(
                f"{self.address}: no savepoint: {root_cause(operation['failure-cause'].get('stack-trace', ''))}"
            )
        return str(operation["location"])

    async def cancel(self, job_id: str) -> None:
        """Ends a job without a savepoint; its checkpoints stay. Raises: Rejected, Unavailable."""
        await self._http.request_json("PATCH", f"{self.address}/jobs/{quote(job_id)}?mode=cancel", None, ANSWER_MS)

    async def _get(self, path: str) -> Any:
        return await self._http.request_json("GET", self.address + path, None, ANSWER_MS)

    async def _post(self, path: str, body: Any) -> Any:
        return await self._http.request_json("POST", self.address + path, body, ANSWER_MS)


def root_cause(trace: str) -> str:
    """The last cause of a Java trace, in one line: those before it only say that something went wrong."""
    causes = re.findall(r"^\s*Caused by: (.+)$", trace, re.MULTILINE)
    first = next((line for line in trace.splitlines() if line.strip()), "")
    return one_line(re.sub(r"^(?:[a-z0-9_]+\.)+", "", (causes[-1] if causes else first).strip()))
