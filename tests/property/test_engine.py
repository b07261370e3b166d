"""The asyncio engine against the brute-force reading, killed at any of its calls to the broker."""

import json
from dataclasses import replace
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.broker.base import DeliveryFailure
from app.broker.memory import MemoryBroker
from app.core.clock import Clock, run_virtual
from app.core.errors import SetupError
from app.core.record import Record, TopicPartition
from app.streams import engine as engine_module
from app.streams import restore as restore_module
from app.streams.compiled import CompiledTopic, TableCodec, load_topic
from app.streams.engine import Engine
from app.streams.pipelines import pipelines_in
from app.streams.restore import CommitMark, mark_of
from app.streams.tables import PartitionState
from app.streams.windows import NEVER_MS
from features import fraud
from tests.examples import examples
from tests.killed_broker import (
    GROUP,
    NEVER,
    HoldingProducer,
    KilledBroker,
    newest_after_compaction,
    run_killed,
)
from tests.reference import SourceRecord, read_all
from tests.streams_kit import check_outputs

START_MS = 1_800_000_000_000
PIPELINES = pipelines_in(fraud)


Plan = list[tuple[int, tuple[bytes | None, bytes | None]]]


def order_bytes(user: str, order: str, amount: str, time: str = "2026-01-01T00:00:00Z") -> bytes:
    ids = f'"order_id":{json.dumps(order)},"user_id":{json.dumps(user, ensure_ascii=False)}'
    return f'{{{ids},"amount_usd":{amount},"status":"placed","timestamp":"{time}"}}'.encode()


BAD_VALUES = (
    b"{",
    b"\xff\xfe",
    b"[]",
    order_bytes("u1", "1", "-1"),
    order_bytes("u1", "1", "1.005"),
    order_bytes("u1", "1", '"NaN"'),
    order_bytes("u1", "1", "1e999999"),
    order_bytes("u1", "1", "1", "2026-01-01T00:00:00"),
)

ODD = (
    "a:b",
    "a",
    "b:c",
    "a%3Ab",
    "%",
    '"',
    "\\",
    '\\"',
    "\x00\t\r\n\x1f\x7f",
    "żółw 😀\u2028",
    "{0}{x}%s%d",
    "ü" * 200,
)
steps_ms = st.one_of(st.integers(0, 3_000), st.integers(-20_000, 0), st.integers(-400_000, 400_000))
edges_ms = st.sampled_from([0, 0, 1, -1, 5_000, -5_000, 30_000, -30_000, 60_000, 300_000, -300_000])
ids = st.one_of(st.sampled_from(("u1", "u2", "u3")), st.sampled_from(ODD), st.text(min_size=1, max_size=200))
valid = st.builds(
    lambda user, order, amount: (user.encode(), order_bytes(user, order, amount)),
    ids,
    st.one_of(st.integers(0, 12).map(str), ids),
    st.sampled_from(["1", "0", "10000", "10000.01", "99999.99", "12.5", "7.10"]),
)
bad = st.sampled_from(
    [(b"u1", value) for value in BAD_VALUES]
    + [(None, b"{}"), (b"u1", None), (b"u2", order_bytes("u1", "1", "1")), (b"", order_bytes("", "1", "1"))]
)
heartbeat = st.just((None, b'{"heartbeat": true}'))
contents = st.one_of(valid, valid, valid, bad, heartbeat)
events = st.one_of(
    st.lists(st.tuples(steps_ms, contents), min_size=1, max_size=60),
    st.lists(st.tuples(edges_ms, contents), min_size=1, max_size=60),  # all at the edges of slices
)


def source_records(plan: Plan) -> list[SourceRecord]:
    """All on two partitions, by user, so that slices of several users share one."""
    records, time_ms, ends = [], START_MS, [0, 0]
    for step_ms, (key, value) in plan:
        time_ms += step_ms
        partition = key[-1] % 2 if key else time_ms % 2
        records.append(SourceRecord(partition, ends[partition], time_ms, key, value))
        ends[partition] += 1
    return records


def records_of(broker: MemoryBroker, topic: str) -> list[Record]:
    return [record for place, log in broker.logs.items() if place.topic == topic for record in log]


def run_case(plan: Plan, kills: list[int], seed: int) -> KilledBroker:
    records = source_records(plan)

    async def main(clock: Clock) -> KilledBroker:
        broker = await run_killed(clock, fraud.orders.source, PIPELINES, records, kills, seed)
        check_outputs(lambda topic: records_of(broker, topic), read_all(records))
        committed = broker.groups[GROUP].committed
        for partition in range(2):
            end = sum(record.partition == partition for record in records)
            if end:
                assert end == committed[TopicPartition("raw.orders", partition)].offset
        return broker

    return run_virtual(main, START_MS)


@given(plan=events, kills=st.lists(st.integers(0, 40), max_size=4), seed=st.integers(0, 99))
@settings(max_examples=examples(150))
def test_engine_killed_at_any_call_gives_what_brute_force_gives(plan: Plan, kills: list[int], seed: int) -> None:
    """Whatever the records and wherever the engine dies, its outputs are those of a plain reading."""
    run_case(plan, kills, seed)


def test_engine_killed_loses_what_was_not_acknowledged() -> None:
    """The kills of the ablations below do lose records, and let others of the same moment arrive."""
    brokers = run_cases(KILL_PLAN)
    assert sum(broker.lost for broker in brokers) > 100
    assert sum(broker.arrived for broker in brokers) > 100


@pytest.mark.parametrize(
    "safeguard",
    [
        "version",
        "event time in the commit",
        "the table of windows",
        "acknowledgements",
        "acknowledgements of outputs",
        "the order of flush and commit",
        "closed entries stay until a commit has passed",
    ],
)
def test_engine_safeguard_removed_turns_the_proof_red(safeguard: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ablation: without any one of its safeguards the engine is caught by the test above."""
    match safeguard:
        case "version":
            monkeypatch.setattr(engine_module, "load_topic", load_without_versions)
        case "event time in the commit":
            monkeypatch.setattr(engine_module, "mark_of", mark_without_time)
        case "the table of windows":
            monkeypatch.setattr(Engine, "_send_changes", send_nothing)
        case "acknowledgements":
            monkeypatch.setattr(Engine, "_flush", flush_nothing)
        case "acknowledgements of outputs":
            monkeypatch.setattr(HoldingProducer, "flush", flush_tables)
        case "the order of flush and commit":
            monkeypatch.setattr(Engine, "_flush", flush_nothing)
            monkeypatch.setattr(Engine, "_commit", commit_then_flush)
        case "closed entries stay until a commit has passed":
            monkeypatch.setattr(Engine, "_send_tombstones", remove_at_once)
            monkeypatch.setattr(restore_module, "_newest_entries", newest_after_compaction)
    with pytest.raises((AssertionError, SetupError)):  # the latter by the engine itself, where its table is gone
        run_cases(KILL_PLAN)


KILL_PLAN: Plan = [
    *((1_000, (b"u1", order_bytes("u1", str(number), "20000"))) for number in range(6)),
    (400_000, (b"u1", order_bytes("u1", "20", "5"))),
    (-390_000, (b"u1", order_bytes("u1", "21", "5"))),
]


def run_cases(plan: Plan) -> list[KilledBroker]:
    """The plan in lives of one record each, killed after 0, 1, 2 ... calls: every one, or those after the first half."""
    half = len(plan) // 2
    return [
        run_case(plan, [*first, *[kill] * (len(plan) - 1 - len(first))], seed=kill)
        for kill in range(0, 60, 3)
        for first in ([], [NEVER] * half)
    ]


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


async def flush_nothing(engine: Engine) -> None:
    """Goes on as if all had been acknowledged."""


async def commit_then_flush(engine: Engine, commits: Any) -> None:
    """Offsets before what they cover."""
    await original_commit(engine, commits)
    await original_flush(engine)


async def remove_at_once(engine: Engine, state: PartitionState) -> None:
    """Whatever is closed, committed or not."""
    committed, state.committed = state.committed, state.position
    await original_send_tombstones(engine, state)
    state.committed = committed


async def flush_tables(producer: HoldingProducer) -> list[DeliveryFailure]:
    """Only state and features have arrived."""
    producer.deliver({"state.order_rate", "features.user_features"})
    return []


original_send_changes, original_send_tombstones = Engine._send_changes, Engine._send_tombstones
original_commit, original_flush = Engine._commit, Engine._flush
