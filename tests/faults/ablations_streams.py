"""Safeguards of the streams taken out of a worker, one at a time; and the seam that freezes it where that does most harm."""

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Callable
from typing import Any

import msgspec

from app.core.record import Record
from app.streams import engine, restore
from app.streams.compiled import CompiledTopic, TableCodec
from app.streams.engine import Engine
from app.streams.mending import PROGRESS, Last, parse_change
from app.streams.restore import CommitMark
from app.streams.tables import Entry, PartitionState, Place
from app.streams.windows import NEVER_MS

BETWEEN_S = 0.4
"""How long outputs follow their commit, or a commit follows what it is to allow: so that many a kill comes in between."""


def offsets_before_outputs() -> None:
    """Commits first, and sends what the committed records gave afterwards."""
    send: Any = Engine._send_outputs
    commit: Any = Engine._commit

    async def hold(self: Engine, state: PartitionState) -> None:
        """Outputs wait in the state."""

    async def commit_first(self: Engine, commits: Any) -> None:
        await commit(self, commits)
        await asyncio.sleep(BETWEEN_S)
        for state in list(self._states.values()):
            await send(self, state)

    Engine._send_outputs = hold  # type: ignore[method-assign]
    Engine._commit = commit_first  # type: ignore[method-assign]


def time_not_in_commits() -> None:
    """A restart begins without the event time that its partition had reached."""
    mark_of = restore.mark_of

    def without_time(topic: CompiledTopic, state: PartitionState) -> str:
        mark = msgspec.json.decode(mark_of(topic, state), type=CommitMark)
        return msgspec.json.encode(CommitMark(NEVER_MS, mark.tables)).decode()

    engine.mark_of = without_time  # type: ignore[attr-defined]


def closed_windows_forgotten_at_once() -> None:
    """Frees a window's entries when its rows are out, and not when a commit has passed them; a restore finds them compacted
    away (that it reads entries in front of a tombstone protects until then)."""
    send: Any = Engine._send_outputs
    commit: Any = Engine._commit

    async def send_and_forget(self: Engine, state: PartitionState) -> None:
        await send(self, state)
        committed, state.committed = state.committed, state.position + 1
        await self._send_tombstones(state)
        state.committed = committed

    async def commit_later(self: Engine, commits: Any) -> None:
        await asyncio.sleep(BETWEEN_S)
        await commit(self, commits)

    Engine._send_outputs = send_and_forget  # type: ignore[method-assign]
    Engine._commit = commit_later  # type: ignore[method-assign]
    _restore_what_compaction_leaves(lambda entry, before: entry[0] > before[0])


def last_written_value_counts() -> None:
    """A restore takes the last value of a key, whoever wrote it."""
    _restore_what_compaction_leaves(lambda entry, before: True)


def _restore_what_compaction_leaves(counts: Callable[[Entry, Entry], bool]) -> None:
    """A restore takes away what a tombstone names. counts: whether an entry takes the place of one that was written before."""

    async def entries(table: TableCodec, batches: AsyncIterator[list[Record]]) -> tuple[dict[Place, Entry], Last]:
        newest: dict[Place, Entry] = {}
        last: Last = {}
        async for records in batches:
            for record in records:
                if record.key is None or record.key.startswith(PROGRESS):
                    continue
                key, entry = parse_change(table, record)
                last[key] = None if entry is None else entry[0]
                if entry is None:
                    newest.pop(key, None)
                elif key not in newest or counts(entry, newest[key]):
                    newest[key] = entry
        return newest, last

    restore._newest_entries = entries


def freezes_at_table_writes() -> None:
    """No safeguard: told by SIGUSR1, the worker stops itself when its next table changes are queued and not yet sent."""
    send: Any = Engine._send_changes
    flush: Any = Engine._flush
    told = queued = False

    def tell(number: int, _: object) -> None:
        nonlocal told
        told = number == signal.SIGUSR1  # once it goes on, it is not to freeze again

    async def note_changes(self: Engine, table: TableCodec, state: PartitionState) -> None:
        nonlocal queued
        kept: Any = state.tables[table.name]
        queued = queued or (table.row is not None and bool(kept.changed))
        await send(self, table, state)

    async def freeze_and_flush(self: Engine) -> None:
        nonlocal told, queued
        if told and queued:
            told = False
            os.kill(os.getpid(), signal.SIGSTOP)
        queued = False
        await flush(self)

    signal.signal(signal.SIGUSR1, tell)
    signal.signal(signal.SIGCONT, tell)
    Engine._send_changes = note_changes  # type: ignore[method-assign]
    Engine._flush = freeze_and_flush  # type: ignore[method-assign]
