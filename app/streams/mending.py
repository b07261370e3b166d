"""What somebody else wrote into a table behind its owner's newer values: found, and the owner's written again.

A worker that was frozen sends what it had queued when it wakes: values of its time, behind those of the owner after it.
No restore is deceived, since it takes the highest version; but compaction keeps the last value of a key, once
`min.compaction.lag.ms` is over. So the owner writes its own again long before that. What lies behind the tombstone of
a closed window gets another tombstone.

Only who still owns the partition may do so, or two would write against each other for ever: so an owner commits, which
proves it, before it mends.

A table's end tells whether there is anything to look for: an owner knows how many records it has written since it read
the table back. Only where there are more is its tail read.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field

from app.broker.base import Reader
from app.core.errors import SetupError, Unavailable
from app.core.record import Record, TopicPartition
from app.streams.compiled import TableCodec
from app.streams.gate import DECODE_ERRORS
from app.streams.outputs import PROGRESS as PROGRESS
from app.streams.tables import Entry, Over, PartitionState, Place

logger = logging.getLogger(__name__)

NOT_AN_ENTRY = (*DECODE_ERRORS, ValueError)
"""What `parse_change` raises."""

Last = dict[Place, int | None]
"""The version that was written last, by slice and key; None for a tombstone."""


@dataclass(slots=True)
class Tail:
    """Records of one table from where it was last checked to `end`. foreign: so many of them were not written here."""

    table: TableCodec
    state: PartitionState
    end: int
    foreign: int
    last: Last = field(default_factory=dict)


async def read_tails(tails: Sequence[Tail], reader: Reader) -> list[Tail]:
    """Reads what was written last; returns the tails that could be read: the others are found again by the next check."""
    done = []
    for tail in tails:
        table = tail.state.tables[tail.table.name]
        try:
            async for records in reader.read(table.place, table.checked, tail.end):
                for record in records:
                    if record.key is None or record.key.startswith(PROGRESS):
                        continue
                    try:
                        key, entry = parse_change(tail.table, record)
                    except NOT_AN_ENTRY:  # a restore names it
                        continue
                    tail.last[key] = None if entry is None else entry[0]
        except Unavailable as error:
            logger.warning("%s: not checked for values of others, later: %s", table.place, error)
        else:
            done.append(tail)
    return done


def mend_tail(tail: Tail) -> int:
    """Mends what a tail shows, and notes that the table is checked up to its end. Returns as `mend`."""
    table = tail.state.tables[tail.table.name]
    mended = mend(tail.state, tail.table.name, tail.last)
    table.table_position += tail.foreign
    table.checked = tail.end
    return mended


def mend(state: PartitionState, name: str, last: Last) -> int:
    """Marks every open entry as changed behind which an older one was written, so that it goes out with the next commit;
    windows that are over get their tombstone once more. Returns how many entries were overwritten.

    last: of the records from `checked` on.
    """
    table, mended = state.tables[name], 0
    over_ms = state.reached_ms - state.out_of_orderness_ms
    for place, version in last.items():
        entry = table.entry(place)
        if entry is not None:
            if entry[0] > (-1 if version is None else version):
                mended += 1
                table.rewrite(place)
        elif version is not None and table.is_over(place, over_ms):
            table.over.append(Over(state.position - 1, [place], table.checked))
    return mended


def gone(place: TopicPartition, name: str, what: str) -> SetupError:
    """A table holds less than was written there: its topic was made anew, or retention has removed records."""
    return SetupError(
        place.topic,
        f"partition {place.partition} {what}: state is gone; stop the workers and type: python -m app streams reset {name}",
    )


def parse_change(table: TableCodec, record: Record) -> tuple[Place, Entry | None]:
    """What a record of a table says: slice and key, and the entry; None for a tombstone. Raises: one of `NOT_AN_ENTRY`."""
    assert record.key is not None
    return table.parse_key(record.key), None if record.value is None else table.parse_value(record.value)
