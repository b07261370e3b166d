"""Workers as child processes, and what was done to them."""

import asyncio
import itertools
import signal
from collections.abc import Mapping, Sequence
from pathlib import Path

from app.core.clock import SystemClock
from tests.faults.history import Accepted, Ended, Fault, Held, Owned
from tests.faults.lines import read_lines
from tests.faults.processes import Child
from tests.faults.worker import Grip, Trace, grips_of

GRACE_S = 30.0
READY_S = 60.0
POLL_S = 0.05


class Worker(Child):
    """One `app worker` process. name: unique in its run."""

    def __init__(
        self,
        name: str,
        directory: Path,
        seams: Sequence[str],
        arguments: Sequence[str],
        environment: Mapping[str, str],
        *,
        waits: bool,
    ) -> None:
        self.name = name
        self.trace_path = directory / f"{name}.trace"
        super().__init__(
            "tests.faults.worker",
            ["--trace", str(self.trace_path), *(["--wait"] if waits else []), *seams, "--", *arguments],
            directory / f"{name}.log",
            environment,
            waits=waits,
        )

    def trace(self) -> list[Trace]:
        return read_lines(self.trace_path, Trace)

    @property
    def is_at_work(self) -> bool:
        """Whether it has been given a partition of alerts."""
        return any(entry.event == "assigned" for entry in self.trace())

    def hit(self, failpoint: str) -> bool:
        """Whether it came to its failpoint."""
        return any(entry.event == failpoint for entry in self.trace())


class Workers:
    """All workers of a run, living and dead. `faults` is what was done to them, for the history."""

    def __init__(self, directory: Path, arguments: Sequence[str], environment: Mapping[str, str]) -> None:
        self.all: list[Worker] = []
        self.faults: list[Fault] = []
        self._told: set[str] = set()
        self._directory = directory
        self._arguments = arguments
        self._environment = environment
        self._clock = SystemClock()
        self._names = (f"worker-{number}" for number in itertools.count(1))

    @property
    def alive(self) -> list[Worker]:
        return [worker for worker in self.all if worker.code is None]

    def start(
        self,
        *,
        ablate: Sequence[str] = (),
        failpoint: str = "",
        seams: Sequence[str] = (),
        arguments: Sequence[str] = (),
        environment: Mapping[str, str] | None = None,
        waits: bool = False,
    ) -> Worker:
        """failpoint: `NAME:HIT`. seams: other options of `tests.faults.worker`. waits: joins after `go`. arguments, environment: beyond those that all workers of the run get."""
        seams = [*seams, *(text for name in ablate for text in ("--ablate", name))]
        if failpoint:
            seams += ["--failpoint", failpoint]
        worker = Worker(
            next(self._names),
            self._directory,
            seams,
            [*self._arguments, *arguments],
            {**self._environment, **(environment or {})},
            waits=waits,
        )
        self.all.append(worker)
        return worker

    async def at_work(self, *workers: Worker) -> None:
        """Until each has been given partitions. Raises: AssertionError when one ends before, or takes a minute."""
        async with asyncio.timeout(READY_S):
            for worker in workers:
                while not worker.is_at_work:
                    assert worker.code is None, f"{worker.name} ended with {worker.code}: see {worker.log}"
                    await asyncio.sleep(POLL_S)

    def note(self, what: str, whom: str, *, breaks: bool = True) -> None:
        """Something was done now, for the history. breaks: see `Fault`."""
        self.faults.append(Fault(what, whom, self._clock.now_ms(), breaks))

    def kill(self, worker: Worker) -> None:
        if worker.code is None:
            self.note("kill -9", worker.name)
        worker.kill()

    def freeze(self, worker: Worker) -> None:
        self.note("SIGSTOP", worker.name)
        worker.send(signal.SIGSTOP)

    def thaw(self, worker: Worker) -> None:
        self.note("SIGCONT", worker.name, breaks=False)
        worker.send(signal.SIGCONT)

    async def terminate(self, worker: Worker) -> int | None:
        """SIGTERM; returns the exit code, None when it did not end within the grace and was killed."""
        self.note("SIGTERM", worker.name, breaks=False)
        return await self._end(worker)

    async def _end(self, worker: Worker) -> int | None:
        if worker.code is None:
            self._told.add(worker.name)
        worker.send(signal.SIGTERM)
        if not await self.ended(worker, GRACE_S):
            worker.kill()
            return None
        return worker.code

    async def ended(self, worker: Worker, seconds: float) -> bool:
        """Waits so long for it to end by itself; whether it has."""
        try:
            async with asyncio.timeout(seconds):
                while worker.code is None:
                    await asyncio.sleep(POLL_S)
        except TimeoutError:
            return False
        return True

    async def stop(self) -> list[int | None]:
        """SIGTERM for all that live, which is no fault: the run is over. Their exit codes, as `terminate`."""
        return await asyncio.gather(*(self._end(worker) for worker in self.alive))

    def kill_all(self) -> None:
        """Whatever still runs, without a note: the run is over."""
        for worker in self.alive:
            worker.kill()

    def owned(self) -> list[Owned]:
        """From when to when which worker held which partition of the alerts."""
        found = []
        for worker in self.all:
            begun: dict[int, int] = {}
            revoked: dict[int, int] = {}
            for entry in worker.trace():
                partition = entry.partition
                if entry.event == "assigned":
                    begun.setdefault(partition, entry.at_ms)
                elif entry.event == "revoked" and partition in begun:
                    revoked.setdefault(partition, entry.at_ms)
                elif entry.event == "ended" and partition in begun:
                    told_ms = revoked.pop(partition, 0)
                    found.append(Owned(worker.name, partition, begun.pop(partition), entry.at_ms, told_ms))
            found += [
                Owned(worker.name, partition, start_ms, 0, revoked.get(partition, 0))
                for partition, start_ms in begun.items()
            ]
        return found

    def endings(self) -> list[Ended]:
        """How each of them has ended, and what had been done to it to that end."""
        killed = {fault.whom for fault in self.faults if fault.is_death}
        return [
            Ended(
                worker.name,
                worker.code,
                "kill" if worker.name in killed else "SIGTERM" if worker.name in self._told else "",
                str(worker.log),
            )
            for worker in self.all
        ]

    def grips(self) -> tuple[list[Held], list[Accepted]]:
        """As the function of that name, of all of them."""
        return grips({worker.name: worker.trace_path for worker in self.all})


def grips(traces: Mapping[str, Path]) -> tuple[list[Held], list[Accepted]]:
    """What each worker was given, and which commits were taken of it. traces: where they write, by their names."""
    held: list[Held] = []
    accepted: list[Accepted] = []
    for worker, trace in traces.items():
        for one in read_lines(grips_of(trace), Grip):
            if one.offset < 0:
                held.append(Held(worker, one.topic, one.partition, one.at_ms))
            else:
                accepted.append(Accepted(worker, one.topic, one.partition, one.offset, one.at_ms, one.metadata))
    return held, accepted
