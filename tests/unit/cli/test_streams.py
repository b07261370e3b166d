"""`streams list|show|run`, on a memory broker in place of the cluster."""

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from agents import app
from app.broker.memory import MemoryBroker
from app.cli import streams
from app.cli.main import run
from app.core.clock import SystemClock
from app.core.record import TopicPartition
from app.streams.pipelines import fingerprint
from features.scenario import scenario
from tests.reference import SourceRecord, as_records, read_all

EVENTS = 2_000


@pytest.fixture
def broker(monkeypatch: pytest.MonkeyPatch) -> MemoryBroker:
    """A cluster with the events of the scenario."""
    broker = MemoryBroker(SystemClock())
    asyncio.run(broker.admin().create(app.topics.all()))
    for record in as_records(scenario(EVENTS, 1, SystemClock().now_ms() - 7_200_000)):
        broker.append("raw.orders", record.value, record.key, record.partition, record.timestamp_ms, ())
    monkeypatch.setattr(streams, "open_cluster", lambda values: broker)
    return broker


class Call:
    """Runs a command: its exit code, and what it said."""

    def __init__(self, capsys: pytest.CaptureFixture[str]) -> None:
        self._capsys = capsys

    def __call__(self, *arguments: str) -> tuple[object, str, str]:
        with pytest.raises(SystemExit) as left:
            run(["streams", *arguments])
        said = self._capsys.readouterr()
        return left.value.code, said.out, said.err


@pytest.fixture
def call(capsys: pytest.CaptureFixture[str]) -> Call:
    return Call(capsys)


def rows_of(broker: MemoryBroker, topic: str) -> set[tuple[int, str, int, int]]:
    values = [
        (place.partition, json.loads(record.value or b""))
        for place, log in broker.logs.items()
        if place.topic == topic
        for record in log
    ]
    return {(part, value["user_id"], value["window_start"], value["order_count_5m"]) for part, value in values}


def test_streams_list_names_every_pipeline(call: Call) -> None:
    """JSON for programs, the same in a table for people."""
    code, out, _ = call("list", "--json")
    rows: list[dict[str, Any]] = [json.loads(line) for line in out.splitlines()]
    assert 0 == code
    assert list(app.pipelines) == [row["name"] for row in rows]
    by_name = {row["name"]: row for row in rows}
    assert {
        "name": "order_rate",
        "kind": "tumbling",
        "source": "raw.orders",
        "topic": "features.order_rate_5m",
        "fingerprint": fingerprint(app.pipelines["order_rate"]),
    } == by_name["order_rate"]
    assert ("live", "alert") == (by_name["user_features"]["kind"], by_name["high_value_orders"]["kind"])
    code, out, _ = call("list")
    assert 0 == code
    assert [] == [cell for row in rows for cell in row.values() if cell not in out]


def test_streams_show_tells_steps_fingerprint_and_memory(call: Call) -> None:
    """The declaration as the engine understands it, and what `once` costs."""
    code, out, _ = call("show", "high_value_orders")
    assert 0 == code
    assert "once(order_id, within=1m)" in out
    assert "where(amount_usd > 10000)" in out
    assert fingerprint(app.pipelines["high_value_orders"]) in out
    assert "at 1,000 events/s 60,000 to 120,000 ids" in out


def test_streams_show_python_is_the_text_that_runs(call: Call) -> None:
    """It compiles, and it is found by the name of a view too."""
    code, out, _ = call("show", "user_features", "--python")
    assert 0 == code
    compile(out, "shown", "exec")
    assert "def process(records, part, received_ms):" in out


def test_streams_show_sql_is_the_job_as_it_begins(call: Call) -> None:
    """In the group in which it commits, from the earliest record."""
    code, out, _ = call("show", "user_features", "--sql")
    source = out.partition("CREATE TEMPORARY TABLE `raw.orders`")[2].partition(";")[0]
    assert 0 == code
    for option in ("'properties.group.id' = 'headrace.flink'", "'scan.startup.mode' = 'earliest-offset'"):
        assert option in source


def test_streams_unknown_name_lists_what_there_is(call: Call) -> None:
    """One line, exit code 2."""
    for command in (["show", "nothing"], ["run", "nothing", "--bounded"]):
        code, out, err = call(*command)
        assert (2, "") == (code, out)
        assert "no pipeline is called that; there are " in err
        assert "order_rate" in err


def test_streams_run_bounded_writes_the_rows_of_every_window(broker: MemoryBroker, call: Call) -> None:
    """Those that are open at the end too; the numbers are those of a plain reading, and twice is the same."""
    source = [record for place, log in broker.logs.items() if place.topic == "raw.orders" for record in log]
    reading = read_all(SourceRecord(r.partition, r.offset, r.timestamp_ms, r.key, r.value) for r in source)
    totals = reading.final_rows | reading.open_rows
    expected = {(where.partition, where.user_id, where.start_ms, total.orders) for where, total in totals.items()}
    code, out, _ = call("run", "order_rate", "--bounded", "--json")
    assert 0 == code
    assert {
        "name": "order_rate",
        "topic": "order_rate.bounded",
        "events": EVENTS,
        "rows": len(expected),
        "malformed": len(reading.malformed),
        "late": reading.late["order_rate"],
    } == json.loads(out)
    rows = rows_of(broker, "order_rate.bounded")
    assert expected == rows
    assert [] == broker.logs[TopicPartition("features.order_rate_5m", 0)]
    code, out, _ = call("run", "order_rate", "--bounded", "--to", "again")
    assert 0 == code
    assert f"{EVENTS:,} events read, {len(rows):,} rows written to again" in out
    assert rows == rows_of(broker, "again")


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["order_rate"], "say --bounded"),
        (["user_features", "--bounded"], "only windows whose final rows go to a topic"),
        (["order_rate", "--bounded", "--to", "raw.orders"], "is a topic of the application"),
    ],
)
def test_streams_run_what_has_no_bounded_run_is_refused(
    broker: MemoryBroker, call: Call, arguments: list[str], complaint: str
) -> None:
    """With what to do instead, before anything was written."""
    before = {place: len(log) for place, log in broker.logs.items()}
    code, out, err = call("run", *arguments)
    assert (2, "") == (code, out)
    assert complaint in err
    assert before == {place: len(log) for place, log in broker.logs.items()}


@pytest.mark.parametrize("arguments", [["reset", "user_features"], ["prune"]])
def test_streams_reset_and_prune_with_a_store_in_memory_are_refused(call: Call, arguments: list[str]) -> None:
    """Clearing an empty store would look like success, while the one that workers read keeps everything."""
    code, out, err = call(*arguments, "--store", "memory://")
    assert (2, "") == (code, out)
    assert "memory:// lives and dies with one process; name the store of the running worker" in err


def test_streams_list_of_an_application_without_any_is_empty(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: Call
) -> None:
    """Nothing to list is no error."""
    (tmp_path / "streams_empty.py").write_text("from app.application import App\napp = App(features=[])\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    assert (0, "", "") == call("list", "-A", "streams_empty:app", "--json")
