"""Generated pipelines over generated events, the engine killed in between, against the reference of the same graph."""

from hypothesis import given, settings
from hypothesis import strategies as st

from app.broker.memory import MemoryBroker
from app.core.clock import Clock, run_virtual
from app.core.codec import encode
from app.streams.graph import Topic
from app.streams.pipelines import Pipeline
from tests.examples import examples
from tests.generated import START_MS, Planned, graphs, logs
from tests.killed_broker import run_killed
from tests.parity import meaning
from tests.parity.reference import read_all
from tests.parity.written import Written, outputs_of
from tests.reference import SourceRecord


def written_to(broker: MemoryBroker, topic: str) -> list[Written]:
    logs = [log for place, log in broker.logs.items() if place.topic == topic]
    return [Written(one.partition, one.key, one.value, dict(one.headers)) for log in logs for one in log]


@given(graph=graphs(), plan=logs(1), kills=st.lists(st.integers(0, 40), max_size=2), seed=st.integers(0, 99))
@settings(max_examples=examples(300))
def test_engine_any_graph_gives_what_its_reference_gives(
    graph: tuple[Topic, dict[str, Pipeline]], plan: list[Planned], kills: list[int], seed: int
) -> None:
    """Whatever is declared, over whatever events: the same alerts, rows, tiles and late references."""
    topic, pipelines = graph
    records, time_ms, ends = [], START_MS, [0, 0]
    for _, step_ms, value in plan:
        time_ms += step_ms
        partition = sum(value["shop"].encode()) % 2 if value else time_ms % 2
        key, data = (value["shop"].encode(), encode(value)) if value else (None, b'{"heartbeat":true}')
        records.append(SourceRecord(partition, ends[partition], time_ms, key, data))
        ends[partition] += 1
    name = topic.source.spec.name
    expected = read_all(pipelines, [meaning.SourceRecord(name, *record[:5]) for record in records], bounded=False)

    async def main(clock: Clock) -> None:
        broker = await run_killed(clock, topic.source, pipelines, records, kills, seed)
        found = outputs_of(pipelines, lambda topic: written_to(broker, topic))
        assert expected.alerts == found.alerts
        assert expected.rows == found.rows
        assert expected.tiles == found.tiles
        assert expected.late == found.late
        assert [] == written_to(broker, f"{name}.dead")

    run_virtual(main, START_MS)
