"""What came of a row and of its ablations, and how it is kept for a later run."""

import ast
import asyncio
import hashlib
import inspect
import re
import subprocess
import time
import traceback
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

import msgspec

from app.core.codec import encode
from app.core.text import one_line
from app.local.process import LOCAL, ROOT
from benchmarks.common import environment
from tests.faults import ablations
from tests.faults.checker import ZEROS
from tests.faults.rows import Ablation, Bench, Outcome, Row, Size, matched, turned_red

FOLDER = LOCAL / "faults" / "results"
"""Where a run keeps what came of its rows."""

FIGURES = ("alerts", "kills", "lost", "effects_twice", "early_commits", "conflicting", "repeated", "recovery_s")

SAID, SAID_CHARACTERS = 3, 160
"""Failures of an ablation that are kept, and how much of each is shown."""

_IMPORT = re.compile(r"^from (tests[.\w]*) import ", re.MULTILINE)

CHANGED = "*"
"""Behind a commit whose files were changed when the row ran."""

Verdict = Literal["held", "not held", "failed"]


class AblationResult(msgspec.Struct, frozen=True):
    """noticed: whether the checker, or the row, found what the safeguard prevents. found: its counts. said: the first of the
    failures that say so. definition: of the row and of what is removed. seconds, size, at, commit, definition: 0 or empty
    where nobody wrote them down."""

    name: str
    verdict: Verdict
    noticed: bool
    found: dict[str, int]
    seconds: float
    said: list[str] = []
    size: dict[str, Any] = {}
    at: str = ""
    commit: str = ""
    definition: str = ""

    @property
    def evidence(self) -> str:
        """What was found of that which the safeguard prevents."""
        counts = [f"{name.replace('_', ' ')} {count:,}" for name, count in self.found.items() if count]
        return "; ".join([*counts, *map(_shortened, self.said)]) or "-"


def _shortened(text: str) -> str:
    """Without its middle: what is wrong with what stands at either end."""
    half = SAID_CHARACTERS // 2
    return text if len(text) <= SAID_CHARACTERS else f"{text[:half]} ... {text[-half:]}"


class Result(msgspec.Struct, kw_only=True):
    """failed: there is no verdict, since the run itself broke off. more: figures beyond the table's. protocol: of the
    groups. at, commit, machine: when, on what and where it was measured. promise, definition: the row's then. seconds, promise,
    definition: 0 or empty where nobody wrote them down."""

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
    promise: str = ""
    definition: str = ""
    ablations: list[AblationResult] = []

    @property
    def holds(self) -> bool:
        """Whether the row holds, and each of its ablations was noticed."""
        return not self.complaints

    @property
    def complaints(self) -> list[str]:
        return self.violations + [f"ablation {one.name} was not noticed" for one in self.ablations if not one.noticed]

    @property
    def violations(self) -> list[str]:
        """Why the row does not hold. What the checker counts, and need not be 0, is no reason."""
        if self.verdict == "held":
            return []
        kinds = tuple(f"{kind}: " for kind in ZEROS)
        return [*self.failures, *(text for text in self.problems if text.startswith(kinds))] or [self.verdict]

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
    size, found, commit = row.small if small else row.full, environment(), checked_out()
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
        commit=commit,
        machine=f"{found['cores']} cores, {found['processor']}, {found['system']}, Python {found['python']}",
        promise=row.promise,
        definition=definition_of(row),
    )


def definition_of(row: Row) -> str:
    """Changes with whatever says what the row does, how large it is, and what it must come to: the code of its file, and of
    what of the tests that imports."""
    open_still, files = [Path(inspect.getfile(row.run))], set[Path]()
    while open_still:
        file = open_still.pop()
        if file not in files and file.exists():
            files.add(file)
            open_still += [ROOT / f"{name.replace('.', '/')}.py" for name in _IMPORT.findall(file.read_text())]
    said = encode([row.promise, row.full, row.small])
    code = "".join(code_of(file.read_text()) for file in sorted(files))
    return hashlib.sha256(said + code.encode()).hexdigest()[:12]


def code_of(source: str) -> str:
    """Without the docstrings, which may get better without a row becoming another."""
    lines = source.splitlines(keepends=True)
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            assert node.end_lineno is not None
            for number in range(node.lineno - 1, node.end_lineno):
                lines[number] = ""
    return "".join(lines)


def checked_out() -> str:
    """The commit that runs, and whether files were changed since. The report does not count: it is written by a run."""
    commit = _git("rev-parse", "--short", "HEAD")
    changed = _git("status", "--porcelain", "--untracked-files=no", "--", ".", ":!RELIABILITY.md")
    return f"{commit or 'unknown'}{CHANGED if changed else ''}"


def _git(*arguments: str) -> str:
    """What it says; nothing where there is no repository."""
    return subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=False).stdout.strip()


async def ablated(bench: Bench, row: Row, result: Result, *, limit_s: float) -> Result:
    """The result with what came of the row's ablations. Those that were noticed before are not run again."""
    known = {one.name: one for one in result.ablations}
    repeated = [one.name for one in unnoticed(row, result)]
    result.ablations = []
    for ablation in row.ablations:
        if ablation.name not in repeated:
            result.ablations.append(known[ablation.name])
            continue
        one = await try_ablation(bench, row, ablation, limit_s=limit_s)
        result.ablations.append(one)
        bench.say(f"  ablation {one.name}: {'noticed' if one.noticed else 'NOT NOTICED'} {one.evidence}")
    return result


def unnoticed(row: Row, result: Result) -> list[Ablation]:
    """The row's ablations that were not run as they are defined now, or that nobody noticed."""
    known = {one.name: one for one in result.ablations}
    return [
        ablation
        for ablation in row.ablations
        if ablation.name not in known
        or not known[ablation.name].noticed
        or known[ablation.name].definition != ablation_defined(row, ablation)
    ]


def ablation_defined(row: Row, ablation: Ablation) -> str:
    """As `definition_of`, with the ablation's own size and file."""
    file = inspect.getfile(ablations.named(ablation.name))
    said = encode([definition_of(row), ablation.size, ablation.wrong, ablation.needs_control])
    return hashlib.sha256(said + code_of(Path(file).read_text()).encode()).hexdigest()[:12]


async def try_ablation(bench: Bench, row: Row, ablation: Ablation, *, limit_s: float) -> AblationResult:
    """Runs a row without one of its safeguards."""
    at, commit, size = environment()["at"], checked_out(), dict(ablation.size)
    tried = partial(
        AblationResult, ablation.name, size=size, at=at, commit=commit, definition=ablation_defined(row, ablation)
    )
    if ablation.needs_control:
        control, failures, seconds = await _tried(bench, row, ablation.size, (), limit_s)
        if control is None or not control.held:
            said = [f"not held with it either: {text}" for text in failures][:SAID]
            return tried("not held", noticed=False, found={}, seconds=seconds, said=said)
    outcome, failures, seconds = await _tried(bench, row, ablation.size, (ablation.name,), limit_s)
    if outcome is None:
        return tried("failed", noticed=False, found={}, seconds=seconds, said=failures)
    counts = {} if outcome.verdict is None else msgspec.to_builtins(outcome.verdict)
    found = {name: counts[name] for name in ablation.wrong if name in counts}
    verdict: Verdict = "held" if outcome.held else "not held"
    noticed, said = turned_red(ablation, outcome), matched(ablation, outcome)[:SAID]
    return tried(verdict, noticed=noticed, found=found, seconds=seconds, said=said)


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
    folder.mkdir(parents=True, exist_ok=True)
    _path(folder, result.fault, result.small, result.protocol).write_bytes(as_text(result))


def as_text(result: msgspec.Struct) -> bytes:
    """JSON in which a change is a changed line."""
    return msgspec.json.format(encode(result), indent=1) + b"\n"


def kept(folder: Path, row: Row, seed: int, *, small: bool, protocol: str) -> Result | None:
    """What is kept of a row with this seed, as it is defined now, when it held."""
    result = latest(folder, row, small=small, protocol=protocol)
    wanted = (seed, "held", definition_of(row))
    return result if result and (result.seed, result.verdict, result.definition) == wanted else None


def latest(folder: Path, row: Row, *, small: bool, protocol: str) -> Result | None:
    """What is kept of a row at this size, whatever came of it."""
    path = _path(folder, row.name, small, protocol)
    return msgspec.json.decode(path.read_bytes(), type=Result) if path.exists() else None


def _path(folder: Path, name: str, small: bool, protocol: str) -> Path:
    words = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")
    return folder / f"{words}-{'small' if small else 'full'}-{protocol}.json"
