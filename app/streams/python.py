"""Graph to Python: all pipelines of one topic become one function that walks a batch. Pure text, printed by
`python -m app streams show NAME --python`.

The text handles the records of one partition in order: the gate, the partition's clock, `once`, then each pipeline's
steps and what it keeps. What happens rarely (opening and closing slices, rejecting) is a call into `tables`.

Field values are locals `f_<name>`; money is an integer of cents there. A slice's entry is the list
`[version, changed, value, value, ...]`, version being the source offset of its last change.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from decimal import Decimal

from app.streams.aggregates import Accumulator
from app.streams.expressions import (
    Binary,
    Column,
    Expression,
    Kind,
    Literal,
    Not,
    OneOf,
    columns_of,
    field_kinds,
    kind_of,
    literal_cents,
)
from app.streams.gate import LATEST_MS, MAX_KEY_BYTES
from app.streams.memories import memories_of
from app.streams.pipelines import (
    AlertPipeline,
    FinalPipeline,
    Hopping,
    JoinPipeline,
    LivePipeline,
    Once,
    Pipeline,
    Raised,
    Records,
    Source,
    Where,
    WindowedPipeline,
    columns_used,
    kept_of,
    slice_ms,
    streams_of,
)


@dataclass
class _Text:
    """Lines of Python under construction."""

    lines: list[str] = field(default_factory=list)

    def add(self, depth: int, *lines: str) -> None:
        self.lines += ["    " * depth + line for line in lines]


def compile_topic(source: Source, pipelines: Mapping[str, Pipeline]) -> str:
    """Text of a module with `process(records, part, received_ms)`, and of each windowed pipeline the encoders of its table
    and its rows.

    pipelines: all of one source; every one is compiled from its declaration alone, so the same graph gives the same text.
    """
    windowed: list[tuple[str, WindowedPipeline]] = [
        (name, p) for name, p in pipelines.items() if isinstance(p, WindowedPipeline)
    ]
    windowed.sort(key=lambda item: not isinstance(item[1], LivePipeline))
    joined = [(name, p) for name, p in pipelines.items() if isinstance(p, JoinPipeline)]
    alerts = [(name, p) for name, p in pipelines.items() if isinstance(p, AlertPipeline)]
    text = _Text()
    text.add(0, f"# {source}")
    for name, pipeline in pipelines.items():
        text.add(0, f"# {name}: {pipeline}")
    text.add(0, "", "", "def process(records, part, received_ms):")
    _prologue(text, source, windowed, joined, alerts)
    text.add(1, "for record in records:")
    closes = bool(windowed or joined)
    _gate(text, source, closes)
    _clock(text, closes)
    read = streams_on(source, pipelines)
    used = {source.key}.union(*(columns_used(pipelines[name], stream) for name, stream in read))
    for column, kind in field_kinds(source.spec.type).items():
        if column in used and kind is not Kind.MONEY and column != source.key:
            text.add(2, f"f_{column} = event.{column}")
    rules = once_rules(source, pipelines)
    shared = len(rules) == 1 and all(stream.once_rule for _, stream in read)
    for rule in rules:
        _once(text, source, rule, shared)
    for name, pipeline in windowed:
        _window(text, source, name, pipeline, shared)
    for name, join in joined:
        _join(text, source, name, join, shared)
    for name, alert in alerts:
        _alert(text, source, name, alert, [n for n, p in windowed if isinstance(p, LivePipeline)], shared)
    text.add(1, "part.reached_ms = m")
    for name, pipeline in windowed:
        _table_encoders(text, source, name, pipeline)
        if isinstance(pipeline, FinalPipeline):
            _row(text, source, name, pipeline)
    for name, join in joined:
        _pair(text, name, join)
    return "\n".join(text.lines) + "\n"


def _prologue(
    text: _Text,
    source: Source,
    windowed: list[tuple[str, WindowedPipeline]],
    joined: list[tuple[str, JoinPipeline]],
    alerts: list[tuple[str, AlertPipeline]],
) -> None:
    text.add(1, f'"""One batch of one partition of {source.spec.name}."""', "m = part.reached_ms")
    if windowed or joined:
        text.add(1, "closing_ms = part.closing_ms")
    for name, _ in joined:
        text.add(1, f"add_{name} = part.tables[{name!r}].add")
    for name, pipeline in windowed:
        text.add(1, f"table_{name} = part.tables[{name!r}]")
        if slice_ms(pipeline) is not None:
            text.add(1, f"open_{name} = table_{name}.open", f"changed_{name} = table_{name}.changed")
            text.add(1, f"since_{name} = table_{name}.since_ms", f"latest_{name} = entries_{name} = None")
    if alerts:
        text.add(1, "emit = part.alerts.append", "place = part.place_text")
    for name, alert in alerts:
        for memory in memories_of(name, alert):
            text.add(1, f"{memory} = part.memories[{memory!r}]")


def _gate(text: _Text, source: Source, windowed: bool) -> None:
    text.add(2, "value = record.value", "t = record.timestamp_ms", "key = record.key")
    text.add(2, f"if key is None or value is None or not 0 < len(key) <= {MAX_KEY_BYTES} or not 0 <= t <= {LATEST_MS}:")
    text.add(3, "if is_heartbeat(record):")
    text.add(4, "if t > m:", "    m = t")
    if windowed:
        text.add(5, "if m >= closing_ms:", "    closing_ms = part.advance(m, record.offset)")
    text.add(3, "else:", "    part.reject(record, reason_of_incomplete(record))", "continue")
    text.add(2, "try:", "    event = decode(value)")
    text.add(2, "except DECODE_ERRORS as error:", "    part.reject(record, str(error))", "    continue")
    text.add(2, f"f_{source.key} = event.{source.key}")
    text.add(2, f"if f_{source.key}.encode() != key:")
    text.add(3, f"part.reject(record, 'the key is not the field {source.key}')", "continue")
    whole = [name for name, kind in field_kinds(source.spec.type).items() if kind is Kind.INTEGER]
    if whole:
        bounds = " and ".join(f"-{2**63} <= event.{name} < {2**63}" for name in whole)
        text.add(2, f"if not ({bounds}):")
        text.add(3, "part.reject(record, 'a whole number does not fit 64 bits')", "continue")
    for name in (name for name, kind in field_kinds(source.spec.type).items() if kind is Kind.MONEY):
        text.add(2, "try:", f"    f_{name} = to_cents(event.{name})")
        text.add(2, "except ValueError as error:", f"    part.reject(record, f'{name}: {{error}}')", "    continue")


def _clock(text: _Text, windowed: bool) -> None:
    text.add(2, "offset = record.offset")
    text.add(2, "if t > m:", "    m = t")
    if windowed:
        text.add(3, "if m >= closing_ms:", "    closing_ms = part.advance(m, offset)")


def streams_on(source: Source, pipelines: Mapping[str, Pipeline]) -> list[tuple[str, Records]]:
    """What the pipelines read of one topic, with their names: one stream each, or both sides where they join it with itself."""
    topic = source.spec.name
    return [(n, stream) for n, p in pipelines.items() for stream in streams_of(p) if stream.source.spec.name == topic]


def once_rules(source: Source, pipelines: Mapping[str, Pipeline]) -> list[Once]:
    """The different `once` rules of some pipelines on one topic."""
    return list({stream.once_rule: None for _, stream in streams_on(source, pipelines) if stream.once_rule})


def once_name(rule: Once) -> str:
    """Name of a `once` memory in generated text and in a partition's state."""
    return f"once_{rule.field}_{rule.within_ms}"


def _once(text: _Text, source: Source, rule: Once, shared: bool) -> None:
    name = once_name(rule)
    text.add(2, f"repeat_{name} = part.memories[{name!r}].is_repeat((f_{source.key}, event.{rule.field}), t, m)")
    if shared:
        text.add(2, f"if repeat_{name}:", "    continue")


def _steps(text: _Text, depth: int, stream: Records, once_done: bool) -> tuple[int, dict[str, Kind]]:
    """Writes `once`, `where` and `derive`; returns the depth at which a record that passed goes on."""
    fields = field_kinds(stream.source.spec.type)
    if stream.once_rule and not once_done:
        text.add(depth, f"if not repeat_{once_name(stream.once_rule)}:")
        depth += 1
    for step in stream.steps:
        if isinstance(step, Where):
            text.add(depth, f"if {expression_text(step.condition, fields)}:")
            depth += 1
        else:
            text.add(depth, f"f_{step.name} = {expression_text(step.value, fields)}")
            fields[step.name] = kind_of(step.value, fields)
    return depth, fields


def _window(text: _Text, source: Source, name: str, pipeline: WindowedPipeline, once_done: bool) -> None:
    text.add(2, f"# {name}")
    if isinstance(pipeline, LivePipeline):
        text.add(2, f"late_{name} = False")
    depth, fields = _steps(text, 2, pipeline.stream, once_done)
    size_ms = slice_ms(pipeline)
    if size_ms is None:
        _session(text, source, name, pipeline, depth, fields)
        return
    text.add(depth, f"start = t - t % {size_ms}")
    text.add(depth, f"if start + {size_ms} <= m - {source.out_of_orderness_ms}:")
    text.add(depth + 1, f"part.late.append(({name!r}, record))")
    if isinstance(pipeline, LivePipeline):
        text.add(depth + 1, f"late_{name} = True")
    text.add(depth, f"elif start >= since_{name}:")
    depth, key = depth + 1, f"f_{source.key}"
    text.add(depth, f"if start != latest_{name}:  # most records fall into the slice of the one before")
    text.add(depth + 1, f"latest_{name}, entries_{name} = start, open_{name}.get(start)")
    text.add(depth + 1, f"if entries_{name} is None:")
    text.add(depth + 2, f"entries_{name} = table_{name}.open_slice(start)")
    text.add(depth + 2, f"closing_ms = part.closes_at(start + {size_ms})")
    text.add(depth, f"entry = entries_{name}.get({key})")
    first, more = _updates(pipeline, fields)
    text.add(depth, "if entry is None:")
    text.add(depth + 1, f"entries_{name}[{key}] = entry = [offset, True, {', '.join(first)}]")
    text.add(depth + 1, f"changed_{name}.append((start, {key}, entry))")
    text.add(depth, "elif offset > entry[0]:")
    text.add(depth + 1, "entry[0] = offset", *more)
    text.add(depth + 1, "if not entry[1]:", "    entry[1] = True", f"    changed_{name}.append((start, {key}, entry))")


def _session(
    text: _Text, source: Source, name: str, pipeline: WindowedPipeline, depth: int, fields: Mapping[str, Kind]
) -> None:
    text.add(depth, f"if t <= m - {source.out_of_orderness_ms}:", f"    part.late.append(({name!r}, record))", "else:")
    first, _ = _updates(pipeline, fields)
    text.add(depth + 1, f"end = table_{name}.add(f_{source.key}, t, offset, ({', '.join(first)},))")
    text.add(depth + 1, "if end is not None:", "    closing_ms = part.closes_at(end)")


def _join(text: _Text, source: Source, name: str, pipeline: JoinPipeline, once_done: bool) -> None:
    for side, stream in (("left", pipeline.join.left), ("right", pipeline.join.right)):
        if stream.source.spec.name == source.spec.name:
            text.add(2, f"# {name}: {side}")
            depth, _ = _steps(text, 2, stream, once_done)
            text.add(depth, f"if t <= m - {source.out_of_orderness_ms}:", f"    part.late.append(({name!r}, record))")
            values = "".join(f"f_{field}, " for field in kept_of(pipeline, stream))
            text.add(depth, "else:")
            text.add(depth + 1, f"closing_ms = add_{name}({side!r}, f_{source.key}, t, offset, ({values}), m)")


def _updates(pipeline: WindowedPipeline, fields: Mapping[str, Kind]) -> tuple[list[str], list[str]]:
    """First values of a new entry, and the statements that change an old one."""
    first, more = [], []
    amounts = zip(pipeline.aggregates.accumulators, pipeline.aggregates.amounts, strict=True)
    for index, (accumulator, (value, when)) in enumerate(amounts, start=2):
        amount = "1" if value is None else expression_text(value, fields)
        condition = None if when is None else expression_text(when, fields)
        is_sum = accumulator.how == "sum"
        first.append(amount if condition is None else f"({amount} if {condition} else {0 if is_sum else None})")
        depth = "    " * (condition is not None)
        more += [f"if {condition}:"] if condition is not None else []
        if is_sum:
            more.append(f"{depth}entry[{index}] += {amount}")
        else:
            beats = "<" if accumulator.how == "min" else ">"
            more.append(f"{depth}amount = {amount}")
            unless = f"entry[{index}] is None or " if condition is not None else ""
            more += [f"{depth}if {unless}amount {beats} entry[{index}]:", f"{depth}    entry[{index}] = amount"]
    return first, more


def _alert(text: _Text, source: Source, name: str, alert: AlertPipeline, views: list[str], once_done: bool) -> None:
    text.add(2, f"# {name}")
    key, lateness_ms, per_ms = f"f_{source.key}", source.out_of_orderness_ms, alert.raised.per_ms
    depth, fields = _steps(text, 2, alert.stream, once_done)
    if alert.burst is not None:
        text.add(depth, f"if t <= m - {lateness_ms}:", f"    part.late.append(({name!r}, record))")
        text.add(depth, f"elif burst_{name}.begins({key}, t, m):")
        depth += 1
    if per_ms is not None:
        text.add(depth, f"start = t - t % {per_ms}")
        text.add(depth, f"if start + {per_ms} <= m - {lateness_ms}:", f"    part.late.append(({name!r}, record))")
        text.add(depth, f"elif slices_{name}.is_first({key}, start, m):")
        depth += 1
    ids = ["str(start)"] if per_ms is not None else [f"f_{field}" for field in alert.raised.id_fields]
    _raise(text, depth, alert.raised, name, key, ids, "instant(t)", fields)
    late = " + ".join(f"({view!r},) * late_{view}" for view in views) or "()"
    text.add(depth, f"headers = alert_headers({alert.raised.tag!r}, place, offset, t, received_ms, {late})")
    text.add(depth, f"emit((record, {alert.topic!r}, encode(alert), headers))")


def _raise(
    text: _Text,
    depth: int,
    raised: Raised,
    name: str,
    key: str,
    ids: list[str],
    at: str,
    fields: Mapping[str, Kind],
    optional: frozenset[str] = frozenset(),
) -> None:
    text.add(depth, f"alert = alert_{name}(")
    text.add(depth + 1, f"alert_id=derived_id({raised.rule!r}, {key}, {', '.join(ids)}),", f"triggered_at={at},")
    for field_name, value in raised.fields:
        shown = expression_text(value, fields)
        if kind_of(value, fields) is Kind.MONEY:
            absent = isinstance(value, Column) and value.name in optional
            shown = f"to_dollars({shown})" + f" if {shown} is not None else None" * absent
        text.add(depth + 1, f"{field_name}={shown},")
    text.add(depth, ")")


def _table_encoders(text: _Text, source: Source, name: str, pipeline: WindowedPipeline) -> None:
    text.add(0, "", "", f"def key_{name}(start, key, partition):")
    place, values = "", ""
    if isinstance(pipeline, LivePipeline):
        place, values = ',"tile":%d,"partition":%d', ", start, partition"
    elif isinstance(pipeline.window, Hopping):
        place, values = ',"window_start":%d', ", start"
    text.add(1, f"return b'{{\"{source.key}\":%s{place}}}' % (quote(key).encode(){values},)")
    text.add(0, "", "", f"def value_{name}(entry):")
    if slice_ms(pipeline) is None:
        shown, amounts = _amounts_json(pipeline.aggregates.accumulators, "one", 3)
        session = f'{{"first":%d,"last":%d,"offset":%d{shown}}}'
        text.add(1, f"sessions = [b'{session}' % (one[0], one[1], one[2]{amounts}) for one in entry[2:]]")
        text.add(1, """return b'{"version":%d,"sessions":[%s]}' % (entry[0], b','.join(sessions))""")
    else:
        shown, amounts = _amounts_json(pipeline.aggregates.accumulators, "entry", 2)
        text.add(1, f"return b'{{\"version\":%d{shown}}}' % (entry[0]{amounts},)")


def _amounts_json(accumulators: tuple[Accumulator, ...], entry: str, first: int) -> tuple[str, str]:
    """The values of an entry as a format of bytes, and what goes into it."""
    shown, values = "", ""
    for index, accumulator in enumerate(accumulators, start=first):
        form, value = _json(accumulator.kind, f"{entry}[{index}]", accumulator.how != "sum")
        shown += f',"{accumulator.name}":{form}'
        values += f", {value}"
    return shown, values


def _json(kind: Kind, value: str, optional: bool) -> tuple[str, str]:
    """A format of bytes for a value, and the value as it goes in."""
    if kind is Kind.MONEY:
        return (
            "%s",
            f"(b'null' if {value} is None else cents_to_json({value}))" if optional else f"cents_to_json({value})",
        )
    return ("%s", f"(b'null' if {value} is None else b'%d' % {value})") if optional else ("%d", value)


def _row(text: _Text, source: Source, name: str, pipeline: FinalPipeline) -> None:
    """`row_<name>(row, place, received_ms)`: key and value (and headers, of an alert) of a closed window, or None where
    `having` does not hold."""
    aggregates = pipeline.aggregates
    text.add(0, "", "", f"def row_{name}(row, place, received_ms):")
    kinds = {"window_start": Kind.TIME, "window_end": Kind.TIME, source.key: Kind.TEXT}
    kinds |= {output.name: output.kind for output in aggregates.outputs}
    raised = pipeline.target if isinstance(pipeline.target, Raised) else None
    read = {source.key} | (columns_of(pipeline.having) if pipeline.having is not None else set())
    read |= set(kinds) if raised is None else {name for _, value in raised.fields for name in columns_of(value)}
    for value_name, value in {"window_start": "row.start_ms", "window_end": "row.end_ms"}.items():
        if value_name in read and (raised is not None or pipeline.having is not None):
            text.add(1, f"f_{value_name} = instant({value})")
    text.add(1, f"f_{source.key} = row.key")
    at = 0
    for output in aggregates.outputs:
        amounts = ", ".join(f"row.amounts[{at + index}]" for index in range(len(output.accumulators)))
        at += len(output.accumulators)
        if output.name in read:
            text.add(1, f"f_{output.name} = {f'mean_of({amounts})' if output.function == 'mean' else amounts}")
    if pipeline.having is not None:
        text.add(1, f"if not {expression_text(pipeline.having, kinds)}:", "    return None")
    if raised is not None:
        _raise(text, 1, raised, name, f"f_{source.key}", ["str(row.start_ms)"], "instant(row.end_ms)", kinds)
        text.add(1, f"headers = window_headers({raised.tag!r}, place, row.version, row.end_ms, received_ms)")
        text.add(1, f"return f_{source.key}.encode(), encode(alert), headers")
        return
    shown, values = "", ""
    optional = {name for name, aggregate, _ in aggregates.named if aggregate.may_be_nothing}
    for output in aggregates.outputs:
        form, value = _json(output.kind, f"f_{output.name}", output.name in optional)
        shown, values = f'{shown},"{output.name}":{form}', f"{values}, {value}"
    text.add(1, f"key = quote(f_{source.key}).encode()")
    text.add(1, f'value = b\'{{"{source.key}":%s,"window_start":%d,"window_end":%d{shown}}}\' % (')
    text.add(2, f"key, row.start_ms, row.end_ms{values}")
    text.add(1, ")")
    text.add(1, f'return b\'{{"{source.key}":%s,"window_start":%d}}\' % (key, row.start_ms), value, ()')


def _pair(text: _Text, name: str, pipeline: JoinPipeline) -> None:
    """`row_<name>(pair, place, received_ms)`: as `_row`, of a pair or a left record without a partner."""
    join, raised = pipeline.join, pipeline.raised
    text.add(0, "", "", f"def row_{name}(pair, place, received_ms):")
    text.add(1, f"f_{join.left.source.key} = pair.key")
    left = kept_of(pipeline, join.left)
    if left:
        text.add(1, f"{', '.join(f'f_{field}' for field in left)}, = pair.left")
    if join.how != "missing":
        text.add(1, f"f_{join.prefix}{join.right.source.key} = None if pair.right is None else pair.key")
        right = kept_of(pipeline, join.right)
        if right:
            names = ", ".join(f"f_{join.prefix}{field}" for field in right)
            text.add(1, f"{names}, = pair.right or ({'None, ' * len(right)})")
    fields = join.fields()
    for step in pipeline.steps:
        if isinstance(step, Where):
            text.add(1, f"if not {expression_text(step.condition, fields)}:", "    return None")
        else:
            text.add(1, f"f_{step.name} = {expression_text(step.value, fields)}")
            fields[step.name] = kind_of(step.value, fields)
    alone = f"pair.left_at.time_ms + {max(join.upper_ms, 0)}"
    text.add(
        1, "at = pair.left_at if pair.right is None or pair.right_at.time_ms < pair.left_at.time_ms else pair.right_at"
    )
    text.add(1, f"known_ms = {alone} if pair.right is None else at.time_ms")
    ids = [f"f_{field}" for field in raised.id_fields]
    optional = frozenset(fields) - frozenset(join.left.fields()) if join.how == "left" else frozenset()
    _raise(text, 1, raised, name, "pair.key", ids, "instant(known_ms)", fields, optional)
    text.add(1, f"headers = alert_headers({raised.tag!r}, at.place, at.offset, at.time_ms, received_ms, ())")
    text.add(1, "return pair.key.encode(), encode(alert), headers")


def expression_text(expression: Expression, fields: Mapping[str, Kind]) -> str:
    """An expression as Python over `f_<name>` locals, money in cents."""
    match expression:
        case Column(name):
            return f"f_{name}"
        case Literal(value):
            return repr(literal_cents(expression) if isinstance(value, Decimal) else value)
        case Not(inner):
            return f"(not {expression_text(inner, fields)})"
        case OneOf(inner, choices):
            kind = kind_of(inner, fields)
            shown = ", ".join(_side(choice, kind, fields) for choice in choices)
            return f"({expression_text(inner, fields)} in ({shown},))"
        case Binary("*", left, right):
            return f"({expression_text(left, fields)} * {expression_text(right, fields)})"
        case Binary(operator, left, right):
            left_text = _side(left, kind_of(right, fields), fields)
            return f"({left_text} {operator} {_side(right, kind_of(left, fields), fields)})"
    raise AssertionError(expression)


def _side(expression: Expression, other: Kind, fields: Mapping[str, Kind]) -> str:
    """One side of a comparison or sum: a constant beside money is an amount."""
    if isinstance(expression, Literal) and other is Kind.MONEY:
        return repr(literal_cents(expression))
    return expression_text(expression, fields)
