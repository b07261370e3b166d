"""`streams reset` on the command line: a view of another declaration is forgotten everywhere, and begins anew."""

import asyncio

import msgspec
import pytest

from agents import app
from app import connections
from app.broker.memory import MemoryBroker
from app.cli.main import run
from app.core.clock import SystemClock
from app.core.record import TopicPartition
from app.serving import stores
from app.serving.base import FeatureStore, Progress, TileChange
from app.serving.memory import MemoryStore
from app.streams.windows import Tile

VIEW = app.views["user_features"]
OTHER = msgspec.structs.replace(VIEW, fingerprint="f" * 16)
CLOCK = SystemClock()


def test_streams_reset_forgets_a_view_in_its_topic_and_store(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The way out that a refused view names works: topic and store are empty, and the view may be read again."""
    broker, store = MemoryBroker(CLOCK), MemoryStore(CLOCK)

    async def fill() -> None:
        await broker.admin().create(app.topics.all())
        broker.append(VIEW.topic, b"{}", b"{}", 0, 0, ())
        assert await store.apply(OTHER, 0, None, Progress(1, 1), [TileChange("u-17", Tile(0, 0, 1, (1,)))])

    def open_broker(settings: object, clock: object) -> MemoryBroker:
        return broker

    def open_store(address: str, clock: object, security: object) -> FeatureStore:
        return store

    asyncio.run(fill())
    monkeypatch.setattr(connections, "open_broker", open_broker)
    monkeypatch.setattr(stores, "open_store", open_store)
    with pytest.raises(SystemExit) as left:
        run(["streams", "reset", VIEW.name])
    assert 0 == left.value.code
    assert "user_features: forgotten in 0 partitions" in capsys.readouterr().err
    assert [] == broker.logs[TopicPartition(VIEW.topic, 0)]
    assert {} == asyncio.run(store.progress(VIEW))


def test_streams_reset_makes_the_table_of_windows_anew(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A group whose commits have expired reads the table from its beginning, where the other declaration's entries lay."""
    broker = MemoryBroker(CLOCK)

    async def fill() -> None:
        await broker.admin().create(app.topics.all())
        broker.append("state.order_rate", b"{}", b"{}", 0, 0, ())

    asyncio.run(fill())
    monkeypatch.setattr(connections, "open_broker", lambda settings, clock: broker)
    monkeypatch.setattr(stores, "open_store", lambda address, clock, security: MemoryStore(CLOCK))
    with pytest.raises(SystemExit) as left:
        run(["streams", "reset", "order_rate"])
    assert 0 == left.value.code
    assert [] == broker.logs[TopicPartition("state.order_rate", 0)]
