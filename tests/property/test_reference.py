"""The reference of all operators against the generated Python, without a broker: any declaration, any log."""

from hypothesis import given, settings

from app.core.codec import encode
from app.streams.pipelines import Pipeline
from tests.examples import examples
from tests.generated import START_MS, Planned, joined_graphs, logs
from tests.parity.asyncio_engine import run_asyncio
from tests.parity.meaning import SourceRecord
from tests.parity.reference import read_all


def records_of(topics: list[str], plan: list[Planned]) -> list[SourceRecord]:
    """On two partitions, by shop."""
    records, time_ms, ends = [], START_MS, dict[tuple[str, int], int]()
    for number, step_ms, sale in plan:
        time_ms += step_ms
        place = topics[number], sum(sale["shop"].encode()) % 2 if sale else time_ms % 2
        key, value = (sale["shop"].encode(), encode(sale)) if sale else (None, b'{"heartbeat":true}')
        offset = ends[place] = ends.get(place, -1) + 1
        records.append(SourceRecord(*place, offset, time_ms, key, value))
    return records


@given(graph=joined_graphs(), plan=logs(2))
@settings(max_examples=examples(300))
def test_generated_python_any_graph_gives_what_the_reference_gives(
    graph: tuple[list[str], dict[str, Pipeline]], plan: list[Planned]
) -> None:
    """Alerts, rows, tiles, late references and bad records, of two topics and what joins them."""
    topics, pipelines = graph
    records = records_of(topics, plan)
    expected, found = read_all(pipelines, records), run_asyncio(pipelines, records)
    assert expected.alerts == found.alerts
    assert expected.rows == found.rows
    assert expected.tiles == found.tiles
    assert expected.late == found.late
    assert expected.bad == found.bad
