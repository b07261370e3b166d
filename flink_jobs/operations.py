"""Jobs submitted, kept running, stopped and upgraded: what the commands do."""

import asyncio
import logging
from collections.abc import Sequence

import msgspec

from app.core.clock import Clock
from app.core.errors import Rejected, SetupError, Unavailable
from flink_jobs.child import Submitter
from flink_jobs.cluster import ENDED, FlinkCluster, JobStatus
from flink_jobs.compiled import CompiledJobs
from flink_jobs.kept import KeptJob, KeptJobs, newest_checkpoint

logger = logging.getLogger(__name__)

CHECKPOINT_MS = 1_000
KEPT_CHECKPOINTS = 20
START_SECONDS = 60.0
LOOK_SECONDS = 1.0
FIRST_PAUSE_S, LONGEST_PAUSE_S = 1.0, 30.0
NOTED_MS = 5_000
"""Between two notes of a job's last checkpoint, which the cluster keeps longer than that."""

ENDING_MS = 180_000
"""So long whoever stopped or cancelled a job may take to note what follows, a new submission too."""


class Jobs:
    """The jobs of one application on one cluster."""

    def __init__(self, cluster: FlinkCluster, kept: KeptJobs, clock: Clock, compiled: CompiledJobs) -> None:
        self.now_ms = clock.now_ms
        self.named = compiled.named
        self._cluster = cluster
        self._kept = kept
        self._compiled = compiled
        self._fingerprints = compiled.fingerprints

    async def list(self) -> dict[str, JobStatus | None]:
        """Every job of the application; None for one that the cluster does not know. Raises: Unavailable."""
        kept = await self._kept.read()
        return {name: await self._status(kept.get(name)) for name in self._compiled.pipelines}

    async def submit(self, name: str, submitter: Submitter) -> JobStatus:
        """Gives a job to the cluster, from its last checkpoint or savepoint where it has one, and waits until it runs. One that
        runs is left alone.

        Raises: SetupError when its declaration has changed; Rejected with the cause when it does not come to run; Unavailable.
        """
        kept = (await self._kept.read()).get(name)
        running = await self._status(kept)
        if kept is None:
            return await self._start(name, submitter, "")
        self._require_unchanged(name, kept)
        if running is not None and running.state not in ENDED:
            return await self._running(name, running.job_id)
        return await self._start(name, submitter, await self._checkpoint_of(name, kept))

    async def _checkpoint_of(self, name: str, kept: KeptJob) -> str:
        """Raises: SetupError where there is none: a start without state is somebody's decision."""
        path = await asyncio.to_thread(newest_checkpoint, kept)
        if not path:
            raise SetupError(
                name,
                "no checkpoint of it is known; without its state it begins at the earliest record: "
                f"python -m flink_jobs submit {name} --anew",
            )
        return path

    def _require_unchanged(self, name: str, kept: KeptJob) -> None:
        if kept.fingerprint != self._fingerprints[name]:
            raise SetupError(
                name,
                f"its declaration has changed (was {kept.fingerprint}, is {self._fingerprints[name]}), its state has not; "
                f"restore the declaration, or begin anew: python -m flink_jobs submit {name} --anew",
            )

    async def begin_anew(self, name: str, submitter: Submitter) -> JobStatus:
        """As `submit`, without the state of before; a job that runs is ended."""
        running = await self._status((await self._kept.read()).get(name))
        if running is not None and running.state not in ENDED:
            await self._cluster.cancel(running.job_id)
            await self._ended(running.job_id)
        return await self._start(name, submitter, "")

    async def _start(self, name: str, submitter: Submitter, checkpoint: str) -> JobStatus:
        job_id = await submitter.submit(self._compiled.job(name), self._configuration(checkpoint))
        mine = KeptJob(
            job_id=job_id,
            fingerprint=self._fingerprints[name],
            folder=await self._cluster.checkpoint_folder(job_id),
            checkpoint=checkpoint,
            at_ms=self.now_ms(),
        )
        await self._kept.write(name, mine)
        return await self._running(name, job_id)

    def _configuration(self, checkpoint: str) -> dict[str, str]:
        host, _, port = self._cluster.address.partition("//")[2].partition(":")
        values = {
            "execution.target": "remote",
            "execution.attached": "false",
            "rest.address": host,
            "rest.port": port or "80",
            "execution.checkpointing.interval": f"{CHECKPOINT_MS} ms",
            "execution.checkpointing.num-retained": str(KEPT_CHECKPOINTS),
            "execution.checkpointing.externalized-checkpoint-retention": "RETAIN_ON_CANCELLATION",
        }
        return values | ({"execution.state-recovery.path": checkpoint} if checkpoint else {})

    async def _running(self, name: str, job_id: str) -> JobStatus:
        """Waits until all of its tasks run."""
        status: JobStatus | None = None
        try:
            async with asyncio.timeout(START_SECONDS):
                while True:
                    status = await self._cluster.job(job_id)
                    if status is not None and status.state == "RUNNING":
                        return status
                    if status is not None and (status.state in ENDED or status.cause):
                        break
                    await asyncio.sleep(LOOK_SECONDS / 4)
        except TimeoutError:
            pass
        state = status.state if status is not None else "not known to the cluster"
        cause = status.cause if status is not None and status.cause else "are there enough task slots?"
        raise Rejected(f"{name}: is {state} and not running: {cause}")

    async def _ended(self, job_id: str) -> None:
        try:
            async with asyncio.timeout(START_SECONDS):
                while True:
                    status = await self._cluster.job(job_id)
                    if status is None or status.state in ENDED:
                        return
                    await asyncio.sleep(LOOK_SECONDS / 4)
        except TimeoutError:
            raise Unavailable(f"{job_id}: has not ended within {START_SECONDS:.0f} s") from None

    async def stop(self, name: str) -> str:
        """Stops a job with a savepoint, from which `submit` goes on; returns its path. Raises: SetupError when it does not run."""
        kept, running = await self._require(name)
        path = await self._cluster.stop(running.job_id)
        await self._kept.write(name, msgspec.structs.replace(kept, checkpoint=path, stopped=True, at_ms=self.now_ms()))
        await self._ended(running.job_id)
        return path

    async def savepoint(self, name: str) -> str:
        """Takes a savepoint of a job that goes on; returns its path. Raises: SetupError when it does not run."""
        _, running = await self._require(name)
        return await self._cluster.savepoint(running.job_id)

    async def upgrade(self, name: str, submitter: Submitter) -> JobStatus:
        """Stops a job with a savepoint and starts it from there, as it is compiled now: another parallelism, another release.

        Raises: as `stop` and `submit`; where the new one does not run, the savepoint is kept and `submit` begins from it.
        """
        if name in await self._kept.read():
            kept, _ = await self._require(name)
            if kept.fingerprint != self._fingerprints[name]:
                raise SetupError(
                    name, "its declaration has changed, which no savepoint fits; restore it, or submit it --anew"
                )
        await self.stop(name)
        return await self.submit(name, submitter)

    async def _require(self, name: str) -> tuple[KeptJob, JobStatus]:
        kept = (await self._kept.read()).get(name)
        running = await self._status(kept)
        if kept is None or running is None or running.state in ENDED:
            raise SetupError(name, "does not run; start it with: python -m flink_jobs submit " + name)
        return kept, running

    async def _status(self, kept: KeptJob | None) -> JobStatus | None:
        return None if kept is None else await self._cluster.job(kept.job_id)

    async def keep(self, names: Sequence[str], submitter: Submitter, stopping: asyncio.Event) -> None:
        """Until `stopping` is set: notes every checkpoint, and starts again what has failed or what the cluster has forgotten. What
        somebody has stopped stays so. What goes wrong is told and tried again."""
        again_s, pauses_s = dict.fromkeys(names, 0.0), dict.fromkeys(names, FIRST_PAUSE_S)
        clock = asyncio.get_running_loop().time
        while not stopping.is_set():
            if submitter.is_gone:
                raise Unavailable("PyFlink has ended, so that nothing can be started again; start this again")
            for name in names:
                if clock() < again_s[name]:
                    continue
                try:
                    await self._look_after(name, submitter)
                    pauses_s[name] = FIRST_PAUSE_S
                except (Unavailable, Rejected, SetupError) as error:
                    logger.warning("%s: %s; again in %.0f s", name, error, pauses_s[name])
                    again_s[name] = clock() + pauses_s[name]
                    pauses_s[name] = min(2 * pauses_s[name], LONGEST_PAUSE_S)
            try:
                await asyncio.wait_for(stopping.wait(), LOOK_SECONDS)
            except TimeoutError:
                continue

    async def _look_after(self, name: str, submitter: Submitter) -> None:
        kept = (await self._kept.read()).get(name)
        if kept is None or kept.stopped:
            return
        running = await self._status(kept)
        if running is None or running.state in ENDED:
            if running is not None and running.state != "FAILED" and self.now_ms() < running.since_ms + ENDING_MS:
                return  # somebody has ended it, and is about to note so
            self._require_unchanged(name, kept)
            path = await self._checkpoint_of(name, kept)
            what = "is not known to the cluster" if running is None else f"has ended ({running.state}: {running.cause})"
            logger.warning("%s %s; it is started again from %s", name, what, path)
            await self._start(name, submitter, path)
        elif running.checkpoint != kept.checkpoint and self.now_ms() >= kept.at_ms + NOTED_MS:
            if (await self._kept.read()).get(name) != kept:
                return  # somebody has stopped it, or begun it anew, meanwhile
            await self._kept.write(
                name, msgspec.structs.replace(kept, checkpoint=running.checkpoint, at_ms=self.now_ms())
            )
