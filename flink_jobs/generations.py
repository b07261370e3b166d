"""The generations of jobs, and how one takes over from another: a step at a time, so that whoever comes next can go on.

noted (with what it takes over) -> given to the cluster -> fills itself beside the one before, and says nothing -> has come as
far as that one: it is stopped with a savepoint, then the one before it is -> given to the cluster again, from its savepoint and
now knowing where the one before has ended -> the one before is over.

Every step is noted before the next one, and may be taken again. Where nobody runs before, the filling and the second start fall away:
where the one before it has ended is known at once.
"""

import asyncio
from collections.abc import Collection, Sequence

import msgspec

from app.application import FLINK_GROUP
from app.broker.base import Broker
from app.core.clock import Clock
from app.core.errors import Rejected, SetupError, Unavailable
from app.streams.kept_jobs import KeptJob, KeptJobs, topics_of_job
from app.streams.takeover import ByPartition
from flink_jobs.checkpoints import newest_checkpoint, remove
from flink_jobs.child import Submitter
from flink_jobs.cluster import ENDED, FlinkCluster, JobStatus
from flink_jobs.compiled import CompiledJobs
from flink_jobs.predecessors import Predecessors

START_SECONDS = 60.0
LOOK_SECONDS = 1.0
WATERMARK_SECONDS = 1.0
"""Until whoever has read a record has surely closed what it allows to close: five times a second Flink says its watermark."""

CLOCKS_MS = 60_000
"""How far the cluster's clock may differ from ours."""

NOTED_MS = 5_000
"""Between two notes of a job's last checkpoint, which the cluster keeps longer than that."""


def is_alive(status: JobStatus | None) -> bool:
    """Whether the cluster has it, and it has not ended."""
    return status is not None and status.state not in ENDED


class Generations:
    """Of the jobs of one application, on one cluster of Flink and one of Kafka."""

    def __init__(self, cluster: FlinkCluster, broker: Broker, clock: Clock, compiled: CompiledJobs) -> None:
        self.cluster = cluster
        self.kept = KeptJobs(broker)
        self.compiled = compiled
        self.now_ms = clock.now_ms
        self._predecessors = Predecessors(broker)

    def current(self, name: str, jobs: Sequence[KeptJob]) -> KeptJob | None:
        """The generation that computes what is declared."""
        if name not in self.compiled.pipelines:
            return None
        found = [job for job in jobs if job.name == name and not job.over and self.compiled.computes(job)]
        return found[-1] if found else None

    def before(self, name: str, jobs: Sequence[KeptJob]) -> list[KeptJob]:
        """All others that read a topic of a job, also under other names."""
        current, topics = self.current(name, jobs), topics_of_job(name)
        return [job for job in jobs if not job.over and job is not current and job.topics & topics]

    async def status(self, job: KeptJob) -> JobStatus | None:
        """None for a job that the cluster does not know. Raises: Unavailable."""
        return await self.cluster.job(job.job_id) if job.job_id else None

    async def advance(self, name: str, submitter: Submitter, parallelism: int | None = None) -> str | None:
        """Takes the next step towards a running job that is the only one on its topics. Returns what is waited for, "" for nothing;
        None when it is there.

        Raises: SetupError while the asyncio engine runs, and for a job without a checkpoint; Rejected when the cluster does not
        take it; Unavailable.
        """
        jobs = await self.kept.read()
        current, before = self.current(name, jobs), self.before(name, jobs)
        status = await self.status(current) if current else None
        if not is_alive(status):
            others = [*before, *([current] if current else [])]
            went_on = await self.asyncio_went_on(name, others)
            if went_on and (current is None or current.job_id or current.takeover):  # else it is to begin anew
                current, before = None, others
        if current is None:
            await self._note(name, before, jobs, parallelism)
            return ""
        if not current.job_id and current.holds and current.checkpoint:
            return await self._hand_over(current, before)
        if not current.job_id:
            await self._give(current, current.checkpoint, submitter)
            return ""
        if not is_alive(status):
            return await self._restart(current, status, submitter, parallelism)
        if current.holds:
            assert status is not None
            return await self._fill(current, status)
        if current.stopped:  # by somebody who took the cluster for lost
            await self._change(current, stopped=False, ends={})
            return ""
        for job in self.superseded(name, jobs):
            await self.retire(job)
        return None

    def superseded(self, name: str, jobs: Sequence[KeptJob]) -> list[KeptJob]:
        """Those before a job whose topics all have another one now; one that was split in two is needed by both."""
        missing = [other for other in self.compiled.pipelines if self.current(other, jobs) is None]
        needed = {topic for other in missing for topic in topics_of_job(other)}
        return [job for job in self.before(name, jobs) if not job.topics & needed]

    async def asyncio_went_on(self, name: str, others: Sequence[KeptJob]) -> bool:
        """Whether the asyncio engine was here after these jobs. Raises: SetupError while it runs."""
        if any([is_alive(await self.status(job)) for job in others]):
            return False
        if await self._predecessors.asyncio_runs():
            raise SetupError(
                name,
                "workers run these streams themselves; stop those, submit, and start them with --engine flink (one with a "
                "HEADRACE_INSTANCE counts for 45 s after it left)",
            )
        return await self._predecessors.asyncio_was_last(topics_of_job(name), others)

    async def _note(
        self, name: str, before: Sequence[KeptJob], jobs: Sequence[KeptJob], parallelism: int | None
    ) -> None:
        """Notes a new generation, and what it takes over."""
        wanted = parallelism or max((job.parallelism for job in before if not job.is_silent), default=1)
        self.compiled.require_parallelism(name, wanted)
        for job in before:
            if job.is_silent:
                await self.retire(job)
        before = [job for job in before if not job.is_silent]
        alive = [is_alive(await self.status(job)) for job in before]
        takeover = await self._predecessors.takeover(self.compiled.pipelines[name], before, holds=any(alive))
        await self.kept.write(msgspec.structs.replace(self._new(name, jobs, wanted), takeover=takeover))

    async def note_anew(self, name: str, parallelism: int) -> None:
        """Notes a generation that begins at the earliest record. Raises: Unavailable."""
        await self.kept.write(self._new(name, await self.kept.read(), parallelism))

    def _new(self, name: str, jobs: Sequence[KeptJob], parallelism: int) -> KeptJob:
        number = 1 + max((job.generation for job in jobs if job.name == name), default=0)
        return KeptJob(
            name=name,
            generation=number,
            pipelines=self.compiled.fingerprints(name),
            text_hash=self.compiled.text_hash(name),
            group=f"{FLINK_GROUP}.{name}.{number}",
            parallelism=parallelism,
            at_ms=self.now_ms(),
        )

    async def _restart(
        self, job: KeptJob, status: JobStatus | None, submitter: Submitter, parallelism: int | None
    ) -> str:
        if job.holds and status is not None and status.state == "FINISHED":  # stopped to hand over, and not noted
            await self._note_filled(job, status.checkpoint)
            return ""
        path = await _newest(job, status)
        if not path and not job.takeover:
            raise SetupError(
                job.name,
                "no checkpoint of it is known; without its state it begins at the earliest record: "
                f"python -m flink_jobs submit {job.name} --anew",
            )
        wanted = parallelism or job.parallelism
        self.compiled.require_parallelism(job.name, wanted)
        await self._give(msgspec.structs.replace(job, parallelism=wanted), path, submitter)
        return ""

    async def _give(self, job: KeptJob, checkpoint: str, submitter: Submitter) -> None:
        """Gives it to the cluster; one of its name that is there already, and nobody has noted, is taken for it. Workers are kept from
        running its streams from before it is given. Raises: Rejected where somebody has noted something else of it meanwhile."""
        found = await self.cluster.running(job.label, job.at_ms - CLOCKS_MS)
        configuration = self.cluster.configuration(checkpoint)
        noted = await self._change(job, is_being_given=True, stopped=False)
        try:
            job_id = found[0] if found else await submitter.submit(self.compiled.job(job), configuration)
        except (Rejected, SetupError):  # without an answer the cluster may have it, which the note goes on saying
            if noted in await self.kept.read():
                await self.kept.write(job)
            raise
        if noted not in await self.kept.read():
            await self.cluster.cancel(job_id)
            raise Rejected(
                f"{job.label}: somebody has stopped or submitted it meanwhile; look again with: flink_jobs list"
            )
        folder = await self.cluster.checkpoint_folder(job_id)
        folders = tuple(dict.fromkeys([*job.folders, folder])) if folder else job.folders
        given = await self._change(
            noted, job_id=job_id, checkpoint=checkpoint, folders=folders, stopped=False, ends={}, is_being_given=False
        )
        await self.until_running(given)

    async def _fill(self, job: KeptJob, status: JobStatus) -> str:
        assert job.takeover is not None
        read = await self._predecessors.position(self.compiled.pipelines[job.name], job)
        ends = job.takeover.offsets
        if not _is_behind(read, ends):
            path = await self.cluster.stop(job.job_id)
            await self._until_ended(job.job_id)
            await self._note_filled(job, path)
            return ""
        if self.now_ms() >= job.at_ms + NOTED_MS:
            await self._change(job, checkpoint=status.checkpoint)
        trouble = "" if status.state == "RUNNING" else f"; it is {status.state}: {status.cause}"
        return f"{job.label} fills itself: {_percent(job.takeover.read, read, ends)} % of what there was{trouble}"

    async def _note_filled(self, job: KeptJob, savepoint: str) -> None:
        """It has ended, and cannot have read further than its topics go now."""
        assert job.takeover is not None
        takeover = msgspec.structs.replace(job.takeover, offsets=await self._predecessors.ends(job.topics))
        await self._change(job, checkpoint=savepoint, job_id="", takeover=takeover)

    async def _hand_over(self, job: KeptJob, before: Sequence[KeptJob]) -> str:
        """It has been stopped. When the one before it has come as far, that is stopped too, and where it ended is noted."""
        assert job.takeover is not None
        pipelines, labels = self.compiled.pipelines[job.name], {old.label for old in before}
        for old in before:
            status = await self.status(old)
            if status is not None and status.state == "RUNNING":
                if _is_behind(await self._predecessors.position(pipelines, old), job.takeover.offsets, old.topics):
                    return f"{old.label} has to come as far"
                await asyncio.sleep(WATERMARK_SECONDS)
                await self.stop(old)
            elif is_alive(status):
                await self.cluster.cancel(old.job_id)
                await self._until_ended(old.job_id)
        ended = [old for old in await self.kept.read() if old.label in labels]
        offsets, reached_ms = await self._predecessors.left(pipelines, ended)
        if _is_behind(offsets, job.takeover.offsets):
            await self.retire(job)  # it has passed over in silence what the one before never came to
            return ""
        takeover = msgspec.structs.replace(job.takeover, offsets=offsets, reached_ms=reached_ms, holds=False)
        await self._change(job, takeover=takeover)
        return ""

    async def stop(self, job: KeptJob) -> KeptJob:
        """Stops a job with a savepoint, and notes so; one that has ended, or whose tasks do not run, with its last checkpoint. Raises:
        SetupError for a job that the cluster does not know; Rejected where no savepoint can be taken; Unavailable."""
        if job.is_being_given and (found := await self.cluster.running(job.label, job.at_ms - CLOCKS_MS)):
            job = await self._change(job, job_id=found[0], is_being_given=False)
        status = await self.status(job)
        if status is None:
            raise SetupError(
                job.name,
                f"{self.cluster.address} does not know it; where no other cluster has it, note it as stopped: "
                f"python -m flink_jobs stop {job.name} --lost",
            )
        if not is_alive(status):
            return await self.note_stopped(job, status)
        if status.state != "RUNNING":
            await self.cluster.cancel(job.job_id)
            await self._until_ended(job.job_id)
            return await self.note_stopped(job)
        path = await self.cluster.stop(job.job_id)
        await self._until_ended(job.job_id)
        return await self._note_stopped_at(job, path)

    async def note_stopped(self, job: KeptJob, status: JobStatus | None = None) -> KeptJob:
        """Of a job that has ended, or whose cluster is gone for good; its last checkpoint counts. Raises: Unavailable."""
        return await self._note_stopped_at(job, await _newest(job, status))

    async def _note_stopped_at(self, job: KeptJob, path: str) -> KeptJob:
        """Raises: Rejected where somebody has noted something else of it meanwhile."""
        ends = await self._predecessors.ends(job.topics)
        if not any(
            (one.label, one.job_id, one.over) == (job.label, job.job_id, False) for one in await self.kept.read()
        ):
            raise Rejected(f"{job.label}: somebody has submitted it meanwhile; stop it again")
        return await self._change(job, checkpoint=path, stopped=True, ends=ends, is_being_given=False)

    async def retire(self, job: KeptJob) -> None:
        """Ends a generation for good: another one has its place. Raises: Unavailable."""
        is_noted = job.job_id and not job.is_being_given
        unnoted = [] if is_noted else await self.cluster.running(job.label, job.at_ms - CLOCKS_MS)
        for job_id in [job.job_id] if is_alive(await self.status(job)) else unnoted:
            await self.cluster.cancel(job_id)
            await self._until_ended(job_id)
        await self.forget(job)

    async def forget(self, job: KeptJob) -> None:
        """Notes that it has ended for good, without asking the cluster. Raises: Unavailable."""
        await self._change(job, over=True)
        await asyncio.to_thread(remove, job.folders)

    async def note_checkpoint(self, job: KeptJob, status: JobStatus) -> None:
        """Notes how far a job is, and removes what belongs to its earlier starts. Raises: Unavailable."""
        if job not in await self.kept.read():
            return  # somebody has stopped it, or begun it anew, meanwhile
        is_own = bool(job.folders) and status.checkpoint.startswith(job.folders[-1])
        kept = job.folders[-1:] if is_own else job.folders
        await self._change(job, checkpoint=status.checkpoint, folders=kept)
        await asyncio.to_thread(remove, set(job.folders) - set(kept))

    async def _change(self, job: KeptJob, **changes: object) -> KeptJob:
        changed = msgspec.structs.replace(job, **changes, at_ms=self.now_ms())
        await self.kept.write(changed)
        return changed

    async def until_running(self, job: KeptJob) -> JobStatus:
        """Waits until all of its tasks run. Raises: Rejected with the cause where they do not."""
        status: JobStatus | None = None
        try:
            async with asyncio.timeout(START_SECONDS):
                while True:
                    status = await self.cluster.job(job.job_id)
                    if status is not None and status.state == "RUNNING":
                        return status
                    if status is not None and (status.state in ENDED or status.cause):
                        break
                    await asyncio.sleep(LOOK_SECONDS / 4)
        except TimeoutError:
            pass
        state = status.state if status is not None else "not known to the cluster"
        cause = status.cause if status is not None and status.cause else "are there enough task slots?"
        raise Rejected(f"{job.label}: is {state} and not running: {cause}")

    async def _until_ended(self, job_id: str) -> None:
        try:
            async with asyncio.timeout(START_SECONDS):
                while True:
                    if not is_alive(await self.cluster.job(job_id)):
                        return
                    await asyncio.sleep(LOOK_SECONDS / 4)
        except TimeoutError:
            raise Unavailable(f"{job_id}: has not ended within {START_SECONDS:.0f} s") from None


async def _newest(job: KeptJob, status: JobStatus | None) -> str:
    """The path to go on from; empty where there is none. A job that has finished was stopped with a savepoint, and has no checkpoints any more."""
    if status is not None and status.state == "FINISHED" and status.checkpoint:
        return status.checkpoint
    return await asyncio.to_thread(newest_checkpoint, job)


def _is_behind(offsets: ByPartition, others: ByPartition, topics: Collection[str] | None = None) -> bool:
    """Whether an offset of these topics, of all unless given, lies before the other."""
    return any(
        offset < other
        for topic, values in others.items()
        if topics is None or topic in topics
        for offset, other in zip(offsets[topic], values, strict=True)
    )


def _percent(begun: ByPartition, now: ByPartition, ends: ByPartition) -> int:
    """How much of what lies between is done."""
    parts = [
        (min(max(at - start, 0), max(end - start, 0)), max(end - start, 0))
        for topic, values in ends.items()
        for start, at, end in zip(begun[topic], now[topic], values, strict=True)
    ]
    return 100 * sum(done for done, _ in parts) // max(sum(of for _, of in parts), 1)
