"""The views of a job: what of a topic's records reaches a pipeline, and in which form."""

import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from app.core.durations import format_duration
from app.streams.pipelines import (
    AlertPipeline,
    Burst,
    Join,
    Once,
    Pipeline,
    Records,
    Source,
    Steps,
    Where,
    columns_after,
    columns_used,
    sources_of,
    streams_of,
)
from app.streams.sql_expressions import Columns, Typed, interval, name_of, sql_of, text_of
from app.streams.sql_job import Settings
from app.streams.sql_sources import (
    ARRIVED,
    OFFSET,
    PARTITION,
    STAMP,
    TIME_MS,
    Judged,
    judged_fields,
    source_ddl,
    valid_records,
)

REACHED = "$reached"
ENTITY = "$entity"
"""Partition and key in one, by which functions keep state: in a view Flink writes two columns behind PARTITION BY down without their
parentheses."""

PLACE = (PARTITION, OFFSET, TIME_MS)


class Late(NamedTuple):
    """Where the late records of a pipeline are."""

    pipeline: str
    query: str
    condition: str
    key: str


class Passed(NamedTuple):
    """What passes the steps of a stream. No view, or Flink would copy its columns for those on time, for late ones, and before."""

    query: str
    conditions: tuple[str, ...]
    columns: Columns
    beside: tuple[str, ...]

    def where(self, condition: str) -> str:
        """Those for which that holds, too."""
        return " AND ".join([*self.conditions, condition])


class View(NamedTuple):
    """A view and its columns: the record's fields and what was derived."""

    name: str
    columns: Columns


class Views:
    """The views of one job, made as pipelines ask for them. late: by topic, whatever may be late."""

    def __init__(self, pipelines: Mapping[str, Pipeline]) -> None:
        self.texts: dict[str, str] = {}
        self._pipelines = pipelines
        found = sources_of(pipelines.values())
        self.sources = list(found.values())
        self.late: dict[str, list[Late]] = {topic: [] for topic in found}
        self._read: dict[str, set[str]] = {topic: {source.key} for topic, source in found.items()}
        self._row_time: set[str] = set()
        self._by_entity: set[str] = set()
        for pipeline in pipelines.values():
            for stream in streams_of(pipeline):
                topic, rule = stream.source.spec.name, stream.once_rule
                self._read[topic] |= columns_used(pipeline, stream) | ({rule.field} if rule else set())
                if rule or needs_clock(pipeline):
                    self._row_time.add(topic)
                if rule or (isinstance(pipeline, AlertPipeline) and needs_clock(pipeline)):
                    self._by_entity.add(topic)

    def table(self, source: Source, settings: Settings) -> str:
        """The declaration of a topic."""
        topic = source.spec.name
        return source_ddl(source, self._fields(source), settings.source(topic), topic in self._row_time)

    def passed(self, pipeline: Pipeline, stream: Records) -> Passed:
        """What reaches a pipeline: valid, not repeated, and through the steps."""
        source = stream.source
        clock = needs_clock(pipeline)
        below = self._once(source, stream.once_rule) if stream.once_rule else self._records(source, clock)
        query, conditions, columns = _through(stream.steps, below, self._columns(source))
        kept = {source.key} | columns_after(pipeline, stream)
        columns = {column: typed for column, typed in columns.items() if column in kept}
        beside = [*PLACE, *([REACHED, STAMP] if clock else [])]
        beside += [ENTITY] if clock and isinstance(pipeline, AlertPipeline) else []
        return Passed(query, conditions, columns, tuple(beside))

    def all_passed(self, name: str, passed: Passed) -> View:
        """Also those that are late."""
        return self._selected(name, passed, passed.conditions)

    def on_time(self, name: str, passed: Passed, source: Source, pipeline: str, slice_ms: int | None) -> View:
        """The records that are on time for their slice, or by themselves; the others are late references."""
        end = name_of(TIME_MS)
        if slice_ms is not None:
            end = f"{end} - MOD({end}, {slice_ms}) + {slice_ms}"
        limit = f"{name_of(REACHED)} - {source.out_of_orderness_ms}"
        late = passed.where(f"{end} <= {limit}")
        self.late[source.spec.name].append(Late(pipeline, passed.query, late, source.key))
        return self._selected(name, passed, [passed.where(f"{end} > {limit}")])

    def _selected(self, name: str, passed: Passed, conditions: Sequence[str]) -> View:
        shown = ", ".join(map(name_of, [*passed.columns, *passed.beside]))
        return View(self.add(name, f"SELECT {shown}\nFROM {_filtered(passed.query, conditions)}"), passed.columns)

    def bursts(self, name: str, view: View, burst: Burst) -> View:
        """The records that complete a burst."""
        arguments = {"size": long_of(burst.count), "within_ms": long_of(burst.within_ms)}
        return self._passing(name, "burst", view, arguments)

    def first_of_slices(self, name: str, view: View, per_ms: int) -> View:
        """The records whose slice lies behind every one before it."""
        return self._passing(name, "first_of_slices", view, {"per_ms": long_of(per_ms)})

    def _passing(self, name: str, function: str, view: View, arguments: Mapping[str, str]) -> View:
        """The records that a function of flink_jobs/java lets pass, those of a partition and key in their order."""
        called = call_of(function, f"TABLE {view.name} PARTITION BY {name_of(ENTITY)}", arguments, name)
        # In Flink's own order: in any other it copies every text once more.
        columns = ", ".join(map(name_of, [ENTITY, *view.columns, *PLACE, REACHED, STAMP]))
        return View(self.add(name, f"SELECT {columns}\nFROM {called}"), view.columns)

    def pairs(self, name: str, join: Join, left: View, right: View) -> View:
        """Pairs of records on time, or left records without a partner; `$right …` is of the right record."""
        columns = {column: typed._replace(text=f"`l`.{name_of(column)}") for column, typed in left.columns.items()}
        if join.how != "missing":
            columns |= {
                join.prefix + column: typed._replace(text=f"`r`.{name_of(column)}")
                for column, typed in right.columns.items()
            }
        shown = [f"{typed.text} AS {name_of(column)}" for column, typed in columns.items()]
        shown += [f"`l`.{name_of(column)}" for column in PLACE]
        shown += [f"`r`.{name_of(TIME_MS)} AS `$right_ms`", f"`r`.{name_of(OFFSET)} AS `$right_offset`"]
        matched = [
            f"`l`.{name_of(PARTITION)} = `r`.{name_of(PARTITION)}",
            f"`l`.{name_of(join.left.source.key)} = `r`.{name_of(join.right.source.key)}",
            *(f"`l`.{name_of(mine)} = `r`.{name_of(theirs)}" for mine, theirs in join.on),
        ]
        bounds = " AND ".join(_shifted(bound) for bound in (join.lower_ms, join.upper_ms))
        matched.append(f"`r`.{name_of(STAMP)} BETWEEN {bounds}")
        query = f"SELECT {', '.join(shown)}\nFROM {left.name} AS `l`\n"
        query += f"{'JOIN' if join.how == 'inner' else 'LEFT JOIN'} {right.name} AS `r`\n  ON {' AND '.join(matched)}"
        if join.how == "missing":
            query += f"\nWHERE `r`.{name_of(TIME_MS)} IS NULL"
        plain = {column: typed._replace(text=name_of(column)) for column, typed in columns.items()}
        return View(self.add(name, query), plain)

    def stepped(self, name: str, view: View, steps: Steps) -> View:
        """What passes the steps behind a join."""
        if not steps:
            return view
        query, conditions, columns = _through(steps, view.name, view.columns)
        return View(self.add(name, f"SELECT *\nFROM {_filtered(query, conditions)}"), columns)

    def kept(self, name: str, view: View, condition: str) -> View:
        """What of it meets the condition; all where that is empty."""
        return (
            View(self.add(name, f"SELECT *\nFROM {view.name}\nWHERE {condition}"), view.columns) if condition else view
        )

    def add(self, name: str, query: str) -> str:
        """A new view, or the one that is there; its name in backticks."""
        quoted = name_of(name)
        self.texts.setdefault(name, f"CREATE TEMPORARY VIEW {quoted} AS\n{query}")
        return quoted

    def _fields(self, source: Source) -> list[Judged]:
        return judged_fields(source.spec.type, self._read[source.spec.name])

    def _columns(self, source: Source) -> dict[str, Typed]:
        """The fields of a topic that some pipeline reads."""
        fields = [field for field in self._fields(source) if field.name in self._read[source.spec.name]]
        return {field.name: field.value._replace(text=name_of(field.name)) for field in fields}

    def _records(self, source: Source, clock: bool) -> str:
        """Valid records without the heartbeats; clock: with `$reached`, which those move."""
        topic = source.spec.name
        fields, row_time = self._fields(source), topic in self._row_time
        valid = self.add(f"{topic} valid", valid_records(source, fields, self._read[topic], row_time))
        only = f"WHERE {name_of(source.key)} IS NOT NULL"
        if not clock:
            return self.add(f"{topic} records", f"SELECT *\nFROM {valid}\n{only}")
        over = f"PARTITION BY {name_of(PARTITION)} ORDER BY {name_of(ARRIVED)}"
        over += " ROWS BETWEEN UNBOUNDED PRECEDING AND CURRENT ROW"
        timed = f"SELECT *, MAX({name_of(TIME_MS)}) OVER ({over}) AS {name_of(REACHED)} FROM {valid}"
        shown = list(map(name_of, [*self._columns(source), *PLACE, REACHED, STAMP]))
        entity = f"CAST({name_of(PARTITION)} AS STRING) || ' ' || {name_of(source.key)}"
        shown += [f"{entity} AS {name_of(ENTITY)}"] if topic in self._by_entity else []
        return self.add(f"{topic} timed", f"SELECT {', '.join(shown)}\nFROM ({timed})\n{only}")

    def _once(self, source: Source, rule: Once) -> str:
        """The first record of each id; one memory for all pipelines with that rule."""
        view = View(self._records(source, clock=True), self._columns(source))
        name = f"{source.spec.name} once {rule.field} {format_duration(rule.within_ms)}"
        arguments = {"id": descriptor_of(rule.field), "within_ms": long_of(rule.within_ms)}
        return self._passing(name, "once", view, arguments).name


def call_of(function: str, records: str, arguments: Mapping[str, str], name: str) -> str:
    """The call of a function of flink_jobs/java that keeps something of each key. name: by which its state is found again."""
    said = {
        "records": records,
        **arguments,
        "uid": text_of(re.sub(r"[^A-Za-z0-9_]", "-", f"of {name}")),
    }
    shown = ",\n  ".join(f"{argument} => {value}" for argument, value in said.items())
    return f"{function}(\n  {shown}\n)"


def descriptor_of(*columns: str) -> str:
    """Columns as a function takes them."""
    return f"DESCRIPTOR({', '.join(map(name_of, columns))})"


def long_of(value: int) -> str:
    """A constant of 64 bits."""
    return f"CAST({value} AS BIGINT)"


def needs_clock(pipeline: Pipeline) -> bool:
    """Whether it judges what is late."""
    if isinstance(pipeline, AlertPipeline):
        return pipeline.burst is not None or pipeline.raised.per_ms is not None
    return True


def _through(steps: Steps, query: str, known: Columns) -> tuple[str, tuple[str, ...], dict[str, Typed]]:
    """What is behind some steps: the query, what its rows must still fulfil, and its columns."""
    conditions, columns = list[str](), dict(known)
    for step in steps:
        if isinstance(step, Where):
            conditions.append(sql_of(step.condition, columns).text)
            continue
        value = sql_of(step.value, columns)
        columns[step.name] = value._replace(text=name_of(step.name))
        new = f"CAST({value.text} AS {value.type}) AS {name_of(step.name)}"
        query, conditions = f"(SELECT *, {new} FROM {_filtered(query, conditions)})", []
    return query, tuple(conditions), columns


def _filtered(query: str, conditions: Sequence[str]) -> str:
    return f"{query}\nWHERE {' AND '.join(conditions)}" if conditions else query


def _shifted(bound_ms: int) -> str:
    return f"`l`.{name_of(STAMP)} {'+' if bound_ms >= 0 else '-'} {interval(abs(bound_ms))}"
