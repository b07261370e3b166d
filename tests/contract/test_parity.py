"""Both engines and the reference on generated logs: a small part of `make parity`."""

from dataclasses import fields

import msgspec
import pytest

from app.broker.kafka import KafkaBroker
from app.core.clock import SystemClock
from app.core.codec import encode
from app.streams.graph import Alert, Topic
from app.streams.pipelines import Pipeline
from features.records import Id, Instant
from tests.generated import START_MS, Sale
from tests.parity.__main__ import compare, smallest, told
from tests.parity.batches import BAD_VALUES, GOOD, batch_of, count_of, differing, of_log, records_of
from tests.parity.flink_engine import flink_on
from tests.parity.meaning import SourceRecord, valid_row
from tests.parity.reference import Outputs, read_all

LOGS = 40


@pytest.mark.flink
@pytest.mark.kafka
@pytest.mark.slow
@pytest.mark.timeout(240)
async def test_engines_write_what_the_reference_says(kafka_address: str, flink_address: str, unique: object) -> None:
    """Generated declarations over generated logs: in a row, where the watermark moves, and side by side; with one task and with two."""
    assert callable(unique)
    broker = KafkaBroker(kafka_address, SystemClock(), replication=1)
    try:
        async with flink_on(broker, flink_address) as flink:
            for parallelism, in_a_row in ((1, True), (2, False)):
                batch = batch_of(100 + parallelism, LOGS, f"{unique('parity')}.", in_a_row)
                found = await compare(batch, flink, parallelism)
                if found.differing:
                    pytest.fail("\n".join(told(await smallest(batch, found.differing[0], flink, parallelism))))
                assert found.rows > 5 * LOGS
    finally:
        await broker.close()


class Dated(msgspec.Struct):
    event_id: Id
    shop: Id
    at: Instant


class DatedSeen(Alert, frozen=True, tag="dated"):
    shop: str


MOMENTS = (
    (
        "2026-11-30T10:00:00Z 2026-11-30t10:00:00z 2026-11-30T10:00:00.1Z 2026-11-30T10:00:00.123456Z 2026-11-30T23:59:59+05:30 "
        "2026-11-30T10:00:00-0800 2026-11-30T10:00:00.5+01:00 0001-01-01T00:00:00Z 2026-11-30T10:00:00 2026-11-30 10:00:00Z "
        "2026-11-30T10:00:00. 2026-11-30T10:00:00.Z 2026-11-30T10:00:60Z 2026-11-30T10:60:00Z 2026-11-40T10:00:00Z "
        "2026-1-30T10:00:00Z 26-11-30T10:00:00Z 2026-11-30T10:00Z 2026-11-30T10:00:00ZZ 2026-11-30T10:00:00+ 2026-11-30T10:00:00+05 "
        "2026-11-30T10:00:00+5:30 2026/11/30T10:00:00Z 2026-11-30T1o:00:00Z x 1764496800 T Z + 2026-11-30T10:00:00,5Z"
    )
    .replace("2026-11-30 10", "2026-11-30_10")
    .split(" ")
)
"""Moments and what is none, of the forms that docs/validity.md calls alike."""


@pytest.mark.flink
@pytest.mark.kafka
@pytest.mark.slow
@pytest.mark.timeout(240)
async def test_moments_in_values_are_judged_alike(kafka_address: str, flink_address: str, unique: object) -> None:
    """A time that no pipeline reads makes a record bad on both engines, by its form."""
    assert callable(unique)
    topic = Topic(unique("dated"), Dated, key="shop", out_of_orderness="1s", partitions=2)
    pipelines: dict[str, Pipeline] = {"dated": topic.alert(DatedSeen, id="event_id")}
    records = [
        SourceRecord(
            topic.source.spec.name, 0, number, START_MS, b"s", encode({"event_id": str(number), "shop": "s", "at": at})
        )
        for number, at in enumerate([*(moment.replace("_", " ") for moment in MOMENTS), "2026-11-30T10:00:00Z\n", ""])
    ]
    expected = read_all(pipelines, records)
    broker = KafkaBroker(kafka_address, SystemClock(), replication=1)
    try:
        async with flink_on(broker, flink_address) as flink:
            found = await flink.run(pipelines, records, prefix="run.")
    finally:
        await broker.close()
    assert 9 == len(expected.alerts)
    assert expected.alerts == found.alerts


def test_bad_values_are_bad_by_what_was_changed_alone() -> None:
    """What they are made of is a good record, so each says something of its own."""

    def judged(value: bytes) -> object:
        return valid_row(SourceRecord("sales", 0, 0, START_MS, b"s1", value.replace(b"%s", b"s1")), Sale, "shop")

    assert judged(GOOD.encode())
    assert [] == [value for value in BAD_VALUES if judged(value)]
    assert len(set(BAD_VALUES)) == len(BAD_VALUES) > 40


def test_difference_in_one_row_is_found() -> None:
    """Of any kind, and of its log alone."""
    batch = batch_of(7, 3, "x.")
    expected = read_all(batch.pipelines, records_of(batch.topics, dict(enumerate(batch.plans))))
    assert count_of(expected) > 0
    assert [] == differing(expected, expected, [0, 1, 2])
    for kind in ("alerts", "tiles", "rows", "late", "bad"):
        mine = of_log(expected, 1)[kind]
        if not mine:
            continue
        found = Outputs(*(getattr(expected, one.name).copy() for one in fields(Outputs)))
        whole = getattr(found, kind)
        gone = next(iter(mine)) if isinstance(whole, set) else next(p for p in whole if p[1].endswith("@1"))
        if isinstance(whole, dict):
            del whole[gone]
        else:
            whole.remove(gone)
        assert [1] == differing(expected, found, [0, 1, 2])
