"""Generated pipelines over generated events, the engine killed in between, against a plain reading of the same graph."""

from hypothesis import given, settings
from hypothesis import strategies as st

from app.core.clock import Clock, run_virtual
from app.core.codec import encode
from app.streams.graph import Topic
from app.streams.pipelines import Pipeline
from tests.examples import examples
from tests.generated import START_MS, Planned, graphs, logs
from tests.killed_broker import run_killed
from tests.plain_reading import PlainReading, written
from tests.reference import SourceRecord


@given(graph=graphs(), plan=logs(1), kills=st.lists(st.integers(0, 40), max_size=2), seed=st.integers(0, 99))
@settings(max_examples=examples(300))
def test_engine_any_graph_gives_what_its_plain_reading_gives(
    graph: tuple[Topic, dict[str, Pipeline]], plan: list[Planned], kills: list[int], seed: int
) -> None:
    """Whatever is declared, over whatever events: the same alerts, rows, tiles and late references."""
    topic, pipelines = graph
    records, reading, time_ms, ends = [], PlainReading(topic, pipelines), START_MS, [0, 0]
    for _, step_ms, value in plan:
        time_ms += step_ms
        partition = sum(value["shop"].encode()) % 2 if value else time_ms % 2
        key, data = (value["shop"].encode(), encode(value)) if value else (None, b'{"heartbeat":true}')
        records.append(SourceRecord(partition, ends[partition], time_ms, key, data))
        ends[partition] += 1
    for record in records:
        reading.read(record)
    reading.close()

    async def main(clock: Clock) -> None:
        broker = await run_killed(clock, topic.source, pipelines, records, kills, seed)
        assert reading.outputs == written(broker, pipelines)

    run_virtual(main, START_MS)
