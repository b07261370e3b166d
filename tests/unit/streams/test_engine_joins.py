"""Engines that share a group and join two topics: both partitions of a number are read by one of them, or by nobody."""

import asyncio
import json
from collections.abc import Sequence
from random import Random
from typing import Annotated, Any

import msgspec
import pytest

from app.broker.base import Assignment
from app.broker.memory import MemoryBroker
from app.core.clock import Clock, ManualClock, run_virtual
from app.core.record import TopicPartition
from app.streams.compiled import joined_topics
from app.streams.engine import Engine, compile_all
from app.streams.graph import Alert, Topic
from app.streams.outputs import topics_of
from app.streams.pipelines import Pipeline

START_MS = 1_800_000_000_000
GROUP = "test.streams"
PARTITIONS = 4


class Step(msgspec.Struct):
    step_id: Annotated[str, msgspec.Meta(max_length=100)]
    user: str


class Pair(Alert, frozen=True):
    user: str


class Lone(Alert, frozen=True):
    user: str


def topic(name: str) -> Topic:
    return Topic(name, Step, key="user", out_of_orderness="1s", partitions=PARTITIONS)


asked, answered, other = topic("asked"), topic("answered"), topic("other")
both = asked.join(answered, within=("0s", "10s"), prefix="answer_")
PIPELINES: dict[str, Pipeline] = {
    "pairs": both.alert(Pair, id=("step_id", "answer_step_id")),
    "lone": both.missing().alert(Lone, id="step_id"),
}


class SplitEngine(Engine):
    """Is given its partitions one topic after the other, and loses them so."""

    async def on_assigned(self, assignments: Sequence[Assignment]) -> None:
        for name in ("asked", "answered"):
            await super().on_assigned([one for one in assignments if one.place.topic == name])

    async def on_revoked(self, assignments: Sequence[Assignment]) -> None:
        for name in ("answered", "asked"):
            await super().on_revoked([one for one in assignments if one.place.topic == name])


async def play(broker: MemoryBroker, clock: Clock, disturb: list[str], kind: type[Engine]) -> set[str]:
    """Publishes questions, of which two in three are answered, and disturbs the group in between; returns the ids that are
    to be told."""
    chance, expected = Random(3), set[str]()
    await broker.admin().create(topics_of([asked.source, answered.source], PIPELINES))
    producer, stops = broker.producer(), list[asyncio.Event]()

    async def publish(name: str, number: int, user: str, at_ms: int) -> None:
        value = json.dumps({"step_id": f"{name}{number}", "user": user}).encode()
        await producer.send(name, value, user.encode(), timestamp_ms=at_ms)

    def start() -> None:
        stops.append(asyncio.Event())
        tasks.create_task(kind(broker, [asked.source, answered.source], PIPELINES, clock, GROUP).run(stops[-1]))

    async with asyncio.TaskGroup() as tasks:
        start()
        for number in range(300):
            user, at_ms = f"u{number}", START_MS + number * 500
            await publish("asked", number, user, at_ms)
            expected.add(f"lone:{user}:asked{number}")
            if number >= 10 and number % 3:
                await publish("answered", number - 10, f"u{number - 10}", at_ms)
                expected.discard(f"lone:u{number - 10}:asked{number - 10}")
                expected.add(f"pair:u{number - 10}:asked{number - 10}:answered{number - 10}")
            if number % 10 == 0:
                await asyncio.sleep(chance.random())
            if disturb and number % 40 == 39:
                match disturb.pop(0):
                    case "join":
                        start()
                    case "leave":
                        stops.pop(0).set()
                    case "expel":
                        broker.expel(chance.choice(broker.groups[GROUP].members))
        for partition in range(PARTITIONS):
            for name in ("asked", "answered"):
                beat = {"partition": partition, "timestamp_ms": START_MS + 10**6}
                await producer.send(name, b'{"heartbeat":true}', None, **beat)  # type: ignore[arg-type]
        await asyncio.sleep(5)
        for stopping in stops:
            stopping.set()
    return expected


@pytest.mark.parametrize("kind", [Engine, SplitEngine])
@pytest.mark.parametrize(
    "disturb", [[], ["join", "leave", "join", "leave"], ["expel", "join", "expel", "leave"]], ids=" ".join
)
def test_engines_that_share_a_join_tell_what_one_tells(disturb: list[str], kind: type[Engine]) -> None:
    """Pairs across any change of owners, also where the two topics come and go one after the other."""

    async def main(clock: Clock) -> None:
        broker = MemoryBroker(ManualClock(START_MS + 10**9))
        expected = await play(broker, clock, list(disturb), kind)
        told = {
            str(json.loads(record.value or b"")["alert_id"])
            for place, log in broker.logs.items()
            for record in log
            if place.topic == "processed.alerts"
        }
        assert expected == told

    run_virtual(main, START_MS)


def test_engine_partition_waits_for_the_one_that_it_is_joined_with() -> None:
    """Half of a pair is read by nobody: what it would have met may be with another worker still."""

    class Half(Engine):
        async def on_assigned(self, assignments: Sequence[Assignment]) -> None:
            await super().on_assigned([one for one in assignments if one.place != TopicPartition("answered", 1)])

    async def main(clock: Clock) -> None:
        broker = MemoryBroker(ManualClock(START_MS + 10**9))
        await broker.admin().create(topics_of([asked.source, answered.source], PIPELINES))
        for partition in range(PARTITIONS):
            broker.append("asked", b"{", b"u", partition, START_MS, ())
        stopping = asyncio.Event()
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(Half(broker, [asked.source, answered.source], PIPELINES, clock, GROUP).run(stopping))
            await asyncio.sleep(3)
            stopping.set()
        committed = broker.groups[GROUP].committed
        assert {0, 2, 3} == {place.partition for place in committed if place.topic == "asked"}

    run_virtual(main, START_MS)


def test_joined_topics_are_those_at_second_hand_too() -> None:
    """Three topics in a chain are read together; one that nobody joins stands alone."""
    third = topic("third")
    pipelines: dict[str, Pipeline] = {
        **PIPELINES,
        "more": answered.join(third, within=("0s", "1s"), prefix="third_")
        .missing()
        .alert(Lone, id="step_id", rule="more"),
    }
    groups = joined_topics(compile_all([other.source], pipelines))
    assert ("answered", "asked", "third") == groups["asked"] == groups["third"]
    assert ("other",) == groups["other"]


def test_join_state_topic_holds_one_value_a_record() -> None:
    """Readable, and gone when no partner can come any more."""

    async def main(clock: Clock) -> None:
        broker = MemoryBroker(ManualClock(START_MS + 10**9))
        await play(broker, clock, [], Engine)
        kept: dict[Any, Any] = {}
        for place, log in broker.logs.items():
            for record in log if place.topic == "state.lone" else []:
                if record.key is not None and b"progress" not in record.key:
                    kept[record.key] = record.value
        key, value = next((key, value) for key, value in kept.items() if b"left" in key)
        assert {"user", "left"} == json.loads(key).keys()
        assert {None} == set(kept.values()), value

    run_virtual(main, START_MS)
