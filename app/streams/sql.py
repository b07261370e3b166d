"""Graph to Flink SQL: the pipelines that share topics become one job. Pure text, printed by
`python -m app streams show NAME --sql`.

A topic is a table; what happens to its records is a chain of views: *valid* (the gate, heartbeats among them), *timed* (with
`$reached`, the largest event time of the partition so far), *once*, then for each pipeline what *passed* its steps and
what of that is on time. State is kept a partition and key, as the asyncio engine keeps it. Fields have their names,
everything else begins with `$`; times are BIGINT milliseconds, money BIGINT cents until it is written.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from app.core.errors import SetupError
from app.streams.pipelines import Pipeline, streams_of
from app.streams.sql_inserts import Insert, insert_of, late_insert
from app.streams.sql_job import CONFIGURATION, Job, Settings, declared
from app.streams.sql_views import Views

__all__ = ["Job", "Settings", "compile_job", "jobs_of"]


def jobs_of(pipelines: Mapping[str, Pipeline]) -> dict[str, dict[str, Pipeline]]:
    """The pipelines of each job: those that read a topic in common, directly or by way of others. A job's name is that of
    its topics."""
    groups: list[tuple[set[str], dict[str, Pipeline]]] = []
    for name, pipeline in pipelines.items():
        topics, members = {stream.source.spec.name for stream in streams_of(pipeline)}, {name: pipeline}
        for group in [group for group in groups if group[0] & topics]:
            groups.remove(group)
            topics, members = topics | group[0], group[1] | members
        groups.append((topics, members))
    return {"+".join(sorted(topics)): members for topics, members in groups}


def compile_job(name: str, pipelines: Mapping[str, Pipeline], settings: Settings) -> Job:
    """One job of pipelines that share topics; the same in whichever order they are declared, since Flink finds state again by the places
    of operators in the text.

    Raises: SetupError for what Flink would do differently; it names the pipeline, and says what to do instead.
    """
    pipelines = dict(sorted(pipelines.items()))
    views, compiled = Views(pipelines), list[Insert]()
    for pipeline_name, pipeline in pipelines.items():
        with _named(pipeline_name):
            compiled.append(insert_of(pipeline_name, pipeline, views, settings))
    compiled += [late_insert(source, views, settings) for source in views.sources if views.late[source.spec.name]]
    tables = []
    for source in views.sources:
        with _named(source.spec.name):
            tables.append(views.table(source, settings))
    tables += [insert.table for insert in compiled]
    return Job(
        name=name,
        configuration={**CONFIGURATION, "parallelism.default": str(settings.parallelism), "pipeline.name": name},
        functions=declared([*tables, *views.texts.values(), *(insert.text for insert in compiled)]),
        tables=tuple(tables),
        views=tuple(views.texts.values()),
        inserts=tuple(insert.text for insert in compiled),
    )


@contextmanager
def _named(name: str) -> Iterator[None]:
    """Says of what is refused whose it is."""
    try:
        yield
    except SetupError as error:
        raise SetupError(name, str(error)) from None
