"""Graph to Python: all pipelines of one topic become one function that walks a batch. Pure text, printed by
`python -m app streams show NAME --python`.

The text handles the records of one partition in order: the gate, the partition's clock, `once`, then each pipeline's
steps and slices. What happens rarely (opening and closing slices, rejecting) is a call into `tables`.

Field values are locals `f_<name>`; money is an integer of cents there. A slice entry is the list
`[version, changed, value, value, ...]`, version being the source offset of its last change.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from decimal import Decimal

from app.streams.expressions import (
    Binary,
    Column,
    Expression,
    Kind,
    Literal,
    Not,
    OneOf,
    field_kinds,
    kind_of,
    literal_cents,
)
from app.streams.gate import LATEST_MS, MAX_KEY_BYTES
from app.streams.graph import (
    Aggregate,
    AlertPipeline,
    Derive,
    LivePipeline,
    Once,
    OutputField,
    Pipeline,
    Source,
    Stream,
    Where,
    WindowedPipeline,
    columns_used,
)


@dataclass
class _Text:
    """Lines of Python under construction."""

    lines: list[str] = field(default_factory=list)

    def add(self, depth: int, *lines: str) -> None:
        self.lines += ["    " * depth + line for line in lines]


def compile_topic(source: Source, pipelines: Mapping[str, Pipeline]) -> str:
    """Text of a module with `process(records, part, received_ms)` and an encoder for every windowed pipeline.

    pipelines: all of one source; every one is compiled from its declaration alone, so the same graph gives the same text.
    """
    windowed: list[tuple[str, WindowedPipeline]] = [
        (name, p) for name, p in pipelines.items() if not isinstance(p, AlertPipeline)
    ]
    windowed.sort(key=lambda item: not isinstance(item[1], LivePipeline))
    alerts = [(name, p) for name, p in pipelines.items() if isinstance(p, AlertPipeline)]
    text = _Text()
    text.add(0, f"# {source}")
    for name, pipeline in pipelines.items():
        text.add(0, f"# {name}: {pipeline}")
    text.add(0, "", "", "def process(records, part, received_ms):")
    _prologue(text, source, windowed, alerts)
    text.add(1, "for record in records:")
    _gate(text, source, bool(windowed))
    _clock(text, bool(windowed))
    used = {source.key}.union(*(columns_used(pipeline) for pipeline in pipelines.values()))
    for column, kind in field_kinds(source.spec.type).items():
        if column in used and kind is not Kind.MONEY and column != source.key:
            text.add(2, f"f_{column} = event.{column}")
    rules = once_rules(pipelines)
    shared = len(rules) == 1 and all(pipeline.stream.once_rule for pipeline in pipelines.values())
    for rule in rules:
        _once(text, source, rule, shared)
    for name, pipeline in windowed:
        _window(text, source, name, pipeline, shared)
    for name, alert in alerts:
        _alert(text, source, name, alert, [n for n, p in windowed if isinstance(p, LivePipeline)], shared)
    text.add(1, "part.reached_ms = m")
    for name, pipeline in windowed:
        _encoders(text, source, name, pipeline)
    return "\n".join(text.lines) + "\n"


def _prologue(
    text: _Text, source: Source, windowed: list[tuple[str, WindowedPipeline]], alerts: list[tuple[str, AlertPipeline]]
) -> None:
    text.add(1, f'"""One batch of one partition of {source.spec.name}."""', "m = part.reached_ms")
    if windowed:
        text.add(1, "closing_ms = part.closing_ms")
    for name, _ in windowed:
        text.add(1, f"slices_{name} = part.slices[{name!r}]")
        text.add(1, f"open_{name} = slices_{name}.open", f"changed_{name} = slices_{name}.changed")
        text.add(1, f"since_{name} = slices_{name}.since_ms", f"latest_{name} = entries_{name} = None")
    if alerts:
        text.add(1, "emit = part.alerts.append", "place = part.place_text")


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


def once_rules(pipelines: Mapping[str, Pipeline]) -> list[Once]:
    """The different `once` rules of some pipelines."""
    return list({pipeline.stream.once_rule: None for pipeline in pipelines.values() if pipeline.stream.once_rule})


def once_name(rule: Once) -> str:
    """Name of a `once` memory in generated text and in a partition's state."""
    return f"{rule.field}_{rule.within_ms}"


def _once(text: _Text, source: Source, rule: Once, shared: bool) -> None:
    name = once_name(rule)
    text.add(2, f"repeat_{name} = part.once[{name!r}].is_repeat((f_{source.key}, event.{rule.field}), t, m)")
    if shared:
        text.add(2, f"if repeat_{name}:", "    continue")


def _steps(text: _Text, depth: int, stream: Stream, once_done: bool) -> tuple[int, dict[str, Kind]]:
    """Writes `once`, `where` and `derive`; returns the depth at which a record that passed goes on."""
    fields = field_kinds(stream.source.spec.type)
    if stream.once_rule and not once_done:
        text.add(depth, f"if not repeat_{once_name(stream.once_rule)}:")
        depth += 1
    for step in stream.steps:
        if isinstance(step, Where):
            text.add(depth, f"if {expression_text(step.condition, fields)}:")
            depth += 1
        elif isinstance(step, Derive):
            text.add(depth, f"f_{step.name} = {expression_text(step.value, fields)}")
            fields[step.name] = kind_of(step.value, fields)
    return depth, fields


def _window(text: _Text, source: Source, name: str, pipeline: WindowedPipeline, once_done: bool) -> None:
    size_ms = pipeline.tile_ms if isinstance(pipeline, LivePipeline) else pipeline.size_ms
    key = f"f_{source.key}"
    text.add(2, f"# {name}")
    if isinstance(pipeline, LivePipeline):
        text.add(2, f"late_{name} = False")
    depth, fields = _steps(text, 2, pipeline.stream, once_done)
    text.add(depth, f"start = t - t % {size_ms}")
    text.add(depth, f"if start + {size_ms} <= m - {source.out_of_orderness_ms}:")
    text.add(depth + 1, f"part.late.append(({name!r}, record))")
    if isinstance(pipeline, LivePipeline):
        text.add(depth + 1, f"late_{name} = True")
    text.add(depth, f"elif start >= since_{name}:")
    depth += 1
    text.add(depth, f"if start != latest_{name}:  # most records fall into the slice of the one before")
    text.add(depth + 1, f"latest_{name}, entries_{name} = start, open_{name}.get(start)")
    text.add(depth + 1, f"if entries_{name} is None:")
    text.add(depth + 2, f"entries_{name}, closing_ms = part.open_slice(slices_{name}, start)")
    text.add(depth, f"entry = entries_{name}.get({key})")
    first, more = _updates(pipeline.aggregates, fields)
    text.add(depth, "if entry is None:")
    text.add(depth + 1, f"entries_{name}[{key}] = entry = [offset, True, {', '.join(first)}]")
    text.add(depth + 1, f"changed_{name}.append((start, {key}, entry))")
    text.add(depth, "elif offset > entry[0]:")
    text.add(depth + 1, "entry[0] = offset", *more)
    text.add(depth + 1, "if not entry[1]:", "    entry[1] = True", f"    changed_{name}.append((start, {key}, entry))")


def _updates(aggregates: tuple[tuple[str, Aggregate], ...], fields: Mapping[str, Kind]) -> tuple[list[str], list[str]]:
    """First values of a new entry, and the statements that change an old one."""
    first, more = [], []
    for index, (_, aggregate) in enumerate(aggregates, start=2):
        amount = "1" if aggregate.value is None else expression_text(aggregate.value, fields)
        if aggregate.when is None:
            first.append(amount)
            more.append(f"entry[{index}] += {amount}")
        else:
            condition = expression_text(aggregate.when, fields)
            first.append(f"({amount} if {condition} else 0)")
            more += [f"if {condition}:", f"    entry[{index}] += {amount}"]
    return first, more


def _alert(text: _Text, source: Source, name: str, alert: AlertPipeline, views: list[str], once_done: bool) -> None:
    text.add(2, f"# {name}")
    depth, fields = _steps(text, 2, alert.stream, once_done)
    values = []
    for field_name, value in alert.fields:
        shown = expression_text(value, fields)
        if kind_of(value, fields) is Kind.MONEY:
            shown = f"to_dollars({shown})"
        values.append(f"{field_name}={shown}")
    text.add(depth, f"alert = alert_{name}(")
    text.add(depth + 1, f"alert_id=derived_id({alert.rule!r}, f_{source.key}, f_{alert.id_field}),")
    text.add(depth + 1, "triggered_at=instant(t),", *[f"{value}," for value in values])
    text.add(depth, ")")
    late = " + ".join(f"({view!r},) * late_{view}" for view in views) or "()"
    text.add(depth, f"headers = alert_headers({alert_tag(alert)!r}, place, offset, t, received_ms, {late})")
    text.add(depth, f"emit((record, {alert.topic!r}, encode(alert), headers))")


def alert_tag(alert: AlertPipeline) -> str:
    """The `alert_type` of a pipeline's alerts."""
    return str(alert.alert_type.__struct_config__.tag)


def _encoders(text: _Text, source: Source, name: str, pipeline: WindowedPipeline) -> None:
    live = isinstance(pipeline, LivePipeline)
    place, values = ('"tile":%d,"partition":%d', "start, partition") if live else ('"window_start":%d', "start")
    text.add(0, "", "", f"def key_{name}(start, key, partition):")
    text.add(1, f"return b'{{\"{source.key}\":%s,{place}}}' % (quote(key).encode(), {values})")
    fields, amounts = _entry_json(pipeline.outputs)
    text.add(0, "", "", f"def value_{name}(entry):")
    text.add(1, f"return b'{{\"version\":%d{fields}}}' % (entry[0]{amounts})")
    if not live:
        window = f'"{source.key}":%s,"window_start":%d,"window_end":%d'
        text.add(0, "", "", f"def row_{name}(start, key, entry):")
        text.add(1, f"return b'{{{window}{fields}}}' % (")
        text.add(2, f"quote(key).encode(), start, start + {pipeline.size_ms}{amounts}")
        text.add(1, ")")


def _entry_json(outputs: tuple[OutputField, ...]) -> tuple[str, str]:
    """The fields of an entry as a format of bytes, and the values that go into it."""
    fields, values = "", ""
    for index, output in enumerate(outputs, start=2):
        if output.kind is Kind.MONEY:
            fields += f',"{output.name}":%s'
            values += f", cents_to_json(entry[{index}])"
        else:
            fields += f',"{output.name}":%d'
            values += f", entry[{index}]"
    return fields, values


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
