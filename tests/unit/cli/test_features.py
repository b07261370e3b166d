"""`features` on the command line: what a person and a script are told of one entity."""

import asyncio
import json

import pytest

from agents import app
from app import connections
from app.broker.memory import MemoryBroker
from app.cli.main import run
from app.core.clock import SystemClock
from app.serving import stores
from app.serving.base import FeatureStore, Progress, TileChange
from app.serving.memory import MemoryStore
from app.streams.windows import Tile, slice_start

STORE = ["--store", "redis://127.0.0.1:1/0"]
VIEW = app.views["user_features"]
CLOCK = SystemClock()


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch) -> MemoryStore:
    """An empty store in place of the one that the options name."""
    made = MemoryStore(CLOCK)

    def open_store(address: str, clock: object, security: object) -> FeatureStore:
        return made

    monkeypatch.setattr(stores, "open_store", open_store)
    monkeypatch.setattr(connections, "open_broker", lambda settings, clock: MemoryBroker(CLOCK))
    return made


def fill(store: MemoryStore, as_of_ms: int) -> None:
    partition = VIEW.partition_of("u-17")
    tile = Tile(slice_start(CLOCK.now_ms(), VIEW.tile_ms), partition, 7, (1_234, 123_456_705))
    asyncio.run(store.apply(VIEW, partition, None, Progress(1, as_of_ms), [TileChange("u-17", tile)]))


def exit_code(*words: str) -> object:
    with pytest.raises(SystemExit) as left:
        run(["features", *words])
    return left.value.code


def test_features_list_json_is_an_object_a_view(capsys: pytest.CaptureFixture[str]) -> None:
    """A script gets the declared views."""
    assert 0 == exit_code("list", "--json")
    views = {view["view"]: view for view in map(json.loads, capsys.readouterr().out.splitlines())}
    assert app.views.keys() == views.keys()
    view = views["user_features"]
    assert ("user_id", 300_000) == (view["entity"], view["window_ms"])
    assert ["order_count_5m", "order_value_5m"] == view["values"]


def test_features_list_is_a_table(capsys: pytest.CaptureFixture[str]) -> None:
    """A person gets a table."""
    assert 0 == exit_code("list")
    assert "user_features" in capsys.readouterr().out


def test_features_get_shows_values_and_freshness(store: MemoryStore, capsys: pytest.CaptureFixture[str]) -> None:
    """A person reads counts, dollars, how fresh they are and what they count."""
    fill(store, CLOCK.now_ms())
    assert 0 == exit_code("get", "user_features", "u-17", *STORE)
    shown = capsys.readouterr().out
    for text in (
        "u-17",
        "1,234",
        "$1,234,567.05",
        "fresh: complete up to 0.",
        "over the last 5m, up to one tile of 30s",
    ):
        assert text in shown


def test_features_get_json_is_one_object(store: MemoryStore, capsys: pytest.CaptureFixture[str]) -> None:
    """A script gets one object, with money as a number of dollars."""
    fill(store, CLOCK.now_ms() - 60_000)
    assert 0 == exit_code("get", "user_features", "u-17", "--json", *STORE)
    printed = capsys.readouterr().out
    found = json.loads(printed)
    assert '"order_value_5m":1234567.05' in printed
    assert ("stale", 1_234) == (found["freshness"], found["values"]["order_count_5m"])
    assert 60_000 <= found["age_ms"] <= 70_000


def test_features_get_without_as_of_says_so(store: MemoryStore, capsys: pytest.CaptureFixture[str]) -> None:
    """Tiles nobody has vouched for yet are stale, without a nonsensical age."""
    fill(store, 0)
    assert 0 == exit_code("get", "user_features", "u-17", *STORE)
    assert "stale: nobody has said yet" in capsys.readouterr().out


def test_features_get_nothing_materialized_is_missing_and_no(
    store: MemoryStore, capsys: pytest.CaptureFixture[str]
) -> None:
    """Zeros that mean nothing say so, and a script sees it by the exit code."""
    assert 1 == exit_code("get", "user_features", "u-17", *STORE)
    assert "missing: nothing of this partition was ever materialized" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ["user_feature", "u-17", *STORE],
            "error: user_feature: no such view is declared; there are service_health, user_clicks, user_features, ",
        ),
        (
            ["user_features", "u-17", "--store", "memory://"],
            "error: HEADRACE_STORE: memory:// lives and dies with one process; ",
        ),
        (["user_features", "u-17", *STORE], "error: redis at redis://127.0.0.1:1/0 does not answer since "),
    ],
)
def test_features_get_wrong_setup_is_one_line(
    words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """An unknown view, a store of no use and one that is not there are each one line."""
    assert 2 == exit_code("get", *words)
    errors = capsys.readouterr().err
    assert errors.startswith(message)
    assert 1 == errors.count("\n")
