"""What an engine has written, as the reference says it: topics read back into `Outputs`."""

import json
from collections.abc import Callable, Iterable, Mapping
from datetime import datetime
from decimal import Decimal
from typing import Any, NamedTuple

from app.broker.base import Broker
from app.core.record import TopicPartition
from app.streams.pipelines import FinalPipeline, LivePipeline, Pipeline, raised_by, streams_of
from tests.parity.reference import AlertSeen, Outputs


class Written(NamedTuple):
    """One record of an output topic."""

    partition: int
    key: bytes | None
    value: bytes | None
    headers: Mapping[str, bytes]


async def read_back(broker: Broker, topics: Mapping[str, int]) -> dict[str, list[Written]]:
    """Everything that topics hold. topics: their partitions, by name."""
    reader, found = broker.reader(), dict[str, list[Written]]()
    try:
        for topic, partitions in topics.items():
            found[topic] = []
            places = [TopicPartition(topic, partition) for partition in range(partitions)]
            for place, end in (await reader.end_offsets(places)).items():
                async for batch in reader.read(place, 0, end):
                    found[topic] += [Written(one.partition, one.key, one.value, dict(one.headers)) for one in batch]
    finally:
        await reader.close()
    return found


def outputs_of(pipelines: Mapping[str, Pipeline], read: Callable[[str], Iterable[Written]]) -> Outputs:
    """read: everything in a topic, by the name that the pipelines give it. What came twice and is the same counts once; a row
    with two values is an AssertionError. Of a tile the highest version counts, which never goes back."""
    found = Outputs()
    for topic in {raised.topic for pipeline in pipelines.values() if (raised := raised_by(pipeline)) is not None}:
        found.alerts |= _alerts(topic, read(topic), pipelines)
    for pipeline in pipelines.values():
        if isinstance(pipeline, LivePipeline):
            _tiles(found, pipeline, read(pipeline.topic))
        elif isinstance(pipeline, FinalPipeline) and raised_by(pipeline) is None:
            _rows(found, pipeline, read(pipeline.topic))
    for source in {stream.source.spec.name for pipeline in pipelines.values() for stream in streams_of(pipeline)}:
        for record in read(f"{source}.late"):
            said = _json(record.value)
            found.late.add((said["pipeline"], said["topic"], said["partition"], said["offset"]))
    return found


def _alerts(topic: str, records: Iterable[Written], pipelines: Mapping[str, Pipeline]) -> set[AlertSeen]:
    raised = {one.rule: one for pipeline in pipelines.values() if (one := raised_by(pipeline)) is not None}
    seen = set[AlertSeen]()
    for record in records:
        said = _json(record.value)
        place, partition, offset = record.headers["origin"].decode().rsplit("/", 2)
        shown = raised[said["alert_id"].split(":")[0]]
        fields = tuple((name, _plain(name, said[name])) for name, _ in shown.fields)
        alert = AlertSeen(
            topic,
            (record.key or b"").decode(),
            said["alert_id"],
            ms_of(said["triggered_at"]),
            fields,
            (place, int(partition), int(offset)),
            int(record.headers["event_ms"]),
        )
        assert said["alert_type"] == shown.tag == record.headers["alert_type"].decode()
        seen.add(alert)
    return seen


def _plain(name: str, value: Any) -> Any:
    """As the reference has it: by the names of the generated alerts' fields."""
    match name:
        case "window_start" | "window_end":
            return ms_of(value)
        case "at":
            return datetime.fromisoformat(value)
        case "weight":
            return float(value)
    return value


def _tiles(found: Outputs, pipeline: LivePipeline, records: Iterable[Written]) -> None:
    key_field = pipeline.stream.source.key
    for record in records:
        key, value = _json(record.key), _json(record.value)
        if "progress" in key:
            continue
        assert record.partition == key["partition"]
        version, place = value.pop("version"), (pipeline.topic, key[key_field], key["tile"], key["partition"])
        if place not in found.tiles or found.tiles[place][0] <= version:
            found.tiles[place] = version, value


def _rows(found: Outputs, pipeline: FinalPipeline, records: Iterable[Written]) -> None:
    key_field = pipeline.stream.source.key
    for record in records:
        key, value = _json(record.key), _json(record.value)
        assert key == {key_field: value.pop(key_field), "window_start": value.pop("window_start")}
        place, row = (
            (pipeline.topic, key[key_field], key["window_start"], record.partition),
            (value.pop("window_end"), value),
        )
        assert row == found.rows.setdefault(place, row)


def ms_of(text: str) -> int:
    """Milliseconds of an instant as JSON has it."""
    return round(datetime.fromisoformat(text).timestamp() * 1_000)


def _json(data: bytes | None) -> Any:
    return json.loads(data or b"null", parse_float=Decimal)
