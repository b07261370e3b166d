"""Jobs submitted, stopped and upgraded: what the commands do."""

import asyncio
from collections.abc import Callable, Sequence
from typing import NamedTuple

from app.core.errors import SetupError
from app.streams.kept_jobs import KeptJob
from flink_jobs.child import Submitter
from flink_jobs.cluster import JobStatus
from flink_jobs.generations import LOOK_SECONDS, Generations, is_alive


class Listed(NamedTuple):
    """One generation of a job, and what the cluster says of it; None for one that it does not know, or that was never submitted.

    is_declared: as the application declares it now.
    """

    name: str
    job: KeptJob | None
    status: JobStatus | None
    is_declared: bool


class Jobs:
    """The jobs of one application on one cluster."""

    def __init__(self, generations: Generations) -> None:
        self._all = generations
        self.now_ms = generations.now_ms

    def named(self, wanted: Sequence[str]) -> list[str]:
        """The declared jobs that are wanted, all where none is named. Raises: SetupError for a job that is not declared."""
        return self._all.compiled.named(wanted)

    def require(self, names: Sequence[str], parallelism: int | None = None) -> None:
        """Raises: SetupError for the first one that Flink cannot run."""
        for name in names:
            self._all.compiled.text_hash(name)
            self._all.compiled.require_parallelism(name, parallelism or 1)

    async def standing(self) -> list[str]:
        """The names of all jobs that nobody has stopped, also of those that are not declared. Raises: Unavailable."""
        jobs = [job for job in await self._all.kept.read() if not job.over]
        return list(dict.fromkeys(job.name for job in jobs if job.stands or job.is_being_given or job.holds))

    async def list(self) -> list[Listed]:
        """Every job that is declared, and those that are noted and not over. Raises: Unavailable."""
        found = []
        jobs = [job for job in await self._all.kept.read() if not job.over]
        for name in dict.fromkeys([*self._all.compiled.pipelines, *(job.name for job in jobs)]):
            current = self._all.current(name, jobs)
            if name in self._all.compiled.pipelines and current is None:
                found.append(Listed(name, None, None, is_declared=True))
            for job in jobs:
                if job.name == name:
                    found.append(Listed(name, job, await self._all.status(job), job is current))
        return found

    async def submit(
        self,
        name: str,
        submitter: Submitter,
        parallelism: int | None = None,
        tell: Callable[[str], None] = lambda waits: None,
    ) -> JobStatus:
        """Gives a job to the cluster, from its last checkpoint or savepoint where it has one, and waits until it runs and whoever was
        there before is over. One that runs is left alone. parallelism: of before, or 1, unless given. tell: what is waited for.

        Raises: SetupError while the asyncio engine runs; Rejected with the cause when it does not come to run; Unavailable.
        """
        told = ""
        while (waits := await self._all.advance(name, submitter, parallelism)) is not None:
            if waits and waits != told:
                tell(told := waits)
            if waits:
                await asyncio.sleep(LOOK_SECONDS / 4)
        current = self._all.current(name, await self._all.kept.read())
        assert current is not None
        return await self._all.until_running(current)

    async def begin_anew(self, name: str, submitter: Submitter, parallelism: int | None = None) -> JobStatus:
        """As `submit`, from the earliest record and without the state of before; jobs that run are ended."""
        jobs = await self._all.kept.read()
        current, before = self._all.current(name, jobs), self._all.before(name, jobs)
        others = [*before, *([current] if current else [])]
        wanted = parallelism or (current.parallelism if current else 1)
        self._all.compiled.require_parallelism(name, wanted)
        await self._all.asyncio_went_on(name, others)  # refused while it runs
        for job in others:
            await self._all.retire(job)
        await self._all.note_anew(name, wanted)
        return await self.submit(name, submitter)

    async def stop(self, name: str, is_lost: bool = False) -> str:
        """Stops a job with a savepoint, from which `submit` goes on; returns its path. One that is about to take over is ended; one
        that has ended is noted as stopped: its last checkpoint counts, empty where none is known. is_lost: the cluster is gone for good
        and not asked.

        Raises: SetupError when none of the name is noted that somebody has not stopped, or the cluster does not know it.
        """
        jobs = [job for job in await self._all.kept.read() if job.name == name and not job.over]
        ended = []
        for job in jobs:
            if job.holds or (job.is_being_given and not job.job_id):
                await (self._all.forget(job) if is_lost else self._all.retire(job))
                ended.append("")
        stop = self._all.note_stopped if is_lost else self._all.stop
        for job in jobs:
            if (job.stands or (job.is_being_given and job.job_id)) and not job.holds:
                ended.append((await stop(job)).checkpoint)
        return _the_last(name, ended)

    async def savepoint(self, name: str) -> str:
        """Takes a savepoint of a job that goes on; returns its path. Raises: SetupError when it does not run."""
        alive = [job for job in await self._alive(name) if not job.holds]
        return _the_last(name, [await self._all.cluster.savepoint(job.job_id) for job in alive])

    async def upgrade(self, name: str, submitter: Submitter, parallelism: int | None = None) -> JobStatus:
        """Stops a job with a savepoint and starts it from there, as it is compiled now: another parallelism, another release. One
        whose declaration has changed is submitted beside it, and takes over.

        Raises: as `stop` and `submit`; where the new one does not run, the savepoint is kept and `submit` begins from it.
        """
        alive = await self._alive(name)
        _the_last(name, [job.label for job in alive])
        current = self._all.current(name, alive)
        if current is not None and not current.holds:
            self._all.compiled.require_parallelism(name, parallelism or current.parallelism)
            await self._all.stop(current)
        return await self.submit(name, submitter, parallelism)

    async def _alive(self, name: str) -> "Sequence[KeptJob]":
        jobs = [job for job in await self._all.kept.read() if job.name == name and not job.over]
        return [job for job in jobs if is_alive(await self._all.status(job))]


def _the_last(name: str, found: Sequence[str]) -> str:
    """Raises: SetupError where there is none."""
    if not found:
        raise SetupError(name, f"does not run; start it with: python -m flink_jobs submit {name}")
    return found[-1]
