"""Starting again: a changed declaration has tables of its own, a pipeline that joins is filled or counts whole windows, and reset."""

import asyncio
from collections.abc import Iterable, Mapping
from typing import Any

import msgspec
import pytest

from app.broker.base import CommittedOffset
from app.broker.memory import MemoryBroker, MemoryReader
from app.core.clock import Clock, ManualClock, run_virtual
from app.core.errors import SetupError
from app.core.record import TopicPartition
from app.streams.engine import Engine, compile_all
from app.streams.expressions import col
from app.streams.generations import add_generations, numbered
from app.streams.graph import count, total
from app.streams.outputs import topics_of
from app.streams.pipelines import Pipeline
from app.streams.reset import reset
from features.records import order_events

START_MS = 1_800_000_000_000
GROUP = "test.streams"
MINUTE_MS = 60_000


def rate(size: str = "1m") -> Pipeline:
    return order_events.tumbling(size).aggregate(n=count(), usd=total(col.amount_usd)).to("features.rate")


def view() -> Pipeline:
    return order_events.live("2m", tile="30s").aggregate(n=count()).serve("user_view")


async def new_broker(pipelines: dict[str, Pipeline]) -> MemoryBroker:
    broker = MemoryBroker(ManualClock(START_MS + 10**9))
    await broker.admin().create(topics_of([order_events.source], pipelines))
    return broker


def publish(broker: MemoryBroker, number: int, time_ms: int) -> None:
    value = (
        f'{{"order_id":"o{number}","user_id":"u1","amount_usd":2.50,"status":"placed",'
        '"timestamp":"2026-01-01T00:00:00Z"}'
    ).encode()
    broker.append("raw.orders", value, b"u1", 0, time_ms, ())


async def run(broker: MemoryBroker, pipelines: dict[str, Pipeline], clock: Clock, seconds: float = 3) -> Engine:
    stopping = asyncio.Event()
    engine = Engine(broker, [order_events.source], pipelines, clock, GROUP)
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(engine.run(stopping))
        await asyncio.sleep(seconds)
        stopping.set()
    return engine


def rows(broker: MemoryBroker) -> dict[int, int]:
    values = [msgspec.json.decode(record.value or b"") for record in broker.logs[TopicPartition("features.rate", 0)]]
    return {value["window_start"] - START_MS: value["n"] for value in values}


def progress_marks(broker: MemoryBroker) -> list[Any]:
    log = broker.logs[TopicPartition("features.user_view", 0)]
    return [record for record in log if (record.key or b"").startswith(b'{"progress"')]


def test_engine_changed_declaration_is_refused_until_it_has_topics_of_its_own() -> None:
    """State of one declaration is never read by another; the error names the command that helps. The window in which it
    changed has no row."""

    async def main(clock: Clock) -> None:
        broker = await new_broker({"rate": rate()})
        publish(broker, 1, START_MS)
        await run(broker, {"rate": rate()}, clock)
        changed: dict[str, Pipeline] = {"rate": rate("2m")}
        with pytest.raises(ExceptionGroup) as refused:
            await run(broker, changed, clock)
        assert refused.group_contains(SetupError, match="python -m app topics create")

        for pipelines in ({"rate": rate()}, changed):
            known = await add_generations(broker, pipelines)
        second = numbered(changed, known)
        await broker.admin().create(topics_of([order_events.source], second))
        for number in range(1, 8):
            publish(broker, number + 1, START_MS + number * MINUTE_MS)
        await run(broker, second, clock)
        assert {2 * MINUTE_MS: 2, 4 * MINUTE_MS: 2} == rows(broker)

    run_virtual(main, START_MS)


def test_engine_new_pipeline_counts_from_the_first_whole_window() -> None:
    """A pipeline added to running streams writes no row of a window that it saw only a part of."""

    async def main(clock: Clock) -> None:
        both: dict[str, Pipeline] = {"rate": rate(), "user_view": view()}
        broker = await new_broker(both)
        publish(broker, 1, START_MS)
        await run(broker, {"user_view": view()}, clock)
        publish(broker, 2, START_MS + 10_000)
        publish(broker, 3, START_MS + MINUTE_MS)
        publish(broker, 4, START_MS + 3 * MINUTE_MS)
        await run(broker, both, clock)
        assert {MINUTE_MS: 1} == rows(broker)

    run_virtual(main, START_MS)


def tiles(broker: MemoryBroker) -> dict[int, int]:
    """What was counted, by minute since the start."""
    log = broker.logs[TopicPartition("features.user_view", 0)]
    found = [record for record in log if b"tile" in (record.key or b"")]
    said = {msgspec.json.decode(one.key or b"")["tile"]: msgspec.json.decode(one.value or b"")["n"] for one in found}
    return {(start - START_MS) // MINUTE_MS: n for start, n in said.items()}


def test_engine_view_that_joins_is_filled_and_speaks_at_once() -> None:
    """Its features hold what was published before there was such a view, as far back as it may count."""

    async def main(clock: Clock) -> None:
        both: dict[str, Pipeline] = {"rate": rate(), "user_view": view()}
        broker = await new_broker(both)
        for number in (0, 8, 9):
            publish(broker, number, START_MS + number * MINUTE_MS)
        await run(broker, {"rate": rate()}, clock)
        await run(broker, both, clock)
        assert {8: 1, 9: 1} == tiles(broker)
        assert progress_marks(broker)

    run_virtual(main, START_MS)


def test_engine_view_that_cannot_be_filled_says_nothing_until_a_whole_window_has_passed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What the topic no longer holds may have been in the window: without progress its features are missing, and nobody
    decides on half a window."""

    async def main(clock: Clock) -> None:
        both: dict[str, Pipeline] = {"rate": rate(), "user_view": view()}
        broker = await new_broker(both)
        for number in range(3):
            publish(broker, number, START_MS + number * 20_000)
        await run(broker, {"rate": rate()}, clock)
        monkeypatch.setattr(MemoryReader, "beginning_offsets", two_are_gone)
        publish(broker, 3, START_MS + MINUTE_MS)
        await run(broker, both, clock)
        assert {1: 1} == tiles(broker)
        assert [] == progress_marks(broker)
        publish(broker, 4, START_MS + 3 * MINUTE_MS)
        await run(broker, both, clock)
        assert progress_marks(broker)

    whole = MemoryReader.beginning_offsets

    async def two_are_gone(self: MemoryReader, places: Iterable[TopicPartition]) -> dict[TopicPartition, int]:
        gone = TopicPartition("raw.orders", 0)
        return {place: 2 if place == gone else offset for place, offset in (await whole(self, places)).items()}

    async def times(self: MemoryReader, times_ms: Mapping[TopicPartition, int]) -> dict[TopicPartition, int]:
        beginnings = await self.beginning_offsets(times_ms)
        return {place: max(offset, beginnings[place]) for place, offset in (await found(self, times_ms)).items()}

    found = MemoryReader.offsets_for_times
    monkeypatch.setattr(MemoryReader, "offsets_for_times", times)
    run_virtual(main, START_MS)


def test_engine_table_made_anew_is_refused_and_not_read_as_empty() -> None:
    """State that is gone is said, not forgotten."""

    async def main(clock: Clock) -> None:
        broker = await new_broker({"rate": rate()})
        publish(broker, 1, START_MS)
        await run(broker, {"rate": rate()}, clock)
        broker.logs[TopicPartition("state.rate", 0)].clear()
        with pytest.raises(ExceptionGroup) as refused:
            await run(broker, {"rate": rate()}, clock)
        assert refused.group_contains(SetupError, match="state is gone")

    run_virtual(main, START_MS)


def test_engine_source_made_anew_is_refused() -> None:
    """Offsets of another topic say nothing about this one."""

    async def main(clock: Clock) -> None:
        broker = await new_broker({"rate": rate()})
        publish(broker, 1, START_MS)
        await run(broker, {"rate": rate()}, clock)
        broker.logs[TopicPartition("raw.orders", 0)].clear()
        with pytest.raises(ExceptionGroup) as refused:
            await run(broker, {"rate": rate()}, clock)
        assert refused.group_contains(SetupError, match="made anew")

    run_virtual(main, START_MS)


def test_engine_that_has_read_on_after_a_restart_never_says_as_of_nothing() -> None:
    """While a restarted engine catches up, the store keeps what it knew before."""

    async def main(clock: Clock) -> None:
        pipelines = {"user_view": view()}
        broker = await new_broker(pipelines)
        for number in range(3):
            publish(broker, number, START_MS + number)
            await run(broker, pipelines, clock)
        marks = [msgspec.json.decode(record.value or b"")["as_of"] for record in progress_marks(broker)]
        assert marks == sorted(marks)
        assert marks[0] > 0

    run_virtual(main, START_MS)


def test_reset_of_a_commit_of_another_version_lets_all_join_anew() -> None:
    """The way out works where nothing but the event time can be read; what is no commit of streams is named."""

    async def main(clock: Clock) -> None:
        pipelines = {"rate": rate()}
        broker = await new_broker(pipelines)
        publish(broker, 1, START_MS)
        await run(broker, pipelines, clock)
        place = TopicPartition("raw.orders", 0)
        commits = broker.groups[GROUP].committed
        commits[place] = CommittedOffset(1, f'{{"m":{START_MS},"t":{{"rate":["f",0]}}}}')
        with pytest.raises(ExceptionGroup) as refused:
            await run(broker, pipelines, clock)
        assert refused.group_contains(SetupError, match="streams reset NAME")

        topic = compile_all([order_events.source], pipelines)["raw.orders"]
        await reset(broker, GROUP, [topic], "rate", ["raw.orders"])
        # It cannot be read whether somebody has seen the first three, and given rows of them.
        for number in range(1, 7):
            publish(broker, number + 1, START_MS + number * MINUTE_MS)
            if number == 3:
                await run(broker, pipelines, clock)
        await run(broker, pipelines, clock)
        assert {4 * MINUTE_MS: 1} == {start: n for start, n in rows(broker).items() if start > 0}

        commits[place] = CommittedOffset(1, "else")
        with pytest.raises(SetupError, match="delete the group"):
            await reset(broker, GROUP, [topic], "rate", ["raw.orders"])

    run_virtual(main, START_MS)


def test_reset_while_a_worker_runs_is_refused() -> None:
    """Whoever resets must hold every partition, or a worker would write the old marks again."""

    async def main(clock: Clock) -> None:
        pipelines = {"rate": rate()}
        broker = await new_broker(pipelines)
        stopping = asyncio.Event()
        engine = Engine(broker, [order_events.source], pipelines, clock, GROUP)
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(engine.run(stopping))
            await asyncio.sleep(1)
            topic = compile_all([order_events.source], pipelines)["raw.orders"]
            with pytest.raises(SetupError, match="stop all of them first"):
                await reset(broker, GROUP, [topic], "rate", ["raw.orders"])
            stopping.set()

    run_virtual(main, START_MS)


def test_engine_closed_window_gets_its_tombstone_after_the_commit_that_passed_it() -> None:
    """Tables do not grow for ever: what is over is deleted, after it was committed."""

    async def main(clock: Clock) -> None:
        pipelines = {"rate": rate()}
        broker = await new_broker(pipelines)
        publish(broker, 1, START_MS)
        await run(broker, pipelines, clock)
        publish(broker, 2, START_MS + 3 * MINUTE_MS)
        await run(broker, pipelines, clock)
        log = broker.logs[TopicPartition("state.rate", 0)]
        tombstones = [record.key for record in log if record.value is None]
        assert [b'{"user_id":"u1","window_start":%d}' % START_MS] == tombstones

    run_virtual(main, START_MS)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        (b"garbage", b"{}"),
        (b"\xff", b"{}"),
        (b'{"user_id":"u1"}', b"{}"),
        (b"[" * 100_000, b"{}"),
        (b'{"user_id":"u1","window_start":1800000000000,"partition":0}', b"garbage"),
        (b'{"user_id":"u1","window_start":1800000000000,"partition":0}', b'{"version":99,"n":1,"usd":1.005}'),
        (b'{"user_id":"u1","window_start":1800000000000,"partition":0}', b'{"version":99,"n":1,"usd":1e999999}'),
        (None, b"garbage"),
    ],
)
def test_engine_foreign_record_in_its_table_is_passed_over(
    key: bytes | None, value: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    """Whoever writes into a table by mistake does not stop the streams, and no count is lost."""

    async def main(clock: Clock) -> None:
        broker = await new_broker({"rate": rate()})
        publish(broker, 1, START_MS)
        await run(broker, {"rate": rate()}, clock)
        broker.append("state.rate", value, key, 0, 0, ())
        publish(broker, 2, START_MS + 1)
        publish(broker, 3, START_MS + 2 * MINUTE_MS)
        await run(broker, {"rate": rate()}, clock)
        assert {0: 2} == rows(broker)
        told = [line for line in caplog.messages if "state.rate/0/" in line and "passed over" in line]
        assert (0 if key is None else 1) == len(told)

    run_virtual(main, START_MS)
