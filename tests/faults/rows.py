"""A row: one fault, how large it is run, what must come out, and which safeguards' removal it must notice.

Every file `rows_*.py` in this folder has a tuple `ROWS`; add a file, or a row to one, and it is run and reported.
"""

import importlib
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from app.broker.kafka.membership import SESSION_MS as CLASSIC_SESSION_MS
from tests.faults.checker import Verdict
from tests.faults.cluster import SESSION_MS, Cluster
from tests.faults.run import Latency, Run

HERE = Path(__file__).parent
QUICK = Latency(0.2, 1.2)
COUNTS = frozenset(Verdict.__struct_fields__)
"""What the checker counts."""


@dataclass
class Outcome:
    """What a run of a row came to. verdict: None for rows that are no run of agents. failures: what the row itself
    demands and did not get. figures: what else was measured."""

    verdict: Verdict | None
    failures: list[str] = field(default_factory=list)
    figures: dict[str, Any] = field(default_factory=dict)

    @property
    def held(self) -> bool:
        return not self.failures and (self.verdict is None or self.verdict.zeros_hold)


@dataclass
class Bench:
    """What a row runs on. say: one line of progress. protocol: of the workers' groups, see the setting `group_protocol`."""

    cluster: Cluster
    directory: Path
    seed: int
    say: Callable[[str], None]
    protocol: str = "consumer"
    runs: int = 0

    def run(self, name: str, latency: Latency = QUICK, **options: Any) -> Run:
        """A run with a name of its own; options as those of `Run`."""
        self.runs += 1
        tag, directory = f"r{self.runs}", self.directory / f"{self.runs}-{name}"
        options["environment"] = {"HEADRACE_GROUP_PROTOCOL": self.protocol, **options.get("environment", {})}
        return Run(self.cluster, tag, directory, seed=self.seed, latency=latency, **options)

    @property
    def session_s(self) -> float:
        """After this a silent worker has lost its partitions."""
        return (SESSION_MS if self.protocol == "consumer" else CLASSIC_SESSION_MS) / 1000


Size = Mapping[str, Any]


@dataclass(frozen=True)
class Ablation:
    """A safeguard removed (a name in `ablations.py`), at which size, and what of it is then to be found: counts of the
    verdict, or words of a failure. One of them is enough; anything else is no proof. needs_control: where a slow machine
    could bring the same, the row must hold at that size with its safeguard."""

    name: str
    size: Size
    wrong: tuple[str, ...]
    needs_control: bool = False


@dataclass(frozen=True)
class Row:
    """run: gets the bench, a size and the ablations, runs the fault once and says what came of it. small: None where
    the row is too long for `make test` at any size. promise: what the row shows, for RELIABILITY.md."""

    name: str
    promise: str
    run: Callable[[Bench, Size, Sequence[str]], Awaitable[Outcome]]
    full: Size
    small: Size | None
    ablations: tuple[Ablation, ...] = ()


def all_rows() -> dict[str, Row]:
    """Every row, by name, in the order of the files."""
    found: dict[str, Row] = {}
    for file in sorted(HERE.glob("rows_*.py")):
        for row in importlib.import_module(f"tests.faults.{file.stem}").ROWS:
            assert row.name not in found, f"{row.name} is there twice"
            found[row.name] = row
    return found


def matched(ablation: Ablation, outcome: Outcome) -> list[str]:
    """The failures in which its words are found. A word that names a count is none of a text: "lost" is part of many."""
    words = [word for word in ablation.wrong if word not in COUNTS]
    return [failure for failure in outcome.failures if any(word in failure for word in words)]


def turned_red(ablation: Ablation, outcome: Outcome) -> bool:
    """Whether the removed safeguard was missed, in the way that was expected."""
    counted = any(getattr(outcome.verdict, word, 0) for word in ablation.wrong if word in COUNTS)
    return not outcome.held and (counted or bool(matched(ablation, outcome)))
