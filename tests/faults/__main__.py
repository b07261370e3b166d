"""`python -m tests.faults [--only NAME …] [--small] [--seed N] [--json] [--resume] [--no-ablations] [--protocol P]`;
`python -m tests.faults --report`.

Runs the rows on a Kafka and a Redis of their own and prints what came of each. What is finished is kept in
`.local/faults/results`, so a run that was broken off goes on with `--resume`. Exit code 1 when a row does not hold, has
no verdict, or an ablation is not noticed.
"""

import time
from collections.abc import Container
from typing import Annotated

import typer
import uvloop

from app.cli import output
from app.local.process import LOCAL, ROOT
from app.local.services import own_directory
from tests.faults import report
from tests.faults.application import app
from tests.faults.cluster import Cluster
from tests.faults.published import page, publish
from tests.faults.results import FOLDER, Result, ablated, keep, kept, measured, unnoticed
from tests.faults.rows import Bench, Row, all_rows

RUNS = LOCAL / "faults" / "runs"
ROW_LIMIT_S = 3_600.0


def say(text: str) -> None:
    """Progress, on stderr."""
    output.note(f"{time.strftime('%H:%M:%S')} {text}")


async def run_rows(
    rows: list[Row], seed: int, *, small: bool, ablations: bool, resume: bool, protocol: str
) -> list[Result]:
    """Each row on the same servers, but after one that has failed: that may have left anything behind. Of a row that is
    kept only the ablations are run that nobody has noticed yet."""
    results: list[Result] = []
    todo: list[tuple[Row, Result | None]] = []
    for row in rows:
        found = kept(FOLDER, row, seed, small=small, protocol=protocol) if resume else None
        if found is not None and not (ablations and unnoticed(row, found)):
            say(f"{row.name}: kept from before")
            results.append(found)
        else:
            todo.append((row, found))
    while todo:
        async with Cluster(app, own_directory("faults")) as cluster:
            bench = Bench(cluster, RUNS, seed, say, protocol)
            while todo:
                row, found = todo.pop(0)
                result = found or await measured(bench, row, small=small, limit_s=ROW_LIMIT_S)
                if ablations and result.verdict != "failed":
                    result = await ablated(bench, row, result, limit_s=ROW_LIMIT_S)
                keep(FOLDER, result)
                results.append(result)
                say(f"{row.name}: {result.verdict} after {result.seconds:.0f} s {'; '.join(result.failures)}")
                if result.verdict == "failed":
                    break
    return results


def _is_meant(part: str, name: str, names: Container[str]) -> bool:
    """A whole name means one row, a part of a name every row that has it."""
    return part == name if part in names else part in name


def main(
    only: Annotated[
        list[str] | None, typer.Option(help="Just this row; a part of its name is enough. May be repeated.")
    ] = None,
    small: Annotated[bool, typer.Option("--small", help="The small version that `make test` runs.")] = False,
    seed: Annotated[int, typer.Option(help="Decides kill times, keys, latencies and answers.")] = 20261125,
    json: Annotated[bool, typer.Option("--json", help="End with one JSON object a row.")] = False,
    resume: Annotated[
        bool, typer.Option("--resume", help="Keep the rows that are finished at this size and seed.")
    ] = False,
    ablations: Annotated[bool, typer.Option(help="Run the ablations too.")] = True,
    protocol: Annotated[str, typer.Option(help="Of the workers' groups: consumer (KIP-848) or classic.")] = "consumer",
    write: Annotated[
        bool, typer.Option("--report", help="Run nothing; publish what was measured here in RELIABILITY.md.")
    ] = False,
    show: Annotated[bool, typer.Option("--list", help="Say which rows there are.")] = False,
) -> None:
    """Break a running system on purpose and check that every promise holds."""
    rows = all_rows()
    if show:
        for row in rows.values():
            output.line(f"{row.name}{'' if row.small is not None else ' (full size only)'}: {row.promise}")
        return
    if write:
        publish(list(rows.values()))
        (ROOT / "RELIABILITY.md").write_text(page(list(rows.values())))
        return
    chosen = [row for row in rows.values() if not only or any(_is_meant(part, row.name, rows) for part in only)]
    if small:
        chosen = [row for row in chosen if row.small is not None]
    if not chosen:
        output.error(f"no row is called so; there are: {', '.join(rows)}")
        raise typer.Exit(2)
    say(f"seed {seed}, {len(chosen)} rows, {'small' if small else 'full'} size; logs in {RUNS}")
    results = uvloop.run(run_rows(chosen, seed, small=small, ablations=ablations, resume=resume, protocol=protocol))
    if json:
        for result in results:
            output.json_line(result.as_row())
    else:
        output.table(report.COLUMNS, [report.cells(rows[result.fault], result) for result in results])
    bad = [result for result in results if not result.holds]
    for result in bad:
        output.error(f"{result.fault}: {'; '.join(result.complaints)}")
    raise typer.Exit(bool(bad))


if __name__ == "__main__":
    typer.run(main)
