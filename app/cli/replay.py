"""`python -m app replay`: a file of events into a topic, in the order of their event times."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from app.cli import output
from app.cli.loading import DEFAULT_APP, AppOption, BrokerOption, load_app, open_cluster, settings

if TYPE_CHECKING:
    from app.sources.replay import ReplayOrder, ReplayReport


def replay(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="CSV, NDJSON (both also gzipped) or Parquet.")],
    topic: Annotated[str, typer.Option("--topic", help="Where the events go, such as `raw.orders`.")],
    map_: Annotated[
        list[str] | None,
        typer.Option(
            "--map",
            metavar="FIELD=COLUMN",
            help="The column that feeds a field of the record; a field of the same name needs none. Repeatable.",
        ),
    ] = None,
    constant: Annotated[
        list[str] | None,
        typer.Option("--constant", metavar="FIELD=VALUE", help="One value for all records. Repeatable."),
    ] = None,
    timezone: Annotated[
        str | None,
        typer.Option("--timezone", metavar="ZONE", help="Of dates and times that name none, such as `Europe/Berlin`."),
    ] = None,
    id_: Annotated[
        str | None,
        typer.Option(
            "--id", metavar="FIELD", help="The field that gets file name and line as its id, such as `order_id`."
        ),
    ] = None,
    app: AppOption = DEFAULT_APP,
    broker: BrokerOption = None,
    json: output.JsonOption = False,
) -> None:
    """Publish a file of events, oldest first.

    Event times may be ISO-8601, dates or whole milliseconds since 1970. Rows that are no valid record go to
    `<topic>.dead` with their line number. Data older than the topic keeps is refused.

    Example: `python -m app replay orders.csv --topic raw.orders --map user_id=customer_id --map timestamp=date
    --constant status=placed --id order_id --timezone UTC`
    """
    from app.sources.replay import ReplayOrder

    order = ReplayOrder(
        file=file,
        topic=topic,
        columns=pairs("--map", "FIELD=COLUMN", map_ or []),
        constants=pairs("--constant", "FIELD=VALUE", constant or []),
        timezone=timezone,
        id_field=id_,
    )
    report = run(order, app, broker)
    if json:
        output.json_line(report)
        return
    output.line(f"{report.published:,} of {report.rows:,} rows of {report.file} published to {report.topic}")
    if report.dead:
        output.note(f"{report.dead:,} went to {report.topic}.dead; see: python -m app dead list {report.topic}")


def pairs(option: str, form: str, given: list[str]) -> dict[str, str]:
    """`["a=b"]` -> `{"a": "b"}`. Raises: SetupError for anything else, and for a name given twice."""
    from app.core.errors import SetupError

    found: dict[str, str] = {}
    for text in given:
        name, separator, value = text.partition("=")
        if not separator or not name:
            raise SetupError(f"{option} {text}", f"is not of the form {form}")
        if name in found:
            raise SetupError(f"{option} {text}", f"{name} is given twice")
        found[name] = value
    return found


def run(order: "ReplayOrder", app_name: str, broker_address: str | None) -> "ReplayReport":
    """Replays, with a progress bar on stderr where that is a terminal."""
    import asyncio

    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bars

    from app.core.clock import SystemClock
    from app.sources.replay import Progress
    from app.sources.replay import replay as replay_file

    topics = load_app(app_name).topics
    values = settings(broker=broker_address)
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    bars = Bars(*columns, console=console, transient=True, disable=not console.is_terminal)

    async def replay_all() -> "ReplayReport":
        clock = SystemClock()
        broker = open_cluster(values)
        bar = bars.add_task("", total=None)

        def show(progress: Progress) -> None:
            description = f"{progress.phase} {order.file.name}"
            bars.update(bar, description=description, completed=progress.done, total=progress.total or None)

        try:
            return await replay_file(order, broker, topics, clock, show)
        finally:
            await broker.close()

    with bars:
        return asyncio.run(replay_all())
