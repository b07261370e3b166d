"""What a restart must bring back exactly: small cases, each of which was once wrong."""

import asyncio
import json
from collections.abc import Callable
from typing import Annotated, Any

import msgspec
import pytest

from app.broker.memory import MemoryBroker
from app.core.clock import Clock, ManualClock, run_virtual
from app.core.errors import SetupError
from app.streams.engine import Engine, compile_all
from app.streams.graph import Alert, Topic, count
from app.streams.outputs import topics_of
from app.streams.pipelines import Pipeline

START_MS = 1_800_000_000_000


class Step(msgspec.Struct):
    step_id: Annotated[str, msgspec.Meta(max_length=100)]
    user: str


class Series(Alert, frozen=True):
    user: str


Event = tuple[str, int]
"""User, and event time after the start."""


def topic(lateness: str, retention: str = "7d") -> Topic:
    return Topic("steps", Step, key="user", out_of_orderness=lateness, partitions=1, retention=retention)


def written(
    source: Topic,
    pipelines: dict[str, Pipeline],
    lives: list[list[Event]],
    before_restart: Callable[[MemoryBroker], None] = lambda broker: None,
) -> list[dict[str, Any]]:
    """The values of all alerts and rows, of engines that follow each other and end as they should."""

    async def main(clock: Clock) -> list[dict[str, Any]]:
        broker, number = MemoryBroker(ManualClock(START_MS + 10**9)), 0
        await broker.admin().create(topics_of([source.source], pipelines))
        for life in lives:
            stopping = asyncio.Event()
            task = asyncio.create_task(Engine(broker, [source.source], pipelines, clock, "test").run(stopping))
            for user, at_ms in life:
                number += 1
                value = json.dumps({"step_id": str(number), "user": user}).encode()
                broker.append("steps", value, user.encode(), 0, START_MS + at_ms, ())
                await asyncio.sleep(1.5)
            stopping.set()
            await task
            before_restart(broker)
        logs = [log for place, log in broker.logs.items() if place.topic in ("processed.alerts", "rows")]
        return [json.loads(record.value or b"") for log in logs for record in log]

    return run_virtual(main, START_MS)


def test_burst_after_a_restart_knows_that_it_has_fired() -> None:
    """Whether the record before completed one hangs on a record that lies twice as far back."""
    source = topic("5s")
    pipelines: dict[str, Pipeline] = {"series": source.burst(count=2, within="10s").alert(Series, id="step_id")}
    first, then = [("u1", 84_000), ("u1", 90_000), ("u2", 100_000)], [("u1", 96_000)]
    expected = ["series:u1:2"]
    assert expected == [one["alert_id"] for one in written(source, pipelines, [[*first, *then]])]
    assert expected == [one["alert_id"] for one in written(source, pipelines, [first, then])]


def test_session_that_has_begun_survives_a_tombstone_of_somebody_frozen() -> None:
    """It was meant for the key's session before."""
    source = topic("1s")
    pipelines: dict[str, Pipeline] = {"visits": source.session(gap="1m").aggregate(n=count()).to("rows")}
    lives = [[("u1", 0), ("u2", 120_000), ("u1", 121_000)], [("u1", 122_000), ("u2", 400_000)]]

    def wake(broker: MemoryBroker) -> None:
        broker.append("state.visits", None, b'{"user":"u1"}', 0, 0, ())

    expected = written(source, pipelines, lives)
    assert [1, 1, 2] == sorted(row["n"] for row in expected)
    assert expected == written(source, pipelines, lives, wake)


def test_memory_longer_than_the_topic_keeps_is_refused() -> None:
    """A restart could not read back what it must remember."""
    source = topic("5s", retention="1d")
    pipeline = source.once("step_id", within="2d").tumbling("1m").aggregate(n=count()).to("rows")
    with pytest.raises(SetupError, match=r"remember 2d.*keeps 1d"):
        compile_all([source.source], {"rate": pipeline})
