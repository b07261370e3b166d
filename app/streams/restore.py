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
from app.streams.filling import read_back
from app.streams.joins import JoinTable
from app.streams.mending import NOT_AN_ENTRY, Last, gone, mend, parse_change
from app.streams.outputs import PROGRESS
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


class CommitMark(
    msgspec.Struct,
    rename={"reached_ms": "m", "tables": "t", "is_last": "l", "after": "a", "seen": "s"},
    omit_defaults=True,
):
    """What a commit says about its partition. is_last: its owner gave it up in order, and has written nothing of what lies behind it.
    after: where another engine had ended when these streams went on behind it, see `handover`; seen: up to where that one may have read,
    None where nobody knows."""

    reached_ms: int
    tables: dict[str, TableMark]
    is_last: bool = False
    after: int = 0
    seen: int | None = None


def mark_of(topic: CompiledTopic, state: PartitionState) -> str:
    """Metadata for a commit at `state.position`."""
    over_ms = state.reached_ms - state.out_of_orderness_ms
    tables = {
        name: TableMark(codec.fingerprint, table.since_ms, table.restore_position(over_ms), table.table_position)
        for name, codec in topic.tables.items()
        for table in (state.tables[name],)
    }
    return encode_mark(CommitMark(state.reached_ms, tables, state.is_given_up, state.after))


def require_marks_fit(topic: CompiledTopic) -> None:
    """Raises: SetupError when what a commit must say of the pipelines may grow longer than a commit can be."""
    longest = {name: TableMark(table.fingerprint, NEVER_MS, 2**62, 2**62) for name, table in topic.tables.items()}
    if len(encode_mark(CommitMark(NEVER_MS, longest, is_last=True, after=2**62))) > MAX_METADATA_CHARACTERS:
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
    later where its tables are ahead of it. A pipeline that no commit knows, or that was declared otherwise then, joins: see
    `filling`; `state.committed` is -1 then, since of what it is now nothing is committed.

    Raises: SetupError when a table holds another declaration's entries, or when a topic was made anew under its streams.
    """
    joins: dict[str, JoinTable] = {}
    states = {place: topics[place.topic].new_state(place, joins) for place in committed}
    marks = {place: await _place(state, committed[place], reader) for place, state in states.items()}
    joining = {
        name: None
        for place, mark in marks.items()
        if mark is not None
        for name, codec in topics[place.topic].tables.items()
        if name not in mark.tables or mark.tables[name].fingerprint != codec.fingerprint
    }
    written: list[_Written] = []
    for place, state in states.items():
        tables = topics[place.topic].tables
        for name in tables.keys() - joining.keys():
            written.append(await _restore_table(state, tables[name], marks[place], reader))
        for name in tables.keys() & joining.keys():
            await _join(state, tables[name], marks[place], reader)
    await read_back(topics, states, list(joining), reader)
    for state in states.values():
        for name in joining.keys() & state.tables.keys():
            table = state.tables[name]
            table.restore({}, state.reached_ms - state.out_of_orderness_ms, table.table_position)
            state.committed = -1
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


async def _place(state: PartitionState, committed: CommittedOffset | None, reader: Reader) -> CommitMark | None:
    """Puts a state where its commit says; returns the commit's mark."""
    if committed is None:
        return None
    end = (await reader.end_offsets([state.place]))[state.place]
    if committed.offset > end:
        raise SetupError(
            str(state.place),
            f"ends at {end}, before the committed offset {committed.offset}: the topic was made anew; delete the "
            "streams' consumer group and their state.* and features.* topics, or give the topic another name",
        )
    mark = parse_mark(committed)
    if mark is None and committed.offset > 0:
        logger.warning("%s: committed without a mark, by another tool: event time and windows begin anew", state.place)
    state.position = state.committed = committed.offset
    if mark is not None:
        state.reached_ms, state.after = mark.reached_ms, mark.after
    return mark


async def _join(state: PartitionState, codec: TableCodec, mark: CommitMark | None, reader: Reader) -> None:
    """Puts a pipeline behind what has passed: of that only slices that begin later are its to count, where it is not filled.
    An owner who has crashed may have given rows of what lies behind its commit, but of no window that begins later still."""
    table = state.tables[codec.name]
    table.table_position = table.checked = end = (await reader.end_offsets([table.place]))[table.place]
    start = (await reader.beginning_offsets([table.place]))[table.place]
    await _newest_entries(codec, reader.read(table.place, start, end))  # none, or its own of an earlier time
    passed_ms = state.reached_ms
    if table.emits_rows and mark is not None and not mark.is_last:
        end = (await reader.end_offsets([state.place]))[state.place] if mark.seen is None else mark.seen
        async for records in reader.read(state.place, state.position, end):
            passed_ms = max(passed_ms, *(record.timestamp_ms for record in records))
    table.since_ms = passed_ms + 1 if passed_ms != NEVER_MS else NEVER_MS


async def _restore_table(state: PartitionState, codec: TableCodec, mark: CommitMark | None, reader: Reader) -> _Written:
    table = state.tables[codec.name]
    end = (await reader.end_offsets([table.place]))[table.place]
    table.table_position = table.checked = end
    start = (await reader.beginning_offsets([table.place]))[table.place]
    if mark is not None:
        known = mark.tables[codec.name]
        table.since_ms = known.since_ms
        if known.end > end or (table.emits_rows and known.position < start):
            needed = f"holds offsets {start} to {end}, a restore needs {known.position} to {known.end}"
            raise gone(table.place, codec.name, needed)
        start = max(start, known.position)
    newest, last = await _newest_entries(codec, reader.read(table.place, start, end))
    table.restore(newest, state.reached_ms - state.out_of_orderness_ms, start)
    return _Written(state, codec.name, table, start, end, last)


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
        f"its declaration has changed (was {made_by}, is {table.fingerprint}), its table {table.topic} has not; make one of "
        "its own: python -m app topics create",
    )
