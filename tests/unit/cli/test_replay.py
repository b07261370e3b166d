"""`replay` on the command line: options, output, and errors in one line."""

import asyncio
import json
from pathlib import Path

import pytest

from agents import app
from app import connections
from app.broker.memory import MemoryBroker
from app.cli.main import run
from app.cli.replay import pairs
from app.core.clock import SystemClock
from app.core.errors import SetupError
from app.core.settings import Settings


@pytest.fixture
def broker(monkeypatch: pytest.MonkeyPatch) -> MemoryBroker:
    """A broker with the application's topics, in place of the one that the settings name."""
    made = MemoryBroker(SystemClock())
    asyncio.run(made.admin().create(app.topics.all()))

    def open_broker(settings: Settings, clock: object) -> MemoryBroker:
        return made

    monkeypatch.setattr(connections, "open_broker", open_broker)
    return made


def arguments(file: Path, *more: str) -> list[str]:
    return [
        "replay",
        str(file),
        "--topic",
        "raw.orders",
        "--map",
        "user_id=customer",
        "--constant",
        "status=placed",
        *more,
    ]


def exit_code(words: list[str]) -> object:
    with pytest.raises(SystemExit) as left:
        run(words)
    return left.value.code


def shop_file(folder: Path) -> Path:
    now_ms = SystemClock().now_ms()
    file = folder / "shop.csv"
    file.write_text(f"customer,timestamp,amount_usd\nu1,{now_ms},1.50\nu2,{now_ms},lots\n")
    return file


def test_replay_says_what_became_of_the_rows(
    broker: MemoryBroker, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A person reads how many were published, and where the others are."""
    assert 0 == exit_code(arguments(shop_file(tmp_path), "--id", "order_id"))
    shown = capsys.readouterr()
    assert "1 of 2 rows of shop.csv published to raw.orders\n" == shown.out
    assert "1 went to raw.orders.dead; see: python -m app dead list raw.orders" in shown.err
    (order,) = [
        json.loads(record.value or b"") for log in broker.logs.values() for record in log if record.key == b"u1"
    ]
    assert ("shop.csv#2", 1.5, "placed") == (order["order_id"], order["amount_usd"], order["status"])


def test_replay_json_is_one_object(broker: MemoryBroker, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """With --json the report is the only thing on stdout."""
    assert 0 == exit_code(arguments(shop_file(tmp_path), "--id", "order_id", "--json"))
    report = json.loads(capsys.readouterr().out)
    assert (2, 1, 1) == (report["rows"], report["published"], report["dead"])


def test_replay_wrong_mapping_is_one_line(
    broker: MemoryBroker, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """What is missing is named as the option that gives it; nothing is published."""
    assert 2 == exit_code(arguments(shop_file(tmp_path)))
    error = capsys.readouterr().err
    assert error.startswith("error: --map order_id=COLUMN: is needed")
    assert 1 == error.count("\n")
    assert not any(broker.logs.values())


@pytest.mark.parametrize("given", [["user_id"], ["=customer"], ["a=1", "a=2"]])
def test_pairs_of_another_form_name_the_option(given: list[str]) -> None:
    """A pair without `=` or name, or given twice, is refused as the user wrote it."""
    with pytest.raises(SetupError, match=f"--map {given[-1]}"):
        pairs("--map", "FIELD=COLUMN", given)


def test_pairs_values_may_hold_anything() -> None:
    """Only the first `=` separates; a value may be empty."""
    assert {"a": "b=c", "d": ""} == pairs("--constant", "FIELD=VALUE", ["a=b=c", "d="])
