"""`topics`, `dead` and `send`, on a memory broker in place of the cluster."""

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
from _pytest.capture import CaptureResult

from app.broker.dead_letters import DeadLetters
from app.broker.memory import MemoryBroker
from app.broker.topics import TopicSpec
from app.cli import dead, send, topics
from app.cli.dead import shortened
from app.cli.main import run
from app.core.clock import SystemClock
from app.core.record import Record

APP = """
from types import ModuleType
import msgspec
from datetime import datetime
from decimal import Decimal
from app.application import App
from app.core.codec import Usd
from app.streams.graph import Topic

class Order(msgspec.Struct):
    order_id: str
    user_id: str
    timestamp: datetime
    amount_usd: Usd = Decimal(0)

features = ModuleType("features")
features.orders = Topic("shop.orders", Order, key="user_id", out_of_orderness="5s", partitions=4)
app = App(features=[features])
"""


ORDER = '{"order_id": "o-1", "user_id": "u-1", "timestamp": "2026-11-24T10:00:00Z", %s}'


@pytest.fixture
def broker(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> MemoryBroker:
    """What the commands find at the address, and an application `topics_shop:app`."""
    broker = MemoryBroker(SystemClock())
    for module in (topics, dead, send):
        monkeypatch.setattr(module, "open_cluster", lambda values: broker)
    (tmp_path / "topics_shop.py").write_text(APP)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    return broker


@pytest.fixture
def call(broker: MemoryBroker, capsys: pytest.CaptureFixture[str]) -> "Call":
    return Call(capsys)


class Call:
    """Runs a command: its exit code, its JSON lines, and what it said on stderr."""

    def __init__(self, capsys: pytest.CaptureFixture[str]) -> None:
        self._capsys = capsys

    def said(self) -> "CaptureResult[str]":
        """What was written since it was last asked."""
        return self._capsys.readouterr()

    def __call__(self, *arguments: str, app: bool = True) -> tuple[object, list[dict[str, Any]], str]:
        options = ["-A", "topics_shop:app"] if app else []
        with pytest.raises(SystemExit) as left:
            run([*arguments, *options, "--json"])
        said = self.said()
        return left.value.code, [json.loads(line) for line in said.out.splitlines()], said.err


def test_topics_create_makes_what_is_missing_and_says_fewer_copies(call: Call) -> None:
    """Every topic of the application once; a smaller cluster is said aloud."""
    code, rows, _ = call("topics", "create")
    assert 0 == code
    assert {"shop.orders": "created", "shop.orders.dead": "created", "shop.orders.late": "created"} == {
        row["topic"]: row["done"] for row in rows
    }
    _, rows, said = call("topics", "create")
    assert {"exists"} == {row["done"] for row in rows}
    assert "1 instead of 3 copies" in said


def test_topics_create_retention_is_given_to_new_and_existing_topics(call: Call) -> None:
    """`forever` at creation, a duration afterwards."""
    _, rows, _ = call("topics", "create", "--retention", "shop.orders=forever")
    assert "forever" == rows[0]["retention"]
    _, rows, _ = call("topics", "create", "--retention", "shop.orders=30d")
    assert ("30d", "retention changed") == (rows[0]["retention"], rows[0]["done"])
    _, rows, _ = call("topics", "create")
    assert ("30d", "exists") == (rows[0]["retention"], rows[0]["done"])


def test_topics_create_lets_existing_topics_take_records_as_large_as_declared(call: Call, broker: MemoryBroker) -> None:
    """What an earlier version has made smaller would refuse them; one that takes more is left alone."""
    call("topics", "create")
    declared = int(asyncio.run(sizes_of(broker))["shop.orders"])
    for size, expected, done in (
        (declared - 1, declared, "takes larger records"),
        (declared + 1, declared + 1, "exists"),
    ):
        asyncio.run(broker.admin().configure("shop.orders", {"max.message.bytes": str(size)}))
        _, rows, _ = call("topics", "create")
        assert done == {row["topic"]: row["done"] for row in rows}["shop.orders"]
        assert str(expected) == asyncio.run(sizes_of(broker))["shop.orders"]


async def sizes_of(broker: MemoryBroker) -> dict[str, str]:
    found = await broker.admin().describe(["shop.orders"])
    return {name: topic.config["max.message.bytes"] for name, topic in found.items() if topic is not None}


@pytest.mark.parametrize("text", ["shop.orders", "shop.orders=long", "nowhere=1d"])
def test_topics_create_wrong_retention_is_exit_two(call: Call, text: str) -> None:
    """The message names the option or the topic."""
    code, rows, said = call("topics", "create", "--retention", text)
    assert (2, []) == (code, rows)
    assert said.startswith("error: ")


def test_topics_list_shows_what_is_missing_and_what_differs(call: Call, broker: MemoryBroker) -> None:
    """The cluster's partitions count, and a difference is said."""
    asyncio.run(broker.admin().create([TopicSpec(name="shop.orders", partitions=3)]))
    _, rows, _ = call("topics", "list")
    states = {row["topic"]: (row["state"], row["partitions"]) for row in rows}
    assert ("declared with 4 partitions", 3) == states["shop.orders"]
    assert ("missing", 4) == states["shop.orders.dead"]


def test_topics_plan_too_few_partitions_are_refused_growth(call: Call) -> None:
    """The exit code is 1, the topic's reason is its key."""
    call("topics", "create")
    code, rows, _ = call("topics", "plan", "--threads", "5")
    assert 1 == code
    (row,) = rows
    assert ("shop.orders", "too few", 5, 10) == (row["topic"], row["verdict"], row["least"], row["most"])
    assert "user_id" in row["action"]
    code, rows, _ = call("topics", "plan", "--threads", "2")
    assert (0, "fits") == (code, rows[0]["verdict"])


def test_send_valid_event_is_keyed_and_stamped_by_its_fields(call: Call, broker: MemoryBroker) -> None:
    """The place where it lies is what the command prints."""
    call("topics", "create")
    event = '{"order_id": "o-1", "user_id": "u-1", "timestamp": "2026-11-24T10:00:00Z"}'
    code, (row,), _ = call("send", "shop.orders", event)
    assert (0, "shop.orders", 0) == (code, row["topic"], row["offset"])
    (record,) = [record for log in broker.logs.values() for record in log]
    assert (b"u-1", 1_795_514_400_000) == (record.key, record.timestamp_ms)


@pytest.mark.parametrize(
    ("topic", "event", "message"),
    [
        ("shop.orders", "{", "shop.orders: "),
        ("shop.orders", '{"order_id": 1}', "order_id"),
        ("shop.orders", '{"order_id": "\udcff"}', "not UTF-8"),
        ("shop.orders", ORDER % '"amount_usd": -1', "amount_usd: -1 is not between"),
        ("shop.orders", ORDER % '"amount_usd": 1.005', "amount_usd: 1.005 has more than two decimals"),
        ("nowhere", "{}", "no such topic"),
        ("shop.orders.dead", "{}", "no declared record type"),
    ],
)
def test_send_wrong_event_is_one_line_and_sends_nothing(
    call: Call, broker: MemoryBroker, topic: str, event: str, message: str
) -> None:
    """What the topic's type does not take never reaches the broker."""
    call("topics", "create")
    code, rows, said = call("send", topic, event)
    assert (2, []) == (code, rows)
    assert message in said
    assert [] == [record for log in broker.logs.values() for record in log]


def test_dead_list_without_letters_says_so(call: Call) -> None:
    """No empty table, and no advice about letters that are not there."""
    call("topics", "create")
    with pytest.raises(SystemExit):
        run(["dead", "list", "-A", "topics_shop:app"])
    said = call.said()
    assert ("", "no dead letters\n") == (said.out, said.err)


def test_dead_list_and_show_give_reason_place_and_original_bytes(call: Call, broker: MemoryBroker) -> None:
    """What is listed can be shown by the place in its first column; bytes that are no text come in base64."""
    call("topics", "create")
    record = Record("shop.orders", 2, 7, 1, b"u-1", b"\xff{")
    asyncio.run(DeadLetters(broker.producer(), "headrace.streams").write(record, "not UTF-8"))
    _, (listed,), _ = call("dead", "list", "shop.orders")
    assert ("not UTF-8", "shop.orders", 2, 7) == tuple(
        listed[name] for name in ("reason", "topic", "partition", "offset")
    )
    _, (shown,), _ = call("dead", "show", listed["letter"], app=False)
    assert listed == shown
    assert "/3s=" == shown["value_base64"]


def test_dead_show_header_of_a_known_name_replaces_nothing(call: Call, broker: MemoryBroker) -> None:
    """Headers are whoever's wrote them; the letter's own fields stay what they are."""
    call("topics", "create")
    headers = (("reason", b"bad"), ("value", b"forged"), ("letter", b"forged"))
    broker.append("shop.orders.dead", b"real", None, 0, 0, headers)
    _, (shown,), _ = call("dead", "show", "shop.orders.dead/0/0", app=False)
    assert ("real", "shop.orders.dead/0/0") == (shown["value"], shown["letter"])
    assert {"value": "forged", "letter": "forged"} == shown["headers"]


def test_dead_show_for_a_person_cannot_act_on_the_terminal_but_raw_is_raw(call: Call, broker: MemoryBroker) -> None:
    """Bytes of an event are shown, not obeyed; `--raw` is for files."""
    call("topics", "create")
    broker.append("shop.orders.dead", b"\x1b[2J\n", b"\x1b", 0, 0, (("line", b"3"), ("x", b"\x1b")))
    for options in ([], ["--raw"]):
        with pytest.raises(SystemExit):
            run(["dead", "show", "shop.orders.dead/0/0", *options])
    shown, raw = call.said().out.split("header x: \\u001b\n")
    assert "value        \\u001b[2J\\u000a\n" in shown
    assert "header line: 3\n" in shown
    assert "\x1b" not in shown
    assert "\x1b[2J\n" == raw


def test_dead_show_where_nothing_lies_is_exit_one(call: Call) -> None:
    """A letter that retention removed is not there."""
    call("topics", "create")
    code, rows, said = call("dead", "show", "shop.orders.dead/0/5", app=False)
    assert (1, []) == (code, rows)
    assert "no letter" in said
    assert 2 == call("dead", "show", "shop.orders.dead", app=False)[0]


def test_shortened_value_is_one_printable_line() -> None:
    """Nothing in a value can write to the terminal."""
    assert "null" == shortened(None)
    assert "a\\x0a\\x1b[31m\\xff" == shortened(b"a\n\x1b[31m\xff")
    assert 61 == len(shortened(b"x" * 100))
