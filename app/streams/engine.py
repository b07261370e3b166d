"""The asyncio engine: reads the source topics, runs the compiled pipelines, keeps their tables, commits.

A commit, about once a second, has an order, and everything waits for its turn: outputs acknowledged, then table changes
acknowledged, then source offsets committed with the marks of `restore`. Tombstones of windows that a commit has passed
go out with the next one. So a crash at any point repeats outputs under the same ids and changes no result.
"""

import asyncio
import contextlib
import logging
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import anyio
import msgspec

from app.broker.base import Assignment, Broker, CommittedOffset, Consumer, Producer
from app.broker.dead_letters import COUNTED, DeadLetter, dead_letter, said
from app.core.clock import Clock
from app.core.durations import format_duration
from app.core.errors import Fenced, HeadraceError, RecordTooLarge, SetupError, Unavailable, cause_of
from app.core.notices import Notices
from app.core.record import Headers, Record, TopicPartition
from app.streams.compiled import CompiledTopic, TableCodec, joined_topics, load_topic
from app.streams.handover import begins_at
from app.streams.mending import Tail, gone, mend_tail, read_tails
from app.streams.outputs import late_reference, progress_record
from app.streams.pipelines import Pipeline, Source, reads, sources_of
from app.streams.restore import mark_of, require_marks_fit, restore
from app.streams.rows import closed_rows
from app.streams.tables import PartitionState
from app.streams.windows import NEVER_MS

logger = logging.getLogger(__name__)

COMMIT_INTERVAL_S = 1.0
LAST_COMMIT_S, CLOSE_S = 8.0, 4.0
"""The last commit and the end of three clients: together within the grace that a platform gives."""
ENDS_S = 1.0
CHECK_S = 60.0
"""Between looks for what others wrote into the tables: one question for all of them. Far within the compaction lag."""
POLL_RECORDS = 1_000
POLL_TIMEOUT_MS = 100


class EngineStatistics(msgspec.Struct):
    """Counts since the start of this engine, over all partitions."""

    events: int = 0
    malformed: int = 0
    alerts: int = 0
    rows: int = 0
    gone: int = 0  # records that the broker deleted before they were read
    mended: int = 0  # values of tables written again: somebody else's older one lay behind
    late: dict[str, int] = msgspec.field(default_factory=dict)


class _Commit(NamedTuple):
    """One partition's commit: nothing of it changes any more, while the state goes on. tails: may be mended once it has
    shown that the partition is still ours."""

    state: PartitionState
    assignment: Assignment
    offset: CommittedOffset
    tails: Sequence[Tail]


class Engine:
    """Runs pipelines as one member of a consumer group. One `run` an object. handed: see `handover`. said_by: the group that dead
    letters name as the one that refuses the record; its own unless given."""

    def __init__(
        self,
        broker: Broker,
        sources: Sequence[Source],
        pipelines: Mapping[str, Pipeline],
        clock: Clock,
        group: str,
        handed: Mapping[TopicPartition, CommittedOffset] = {},
        said_by: str = "",
    ) -> None:
        self.statistics = EngineStatistics()
        self._broker = broker
        self._clock = clock
        self._said_by = said_by or group
        self._handed = handed
        self._topics = compile_all(sources, pipelines)
        self._joined = joined_topics(self._topics)
        self._states: dict[TopicPartition, PartitionState] = {}
        self._assignments: dict[TopicPartition, Assignment] = {}
        self._producer: Producer = broker.producer()
        self._reader = broker.reader()
        self._consumer: Consumer = broker.consumer(group, sorted(self._topics), self)
        self._next_commit_s = asyncio.get_running_loop().time() + COMMIT_INTERVAL_S
        self._committing: asyncio.Task[None] | None = None
        self._next_check_s = asyncio.get_running_loop().time() + CHECK_S
        self._looking: asyncio.Task[list[Tail]] | None = None
        self._counted = asyncio.Event()
        """No question for the ends of the tables is out: the tables may be written."""
        self._counted.set()
        self._ours: list[Tail] = []
        """Found, and of partitions that were ours after that."""
        self._notices = Notices(logger, logging.INFO)

    @property
    def places(self) -> list[TopicPartition]:
        """The partitions that are its own now."""
        return list(self._states)

    async def run(self, stopping: asyncio.Event) -> None:
        """Until `stopping` is set; then commits and leaves the group.

        On cancellation nothing more is committed. Raises: SetupError for a changed declaration, Unavailable.
        """
        await self._producer.start()
        try:
            await self._consumer.start()
            async with asyncio.TaskGroup() as tasks:
                watching = tasks.create_task(self._watch_ends())
                while not stopping.is_set():
                    await self._step(tasks)
                watching.cancel()
                if self._looking is not None:
                    self._looking.cancel()
                    self._looking = None
                    self._counted.set()  # it may not even have begun
            await self._commit_last()
        except BaseExceptionGroup as group:
            raise cause_of(group) from None
        finally:
            self._states.clear()  # so that leaving the group now commits nothing
            self._committing = self._looking = None
            await self._leave()

    async def _commit_last(self) -> None:
        """Leaves the group, which commits what is still held."""
        try:
            async with asyncio.timeout(LAST_COMMIT_S):
                await self._consumer.close()
        except TimeoutError:
            raise Unavailable(f"{self._broker.address}: no last commit within {LAST_COMMIT_S:.0f} s") from None

    async def _leave(self) -> None:
        """Closes every client, whatever becomes of the others."""
        for close in (self._consumer.close, self._producer.close, self._reader.close):
            with anyio.move_on_after(CLOSE_S, shield=True):
                try:
                    await close()
                except HeadraceError as error:
                    logger.warning("streams: while closing: %s", error)

    async def _step(self, tasks: asyncio.TaskGroup) -> None:
        records = await self._consumer.poll(POLL_RECORDS, POLL_TIMEOUT_MS)
        touched = self._process(records)
        for state in touched:
            await self._send_outputs(state)
        # Caught up: a change is served at once; behind: with the commit.
        if self._lag(touched) < POLL_RECORDS and self._counted.is_set():
            for state in touched:
                await self._send_tiles(state)
                if not state.progress_told:  # or a new view would seem stale until the first commit
                    await self._send_progress(state)
        if asyncio.get_running_loop().time() >= self._next_commit_s:
            commit = await self._write_tables(list(self._states.values()))
            is_idle = self._looking is None and not any(one.tails for one in commit)
            if is_idle and asyncio.get_running_loop().time() >= self._next_check_s:
                self._counted.clear()
                self._looking = tasks.create_task(self._look_for_tails())
                self._next_check_s = asyncio.get_running_loop().time() + CHECK_S
            self._committing = tasks.create_task(self._commit(commit))  # the streams go on while the broker answers
            self._next_commit_s = asyncio.get_running_loop().time() + COMMIT_INTERVAL_S

    def _lag(self, states: Sequence[PartitionState]) -> int:
        """Records that wait in these partitions, as of the last fetch."""
        return sum(max(0, self._consumer.known_end_offset(state.place) - state.position) for state in states)

    def _process(self, records: Sequence[Record]) -> list[PartitionState]:
        now_ms = self._clock.now_ms()
        batches: dict[TopicPartition, list[Record]] = {}
        for record in records:
            place = TopicPartition(record.topic, record.partition)
            if place in batches:
                batches[place].append(record)
            else:
                batches[place] = [record]
        touched = []
        for place, batch in batches.items():
            state = self._states.get(place)
            if state is None:  # fetched before it had to wait, and read again later
                continue
            run_batch(self._topics[place.topic], state, batch, now_ms)
            self.statistics.events += len(batch)
            touched.append(state)
        return touched

    async def _send(
        self, topic: str, key: bytes | None, value: bytes | None, partition: int = -1, headers: Headers = ()
    ) -> None:
        if not self._producer.try_send(topic, value, key, partition=partition, headers=headers):
            await self._producer.send(topic, value, key, partition=partition, headers=headers)

    async def _send_outputs(self, state: PartitionState) -> None:
        """Alerts, rows of closed windows, late references and dead letters, in that order."""
        partition = state.place.partition
        for record, topic, value, headers in state.alerts:
            try:
                await self._send(topic, record.key, value, headers=headers)
                self.statistics.alerts += 1
            except RecordTooLarge as error:
                state.reject(record, f"{COUNTED}its alert is too large: {error.reason}")
        state.alerts.clear()
        closed = closed_rows(self._topics[state.place.topic], state, self._clock.now_ms())
        for topic, rows in closed.rows.items():
            self.statistics.rows += await self._producer.send_many(topic, rows, partition)
        for topic, key, value, headers in closed.alerts:
            try:
                await self._send(topic, key, value, headers=headers)
                self.statistics.alerts += 1
            except RecordTooLarge as error:  # of a join: two records that fitted alone
                made = Record(topic, partition, -1, self._clock.now_ms(), key, value, headers)
                await self._send_letter(
                    dead_letter(made, f"the alert is too large: {error.reason}", self._said_by, takes_bytes=0), -1
                )
                self._notices.tell(topic, f"{topic}: an alert is too large, and went to {topic}.dead: {error.reason}")
        for name, record in state.late:
            await self._send(f"{record.topic}.late", record.key, late_reference(name, record), partition)
            self.statistics.late[name] = self.statistics.late.get(name, 0) + 1
        state.late.clear()
        for record, reason in state.rejected:
            try:
                await self._send_letter(dead_letter(record, reason, self._said_by), partition)
            except RecordTooLarge:
                await self._send_letter(dead_letter(record, reason, self._said_by, takes_bytes=0), partition)
            self._notices.tell(record.topic, said(record, reason))
        self.statistics.malformed += len(state.rejected)
        state.rejected.clear()

    async def _send_letter(self, letter: DeadLetter, partition: int) -> None:
        await self._send(letter.topic, letter.key, letter.value, partition, letter.headers)

    async def _send_tiles(self, state: PartitionState) -> None:
        """Tiles are output and table in one, so they need not wait for a commit."""
        for table in self._topics[state.place.topic].tables.values():
            if table.row is None:
                await self._send_changes(table, state)

    async def _send_changes(self, table: TableCodec, state: PartitionState) -> None:
        kept, partition = state.tables[table.name], state.place.partition
        key, value = table.key, table.value
        changes = [(value(entry), key(start, entity, partition), 0) for start, entity, entry in kept.changes()]
        await self._producer.send_many(table.topic, changes, partition)
        kept.table_position += len(changes)

    async def _write_tables(self, states: Sequence[PartitionState]) -> list[_Commit]:
        """The first two steps of the module's first paragraph: what may be committed when this returns."""
        if self._committing is not None:  # the commit before this one comes before it
            await self._committing
            self._committing = None
        await self._counted.wait()  # as a rule it was answered long ago
        self._mend_tails()
        tails = self._found_tails()
        if not states:
            return []
        found = {tail.state.place for tail in tails}
        for state in states:
            await self._send_tombstones(state)  # those that mending found; others went out with their commit
            await self._send_tiles(state)
        await self._flush()
        for state in states:
            for table in self._topics[state.place.topic].tables.values():
                if table.row is not None:
                    await self._send_changes(table, state)
        for state in states:
            await self._send_progress(state)
        await self._flush()
        return [
            _Commit(
                state,
                self._assignments[state.place],
                CommittedOffset(state.position, mark_of(self._topics[state.place.topic], state)),
                [tail for tail in tails if tail.state is state],
            )
            for state in states
            if state.position != state.committed or state.is_given_up or state.place in found
        ]

    async def _commit(self, commits: Sequence[_Commit]) -> None:
        """The last step; then tombstones of the windows that these commits have passed."""
        try:
            await self._consumer.commit({commit.assignment: commit.offset for commit in commits})
        except Fenced:  # one of them is lost: the next poll says which, the others are committed a second later
            return
        await self._counted.wait()
        for commit in commits:
            commit.state.committed = commit.offset.offset
            if self._states.get(commit.state.place) is commit.state:
                self._ours += commit.tails
                await self._send_tombstones(commit.state)

    async def _look_for_tails(self) -> list[Tail]:
        """Finds out whether others have written into the tables, and what. Begins right after a flush, and until the ends
        are known nothing of ours is sent there; the streams go on meanwhile.

        Without an answer, and for what could not be read, the next look does it. Raises: SetupError when a table holds
        less than was written.
        """
        tables = {
            state.tables[table.name].place: (table, state)
            for state in self._states.values()
            for table in self._topics[state.place.topic].tables.values()
        }
        ends: dict[TopicPartition, int] = {}
        try:
            with anyio.move_on_after(ENDS_S), contextlib.suppress(Unavailable):
                ends = await self._reader.end_offsets(list(tables))
            tails = []
            for place, end in ends.items():
                table, state = tables[place]
                kept = state.tables[table.name]
                if end < kept.table_position:
                    written = f"ends at {end}, before {kept.table_position} that these streams have written"
                    raise gone(place, table.name, written)
                if end == kept.table_position:
                    kept.checked = end
                else:
                    tails.append(Tail(table, state, end, end - kept.table_position))
        finally:
            self._counted.set()
        return await read_tails(tails, self._reader) if tails else []

    def _found_tails(self) -> list[Tail]:
        """What a look has found that has ended."""
        if self._looking is None or not self._looking.done():
            return []
        tails, self._looking = self._looking.result(), None
        return tails

    def _mend_tails(self) -> None:
        """What was found is written again by the commit that begins now, which then says so in its marks."""
        for tail in self._ours:
            if self._states.get(tail.state.place) is not tail.state:
                continue
            mended = mend_tail(tail)
            self.statistics.mended += mended
            place = tail.state.tables[tail.table.name].place
            logger.log(
                logging.WARNING if mended else logging.INFO,
                "%s: %d records of another writer; %d newer values of ours are written again",
                *(place, tail.foreign, mended),
            )
        self._ours.clear()

    async def _watch_ends(self) -> None:
        while True:
            await asyncio.sleep(COMMIT_INTERVAL_S)
            await self._learn_ends(list(self._states.values()))

    async def _learn_ends(self, states: Sequence[PartitionState]) -> None:
        """Notes where the source topics end now: whoever has read up to there has seen all that was published before. Without
        an answer as-of stands still, and the features say their age."""
        asked_ms = self._clock.now_ms()
        with anyio.move_on_after(ENDS_S), contextlib.suppress(Unavailable):
            ends = await self._reader.end_offsets([state.place for state in states])
            for state in states:
                state.as_of.learn_end(asked_ms, ends[state.place])

    async def _flush(self) -> None:
        failures = await self._producer.flush()
        if failures:
            raise failures[0].error

    async def _send_progress(self, state: PartitionState) -> None:
        """For each view: every event published before `as_of` is in its tiles."""
        as_of_ms = state.as_of.at(state.position)
        if as_of_ms == 0:
            return
        state.progress_told = True
        for table in self._topics[state.place.topic].tables.values():
            kept = state.tables[table.name]
            if table.row is not None and state.position == state.committed:
                continue
            joined_ms = kept.since_ms
            if table.row is None and joined_ms != NEVER_MS and state.reached_ms < joined_ms + table.window_ms:
                continue  # the view began in the middle: until a whole window has passed it says nothing
            partition = state.place.partition
            key, value, headers = progress_record(partition, as_of_ms, state.position, table.fingerprint)
            await self._send(table.topic, key, value, partition, headers)
            kept.table_position += 1

    async def _send_tombstones(self, state: PartitionState) -> None:
        for table in self._topics[state.place.topic].tables.values():
            kept, partition = state.tables[table.name], state.place.partition
            tombstones = [(None, table.key(*place, partition), 0) for place in kept.passed(state.committed)]
            if tombstones:
                await self._producer.send_many(table.topic, tombstones, partition)
                kept.table_position += len(tombstones)

    async def on_assigned(self, assignments: Sequence[Assignment]) -> None:
        self._assignments.update((assignment.place, assignment) for assignment in assignments)
        whole, waiting = self._whole(assignment.place for assignment in assignments)
        self._consumer.pause(waiting)
        if waiting:
            logger.info("%s waits for what it is joined with, which another worker still has", waiting)
        places = [place for unit in whole for place in unit]
        found = await self._consumer.committed([*places, *waiting])
        committed = {place: begins_at(one, self._handed.get(place)) for place, one in found.items()}
        beginnings = await self._reader.beginning_offsets(places)
        for unit in whole:
            for state in await restore(self._topics, {place: committed[place] for place in unit}, self._reader):
                self._begin(state, committed[state.place], beginnings[state.place])
            if len(unit) > 1 or committed != found:  # some of them may have waited, or have been read before
                for place in unit:
                    await self._consumer.seek(place, self._states[place].position)
                self._consumer.resume(unit)
        states = [self._states[place] for place in places]
        # At once, or whoever comes after a crash would not know that something has begun.
        await self._commit(await self._write_tables([state for state in states if state.committed < 0]))
        await self._learn_ends(states)

    def _whole(self, places: Iterable[TopicPartition]) -> tuple[list[list[TopicPartition]], list[TopicPartition]]:
        """Partitions that can be read now, each with those that are joined with it; and those that wait for another one, which
        another worker still has."""
        whole: dict[tuple[TopicPartition, ...], None] = {}
        waiting = []
        for place in places:
            unit = self._unit(place)
            if all(other in self._assignments for other in unit):
                whole[unit] = None
            else:
                waiting.append(place)
        return [list(unit) for unit in whole], waiting

    def _unit(self, place: TopicPartition) -> tuple[TopicPartition, ...]:
        """The partition of that number of every topic that is joined with this one."""
        return tuple(TopicPartition(topic, place.partition) for topic in self._joined[place.topic])

    def _begin(self, state: PartitionState, committed: CommittedOffset | None, beginning: int) -> None:
        missed = beginning - state.position
        if committed and missed > 0:
            self.statistics.gone += missed
            logger.warning(
                "%s: %d records were deleted before they were read; retention is too short", state.place, missed
            )
        state.position = max(state.position, beginning)
        self._states[state.place] = state

    async def on_revoked(self, assignments: Sequence[Assignment]) -> None:
        held = [self._states[place] for place in self._units_of(assignments) if place in self._states]
        for state in held:
            state.is_given_up = True
        await self._commit(await self._write_tables(held))
        await self.on_lost(assignments)

    async def on_lost(self, assignments: Sequence[Assignment]) -> None:
        for place in self._units_of(assignments):
            self._states.pop(place, None)
        for assignment in assignments:
            self._assignments.pop(assignment.place, None)
        left = [place for place in self._units_of(assignments) if place in self._assignments]
        self._consumer.pause(left)  # until what they are joined with comes back

    def _units_of(self, assignments: Sequence[Assignment]) -> list[TopicPartition]:
        """The partitions, and those that are joined with them."""
        return list(dict.fromkeys(place for assignment in assignments for place in self._unit(assignment.place)))


def compile_all(sources: Sequence[Source], pipelines: Mapping[str, Pipeline]) -> dict[str, CompiledTopic]:
    """One compiled topic a source, by its name.

    Raises: SetupError as `sources_of`, and for what no restart could restore.
    """
    compiled = {
        name: load_topic(source, {n: p for n, p in pipelines.items() if reads(p, name)})
        for name, source in sources_of(pipelines.values(), sources).items()
    }
    for topic in compiled.values():
        require_marks_fit(topic)
        kept_ms = topic.source.spec.retention_ms
        if kept_ms is not None and topic.remembered_ms > kept_ms:
            raise SetupError(
                topic.source.spec.name,
                f"once, bursts and at_most_once_per remember {format_duration(topic.remembered_ms)}, and a restart reads the topic back "
                f"for it, which keeps {format_duration(kept_ms)}; make them shorter, or the topic's retention longer",
            )
    return compiled


def run_batch(topic: CompiledTopic, state: PartitionState, records: Sequence[Record], now_ms: int) -> None:
    """Processes the next records of one partition."""
    topic.process(records, state, now_ms)
    state.position = records[-1].offset + 1
