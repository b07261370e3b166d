"""The checks behind `graph`: every part of a declaration, or a `SetupError` that says what is wrong with it."""

import keyword

import msgspec

from app.core.durations import parse_duration_ms
from app.core.errors import SetupError
from app.core.text import longest
from app.streams.aggregates import Aggregate
from app.streams.expressions import Column, Expression, Kind, field_kinds, kind_of, literal, optional_kinds
from app.streams.pipelines import Aggregates, Alert, Derive, Raised, Records, Steps, Where, field_behind, fields_after

MAX_ID_CHARACTERS = 400
"""Of what an alert's id is made of, beside its rule and key: whoever chooses ids must not choose to be left unjudged."""

RESERVED = ("version", "window_start", "window_end", "tile", "partition", "progress")
"""Names that keys and values of tables use themselves."""


def require_name(where: str, name: str) -> None:
    if not name.isidentifier() or keyword.iskeyword(name):
        raise SetupError(where, f"{name!r} is no name; letters, digits and _ are")


def signed_ms(text: str) -> int:
    setting = "join(within=...)"
    return -parse_duration_ms(text[1:], setting) if text.startswith("-") else parse_duration_ms(text, setting)


def with_where(steps: Steps, condition: Expression, known: dict[str, Kind]) -> Steps:
    condition = literal(condition)
    if kind_of(condition, known, f"where{condition}") is not Kind.BOOLEAN:
        raise SetupError(f"where({condition})", "is not true or false")
    return (*steps, Where(condition))


def with_derived(steps: Steps, values: dict[str, Expression], fields: dict[str, Kind], taken: tuple[str, ...]) -> Steps:
    for name, value in values.items():
        where = f"derive({name}=...)"
        require_name(where, name)
        known = fields_after(steps, fields)
        if name in known or name in taken:
            raise SetupError(where, "the record has this field already")
        kind_of(value, known, where)
        steps = (*steps, Derive(name, value))
    return steps


def aggregates_of(stream: Records, aggregates: dict[str, Aggregate]) -> Aggregates:
    if not aggregates:
        raise SetupError("aggregate()", "needs at least one aggregate, such as n=count()")
    fields = stream.fields()
    named = []
    for name, aggregate in aggregates.items():
        where = f"aggregate({name}=...)"
        require_name(where, name)
        if name in (stream.source.key, *RESERVED):
            raise SetupError(where, "this name is taken; choose another one")
        if aggregate.when is not None and kind_of(aggregate.when, fields, where) is not Kind.BOOLEAN:
            raise SetupError(where, "when= is not true or false")
        kind = Kind.INTEGER if aggregate.value is None else kind_of(aggregate.value, fields, where)
        if kind not in (Kind.INTEGER, Kind.MONEY):
            raise SetupError(
                where, f"{aggregate.function} of {kind.value} is not exact; only whole numbers and money are"
            )
        named.append((name, aggregate, kind))
    result = Aggregates(tuple(named))
    names = [accumulator.name for accumulator in result.accumulators]
    for name in names:
        if names.count(name) > 1 or (name not in aggregates and name in (stream.source.key, *RESERVED)):
            raise SetupError(f"aggregate({name}=...)", "a mean keeps a total and a count under its name; rename one")
    return result


def raised_by_records(
    stream: Records,
    alert_type: type[Alert],
    id: str | None,
    at_most_once_per: str | None,
    rule: str | None,
    to: str,
    values: dict[str, Expression],
) -> Raised:
    where = f"alert {rule or alert_type.__struct_config__.tag}"
    if (id is None) == (at_most_once_per is None):
        raise SetupError(where, "takes either id= or at_most_once_per=")
    if at_most_once_per is not None:
        per_ms = parse_duration_ms(at_most_once_per, f"{where}, at_most_once_per=...")
        if per_ms <= 0:
            raise SetupError(f"{where}, at_most_once_per={at_most_once_per!r}", "must be longer than nothing")
        return raised_of(alert_type, (), per_ms, rule, to, values, stream.fields(), {})
    assert id is not None
    raised = raised_of(alert_type, (id,), None, rule, to, values, stream.fields(), {})
    require_bounded(raised.rule, id, stream, id, 1)
    return raised


def raised_of(
    alert_type: type[Alert],
    ids: tuple[str, ...],
    per_ms: int | None,
    rule: str | None,
    to: str,
    values: dict[str, Expression],
    known: dict[str, Kind],
    optional: dict[str, Kind],
) -> Raised:
    """known: fields that are there for sure. optional: those that may be null."""
    name = rule or str(alert_type.__struct_config__.tag)
    for id in ids:
        if known.get(id) is not Kind.TEXT:
            raise SetupError(f"alert {name}", f"id {id!r} is not a text field")
    target, nullable = field_kinds(alert_type), optional_kinds(alert_type)
    fields: list[tuple[str, Expression]] = []
    for field in msgspec.structs.fields(alert_type):
        if field.name in ("alert_id", "triggered_at"):
            continue
        where = f"alert {name}, field {field.name}"
        value = values.get(field.name, Column(field.name))
        if isinstance(value, Column) and value.name in optional:
            if nullable.get(field.name) is not optional[value.name]:
                raise SetupError(where, f"may be null; declare it as {optional[value.name].value} or None")
        elif target.get(field.name, nullable.get(field.name)) is not (kind := kind_of(value, known, where)):
            raise SetupError(f"alert {name}", f"field {field.name} is not {kind.value} in {alert_type.__name__}")
        fields.append((field.name, value))
    unknown = values.keys() - {name for name, _ in fields}
    if unknown:
        raise SetupError(f"alert {name}", f"{alert_type.__name__} has no field {', '.join(sorted(unknown))}")
    return Raised(alert_type, name, ids, tuple(fields), to, per_ms)


def require_bounded(rule: str, shown: str, stream: Records, name: str, parts: int) -> None:
    """Raises: SetupError for an id that may be too long for agents."""
    bound = longest(stream.source.spec.type, field_behind(stream.steps, name))
    if bound is None or bound * parts > MAX_ID_CHARACTERS:
        raise SetupError(
            f"alert {rule}",
            f"id {shown!r} may have any length; bound it to {MAX_ID_CHARACTERS // parts} characters or fewer, such as "
            "Annotated[str, msgspec.Meta(max_length=200)]: agents take no longer ids",
        )
