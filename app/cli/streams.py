"""`streams list|show|run|reset|prune`: what is computed, how, and runs of one pipeline."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated

import typer

from app.cli import output
from app.cli.loading import (
    DEFAULT_APP,
    AppOption,
    BrokerOption,
    StoreOption,
    load_app,
    open_cluster,
    open_servers,
    settings,
)

if TYPE_CHECKING:
    from app.application import App
    from app.core.settings import Settings
    from app.streams.compiled import CompiledTopic
    from app.streams.pipelines import FinalPipeline, Pipeline

commands = typer.Typer(no_args_is_help=True, help="The declared streams.")

NameArgument = Annotated[str, typer.Argument(metavar="NAME", help="Name of a pipeline; `streams list` has them.")]


@commands.command("list")
def list_streams(app: AppOption = DEFAULT_APP, json: output.JsonOption = False) -> None:
    """List the pipelines: source, what they make, where it goes.

    Example: `python -m app streams list --json`
    """
    from app.streams.pipelines import fingerprint, kind_of_pipeline, sources_of

    rows = []
    for name, pipeline in load_app(app).pipelines.items():
        source = ", ".join(sources_of([pipeline]))
        rows.append((name, kind_of_pipeline(pipeline), source, pipeline.topic, fingerprint(pipeline)))
        if json:
            output.json_line(dict(zip(("name", "kind", "source", "topic", "fingerprint"), rows[-1], strict=True)))
    if not json:
        output.table(("name", "kind", "source", "topic", "fingerprint"), rows)


@commands.command()
def show(
    name: NameArgument,
    app: AppOption = DEFAULT_APP,
    python: Annotated[bool, typer.Option("--python", help="Print the Python that the asyncio engine runs.")] = False,
    sql: Annotated[bool, typer.Option("--sql", help="Print the Flink job that it is part of.")] = False,
) -> None:
    """Show one pipeline: its steps, its state, the Python or the Flink SQL that runs it.

    Example: `python -m app streams show user_features --python`
    """
    from app.streams.pipelines import fingerprint, sources_of

    loaded = load_app(app)
    pipeline = named(loaded, name)
    if python:
        for topic in sources_of([pipeline]):
            for text in compiled(loaded, topic).text.splitlines():
                output.line(text)
        return
    if sql:
        for text in flink_job(loaded, pipeline).splitlines():
            output.line(text)
        return
    for number, step in enumerate(str(pipeline).split(" -> ")):
        output.line(f"{'   ' * min(number, 1)}{'-> ' if number else ''}{step}")
    output.line(f"fingerprint {fingerprint(pipeline)}")
    for line in remembered(pipeline):
        output.line(line)


def remembered(pipeline: "Pipeline") -> Iterator[str]:
    """What it keeps in memory and in no table, so that a start reads the source back for it."""
    from app.core.durations import format_duration
    from app.streams.pipelines import AlertPipeline, streams_of

    for rule in {stream.once_rule: None for stream in streams_of(pipeline) if stream.once_rule}:
        yield (
            f"memory of once: each {rule.field} of the last {format_duration(rule.within_ms)} of event time, up to twice "
            f"that, about 200 bytes each: at 1,000 events/s {rule.within_ms:,} to {2 * rule.within_ms:,} ids"
        )
    if isinstance(pipeline, AlertPipeline):
        key, lateness_ms = pipeline.stream.source.key, pipeline.stream.source.out_of_orderness_ms
        if pipeline.burst is not None:
            kept_ms = pipeline.burst.within_ms + lateness_ms
            yield (
                f"memory of burst: {pipeline.burst.count} times of each {key} of the last {format_duration(kept_ms)}, up to twice "
                f"that, about {250 + 40 * pipeline.burst.count} bytes each"
            )
        if pipeline.raised.per_ms is not None:
            kept_ms = pipeline.raised.per_ms + lateness_ms
            yield (
                f"memory of at_most_once_per: one time of each {key} that raised one in the last {format_duration(kept_ms)}, up "
                "to twice that, about 200 bytes each"
            )


@commands.command()
def run(
    name: NameArgument,
    bounded: Annotated[
        bool, typer.Option("--bounded", help="Read what is there now, close every window, end.")
    ] = False,
    to: Annotated[
        str | None, typer.Option("--to", metavar="TOPIC", help="Output topic. [default: NAME.bounded]")
    ] = None,
    app: AppOption = DEFAULT_APP,
    broker: BrokerOption = None,
    json: output.JsonOption = False,
) -> None:
    """Run one pipeline over what its topic holds now, into a topic of its own.

    Streams that run always are a worker's: `python -m app worker --only streams`.

    Example: `python -m app streams run order_rate --bounded --to order_rate.checked`
    """
    import asyncio

    from app.core.errors import SetupError
    from app.streams.pipelines import FinalPipeline, raised_by

    if not bounded:
        raise SetupError("streams run", "say --bounded; to run streams always: python -m app worker --only streams")
    loaded = load_app(app)
    pipeline = named(loaded, name)
    if not isinstance(pipeline, FinalPipeline) or raised_by(pipeline) is not None:
        raise SetupError(name, "only windows whose final rows go to a topic have a bounded run")
    target = to or f"{name}.bounded"
    if any(target == spec.name for spec in loaded.topics.all()):
        raise SetupError("--to", f"{target} is a topic of the application; a bounded run writes into one of its own")
    asyncio.run(_run(name, pipeline, target, settings(broker=broker), json))


async def _run(name: str, pipeline: "FinalPipeline", to: str, values: "Settings", json: bool) -> None:
    from app.broker.topics import TopicSpec
    from app.core.clock import SystemClock
    from app.streams.bounded import BoundedRun, run_bounded

    clock = SystemClock()
    opened = open_cluster(values)
    try:
        admin = opened.admin()
        await admin.create([TopicSpec(name=to, partitions=pipeline.stream.source.spec.partitions)])
        await admin.close()
        progress = BoundedRun()
        with output.counter(f"{name}: events read") as count:
            async for progress in run_bounded(opened, name, pipeline, to, clock):
                count(progress.events)
    finally:
        await opened.close()
    if json:
        output.json_line(
            {
                "name": name,
                "topic": to,
                "events": progress.events,
                "rows": progress.rows,
                "malformed": progress.malformed,
                "late": progress.late,
            }
        )
    else:
        output.line(
            f"{progress.events:,} events read, {progress.rows:,} rows written to {to}; "
            f"{progress.malformed:,} malformed, {progress.late:,} late"
        )


@commands.command()
def reset(
    name: NameArgument, app: AppOption = DEFAULT_APP, broker: BrokerOption = None, store: StoreOption = None
) -> None:
    """Forget the state of a pipeline, such as one whose table is damaged or gone; it begins anew. Views and joins are filled from
    the source, windows with a final row count from the next whole one.

    A served view is forgotten in the feature store too. Stop all workers first. Alerts, other pipelines and committed
    offsets stay as they are.

    Example: `python -m app streams reset order_rate`
    """
    import asyncio

    from app.core.errors import SetupError
    from app.streams.pipelines import AlertPipeline

    loaded = load_app(app)
    pipeline = named(loaded, name)
    if isinstance(pipeline, AlertPipeline):
        raise SetupError(name, "raises alerts and keeps no state; there is nothing to forget")
    partitions = asyncio.run(_reset(loaded, pipeline, settings(broker=broker, store=store)))
    output.note(f"{name}: forgotten in {partitions} partitions; it joins anew when a worker starts")


async def _reset(app: "App", pipeline: "Pipeline", values: "Settings") -> int:
    from app.application import STREAMS_GROUP
    from app.streams.engine import compile_all
    from app.streams.generations import known_generations
    from app.streams.pipelines import LivePipeline, sources_of
    from app.streams.reset import empty
    from app.streams.reset import reset as reset_pipeline

    name = next(name for name, declared in app.pipelines.items() if declared is pipeline)
    async with open_servers(values) as (broker, store):
        app.number(await known_generations(broker))
        if isinstance(pipeline, LivePipeline):
            await store.start()  # first: a store that is away must not leave half of it done
        topics = compile_all(list(app.sources.values()), app.pipelines)
        read = [topics[topic] for topic in sources_of([pipeline])]
        partitions = await reset_pipeline(broker, STREAMS_GROUP, read, name, sorted(app.sources))
        await empty(broker, app.topics.named(read[0].tables[name].topic))
        if isinstance(pipeline, LivePipeline):
            await store.clear(app.views[pipeline.view])
        return partitions


@commands.command()
def prune(
    app: AppOption = DEFAULT_APP,
    broker: BrokerOption = None,
    store: StoreOption = None,
    json: output.JsonOption = False,
) -> None:
    """Delete what declarations of before have left: tables and features of every other generation than the declared one.

    Only when no worker and no job of another version runs any more. A declaration that comes back later begins anew.

    Example: `python -m app streams prune`
    """
    import asyncio

    deleted = asyncio.run(_prune(load_app(app), settings(broker=broker, store=store)))
    for topic in deleted:
        output.json_line({"deleted": topic}) if json else output.line(f"{topic}: deleted")
    if not deleted:
        output.note("nothing is left of other generations")


async def _prune(app: "App", values: "Settings") -> list[str]:
    """The topics that are gone."""
    from app.serving.base import view_of
    from app.streams.generations import known_generations, others
    from app.streams.pipelines import LivePipeline, table_of

    async with open_servers(values) as (broker, store):
        admin = broker.admin()
        try:
            known, there = await known_generations(broker), set(await admin.list())
            app.number(known)  # which refuses a declaration that has no topics yet: nothing would be left of any
            await store.start()
            deleted = []
            for name, pipeline in others(app.pipelines, known):
                topic = table_of(name, pipeline)
                if topic in there:
                    await admin.delete([topic])
                    deleted.append(topic)
                if isinstance(pipeline, LivePipeline):
                    await store.clear(view_of(pipeline, pipeline.stream.source.spec.partitions, ""))
            return deleted
        finally:
            await admin.close()


def named(app: "App", name: str) -> "Pipeline":
    """The pipeline of that name, or the one that serves the view of that name. Raises: SetupError listing them."""
    from app.core.errors import SetupError
    from app.streams.pipelines import LivePipeline

    views = {pipeline.view: pipeline for pipeline in app.pipelines.values() if isinstance(pipeline, LivePipeline)}
    found = app.pipelines.get(name) or views.get(name)
    if found is None:
        raise SetupError(name, f"no pipeline is called that; there are {', '.join(app.pipelines)}")
    return found


def compiled(app: "App", topic: str) -> "CompiledTopic":
    from app.streams.engine import compile_all

    return compile_all(list(app.sources.values()), app.pipelines)[topic]


def flink_job(app: "App", pipeline: "Pipeline") -> str:
    """The text of the Flink job that a pipeline is part of, without what is secret."""
    from app.application import FLINK_GROUP
    from app.streams.sql import Settings, compile_job, jobs_of

    servers = settings().broker.rpartition("://")[2]
    jobs = jobs_of(app.pipelines)
    name = next(name for name, members in jobs.items() if any(member is pipeline for member in members.values()))
    return compile_job(name, jobs[name], Settings(servers, group=FLINK_GROUP)).text()
