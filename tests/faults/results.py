"""What came of a row and of its ablations, and how it is kept for a later run."""

import asyncio
import re
import time
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import msgspec

from app.core.codec import encode
from app.core.text import one_line
from benchmarks.common import environment
from tests.faults.rows import Ablation, Bench, Outcome, Row, Size, turned_red

FIGURES = ("alerts", "kills", "lost", "effects_twice", "early_commits", "conflicting", "repeated", "recovery_s")

SAID = 3
"""Failures of an ablation that are kept."""

Verdict = Literal["held", "not held", "failed"]


class AblationResult(msgspec.Struct, frozen=True):
    """noticed: whether the checker, or the row, found what the safeguard prevents. found: its counts. said: the first
    failures."""

    name: str
    verdict: Verdict
    noticed: bool
    found: dict[str, int]
    seconds: float
    said: list[str] = []

    @property
    def evidence(self) -> str:
        """What was found of that which the safeguard prevents."""
        counts = [f"{name.replace('_', ' ')} {count:,}" for name, count in self.found.items() if count]
        return "; ".join([*counts, *([] if counts else self.said)]) or "-"


class Result(msgspec.Struct, kw_only=True):
    """failed: there is no verdict, since the run itself broke off. more: figures beyond the table's. protocol: of the
    groups. at, commit, machine: when, on what and where it was measured."""

    fault: str
    small: bool
    seed: int
    size: dict[str, Any]
    verdict: Verdict
    figures: dict[str, Any]
    more: dict[str, Any]
    failures: list[str]
    problems: list[str]
    seconds: float
    protocol: str
    at: str
    commit: str
    machine: str
    ablations: list[AblationResult] = []

    @property
    def holds(self) -> bool:
        """Whether the row holds, and each of its ablations was noticed."""
        return not self.complaints

    @property
    def complaints(self) -> list[str]:
        found = [*self.failures, *self.problems] if self.verdict != "held" else []
        if self.verdict != "held" and not found:
            found = [self.verdict]
        return found + [f"ablation {one.name} was not noticed" for one in self.ablations if not one.noticed]

    def as_row(self) -> dict[str, Any]:
        """As `--json` prints it."""
        more = {"seed": self.seed, "seconds": self.seconds, "size": self.size, **self.more}
        ablations = [msgspec.to_builtins(one) for one in self.ablations]
        return {
            "fault": self.fault,
            **self.figures,
            "verdict": self.verdict,
            **more,
            "failures": self.complaints,
            "ablations": ablations,
        }


async def measured(bench: Bench, row: Row, *, small: bool, limit_s: float) -> Result:
    """Runs a row. No verdict means failed."""
    size, found = row.small if small else row.full, environment()
    assert size is not None
    outcome, failures, seconds = await _tried(bench, row, size, (), limit_s)
    figures, more, problems = _figures(outcome)
    if outcome is None:
        verdict: Verdict = "failed"
    else:
        verdict = "held" if outcome.held else "not held"
    return Result(
        fault=row.name,
        small=small,
        seed=bench.seed,
        size=dict(size),
        verdict=verdict,
        figures=figures,
        more=more,
        failures=failures,
        problems=problems,
        seconds=seconds,
        protocol=bench.protocol,
        at=found["at"],
        commit=found["commit"],
        machine=f"{found['cores']} cores, {found['processor']}, {found['system']}, Python {found['python']}",
    )


async def ablated(bench: Bench, row: Row, result: Result, *, limit_s: float) -> Result:
    """The result with what came of the row's ablations."""
    for ablation in row.ablations:
        one = await try_ablation(bench, row, ablation, limit_s=limit_s)
        result.ablations.append(one)
        bench.say(f"  ablation {one.name}: {'noticed' if one.noticed else 'NOT NOTICED'} {one.evidence}")
    return result


async def try_ablation(bench: Bench, row: Row, ablation: Ablation, *, limit_s: float) -> AblationResult:
    """Runs a row without one of its safeguards."""
    outcome, _, seconds = await _tried(bench, row, ablation.size, (ablation.name,), limit_s)
    if outcome is None:
        return AblationResult(ablation.name, "failed", False, {}, seconds)
    counts = {} if outcome.verdict is None else msgspec.to_builtins(outcome.verdict)
    found = {name: counts[name] for name in ablation.wrong if name in counts}
    verdict: Verdict = "held" if outcome.held else "not held"
    return AblationResult(
        ablation.name, verdict, turned_red(ablation, outcome), found, seconds, outcome.failures[:SAID]
    )


async def _tried(
    bench: Bench, row: Row, size: Size, ablate: Sequence[str], limit_s: float
) -> tuple[Outcome | None, list[str], float]:
    began = time.monotonic()
    outcome: Outcome | None = None
    failures: list[str] = []
    try:
        async with asyncio.timeout(limit_s):
            outcome = await row.run(bench, size, ablate)
            failures = outcome.failures
    except Exception as error:  # noqa: BLE001 - whatever breaks a run is its result
        for line in "".join(traceback.format_exception(error)).splitlines():
            bench.say(line)
        failures = [f"broke off: {type(error).__name__}: {one_line(error)}"]
    return outcome, failures, round(time.monotonic() - began, 1)


def _figures(outcome: Outcome | None) -> tuple[dict[str, Any], dict[str, Any], list[str]]:
    if outcome is None:
        return dict.fromkeys(FIGURES), {}, []
    counts = msgspec.to_builtins(outcome.verdict) if outcome.verdict is not None else {}
    counts |= outcome.figures
    problems = list(counts.pop("problems", []))
    return {name: counts.pop(name, None) for name in FIGURES}, counts, problems


def keep(folder: Path, result: Result) -> None:
    """Replaces what is kept of the row at this size."""
    path = _path(folder, result.fault, result.small, result.protocol)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(encode(result))


def kept(folder: Path, row: Row, seed: int, *, small: bool, protocol: str) -> Result | None:
    """What is kept of a row with this seed and size, when it held."""
    result = latest(folder, row, small=small, protocol=protocol)
    size = row.small if small else row.full
    if result is None or (result.seed, result.verdict) != (seed, "held") or encode(result.size) != encode(size):
        return None
    return result


def latest(folder: Path, row: Row, *, small: bool, protocol: str) -> Result | None:
    """What is kept of a row at this size, whatever came of it."""
    path = _path(folder, row.name, small, protocol)
    return msgspec.json.decode(path.read_bytes(), type=Result) if path.exists() else None


def _path(folder: Path, name: str, small: bool, protocol: str) -> Path:
    words = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")
    return folder / "results" / f"{words}-{'small' if small else 'full'}-{protocol}.json"
