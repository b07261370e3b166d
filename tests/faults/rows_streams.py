"""Workers of streams and features killed and frozen: features, rows and alerts are those of a plain reading, to the cent."""

import asyncio
import signal
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

from app.application import STREAMS_GROUP
from app.core.clock import SystemClock
from app.local.services import down, own_directory, up
from tests.faults.application import app
from tests.faults.checker import SHOWN, late_commits, set_back
from tests.faults.commits import CommitSampler
from tests.faults.history import Fault
from tests.faults.judging import not_taken_over
from tests.faults.processes import Child
from tests.faults.rows import Ablation, Bench, Outcome, Row, Size
from tests.faults.served import NOT_THOSE
from tests.faults.streams import LIMIT_S, Plan, run
from tests.faults.worker import grips_of
from tests.faults.workers import grips

APP, SEAM = "tests.faults.application:app", "freezes_at_table_writes"
PARTS = ("--only", "streams", "--only", "features")
BEYOND_SESSION_S = 5.0
"""Also a worker that begins only then has taken over by its end."""

OUTPUTS_DIFFER = ("outputs differ", "one record, one alert", "never two values for one key")
"""What `check_outputs` says; only what has words is told apart."""


class _Worker(Child):
    """Writes down when it stood still."""

    def __init__(
        self, arguments: Sequence[str], log: Path, environment: Mapping[str, str], faults: list[Fault]
    ) -> None:
        super().__init__("tests.faults.worker", arguments, log, environment)
        self._faults = faults

    def send(self, number: int) -> None:
        super().send(number)
        if number in (signal.SIGSTOP, signal.SIGCONT):
            self._faults.append(Fault(signal.Signals(number).name, self.log.stem, SystemClock().now_ms()))


async def disturb(bench: Bench, size: Size, ablate: Sequence[str], fault: Literal["kill", "freeze"]) -> Outcome:
    """On a broker of its own, whose topics hold nothing else. size: events, faults; shoppers."""
    bench.runs += 1
    directory = bench.directory / f"{bench.runs}-streams"
    plan = Plan(fault=fault, seed=bench.seed, frozen_s=bench.session_s + BEYOND_SESSION_S, **size)
    servers = await asyncio.to_thread(own_directory, "faults-streams")
    try:
        addresses = await asyncio.to_thread(up, servers)
        environment = {
            "HEADRACE_BROKER": addresses.kafka,
            "HEADRACE_STORE": addresses.redis,
            "HEADRACE_REPLICATION": "1",
            "HEADRACE_GROUP_PROTOCOL": bench.protocol,
        }
        seams = [text for name in (*ablate, *([SEAM] if fault == "freeze" else [])) for text in ("--ablate", name)]
        traces: dict[str, Path] = {}
        freezes: list[Fault] = []
        source = (STREAMS_GROUP, "raw.orders", app.topics.named("raw.orders").partitions)
        sampler = CommitSampler(addresses.kafka.removeprefix("kafka://"), {"streams": source})

        def start() -> Child:
            if not traces:  # from now on there are topics
                sampler.start()
            name = f"worker-{len(traces) + 1}"
            traces[name] = directory / f"{name}.trace"
            traces[name].unlink(missing_ok=True)
            grips_of(traces[name]).unlink(missing_ok=True)
            arguments = ["--trace", str(traces[name]), *seams, "--", "-A", APP, *PARTS]
            return _Worker(arguments, directory / f"{name}.log", environment, freezes)

        try:
            outcome = await run(addresses.kafka, addresses.redis, plan, start, bench.say)
        finally:
            if traces:
                await asyncio.to_thread(sampler.stop)
    finally:
        await asyncio.to_thread(down, servers)
    held, accepted = grips(traces)
    late, back = list(late_commits(held, accepted)), list(set_back(sampler.changes))
    failures = [*outcome.violations, *late[:SHOWN], *back[:SHOWN], *not_taken_over(freezes, held)]
    if outcome.recovery_s > LIMIT_S:
        failures.append(f"everything committed after {outcome.recovery_s:.0f} s")
    figures = {
        "events": outcome.events,
        "alerts": outcome.alerts,
        "kills": plan.faults,
        "recovery_s": round(outcome.recovery_s, 1),
        "outputs_repeated": outcome.repeated,
        "commits_of_lost_partitions": len(late),
        "commits_set_back": len(back),
        "commits_seen": len(sampler.changes),
        "sample_gap_s": sampler.largest_gap_ms / 1000,
    }
    return Outcome(None, failures, figures)


async def kill_streams(bench: Bench, size: Size, ablate: Sequence[str]) -> Outcome:
    return await disturb(bench, size, ablate, "kill")


async def freeze_streams(bench: Bench, size: Size, ablate: Sequence[str]) -> Outcome:
    return await disturb(bench, size, ablate, "freeze")


ROWS = (
    Row(
        "engine killed",
        "Workers of streams and features killed while they read: final rows, and the features that the store answers with, "
        "are those of a plain reading of the topic, to the cent, and no alert is missing.",
        kill_streams,
        full={"events": 1_000_000, "faults": 20},
        small={"events": 3_000, "faults": 2},
        ablations=(
            Ablation("offsets_before_outputs", {"events": 100_000, "faults": 6}, OUTPUTS_DIFFER),
            Ablation("time_not_in_commits", {"events": 100_000, "faults": 6}, OUTPUTS_DIFFER),
            Ablation("closed_windows_forgotten_at_once", {"events": 200_000, "faults": 8}, OUTPUTS_DIFFER),
            Ablation("progress_before_tiles", {"events": 4_000, "faults": 4}, (NOT_THOSE,)),
        ),
    ),
    Row(
        "frozen worker, streams",
        "A worker of streams and features that stands still for longer than its session and wakes with writes of before "
        "changes no table, no feature, also in the store, and no row, and commits nothing of what it has lost.",
        freeze_streams,
        full={"events": 20_000, "faults": 10, "shoppers": 60},
        small={"events": 1_000, "faults": 1, "shoppers": 60},
        ablations=(
            Ablation("last_written_value_counts", {"events": 24_000, "faults": 12, "shoppers": 60}, OUTPUTS_DIFFER),
            Ablation("lost_streams_commit", {"events": 2_000, "faults": 2, "shoppers": 60}, ("was given it",)),
        ),
    ),
)
