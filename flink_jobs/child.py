"""The process that holds PyFlink: started once, asked for every job."""

import asyncio
import os
import shutil
import tempfile
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec

from app.core.errors import Rejected, SetupError, Unavailable
from app.local.flink import find_home, link_jars
from app.local.flink_jars import own_and_connector
from app.local.java import find_java
from app.local.process import LOCAL
from app.streams.sql import Job
from flink_jobs.cluster import root_cause

LOG = LOCAL / "flink" / "submitter.log"
SUBMIT_SECONDS = 120.0
END_SECONDS = 10.0


class Submitter:
    """Gives jobs to a cluster, one after the other."""

    def __init__(self, process: asyncio.subprocess.Process, answers: asyncio.StreamReader, folder: Path) -> None:
        self._process = process
        self._folder = folder
        self._answers = answers
        self._turn = asyncio.Lock()

    async def submit(self, job: Job, configuration: Mapping[str, str]) -> str:
        """The id under which the cluster runs the job. configuration: beside the job's own.

        Raises: Rejected in one line for a job that Flink does not take; Unavailable when PyFlink has ended or gives no answer.
        """
        order = {
            "configuration": {**job.configuration, **configuration},
            "statements": [*job.tables, *job.views],
            "inserts": job.inserts,
            "once_ttl_ms": job.once_ttl_ms,
            "folder": str(self._folder),
        }
        assert self._process.stdin is not None
        try:
            async with self._turn, asyncio.timeout(SUBMIT_SECONDS):
                self._process.stdin.write(msgspec.json.encode(order) + b"\n")
                await self._process.stdin.drain()
                line = await self._answers.readline()
        except TimeoutError:
            raise Unavailable(f"{job.name}: PyFlink did not answer within {SUBMIT_SECONDS:.0f} s; see {LOG}") from None
        except ConnectionError:
            line = b""
        if not line:
            raise Unavailable(f"{job.name}: PyFlink has ended; see {LOG}")
        answer: Any = msgspec.json.decode(line)
        if "error" in answer:
            raise Rejected(f"{job.name}: {root_cause(answer['error'])}; the whole of it is in {LOG}")
        return str(answer["job"])


@asynccontextmanager
async def submitter() -> AsyncIterator[Submitter]:
    """A submitter, and its end. Raises: SetupError without PyFlink, Java or the connector."""
    home, java = find_home(), find_java()
    jars = await asyncio.to_thread(own_and_connector, home / "lib")
    python = home.parents[3] / "bin" / "python"
    if not python.exists():
        raise SetupError("pyflink", f"no Python at {python}; type: make setup-flink")
    folder = Path(await asyncio.to_thread(tempfile.mkdtemp, prefix="headrace-submitter-"))
    read, write = os.pipe()
    try:
        await asyncio.to_thread(link_jars, folder / "lib", home / "lib", *jars)
        environment = {
            **os.environ,
            "FLINK_HOME": str(home),
            "FLINK_LIB_DIR": str(folder / "lib"),
            "FLINK_LOG_DIR": str(folder),
            "JAVA_HOME": str(java.resolve().parent.parent),
        }
        with await asyncio.to_thread(LOG.open, "ab") as log:
            process = await asyncio.create_subprocess_exec(
                python,
                Path(__file__).with_name("submitter.py"),
                str(write),
                stdin=asyncio.subprocess.PIPE,
                stdout=log,
                stderr=log,
                env=environment,
                pass_fds=(write,),
            )
        os.close(write)
        write = -1
        answers = asyncio.StreamReader()
        pipe = os.fdopen(read, "rb", buffering=0)
        read = -1
        transport, _ = await asyncio.get_running_loop().connect_read_pipe(
            lambda: asyncio.StreamReaderProtocol(answers), pipe
        )
        try:
            yield Submitter(process, answers, folder)
        finally:
            transport.close()
            await _end(process)
    finally:
        for descriptor in (read, write):
            if descriptor >= 0:
                os.close(descriptor)
        await asyncio.to_thread(shutil.rmtree, folder, ignore_errors=True)


async def _end(process: asyncio.subprocess.Process) -> None:
    """Its Java ends with it."""
    assert process.stdin is not None
    process.stdin.close()
    try:
        async with asyncio.timeout(END_SECONDS):
            await process.wait()
    except TimeoutError:
        process.kill()
        await process.wait()
