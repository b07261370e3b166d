"""A bounded run: reads what the sources hold now, once, and closes everything at the end.

For questions about the past and for checks. It joins no group, keeps no table and commits nothing: run again, it
writes the same rows again.
"""

from collections.abc import AsyncIterator

import msgspec

from app.broker.base import Broker, Producer
from app.core.clock import Clock
from app.core.errors import SetupError, Unavailable
from app.core.record import TopicPartition
from app.streams.compiled import CompiledTopic
from app.streams.engine import compile_all, run_batch
from app.streams.pipelines import FinalPipeline
from app.streams.rows import closed_rows
from app.streams.tables import FOREVER_MS, PartitionState


class BoundedRun(msgspec.Struct):
    """What a bounded run has read and written so far."""

    events: int = 0
    malformed: int = 0
    late: int = 0
    rows: int = 0


async def run_bounded(
    broker: Broker, name: str, pipeline: FinalPipeline, topic: str, clock: Clock
) -> AsyncIterator[BoundedRun]:
    """Writes the final rows of `pipeline` to `topic`, up to the end offsets at the start; yields progress per batch.

    Bad and late records are counted, not written anywhere: the streams that run always have done so.
    Raises: SetupError when the output has too few partitions; Unavailable.
    """
    source = pipeline.stream.source
    compiled = compile_all([], {name: pipeline})[source.spec.name]
    reader, producer = broker.reader(), broker.producer()
    places = [TopicPartition(source.spec.name, partition) for partition in range(source.spec.partitions)]
    progress = BoundedRun()
    await producer.start()
    try:
        await _require_partitions(broker, source.spec.name, topic, len(places))
        starts, ends = await reader.beginning_offsets(places), await reader.end_offsets(places)
        for place in places:
            state = compiled.new_state(place)
            async for records in reader.read(place, starts[place], ends[place]):
                run_batch(compiled, state, records, clock.now_ms())
                progress.events += len(records)
                progress.malformed += len(state.rejected)
                progress.late += len(state.late)
                for kept in (state.rejected, state.late, state.alerts):
                    kept.clear()
                for table in state.tables.values():
                    table.changes()
                progress.rows += await _write(compiled, state, topic, producer)
                yield progress
            state.advance(FOREVER_MS, ends[place])
            progress.rows += await _write(compiled, state, topic, producer)
        failures = await producer.flush()
        if failures:
            raise Unavailable(f"{topic}: {len(failures)} rows were not taken, first: {failures[0].error}")
        yield progress
    finally:
        await producer.close()
        await reader.close()


async def _require_partitions(broker: Broker, source: str, topic: str, partitions: int) -> None:
    admin = broker.admin()
    try:
        described = await admin.describe([source, topic])
    finally:
        await admin.close()
    read, found = described[source], described[topic]
    if read is None:
        raise SetupError(source, "does not exist; create it with: python -m app topics create")
    if read.partitions != partitions:
        raise SetupError(source, f"has {read.partitions} partitions, {partitions} are declared")
    if found is None:
        raise SetupError("--to", f"{topic} does not exist; create it with: python -m app topics create")
    if found.partitions < partitions:
        raise SetupError("--to", f"{topic} has {found.partitions} partitions, its source has {partitions}")


async def _write(compiled: CompiledTopic, state: PartitionState, topic: str, producer: Producer) -> int:
    written = 0
    for rows in closed_rows(compiled, state, 0).rows.values():
        written += await producer.send_many(topic, rows, state.place.partition)
    for table in state.tables.values():
        table.passed(FOREVER_MS)
    return written
