"""What a job writes: a table and an INSERT for every pipeline, and one for the late references of each topic."""

from collections.abc import Iterable, Mapping
from typing import NamedTuple

import msgspec

from app.broker.topics import late_references_of
from app.streams.expressions import Kind
from app.streams.pipelines import (
    Aggregates,
    AlertPipeline,
    FinalPipeline,
    Hopping,
    Join,
    JoinPipeline,
    LivePipeline,
    Pipeline,
    Raised,
    Source,
    fingerprint,
    slice_ms,
)
from app.streams.sql_expressions import (
    DECIMAL,
    DOLLARS,
    LONG,
    MOST,
    MOST_RECORDS,
    Typed,
    accumulated,
    dollars,
    interval,
    milliseconds,
    name_of,
    named,
    output_value,
    sql_of,
    text_of,
    timestamp,
)
from app.streams.sql_job import PARTITIONER, Settings
from app.streams.sql_sources import OFFSET, PARTITION, STAMP, TIME_MS, ddl
from app.streams.sql_takeover import of_pair, of_record, of_tile, of_window, passes
from app.streams.sql_views import View, Views, call_of, descriptor_of, long_of, needs_clock

JSON = {"json.timestamp-format.standard": "ISO-8601", "json.encode.decimal-as-plain-number": "true"}


HEADERS = "`$headers` MAP<STRING, BYTES> METADATA FROM 'headers'"


class Insert(NamedTuple):
    """A statement that writes, and the declaration of where."""

    table: str
    text: str


def insert_of(name: str, pipeline: Pipeline, views: Views, settings: Settings) -> Insert:
    """What a pipeline writes; its views are added to `views`."""
    match pipeline:
        case AlertPipeline():
            return _record_alerts(name, pipeline, views, settings)
        case LivePipeline():
            return _tiles(name, pipeline, views, settings)
        case FinalPipeline():
            return _finals(name, pipeline, views, settings)
        case JoinPipeline():
            return _pair_alerts(name, pipeline, views, settings)


def late_insert(source: Source, views: Views, settings: Settings) -> Insert:
    """References to the records of a topic that were late for a pipeline."""
    topic = late_references_of(source.spec).name
    place = [name_of(PARTITION), name_of(OFFSET), name_of(TIME_MS)]
    selects = [
        f"SELECT {text_of(late.pipeline)}, {text_of(source.spec.name)}, {', '.join(place)}, {name_of(late.key)}\n"
        f"FROM {late.query}{passes(late.condition, of_record(settings, source.spec.name))}"
        for late in views.late[source.spec.name]
    ]
    columns = ["`pipeline` STRING", "`topic` STRING", "`partition` INT", "`offset` BIGINT", "`event_time_ms` BIGINT"]
    return _insert(topic, topic, [*columns, "`$key` STRING"], settings, "\nUNION ALL\n".join(selects), _TEXT_KEY)


_TEXT_KEY = {"key.format": "raw", "key.fields": "$key", "value.fields-include": "EXCEPT_KEY"}


def _insert(
    name: str, topic: str, columns: list[str], settings: Settings, query: str, options: Mapping[str, str]
) -> Insert:
    table = f"{name} to {settings.output(topic)}"
    said = {
        "connector": "kafka",
        "topic": settings.output(topic),
        **settings.client(),
        "properties.max.request.size": "33554432",  # what its buffer has; each topic's own limit counts
        **options,
        "value.format": "json",
        **{f"value.{option}": value for option, value in JSON.items()},
        "sink.delivery-guarantee": "at-least-once",
    }
    return Insert(ddl(table, columns, said), f"INSERT INTO {name_of(table)}\n{query}")


def _record_alerts(name: str, pipeline: AlertPipeline, views: Views, settings: Settings) -> Insert:
    stream, raised, burst = pipeline.stream, pipeline.raised, pipeline.burst
    source, key = stream.source, stream.source.key
    passed = views.passed(pipeline, stream)
    if not needs_clock(pipeline):
        view = views.all_passed(f"{name} passed", passed)
    else:
        view = views.on_time(f"{name} on time", passed, source, name, None if burst else raised.per_ms)
    if burst:
        view = views.bursts(f"{name} bursts", view, burst)
    natural = [name_of(field) for field in raised.id_fields]
    if raised.per_ms is not None:
        view = views.first_of_slices(f"{name} first of slices", view, raised.per_ms)
        natural = [f"CAST({_start(raised.per_ms)} AS STRING)"]
    view = views.kept(f"{name} raised", view, of_record(settings, source.spec.name))
    at = _Origin(text_of(source.spec.name), name_of(OFFSET), name_of(TIME_MS), name_of(TIME_MS))
    return _alerts(name, raised, settings, view, key, natural, at)


class _Origin(NamedTuple):
    """Where an alert comes from, as SQL: topic and offset, event time, and the time from which it is known."""

    topic: str
    offset: str
    event_ms: str
    triggered_ms: str
    is_window: bool = False


def _pair_alerts(name: str, pipeline: JoinPipeline, views: Views, settings: Settings) -> Insert:
    join = pipeline.join
    sides = []
    for side, stream in (("left", join.left), ("right", join.right)):
        passed = views.passed(pipeline, stream)
        sides.append(views.on_time(f"{name} {side}", passed, stream.source, name, None))
    view = views.stepped(f"{name} passed", views.pairs(f"{name} pairs", join, *sides), pipeline.steps)
    view = views.kept(f"{name} raised", view, of_pair(settings, join))
    natural = [name_of(field) for field in pipeline.raised.id_fields]
    return _alerts(name, pipeline.raised, settings, view, join.left.source.key, natural, _later(join))


def _later(join: Join) -> _Origin:
    """The later record of a pair; the left one without a partner."""
    topics = [text_of(side.source.spec.name) for side in (join.left, join.right)]
    left_ms, alone = name_of(TIME_MS), f"{name_of(TIME_MS)} + {max(join.upper_ms, 0)}"
    if join.how == "missing":
        return _Origin(topics[0], name_of(OFFSET), left_ms, alone)
    is_left = f"`$right_ms` IS NULL OR `$right_ms` < {left_ms}"

    def later(left: str, right: str) -> str:
        return f"CASE WHEN {is_left} THEN {left} ELSE {right} END"

    event_ms = later(left_ms, "`$right_ms`")
    triggered_ms = (
        event_ms if join.how == "inner" else f"CASE WHEN `$right_ms` IS NULL THEN {alone} ELSE {event_ms} END"
    )
    return _Origin(later(*topics), later(name_of(OFFSET), "`$right_offset`"), event_ms, triggered_ms)


def _alerts(
    name: str, raised: Raised, settings: Settings, view: View, key_field: str, natural: list[str], at: _Origin
) -> Insert:
    """natural: text columns that follow rule and key in the id."""
    columns = ["`alert_type` STRING", "`alert_id` STRING", "`triggered_at` TIMESTAMP_LTZ(3)"]
    key = name_of(key_field)
    parts = "".join(f" || ':' || {_escaped(part)}" for part in (key, *natural))
    values = [text_of(raised.tag), f"{text_of(raised.rule)}{parts}", timestamp(at.triggered_ms)]
    names = {field.name: field.encode_name for field in msgspec.structs.fields(raised.alert_type)}
    for field, expression in raised.fields:
        value = sql_of(expression, view.columns)
        text, type_ = f"CAST({value.text} AS {value.type})", value.type
        if value.kind is Kind.MONEY:
            text, type_ = dollars(value.text, value.type)
        columns.append(f"{name_of(names[field])} {type_}")
        values.append(text)
    columns += ["`$key` STRING", HEADERS]
    place = f"{at.topic} || '/' || CAST({name_of(PARTITION)} AS STRING) || '/' || CAST({at.offset} AS STRING)"
    headers = {
        "alert_type": text_of(raised.tag),
        "origin": place,
        "event_ms": f"CAST({at.event_ms} AS STRING)",
        "received_ms": f"CAST({milliseconds('CURRENT_ROW_TIMESTAMP()')} AS STRING)",
        **({"window": "'1'"} if at.is_window else {}),
    }
    shown = ",\n    ".join(f"{text_of(header)}, CAST({value} AS BYTES)" for header, value in headers.items())
    values += [key, f"MAP[\n    {shown}\n  ]"]
    query = f"SELECT\n  {_lines(values)}\nFROM {view.name}"
    if settings.takeover and settings.takeover.holds:  # the one before raises them
        return _nowhere(name, raised.topic, columns, settings, query)
    return _insert(name, raised.topic, columns, settings, query, _TEXT_KEY)


def _nowhere(name: str, topic: str, columns: list[str], settings: Settings, query: str) -> Insert:
    """What would be inserted, computed and dropped."""
    table = f"{name} to {settings.output(topic)}"
    plain = [column.partition(" METADATA ")[0] for column in columns]
    return Insert(ddl(table, plain, {"connector": "blackhole"}), f"INSERT INTO {name_of(table)}\n{query}")


def _tiles(name: str, pipeline: LivePipeline, views: Views, settings: Settings) -> Insert:
    source, aggregates = pipeline.stream.source, pipeline.aggregates
    passed = views.passed(pipeline, pipeline.stream)
    view = views.on_time(f"{name} on time", passed, source, name, slice_ms(pipeline))
    place = [source.key, "tile", "partition"]
    added = [name_of(source.key), named(_start(pipeline.tile_ms), "tile"), named(name_of(PARTITION), "partition")]
    added.append(named(name_of(OFFSET), "version"))
    columns = [f"{name_of(source.key)} STRING", "`tile` BIGINT", "`partition` INT", "`version` BIGINT"]
    values = [*map(name_of, place), "`version`"]
    folded: dict[str, list[str]] = {"sum": [], "min": [], "max": ["version"]}
    for column, accumulator in zip(accumulated(aggregates, view.columns), aggregates.accumulators, strict=True):
        shown = name_of(column.name), column.type
        shown = dollars(*shown) if accumulator.kind is Kind.MONEY else shown
        added.append(named(column.added, column.name))
        columns.append(f"{name_of(column.name)} {shown[1]}")
        values.append(shown[0])
        folded[accumulator.how].append(column.name)
    query = f"SELECT\n  {_lines([*added, name_of(TIME_MS)])}\nFROM {view.name}"
    query += passes(of_tile(settings, source, pipeline.tile_ms))
    records = f"TABLE {views.add(f'{name} added', query)} PARTITION BY ({', '.join(map(name_of, place))})"
    arguments = {"tile_ms": long_of(pipeline.tile_ms)}
    arguments |= {_FOLDS[how]: descriptor_of(*names) for how, names in folded.items() if names}
    columns.append(HEADERS)
    values.append(f"MAP['fingerprint', CAST({text_of(fingerprint(pipeline))} AS BYTES)]")
    query = f"SELECT\n  {_lines(values)}\nFROM {call_of('tiles', records, arguments, f'{name} tiles')}"
    options = {"key.format": "json", "key.fields": ";".join(place), "value.fields-include": "EXCEPT_KEY", **_PLACED}
    return _insert(name, pipeline.topic, columns, settings, query, options)


_FOLDS = {"sum": "sums", "min": "smallest", "max": "largest"}
"""What `tiles` calls the columns of each kind of accumulator."""

_PLACED = {"properties.partitioner.class": PARTITIONER}


def _finals(name: str, pipeline: FinalPipeline, views: Views, settings: Settings) -> Insert:
    source, aggregates = pipeline.stream.source, pipeline.aggregates
    passed = views.passed(pipeline, pipeline.stream)
    view = views.on_time(f"{name} on time", passed, source, name, slice_ms(pipeline))
    seen = [named(output_value(output), output.name) for output in aggregates.outputs]
    shown = [name_of(PARTITION), name_of(source.key), "`$start_ms`", "`$end_ms`", name_of(OFFSET), *seen]
    query = (
        f"SELECT\n  {_lines(shown)}\nFROM (\n{_windows(pipeline, view)}\n){passes(of_window(settings, name, pipeline))}"
    )
    columns = _row_columns(pipeline, view)
    if pipeline.having is not None:
        query = f"SELECT *\nFROM (\n{query}\n)\nWHERE {sql_of(pipeline.having, columns).text}"
    result = View(f"(\n{query}\n)", columns)
    if isinstance(pipeline.target, Raised):
        at = _Origin(text_of(source.spec.name), name_of(OFFSET), "`$end_ms`", "`$end_ms`", is_window=True)
        return _alerts(name, pipeline.target, settings, result, source.key, ["CAST(`$start_ms` AS STRING)"], at)
    return _rows(name, pipeline.target, source.key, aggregates, result, settings)


def _windows(pipeline: FinalPipeline, view: View) -> str:
    """The query of accumulators by partition, key and window. It cannot be a view: Flink 2.3 writes the two columns behind
    PARTITION BY down without their parentheses."""
    window, time = pipeline.window, name_of(TIME_MS)
    place = f"{name_of(PARTITION)}, {name_of(pipeline.stream.source.key)}"
    descriptor = f"DESCRIPTOR({name_of(STAMP)})"
    if isinstance(window, Hopping):
        sizes = ", ".join(interval(ms) for ms in dict.fromkeys((window.step_ms, window.size_ms)))
        function = "TUMBLE" if window.step_ms == window.size_ms else "HOP"
        rows = f"{function}(TABLE {view.name}, {descriptor}, {sizes})"
        ends = [milliseconds("`window_start`"), milliseconds("`window_end`")]
    else:
        rows = f"SESSION(TABLE {view.name} PARTITION BY ({place}), {descriptor}, {interval(window.gap_ms)})"
        ends = [f"MIN({time})", f"MAX({time}) + {window.gap_ms}"]
    values = [place, named(ends[0], "$start_ms"), named(ends[1], "$end_ms"), named(f"MAX({name_of(OFFSET)})", OFFSET)]
    values += [named(column.text, column.name) for column in accumulated(pipeline.aggregates, view.columns)]
    return f"SELECT\n  {_lines(values)}\nFROM TABLE({rows})\nGROUP BY {place}, `window_start`, `window_end`"


def _rows(name: str, topic: str, key: str, aggregates: Aggregates, view: View, settings: Settings) -> Insert:
    columns = [f"{name_of(key)} STRING", "`window_start` BIGINT", "`window_end` BIGINT"]
    values = [name_of(key), "`$start_ms`", "`$end_ms`"]
    for output in aggregates.outputs:
        money = output.kind is Kind.MONEY
        columns.append(f"{name_of(output.name)} {DOLLARS if money else DECIMAL}")
        values.append(dollars(name_of(output.name))[0] if money else f"CAST({name_of(output.name)} AS {DECIMAL})")
    options = {"key.format": "json", "key.fields": f"{key};window_start", "value.fields-include": "ALL", **_PLACED}
    return _insert(name, topic, columns, settings, f"SELECT\n  {_lines(values)}\nFROM {view.name}", options)


def _row_columns(pipeline: FinalPipeline, view: View) -> dict[str, Typed]:
    """What `having` and alerts may read of a row."""
    key = pipeline.stream.source.key
    columns = {
        key: Typed(name_of(key), Kind.TEXT),
        "window_start": Typed(timestamp("`$start_ms`"), Kind.TIME),
        "window_end": Typed(timestamp("`$end_ms`"), Kind.TIME),
    }
    for name, aggregate, kind in pipeline.aggregates.named:
        limit = LONG if aggregate.value is None else sql_of(aggregate.value, view.columns, kind).limit
        limit = min(limit * MOST_RECORDS, MOST) if aggregate.function == "total" else limit
        columns[name] = Typed(name_of(name), kind, -limit, limit)
    return columns


def _start(slice_ms: int) -> str:
    """Of the slice in which a record lies."""
    return f"{name_of(TIME_MS)} - MOD({name_of(TIME_MS)}, {slice_ms})"


def _escaped(part: str) -> str:
    return f"REPLACE(REPLACE({part}, '%', '%25'), ':', '%3A')"


def _lines(values: Iterable[str]) -> str:
    return ",\n  ".join(values)
