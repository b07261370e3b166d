"""Whatever a file holds, every row is either published or a dead letter."""

import asyncio
from pathlib import Path

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.broker.memory import MemoryBroker
from app.broker.topics import TopicRegistry, dead_letters_of
from app.core.clock import ManualClock
from app.core.record import Record
from app.sources.files import open_file
from app.sources.replay import ReplayOrder, ReplayReport, replay
from features.records import order_events
from tests.examples import examples
from tests.reference import SourceRecord, valid_order

SPEC = msgspec.structs.replace(order_events.source.spec, retention_ms=None, partitions=2)
FIELDS = st.one_of(
    st.sampled_from(
        ["u1", "1.00", "0", "1.005", "-3", "1997-01-01", "1997-01-01T10:00:00Z", "852076800000", "", "NaN"]
    ),
    st.text(max_size=6),
    st.sampled_from(['"', "a,b", "\n", "\x00", "\ufeff", "٣"]),
)
ROWS = st.lists(st.lists(FIELDS, min_size=1, max_size=4), max_size=12)
GOOD = "u9,1997-01-02,5.50\n"


def replayed(file: Path) -> tuple[ReplayReport, list[Record], list[Record]]:
    async def main() -> tuple[ReplayReport, list[Record], list[Record]]:
        clock = ManualClock()
        broker, topics = MemoryBroker(clock), TopicRegistry()
        topics.add(SPEC)
        topics.add(dead_letters_of(SPEC))
        await broker.admin().create(topics.all())
        order = ReplayOrder(
            file=file,
            topic=SPEC.name,
            columns={"user_id": "u", "timestamp": "t", "amount_usd": "a"},
            constants={"status": "placed"},
            timezone="UTC",
            id_field="order_id",
        )
        report = await replay(order, broker, topics, clock)
        logs = {
            name: [r for place, log in broker.logs.items() if place.topic == name for r in log] for name in broker.specs
        }
        return report, logs[SPEC.name], logs[f"{SPEC.name}.dead"]

    return asyncio.run(main())


@settings(max_examples=examples(60))
@given(rows=ROWS, ends=st.sampled_from(["\n", "\r\n"]))
def test_replay_any_csv_published_and_dead_are_all_rows(
    tmp_path_factory: pytest.TempPathFactory, rows: list[list[str]], ends: str
) -> None:
    """Rows are neither lost nor doubled, what is published is valid, and a second replay gives the same."""
    path = tmp_path_factory.mktemp("replay") / "any.csv"
    text = "u,t,a" + ends + GOOD + "".join(",".join(row) + ends for row in rows)
    path.write_bytes(text.encode(errors="replace"))
    file = open_file(path)
    raw = [row.raw for row in file.rows()]
    file.close()
    report, published, dead = replayed(path)
    assert len(raw) == report.rows == report.published + report.dead
    assert (report.published, report.dead) == (len(published), len(dead))
    lines = [int(record.header("line") or b"") for record in dead]
    assert len(lines) == len(set(lines))
    for record in published:
        assert valid_order(SourceRecord(0, 0, record.timestamp_ms, record.key, record.value)) is not None
    assert {record.value for record in dead} <= {row.rstrip(b"\r\n") for row in raw}
    assert (report, published) == replayed(path)[:2]
