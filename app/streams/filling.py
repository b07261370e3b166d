"""The source read back by time: for what streams remember without a table, and for what a pipeline would hold had it always
been there.

A pipeline that comes to a topic which was read before is filled, so that its features are whole at once and pairs across its
beginning are found. Nothing of it goes out: what it would have said belongs to the time before it. Windows that have a final
row are not filled, since one that was open belongs to nobody: the old declaration has not seen its end.

From the first record of a time on the partition's clock is what it was: no record before it had a later one.
"""

import logging
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from app.broker.base import Reader
from app.core.record import TopicPartition
from app.streams.compiled import CompiledTopic
from app.streams.joins import JoinSide
from app.streams.pipelines import FinalPipeline, streams_of
from app.streams.read_backs import read_back_ms
from app.streams.tables import PartitionState, Table
from app.streams.windows import NEVER_MS

logger = logging.getLogger(__name__)

Topics = Mapping[str, CompiledTopic]


class _Fill(NamedTuple):
    """since_ms: what a table must hold begins there. start: the source offset from which that can be read."""

    since_ms: int
    start: int


async def read_back(
    topics: Topics, states: Mapping[TopicPartition, PartitionState], joining: Sequence[str], reader: Reader
) -> None:
    """Fills memories, and the tables of the pipelines that join, of one partition of topics that are read together. Where a
    topic no longer holds what a pipeline needs, it joins in the middle. Raises: Unavailable."""
    fills: dict[TopicPartition, dict[str, _Fill]] = {place: {} for place in states}
    for name in joining:
        found = await _fills(topics, states, name, reader)
        for place, fill in found.items():
            states[place].tables[name].since_ms = fill.since_ms
            fills[place][name] = fill
        if not found:
            logger.info("%s joins %s in the middle: it counts what begins from now on", name, sorted(states))
    for place, state in states.items():
        await _read_back(topics[place.topic], state, fills[place], reader)


async def _fills(
    topics: Topics, states: Mapping[TopicPartition, PartitionState], name: str, reader: Reader
) -> dict[TopicPartition, _Fill]:
    """Where the filling of a pipeline begins in each partition that it reads; empty where it cannot be filled."""
    fills = {}
    for place, since_ms in _needs(topics, states, name).items():
        topic, state = topics[place.topic], states[place]
        from_ms = max(since_ms - topic.remembered_by(name), 0)
        start = (await reader.offsets_for_times({place: from_ms}))[place]
        beginning = (await reader.beginning_offsets([place]))[place]
        if state.reached_ms != NEVER_MS and start == beginning > 0:
            return {}  # what lay before it may be gone
        fills[place] = _Fill(since_ms, start)
    return fills


def _needs(topics: Topics, states: Mapping[TopicPartition, PartitionState], name: str) -> dict[TopicPartition, int]:
    """From which event time on the pipeline's table must be whole, by partition; empty for windows with a final row."""
    pipeline = next(topics[place.topic].pipelines[name] for place in states if name in topics[place.topic].pipelines)
    if isinstance(pipeline, FinalPipeline):
        return {}
    topics_read = {stream.source.spec.name for stream in streams_of(pipeline)}
    places = [place for place in states if place.topic in topics_read]
    reached_ms = min(states[place].reached_ms for place in places)
    return dict.fromkeys(places, max(reached_ms - read_back_ms(pipeline, is_changed=True), NEVER_MS))


async def _read_back(topic: CompiledTopic, state: PartitionState, fills: Mapping[str, _Fill], reader: Reader) -> None:
    starts = [fill.start for fill in fills.values()]
    if state.memories and state.reached_ms != NEVER_MS:
        from_ms = max(state.reached_ms - topic.remembered_ms, 0)
        starts.append((await reader.offsets_for_times({state.place: from_ms}))[state.place])
    if not starts:
        return
    filled = {name: state.tables[name] for name in fills}
    past = topic.new_state(state.place)
    past.memories = state.memories
    _let_belong(filled, past)
    async for records in reader.read(state.place, min(starts), state.position):
        past.tables = topic.new_state(state.place).tables | filled  # the others hold nothing longer than a batch
        topic.process(records, past, 0)
        past.position = records[-1].offset + 1
        for said in (past.alerts, past.rejected, past.late):
            said.clear()
        for table in filled.values():
            table.rows.clear()
    _let_belong(filled, state)


def _let_belong(tables: Mapping[str, Table], state: PartitionState) -> None:
    """Joins go by the clock of the partition that they belong to."""
    for table in tables.values():
        if isinstance(table, JoinSide):
            table.part = state
            table.table.forget_closed()
