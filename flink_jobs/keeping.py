"""`submit --keep`: notes checkpoints, starts again what fails or is forgotten, and finishes what a broken `submit` has left."""

import asyncio
import logging
from collections.abc import Collection, Sequence

from app.core.errors import Rejected, SetupError, Unavailable
from app.streams.kept_jobs import KeptJob
from flink_jobs.child import Submitter
from flink_jobs.cluster import JobStatus
from flink_jobs.generations import LOOK_SECONDS, NOTED_MS, Generations, is_alive

logger = logging.getLogger(__name__)

FIRST_PAUSE_S, LONGEST_PAUSE_S = 1.0, 30.0
ENDING_MS = 180_000
"""So long whoever stopped, cancelled or submitted a job may take to note what follows."""


class Keeper:
    """Of the jobs of one application."""

    def __init__(self, generations: Generations) -> None:
        self._all = generations
        self._finishes: set[str] = set()
        """Generations whose `submit` was broken off, and is gone on with here."""
        self._refused: set[str] = set()

    async def keep(
        self, names: Sequence[str], submitter: Submitter, stopping: asyncio.Event, refused: Collection[str] = ()
    ) -> None:
        """Until `stopping` is set. What somebody has stopped stays so. What goes wrong is told and tried again. refused: jobs that were
        to be submitted, and are to be until they run.

        Raises: Unavailable when PyFlink has ended.
        """
        self._refused |= set(refused)
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
        jobs = await self._all.kept.read()
        job = self._all.current(name, jobs)
        if job is not None and job.is_being_given and self._all.now_ms() < job.at_ms + ENDING_MS:
            return  # whoever gives it is about to note so
        if name in self._refused:
            if await self._all.advance(name, submitter) is None:
                self._refused.discard(name)
            return
        if job is None or job.stopped:
            return
        status = await self._all.status(job)
        if not job.job_id or job.holds or self._left_behind(job, jobs):
            if job.label in self._finishes or self._all.now_ms() >= job.at_ms + ENDING_MS:
                self._finishes.add(job.label)
                await self._all.advance(name, submitter)
        elif not is_alive(status):
            await self._start_again(job, status, submitter)
        elif status and status.checkpoint != job.checkpoint and self._all.now_ms() >= job.at_ms + NOTED_MS:
            await self._all.note_checkpoint(job, status)

    def _left_behind(self, job: KeptJob, jobs: Sequence[KeptJob]) -> bool:
        """Whether a job before this one was to be ended, and was not. A later one is of a program that this one does not know."""
        others = self._all.superseded(job.name, jobs)
        return any(other.generation < job.generation if other.name == job.name else not other.holds for other in others)

    async def _start_again(self, job: KeptJob, status: JobStatus | None, submitter: Submitter) -> None:
        if status is not None and status.state != "FAILED" and self._all.now_ms() < status.since_ms + ENDING_MS:
            return  # somebody has ended it, and is about to note so
        what = "is not known to the cluster" if status is None else f"has ended ({status.state}: {status.cause})"
        logger.warning("%s %s; it is started again from its last checkpoint", job.label, what)
        await self._all.advance(job.name, submitter)
