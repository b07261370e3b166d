"""Checks what was written against itself: the chain of each writer, and the decisions that effects say they came from.

Only hashes are kept, 32 bytes a decision of the partition that is read; the bytes are not understood beyond their links.
"""

import hashlib
from dataclasses import dataclass, field
from itertools import pairwise
from typing import NamedTuple

import msgspec

from app.broker.base import Reader
from app.core.record import Record, TopicPartition
from app.core.text import one_line
from app.decisions.record import DECISIONS, EFFECTS, decision_key, is_forgotten

DIGEST_BYTES = 32


class _Links(msgspec.Struct):
    """What of a decision, or of what stands in the place of one, is about its chain."""

    writer: str
    number: int
    previous: str
    sha256: str = ""


class _Named(msgspec.Struct):
    """The decision that an effect came from."""

    decision_offset: int
    decision_sha256: str


class _Run(NamedTuple):
    """Records of one chain that follow each other: from `first` to `last`; what the first follows, the last's hash."""

    first: int
    last: int
    previous: bytes
    digest: bytes


@dataclass
class _Chain:
    """What is known of one writer's chain: a run of records without a gap, and those that came out of order."""

    first: int
    previous: bytes
    digests: bytearray = field(default_factory=bytearray)
    waiting: dict[int, tuple[bytes, bytes]] = field(default_factory=dict)

    @property
    def next(self) -> int:
        return self.first + len(self.digests) // DIGEST_BYTES

    def known(self, number: int) -> tuple[bytes, bytes | None] | None:
        """Hash of a record that was read before, and of what it follows (None: not known any more)."""
        if self.first <= number < self.next:
            at = (number - self.first) * DIGEST_BYTES
            before = self.previous if number == self.first else bytes(self.digests[at - DIGEST_BYTES : at])
            return bytes(self.digests[at : at + DIGEST_BYTES]), before
        return self.waiting.get(number)

    def runs(self) -> list[_Run]:
        """Everything that was read, in the order of the numbers."""
        runs = [_Run(number, number, previous, digest) for number, (digest, previous) in self.waiting.items()]
        runs.append(_Run(self.first, self.next - 1, self.previous, bytes(self.digests[-DIGEST_BYTES:])))
        return sorted(runs)


class ChainCheck:
    """The chains of one partition, record by record, in the order of the log.

    A repeated record is no break (a write whose answer was lost), nor is another order in the log than that of the
    numbers (an outage), nor a missing beginning where retention has removed something. named: hash of the decision at
    an offset, as `agent.effects` has it.
    """

    def __init__(self, place: TopicPartition, beginning: int, named: dict[int, bytes]) -> None:
        self.broken: list[str] = []
        self.decisions = 0
        self.forgotten = 0
        self._place = place
        self._beginning = beginning
        self._named = {offset: digest for offset, digest in named.items() if offset >= beginning}
        self._chains: dict[str, _Chain] = {}

    @property
    def chains(self) -> int:
        return len(self._chains)

    def take(self, record: Record) -> None:
        """The next record of the partition."""
        at = f"{self._place}/{record.offset}"
        if record.value is None:
            self._say(f"{at}: a tombstone; decisions are replaced when they are forgotten, and never taken back")
            return
        try:
            links = msgspec.json.decode(record.value, type=_Links)
        except (msgspec.MsgspecError, ValueError, RecursionError) as error:
            self._say(f"{at}: is no decision: {one_line(error)}")
            return
        forgotten = is_forgotten(record)
        digest = _digest(links.sha256) if forgotten else hashlib.sha256(record.value).digest()
        self.decisions += not forgotten
        self.forgotten += forgotten
        if record.key != decision_key(links.writer, links.number):
            self._say(f"{at}: its key is not that of {links.writer} {links.number}")
        named = self._named.pop(record.offset, None)
        if named is not None and named != digest:
            self._say(f"{at}: is not the decision that its effects came from")
        self._link(links, digest, at)

    def finish(self) -> None:
        """What can be said only at the end: gaps, missing beginnings, decisions that only their effects know of."""
        for writer, chain in self._chains.items():
            runs = chain.runs()
            if runs[0].first > 0 and self._beginning == 0:
                self._say(f"{self._place}: {writer}: {_numbers(0, runs[0].first - 1)} missing")
            for before, after in pairwise(runs):
                if after.first != before.last + 1:
                    self._say(f"{self._place}: {writer}: {_numbers(before.last + 1, after.first - 1)} missing")
                elif after.previous != before.digest:
                    self._say(_unlinked(self._place, writer, after.first))
        kept = {
            bytes(chain.digests[at : at + DIGEST_BYTES])
            for chain in (self._chains.values() if self._named else ())
            for at in range(0, len(chain.digests), DIGEST_BYTES)
        }
        kept.update(digest for chain in self._chains.values() for digest, _ in chain.waiting.values())
        for offset, digest in self._named.items():
            if digest not in kept:
                self._say(f"{self._place}/{offset}: the decision that effects came from is missing")

    def _link(self, links: _Links, digest: bytes, at: str) -> None:
        writer, number, previous = links.writer, links.number, _digest(links.previous)
        if number < 0 or (number == 0) != (previous == b""):
            self._say(f"{at}: {writer} {number} follows what it cannot follow")
        chain = self._chains.get(writer)
        if chain is None:
            self._chains[writer] = _Chain(number, previous, bytearray(digest))
            return
        known = chain.known(number)
        if known is not None:
            if known[0] != digest:
                self._say(f"{at}: {writer}: two records have number {number}")
            elif known[1] != previous:
                self._say(_unlinked(self._place, writer, number))
            return
        chain.waiting[number] = digest, previous
        while chain.next in chain.waiting:
            number = chain.next
            digest, previous = chain.waiting.pop(number)
            if previous != chain.digests[-DIGEST_BYTES:]:
                self._say(_unlinked(self._place, writer, number))
            chain.digests += digest

    def _say(self, what: str) -> None:
        self.broken.append(what)


async def check_partition(reader: Reader, partition: int) -> ChainCheck:
    """Reads one partition of `agent.decisions`, and before it what `agent.effects` says of it. Raises: Unavailable, Rejected."""
    place = TopicPartition(DECISIONS, partition)
    beginning = (await reader.beginning_offsets([place]))[place]
    check = ChainCheck(place, beginning, await _named_by_effects(reader, partition))
    end = (await reader.end_offsets([place]))[place]  # later than that of the effects: theirs are all before it
    async for batch in reader.read(place, beginning, end):
        for record in batch:
            check.take(record)
    check.finish()
    return check


async def _named_by_effects(reader: Reader, partition: int) -> dict[int, bytes]:
    """The hash of each decision that is entered on `agent.effects`, by its offset."""
    place = TopicPartition(EFFECTS, partition)
    end = (await reader.end_offsets([place]))[place]
    named: dict[int, bytes] = {}
    async for batch in reader.read(place, 0, end):
        for record in batch:
            try:
                entry = msgspec.json.decode(record.value or b"", type=_Named)
            except (msgspec.MsgspecError, ValueError, RecursionError):
                continue
            named[entry.decision_offset] = _digest(entry.decision_sha256)
    return named


def _digest(text: str) -> bytes:
    """The bytes of a hash in hexadecimal; of anything else something that is no record's hash."""
    try:
        found = bytes.fromhex(text)
    except ValueError:
        found = b"?"
    return found if len(found) == DIGEST_BYTES else found[:1]


def _numbers(first: int, last: int) -> str:
    return f"record {first} is" if first == last else f"records {first} to {last} are"


def _unlinked(place: TopicPartition, writer: str, number: int) -> str:
    return f"{place}: {writer}: record {number} does not follow record {number - 1}"
