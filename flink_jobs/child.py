"""The process that holds PyFlink: started once, asked for every job."""

import asyncio
import os
import shutil
import tempfile
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import msgspec

from app.core.errors import Rejected, Unavailable
from app.local.flink import find_home, link_jars
from app.local.flink_jars import own_and_connector
from app.local.java import find_java
from app.local.process import LOCAL
from app.streams.sql import Job
from flink_jobs.cluster import root_cause

LOG = LOCAL / "flink" / "submitter.log"
PROGRAM = str(Path(__file__).with_name("submitter.py"))
SUBMIT_SECONDS = 120.0
LONGEST_ANSWER_BYTES = 2**24
END_SECONDS = 10.0


class Submitter:
    """Gives jobs to a cluster, one after the other."""

    def __init__(self, process: asyncio.subprocess.Process, answers: asyncio.StreamReader, folder: Path) -> None:
        self._process = process
        self._folder = folder
        self._answers = answers
        self._turn = asyncio.Lock()
        self.is_gone = False
        """Whether its process has ended: nothing more can be submitted by it."""

    async def submit(self, job: Job, configuration: Mapping[str, str]) -> str:
        """The id under which the cluster runs the job. configuration: beside the job's own.

        Raises: Rejected in one line for a job that Flink does not take; Unavailable when PyFlink has ended, or gives no answer and was
        ended for that; the cluster may have the job then.
        """
        order = {
            "configuration": {**job.configuration, **configuration},
            "statements": [*job.functions, *job.tables, *job.views],
            "inserts": job.inserts,
            "folder": str(self._folder),
        }
        async with self._turn:
            line = await self._answer_to(order, job.name)
        if not line:
            raise Unavailable(f"{job.name}: PyFlink has ended; see {LOG}")
        answer: Any = msgspec.json.decode(line)
        if "error" in answer:
            raise Rejected(f"{job.name}: {root_cause(answer['error'])}; the whole of it is in {LOG}")
        return str(answer["job"])

    async def _answer_to(self, order: dict[str, Any], name: str) -> bytes:
        """Empty where PyFlink has ended. One that does not answer is ended: a job that it gave later would belong to nobody."""
        assert self._process.stdin is not None
        line = b""
        try:
            async with asyncio.timeout(SUBMIT_SECONDS):
                self._process.stdin.write(msgspec.json.encode(order) + b"\n")
                await self._process.stdin.drain()
                line = await self._answers.readline()
        except TimeoutError:
            raise Unavailable(
                f"{name}: PyFlink did not answer within {SUBMIT_SECONDS:.0f} s, and was ended; see {LOG}"
            ) from None
        except ConnectionError:
            pass
        finally:
            if not line:
                self.is_gone = True
                if self._process.returncode is None:
                    self._process.kill()
        return line


@asynccontextmanager
async def submitter() -> AsyncIterator[Submitter]:
    """A submitter, and its end. Raises: SetupError without PyFlink, Java or the connector."""
    prepared = await asyncio.to_thread(prepare)
    read, write = os.pipe()
    answers = asyncio.StreamReader(limit=LONGEST_ANSWER_BYTES)
    transport: asyncio.ReadTransport | None = None
    try:
        process = await asyncio.create_subprocess_exec(
            prepared.python,
            PROGRAM,
            str(write),
            stdin=asyncio.subprocess.PIPE,
            stdout=prepared.log,
            stderr=prepared.log,
            env=prepared.environment,
            pass_fds=(write,),
        )
        transport, _ = await asyncio.get_running_loop().connect_read_pipe(
            lambda: asyncio.StreamReaderProtocol(answers), os.fdopen(read, "rb", buffering=0)
        )
        os.close(write)
        write = -1
        try:
            yield Submitter(process, answers, prepared.folder)
        finally:
            await _end(process)
    finally:
        if transport is not None:
            transport.close()
        if write >= 0:
            os.close(write)
        await asyncio.to_thread(prepared.remove)


@dataclass(frozen=True)
class Prepared:
    """What a process of PyFlink needs: its Python, its environment, a folder of its own, and where its words go."""

    python: str
    environment: dict[str, str]
    folder: Path
    log: BinaryIO

    def remove(self) -> None:
        self.log.close()
        shutil.rmtree(self.folder, ignore_errors=True)


def prepare() -> Prepared:
    """Raises: SetupError without PyFlink, Java or the connector."""
    home, java = find_home(), find_java()
    jars = own_and_connector(home / "lib")
    folder = Path(tempfile.mkdtemp(prefix="headrace-submitter-"))
    link_jars(folder / "lib", home / "lib", *jars)
    environment = {
        **os.environ,
        "FLINK_HOME": str(home),
        "FLINK_LIB_DIR": str(folder / "lib"),
        "FLINK_LOG_DIR": str(folder),
        "JAVA_HOME": str(java.resolve().parent.parent),
    }
    LOG.parent.mkdir(parents=True, exist_ok=True)
    return Prepared(str(home.parents[3] / "bin" / "python"), environment, folder, LOG.open("ab"))


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
