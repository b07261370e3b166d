"""Replays a file of events into a topic, in the order of their event times.

The file is read twice: first to find every row's time, so that a replay that cannot work is refused before anything is
published, then in the order of those times. Whatever a row cannot become a record for, or the publisher refuses, goes to
`<topic>.dead` with its line and its text, so that published + dead = rows.
"""

from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Generator, Sequence
from contextlib import ExitStack, aclosing, asynccontextmanager, closing, suppress
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Literal, NamedTuple, TypeVar
from zoneinfo import ZoneInfo

import anyio
import anyio.to_thread
import msgspec

from app.broker.base import Broker, Producer
from app.broker.dead_letters import dead_letter
from app.broker.publisher import Publisher, TypedPublisher
from app.broker.topics import TopicRegistry, TopicSpec, dead_letters_of, record_types
from app.core.clock import Clock
from app.core.codec import encode
from app.core.durations import format_duration
from app.core.errors import RecordError, SetupError
from app.core.instants import instant
from app.core.record import Record
from app.sources.files import BATCH_ROWS, Dated, Sorter, SourceFile, open_file, ordered_rows
from app.sources.mapping import RecordMapping, plan_mapping
from app.sources.rows import BadRow, Row
from app.sources.times import NoTimeZone, event_time_ms, time_zone

T = TypeVar("T")

GROUP = "replay"
"""Stands in dead letters where a consumer names its group."""


class ReplayOrder(msgspec.Struct, frozen=True, kw_only=True):
    """What is to be replayed. columns: file column by record field. constants: text by record field. timezone: of times
    that name none. id_field: the record field that gets `FILE#LINE`, the same whenever the file is replayed."""

    file: Path
    topic: str
    columns: dict[str, str] = {}
    constants: dict[str, str] = {}
    timezone: str | None = None
    id_field: str | None = None


class ReplayReport(msgspec.Struct, frozen=True, kw_only=True):
    """What became of the rows. first_ms and last_ms: event times in the file, ms since 1970 UTC; 0 where it has none."""

    topic: str
    file: str
    rows: int
    published: int
    dead: int
    first_ms: int
    last_ms: int


class Progress(NamedTuple):
    """Rows done. total: 0 while it is not known."""

    phase: Literal["reading", "publishing"]
    done: int
    total: int


@dataclass(slots=True)
class _Survey:
    """What the first reading found."""

    rows: int = 0
    dated: int = 0
    first_ms: int = 0
    last_ms: int = 0
    first_problem: str = ""


async def replay(
    order: ReplayOrder,
    broker: Broker,
    topics: TopicRegistry,
    clock: Clock,
    on_progress: Callable[[Progress], None] = lambda _: None,
) -> ReplayReport:
    """Publishes every row of the file, or says why not.

    On cancellation what was published stays; a repeat publishes it again under the same ids.
    Raises: SetupError, and then nothing was published, for a wrong file, mapping, time zone or topic, and for data older
    than the topic keeps; Unavailable; Rejected.
    """
    spec = topics.named(order.topic)
    types = record_types(spec.type)
    if len(types) != 1 or spec.key is None or spec.time != "event":
        raise SetupError(
            spec.name, "is no topic of events: no single record type, no key, or it keeps the time of writing"
        )
    (record_type,) = types
    zone = await anyio.to_thread.run_sync(time_zone, order.timezone) if order.timezone is not None else None
    async with _opened(order.file) as (file, sorter):
        mapping = plan_mapping(record_type, file.columns, order.columns, order.constants, order.id_field)
        reader = _Reader(file, mapping, zone)
        survey = await _survey(reader, sorter, on_progress)
        await _refuse_unfit(spec, broker, clock, survey)
        producer = broker.producer()
        await producer.start()
        try:
            run = _Run(reader, spec, producer, Publisher(producer, topics).typed(record_type))
            await run.publish(sorter, survey.rows, on_progress)
        finally:
            await producer.close()
    return ReplayReport(
        topic=spec.name,
        file=file.name,
        rows=survey.rows,
        published=run.published,
        dead=run.dead,
        first_ms=survey.first_ms,
        last_ms=survey.last_ms,
    )


@asynccontextmanager
async def _opened(path: Path) -> AsyncIterator[tuple[SourceFile, Sorter]]:
    stack = ExitStack()

    def enter() -> tuple[SourceFile, Sorter]:
        return stack.enter_context(closing(open_file(path))), stack.enter_context(closing(Sorter()))

    try:
        yield await anyio.to_thread.run_sync(enter)
    finally:
        with anyio.CancelScope(shield=True):
            await anyio.to_thread.run_sync(stack.close)


async def _in_threads(items: Generator[T]) -> AsyncGenerator[T]:
    """The items of a generator that reads files, made in worker threads one after another, and closed there too."""
    try:
        while found := await anyio.to_thread.run_sync(lambda: list(islice(items, 1))):
            yield found[0]
    finally:
        with anyio.CancelScope(shield=True):
            await anyio.to_thread.run_sync(items.close)


class _Reader(NamedTuple):
    """Rows of one file as dated records."""

    file: SourceFile
    mapping: RecordMapping
    zone: ZoneInfo | None

    def event_time_ms(self, row: Row) -> int:
        """Raises: BadRow; NoTimeZone."""
        text = self.file.fields(row.raw).get(self.mapping.time_column)
        if not isinstance(text, str):
            raise BadRow(f"no time in column {self.mapping.time_column}")
        try:
            return event_time_ms(text, self.zone)
        except NoTimeZone:
            raise
        except ValueError as error:
            raise BadRow(f"column {self.mapping.time_column}: {error}") from None

    def record(self, event_ms: int | None, row: Row) -> msgspec.Struct:
        """Raises: BadRow."""
        if event_ms is None:
            event_ms = self.event_time_ms(row)
        fields = self.file.fields(row.raw)
        return self.mapping.record(fields, instant(event_ms), f"{self.file.name}#{row.line}")


async def _survey(reader: _Reader, sorter: Sorter, on_progress: Callable[[Progress], None]) -> _Survey:
    survey = _Survey()

    def take(batch: list[Row]) -> None:
        for row in batch:
            survey.rows += 1
            try:
                event_ms = reader.event_time_ms(row)
            except NoTimeZone as error:
                what = f"line {row.line}: {str(error)!r} names no time zone; say whose it is, as in --timezone Europe/Berlin"
                raise SetupError("--timezone", what) from None
            except BadRow as error:
                survey.first_problem = survey.first_problem or f"line {row.line}: {error}"
                sorter.add(None, row)
                continue
            survey.first_ms = min(survey.first_ms or event_ms, event_ms)
            survey.last_ms = max(survey.last_ms, event_ms)
            survey.dated += 1
            sorter.add(event_ms, row)

    def read() -> Generator[None]:
        with closing(reader.file.rows()) as rows:
            while batch := list(islice(rows, BATCH_ROWS)):
                take(batch)
                yield

    async with aclosing(_in_threads(read())) as batches:
        async for _ in batches:
            on_progress(Progress("reading", survey.rows, 0))
    if survey.rows and not survey.dated:
        raise SetupError(reader.file.name, f"no row has an event time; {survey.first_problem}")
    return survey


async def _refuse_unfit(spec: TopicSpec, broker: Broker, clock: Clock, survey: _Survey) -> None:
    """Raises: SetupError when the topics are not there, or would delete the file's events at once."""
    dead = dead_letters_of(spec).name
    admin = broker.admin()
    try:
        found = await admin.describe([spec.name, dead])
    finally:
        await admin.close()
    for name, description in found.items():
        if description is None:
            raise SetupError(name, "the topic does not exist; create it with: python -m app topics create")
    description = found[spec.name]
    assert description is not None
    retention_ms = int(description.config["retention.ms"])
    deletes = "delete" in description.config["cleanup.policy"]
    if deletes and retention_ms >= 0 and survey.first_ms and survey.first_ms < clock.now_ms() - retention_ms:
        raise SetupError(
            spec.name,
            f"keeps events for {format_duration(retention_ms)}, and the file begins on"
            f" {instant(survey.first_ms):%Y-%m-%d}; let the topic keep them with:"
            f" python -m app topics create --retention {spec.name}=forever",
        )


class _Run:
    """The second reading: publishes, and counts what became of the rows."""

    def __init__(
        self, reader: _Reader, spec: TopicSpec, producer: Producer, publisher: TypedPublisher[msgspec.Struct]
    ) -> None:
        self.published = 0
        self.dead = 0
        self._reader = reader
        self._spec = spec
        self._producer = producer
        self._publisher = publisher
        self._dead_takes_bytes = dead_letters_of(spec).max_message_bytes

    async def publish(self, sorter: Sorter, rows: int, on_progress: Callable[[Progress], None]) -> None:
        async with aclosing(_in_threads(ordered_rows(self._reader.file, sorter))) as batches:
            async for batch in batches:
                for event_ms, row in batch:
                    await self._publish_row(event_ms, row)
                await self._settle(batch)
                on_progress(Progress("publishing", self.published + self.dead, rows))

    async def _publish_row(self, event_ms: int | None, row: Row) -> None:
        try:
            await self._publisher.publish(self._reader.record(event_ms, row))
            self.published += 1
        except (BadRow, RecordError) as error:
            await self._bury(event_ms, row, error.reason if isinstance(error, RecordError) else str(error))

    async def _settle(self, batch: Sequence[Dated]) -> None:
        """Waits until the broker has taken or refused this batch."""
        failures = await self._producer.flush()
        if not failures:
            return
        sent = self._rows_by_value(batch)
        for failure in failures:
            self.published -= 1
            event_ms, row = sent[failure.value].popleft()
            await self._bury(event_ms, row, failure.error.reason)

    def _rows_by_value(self, batch: Sequence[Dated]) -> dict[bytes | None, deque[Dated]]:
        """The rows again, by the record that each was published as; of equal ones, whichever comes first."""
        rows: dict[bytes | None, deque[Dated]] = {}
        for event_ms, row in batch:
            with suppress(BadRow):
                rows.setdefault(encode(self._reader.record(event_ms, row)), deque()).append((event_ms, row))
        return rows

    async def _bury(self, event_ms: int | None, row: Row, reason: str) -> None:
        text = row.raw.rstrip(b"\r\n")
        record = Record(self._spec.name, -1, -1, -1 if event_ms is None else event_ms, None, text)
        letter = dead_letter(record, reason, GROUP, takes_bytes=self._dead_takes_bytes)
        place = (("file", self._reader.file.name.encode()), ("line", b"%d" % row.line))
        headers = (*letter.headers, *place)
        await self._producer.confirm(letter.topic, letter.value, letter.key, headers=headers)
        self.dead += 1
