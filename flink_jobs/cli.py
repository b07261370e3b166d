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
    from flink_jobs.operations import Jobs

cli = typer.Typer(
    name="flink_jobs",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    context_settings={"help_option_names": ["-h", "--help"]},
)

NamesArgument = Annotated[list[str] | None, typer.Argument(metavar="[NAME]...", help="Jobs; all unless given.")]
NameArgument = Annotated[str, typer.Argument(metavar="NAME", help="A job; `list` has them.")]
FlinkOption = Annotated[
    str | None,
    typer.Option("--flink", metavar="ADDRESS", help="Job manager. [default: HEADRACE_FLINK, or port 8081 here]"),
]
ParallelismOption = Annotated[int, typer.Option("--parallelism", min=1, help="Tasks of each kind, side by side.")]


@cli.callback()
def root(
    context: typer.Context,
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks of errors.")] = False,
) -> None:
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
    parallelism: ParallelismOption = 1,
) -> None:
    """Print what jobs are made of, as Flink's SQL client takes it. Needs no PyFlink and no cluster.

    Example: `python -m flink_jobs sql raw.orders`
    """
    from flink_jobs.compiled import compile_jobs

    compiled = compile_jobs(load_app(app), settings(broker=broker), parallelism, shown=True)
    for name in compiled.named(names or []):
        for line in compiled.job(name).text().splitlines():
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
    parallelism: ParallelismOption = 1,
) -> None:
    """Give jobs to the cluster, each from its last checkpoint or savepoint, and wait until they run. One that runs is left alone.

    Examples: `python -m flink_jobs submit`; as a service: `python -m flink_jobs submit --keep`
    """
    from flink_jobs.child import submitter

    async def work() -> None:
        async with opened(app, broker, flink, parallelism) as jobs, submitter() as pyflink:
            chosen = jobs.named(names or [])
            for name in chosen:
                output.note(f"{name}: submitting")
                try:
                    status = await (jobs.begin_anew if anew else jobs.submit)(name, pyflink)
                except HeadraceError as error:
                    if not keep:
                        raise
                    output.error(str(error))  # the others are kept all the same
                else:
                    output.note(f"{name}: runs as {status.job_id}")
            if keep:
                await kept_running(jobs, chosen, pyflink)

    asyncio.run(work())


async def kept_running(jobs: "Jobs", names: list[str], pyflink: "Submitter") -> None:
    """Until SIGTERM or Ctrl-C; the jobs go on."""
    stopping = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stopping.set)
    output.note("keeping them; Ctrl-C ends this, and not the jobs")
    await jobs.keep(names, pyflink, stopping)


@cli.command("list")
def list_jobs(
    app: AppOption = DEFAULT_APP,
    broker: BrokerOption = None,
    flink: FlinkOption = None,
    json: output.JsonOption = False,
) -> None:
    """List the jobs: state, checkpoints, restarts and their cause. Exit code 1 unless all run.

    Example: `python -m flink_jobs list --json`
    """

    async def work() -> bool:
        async with opened(app, broker, flink, 1) as jobs:
            rows: list[tuple[object, ...]] = []
            found = await jobs.list()
            for name, status in found.items():
                if json:
                    output.json_line({"name": name, "status": status})
                elif status is None:
                    rows.append((name, "not submitted", "", "", "", "", ""))
                else:
                    age_s = (jobs.now_ms() - status.checkpoint_at_ms) / 1_000
                    checkpoint = (
                        f"{age_s:,.0f} s ago, {status.checkpoint_took_ms:,} ms" if status.checkpoint_at_ms else ""
                    )
                    shown = (status.parallelism, checkpoint, status.restarts, status.job_id, status.cause)
                    rows.append((name, status.state, *shown))
            if not json:
                output.table(("job", "state", "parallelism", "checkpoint", "restarts", "id", "cause"), rows)
            return all(status is not None and status.state == "RUNNING" for status in found.values())

    if not asyncio.run(work()):
        raise typer.Exit(1)


@cli.command()
def stop(
    names: NamesArgument = None, app: AppOption = DEFAULT_APP, broker: BrokerOption = None, flink: FlinkOption = None
) -> None:
    """Stop jobs with a savepoint each; `submit` goes on from there.

    Example: `python -m flink_jobs stop raw.orders`
    """

    async def work() -> None:
        async with opened(app, broker, flink, 1) as jobs:
            for name in jobs.named(names or []):
                output.line(f"{name}: stopped, {await jobs.stop(name)}")

    asyncio.run(work())


@cli.command()
def savepoint(
    names: NamesArgument = None, app: AppOption = DEFAULT_APP, broker: BrokerOption = None, flink: FlinkOption = None
) -> None:
    """Take a savepoint of jobs that go on.

    Example: `python -m flink_jobs savepoint`
    """

    async def work() -> None:
        async with opened(app, broker, flink, 1) as jobs:
            for name in jobs.named(names or []):
                output.line(f"{name}: {await jobs.savepoint(name)}")

    asyncio.run(work())


@cli.command()
def upgrade(
    name: NameArgument,
    app: AppOption = DEFAULT_APP,
    broker: BrokerOption = None,
    flink: FlinkOption = None,
    parallelism: ParallelismOption = 1,
) -> None:
    """Stop a job with a savepoint and start it from there: with another parallelism, or on another release of Flink.

    Example: `python -m flink_jobs upgrade raw.orders --parallelism 2`
    """
    from flink_jobs.child import submitter

    async def work() -> None:
        async with opened(app, broker, flink, parallelism) as jobs, submitter() as pyflink:
            (chosen,) = jobs.named([name])
            status = await jobs.upgrade(chosen, pyflink)
            output.line(f"{name}: runs as {status.job_id}, parallelism {status.parallelism}")

    asyncio.run(work())


@asynccontextmanager
async def opened(app: str, broker: str | None, flink: str | None, parallelism: int) -> AsyncIterator["Jobs"]:
    """The jobs of an application on its cluster. Raises: SetupError when one of both servers does not answer."""
    from app.core.clock import SystemClock
    from app.http.client import HttpClient
    from flink_jobs.cluster import FlinkCluster
    from flink_jobs.compiled import compile_jobs
    from flink_jobs.kept import KeptJobs
    from flink_jobs.operations import Jobs

    values = settings(broker=broker, flink=flink)
    compiled = compile_jobs(load_app(app), values, parallelism)
    cluster_of_kafka = open_cluster(values)
    try:
        async with HttpClient() as http:
            cluster, kept = FlinkCluster(values.flink, http), KeptJobs(cluster_of_kafka)
            await cluster.require()
            await kept.start()
            yield Jobs(cluster, kept, SystemClock(), compiled)
    finally:
        await cluster_of_kafka.close()
