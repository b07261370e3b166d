"""What an engine does with outputs that a topic does not take, with outages at its end, and with deleted records."""

import asyncio
import logging
from collections.abc import Iterable

import msgspec
import pytest

from app.broker.memory import Fault, MemoryBroker, MemoryReader
from app.broker.topics import TopicSpec
from app.core.clock import Clock, ManualClock, run_virtual
from app.core.record import TopicPartition
from app.streams.engine import Engine
from app.streams.outputs import topics_of
from app.streams.pipelines import pipelines_in
from features import fraud

START_MS = 1_800_000_000_000
GROUP = "test.streams"
PIPELINES = pipelines_in(fraud)


async def broker_with(small: str = "", takes_bytes: int = 0) -> MemoryBroker:
    """All topics of the fraud streams; one of them takes little."""
    broker = MemoryBroker(ManualClock(START_MS))
    specs: list[TopicSpec] = topics_of([fraud.orders.source], PIPELINES)
    await broker.admin().create(
        [msgspec.structs.replace(spec, max_message_bytes=takes_bytes) if spec.name == small else spec for spec in specs]
    )
    return broker


def order(broker: MemoryBroker, order_id: str, amount: str = "20000") -> None:
    value = (
        f'{{"order_id":"{order_id}","user_id":"u1","amount_usd":{amount},"status":"placed",'
        '"timestamp":"2026-01-01T00:00:00Z"}'
    ).encode()
    broker.append("raw.orders", value, b"u1", 0, START_MS, ())


async def run(broker: MemoryBroker, clock: Clock) -> Engine:
    stopping = asyncio.Event()
    engine = Engine(broker, [fraud.orders.source], PIPELINES, clock, GROUP)
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(engine.run(stopping))
        await asyncio.sleep(3)
        stopping.set()
    return engine


def letters(broker: MemoryBroker) -> list[bytes | None]:
    return [record.header("reason") for record in broker.logs[TopicPartition("raw.orders.dead", 0)]]


def test_engine_alert_too_large_becomes_a_dead_letter_of_its_event() -> None:
    """The neighbours' alerts arrive, and the streams go on."""

    async def main(clock: Clock) -> None:
        broker = await broker_with("processed.alerts", takes_bytes=500)
        for order_id in ("o-1", "o-" + "x" * 190, "o-2"):
            order(broker, order_id)
        engine = await run(broker, clock)
        assert 2 == engine.statistics.alerts
        assert [b"counted; but its alert is too large"] == [
            (reason or b"").partition(b":")[0] for reason in letters(broker)
        ]
        assert 3 == broker.groups[GROUP].committed[TopicPartition("raw.orders", 0)].offset

    run_virtual(main, START_MS)


def test_engine_dead_letter_too_large_is_cut() -> None:
    """A letter that its topic does not take keeps its beginning, its length and its hash."""

    async def main(clock: Clock) -> None:
        broker = await broker_with("raw.orders.dead", takes_bytes=100_000)
        broker.append("raw.orders", b"{" + b"x" * 200_000, b"u1", 0, START_MS, ())
        await run(broker, clock)
        (letter,) = broker.logs[TopicPartition("raw.orders.dead", 0)]
        assert (b"200001", 65_536) == (letter.header("length"), len(letter.value or b""))

    run_virtual(main, START_MS)


def test_engine_dead_letters_are_one_line_of_the_log(caplog: pytest.LogCaptureFixture) -> None:
    """The first of many says where it lay, where it went and why; the others are counted."""

    async def main(clock: Clock) -> None:
        broker = await broker_with()
        for _ in range(3):
            broker.append("raw.orders", b"{\x1b[2J", b"u1", 0, START_MS, ())
        with caplog.at_level(logging.INFO):
            await run(broker, clock)
        assert 3 == len(letters(broker))

    run_virtual(main, START_MS)
    (line,) = [line for line in caplog.messages if "raw.orders.dead" in line]
    assert line.startswith("raw.orders/0/0 went to raw.orders.dead: JSON is malformed")


@pytest.mark.parametrize(
    ("key", "time_ms", "reason"),
    [
        (b"", START_MS, b"the key has 0 bytes"),
        (b"k" * 1_001, START_MS, b"the key has 1,001 bytes"),
        (b"u1", 2**62, b"is not between 1970 and 9999"),
    ],
)
def test_engine_key_or_time_out_of_bounds_is_a_dead_letter(key: bytes, time_ms: int, reason: bytes) -> None:
    """What no table or alert could carry ends at the gate."""

    async def main(clock: Clock) -> None:
        broker = await broker_with()
        spec = broker.specs["raw.orders"]
        broker.specs["raw.orders"] = msgspec.structs.replace(spec, max_ahead_ms=None)
        broker.append("raw.orders", b"{}", key, 0, time_ms, ())
        await run(broker, clock)
        assert [True] == [reason in (letter or b"") for letter in letters(broker)]

    run_virtual(main, START_MS)


def test_engine_long_key_of_a_bad_record_is_cut_in_its_letter() -> None:
    """A key that its dead-letter topic does not take keeps its beginning and its length."""

    async def main(clock: Clock) -> None:
        broker = await broker_with("raw.orders.dead", takes_bytes=100_000)
        broker.append("raw.orders", b"{}", b"k" * 200_000, 0, START_MS, ())
        await run(broker, clock)
        (letter,) = broker.logs[TopicPartition("raw.orders.dead", 0)]
        assert (b"200000", 8_192) == (letter.header("key_length"), len(letter.key or b""))

    run_virtual(main, START_MS)


def test_engine_records_deleted_before_they_were_read_are_counted_and_said(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Retention that overtakes the streams is no silent loss."""

    async def four_everywhere(reader: MemoryReader, places: Iterable[TopicPartition]) -> dict[TopicPartition, int]:
        return {place: 4 if place == TopicPartition("raw.orders", 0) else 0 for place in places}

    async def main(clock: Clock) -> None:
        broker = await broker_with()
        order(broker, "o-1")
        await run(broker, clock)
        for number in range(5):
            order(broker, f"o-{number + 2}")
        monkeypatch.setattr(MemoryReader, "beginning_offsets", four_everywhere)
        with caplog.at_level(logging.WARNING):
            engine = await run(broker, clock)
        assert 3 == engine.statistics.gone
        assert "3 records were deleted before they were read" in caplog.text

    run_virtual(main, START_MS)


def test_engine_outage_closes_every_client_and_commits_nothing() -> None:
    """An engine that meets an outage leaves nothing open, and the next one repeats what it had not committed."""

    async def main(clock: Clock) -> None:
        broker = await broker_with()
        order(broker, "o-1")
        broker.plan(Fault("flush", "fail"))
        with pytest.raises(ExceptionGroup, match="unhandled errors"):
            await run(broker, clock)
        assert {} == broker.groups[GROUP].committed
        assert [] == broker.groups[GROUP].members
        engine = await run(broker, clock)
        assert 1 == engine.statistics.alerts

    run_virtual(main, START_MS)
