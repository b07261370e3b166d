"""The worker under test: the real command line, with seams around it.

    python -m tests.faults.worker --trace FILE [--wait] [--ablate NAME …] [--failpoint NAME:HIT] -- ARGUMENTS OF `app worker`

It writes down which partitions of the alerts it holds, and beside that which of any topic it was given and which commits
were taken of it. An ablation removes a safeguard, a failpoint kills the process at
the n-th time that it passes there; both are patches of this process, the product has no option for them. --wait: it imports
everything, and goes on when its standard input ends. --gauges FILE [--remember N]: what fills up inside, see `gauges`.
"""

import argparse
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from app.broker.base import Assignment, CommittedOffset
from app.broker.kafka.consumer import KafkaConsumer
from app.broker.kafka.polling import PollingThread, Rebalance
from app.cli.main import run
from app.core.clock import SystemClock
from app.decisions.handling import AgentWork
from app.decisions.remembered import CAPACITY
from app.dispatch.consumer import Dispatcher
from tests.faults import ablations, failpoints, gauges
from tests.faults.lines import LineLog
from tests.faults.processes import die_with_parent, wait_for_go


class Trace(msgspec.Struct, frozen=True):
    """event: assigned, revoked, ended, or the name of a failpoint that was hit. partition: -1 where it is none's."""

    event: str
    partition: int
    at_ms: int
    pid: int


class Grip(msgspec.Struct, frozen=True):
    """A partition of any topic that was given to this process, or a commit that was taken of it: offset, -1 for none."""

    topic: str
    partition: int
    offset: int
    at_ms: int
    metadata: str = ""


def grips_of(trace: Path) -> Path:
    """Where a worker with that trace writes down its grips."""
    return trace.with_suffix(".grips")


def trace_grips_into(path: Path) -> None:
    """Writes down what this process was given, and what it then committed: when a commit was sent, once it was taken."""
    log, clock = LineLog(path), SystemClock()
    rebalance: Any = KafkaConsumer._rebalance
    commit: Any = KafkaConsumer._commit_once

    async def note_rebalance(self: KafkaConsumer, change: Rebalance) -> None:
        if change.kind == "assigned":
            for place in change.places:
                log.write(Grip(*place, -1, clock.now_ms()))
        await rebalance(self, change)

    def note_commit(self: KafkaConsumer, polling: PollingThread, offsets: Mapping[Assignment, CommittedOffset]) -> Any:
        sent_ms = clock.now_ms()
        error = commit(self, polling, offsets)
        if error is None:
            for assignment, to in offsets.items():
                log.write(Grip(*assignment.place, to.offset, sent_ms, to.metadata))
        return error

    KafkaConsumer._rebalance = note_rebalance  # type: ignore[method-assign]
    KafkaConsumer._commit_once = note_commit  # type: ignore[method-assign]


def trace_into(path: Path) -> LineLog:
    """Writes down from when to when a partition is held."""
    log, clock = LineLog(path), SystemClock()
    begin: Any = AgentWork.assigned
    end: Any = AgentWork.ended
    revoke: Any = Dispatcher.on_revoked

    def note(event: str, partition: int) -> None:
        log.write(Trace(event, partition, clock.now_ms(), os.getpid()))

    async def assigned(self: AgentWork, assignment: Assignment, first_unfinished: int) -> None:
        note("assigned", assignment.partition)
        await begin(self, assignment, first_unfinished)

    async def ended(self: AgentWork, assignments: Sequence[Assignment]) -> None:
        await end(self, assignments)
        for assignment in assignments:
            note("ended", assignment.partition)

    async def revoked(self: Dispatcher, assignments: Sequence[Assignment]) -> None:
        if isinstance(self._work, AgentWork):
            for assignment in assignments:
                note("revoked", assignment.partition)
        await revoke(self, assignments)

    Dispatcher.on_revoked = revoked  # type: ignore[method-assign]
    AgentWork.assigned = assigned  # type: ignore[method-assign]
    AgentWork.ended = ended  # type: ignore[method-assign]
    return log


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.faults.worker")
    parser.add_argument("--trace", type=Path, required=True)
    parser.add_argument("--ablate", action="append", default=[])
    parser.add_argument("--failpoint", default="")
    parser.add_argument("--wait", action="store_true")
    parser.add_argument("--gauges", type=Path)
    parser.add_argument("--remember", type=int, default=CAPACITY)
    parser.add_argument("arguments", nargs="*")
    options = parser.parse_args()
    die_with_parent()
    log = trace_into(options.trace)
    trace_grips_into(grips_of(options.trace))
    for name in options.ablate:
        ablations.named(name)()
    if options.failpoint:
        name, _, hit = options.failpoint.partition(":")
        clock = SystemClock()
        failpoints.arm(name, int(hit), lambda: log.write(Trace(name, -1, clock.now_ms(), os.getpid())))
    if options.gauges:
        gauges.write_into(options.gauges, options.remember)
    if options.wait:
        wait_for_go()
    run(["worker", *options.arguments])


if __name__ == "__main__":
    main()
