"""Dead letters published again: original bytes, key, time and headers, each letter once.

Notes in the dead-letter topic itself say which: one before a letter is published, with the end of the partition that it
goes to, and one after, whether it went or was refused. Where a replay broke off in between, the next one looks there for
the record that names the letter. So nothing is lost or repeated, as long as one replay of a topic runs at a time.
"""

import asyncio
from collections.abc import AsyncIterator, Callable
from enum import Enum
from typing import NamedTuple, Protocol

from app.broker.base import Broker, Confirmation, Producer, Reader
from app.broker.dead_letters import PUBLISHED, REPLAY_OF, REPLAYS, Letter, letter_of, noted_offset
from app.broker.topics import partition_of
from app.core.errors import RecordError, SetupError
from app.core.record import Headers, Record, TopicPartition

REPLAYED_FROM = "replayed_from"
"""Header of a record that was published again: where its letter lies."""

BATCH = 500


class Fate(Enum):
    """What becomes of a letter, in words that fit one and many."""

    REPLAYED = "replayed"
    WAITING = "to be replayed"
    BEFORE = "replayed before"
    REPEATED = "about the same record as another letter"
    COUNTED = "counted already: in its own topic it would count twice"
    CUT = "cut: the whole record is not here"
    NO_RECORD = "never in the topic"
    NO_LETTER = "no letter of ours"
    UNREADABLE = "nothing that the topic's readers can read: it would fail again"
    FORGOTTEN = "forgotten since: it must not come back"
    REFUSED = "refused by the topic"


class Outcome(NamedTuple):
    """A letter and its fate. place: of the new record, for people. detail: why it was refused."""

    letter: Letter
    fate: Fate
    place: str | None = None
    detail: str = ""


class Bar(Protocol):
    """What those who read a topic have against letters that would come back."""

    async def look(self) -> None:
        """Learns what there is now, before letters are judged. Raises: Unavailable, Rejected."""

    def against(self, letter: Letter) -> Fate | None:
        """The fate of a whole letter that must not be published; None where nothing is against it."""


class _Note(NamedTuple):
    """Where a replay was about to publish a letter, and what came of it: `begun`, `published` or `refused`."""

    target: TopicPartition
    end: int
    state: str


_Original = tuple[str, int, int]
"""Where the record of a letter was; several groups, or one after a crash, may have written letters about it."""


class DeadReplay:
    """Replays one dead-letter topic. dead, target: names; both exist. again: also what was replayed before. bar: None
    where every whole letter may go."""

    def __init__(
        self,
        broker: Broker,
        dead: str,
        target: str,
        chosen: Callable[[Letter], bool],
        *,
        again: bool = False,
        bar: Bar | None = None,
    ) -> None:
        self._broker = broker
        self._dead = dead
        self._target = target
        self._chosen = chosen
        self._again = again
        self._bar = bar
        self._reader: Reader = broker.reader()
        self._producer: Producer = broker.producer()
        self._partitions: dict[str, int] = {}
        self._notes: dict[tuple[int, int], _Note] = {}
        self._arrived: set[bytes] = set()  # names of letters
        self._letters_of: dict[_Original, list[tuple[int, int]]] = {}
        self._newest: dict[_Original, tuple[int, int]] = {}

    async def survey(self) -> AsyncIterator[Outcome]:
        """What would become of each chosen letter; writes nothing. Raises: SetupError, Unavailable, Rejected."""
        await self._look()
        async for letter in self._letters():
            fate = self._fate(letter)
            yield Outcome(letter, fate)

    async def run(self) -> AsyncIterator[Outcome]:
        """Publishes; yields the fate of each chosen letter. Left or cancelled in between, what was published is found
        by the next replay. Raises: as `survey`."""
        await self._producer.start()
        await self._look()
        batch: list[Letter] = []
        async for letter in self._letters():
            fate = self._fate(letter)
            if fate is not Fate.WAITING:
                yield Outcome(letter, fate)
                continue
            batch.append(letter)
            if len(batch) == BATCH:
                for outcome in await self._publish(batch):
                    yield outcome
                batch.clear()
        for outcome in await self._publish(batch):
            yield outcome

    async def close(self) -> None:
        await self._producer.close()
        await self._reader.close()

    async def _look(self) -> None:
        """Learns the notes, and which letter of each record is the newest: not the letters themselves, of which there
        may be many."""
        self._partitions = await self._partitions_of({self._dead, self._target})
        for name, partitions in self._partitions.items():
            if not partitions:
                raise SetupError(name, "does not exist; create it with: python -m app topics create")
        if self._bar is not None:
            await self._bar.look()
        async for record in self._records():
            offset = noted_offset(record)
            if offset is not None:
                known = self._notes.get((record.partition, offset))
                if known is None or known.state != PUBLISHED:
                    self._notes[record.partition, offset] = _note(record)
                continue
            letter = letter_of(record)
            if letter.is_ours and letter.offset >= 0:
                self._letters_of.setdefault(_original(letter), []).append(letter.lies_at[1:])
                if self._chosen(letter):
                    self._newest[_original(letter)] = letter.lies_at[1:]
        if not self._again:
            await self._look_for_arrived()

    async def _records(self) -> AsyncIterator[Record]:
        places = [TopicPartition(self._dead, partition) for partition in range(self._partitions[self._dead])]
        ends = await self._reader.end_offsets(places)
        for place in places:
            async for records in self._reader.read(place, 0, ends[place]):
                for record in records:
                    yield record

    async def _letters(self) -> AsyncIterator[Letter]:
        async for record in self._records():
            if noted_offset(record) is None:
                letter = letter_of(record)
                if self._chosen(letter):
                    yield letter

    def _fate(self, letter: Letter) -> Fate:
        if not letter.is_ours:
            return Fate.NO_LETTER
        if letter.offset < 0:
            return Fate.NO_RECORD
        if self._newest.get(_original(letter), letter.lies_at[1:]) != letter.lies_at[1:]:
            return Fate.REPEATED
        if not letter.is_whole:
            return Fate.CUT
        if letter.is_counted and letter.topic == self._target:
            return Fate.COUNTED
        if not self._again:
            for place in self._letters_of.get(_original(letter), ()):
                note = self._notes.get(place)
                if note is not None and (note.state == PUBLISHED or _name((self._dead, *place)) in self._arrived):
                    return Fate.BEFORE
        against = None if self._bar is None else self._bar.against(letter)
        return against or Fate.WAITING

    async def _look_for_arrived(self) -> None:
        """Learns which chosen letters a replay that broke off has published without a note of it. In a topic that is gone,
        or that was made anew with fewer partitions, nothing has arrived."""
        first: dict[TopicPartition, int] = {}
        for original in self._newest:
            for place in self._letters_of[original]:
                note = self._notes.get(place)
                if note is not None and note.state == "begun":
                    first[note.target] = min(note.end, first.get(note.target, note.end))
        if not first:
            return
        partitions = await self._partitions_of({target.topic for target in first})
        there = [target for target in first if target.partition < partitions[target.topic]]
        ends = await self._reader.end_offsets(there)
        for target in there:
            async for records in self._reader.read(target, first[target], ends[target]):
                self._arrived.update(name for record in records if (name := record.header(REPLAYED_FROM)))

    async def _partitions_of(self, topics: set[str]) -> dict[str, int]:
        """How many partitions each topic has; none where it does not exist."""
        admin = self._broker.admin()
        try:
            described = await admin.describe(sorted(topics))
        finally:
            await admin.close()
        return {name: found.partitions if found is not None else 0 for name, found in described.items()}

    async def _publish(self, letters: list[Letter]) -> list[Outcome]:
        targets = {letter.lies_at: TopicPartition(self._target, self._partition(letter)) for letter in letters}
        ends = await self._reader.end_offsets(set(targets.values())) if letters else {}
        for failure in await asyncio.gather(
            *(self._say(letter, "begun", targets[letter.lies_at], ends[targets[letter.lies_at]]) for letter in letters),
            return_exceptions=True,
        ):
            if failure is not None:
                raise failure
        answers = await asyncio.gather(
            *(self._write(letter, targets[letter.lies_at].partition) for letter in letters), return_exceptions=True
        )
        outcomes, failures = [], []
        for letter, answer in zip(letters, answers, strict=True):
            if isinstance(answer, Confirmation):
                await self._say(letter, PUBLISHED, TopicPartition(self._target, answer.partition), answer.offset)
                outcomes.append(Outcome(letter, Fate.REPLAYED, answer.place_in(self._target)))
            elif isinstance(answer, RecordError):
                target = targets[letter.lies_at]
                await self._say(letter, "refused", target, ends[target])
                outcomes.append(Outcome(letter, Fate.REFUSED, detail=answer.reason))
            else:
                failures.append(answer)
        if failures:
            raise failures[0]
        return outcomes

    async def _write(self, letter: Letter, partition: int) -> Confirmation:
        kept = tuple(header for header in letter.headers if header[0] not in (REPLAYED_FROM, REPLAYS))
        headers: Headers = (*kept, (REPLAYED_FROM, _name(letter.lies_at)), (REPLAYS, b"%d" % (letter.replays + 1)))
        return await self._producer.confirm(
            self._target,
            letter.value,
            letter.key,
            partition=partition,
            timestamp_ms=max(letter.timestamp_ms, 0),
            headers=headers,
        )

    async def _say(self, letter: Letter, state: str, target: TopicPartition, offset: int) -> None:
        headers: Headers = (
            (REPLAY_OF, b"%d" % letter.lies_at[2]),
            ("state", state.encode()),
            ("topic", target.topic.encode()),
            ("partition", b"%d" % target.partition),
            ("offset", b"%d" % offset),
        )
        await self._producer.confirm(self._dead, None, None, partition=letter.lies_at[1], headers=headers)

    def _partition(self, letter: Letter) -> int:
        """Its own number in its own topic, which decisions are looked for by; elsewhere by its key."""
        partitions = self._partitions[self._target]
        if self._target == letter.topic and letter.partition < partitions:
            return letter.partition
        return letter.partition % partitions if letter.key is None else partition_of(letter.key, partitions)


def _note(record: Record) -> _Note:
    """Raises: SetupError for a note that no replay wrote."""
    texts = {name: text.decode(errors="replace") for name, text in record.headers}
    try:
        target = TopicPartition(texts["topic"], int(texts["partition"]))
        return _Note(target, int(texts["offset"]), texts["state"])
    except (KeyError, ValueError):
        place = f"{record.topic}/{record.partition}/{record.offset}"
        raise SetupError(place, f"has a header {REPLAY_OF}, and is no note of a replay; who wrote it?") from None


def _original(letter: Letter) -> _Original:
    return letter.topic, letter.partition, letter.offset


def _name(place: tuple[str, int, int]) -> bytes:
    return "/".join(map(str, place)).encode()
