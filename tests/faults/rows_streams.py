"""Workers of the streams killed and frozen: features, rows and alerts are those of a plain reading, to the cent."""

import asyncio
from collections.abc import Sequence
from typing import Literal

from app.local.services import down, own_directory, up
from tests.faults.processes import Child
from tests.faults.rows import Ablation, Bench, Outcome, Row, Size
from tests.faults.streams import LIMIT_S, Plan, run

APP, SEAM = "tests.faults.application:app", "freezes_at_table_writes"
BEYOND_SESSION_S = 3.0

OUTPUTS_DIFFER = ("outputs differ", "one record, one alert", "never two values for one key")
"""What `check_outputs` says; only what has words is told apart."""


async def disturb(bench: Bench, size: Size, ablate: Sequence[str], fault: Literal["kill", "freeze"]) -> Outcome:
    """On a broker of its own, whose topics hold nothing else. size: events, faults; shoppers."""
    bench.runs += 1
    directory = bench.directory / f"{bench.runs}-streams"
    plan = Plan(fault=fault, seed=bench.seed, frozen_s=bench.session_s + BEYOND_SESSION_S, **size)
    servers = await asyncio.to_thread(own_directory, "faults-streams")
    try:
        addresses = await asyncio.to_thread(up, servers, ["kafka"])
        environment = {
            "HEADRACE_BROKER": addresses.kafka,
            "HEADRACE_STORE": "memory://",
            "HEADRACE_REPLICATION": "1",
            "HEADRACE_GROUP_PROTOCOL": bench.protocol,
        }
        seams = [text for name in (*ablate, *([SEAM] if fault == "freeze" else [])) for text in ("--ablate", name)]
        started = 0

        def start() -> Child:
            nonlocal started
            started += 1
            arguments = ["--trace", str(directory / f"{started}.trace"), *seams, "--", "-A", APP, "--only", "streams"]
            return Child("tests.faults.worker", arguments, directory / f"{started}.log", environment)

        outcome = await run(addresses.kafka, plan, start, bench.say)
    finally:
        await asyncio.to_thread(down, servers)
    failures = list(outcome.violations)
    if outcome.recovery_s > LIMIT_S:
        failures.append(f"everything committed after {outcome.recovery_s:.0f} s")
    figures = {
        "events": outcome.events,
        "alerts": outcome.alerts,
        "kills": plan.faults,
        "recovery_s": round(outcome.recovery_s, 1),
        "outputs_repeated": outcome.repeated,
    }
    return Outcome(None, failures, figures)


async def kill_streams(bench: Bench, size: Size, ablate: Sequence[str]) -> Outcome:
    return await disturb(bench, size, ablate, "kill")


async def freeze_streams(bench: Bench, size: Size, ablate: Sequence[str]) -> Outcome:
    return await disturb(bench, size, ablate, "freeze")


ROWS = (
    Row(
        "engine killed",
        "Workers of the streams killed while they read: features and final rows are those of a plain reading of the "
        "topic, to the cent, and no alert is missing.",
        kill_streams,
        full={"events": 1_000_000, "faults": 20},
        small={"events": 4_000, "faults": 4},
        ablations=(
            Ablation("offsets_before_outputs", {"events": 100_000, "faults": 6}, OUTPUTS_DIFFER),
            Ablation("time_not_in_commits", {"events": 100_000, "faults": 6}, OUTPUTS_DIFFER),
            Ablation("closed_windows_forgotten_at_once", {"events": 200_000, "faults": 8}, OUTPUTS_DIFFER),
        ),
    ),
    Row(
        "frozen worker, streams",
        "A worker of the streams that stands still for longer than its session and wakes with writes of before changes "
        "no table, no feature and no row.",
        freeze_streams,
        full={"events": 20_000, "faults": 10, "shoppers": 60},
        small={"events": 1_000, "faults": 1, "shoppers": 60},
        ablations=(
            Ablation("last_written_value_counts", {"events": 12_000, "faults": 6, "shoppers": 60}, OUTPUTS_DIFFER),
        ),
    ),
)
