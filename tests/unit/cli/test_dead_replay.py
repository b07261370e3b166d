"""`dead replay` on a memory broker in place of the cluster."""

import asyncio
from pathlib import Path

import pytest

from app.broker.dead_letters import DeadLetters
from app.broker.memory import MemoryBroker
from app.cli import dead, dead_replay
from app.cli.main import run
from app.core.clock import SystemClock
from app.core.record import Record, TopicPartition
from tests.unit.cli.test_topics import APP, Call

ORDERS = TopicPartition("shop.orders", 2)


@pytest.fixture
def broker(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> MemoryBroker:
    """A cluster with three letters about shop.orders/2, and one that was cut."""
    broker = MemoryBroker(SystemClock())
    for module in (dead, dead_replay):
        monkeypatch.setattr(module, "open_cluster", lambda values: broker)
    (tmp_path / "topics_shop.py").write_text(APP)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)

    async def fill() -> None:
        from app.cli.loading import load_app

        await broker.admin().create(load_app("topics_shop:app").topics.all())
        letters = DeadLetters(broker.producer(), "headrace.streams")
        for offset in range(3):
            await letters.write(Record(*ORDERS, offset, 1_000, b"u-1", b"%d" % offset), f"amount {offset}")
        await letters.write(Record(*ORDERS, 9, 1_000, b"u-1", b"x" * 1_200_000), "too large")

    asyncio.run(fill())
    return broker


async def note(broker: MemoryBroker, offset: int, state: bytes) -> None:
    """What a replay writes about the letter at that offset."""
    headers = (("replay_of", b"%d" % offset), ("state", state))
    await broker.producer().confirm("shop.orders.dead", None, None, partition=2, headers=headers)


@pytest.fixture
def call(broker: MemoryBroker, capsys: pytest.CaptureFixture[str]) -> Call:
    return Call(capsys)


def test_dead_replay_dry_run_says_the_fate_of_each_letter(call: Call, broker: MemoryBroker) -> None:
    """Nothing is written; a letter that was cut makes the exit code 1."""
    code, rows, _ = call("dead", "replay", "shop.orders", "--dry-run")
    assert (1, ["waiting"] * 3 + ["cut"]) == (code, [row["outcome"] for row in rows])
    assert [] == broker.logs[ORDERS]


def test_dead_replay_publishes_what_was_chosen_and_list_shows_it(call: Call, broker: MemoryBroker) -> None:
    """By reason, or by place; a second time nothing goes."""
    code, rows, said = call("dead", "replay", "shop.orders", "--reason", "amount 1", "--yes")
    assert (0, [{"letter": "shop.orders.dead/2/1", "outcome": "replayed", "record": "shop.orders/2/0"}]) == (code, rows)
    assert "older than the watermark is late" in said
    place = ("--partition", "2", "--offset", "2", "--since", "1h")
    assert ["replayed"] == [row["outcome"] for row in call("dead", "replay", "shop.orders", *place, "--yes")[1]]
    assert ["before"] == [row["outcome"] for row in call("dead", "replay", "shop.orders", *place, "--yes")[1]]
    assert [b"1", b"2"] == [record.value for record in broker.logs[ORDERS]]
    code, _, said = call("dead", "show", "shop.orders.dead/2/4", app=False)
    assert 2 == code
    assert "is no letter, but the note of a replay about shop.orders.dead/2/1" in said
    _, listed, _ = call("dead", "list", "shop.orders")
    assert [None, "published", "published", None] == [row.get("replay") for row in listed]


def test_dead_list_and_show_say_what_came_of_a_replay(call: Call, broker: MemoryBroker) -> None:
    """Published, for good; refused, and still to be replayed; begun, where it broke off; nothing where nobody tried."""
    letters = DeadLetters(broker.producer(), "headrace.streams")
    asyncio.run(letters.write(Record(*ORDERS, 4, 4_000_000_000_000, b"u-1", b"4"), "from 2096"))
    for offset in ("0", "4"):
        call("dead", "replay", "shop.orders", "--partition", "2", "--offset", offset, "--yes")
    asyncio.run(note(broker, 0, b"refused"))
    asyncio.run(note(broker, 1, b"begun"))
    _, listed, _ = call("dead", "list", "shop.orders")
    expected = ["published", "begun", None, None, "refused"]
    assert expected == [row.get("replay") for row in listed]
    assert listed == [call("dead", "show", row["letter"], app=False)[1][0] for row in listed]
    with pytest.raises(SystemExit):
        run(["dead", "list", "shop.orders", "-A", "topics_shop:app"])
    shown = call.said().out
    assert [1, 1, 1] == [shown.count(word) for word in ("published", "begun", "refused")]


def test_dead_replay_asks_and_takes_no_for_an_answer(
    call: Call, broker: MemoryBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever does not say yes changes nothing; for a person the letters that stay are named."""
    monkeypatch.setattr("typer.confirm", lambda *words, **options: False)
    with pytest.raises(SystemExit) as left:
        run(["dead", "replay", "shop.orders", "-A", "topics_shop:app"])
    assert 1 == left.value.code
    assert [] == broker.logs[ORDERS]
    monkeypatch.setattr("typer.confirm", lambda *words, **options: True)
    with pytest.raises(SystemExit):
        run(["dead", "replay", "shop.orders", "-A", "topics_shop:app"])
    said = call.said()
    assert "3 records: replayed\n1 record: cut: the whole record is not here\n" == said.out
    assert "shop.orders.dead/2/3: cut: the whole record is not here\n" in said.err


def test_dead_replay_foreign_record_is_named_and_no_failure(call: Call, broker: MemoryBroker) -> None:
    """It is no letter, and nothing that could be done about it; the list says so, too."""
    broker.append("shop.orders.dead", b"hello", None, 3, 0, ())
    code, rows, _ = call("dead", "replay", "shop.orders", "--partition", "3", "--yes")
    assert (0, ["no_letter"]) == (code, [row["outcome"] for row in rows])
    (listed,) = [row for row in call("dead", "list", "shop.orders")[1] if row["value"] == "hello"]
    assert ("no letter of ours", None, None, None) == tuple(
        listed[name] for name in ("reason", "partition", "offset", "timestamp_ms")
    )


def test_dead_list_counts_in_words(call: Call, broker: MemoryBroker) -> None:
    """One is one, and what failed again says how often."""
    del broker.logs[TopicPartition("shop.orders.dead", 2)][1:]
    with pytest.raises(SystemExit):
        run(["dead", "list", "-A", "topics_shop:app"])
    assert "1 dead letter; `dead show LETTER` shows one whole\n" == call.said().err
    with pytest.raises(SystemExit):
        run(["dead", "replay", "shop.orders", "--yes", "-A", "topics_shop:app"])
    said = call.said()
    assert said.err.startswith("1 letter of shop.orders.dead to shop.orders. ")
    assert "1 record: replayed\n" == said.out
    letters = DeadLetters(broker.producer(), "headrace.streams")
    asyncio.run(letters.write(broker.logs[ORDERS][0], "amount still"))
    with pytest.raises(SystemExit):
        run(["dead", "list", "-A", "topics_shop:app"])
    assert "once before" in call.said().out


def test_dead_list_unknown_topic_names_those_that_have_letters(call: Call) -> None:
    """As it was written, and no more than one may mean."""
    code, _, said = call("dead", "list", "shop.nope.dead")
    assert 2 == code
    assert said.startswith("error: shop.nope: no such topic is declared that has dead letters; there are ")
    assert "shop.orders" in said
    assert ".dead" not in said
    assert ".late" not in said


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere", "--yes"], "no such topic is declared"),
        (["shop.orders"], "add --yes or --dry-run"),
        (["shop.orders", "--yes", "--offset", "1"], "add --partition"),
        (["shop.orders", "--yes", "--since", "soon"], "is not a duration"),
        (["shop.orders", "--yes", "--to", "nowhere"], "no such topic is declared"),
    ],
)
def test_dead_replay_wrong_use_is_exit_two(call: Call, arguments: list[str], message: str) -> None:
    """One line that names it."""
    code, rows, said = call("dead", "replay", *arguments)
    assert (2, []) == (code, rows)
    assert message in said
