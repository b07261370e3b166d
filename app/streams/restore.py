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
from app.streams.mending import NOT_AN_ENTRY, PROGRESS, Last, gone, mend, parse_change
from app.streams.tables import Entry, PartitionState, Slices
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
    tables = {
        name: TableMark(table.fingerprint, slices.since_ms, slices.restore_position(), slices.table_position)
        for name, table in topic.tables.items()
        for slices in (state.slices[name],)
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
    topic: CompiledTopic, place: TopicPartition, committed: CommittedOffset | None, reader: Reader
) -> PartitionState:
    """The state of a partition as of its committed offset, or later where its tables are ahead of it.

    Raises: SetupError when a pipeline's declaration differs from the one that made its state, or when a topic was made
    anew under its streams.
    """
    state = topic.new_state(place)
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
    slices.table_position = slices.checked = end
    start = (await reader.beginning_offsets([slices.table]))[slices.table]
    if mark is not None:
        known = mark.tables.get(table.name)
        if known is None:  # it joins in the middle: only slices of which nothing has passed are complete
            slices.since_ms = mark.reached_ms + 1 if mark.reached_ms != NEVER_MS else NEVER_MS
            logger.info("%s joins %s: it counts slices that start after %d", table.name, state.place, mark.reached_ms)
            return
        if known.fingerprint != table.fingerprint:
            raise _changed(table, known.fingerprint)
        slices.since_ms = known.since_ms
        if known.end > end or (slices.emits_rows and known.position < start):
            needed = f"holds offsets {start} to {end}, a restore needs {known.position} to {known.end}"
            raise gone(slices.table, table.name, needed)
        start = max(start, known.position)
    newest, last = await _newest_entries(table, reader.read(slices.table, start, end))
    over_ms = state.reached_ms - state.out_of_orderness_ms
    for (slice_ms, key_text), entry in newest.items():
        if slice_ms + slices.size_ms > over_ms:
            slices.open.setdefault(slice_ms, {})[key_text] = entry
            slices.opened_at[slice_ms] = start
    slices.checked = start
    mend(state, table.name, last)  # windows that are over had their row: only their tombstones may be missing
    slices.checked = end


async def _newest_entries(
    table: TableCodec, batches: AsyncIterator[list[Record]]
) -> tuple[dict[tuple[int, str], Entry], Last]:
    """The entry of highest version of each key, and which one was written last. What somebody else wrote into the table
    is passed over, and said once."""
    newest: dict[tuple[int, str], Entry] = {}
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
            if entry is None:
                newest.pop(key, None)
            elif key not in newest or entry[0] > newest[key][0]:
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
