"""The asyncio engine against the brute-force reading, killed at any of its calls to the broker."""

import asyncio
from dataclasses import replace
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.broker.base import Confirmation, RebalanceListener
from app.broker.memory import MemoryBroker, MemoryConsumer, MemoryProducer
from app.core.clock import Clock, ManualClock, run_virtual
from app.core.record import Record, TopicPartition
from app.streams import engine as engine_module
from app.streams.compiled import CompiledTopic, TableCodec, load_topic
from app.streams.engine import Engine
from app.streams.graph import pipelines_in
from app.streams.outputs import topics_of
from app.streams.restore import CommitMark, mark_of
from app.streams.tables import PartitionState
from app.streams.windows import NEVER_MS
from features import fraud
from tests.examples import examples
from tests.reference import SourceRecord, read_all
from tests.streams_kit import check_outputs

START_MS = 1_800_000_000_000
PIPELINES = pipelines_in(fraud)


Plan = list[tuple[int, tuple[bytes | None, bytes | None]]]


class Killed(Exception):
    """The process is gone: no call after this one has any effect."""


class KilledBroker(MemoryBroker):
    """A memory broker whose client dies at its n-th call."""

    def __init__(self, clock: Clock) -> None:
        super().__init__(clock)
        self.calls_left = 10**9

    def call(self) -> None:
        self.calls_left -= 1
        if self.calls_left < 0:
            raise Killed

    def producer(self) -> "KilledProducer":
        return KilledProducer(self)

    def consumer(self, group: str, topics: Any, listener: RebalanceListener) -> "KilledConsumer":
        return KilledConsumer(self, group, topics, listener)


class KilledProducer(MemoryProducer):
    def __init__(self, broker: KilledBroker) -> None:
        super().__init__(broker)
        self._killer = broker

    def _append(self, *record: Any) -> Confirmation:
        self._killer.call()
        return super()._append(*record)


class KilledConsumer(MemoryConsumer):
    def __init__(self, broker: KilledBroker, group: str, topics: Any, listener: RebalanceListener) -> None:
        super().__init__(broker, group, topics, listener)
        self._killer = broker

    async def commit(self, offsets: Any) -> None:
        self._killer.call()
        await super().commit(offsets)


def order_bytes(user: int, order: int, amount: str, time: str = "2026-01-01T00:00:00Z") -> bytes:
    return (
        f'{{"order_id":"o{order}","user_id":"u{user}","amount_usd":{amount},"status":"placed","timestamp":"{time}"}}'
    ).encode()


BAD_VALUES = (
    b"{",
    b"\xff\xfe",
    b"[]",
    order_bytes(1, 1, "-1"),
    order_bytes(1, 1, "1.005"),
    order_bytes(1, 1, '"NaN"'),
    order_bytes(1, 1, "1e999999"),
    order_bytes(1, 1, "1", "2026-01-01T00:00:00"),
)

steps_ms = st.one_of(st.integers(0, 3_000), st.integers(-20_000, 0), st.integers(-400_000, 400_000))
valid = st.builds(
    lambda user, order, amount: (f"u{user}".encode(), order_bytes(user, order, amount)),
    st.integers(0, 3),
    st.integers(0, 12),
    st.sampled_from(["1", "0", "10000", "10000.01", "99999.99", "12.5", "7.10"]),
)
bad = st.sampled_from(
    [(b"u1", value) for value in BAD_VALUES] + [(None, b"{}"), (b"u1", None), (b"u2", order_bytes(1, 1, "1"))]
)
heartbeat = st.just((None, b'{"heartbeat": true}'))
events = st.lists(st.tuples(steps_ms, st.one_of(valid, valid, valid, bad, heartbeat)), min_size=1, max_size=60)


def source_records(plan: Plan) -> list[SourceRecord]:
    """All on two partitions, by user, so that slices of several users share one."""
    records, time_ms, ends = [], START_MS, [0, 0]
    for step_ms, (key, value) in plan:
        time_ms += step_ms
        partition = key[-1] % 2 if key else time_ms % 2
        records.append(SourceRecord(partition, ends[partition], time_ms, key, value))
        ends[partition] += 1
    return records


async def run_engine(broker: KilledBroker, clock: Clock, records: list[SourceRecord], kills: list[int]) -> None:
    """Runs engines one after another, each killed after so many calls, the last one until everything is committed."""
    producer = MemoryProducer(broker)
    chunks = max(1, len(kills) + 1)
    for index in range(chunks):
        for record in records[index * len(records) // chunks : (index + 1) * len(records) // chunks]:
            producer.try_send(
                "raw.orders", record.value, record.key, partition=record.partition, timestamp_ms=record.timestamp_ms
            )
        broker.calls_left = kills[index] if index < len(kills) else 10**9
        stopping = asyncio.Event()
        engine = Engine(broker, [fraud.orders.source], PIPELINES, clock, "test.streams")
        task = asyncio.create_task(engine.run(stopping))
        await asyncio.sleep(3.5)
        stopping.set()
        try:
            await task
        except Killed:
            assert index < len(kills)


def records_of(broker: MemoryBroker, topic: str) -> list[Record]:
    return [record for place, log in broker.logs.items() if place.topic == topic for record in log]


def run_case(plan: Plan, kills: list[int]) -> None:
    records = source_records(plan)

    async def main(clock: Clock) -> None:
        broker = KilledBroker(ManualClock(START_MS + 10**9))
        await broker.admin().create(topics_of([fraud.orders.source], PIPELINES))
        await run_engine(broker, clock, records, kills)
        check_outputs(lambda topic: records_of(broker, topic), read_all(records))
        committed = broker.groups["test.streams"].committed
        for partition in range(2):
            end = sum(record.partition == partition for record in records)
            if end:
                assert end == committed[TopicPartition("raw.orders", partition)].offset

    run_virtual(main, START_MS)


@given(plan=events, kills=st.lists(st.integers(0, 40), max_size=4))
@settings(max_examples=examples(150))
def test_engine_killed_at_any_call_gives_what_brute_force_gives(plan: Plan, kills: list[int]) -> None:
    """Whatever the records and wherever the engine dies, its outputs are those of a plain reading."""
    run_case(plan, kills)


@pytest.mark.parametrize("safeguard", ["version", "event time in the commit", "the table of windows"])
def test_engine_safeguard_removed_turns_the_proof_red(safeguard: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ablation: without any one of its safeguards the engine is caught by the test above."""
    if safeguard == "version":
        monkeypatch.setattr(engine_module, "load_topic", load_without_versions)
    elif safeguard == "event time in the commit":
        monkeypatch.setattr(engine_module, "mark_of", mark_without_time)
    else:
        monkeypatch.setattr(Engine, "_send_changes", send_nothing)
    plan: Plan = [(1_000, (b"u1", order_bytes(1, number, "5"))) for number in range(6)]
    plan += [(400_000, (b"u1", order_bytes(1, 20, "5"))), (-390_000, (b"u1", order_bytes(1, 21, "5")))]
    with pytest.raises(AssertionError):
        run_cases(plan)


def run_cases(plan: Plan) -> None:
    for kill in range(0, 60, 3):
        run_case(plan, [kill] * (len(plan) - 1))


def load_without_versions(source: Any, pipelines: Any) -> CompiledTopic:
    topic = load_topic(source, pipelines)
    namespace = topic.process.__globals__
    exec(topic.text.replace("elif offset > entry[0]:", "else:"), namespace)
    return replace(topic, process=namespace["process"])


def mark_without_time(topic: CompiledTopic, state: PartitionState) -> str:
    mark = msgspec.json.decode(mark_of(topic, state), type=CommitMark)
    return msgspec.json.encode(CommitMark(NEVER_MS, mark.tables)).decode()


async def send_nothing(engine: Engine, table: TableCodec, state: PartitionState) -> None:
    if table.row is None:
        await original_send_changes(engine, table, state)


original_send_changes = Engine._send_changes
