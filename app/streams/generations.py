"""Generations: what a declaration's tables are called, so that a changed one begins beside the one before it.

`streams.generations` is a log, kept for ever: {"table":"features.user_features","fingerprint":"…"}, a record for each declaration that
ever got its topics. The n-th different fingerprint of a table is its generation n. The first one has the plain name, later ones
their number behind it: `features.user_features.2`. `topics create` writes the log; everybody else reads it.
"""

from collections.abc import Mapping
from dataclasses import replace

import msgspec

from app.broker.base import Broker
from app.broker.topics import TopicSpec
from app.core.codec import encode
from app.core.errors import SetupError
from app.core.record import TopicPartition
from app.streams.pipelines import AlertPipeline, Pipeline, fingerprint, table_of

TOPIC = TopicSpec(name="streams.generations", partitions=1, retention_ms=None)
PLACE = TopicPartition(TOPIC.name, 0)

Known = Mapping[str, list[str]]
"""By the plain name of a table the fingerprints of its generations, in order."""


class _Generation(msgspec.Struct):
    table: str
    fingerprint: str


async def known_generations(broker: Broker) -> Known:
    """As of now; nothing where the log is not there. Raises: Unavailable, Rejected; SetupError for what is no such log."""
    admin, reader = broker.admin(), broker.reader()
    known: dict[str, list[str]] = {}
    try:
        if (await admin.describe([TOPIC.name]))[TOPIC.name] is None:
            return known
        start = (await reader.beginning_offsets([PLACE]))[PLACE]
        end = (await reader.end_offsets([PLACE]))[PLACE]
        async for records in reader.read(PLACE, start, end):
            for record in records:
                found = msgspec.json.decode(record.value or b"", type=_Generation)
                generations = known.setdefault(found.table, [])
                if found.fingerprint not in generations:  # two may have added it at the same time
                    generations.append(found.fingerprint)
    except msgspec.DecodeError as error:
        raise SetupError(
            TOPIC.name, f"holds what these streams did not write ({error}); give it back its records"
        ) from None
    finally:
        await admin.close()
        await reader.close()
    return known


async def add_generations(broker: Broker, pipelines: Mapping[str, Pipeline]) -> Known:
    """Makes the log where it is missing, adds the declarations that are new, and returns all that are known then.

    On cancellation some may have been added, which harms nothing. Raises: as `known_generations`.
    """
    if not any(_first_table(name, pipeline) for name, pipeline in pipelines.items()):
        return {}
    admin, producer = broker.admin(), broker.producer()
    try:
        await admin.create([TOPIC])
        known = await known_generations(broker)
        await producer.start()
        for name, pipeline in pipelines.items():
            table, made_by = _first_table(name, pipeline), fingerprint(pipeline)
            if table is not None and made_by not in known.get(table, ()):
                await producer.confirm(TOPIC.name, encode(_Generation(table, made_by)), table.encode(), partition=0)
    finally:
        await producer.close()
        await admin.close()
    return await known_generations(broker)


def numbered(pipelines: Mapping[str, Pipeline], known: Known) -> dict[str, Pipeline]:
    """The pipelines as the generations that they are. A table of which nothing is known is in its first one.

    Raises: SetupError for a declaration that has no topics yet, beside others that have.
    """
    return {name: _numbered(name, pipeline, known) for name, pipeline in pipelines.items()}


def others(pipelines: Mapping[str, Pipeline], known: Known) -> list[tuple[str, Pipeline]]:
    """The same pipelines as the generations that they are not, by name: what only their tables are right of."""
    found: list[tuple[str, Pipeline]] = []
    for name, pipeline in pipelines.items():
        table = _first_table(name, pipeline)
        if table is not None and not isinstance(pipeline, AlertPipeline):
            made_by = fingerprint(pipeline)
            found += [
                (name, replace(pipeline, generation=number))
                for number, other in enumerate(known.get(table, ()), start=1)
                if other != made_by
            ]
    return found


def _numbered(name: str, pipeline: Pipeline, known: Known) -> Pipeline:
    table = _first_table(name, pipeline)
    if table is None or table not in known or isinstance(pipeline, AlertPipeline):
        return pipeline
    made_by = fingerprint(pipeline)
    if made_by not in known[table]:
        raise SetupError(
            name, "its declaration has changed, and has no topics yet; make them: python -m app topics create"
        )
    return replace(pipeline, generation=known[table].index(made_by) + 1)


def _first_table(name: str, pipeline: Pipeline) -> str | None:
    return None if isinstance(pipeline, AlertPipeline) else table_of(name, replace(pipeline, generation=1))
