"""A changed declaration on the command line: topics of its own, features of its own, and what is left of the one before."""

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from app import connections
from app.broker.memory import MemoryBroker
from app.cli.main import run
from app.core.clock import SystemClock
from app.core.record import TopicPartition
from app.serving import stores
from app.serving.base import Progress, TileChange, View, view_of
from app.serving.memory import MemoryStore
from app.streams.graph import count
from app.streams.pipelines import fingerprint
from app.streams.windows import Tile
from features.records import order_events

CLOCK = SystemClock()

SHOP = """
from types import ModuleType
from app.application import App
from app.streams.graph import count
from features.records import order_events

features = ModuleType("features")
features.seen = order_events.live("SIZE", tile="30s").aggregate(n=count()).serve("seen")
features.rate = order_events.tumbling("SIZE").aggregate(n=count()).to("rates")
app = App(features=[features])
"""


def view(size: str, generation: int) -> View:
    pipeline = order_events.live(size, tile="30s").aggregate(n=count()).serve("seen")
    made = view_of(pipeline, 12, fingerprint(pipeline))
    return View(**{name: getattr(made, name) for name in made.__struct_fields__} | {"generation": generation})


class Cluster:
    """A broker and a store in place of real ones, and two versions of an application."""

    def __init__(self, capsys: pytest.CaptureFixture[str]) -> None:
        self.broker, self.store = MemoryBroker(CLOCK), MemoryStore(CLOCK)
        self._capsys = capsys

    def call(self, version: str, *words: str) -> tuple[object, list[dict[str, Any]], str]:
        with pytest.raises(SystemExit) as left:
            run([*words, "-A", f"{version}:app", "--json"])
        said = self._capsys.readouterr()
        return left.value.code, [json.loads(line) for line in said.out.splitlines()], said.err

    def topics(self) -> set[str]:
        return {place.topic for place in self.broker.logs}

    def fill(self, of: View) -> None:
        partition = of.partition_of("u-17")
        start_ms = CLOCK.now_ms() - CLOCK.now_ms() % 30_000
        change = TileChange("u-17", Tile(start_ms, partition, 1, (of.window_ms // 60_000,)))
        assert asyncio.run(self.store.apply(of, partition, None, Progress(1, CLOCK.now_ms()), [change]))


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Cluster:
    made = Cluster(capsys)
    monkeypatch.setattr(connections, "open_broker", lambda settings, clock: made.broker)
    monkeypatch.setattr(stores, "open_store", lambda address, clock, security: made.store)
    for name, size in (("version_one", "1m"), ("version_two", "2m")):
        (tmp_path / f"{name}.py").write_text(SHOP.replace("SIZE", size))
    monkeypatch.syspath_prepend(tmp_path)
    return made


def test_changed_declaration_lives_beside_the_one_before_until_it_is_pruned(cluster: Cluster) -> None:
    """`topics create` makes its topics, both versions read their own features, `prune` leaves one."""
    assert 0 == cluster.call("version_one", "topics", "create")[0]
    code, _, said = cluster.call("version_two", "topics", "list")
    assert (2, True) == (code, "python -m app topics create" in said)
    assert 0 == cluster.call("version_two", "topics", "create")[0]
    assert {"features.seen", "features.seen.2", "state.rate", "state.rate.2", "rates"} <= cluster.topics()

    cluster.fill(view("1m", 1))
    cluster.fill(view("2m", 2))
    for version, n in (("version_one", 1), ("version_two", 2)):
        code, (features,), _ = cluster.call(version, "features", "get", "seen", "u-17")
        assert (0, n, "seen") == (code, features["values"]["n"], features["view"])

    code, lines, _ = cluster.call("version_two", "streams", "prune")
    assert (0, {"features.seen", "state.rate"}) == (code, {line["deleted"] for line in lines})
    assert {"features.seen", "state.rate"}.isdisjoint(cluster.topics())
    assert cluster.broker.log(TopicPartition("rates", 0)) == []
    assert {} == asyncio.run(cluster.store.progress(view("1m", 1)))
    assert 0 == cluster.call("version_two", "features", "get", "seen", "u-17")[0]
    code, lines, said = cluster.call("version_two", "streams", "prune")
    assert (0, [], "nothing is left of other generations\n") == (code, lines, said)
