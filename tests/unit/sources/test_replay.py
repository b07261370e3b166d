"""Files become events of a topic: oldest first, under stable ids, and nothing of a file is lost."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import msgspec
import pytest

from app.broker.base import DeliveryFailure
from app.broker.memory import MemoryBroker, MemoryProducer
from app.broker.topics import TopicRegistry, TopicSpec, dead_letters_of
from app.core.clock import ManualClock
from app.core.errors import RecordTooLarge, SetupError, Unavailable
from app.core.record import Record
from app.sources.replay import Progress, ReplayOrder, ReplayReport, replay
from features.records import Instant, OrderEvent, order_events

NOW_MS = 1_767_225_600_000  # 2026-01-01
SHOP = {"user_id": "customer_id", "timestamp": "date"}
PLACED = {"status": "placed"}


class Note(msgspec.Struct, frozen=True):
    """A record that can be as long as one likes."""

    user_id: Annotated[str, msgspec.Meta(min_length=1)]
    text: str
    timestamp: Instant


notes = TopicSpec(name="raw.notes", partitions=1, type=Note, key="user_id", time="event", max_ahead_ms=60_000)


class Shop:
    """A broker with the topics of orders and notes, and what a replay makes of a file."""

    def __init__(self, *specs: TopicSpec) -> None:
        self.clock = ManualClock(NOW_MS)
        self.broker = MemoryBroker(self.clock)
        self.topics = TopicRegistry()
        for spec in specs:
            self.topics.add(spec)
            self.topics.add(dead_letters_of(spec))

    async def open(self) -> "Shop":
        await self.broker.admin().create(self.topics.all())
        return self

    async def replay(
        self,
        file: Path,
        topic: str = "raw.orders",
        on_progress: Callable[[Progress], None] = lambda _: None,
        **order: Any,
    ) -> ReplayReport:
        asked = ReplayOrder(file=file, topic=topic, **order)
        return await replay(asked, self.broker, self.topics, self.clock, on_progress)

    def records(self, topic: str) -> list[Record]:
        return [record for place, log in self.broker.logs.items() if place.topic == topic for record in log]


@pytest.fixture
async def shop() -> Shop:
    forever = msgspec.structs.replace(order_events.source.spec, retention_ms=None)
    return await Shop(forever, notes).open()


def csv_file(folder: Path, *rows: str, header: str = "customer_id,date,quantity,amount_usd") -> Path:
    path = folder / "orders.csv"
    path.write_text("\n".join((header, *rows)) + "\n")
    return path


def reasons(records: list[Record]) -> list[tuple[str, str]]:
    return [((record.header("line") or b"").decode(), (record.header("reason") or b"").decode()) for record in records]


async def test_replay_rows_become_records_in_order_of_time(shop: Shop, tmp_path: Path) -> None:
    """Each record has its key, its own time, exact cents and an id from file and line; the oldest comes first."""
    file = csv_file(tmp_path, "u1,1997-01-03,1,11.70", "u1,1997-01-01,9,0.00", "u1,1997-01-02,1,20.76")
    report = await shop.replay(file, columns=SHOP, constants=PLACED, timezone="UTC", id_field="order_id")
    assert (3, 3, 0) == (report.rows, report.published, report.dead)
    assert (852_076_800_000, 852_249_600_000) == (report.first_ms, report.last_ms)
    records = shop.records("raw.orders")
    assert [852_076_800_000, 852_163_200_000, 852_249_600_000] == [record.timestamp_ms for record in records]
    assert [b"u1"] * 3 == [record.key for record in records]
    values = [record.value or b"" for record in records]
    assert ["orders.csv#3", "orders.csv#4", "orders.csv#2"] == [json.loads(value)["order_id"] for value in values]
    assert b'"amount_usd":11.70' in values[2]
    order = msgspec.json.decode(values[0], type=OrderEvent)
    assert ("placed", 1997) == (order.status, order.timestamp.year)


@pytest.mark.parametrize("suffix", ["ndjson", "jsonl"])
async def test_replay_of_own_records_gives_them_back(shop: Shop, tmp_path: Path, suffix: str) -> None:
    """A file of records as they are on the wire needs no mapping, and comes out byte for byte."""
    wire = [
        b'{"order_id":"o-%d","user_id":"u1","amount_usd":12345678.10,"status":"paid","timestamp":"1997-01-01T00:00:0%dZ"}'
        % (n, n)
        for n in range(3)
    ]
    file = tmp_path / f"orders.{suffix}"
    file.write_bytes(b"\n".join(reversed(wire)))
    assert 3 == (await shop.replay(file)).published
    assert wire == [record.value for record in shop.records("raw.orders")]


async def test_replay_twice_gives_the_same_ids(shop: Shop, tmp_path: Path) -> None:
    """The same file makes the same records, also where its lines are equal to each other."""
    file = csv_file(tmp_path, *["u1,1997-01-01,1,11.70"] * 5)
    for _ in range(2):
        await shop.replay(file, columns=SHOP, constants=PLACED, timezone="UTC", id_field="order_id")
    values = [record.value for record in shop.records("raw.orders")]
    assert values[:5] == values[5:]
    assert 5 == len(set(values))


async def test_replay_local_times_need_a_time_zone(shop: Shop, tmp_path: Path) -> None:
    """Without --timezone a date is refused before anything is published; with one it is that zone's."""
    file = csv_file(tmp_path, "u1,1997-01-01,1,1.00")
    asked: dict[str, Any] = {"columns": SHOP, "constants": PLACED, "id_field": "order_id"}
    with pytest.raises(SetupError, match=r"--timezone: line 2: '1997-01-01' names no time zone.*Europe/Berlin"):
        await shop.replay(file, **asked)
    assert [] == shop.records("raw.orders") + shop.records("raw.orders.dead")
    report = await shop.replay(file, timezone="Europe/Berlin", **asked)
    assert 852_073_200_000 == report.first_ms


async def test_replay_bad_rows_are_dead_letters_with_line_and_text(shop: Shop, tmp_path: Path) -> None:
    """A row that is no record keeps its text, its line and the reason; its neighbours are published."""
    bad = ["u2,1997-01-01,1,-5.00", "u2,1997-01-01,1,1.005", "u2,soon,1,1.00", "u2,1997-01-01", ",1997-01-01,1,1.00"]
    file = csv_file(tmp_path, "u1,1997-01-02,1,1.00", *bad, "u1,1997-01-01,1,2.00")
    report = await shop.replay(file, columns=SHOP, constants=PLACED, timezone="UTC", id_field="order_id")
    assert (7, 2, 5) == (report.rows, report.published, report.dead)
    dead = sorted(shop.records("raw.orders.dead"), key=lambda record: record.header("line") or b"")
    assert [row.encode() for row in bad] == [record.value for record in dead]
    found = reasons(dead)
    assert ["3", "4", "5", "6", "7"] == [line for line, _ in found]
    for (_, reason), expected in zip(found, ("between 0", "two decimals", "date", "2 fields", "user_id"), strict=True):
        assert expected in reason
    assert {b"orders.csv"} == {record.header("file") for record in dead}
    assert {b"replay"} == {record.header("group") for record in dead}


class RefusingLater(MemoryProducer):
    """A broker that takes every record and says at the flush which it did not."""

    async def send(self, topic: str, value: bytes | None, key: bytes | None = None, **more: Any) -> None:
        if key == b"u2":
            self._failures.append(DeliveryFailure(RecordTooLarge("too large", topic=topic), key, value))
        else:
            await super().send(topic, value, key, **more)


async def test_replay_rows_refused_at_the_flush_keep_their_lines(
    shop: Shop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whenever a row is refused, its letter says where it stands; equal rows have a letter each."""
    monkeypatch.setattr(shop.broker, "producer", lambda: RefusingLater(shop.broker))
    rows = ["u1,1997-01-01,1,1.00", "u2,1997-01-01,1,2.00", "u3,soon,1,1.00", "u2,1997-01-01,1,2.00"]
    report = await shop.replay(
        csv_file(tmp_path, *rows), columns=SHOP, constants={**PLACED, "order_id": "o"}, timezone="UTC"
    )
    assert (4, 1, 3) == (report.rows, report.published, report.dead)
    dead = sorted(shop.records("raw.orders.dead"), key=lambda record: record.header("line") or b"")
    assert [row.encode() for row in rows[1:]] == [record.value for record in dead]
    assert ["3", "4", "5"] == [line for line, _ in reasons(dead)]


async def test_replay_what_the_broker_would_refuse_is_dead(shop: Shop, tmp_path: Path) -> None:
    """A record that is too large or too far ahead is a dead letter; the others arrive."""
    file = tmp_path / "notes.ndjson"
    rows = [
        {"user_id": "u", "text": "x" * 1_100_000, "timestamp": NOW_MS},
        {"user_id": "u", "text": "ahead", "timestamp": NOW_MS + 60_001},
        {"user_id": "u", "text": "fine", "timestamp": NOW_MS + 60_000},
    ]
    file.write_text("\n".join(map(json.dumps, rows)))
    report = await shop.replay(file, "raw.notes")
    assert (3, 1, 2) == (report.rows, report.published, report.dead)
    assert [b'{"user_id":"u","text":"fine","timestamp":"2026-01-01T00:01:00Z"}'] == [
        record.value for record in shop.records("raw.notes")
    ]
    large, ahead = shop.records("raw.notes.dead")
    assert len(json.dumps(rows[0])) == int(large.header("length") or b"")
    assert "future" in reasons([ahead])[0][1]


async def test_replay_older_than_the_topic_keeps_is_refused(tmp_path: Path) -> None:
    """The broker's own retention counts, and the error says the command that helps."""
    declared = order_events.source.spec
    shop = await Shop(declared).open()
    file = csv_file(tmp_path, "u1,2025-12-24,1,1.00", "u1,2025-12-25T00:00:01,1,1.00")
    asked: dict[str, Any] = {"columns": SHOP, "constants": PLACED, "timezone": "UTC", "id_field": "order_id"}
    with pytest.raises(
        SetupError, match=r"keeps events for 7d.*2025-12-24.*topics create --retention raw\.orders=forever"
    ):
        await shop.replay(file, **asked)
    assert [] == shop.records("raw.orders")
    shop.broker.specs["raw.orders"] = msgspec.structs.replace(declared, retention_ms=None)
    assert 2 == (await shop.replay(file, **asked)).published


async def test_replay_without_topics_says_how_to_make_them(tmp_path: Path) -> None:
    """A topic that does not exist, is not declared, or carries no events is refused in one line."""
    shop = Shop(order_events.source.spec)
    file = csv_file(tmp_path, "u1,1997-01-01,1,1.00")
    asked: dict[str, Any] = {"columns": SHOP, "constants": PLACED, "timezone": "UTC", "id_field": "order_id"}
    with pytest.raises(SetupError, match="does not exist; create it with: python -m app topics create"):
        await shop.replay(file, **asked)
    with pytest.raises(SetupError, match=r"raw\.oders: no such topic"):
        await shop.replay(file, "raw.oders", **asked)
    with pytest.raises(SetupError, match=r"raw\.orders\.dead: is no topic of events"):
        await shop.replay(file, "raw.orders.dead", **asked)


async def test_replay_file_of_another_kind_is_refused_whole(shop: Shop, tmp_path: Path) -> None:
    """Where no row has an event time nothing is published: it is the wrong file or the wrong column."""
    file = tmp_path / "orders.ndjson"
    file.write_text('[{"user_id": "u1"}]\n{"user_id": "u1"}\n')
    with pytest.raises(SetupError, match="no row has an event time; line 1: JSON"):
        await shop.replay(file)
    assert [] == shop.records("raw.orders.dead")


async def test_replay_empty_file_publishes_nothing(shop: Shop, tmp_path: Path) -> None:
    """A header alone is a file without rows."""
    report = await shop.replay(csv_file(tmp_path), columns=SHOP, constants=PLACED, id_field="order_id")
    assert (0, 0, 0, 0) == (report.rows, report.published, report.dead, report.first_ms)


async def test_replay_progress_counts_up_to_all_rows(shop: Shop, tmp_path: Path) -> None:
    """Both readings say how far they are; the second knows of how many."""
    file = csv_file(tmp_path, *[f"u{n},1997-01-01,1,1.00" for n in range(4_500)], "bad")
    seen: list[Progress] = []
    await shop.replay(
        file, columns=SHOP, constants=PLACED, timezone="UTC", id_field="order_id", on_progress=seen.append
    )
    assert [2_000, 4_000, 4_501] == [progress.done for progress in seen if progress.phase == "reading"]
    publishing = [(progress.done, progress.total) for progress in seen if progress.phase == "publishing"]
    assert [(2_000, 4_501), (4_000, 4_501), (4_501, 4_501)] == publishing


async def test_replay_broken_off_leaves_no_temporary_files(
    shop: Shop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever ends a replay in the middle, what it wrote on disk is gone."""
    import tempfile

    scratch = tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(scratch))
    file = csv_file(tmp_path, *[f"u{n},1997-01-01,1,1.00" for n in range(4_500)])

    def fail(progress: Progress) -> None:
        if progress.phase == "publishing":
            raise Unavailable("the broker has gone")

    with pytest.raises(Unavailable):
        await shop.replay(file, columns=SHOP, constants=PLACED, timezone="UTC", id_field="order_id", on_progress=fail)
    assert 2_000 == len(shop.records("raw.orders"))
    assert [] == list(scratch.iterdir())
