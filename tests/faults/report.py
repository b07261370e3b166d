"""RELIABILITY.md and the table that is printed, from what came of the rows."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from tests.faults.results import FIGURES, Result
from tests.faults.rows import Row
from tests.faults.soak import Soaked

COLUMNS = ("fault", *(name.replace("_", " ") for name in FIGURES), "verdict", "ablations noticed")

HEAD = """\
# Reliability

What this system promises when parts of it fail, in words that a test can prove wrong, and what the tests measured. The
tables are written by `make faults`, which breaks a running system on purpose: a real Kafka and a real Redis, workers as
processes of their own, a model and a receiver of effects whose logs lie outside of everything that is killed. One pure
function, [`tests/faults/checker.py`](tests/faults/checker.py), judges the whole history; its own tests plant violations in
one and see that it finds them. Single rows: `python -m tests.faults --only NAME`; `--list` says which there are.

## What is promised

An alert is *published* when the broker has acknowledged it. A decision *stands* when it is the first `live` one about its
alert and agent in `agent.decisions`.

1. **Nothing is lost.** Every published alert gets exactly one standing decision: the agent's answer after policy, or its
   fallback's with the reason. Only what cannot be decoded, or has no fallback to end in, is a dead letter instead.
2. **Nothing is done twice.** Each effect of a standing decision is applied once at a receiver that honours idempotency keys,
   however often it was attempted; and no effect of any other decision is applied.
3. **No commit is early.** No committed offset, and no done mark in its metadata, covers an alert whose decision is not yet
   in the log, or a decision whose effects have not all come to their end.
4. **Repeats are bounded.** After a crash the model is asked again for no more alerts than calls were under way, or
   answered and not yet written; after a SIGTERM that drains, for none.
5. **It goes on by itself.** When faults end, the lag is 0 again within 60 seconds, without anybody's help.
6. **Failure never approves.** Whatever fails, is cut, refused, late, or too expensive ends in the agent's fallback.
7. **State is exact.** After any number of kills, features and final rows are those of a plain reading of the source topic,
   to the cent.

**Horizon**: 24 hours or 1,000,000 alerts of an agent in one process, whichever is less. An alert that is repeated later
than that may cost a second model call, and its first decision still stands; an effect is applied once for as long as its
receiver remembers its key.

## What is not promised

- That a handler runs once. It runs at least once; what is written and done counts once.
- That a receiver without idempotency keys applies an effect once: its action is declared `at_most_once` (a person is asked
  when a call breaks off) or `may_repeat`.
- An order of alerts with different keys, or of one key across a change of owners.
- That an alert which happened to run when its process died three times is decided by the model: it goes to its fallback,
  and at most one alert of each other partition with it.
- Anything about a broker that loses acknowledged records: replication is the cluster's. What is measured here is one broker.
- That a worker which is killed answers its own alerts in time: they wait for the session's end ({session} s in these runs, a
  setting of the broker) and for a successor.
"""


def cells(result: Result) -> list[str]:
    """A row of the table."""
    return [result.fault, *(_number(result.figures.get(name)) for name in FIGURES), result.verdict, _noticed(result)]


def _number(value: Any) -> str:
    return "-" if value is None else f"{value:,}"


def _noticed(result: Result) -> str:
    noticed = sum(one.noticed for one in result.ablations)
    return f"{noticed} of {len(result.ablations)}" if result.ablations else "-"


def document(
    rows: Sequence[Row], full: Sequence[Result], small: Sequence[Result], soaked: Soaked | None, session_s: float
) -> str:
    """RELIABILITY.md. full, small: what is kept of the rows at full size, and small on the classic group protocol.
    soaked: of the last soak."""
    found = {result.fault: result for result in full}
    parts = [HEAD.replace("{session}", f"{session_s:g}"), "\n## Measured\n", _environment(full)]
    parts.append(_table(COLUMNS, [cells(found[row.name]) for row in rows if row.name in found]))
    parts.append(
        "\n`repeated`: model calls beyond one an alert. `recovery s`: from the last fault, or the last alert where that came"
        " later, to lag 0. An ablation is noticed when the row turns red without the safeguard that it removes.\n"
    )
    parts.append(_open(rows, found))
    parts.append("\n### Soak\n")
    parts.append(_soak(soaked))
    parts.append("\n### What each row shows\n")
    parts.append("\n".join(_shown(row, found.get(row.name)) for row in rows))
    parts.append("\n### Ablations\n")
    ablations = [
        (result.fault, one.name, one.verdict, "yes" if one.noticed else "NO", one.evidence)
        for result in full
        for one in result.ablations
    ]
    parts.append(_table(("fault", "removed", "verdict without it", "noticed", "found"), ablations))
    if small:
        parts.append("\n### Small rows on the classic group protocol\n")
        parts.append(_table(COLUMNS[:-1], [cells(result)[:-1] for result in small]))
    return "\n\n".join(part.strip("\n") for part in parts) + "\n"


def _environment(results: Sequence[Result]) -> str:
    if not results:
        return "Nothing has been measured yet: `make faults`.\n"
    seeds = ", ".join(sorted({str(result.seed) for result in results}))
    machines = sorted({result.machine for result in results})
    commits = ", ".join(sorted({result.commit for result in results}))
    days = sorted({result.at[:10] for result in results})
    when = days[0] if len(days) == 1 else f"{days[0]} to {days[-1]}"
    seconds = sum(result.seconds + sum(one.seconds for one in result.ablations) for result in results)
    return f"\nSeed {seeds}; {'; '.join(machines)}; {when}; commit {commits}; {seconds / 60:.0f} minutes in all.\n"


def _soak(soaked: Soaked | None) -> str:
    if soaked is None:
        return "Not run yet: `make soak`."
    load = soaked.load
    memory = ", ".join(
        f"{name} {soaked.rss_mb[name]} MB, {grown:g} of the middle" for name, grown in soaked.grown.items()
    )
    return (
        f"{load.minutes:g} minutes at {load.events:,} events and {load.alerts:,} alerts a second, {load.keys:,} keys: "
        f"{soaked.alerts:,} alerts, {soaked.decisions:,} decided when the load ended. Memory at the end: {memory}. "
        + ("Held." if not soaked.failures else f"Not held: {'; '.join(soaked.failures)}.")
    )


def _open(rows: Sequence[Row], found: dict[str, Result]) -> str:
    """What does not hold, said plainly."""
    lines = [f"- **{name}**: {'; '.join(result.complaints)}" for name, result in found.items() if not result.holds]
    lines += [f"- **{row.name}**: not run at full size" for row in rows if row.name not in found]
    return (
        "\n### What does not hold\n\n"
        + ("\n".join(lines) if lines else "Every row holds, and every ablation was noticed.")
        + "\n"
    )


def _shown(row: Row, result: Result | None) -> str:
    size = result.size if result is not None else row.full
    return f"- **{row.name}** ({_counts(size)}). {row.promise}{_more(result)}"


def _more(result: Result | None) -> str:
    more = {
        name: value
        for name, value in (result.more if result is not None else {}).items()
        if isinstance(value, (int, float)) and not isinstance(value, bool)
    }
    return f" Also counted: {_counts(more)}." if more else ""


def _counts(values: Mapping[str, Any]) -> str:
    return ", ".join(f"{name.replace('_', ' ')} {_plain(value)}" for name, value in values.items()) or "-"


def _plain(value: Any) -> str:
    if isinstance(value, (list, tuple)):
        return " / ".join(str(each) for each in value)
    return f"{value:,}" if isinstance(value, (int, float)) else str(value)


def _table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [f"| {' | '.join(columns)} |", f"|{'---|' * len(columns)}"]
    return "\n" + "\n".join([*lines, *(f"| {' | '.join(str(cell) for cell in row)} |" for row in rows)]) + "\n"
