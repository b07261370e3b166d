"""How a partition's state comes back: from the commit's metadata, its tables, and the source read back by time.

A commit's metadata is exactly as old as its offset: the event time reached, and for each windowed pipeline its
declaration's fingerprint, since when it counts, and from where in its table a restore must read.
"""

import logging
from collections.abc import AsyncIterator, Mapping
from typing import NamedTuple

import msgspec

from app.broker.base import MAX_METADATA_CHARACTERS, CommittedOffset, Reader
from app.core.errors import SetupError
from app.core.record import Record, TopicPartition
from app.streams.compiled import CompiledTopic, TableCodec
from app.streams.joins import JoinTable
from app.streams.mending import NOT_AN_ENTRY, PROGRESS, Last, gone, mend, parse_change
from app.streams.tables import Entry, PartitionState, Place, Table
from app.streams.windows import NEVER_MS

logger = logging.getLogger(__name__)


class TableMark(msgspec.Struct, array_like=True):
    """What a commit says about one pipeline: fingerprint, first event time that counts, the table position from which a
    restore must read, and where the table ended."""

    fingerprint: str
    since_ms: int
    position: int
    end: int


class CommitMark(msgspec.Struct, rename={"reached_ms": "m", "tables": "t"}):
    """What a commit says about its partition."""

    reached_ms: int
    tables: dict[str, TableMark]


def mark_of(topic: CompiledTopic, state: PartitionState) -> str:
    """Metadata for a commit at `state.position`."""
    over_ms = state.reached_ms - state.out_of_orderness_ms
    tables = {
        name: TableMark(codec.fingerprint, table.since_ms, table.restore_position(over_ms), table.table_position)
        for name, codec in topic.tables.items()
        for table in (state.tables[name],)
    }
    return encode_mark(CommitMark(state.reached_ms, tables))


def require_marks_fit(topic: CompiledTopic) -> None:
    """Raises: SetupError when what a commit must say of the pipelines may grow longer than a commit can be."""
    longest = {name: TableMark(table.fingerprint, NEVER_MS, 2**62, 2**62) for name, table in topic.tables.items()}
    if len(encode_mark(CommitMark(NEVER_MS, longest))) > MAX_METADATA_CHARACTERS:
        raise SetupError(topic.source.spec.name, f"{len(longest)} windowed pipelines on one topic do not fit a commit")


def encode_mark(mark: CommitMark) -> str:
    return msgspec.json.encode(mark).decode()


def parse_mark(committed: CommittedOffset | None) -> CommitMark | None:
    """None for a partition that was never committed by these streams."""
    if committed is None or not committed.metadata:
        return None
    try:
        return msgspec.json.decode(committed.metadata, type=CommitMark)
    except msgspec.DecodeError:
        raise SetupError(
            "streams",
            f"the group's commit at {committed.offset} was written by another version of these streams: "
            f"{committed.metadata[:80]!r}; stop the workers and reset every pipeline of the topic, which "
            "`python -m app streams list` names, with: python -m app streams reset NAME",
        ) from None


async def restore(
    topics: Mapping[str, CompiledTopic],
    committed: Mapping[TopicPartition, CommittedOffset | None],
    reader: Reader,
) -> list[PartitionState]:
    """The state of one partition of a topic, or of all topics that are joined with each other, as of its committed offset, or
    later where its tables are ahead of it.

    Raises: SetupError when a pipeline's declaration differs from the one that made its state, or when a topic was made
    anew under its streams.
    """
    joins: dict[str, JoinTable] = {}
    states = {place: topics[place.topic].new_state(place, joins) for place in committed}
    written: list[_Written] = []
    for place, state in states.items():
        written += await _restore_partition(topics[place.topic], state, committed[place], reader)
    for one in written:
        one.table.checked = one.start
        mend(one.state, one.name, one.last)  # what is over had its row: only its tombstone may be missing
        one.table.checked = one.end
    for state in states.values():
        state.closing_ms = state.advance(state.reached_ms, state.position)
    return list(states.values())


class _Written(NamedTuple):
    """What was found in a table, from `start` to `end`."""

    state: PartitionState
    name: str
    table: Table
    start: int
    end: int
    last: Last


async def _restore_partition(
    topic: CompiledTopic, state: PartitionState, committed: CommittedOffset | None, reader: Reader
) -> list[_Written]:
    place, written = state.place, list[_Written]()
    mark = parse_mark(committed)
    if committed is not None:
        end = (await reader.end_offsets([place]))[place]
        if committed.offset > end:
            raise SetupError(
                str(place),
                f"ends at {end}, before the committed offset {committed.offset}: the topic was made anew; delete the "
                "streams' consumer group and their state.* and features.* topics, or give the topic another name",
            )
        if mark is None and committed.offset > 0:
            logger.warning("%s: committed without a mark, by another tool: event time and windows begin anew", place)
    if committed is not None:
        state.position = state.committed = committed.offset
    if mark is not None:
        state.reached_ms = mark.reached_ms
    for name, codec in topic.tables.items():
        written += await _restore_table(state, codec, state.tables[name], mark, reader)
    if state.memories and committed is not None and state.reached_ms != NEVER_MS:
        await _restore_memories(topic, state, reader)
    return written


async def _restore_table(
    state: PartitionState, codec: TableCodec, table: Table, mark: CommitMark | None, reader: Reader
) -> list[_Written]:
    end = (await reader.end_offsets([table.place]))[table.place]
    table.table_position = table.checked = end
    start = (await reader.beginning_offsets([table.place]))[table.place]
    over_ms = state.reached_ms - state.out_of_orderness_ms
    if mark is not None:
        known = mark.tables.get(codec.name)
        if known is None:  # it joins in the middle: only slices of which nothing has passed are complete
            table.since_ms = mark.reached_ms + 1 if mark.reached_ms != NEVER_MS else NEVER_MS
            logger.info("%s joins %s: it counts what starts after %d", codec.name, state.place, mark.reached_ms)
            table.restore({}, over_ms, end)
            return []
        if known.fingerprint != codec.fingerprint:
            raise _changed(codec, known.fingerprint)
        table.since_ms = known.since_ms
        if known.end > end or (table.emits_rows and known.position < start):
            needed = f"holds offsets {start} to {end}, a restore needs {known.position} to {known.end}"
            raise gone(table.place, codec.name, needed)
        start = max(start, known.position)
    newest, last = await _newest_entries(codec, reader.read(table.place, start, end))
    table.restore(newest, over_ms, start)
    return [_Written(state, codec.name, table, start, end, last)]


async def _newest_entries(table: TableCodec, batches: AsyncIterator[list[Record]]) -> tuple[dict[Place, Entry], Last]:
    """The entry of highest version of each key, and which one was written last. What somebody else wrote into the table
    is passed over, and said once."""
    newest: dict[Place, Entry] = {}
    last: Last = {}
    told, made_by = False, table.fingerprint
    async for records in batches:
        for record in records:
            if record.key is None:
                continue
            if record.key.startswith(PROGRESS):
                made_by = (record.header("fingerprint") or b"").decode(errors="replace")
                continue
            try:
                key, entry = parse_change(table, record)
            except NOT_AN_ENTRY as error:
                if not told:
                    told = True
                    logger.warning(
                        "%s/%d/%d: passed over: not written by %s: %s; further ones of this partition are not told",
                        *(record.topic, record.partition, record.offset, table.name, error),
                    )
                continue
            last[key] = None if entry is None else entry[0]
            # a tombstone takes nothing away: what it was meant for is over as of the commit, and it may be of somebody
            # who was frozen, behind a key that has begun anew
            if entry is not None and (key not in newest or entry[0] > newest[key][0]):
                newest[key] = entry
    if newest and made_by != table.fingerprint:
        raise _changed(table, made_by)
    return newest, last


def _changed(table: TableCodec, made_by: str) -> SetupError:
    return SetupError(
        table.name,
        f"its declaration has changed (was {made_by}, is {table.fingerprint}), its state has not; restore the "
        f"declaration, or stop the workers and type: python -m app streams reset {table.name}",
    )


async def _restore_memories(topic: CompiledTopic, state: PartitionState, reader: Reader) -> None:
    """Reads the source back by time. From the first record of that time on the partition's clock is what it was: no record
    before it had a later one."""
    from_ms = max(state.reached_ms - topic.remembered_ms, 0)
    start = (await reader.offsets_for_times({state.place: from_ms}))[state.place]
    scratch = topic.new_state(state.place)
    scratch.memories = state.memories
    async for records in reader.read(state.place, start, state.position):
        topic.process(records, scratch, 0)
        scratch.alerts.clear()
        scratch.rejected.clear()
        scratch.late.clear()
        for table in scratch.tables.values():
            table.changes()
            table.rows.clear()
            table.over.clear()
