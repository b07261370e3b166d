"""`features get|list`: what agents would be told of one entity now, and which views there are."""

from typing import TYPE_CHECKING, Annotated

import typer

from app.cli import output
from app.cli.loading import DEFAULT_APP, AppOption, BrokerOption, StoreOption, load_app, open_servers, settings

if TYPE_CHECKING:
    from app.application import App
    from app.core.settings import Settings
    from app.serving.base import Features, View

MISSING = 1
"""Exit code of `get` where nothing was ever materialized."""

commands = typer.Typer(no_args_is_help=True, help="The served features.")

ViewArgument = Annotated[str, typer.Argument(metavar="VIEW", help="Name of a view; `features list` has them.")]
EntityArgument = Annotated[str, typer.Argument(metavar="ENTITY", help="Whose features: the key of the source topic.")]


@commands.command("list")
def list_views(app: AppOption = DEFAULT_APP, json: output.JsonOption = False) -> None:
    """List the views: whose features, over which window, from which topic.

    Example: `python -m app features list --json`
    """
    from app.core.durations import format_duration

    rows = []
    for view in load_app(app).views.values():
        window, tile = format_duration(view.window_ms), format_duration(view.tile_ms)
        names = [field.name for field in view.fields]
        rows.append((view.name, view.key_field, window, tile, ", ".join(names), view.source_topic, view.partitions))
        if json:
            output.json_line(
                {
                    "view": view.name,
                    "entity": view.key_field,
                    "window_ms": view.window_ms,
                    "tile_ms": view.tile_ms,
                    "values": names,
                    "source": view.source_topic,
                    "topic": view.topic,
                    "partitions": view.partitions,
                    "fingerprint": view.fingerprint,
                }
            )
    if not json:
        output.table(("view", "entity", "window", "tile", "values", "source", "partitions"), rows)


@commands.command()
def get(
    view: ViewArgument,
    entity: EntityArgument,
    app: AppOption = DEFAULT_APP,
    broker: BrokerOption = None,
    store: StoreOption = None,
    json: output.JsonOption = False,
) -> None:
    """Show the features of one entity as an agent would see them now.

    fresh: complete up to at most ten seconds ago. stale: longer ago. missing: nothing of its partition was ever brought
    into the store, so the zeros mean nothing; the exit code is 1 then. The broker knows which generation of the view this is.

    Example: `python -m app features get user_features u-17`
    """
    import asyncio

    from app.core.errors import SetupError

    loaded = load_app(app)
    if view not in loaded.views:
        raise SetupError(view, f"no such view is declared; there are {', '.join(sorted(loaded.views)) or 'none'}")
    features = asyncio.run(_read(settings(broker=broker, store=store), loaded, view, entity))
    if json:
        output.json_line(features)
    else:
        _show(features, loaded.views[view])
    if features.freshness.value == "missing":
        raise typer.Exit(MISSING)


async def _read(values: "Settings", app: "App", view: str, entity: str) -> "Features":
    from app.core.clock import SystemClock
    from app.serving.features import FeatureReader
    from app.streams.generations import known_generations

    async with open_servers(values) as (broker, store):
        await store.start()
        app.number(await known_generations(broker))
        return await FeatureReader(store, SystemClock(), app.views).read(view, entity)


def _show(features: "Features", view: "View") -> None:
    from decimal import Decimal

    from app.core.durations import format_duration

    rows: list[tuple[str, str]] = [
        (name, "none" if value is None else f"${value:,.2f}" if isinstance(value, Decimal) else f"{value:,}")
        for name, value in features.values.items()
    ]
    output.table((features.view, features.entity), rows)
    window = f"over the last {format_duration(view.window_ms)}, up to one tile of {format_duration(view.tile_ms)} more"
    output.line(f"{_freshness(features)}; {window}")


def _freshness(features: "Features") -> str:
    if features.freshness.value == "missing":
        return "missing: nothing of this partition was ever materialized, the zeros mean nothing"
    if features.as_of_ms == 0:
        return "stale: nobody has said yet up to when they are complete"
    return f"{features.freshness.value}: complete up to {features.age_ms / 1000:,.1f} s ago"
