"""How a partition's state comes back: from the commit's metadata, its tables, and the source read back by time.

A commit's metadata is exactly as old as its offset: the event time reached, and for each windowed pipeline its
declaration's fingerprint, since when it counts, and from where in its table a restore must read.
"""

import logging
from collections.abc import AsyncIterator

import msgspec

from app.broker.base import MAX_METADATA_CHARACTERS, CommittedOffset, Reader
from app.core.errors import SetupError
from app.core.record import Record, TopicPartition
from app.streams.compiled import CompiledTopic, TableCodec
from app.streams.gate import DECODE_ERRORS
from app.streams.tables import ClosedSlice, Entry, PartitionState, Slices
from app.streams.windows import NEVER_MS

logger = logging.getLogger(__name__)


class TableMark(msgspec.Struct, array_like=True):
    """What a commit says about one pipeline: fingerprint, first event time that counts, table position."""

    fingerprint: str
    since_ms: int
    position: int


class CommitMark(msgspec.Struct, rename={"reached_ms": "m", "tables": "t"}):
    """What a commit says about its partition."""

    reached_ms: int
    tables: dict[str, TableMark]


def mark_of(topic: CompiledTopic, state: PartitionState) -> str:
    """Metadata for a commit at `state.position`."""
    tables = {
        name: TableMark(table.fingerprint, state.slices[name].since_ms, state.slices[name].restore_position())
        for name, table in topic.tables.items()
    }
    text = encode_mark(CommitMark(state.reached_ms, tables))
    if len(text) > MAX_METADATA_CHARACTERS:
        raise SetupError(state.place.topic, f"{len(tables)} windowed pipelines on one topic do not fit a commit")
    return text


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
            "streams", f"the group's committed metadata is not ours: {committed.metadata[:80]!r}; use another name"
        ) from None


async def restore(
    topic: CompiledTopic, place: TopicPartition, committed: CommittedOffset | None, reader: Reader
) -> PartitionState:
    """The state of a partition as of its committed offset, or later where its tables are ahead of it.

    Raises: SetupError when a pipeline's declaration differs from the one that made its state.
    """
    state = topic.new_state(place)
    mark = parse_mark(committed)
    if committed is not None:
        state.position = state.committed = committed.offset
    if mark is not None:
        state.reached_ms = mark.reached_ms
    for name, table in topic.tables.items():
        await _restore_table(state, table, state.slices[name], mark, reader)
    if state.once and committed is not None and state.reached_ms != NEVER_MS:
        await _restore_once(topic, state, reader)
    state.closing_ms = state.advance(state.reached_ms, state.position)
    return state


async def _restore_table(
    state: PartitionState, table: TableCodec, slices: Slices, mark: CommitMark | None, reader: Reader
) -> None:
    end = (await reader.end_offsets([slices.table]))[slices.table]
    slices.table_position = end
    start = (await reader.beginning_offsets([slices.table]))[slices.table]
    if mark is not None:
        known = mark.tables.get(table.name)
        if known is None:  # it joins in the middle: only slices of which nothing has passed are complete
            slices.since_ms = mark.reached_ms + 1 if mark.reached_ms != NEVER_MS else NEVER_MS
            return
        if known.fingerprint != table.fingerprint:
            raise SetupError(
                table.name,
                f"its declaration has changed (was {known.fingerprint}, is {table.fingerprint}), its state has not; "
                f"restore the declaration, or stop the workers and type: python -m app streams reset {table.name}",
            )
        slices.since_ms = known.since_ms
        start = max(start, known.position)
    newest = await _newest_entries(table, reader.read(slices.table, start, end))
    over_ms = state.reached_ms - state.out_of_orderness_ms
    for (slice_ms, key_text), entry in newest.items():
        if slice_ms + slices.size_ms > over_ms:
            slices.open.setdefault(slice_ms, {})[key_text] = entry
            slices.opened_at[slice_ms] = start
        elif slices.emits_rows:  # its row is out, only its tombstone was not: see tables.ClosedSlice
            slices.closed.append(ClosedSlice(-1, slice_ms, {key_text: entry}, start))


async def _newest_entries(table: TableCodec, batches: AsyncIterator[list[Record]]) -> dict[tuple[int, str], Entry]:
    """The entry of highest version of each key. What somebody else wrote into the table is passed over, and said once."""
    newest: dict[tuple[int, str], Entry] = {}
    told = False
    async for records in batches:
        for record in records:
            if record.key is None or record.key.startswith(b'{"progress":'):
                continue
            try:
                key = table.parse_key(record.key)
                entry = None if record.value is None else table.parse_value(record.value)
            except (*DECODE_ERRORS, ValueError) as error:
                if not told:
                    told = True
                    logger.warning(
                        "%s/%d/%d: passed over: not written by %s: %s; further ones of this partition are not told",
                        *(record.topic, record.partition, record.offset, table.name, error),
                    )
                continue
            if entry is None:
                newest.pop(key, None)
            elif key not in newest or entry[0] > newest[key][0]:
                newest[key] = entry
    return newest


async def _restore_once(topic: CompiledTopic, state: PartitionState, reader: Reader) -> None:
    """Reads the source back by time: `once` keeps no table."""
    longest_ms = max(memory.within_ms for memory in state.once.values())
    from_ms = max(state.reached_ms - longest_ms, 0)
    start = (await reader.offsets_for_times({state.place: from_ms}))[state.place]
    scratch = topic.new_state(state.place)
    scratch.once = state.once
    async for records in reader.read(state.place, start, state.position):
        topic.process(records, scratch, 0)
        scratch.alerts.clear()
        scratch.rejected.clear()
        scratch.late.clear()
        for slices in scratch.slices.values():
            slices.changed.clear()
    for memory in state.once.values():
        memory.repeats = 0
