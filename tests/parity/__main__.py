"""`python -m tests.parity`: generated logs through both engines and the reference; what differs is made as small as it gets."""

import asyncio
import secrets
from typing import Annotated, Any, NamedTuple

import typer

from app.cli import output
from app.cli.main import run
from app.local import services
from app.local.process import LOCAL
from tests.generated import Planned
from tests.parity.asyncio_engine import run_asyncio
from tests.parity.batches import Batch, batch_of, count_of, differing, of_log, records_of
from tests.parity.flink_engine import Flink, flink_on
from tests.parity.reference import Outputs, read_all

LOGS_A_JOB = 100

cli = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


class Difference(NamedTuple):
    """A log for which an engine does not write what the reference says."""

    engine: str
    batch: Batch
    plan: list[Planned]
    found: Outputs


@cli.command()
def parity(
    logs: Annotated[int, typer.Option("--logs", min=1, help="How many generated logs.")] = 2_000,
    seed: Annotated[int, typer.Option("--seed", help="Decides declarations and logs.")] = 1,
    json: output.JsonOption = False,
) -> None:
    """Run generated logs of generated declarations through the asyncio engine, Flink and the reference, and compare."""
    difference, rows, differences = asyncio.run(compared(logs, seed))
    if difference is not None:
        for line in told(difference):
            output.line(line)
    if json:
        output.json_line({"logs": logs, "rows": rows, "differences": differences})
    else:
        output.line(f"{logs:,} logs, {rows:,} rows, {differences or 'no'} of them different")
    if difference is not None:
        raise typer.Exit(1)


async def compared(logs: int, seed: int) -> tuple[Difference | None, int, int]:
    """The first difference, made small; how many rows were compared, and how many logs differed. Logs that follow each other in one
    are one of these."""
    from app.cli.loading import open_cluster, settings

    directory = LOCAL / "parity"
    addresses = await asyncio.to_thread(services.up, directory, ("kafka", *services.FLINK_SERVICES))
    broker = open_cluster(settings(broker=addresses.kafka))
    first: Difference | None = None
    rows = done = differences = 0
    try:
        async with flink_on(broker, addresses.flink) as flink:
            while done < logs:
                count = min(LOGS_A_JOB, logs - done)
                number = done // LOGS_A_JOB
                parallelism, in_a_row = 1 + number // 2 % 2, number % 2 == 0
                run_id = secrets.token_hex(4)
                batch = batch_of(seed * 1_000_003 + done, count, f"parity.{run_id}.", in_a_row)
                found = await compare(batch, flink, parallelism)
                rows, done, differences = rows + found.rows, done + count, differences + len(found.differing)
                output.note(
                    f"{done:,} of {logs:,} logs, {rows:,} rows: {'DIFFERENT' if found.differing else 'the same'}"
                )
                if found.differing and first is None:
                    first = await smallest(batch, found.differing[0], flink, parallelism)
        return first, rows, differences
    finally:
        await broker.close()
        await asyncio.to_thread(services.down, directory, services.ALL_SERVICES)


class Compared(NamedTuple):
    """rows: of the reference. differing: the logs of which either engine wrote something else, by number."""

    rows: int
    differing: list[int]


async def compare(batch: Batch, flink: Flink, parallelism: int) -> Compared:
    plans = dict(enumerate(batch.plans))
    records = records_of(batch.topics, plans)
    expected = read_all(batch.pipelines, records)
    on_flink = await flink.run(batch.pipelines, records, prefix="run.", parallelism=parallelism)
    engines = (run_asyncio(batch.pipelines, records), on_flink)
    found = sorted({log for outputs in engines for log in differing(expected, outputs, list(plans))})
    return Compared(count_of(expected), found)


async def smallest(batch: Batch, log: int, flink: Flink, parallelism: int) -> Difference:
    """What is left of a log that differs when as much as may be is left out of it."""
    plan = batch.plans[log]
    records = records_of(batch.topics, {0: plan})
    if differing(read_all(batch.pipelines, records), run_asyncio(batch.pipelines, records), [0]):
        return Difference("asyncio", batch, *smallest_on_asyncio(batch, plan))
    return Difference(
        f"flink, parallelism {parallelism}", batch, *await smallest_on_flink(batch, plan, flink, parallelism)
    )


def shorter(plan: list[Planned]) -> list[list[Planned]]:
    """Plans that lack some records in a row, many first, and at last each single one; their time goes to the one behind them."""
    candidates, size = list[list[Planned]](), len(plan) // 2
    while size:
        for index in range(0, len(plan), size):
            gone, behind = plan[index : index + size], plan[index + size :]
            if behind:
                passed_ms = sum(one.step_ms for one in gone)
                behind = [behind[0]._replace(step_ms=behind[0].step_ms + passed_ms), *behind[1:]]
            candidates.append([*plan[:index], *behind])
        size //= 2
    return [candidate for candidate in candidates if candidate]


def smallest_on_asyncio(batch: Batch, plan: list[Planned]) -> tuple[list[Planned], Outputs]:
    """And what the engine writes for it."""
    while True:
        for candidate in shorter(plan):
            records = records_of(batch.topics, {0: candidate})
            if differing(read_all(batch.pipelines, records), run_asyncio(batch.pipelines, records), [0]):
                plan = candidate
                break
        else:
            return plan, run_asyncio(batch.pipelines, records_of(batch.topics, {0: plan}))


async def smallest_on_flink(
    batch: Batch, plan: list[Planned], flink: Flink, parallelism: int
) -> tuple[list[Planned], Outputs]:
    """As `smallest_on_asyncio`. What is shorter are the logs of one job, of one each where the batch is one log."""
    found = await _on_flink(batch, [plan], flink, parallelism)
    while True:
        candidates, at_once = shorter(plan)[:LOGS_A_JOB], len(batch.plans)
        for index in range(0, len(candidates), at_once):
            tried = candidates[index : index + at_once]
            outputs = await _on_flink(batch, tried, flink, parallelism)
            records = records_of(batch.topics, dict(enumerate(tried)))
            still = differing(read_all(batch.pipelines, records), outputs, list(range(len(tried))))
            if still:
                plan = tried[still[0]]
                found = await _on_flink(batch, [plan], flink, parallelism)
                break
        else:
            return plan, found


async def _on_flink(batch: Batch, plans: list[list[Planned]], flink: Flink, parallelism: int) -> Outputs:
    records = records_of(batch.topics, dict(enumerate(plans)))
    return await flink.run(batch.pipelines, records, prefix="run.", parallelism=parallelism)


def told(difference: Difference) -> list[str]:
    """The records, what differs, and the pipelines."""
    batch = difference.batch
    records = records_of(batch.topics, {0: difference.plan})
    expected, found = of_log(read_all(batch.pipelines, records), 0), of_log(difference.found, 0)
    lines = [f"differs: {difference.engine}", *(f"  {record}" for record in records)]
    for kind in expected:
        lines += [f"  missing in {kind}: {one}" for one in _beyond(expected[kind], found[kind])]
        lines += [f"  too much in {kind}: {one}" for one in _beyond(found[kind], expected[kind])]
    return [*lines, *(f"  {name}: {pipeline}" for name, pipeline in batch.pipelines.items())]


def _beyond(one: Any, other: Any) -> list[Any]:
    """What is in one and not, or not so, in the other."""
    if isinstance(one, dict):
        return [(place, value) for place, value in one.items() if other.get(place) != value]
    return [value for value in one if value not in other]


if __name__ == "__main__":
    run(commands=cli, name="python -m tests.parity")
