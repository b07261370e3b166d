"""`python -m flink_jobs submit|list|stop|savepoint|upgrade|sql`."""

import asyncio
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer

from app.cli import main, output
from app.cli.loading import DEFAULT_APP, AppOption, BrokerOption, load_app, open_cluster, settings
from app.core.errors import HeadraceError

if TYPE_CHECKING:
    from flink_jobs.child import Submitter
    from flink_jobs.keeping import Keeper
    from flink_jobs.operations import Jobs, Listed

cli = main.command_line("flink_jobs")

NamesArgument = Annotated[list[str] | None, typer.Argument(metavar="[NAME]...", help="Jobs; all unless given.")]
NameArgument = Annotated[str, typer.Argument(metavar="NAME", help="A job; `list` has them.")]
FlinkOption = Annotated[
    str | None,
    typer.Option("--flink", metavar="ADDRESS", help="Job manager. [default: HEADRACE_FLINK, or port 8081 here]"),
]
ParallelismOption = Annotated[
    int | None,
    typer.Option("--parallelism", min=1, help="Tasks of each kind, side by side. [default: as it was, at first 1]"),
]


@cli.callback()
def root(context: typer.Context, debug: main.DebugOption = False) -> None:
    """The declared streams as jobs of a Flink cluster. A job is named by the topics that it reads.

    Jobs run on the cluster of HEADRACE_FLINK; `python -m app worker --engine flink` runs all the rest.
    """
    context.obj.debug = debug


def run() -> NoReturn:
    main.run(commands=cli, name="python -m flink_jobs")


@cli.command()
def sql(
    names: NamesArgument = None,
    app: AppOption = DEFAULT_APP,
    broker: BrokerOption = None,
) -> None:
    """Print what jobs are made of, as Flink's SQL client takes it. Needs no PyFlink and no cluster.

    Example: `python -m flink_jobs sql raw.orders`
    """
    from flink_jobs.compiled import compile_jobs

    compiled = compile_jobs(load_app(app), settings(broker=broker), shown=True)
    for name in compiled.named(names or []):
        for line in compiled.shown(name).text().splitlines():
            output.line(line)


@cli.command()
def submit(
    names: NamesArgument = None,
    keep: Annotated[
        bool, typer.Option("--keep", help="Stay, note every checkpoint, start again what fails or is forgotten.")
    ] = False,
    anew: Annotated[
        bool, typer.Option("--anew", help="Without the state of before, from the earliest record.")
    ] = False,
    app: AppOption = DEFAULT_APP,
    broker: BrokerOption = None,
    flink: FlinkOption = None,
    parallelism: ParallelismOption = None,
) -> None:
    """Give jobs to the cluster, each from its last checkpoint or savepoint, and wait until they run. One that runs is left alone.

    A job whose declaration has changed fills itself beside the one before it, and takes over from it; so does the first one where
    workers ran the streams before.

    Examples: `python -m flink_jobs submit`; as a service: `python -m flink_jobs submit --keep`
    """
    from flink_jobs.child import submitter

    async def work() -> None:
        async with opened(app, broker, flink) as (jobs, keeper), submitter() as pyflink:
            chosen, refused = jobs.named(names or []), list[str]()
            if not keep:  # before any is given; who is to keep the others keeps them all the same
                jobs.require(chosen, parallelism)
            for name in chosen:
                output.note(f"{name}: submitting")
                try:
                    if anew:
                        status = await jobs.begin_anew(name, pyflink, parallelism)
                    else:
                        status = await jobs.submit(name, pyflink, parallelism, output.note)
                except HeadraceError as error:
                    if not keep:
                        raise
                    output.error(str(error))  # the others are kept all the same
                    refused += [] if anew else [name]
                else:
                    output.note(f"{name}: runs as {status.job_id}")
            if keep:
                await kept_running(keeper, chosen, pyflink, refused)

    asyncio.run(work())


async def kept_running(keeper: "Keeper", names: list[str], pyflink: "Submitter", refused: list[str]) -> None:
    """Until SIGTERM or Ctrl-C; the jobs go on."""
    stopping = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stopping.set)
    output.note("keeping them; Ctrl-C ends this, and not the jobs")
    await keeper.keep(names, pyflink, stopping, refused)


@cli.command("list")
def list_jobs(
    app: AppOption = DEFAULT_APP,
    broker: BrokerOption = None,
    flink: FlinkOption = None,
    json: output.JsonOption = False,
) -> None:
    """List the jobs: state, checkpoints, restarts and their cause. Exit code 1 unless all that are declared run, and no others.

    Example: `python -m flink_jobs list --json`
    """

    async def work() -> bool:
        async with opened(app, broker, flink) as (jobs, _):
            found = await jobs.list()
            if json:
                for one in found:
                    output.json_line(
                        {"name": one.name, "declared": one.is_declared, "job": one.job, "status": one.status}
                    )
            else:
                columns = ("job", "state", "declared", "parallelism", "checkpoint", "restarts", "id", "cause")
                output.table(columns, [_row(one, jobs.now_ms()) for one in found])
            return all(one.is_declared and one.status and one.status.state == "RUNNING" for one in found)

    if not asyncio.run(work()):
        raise typer.Exit(1)


def _row(one: "Listed", now_ms: int) -> tuple[object, ...]:
    if one.job is None:
        return (one.name, "not submitted", "yes", "", "", "", "", "")
    state = "fills itself" if one.job.holds else ""
    declared = "yes" if one.is_declared else "no more"
    if one.status is None:
        return (one.job.label, state or "unknown to the cluster", declared, one.job.parallelism, "", "", "", "")
    age_s = (now_ms - one.status.checkpoint_at_ms) / 1_000
    checkpoint = f"{age_s:,.0f} s ago, {one.status.checkpoint_took_ms:,} ms" if one.status.checkpoint_at_ms else ""
    shown = (one.status.parallelism, checkpoint, one.status.restarts, one.status.job_id, one.status.cause)
    return (one.job.label, f"{one.status.state}, {state}" if state else one.status.state, declared, *shown)


@cli.command()
def stop(
    names: NamesArgument = None,
    app: AppOption = DEFAULT_APP,
    broker: BrokerOption = None,
    flink: FlinkOption = None,
    lost: Annotated[
        bool, typer.Option("--lost", help="The cluster is gone for good: note its jobs as stopped without asking it.")
    ] = False,
) -> None:
    """Stop jobs with a savepoint each; `submit` goes on from there. All that run unless named, also those that are declared no more, or
    have ended by themselves.

    Example: `python -m flink_jobs stop raw.orders`
    """

    async def work() -> None:
        async with opened(app, broker, flink, is_asked=not lost) as (jobs, _):
            wanted = names or await jobs.standing()
            for name in wanted:
                output.line(f"{name}: stopped, {await jobs.stop(name, lost) or 'and no checkpoint of it is known'}")
            if not wanted:
                output.note("no job runs")

    asyncio.run(work())


@cli.command()
def savepoint(
    names: NamesArgument = None, app: AppOption = DEFAULT_APP, broker: BrokerOption = None, flink: FlinkOption = None
) -> None:
    """Take a savepoint of jobs that go on.

    Example: `python -m flink_jobs savepoint`
    """

    async def work() -> None:
        async with opened(app, broker, flink) as (jobs, _):
            for name in names or jobs.named([]):
                output.line(f"{name}: {await jobs.savepoint(name)}")

    asyncio.run(work())


@cli.command()
def upgrade(
    name: NameArgument,
    app: AppOption = DEFAULT_APP,
    broker: BrokerOption = None,
    flink: FlinkOption = None,
    parallelism: ParallelismOption = None,
) -> None:
    """Stop a job with a savepoint and start it from there: with another parallelism, or on another release of Flink. Where its
    declaration has changed it is submitted beside the one before it, and takes over.

    Example: `python -m flink_jobs upgrade raw.orders --parallelism 2`
    """
    from flink_jobs.child import submitter

    async def work() -> None:
        async with opened(app, broker, flink) as (jobs, _), submitter() as pyflink:
            (chosen,) = jobs.named([name])
            status = await jobs.upgrade(chosen, pyflink, parallelism)
            output.line(f"{name}: runs as {status.job_id}, parallelism {status.parallelism}")

    asyncio.run(work())


@asynccontextmanager
async def opened(
    app: str, broker: str | None, flink: str | None, *, is_asked: bool = True
) -> AsyncIterator[tuple["Jobs", "Keeper"]]:
    """The jobs of an application on its cluster. is_asked: the cluster. Raises: SetupError when one of both servers does not answer, or a
    changed declaration has no topics."""
    from app.core.clock import SystemClock
    from app.http.client import HttpClient
    from app.streams.generations import known_generations
    from flink_jobs.cluster import FlinkCluster
    from flink_jobs.compiled import compile_jobs
    from flink_jobs.generations import Generations
    from flink_jobs.keeping import Keeper
    from flink_jobs.operations import Jobs

    values, loaded = settings(broker=broker, flink=flink), load_app(app)
    cluster_of_kafka = open_cluster(values)
    try:
        async with HttpClient() as http:
            cluster = FlinkCluster(values.flink, http)
            if is_asked:
                await cluster.require()
            loaded.number(await known_generations(cluster_of_kafka))
            compiled = compile_jobs(loaded, values)
            generations = Generations(cluster, cluster_of_kafka, SystemClock(), compiled)
            yield Jobs(generations), Keeper(generations)
    finally:
        await cluster_of_kafka.close()
