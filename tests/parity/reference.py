"""Declared streams read by brute force: what both engines must write for the same records, in the plainest Python.

Nothing that compiles or runs streams is used: expressions are evaluated as trees over plain values (money is Decimal
dollars), and the rules of DESIGN.md (*Time*) and ADR 64 are written down here once more, slowly.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from itertools import product
from typing import Any, NamedTuple

from app.streams.pipelines import (
    AlertPipeline,
    FinalPipeline,
    Hopping,
    JoinPipeline,
    LivePipeline,
    Pipeline,
    Raised,
    Records,
    Session,
)
from tests.parity.meaning import SourceRecord, amounts_of, is_heartbeat, passed, valid_row, value_of


class Event(NamedTuple):
    """A record that a pipeline has taken. reached_ms: the partition's clock, with the record itself."""

    row: dict[str, Any]
    key: str
    record: SourceRecord
    reached_ms: int

    @property
    def time_ms(self) -> int:
        return self.record.timestamp_ms

    def is_on_time(self, out_of_orderness_ms: int, slice_ms: int | None = None) -> bool:
        """For its slice, or by itself."""
        behind_ms = self.reached_ms - out_of_orderness_ms
        return self.time_ms > behind_ms if slice_ms is None else start_of(self.time_ms, slice_ms) + slice_ms > behind_ms


class AlertSeen(NamedTuple):
    """One alert as it is written. place: topic, partition and offset of its origin."""

    topic: str
    key: str
    alert_id: str
    triggered_ms: int
    fields: tuple[tuple[str, Any], ...]
    place: tuple[str, int, int]
    event_ms: int


@dataclass
class Outputs:
    """What pipelines give. tiles and rows: by topic, key, start and partition; a tile with its version, a row with its end."""

    alerts: set[AlertSeen] = field(default_factory=set)
    tiles: dict[tuple[str, str, int, int], tuple[int, dict[str, Any]]] = field(default_factory=dict)
    rows: dict[tuple[str, str, int, int], tuple[int, dict[str, Any]]] = field(default_factory=dict)
    late: set[tuple[str, str, int, int]] = field(default_factory=set)
    bad: set[tuple[str, int, int]] = field(default_factory=set)


def read_all(pipelines: Mapping[str, Pipeline], records: Iterable[SourceRecord], bounded: bool = True) -> Outputs:
    """What the pipelines give for records, each partition's in order. bounded: everything closes at the end."""
    reading = _Reading(pipelines)
    for record in records:
        reading.read(record)
    reading.close(bounded)
    return reading.outputs


class _Reading:
    def __init__(self, pipelines: Mapping[str, Pipeline]) -> None:
        self.outputs = Outputs()
        self._pipelines = pipelines
        self._reached: dict[tuple[str, int], int] = {}
        self._sightings: dict[Any, int] = {}
        self._times: defaultdict[Any, list[int]] = defaultdict(list)
        self._fired: dict[Any, bool] = {}
        self._latest: dict[Any, int] = {}
        self._kept: defaultdict[tuple[str, str, int, str], list[Event]] = defaultdict(list)

    def read(self, record: SourceRecord) -> None:
        streams = [
            (name, side, stream)
            for name, pipeline in self._pipelines.items()
            for side, stream in _sides(pipeline)
            if stream.source.spec.name == record.topic
        ]
        key, record_type = streams[0][2].source.key, streams[0][2].source.spec.type
        event = None if is_heartbeat(record) else valid_row(record, record_type, key)
        if event is None and not is_heartbeat(record):
            self.outputs.bad.add(record[:3])
            return
        place = record.topic, record.partition
        self._reached[place] = max(record.timestamp_ms, self._reached.get(place, 0))
        if event is None:
            return
        for name, side, stream in streams:
            row = None if self._is_repeat(name, side, stream, event, record) else passed(stream.steps, event)
            if row is not None:
                self._take(name, side, stream, Event(row, row[key], record, self._reached[place]))

    def _is_repeat(self, name: str, side: str, stream: Records, row: Mapping[str, Any], record: SourceRecord) -> bool:
        if stream.once_rule is None:
            return False
        sighting = name, side, record.partition, row[stream.source.key], row[stream.once_rule.field]
        last = self._sightings.get(sighting)
        self._sightings[sighting] = max(record.timestamp_ms, last or 0)
        return last is not None and self._reached[record.topic, record.partition] - last <= stream.once_rule.within_ms

    def _take(self, name: str, side: str, stream: Records, event: Event) -> None:
        pipeline = self._pipelines[name]
        lateness_ms, slice_ms = stream.source.out_of_orderness_ms, None
        place = name, event.record.partition, event.key
        if isinstance(pipeline, AlertPipeline):
            if pipeline.burst is None and pipeline.raised.per_ms is None:
                return self._raise(pipeline.raised, event)
            slice_ms = None if pipeline.burst else pipeline.raised.per_ms
        elif isinstance(pipeline, LivePipeline):
            slice_ms = pipeline.tile_ms
        elif isinstance(pipeline, FinalPipeline) and isinstance(pipeline.window, Hopping):
            slice_ms = pipeline.window.step_ms
        if not event.is_on_time(lateness_ms, slice_ms):
            self.outputs.late.add((name, *event.record[:3]))
        elif not isinstance(pipeline, AlertPipeline):
            self._kept[name, side, event.record.partition, event.key].append(event)
        elif self._completes(pipeline, place, event.time_ms) and self._is_first(pipeline.raised, place, event.time_ms):
            self._raise(pipeline.raised, event)
        return None

    def _completes(self, pipeline: AlertPipeline, place: Any, time_ms: int) -> bool:
        """Whether a burst is complete with this record and was not with the one before; true where there is none."""
        if pipeline.burst is None:
            return True
        times = self._times[place]
        times.append(time_ms)
        last = times[-pipeline.burst.count :]
        full = len(last) == pipeline.burst.count and max(last) - min(last) <= pipeline.burst.within_ms
        before, self._fired[place] = self._fired.get(place, False), full
        return full and not before

    def _is_first(self, raised: Raised, place: Any, time_ms: int) -> bool:
        if raised.per_ms is None:
            return True
        start_ms, latest_ms = start_of(time_ms, raised.per_ms), self._latest.get(place, -1)
        self._latest[place] = max(start_ms, latest_ms)
        return start_ms > latest_ms

    def _raise(self, raised: Raised, event: Event) -> None:
        ids = [event.row[name] for name in raised.id_fields]
        if raised.per_ms is not None:
            ids = [str(start_of(event.time_ms, raised.per_ms))]
        self._alert(raised, event.row, event.key, ids, event.time_ms, event.record, event.time_ms)

    def _alert(
        self,
        raised: Raised,
        row: Mapping[str, Any],
        key: str,
        ids: list[str],
        triggered_ms: int,
        origin: SourceRecord,
        event_ms: int,
    ) -> None:
        alert_id = ":".join([raised.rule, *(part.replace("%", "%25").replace(":", "%3A") for part in (key, *ids))])
        fields = tuple((name, value_of(value, row)) for name, value in raised.fields)
        self.outputs.alerts.add(AlertSeen(raised.topic, key, alert_id, triggered_ms, fields, origin[:3], event_ms))

    def close(self, bounded: bool) -> None:
        """Tiles, and what is over."""
        for (name, _, partition, key), events in self._kept.items():
            pipeline = self._pipelines[name]
            if isinstance(pipeline, LivePipeline):
                for start_ms, inside in by_start(events, pipeline.tile_ms, pipeline.tile_ms).items():
                    values = amounts_of(pipeline.aggregates.named, [event.row for event in inside], accumulators=True)
                    version = max(event.record.offset for event in inside)
                    self.outputs.tiles[pipeline.topic, key, start_ms, partition] = version, values
            elif isinstance(pipeline, FinalPipeline):
                reached_ms = self._reached[events[0].record.topic, partition]
                behind_ms = reached_ms - pipeline.stream.source.out_of_orderness_ms
                for start_ms, end_ms, inside in windows_of(pipeline.window, events):
                    if bounded or end_ms <= behind_ms:
                        self._final(pipeline, key, start_ms, end_ms, inside)
        for name, pipeline in self._pipelines.items():
            if isinstance(pipeline, JoinPipeline):
                self._join(name, pipeline, bounded)

    def _final(self, pipeline: FinalPipeline, key: str, start_ms: int, end_ms: int, inside: list[Event]) -> None:
        values = amounts_of(pipeline.aggregates.named, [event.row for event in inside], accumulators=False)
        row = {pipeline.stream.source.key: key, "window_start": start_ms, "window_end": end_ms, **values}
        if pipeline.having is not None and not value_of(pipeline.having, row):
            return
        last = max((event.record for event in inside), key=lambda record: record.offset)
        if isinstance(pipeline.target, Raised):
            self._alert(pipeline.target, row, key, [str(start_ms)], end_ms, last, end_ms)
        else:
            self.outputs.rows[pipeline.target, key, start_ms, last.partition] = end_ms, values

    def _join(self, name: str, pipeline: JoinPipeline, bounded: bool) -> None:
        for place in {(partition, key) for of, _, partition, key in self._kept if of == name}:
            self._join_at(pipeline, self._kept[name, "left", *place], self._kept[name, "right", *place], bounded)

    def _join_at(self, pipeline: JoinPipeline, lefts: list[Event], rights: list[Event], bounded: bool) -> None:
        join, partners = pipeline.join, {id(left): list[Event]() for left in lefts}
        for left, right in product(lefts, rights):
            on = all(left.row[mine] == right.row[theirs] for mine, theirs in join.on)
            if on and join.lower_ms <= right.time_ms - left.time_ms <= join.upper_ms:
                partners[id(left)].append(right)
        for left in lefts:
            for right in partners[id(left)] if join.how != "missing" else []:
                later = left if right.time_ms < left.time_ms else right
                self._pair(pipeline, left, {join.prefix + n: v for n, v in right.row.items()}, later, later.time_ms)
            certain_ms = left.time_ms + join.upper_ms
            clocks = [
                self._reached.get((side.source.spec.name, left.record.partition), 0) - side.source.out_of_orderness_ms
                for side in (join.left, join.right)
            ]
            if join.how != "inner" and not partners[id(left)] and (bounded or min(clocks) > certain_ms):
                nothing = {join.prefix + name: None for name in join.right.fields()}
                self._pair(pipeline, left, nothing, left, left.time_ms + max(join.upper_ms, 0))

    def _pair(
        self, pipeline: JoinPipeline, left: Event, right: Mapping[str, Any], later: Event, triggered_ms: int
    ) -> None:
        row = passed(pipeline.steps, {**left.row, **right})
        if row is not None:
            ids = [row[name] for name in pipeline.raised.id_fields]
            self._alert(pipeline.raised, row, left.key, ids, triggered_ms, later.record, later.time_ms)


def _sides(pipeline: Pipeline) -> list[tuple[str, Records]]:
    if isinstance(pipeline, JoinPipeline):
        return [("left", pipeline.join.left), ("right", pipeline.join.right)]
    return [("left", pipeline.stream)]


def start_of(time_ms: int, size_ms: int) -> int:
    return time_ms - time_ms % size_ms


def by_start(events: list[Event], size_ms: int, step_ms: int) -> dict[int, list[Event]]:
    """Events of each window that holds any."""
    windows: defaultdict[int, list[Event]] = defaultdict(list)
    for event in events:
        last = start_of(event.time_ms, step_ms)
        for start_ms in range(last, last - size_ms, -step_ms):
            windows[start_ms].append(event)
    return windows


def windows_of(window: Hopping | Session, events: list[Event]) -> list[tuple[int, int, list[Event]]]:
    """Start, end and events of each window."""
    if isinstance(window, Hopping):
        found = by_start(events, window.size_ms, window.step_ms)
        return [(start_ms, start_ms + window.size_ms, inside) for start_ms, inside in found.items()]
    sessions: list[list[Event]] = []
    for event in sorted(events, key=lambda event: event.time_ms):
        if sessions and event.time_ms - sessions[-1][-1].time_ms <= window.gap_ms:
            sessions[-1].append(event)
        else:
            sessions.append([event])
    return [(one[0].time_ms, one[-1].time_ms + window.gap_ms, one) for one in sessions]
