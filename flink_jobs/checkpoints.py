"""Checkpoints as files: which one a job goes on from, and what nobody will go on from any more."""

import logging
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path
from urllib.parse import urlsplit

from app.streams.kept_jobs import KeptJob

logger = logging.getLogger(__name__)


def newest_checkpoint(job: KeptJob) -> str:
    """The path to go on from; empty where there is none. The cluster may have completed more of them than were seen: where the folder
    can be read here, the newest one counts. A job that was stopped goes on from its savepoint."""
    for folder in [] if job.stopped or not job.job_id else job.folders[-1:]:
        numbers = sorted(_completed(Path(urlsplit(folder).path))) if urlsplit(folder).scheme == "file" else []
        if numbers:
            return f"{folder}/chk-{numbers[-1]}"
    return job.checkpoint


def _completed(folder: Path) -> Iterator[int]:
    """A checkpoint has its metadata only when it is complete."""
    for found in folder.glob("chk-*/_metadata"):
        yield int(found.parent.name.removeprefix("chk-"))


def remove(folders: Iterable[str]) -> None:
    """Removes the folders of jobs that are over, where they can be reached from here. Blocks."""
    for folder in folders:
        place = Path(urlsplit(folder).path)
        if urlsplit(folder).scheme != "file" or not place.is_dir():
            logger.info("%s is of a job that is over; nobody needs it any more", folder)
            continue
        try:
            shutil.rmtree(place)
        except OSError as error:
            logger.info("%s is of a job that is over, and could not be removed: %s", folder, error)
