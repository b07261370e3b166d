"""A declaration changed between two lives of the engine: what the new one gives, against the reference of the whole log."""

import asyncio
from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import Any

import pytest
from hypothesis import Phase, assume, given, settings
from hypothesis import strategies as st

from app.broker.topics import MAX_AHEAD_MS
from app.core.clock import Clock, ManualClock, run_virtual
from app.core.codec import encode
from app.core.record import TopicPartition
from app.streams import engine, filling
from app.streams.engine import Engine
from app.streams.expressions import col
from app.streams.generations import add_generations, numbered
from app.streams.graph import Topic, count, total
from app.streams.outputs import topics_of
from app.streams.pipelines import (
    FinalPipeline,
    JoinPipeline,
    LivePipeline,
    Pipeline,
    Session,
    Source,
    fingerprint,
    raised_by,
    streams_of,
)
from app.streams.restore import restore
from app.streams.tables import PartitionState
from app.streams.windows import NEVER_MS
from tests.examples import examples
from tests.generated import START_MS, Flag, Planned, Sale, joined_graphs, logs
from tests.killed_broker import GROUP, NEVER, Killed, KilledBroker
from tests.parity.meaning import SourceRecord
from tests.parity.reference import Outputs, read_all
from tests.parity.written import Written, outputs_of

Pipelines = Mapping[str, Pipeline]
Tiles = dict[tuple[str, str, int, int], tuple[int, dict[str, Any]]]
TOPICS = ("sales", "others")


def records_of(plan: list[Planned]) -> list[SourceRecord]:
    records, time_ms, ends = [], START_MS, dict.fromkeys(((t, p) for t in TOPICS for p in (0, 1)), 0)
    for number, step_ms, sale in plan:
        time_ms += step_ms
        place = TOPICS[number], sum(sale["shop"].encode()) % 2 if sale else time_ms % 2
        key, data = (sale["shop"].encode(), encode(sale)) if sale else (None, b'{"heartbeat":true}')
        records.append(SourceRecord(*place, ends[place], time_ms, key, data))
        ends[place] += 1
    return records


Reached = Mapping[tuple[str, int], int]
"""By topic and partition: the largest event time, in ms."""


def reached_by(records: Iterable[SourceRecord]) -> Reached:
    reached: dict[tuple[str, int], int] = {}
    for record in records:
        reached[record[:2]] = max(reached.get(record[:2], NEVER_MS), record.timestamp_ms)
    return reached


def begins_later(pipeline: FinalPipeline, partition: int, start_ms: int, reached: Reached) -> bool:
    """Whether nothing that was there by then can have belonged to the window."""
    reached_ms = reached.get((pipeline.stream.source.spec.name, partition), NEVER_MS)
    gap_ms = pipeline.window.gap_ms if isinstance(pipeline.window, Session) else 0
    return start_ms > reached_ms + gap_ms


def whole_tiles(pipelines: Pipelines, tiles: Tiles, reached: Reached) -> Tiles:
    """Those that a reader of features from then on may look at."""
    views, found = {p.topic: p for p in pipelines.values() if isinstance(p, LivePipeline)}, {}
    for place, tile in tiles.items():
        view = views[place[0]]
        reached_ms = reached.get((view.stream.source.spec.name, place[3]), NEVER_MS)
        if place[2] >= reached_ms - view.size_ms - view.tile_ms - MAX_AHEAD_MS:
            found[place] = tile
    return found


def expected_of(pipelines: Pipelines, records: list[SourceRecord], before: list[SourceRecord]) -> Outputs:
    """What a generation gives that begins behind `before`, as ADR 66 says."""
    whole, past = read_all(pipelines, records, bounded=False), read_all(pipelines, before, bounded=False)
    reached = reached_by(before)
    finals = {p.topic: p for p in pipelines.values() if isinstance(p, FinalPipeline) and raised_by(p) is None}
    rules = {r.rule: p for p in pipelines.values() if isinstance(p, FinalPipeline) and (r := raised_by(p))}
    expected = Outputs()
    for alert in whole.alerts - past.alerts:
        rule, start = alert.alert_id.split(":")[0], alert.alert_id.rsplit(":", 1)[1]
        if rule not in rules or begins_later(rules[rule], alert.place[1], int(start), reached):
            expected.alerts.add(alert)
    for row_place, row in whole.rows.items():
        if begins_later(finals[row_place[0]], row_place[3], row_place[2], reached):
            expected.rows[row_place] = row
    expected.tiles = whole_tiles(pipelines, whole.tiles, reached)
    expected.late = whole.late - past.late
    return expected


def sources_of(pipelines: Pipelines) -> list[Source]:
    return list({s.source.spec.name: s.source for p in pipelines.values() for s in streams_of(p)}.values())


async def live(broker: KilledBroker, pipelines: Pipelines, clock: Clock, calls: int = NEVER) -> None:
    """One life of an engine, until it has committed everything or was killed after so many calls."""
    broker.calls_left, stopping = calls, asyncio.Event()
    task = asyncio.create_task(Engine(broker, sources_of(pipelines), pipelines, clock, GROUP).run(stopping))
    await asyncio.sleep(3.5)
    stopping.set()
    try:
        await task
    except Killed:
        assert calls < NEVER


async def taken_over(
    old: Pipelines, new: Pipelines, records: list[SourceRecord], cut: int, kills: list[int], clock: Clock
) -> tuple[Pipelines, Outputs]:
    """The old declaration reads the records before the cut, the new one goes on; what the new one has written."""
    broker = KilledBroker(ManualClock(clock.now_ms() + NEVER))

    async def prepared(pipelines: Pipelines) -> Pipelines:
        made = numbered(pipelines, await add_generations(broker, pipelines))
        await broker.admin().create(topics_of(sources_of(made), made))
        return made

    def publish(some: list[SourceRecord]) -> None:
        for topic, partition, _, time_ms, key, value in some:
            broker.append(topic, value, key, partition, time_ms, ())

    before = await prepared(old)
    publish(records[:cut])
    await live(broker, before, clock)
    written = {place: len(log) for place, log in broker.logs.items()}
    after = await prepared(new)
    publish(records[cut:])
    for calls in kills:
        await live(broker, after, clock, calls)
    await live(broker, after, clock)

    def read(topic: str) -> list[Written]:
        logs = [(place, log[written.get(place, 0) :]) for place, log in broker.logs.items() if place.topic == topic]
        return [Written(p.partition, one.key, one.value, dict(one.headers)) for p, log in logs for one in log]

    return after, outputs_of(after, read)


def require_right(pipelines: Pipelines, records: list[SourceRecord], cut: int, found: Outputs) -> None:
    expected = expected_of(pipelines, records, records[:cut])
    rules = {pipeline.raised.rule for pipeline in pipelines.values() if isinstance(pipeline, JoinPipeline)}
    said = read_all(pipelines, records[:cut], bounded=False).alerts
    alike = {alert for alert in said - expected.alerts if alert.alert_id.split(":")[0] in rules}  # as two pairs may be
    assert expected.alerts == found.alerts - alike
    assert expected.rows == found.rows
    assert expected.tiles == found.tiles
    assert expected.late == found.late


@given(
    old=joined_graphs(names=TOPICS),
    new=joined_graphs(names=TOPICS),
    plan=logs(2),
    share=st.floats(0, 1),
    kills=st.lists(st.integers(0, 30), max_size=2),
)
@settings(max_examples=examples(200))
def test_generation_goes_on_where_the_one_before_it_ended(
    old: tuple[list[str], Pipelines],
    new: tuple[list[str], Pipelines],
    plan: list[Planned],
    share: float,
    kills: list[int],
) -> None:
    """Whatever the declaration was and is: alerts from there on, whole features, pairs across the change, no cut window."""
    made_by = {fingerprint(pipeline) for pipeline in old[1].values()}
    assume(not any(fingerprint(p) in made_by for name, p in new[1].items() if name.startswith("p")))
    records = records_of(plan)
    cut = round(share * len(records))

    async def main(clock: Clock) -> None:
        after, found = await taken_over(old[1], new[1], records, cut, kills, clock)
        require_right(after, records, cut, found)

    run_virtual(main, START_MS)


SALES = Topic("sales", Sale, key="shop", out_of_orderness="1ms", partitions=2)
RATE = SALES.tumbling("10s").aggregate(n=count()).to("rates")
ADDS, BUYS = SALES.where(col.gift == False), SALES.where(col.gift == True)  # noqa: E712
FILLED: Pipelines = {
    "view": SALES.once("sale_id", within="20s")
    .live("5m", tile="1m")
    .aggregate(n=count(), items=total(col.items))
    .serve("view"),
    "lone": ADDS.join(BUYS, within=("0s", "10s"), prefix="other_").missing().alert(Flag, id="sale_id", rule="lone"),
}


@pytest.mark.parametrize("name", FILLED)
def test_generation_that_is_not_filled_is_not_what_its_reference_says(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without the read-back features would be half of the truth, and a record would be alone whose partner came before."""

    async def nothing(*given: object) -> dict[TopicPartition, object]:
        return {}

    monkeypatch.setattr(filling, "_fills", nothing)

    @given(plan=logs(1, least=8), share=st.floats(0, 1))
    @settings(max_examples=500, phases=[Phase.generate])
    def check(plan: list[Planned], share: float) -> None:
        records = records_of(plan)
        cut = round(share * len(records))

        async def main(clock: Clock) -> None:
            after, found = await taken_over({"rate": RATE}, {name: FILLED[name]}, records, cut, [], clock)
            require_right(after, records, cut, found)

        run_virtual(main, START_MS)

    with pytest.raises(AssertionError):
        check()


OTHER = SALES.tumbling("10s").aggregate(n=total(col.items)).to("rates")
lives_of_either = st.lists(st.tuples(st.booleans(), st.integers(0, 30)), min_size=2, max_size=6)


def rows_by_two_versions(plan: list[Planned], lives: list[tuple[bool, int]]) -> list[set[bytes]]:
    """What was written for each key and window while workers of two versions took turns, each killed after so many calls."""
    records, values = records_of(plan), defaultdict[bytes, set[bytes]](set)

    async def main(clock: Clock) -> None:
        broker = KilledBroker(ManualClock(clock.now_ms() + NEVER))
        versions: list[Pipelines] = [{"rate": RATE}, {"rate": OTHER}]
        for version in versions:
            known = await add_generations(broker, version)
        versions = [numbered(version, known) for version in versions]
        for version in versions:
            await broker.admin().create(topics_of([SALES.source], version))
        for index, (is_other, calls) in enumerate(lives):
            for topic, partition, _, time_ms, key, value in records[index :: len(lives)]:
                broker.append(topic, value, key, partition, time_ms, ())
            await live(broker, versions[is_other], clock, calls)
        for place, log in broker.logs.items():
            if place.topic == "rates":
                for record in log:
                    values[record.key or b""].add(record.value or b"")

    run_virtual(main, START_MS)
    return list(values.values())


@given(plan=logs(1, least=8), lives=lives_of_either)
@settings(max_examples=examples(200))
def test_generations_that_take_turns_never_give_a_window_two_values(
    plan: list[Planned], lives: list[tuple[bool, int]]
) -> None:
    """Rolled out, rolled back, killed in between: a window has the row of one declaration, or none."""
    assert [] == [found for found in rows_by_two_versions(plan, lives) if len(found) > 1]


def test_generations_whose_beginning_is_not_committed_give_two_values(monkeypatch: pytest.MonkeyPatch) -> None:
    """An owner of the version before goes on from its own mark after a crash, with windows that have rows by then."""

    async def committed(*words: Any) -> list[PartitionState]:
        states = await restore(*words)
        for state in states:
            state.committed = state.position
        return states

    monkeypatch.setattr(engine, "restore", committed)

    @given(plan=logs(1, least=12), calls=st.integers(0, 40))
    @settings(max_examples=1_000, phases=[Phase.generate])
    def check(plan: list[Planned], calls: int) -> None:
        lives = [(False, NEVER), (True, calls), (False, NEVER)]
        assert [] == [found for found in rows_by_two_versions(plan, lives) if len(found) > 1]

    with pytest.raises(AssertionError):
        check()
