"""Where a job begins that takes over, and what of its text leaves the rest to the one before it."""

import re
from typing import Any

import msgspec
import pytest

from app.broker.memory import MemoryBroker
from app.core.clock import ManualClock
from app.core.errors import SetupError
from app.core.record import TopicPartition
from app.streams.expressions import col
from app.streams.graph import count
from app.streams.handover import largest_times
from app.streams.kept_jobs import TOPIC, KeptJob, KeptJobs, computing, topics_of_job
from app.streams.pipelines import Pipeline, pipelines_in
from app.streams.read_backs import SETTLED_MS, read_back_ms, remembered_ms
from app.streams.sql import Job, Settings, compile_job
from app.streams.takeover import Takeover, goes_by_all_partitions
from features import fraud
from features.fraud import HighValueOrder
from features.records import order_events, payment_events

NOW = 1_800_000_000_000
ORDERS, PAYMENTS = order_events.source.spec, payment_events.source.spec
B_MS = order_events.source.out_of_orderness_ms
N: Any = {"n": count()}
MINUTES = order_events.tumbling("1m").aggregate(**N).to("minutes")
VISITS = order_events.session(gap="1m").aggregate(**N).to("visits")
UNPAID = (
    order_events.join(payment_events, on="order_id", within=("0s", "5m"), prefix="paid_")
    .missing()
    .alert(HighValueOrder, id="order_id")
)


def values(first: int) -> dict[str, list[int]]:
    """Of each partition another one."""
    return {spec.name: [first + at for at in range(spec.partitions)] for spec in (ORDERS, PAYMENTS)}


TAKEOVER = Takeover(
    read=values(100),
    whole_ms=values(200),
    offsets=values(300),
    reached_ms=values(400),
    closed_ms=values(500),
    changed=[],
    holds=False,
)


def job(takeover: Takeover | None, **pipelines: Pipeline) -> Job:
    return compile_job("job", pipelines, Settings("broker:9092", takeover=takeover))


def query(takeover: Takeover | None, **pipelines: Pipeline) -> str:
    """The one that writes the first output, and the views."""
    compiled = job(takeover, **pipelines)
    return "\n".join([*compiled.views, compiled.inserts[0]])


def test_compile_job_without_a_takeover_leaves_nothing_to_anybody() -> None:
    """The first job of its topics has the text that it always had."""
    text = job(None, **pipelines_in(fraud)).text()
    assert "WHEN 0 THEN" not in text
    assert "specific-offsets" not in text


def test_compile_job_that_takes_over_begins_at_an_offset_of_each_partition() -> None:
    """And none of its alerts, tiles and late references is of what others have told."""
    text = job(TAKEOVER, **pipelines_in(fraud)).text()
    assert "'scan.startup.specific-offsets' = 'partition:0,offset:100;partition:1,offset:101;" in text
    assert re.search(r"`\$offset` >= CASE `\$partition` WHEN 0 THEN 300 WHEN 1 THEN 301", text)
    assert re.search(r"MOD\(`\$time_ms`, \d+\) >= CASE `\$partition` WHEN 0 THEN 200", text)
    late = next(line for line in job(TAKEOVER, minutes=MINUTES).inserts if "raw.orders.late" in line)
    assert "`$offset` >= CASE `$partition` WHEN 0 THEN 300" in late


@pytest.mark.parametrize(
    ("pipeline", "changed", "expected"),
    [
        (MINUTES, [], r"`\$start_ms` >= CASE .* 200 .*END AND `\$end_ms` > CASE .* 500 .*END\)"),
        (MINUTES, ["x"], r"`\$start_ms` > CASE .* 400 .*END\)"),
        (VISITS, [], r"`\$start_ms` >= CASE .* 200 .*END \+ 60000 AND `\$end_ms` > CASE .* 500 .*END\)"),
        (VISITS, ["x"], r"`\$start_ms` > CASE .* 400 .*END \+ 60000\)"),
        (UNPAID, [], r"`\$time_ms` \+ 300000 >= CASE .* 500 .*END"),
    ],
)
def test_compile_job_closes_what_nobody_has_closed(pipeline: Pipeline, changed: list[str], expected: str) -> None:
    """What is open of a declaration that stayed, and what begins later of one that changed."""
    text = query(msgspec.structs.replace(TAKEOVER, changed=changed), x=pipeline)
    assert re.search(expected, text), text


def test_compile_job_leaves_windows_that_an_earlier_change_has_cut() -> None:
    """Although this change is of something else: they have a row of the declaration before, or none."""
    begun = msgspec.structs.replace(TAKEOVER, begun_ms={"x": [600 + at for at in range(ORDERS.partitions)]})
    for pipeline, gap in ((MINUTES, ""), (VISITS, r" \+ 60000")):
        text = query(begun, x=pipeline)
        assert re.search(rf"`\$end_ms` > .*END AND `\$start_ms` > CASE .* 600 .* 601 .*END{gap}\)", text), text


def test_compile_job_pairs_are_of_what_one_of_both_has_not_been_read() -> None:
    """So that a pair across the change is raised once."""
    pairs = order_events.join(payment_events, on="order_id", within=("0s", "5m"), prefix="paid_").alert(
        HighValueOrder, id=("order_id", "paid_payment_id")
    )
    text = query(TAKEOVER, x=pairs)
    assert re.search(r"`\$offset` >= CASE .*THEN 300 .* OR `\$right_offset` >= CASE .*THEN 300 ", text)


def test_compile_job_that_holds_writes_tiles_alone() -> None:
    """Its alerts go nowhere and its rows never come, in the same views and inserts as afterwards: it finds its state by them."""
    pipelines = {**pipelines_in(fraud), "minutes": MINUTES}
    on = job(msgspec.structs.replace(TAKEOVER, changed=["minutes"]), **pipelines)
    held = job(msgspec.structs.replace(TAKEOVER, changed=["minutes"], holds=True), **pipelines)

    def shape(text: str) -> str:
        return re.sub(r"THEN \d+|ELSE \d+", "", text)

    assert [shape(text) for text in (*on.views, *on.inserts)] == [shape(text) for text in (*held.views, *held.inserts)]
    alerts = [table for table in held.tables if "processed.alerts" in table]
    assert alerts
    assert all("'connector' = 'blackhole'" in table and "METADATA" not in table for table in alerts)
    assert f"`$start_ms` > CASE `$partition` WHEN 0 THEN {2**62}" in "".join(held.inserts)
    (view,) = [table for table in held.tables if "features.user_features" in table]
    assert "'connector' = 'kafka'" in view


def test_read_back_is_what_each_kind_needs() -> None:
    """Windows of a declaration that changed begin anew, and need nothing."""
    burst = order_events.burst(count=3, within="2m").alert(HighValueOrder, id="order_id")
    view = order_events.live("5m", tile="30s").aggregate(**N).serve("v")
    assert 240_000 + B_MS == read_back_ms(burst, is_changed=True)
    assert 300_000 + 30_000 + 60_000 == read_back_ms(view, is_changed=True)
    assert 0 == read_back_ms(MINUTES, is_changed=True)
    assert 60_000 + B_MS + SETTLED_MS == read_back_ms(MINUTES, is_changed=False)
    assert 21 * 60_000 + B_MS + SETTLED_MS == read_back_ms(VISITS, is_changed=False)
    assert 300_000 + B_MS + SETTLED_MS == read_back_ms(UNPAID, is_changed=True)
    rare = order_events.burst(count=3, within="2m").alert(HighValueOrder, at_most_once_per="5m")
    assert 240_000 + 300_000 + 2 * B_MS == read_back_ms(rare, is_changed=True), "a slice's memory hangs on the burst's"
    plain = order_events.where(col.amount_usd > 5).alert(HighValueOrder, id="order_id")
    assert B_MS == read_back_ms(plain, is_changed=True)
    once = order_events.once("order_id", within="3m").tumbling("1m").aggregate(**N).to("o")
    assert (180_000 + B_MS, 0) == (remembered_ms([once, MINUTES]), remembered_ms([MINUTES]))
    assert [True, False, True, False] == [
        goes_by_all_partitions(one, is_changed)
        for one, is_changed in ((MINUTES, False), (MINUTES, True), (UNPAID, True), (view, False))
    ]


async def test_largest_times_are_those_before_the_offset() -> None:
    """Of records out of order, also where nothing lies before it."""
    broker = MemoryBroker(ManualClock(NOW))
    await broker.admin().create([ORDERS])
    for at_ms in (5_000, 9_000, 7_000, 12_000):
        broker.append(ORDERS.name, b"{}", b"u", 0, at_ms, ())
    reader = broker.reader()
    for offset, expected in ((0, -1), (1, 5_000), (2, 9_000), (3, 9_000), (4, 12_000)):
        assert {TopicPartition(ORDERS.name, 0): expected, TopicPartition(ORDERS.name, 1): -1} == await largest_times(
            reader, {TopicPartition(ORDERS.name, 0): offset, TopicPartition(ORDERS.name, 1): 0}
        )
    await reader.close()


async def test_kept_jobs_are_read_back_as_they_were_written() -> None:
    """The last note of a generation counts, and what another version wrote is one line."""
    broker = MemoryBroker(ManualClock(NOW))
    await broker.admin().create([TOPIC])
    first = KeptJob(name="raw.orders", generation=1, pipelines={"a": "f"}, group="g", parallelism=2, takeover=TAKEOVER)
    second = msgspec.structs.replace(first, generation=2, takeover=None)
    writer = KeptJobs(broker)
    for job_ in (second, first, msgspec.structs.replace(first, over=True)):
        await writer.write(job_)
    found = await KeptJobs(broker).read()
    assert [msgspec.structs.replace(first, over=True), second] == found
    assert [second] == computing(found, "a", "f")
    assert [] == computing(found, "a", "another")
    assert "raw.orders/2" == second.label
    assert frozenset({"raw.orders", "raw.payments"}) == topics_of_job("raw.orders+raw.payments")
    broker.append(TOPIC.name, b'{"job_id":"1"}', b'{"job":"raw.orders"}', 0, NOW, ())
    with pytest.raises(SetupError, match=r"flink\.jobs: was written by another version or tool"):
        await writer.read()
