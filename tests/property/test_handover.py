"""From the asyncio engine to a job on Flink and back, wherever either stops: nothing is missing, and nothing is said that is not so.

The job is what the reference says of the records that it has read; a record without a partner it has raised where the quietest
partition was certain of it.
"""

import asyncio
from collections.abc import Callable, Mapping
from functools import partial
from typing import NamedTuple

import msgspec
import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from app.broker.base import CommittedOffset
from app.core.clock import Clock, ManualClock, run_virtual
from app.core.record import TopicPartition
from app.streams import handover
from app.streams.engine import Engine
from app.streams.handover import gates_group, handed_to_engine
from app.streams.kept_jobs import TOPIC, KeptJob, KeptJobs
from app.streams.outputs import topics_of
from app.streams.pipelines import FinalPipeline, JoinPipeline, fingerprint, raised_by, streams_of
from app.streams.read_backs import SETTLED_MS
from app.streams.windows import NEVER_MS
from tests.examples import examples
from tests.generated import START_MS, Planned, joined_graphs, logs
from tests.killed_broker import GROUP, NEVER, Killed, KilledBroker
from tests.parity.meaning import SourceRecord
from tests.parity.reference import AlertSeen, Outputs, read_all
from tests.parity.written import Written, outputs_of
from tests.property.test_generations import (
    FILLED,
    TOPICS,
    Pipelines,
    begins_later,
    reached_by,
    records_of,
    sources_of,
    whole_tiles,
)
from tests.unit.streams.test_handover import Owner

GATES, FLINK = "test.gates", "test.flink"
PLACES = [TopicPartition(topic, at) for topic in TOPICS for at in (0, 1)]

Offsets = Mapping[TopicPartition, int]
Shares = Mapping[TopicPartition, float]
shares = st.fixed_dictionaries(dict.fromkeys(PLACES, st.floats(0, 1)))


class Past(NamedTuple):
    """Who ran before. own: of all records, what the asyncio engine has read first; None where it never ran. published: until the job was
    over; waiting: and until the asyncio engine went on. job: of what had come by then, what the job has read. gates: and what its gates
    have judged. is_noted: where the topics ended when the job was stopped."""

    own: float | None
    published: float
    waiting: float
    is_noted: bool
    job: Shares
    gates: Shares


part = st.floats(0, 1)
pasts = st.builds(Past, st.none() | part, part, part, st.booleans(), shares, shares)


class Seen(NamedTuple):
    """What a property is about."""

    there: list[SourceRecord]
    """What the job may have read."""
    ended: Offsets
    again: Outputs
    both: Outputs


def counts(records: list[SourceRecord]) -> dict[TopicPartition, int]:
    found = dict.fromkeys(PLACES, 0)
    for record in records:
        found[TopicPartition(*record[:2])] += 1
    return found


async def lived(
    broker: KilledBroker,
    pipelines: Pipelines,
    clock: Clock,
    handed: Mapping[TopicPartition, CommittedOffset],
    *,
    calls: int = NEVER,
    then: Callable[[], None] = lambda: None,
) -> None:
    """One life of the asyncio engine, killed after so many calls. then: when it has read what there was."""
    broker.calls_left, stopping = calls, asyncio.Event()
    engine = Engine(broker, sources_of(pipelines), pipelines, clock, GROUP, handed)
    task = asyncio.create_task(engine.run(stopping))
    await asyncio.sleep(3.5)
    then()
    await asyncio.sleep(3.5)
    stopping.set()
    try:
        await task
    except Killed:
        assert calls < NEVER


async def seen(pipelines: Pipelines, records: list[SourceRecord], past: Past, kills: list[int], clock: Clock) -> Seen:
    broker = KilledBroker(ManualClock(clock.now_ms() + NEVER))
    sources = sources_of(pipelines)
    await broker.admin().create([*topics_of(sources, pipelines), TOPIC])

    def publish(some: list[SourceRecord]) -> None:
        for topic, partition, _, time_ms, key, value in some:
            broker.append(topic, value, key, partition, time_ms, ())

    def outputs(since: Offsets) -> Outputs:
        def read(topic: str) -> list[Written]:
            logs = [(p, log[since.get(p, 0) :]) for p, log in broker.logs.items() if p.topic == topic]
            return [Written(p.partition, one.key, one.value, dict(one.headers)) for p, log in logs for one in log]

        return outputs_of(pipelines, read)

    published = round(past.published * len(records))
    own = round((past.own or 0) * published)
    publish(records[:own])
    if past.own is not None:
        await lived(broker, pipelines, clock, {})
    written = {place: len(log) for place, log in broker.logs.items()}
    publish(records[own:published])
    low, high = counts(records[:own]), counts(records[:published])
    ended = {place: low[place] + round(past.job[place] * (high[place] - low[place])) for place in PLACES}
    judged = {place: low[place] + round(past.gates[place] * (high[place] - low[place])) for place in PLACES}
    topics = sorted({one.spec.name for one in sources})
    for place in [place for place in PLACES if place.topic in topics]:
        await Owner(broker, FLINK, topics).commit(ended[place], place=place)
        await Owner(broker, gates_group(GATES, place.topic), [place.topic]).commit(judged[place], place=place)
    computed = {name: fingerprint(one) for name, one in pipelines.items()}
    name = "+".join(topics)
    ends = {topic: [high[TopicPartition(topic, at)] for at in (0, 1)] for topic in topics} if past.is_noted else {}
    job = KeptJob(name=name, generation=1, pipelines=computed, group=FLINK, parallelism=1, job_id="1", stopped=True)
    await KeptJobs(broker).write(msgspec.structs.replace(job, ends=ends))
    there = published + round(past.waiting * (len(records) - published))
    publish(records[published:there])
    for calls in [*kills, NEVER]:
        broker.calls_left = NEVER
        handed = await handed_to_engine(broker, {one.spec.name: one for one in sources}, pipelines, GROUP, GATES)
        later = records[there:] if calls == NEVER else []
        await lived(broker, pipelines, clock, handed, calls=calls, then=partial(publish, later))
    return Seen(records[: published if past.is_noted else there], ended, outputs(written), outputs({}))


def said_by_job(pipelines: Pipelines, before: list[SourceRecord]) -> set[AlertSeen]:
    """Of single records, bursts and joins."""
    reached = reached_by(before)
    said = set()
    for alert in read_all(pipelines, before, bounded=False).alerts:
        pipeline = pipeline_of(pipelines, alert)
        if isinstance(pipeline, FinalPipeline):
            continue
        if isinstance(pipeline, JoinPipeline) and is_lone(pipeline, alert):
            topics = {stream.source.spec.name: stream.source.out_of_orderness_ms for stream in streams_of(pipeline)}
            clocks = [reached.get((topic, at), NEVER_MS) - topics[topic] for topic in topics for at in (0, 1)]
            if min(clocks) <= alert.event_ms + pipeline.join.upper_ms + SETTLED_MS:
                continue
        said.add(alert)
    return said


def is_lone(pipeline: JoinPipeline, alert: AlertSeen) -> bool:
    """Whether it is, or may be, of a left record without a partner."""
    return pipeline.join.how != "inner" and alert.triggered_ms == alert.event_ms + max(pipeline.join.upper_ms, 0)


def pipeline_of(pipelines: Pipelines, alert: AlertSeen) -> object:
    rules = {raised.rule: one for one in pipelines.values() if (raised := raised_by(one)) is not None}
    return rules[alert.alert_id.split(":")[0]]


def a_moment_later(records: list[SourceRecord]) -> list[SourceRecord]:
    """The reference waits until a clock has passed the last moment of a partner, the engine until it has come to it."""
    beat, ends = b'{"heartbeat":true}', counts(records)
    moments = [(place, reached_ms + 1) for place, reached_ms in reached_by(records).items()]
    return [*records, *(SourceRecord(*p, ends[TopicPartition(*p)], ms, None, beat) for p, ms in moments)]


def require_right(pipelines: Pipelines, records: list[SourceRecord], found: Seen) -> None:
    whole = read_all(pipelines, records, bounded=False)
    before = [record for record in found.there if record.offset < found.ended[TopicPartition(*record[:2])]]
    reached = reached_by(found.there)
    of_windows = {alert for alert in whole.alerts if isinstance(pipeline_of(pipelines, alert), FinalPipeline)}
    assert set() == whole.alerts - of_windows - found.both.alerts - said_by_job(pipelines, before), "missing"
    assert set() == found.both.alerts - read_all(pipelines, a_moment_later(records), bounded=False).alerts, "not so"
    begun_later = {
        alert
        for alert in of_windows
        if isinstance(one := pipeline_of(pipelines, alert), FinalPipeline)
        and begins_later(one, alert.place[1], int(alert.alert_id.rsplit(":", 1)[1]), reached)
    }
    assert begun_later <= found.again.alerts
    finals = {p.topic: p for p in pipelines.values() if isinstance(p, FinalPipeline) and raised_by(p) is None}
    rows = {
        place: row for place, row in whole.rows.items() if begins_later(finals[place[0]], place[3], place[2], reached)
    }
    assert rows.items() <= found.again.rows.items() <= whole.rows.items()
    tiles = whole_tiles(pipelines, whole.tiles, reached)
    assert tiles == {place: tile for place, tile in found.both.tiles.items() if place in tiles}
    assert found.again.late <= whole.late
    assert {late for late in whole.late if late[3] >= found.ended[TopicPartition(*late[1:3])]} <= found.again.late


@given(graph=joined_graphs(names=TOPICS), plan=logs(2), past=pasts, kills=st.lists(st.integers(0, 30), max_size=2))
@settings(max_examples=examples(200))
def test_handover_there_and_back_gives_what_the_reference_says(
    graph: tuple[list[str], Pipelines], plan: list[Planned], past: Past, kills: list[int]
) -> None:
    """Alerts of what nobody had told, windows that begin later, whole features; also where the first workers are killed."""
    records = records_of(plan)

    async def main(clock: Clock) -> None:
        require_right(graph[1], records, await seen(graph[1], records, past, kills, clock))

    run_virtual(main, START_MS)


async def nothing_waits(*given: object) -> dict[TopicPartition, int]:
    return {}


def test_handover_that_forgets_who_waits_is_not_what_the_reference_says(monkeypatch: pytest.MonkeyPatch) -> None:
    """Records without a partner that Flink had not raised yet."""
    monkeypatch.setattr(handover, "_where_lone_records_wait", nothing_waits)
    pipelines = {"lone": FILLED["lone"]}
    whole = dict.fromkeys(PLACES, 1.0)
    past = Past(own=None, published=1, waiting=1, is_noted=False, job=whole, gates=whole)

    @given(plan=logs(1, least=8))
    @settings(max_examples=500, phases=[Phase.generate])
    def check(plan: list[Planned]) -> None:
        records = records_of(plan)

        async def main(clock: Clock) -> None:
            require_right(pipelines, records, await seen(pipelines, records, past, [], clock))

        run_virtual(main, START_MS)

    with pytest.raises(AssertionError):
        check()
