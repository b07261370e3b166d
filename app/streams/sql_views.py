"""The views of a job: what of a topic's records reaches a pipeline, and in which form."""

from collections.abc import Mapping
from typing import NamedTuple

from app.core.durations import format_duration
from app.streams.pipelines import (
    AlertPipeline,
    Burst,
    Derive,
    FinalPipeline,
    Hopping,
    Join,
    JoinPipeline,
    LivePipeline,
    Once,
    Pipeline,
    Records,
    Source,
    Steps,
    Where,
    columns_after,
    columns_used,
    streams_of,
)
from app.streams.sql_expressions import Columns, Typed, interval, name_of, sql_of
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
PLACE = (PARTITION, OFFSET, TIME_MS)


class Late(NamedTuple):
    """Where the late records of a pipeline are."""

    pipeline: str
    view: str
    condition: str
    key: str


class View(NamedTuple):
    """A view and its columns: the record's fields and what was derived."""

    name: str
    columns: Columns


class Views:
    """The views of one job, made as pipelines ask for them. late: by topic, whatever may be late."""

    def __init__(self, pipelines: Mapping[str, Pipeline]) -> None:
        self.texts: dict[str, str] = {}
        self._pipelines = pipelines
        found = {stream.source.spec.name: stream.source for p in pipelines.values() for stream in streams_of(p)}
        self.sources: list[Source] = list(found.values())
        self.late: dict[str, list[Late]] = {topic: [] for topic in found}
        self._read: dict[str, set[str]] = {topic: {source.key} for topic, source in found.items()}
        self._row_time: set[str] = set()
        self._clock: set[tuple[str, Once | None]] = set()
        for pipeline in pipelines.values():
            for stream in streams_of(pipeline):
                topic, rule = stream.source.spec.name, stream.once_rule
                self._read[topic] |= columns_used(pipeline, stream) | ({rule.field} if rule else set())
                if _by_row_time(pipeline):
                    self._row_time.add(topic)
                if needs_clock(pipeline):
                    self._clock.add((topic, rule))

    def table(self, source: Source, settings: Settings) -> str:
        """The declaration of a topic."""
        topic = source.spec.name
        return source_ddl(source, self._fields(source), settings.source(topic), topic in self._row_time)

    def passed(self, name: str, pipeline: Pipeline, stream: Records) -> View:
        """What reaches a pipeline: valid, not repeated, and through the steps."""
        source = stream.source
        clock = needs_clock(pipeline)
        below = self._once(source, stream.once_rule, clock) if stream.once_rule else self._records(source, clock)
        columns: dict[str, Typed] = {
            field.name: field.value._replace(text=name_of(field.name))
            for field in self._fields(source)
            if field.name in self._read[source.spec.name]
        }
        query = below
        for step in stream.steps:
            query = _stepped(step, query, columns)
        kept = {source.key} | columns_after(pipeline, stream)
        columns = {column: typed for column, typed in columns.items() if column in kept}
        extra = [*PLACE, ARRIVED, *([REACHED] if clock else []), *([STAMP] if _by_row_time(pipeline) else [])]
        shown = ", ".join(map(name_of, [*columns, *extra]))
        return View(self.add(name, f"SELECT {shown}\nFROM {query}"), columns)

    def on_time(self, name: str, view: View, source: Source, pipeline: str, slice_ms: int | None) -> View:
        """The records that are on time for their slice, or by themselves; the others are late references."""
        end = name_of(TIME_MS)
        if slice_ms is not None:
            end = f"{end} - MOD({end}, {slice_ms}) + {slice_ms}"
        limit = f"{name_of(REACHED)} - {source.out_of_orderness_ms}"
        self.late[source.spec.name].append(Late(pipeline, view.name, f"{end} <= {limit}", source.key))
        return View(self.add(name, f"SELECT *\nFROM {view.name}\nWHERE {end} > {limit}"), view.columns)

    def bursts(self, name: str, view: View, key: str, burst: Burst) -> View:
        """The records that complete a burst."""
        keyed = f"PARTITION BY {name_of(PARTITION)}, {name_of(key)} ORDER BY {name_of(ARRIVED)}"
        time = name_of(TIME_MS)
        full = f"COUNT(*) OVER `last` = {burst.count} AND MAX({time}) OVER `last` - MIN({time}) OVER `last` <= {burst.within_ms}"
        last = f"{keyed} ROWS BETWEEN {burst.count - 1} PRECEDING AND CURRENT ROW"
        query = f"""SELECT *
FROM (
  SELECT *, LAG(`$full`) OVER ({keyed}) AS `$was_full`
  FROM (
    SELECT *, {full} AS `$full`
    FROM {view.name}
    WINDOW `last` AS ({last})
  )
)
WHERE `$full` AND `$was_full` IS NOT TRUE"""
        return View(self.add(name, query), view.columns)

    def first_of_slices(self, name: str, view: View, key: str, per_ms: int) -> View:
        """The records whose slice lies behind every one before it. (Divided, since two OVERs without anything computed between
        them are one name twice to Flink 2.3.)"""
        keyed = f"PARTITION BY {name_of(PARTITION)}, {name_of(key)} ORDER BY {name_of(ARRIVED)}"
        time = name_of(TIME_MS)
        query = f"""SELECT *
FROM (
  SELECT *, LAG(`$latest` / {per_ms}) OVER ({keyed}) AS `$before`
  FROM (
    SELECT *, MAX(`$slice`) OVER ({keyed} ROWS BETWEEN UNBOUNDED PRECEDING AND CURRENT ROW) AS `$latest`
    FROM (SELECT *, {time} - MOD({time}, {per_ms}) AS `$slice` FROM {view.name})
  )
)
WHERE `$before` IS NULL OR `$slice` / {per_ms} > `$before`"""
        return View(self.add(name, query), view.columns)

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
        columns, query = dict(view.columns), view.name
        for step in steps:
            query = _stepped(step, query, columns)
        return View(self.add(name, f"SELECT *\nFROM {query}"), columns)

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
        return self.add(f"{topic} timed", f"SELECT *\nFROM ({timed})\n{only}")

    def _once(self, source: Source, rule: Once, clock: bool) -> str:
        """The first record of each id; one memory for all pipelines with that rule."""
        below = self._records(source, clock or (source.spec.name, rule) in self._clock)
        ids = ", ".join(map(name_of, (PARTITION, source.key, rule.field)))
        numbered = (
            f"SELECT *, ROW_NUMBER() OVER (PARTITION BY {ids} ORDER BY {name_of(ARRIVED)}) AS `$sighting` FROM {below}"
        )
        name = f"{source.spec.name} once {rule.field} {format_duration(rule.within_ms)}"
        return self.add(name, f"SELECT *\nFROM ({numbered})\nWHERE `$sighting` = 1")


def needs_clock(pipeline: Pipeline) -> bool:
    """Whether it judges what is late."""
    if isinstance(pipeline, AlertPipeline):
        return pipeline.burst is not None or pipeline.raised.per_ms is not None
    return True


def slice_of(pipeline: Pipeline) -> int | None:
    """The slice by which lateness is judged; None where the record itself is."""
    if isinstance(pipeline, LivePipeline):
        return pipeline.tile_ms
    if isinstance(pipeline, FinalPipeline) and isinstance(pipeline.window, Hopping):
        return pipeline.window.step_ms
    return None


def _by_row_time(pipeline: Pipeline) -> bool:
    return isinstance(pipeline, FinalPipeline | JoinPipeline)


def _stepped(step: Where | Derive, query: str, columns: dict[str, Typed]) -> str:
    """The query behind one more step; adds what it derives to the columns."""
    if isinstance(step, Where):
        return f"(SELECT * FROM {query} WHERE {sql_of(step.condition, columns).text})"
    value = sql_of(step.value, columns)
    columns[step.name] = value._replace(text=name_of(step.name))
    return f"(SELECT *, CAST({value.text} AS {value.type}) AS {name_of(step.name)} FROM {query})"


def _shifted(bound_ms: int) -> str:
    return f"`l`.{name_of(STAMP)} {'+' if bound_ms >= 0 else '-'} {interval(abs(bound_ms))}"
