"""Both engines and the reference on generated logs: a small part of `make parity`."""

import pytest

from app.broker.kafka import KafkaBroker
from app.core.clock import SystemClock
from tests.parity.__main__ import compare
from tests.parity.batches import batch_of, count_of, differing, of_log, records_of
from tests.parity.flink_engine import flink_on
from tests.parity.reference import Outputs, read_all

LOGS = 40


@pytest.mark.flink
@pytest.mark.kafka
@pytest.mark.slow
@pytest.mark.timeout(240)
async def test_engines_write_what_the_reference_says(kafka_address: str, flink_address: str, unique: object) -> None:
    """Generated declarations over generated logs, with one task and with two."""
    assert callable(unique)
    broker = KafkaBroker(kafka_address, SystemClock(), replication=1)
    try:
        async with flink_on(broker, flink_address) as flink:
            for parallelism in (1, 2):
                batch = batch_of(100 + parallelism, LOGS, f"{unique('parity')}.", parallelism)
                difference, rows = await compare(batch, flink, parallelism)
                assert difference is None
                assert rows > 5 * LOGS
    finally:
        await broker.close()


def test_difference_in_one_row_is_found() -> None:
    """Of any kind, and of its log alone."""
    batch = batch_of(7, 3, "x.", 1)
    expected = read_all(batch.pipelines, records_of(batch.topics, dict(enumerate(batch.plans))))
    assert count_of(expected) > 0
    assert [] == differing(expected, expected, [0, 1, 2])
    for kind in ("alerts", "tiles", "rows", "late"):
        mine = of_log(expected, 1)[kind]
        if not mine:
            continue
        found = Outputs(set(expected.alerts), dict(expected.tiles), dict(expected.rows), set(expected.late))
        whole = getattr(found, kind)
        gone = next(iter(mine)) if kind in ("alerts", "late") else next(p for p in whole if p[1].endswith("@1"))
        if isinstance(whole, dict):
            del whole[gone]
        else:
            whole.remove(gone)
        assert [1] == differing(expected, found, [0, 1, 2])
