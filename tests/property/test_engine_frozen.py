"""Engines that are frozen at any of their calls and wake beside their successor: results are those of a plain reading."""

from collections.abc import AsyncIterator, Iterator
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.core.clock import Clock, run_virtual
from app.core.record import Record, TopicPartition
from app.streams import engine as engine_module
from app.streams import mending, restore
from app.streams.compiled import TableCodec
from app.streams.pipelines import pipelines_in
from app.streams.restore import CommitMark
from app.streams.tables import PartitionState
from features import fraud
from tests.examples import examples
from tests.frozen_broker import GROUP, CompactedBroker, Life, run_frozen
from tests.property.test_engine import Plan, events, order_bytes, source_records
from tests.reference import read_all
from tests.streams_kit import check_outputs

START_MS = 1_800_000_000_000
PIPELINES = pipelines_in(fraud)
WINDOW_MS, LATENESS_MS = 300_000, 5_000

lives = st.lists(
    st.builds(Life, st.integers(0, 30), st.integers(1, 3), st.sampled_from([0.0, 0.9, 1.5, 2.4]), st.booleans()),
    min_size=1,
    max_size=5,
)


@pytest.fixture(autouse=True, scope="module")
def checks_each_second() -> Iterator[None]:
    """A life of six seconds stands for an hour."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(engine_module, "CHECK_S", 1.0)
        yield


def run_case(plan: Plan, history: list[Life]) -> CompactedBroker:
    records = source_records(plan)

    async def main(clock: Clock) -> CompactedBroker:
        broker = await run_frozen(clock, fraud.orders.source, PIPELINES, records, history)
        check_outputs(lambda topic: broker.history[topic], read_all(records))
        committed = broker.groups[GROUP].committed
        for partition in range(2):
            end = sum(record.partition == partition for record in records)
            if end:
                assert end == committed[TopicPartition("raw.orders", partition)].offset
                check_freed(broker, partition)
        return broker

    return run_virtual(main, START_MS)


def check_freed(broker: CompactedBroker, partition: int) -> None:
    """Compaction has left nothing of windows that are over."""
    mark = msgspec.json.decode(
        broker.groups[GROUP].committed[TopicPartition("raw.orders", partition)].metadata, type=CommitMark
    )
    for record in broker.logs[TopicPartition("state.order_rate", partition)]:
        if record.key is not None and record.value is not None and b"progress" not in record.key:
            start_ms = msgspec.json.decode(record.key)["window_start"]
            assert start_ms + WINDOW_MS > mark.reached_ms - LATENESS_MS, "a window that is over"


@given(plan=events, history=lives)
@settings(max_examples=examples(60))
def test_engine_frozen_at_any_call_gives_what_brute_force_gives(plan: Plan, history: list[Life]) -> None:
    """Whoever is frozen, whenever it wakes and whatever is compacted then: the same outputs, and tables are freed."""
    run_case(plan, history)


PLAN: Plan = [
    *((1_000, (b"u1", order_bytes("u1", str(number), "20000"))) for number in range(5)),
    *((400_000 + number, (b"u1", order_bytes("u1", f"2{number}", "5"))) for number in range(5)),
]
"""A window that several lives count in, and that closes."""


def run_cases() -> list[CompactedBroker]:
    """Lives frozen at every step; each is behind its owner by a record or two when it wakes, and then an hour passes."""
    return [
        run_case(PLAN, [Life(0, 1, 0.0, False), Life(step, later, delay_s, False), *[Life(0, 1, 0.0, True)] * 3])
        for step in range(1, 7)
        for later, delay_s in ((1, 1.5), (2, 0.0), (3, 1.5))
    ]


def test_engine_frozen_writes_old_values_behind_newer_ones() -> None:
    """The cases of the ablations below do set tables back, until their owner writes its own again."""
    logs = [broker.history["state.order_rate"] for broker in run_cases()]
    assert any(set_back(log) for log in logs)


def set_back(log: list[Record]) -> bool:
    versions: dict[bytes | None, int] = {}
    for record in log:
        if record.value is not None and b"progress" not in (record.key or b""):
            version = msgspec.json.decode(record.value)["version"]
            if version < versions.setdefault(record.key, version):
                return True
            versions[record.key] = version
    return False


@pytest.mark.parametrize("safeguard", ["highest version", "written again", "tombstones again"])
def test_engine_frozen_safeguard_removed_turns_the_proof_red(safeguard: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ablation: a restore that takes the last value, an owner that does not write its own again, keys never freed."""
    match safeguard:
        case "highest version":
            monkeypatch.setattr(restore, "_newest_entries", last_written)
        case "written again":
            monkeypatch.setattr(mending, "mend", mend_tombstones)
            monkeypatch.setattr(restore, "mend", mend_tombstones)
        case "tombstones again":
            monkeypatch.setattr(mending, "mend", mend_values)
            monkeypatch.setattr(restore, "mend", mend_values)
    with pytest.raises(AssertionError):
        run_cases()


async def last_written(table: TableCodec, batches: AsyncIterator[list[Record]]) -> Any:
    found = {}
    async for records in batches:
        for record in records:
            if record.key is not None and b"progress" not in record.key:
                key, entry = mending.parse_change(table, record)
                found[key] = entry
    return {key: entry for key, entry in found.items() if entry is not None}, {}


def mend_tombstones(state: PartitionState, name: str, last: mending.Last) -> int:
    return original_mend(
        state, name, {key: version for key, version in last.items() if state.tables[name].entry(key) is None}
    )


def mend_values(state: PartitionState, name: str, last: mending.Last) -> int:
    return original_mend(
        state, name, {key: version for key, version in last.items() if state.tables[name].entry(key) is not None}
    )


original_mend = mending.mend
