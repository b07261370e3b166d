"""A topic as a Flink table, and the valid ones of its records: what docs/validity.md says, as far as SQL sees it.

Every field that the gate judges is declared and judged, also where no pipeline reads it: a record that is bad in any of
them is bad on both engines. Whole numbers, truth values and times are read as text, or `1.9` would become 1.
"""

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import msgspec

from app.core.codec import MAX_CENTS
from app.core.errors import SetupError
from app.streams.expressions import Kind, kind_of_type
from app.streams.gate import LATEST_MS, MAX_KEY_BYTES
from app.streams.pipelines import Source
from app.streams.sql_expressions import LONG, Typed, interval, name_of, named, text_of, timestamp

KEY, PARTITION, OFFSET, STAMP, ARRIVED, TIME_MS, HEARTBEAT = (
    "$key",
    "$partition",
    "$offset",
    "$stamp",
    "$arrived",
    "$time_ms",
    "heartbeat",
)
"""Columns beside the fields of a record; no field has a `$` in its name."""

EPOCH_MS = f"epoch_ms({name_of(STAMP)})"

INSTANT_READ = "^[0-9]{4}-[01][0-9]-[0-3][0-9]T[0-2][0-9]:[0-5][0-9]:[0-5][0-9](?:[.][0-9]+)?Z$"
"""Of a field that a pipeline reads: Flink reads no other zone."""

LARGEST_DOUBLE = "1.7976931348623157E308"
MAX_BYTES_A_CHARACTER = 4


class Judged(NamedTuple):
    """One field. type: in the table. value: what it means, NULL where it is none. valid: whether it is."""

    name: str
    column: str
    type: str
    value: Typed
    valid: str


def judged_fields(record_type: type, read: Iterable[str]) -> list[Judged]:
    """The fields of a struct that have a kind. read: names of those that a pipeline reads."""
    info = msgspec.inspect.type_info(record_type)
    assert isinstance(info, msgspec.inspect.StructType)
    return [_judged(field, field.name in read) for field in info.fields if kind_of_type(field.type) is not None]


def _judged(field: msgspec.inspect.Field, is_read: bool) -> Judged:
    column = name_of(field.encode_name)
    kind = kind_of_type(field.type)
    inner = field.type
    while isinstance(inner, msgspec.inspect.Metadata):
        inner = inner.type
    declared, value, valid = _read(kind, column, inner, is_read)
    if field.required:
        valid = valid or f"{column} IS NOT NULL"
    else:
        default = field.default if field.default is not msgspec.NODEFAULT else field.default_factory()
        value = value._replace(text=f"COALESCE({value.text}, {_default(kind, default, field.name)})")
        valid = f"({column} IS NULL OR {valid})" if valid else ""
    return Judged(field.name, column, declared, value, valid)


def _read(kind: Kind | None, column: str, of: Any, is_read: bool) -> tuple[str, Typed, str]:
    """The type of a column, its value, and when it is valid."""
    match kind:
        case Kind.MONEY:
            cents = Typed(f"CAST({column} * 100 AS BIGINT)", Kind.MONEY, 0, MAX_CENTS)
            within = f"{column} BETWEEN 0 AND {MAX_CENTS // 100}"
            return "DECIMAL(18, 7)", cents, f"{within} AND CAST({column} AS DECIMAL(13, 2)) = {column}"
        case Kind.INTEGER:
            return "STRING", *_whole_number(column, of)
        case Kind.NUMBER:
            bounds = _bounds(column, of)
            return "DOUBLE", Typed(column, kind), f"ABS({column}) <= {LARGEST_DOUBLE}{bounds}"
        case Kind.BOOLEAN:
            return "STRING", Typed(f"({column} = 'true')", kind), f"{column} IN ('true', 'false')"
        case Kind.TIME:
            shown = f"REPLACE(REPLACE({column}, 'T', ' '), 'Z', '')"
            valid = f"REGEXP({column}, {text_of(INSTANT_READ)})" if is_read else f"is_instant({column})"
            return "STRING", Typed(f"TRY_CAST({shown} AS TIMESTAMP_LTZ(6))", kind), valid
    return "STRING", Typed(column, Kind.TEXT), _valid_text(column, of)


def _whole_number(column: str, of: Any) -> tuple[Typed, str]:
    value = f"TRY_CAST({column} AS BIGINT)"
    if isinstance(of, msgspec.inspect.LiteralType):
        choices = [choice for choice in of.values if isinstance(choice, int)]
        shown = ", ".join(text_of(str(choice)) for choice in choices)
        return Typed(value, Kind.INTEGER, min(choices), max(choices)), f"{column} IN ({shown})"
    low = max(bound for bound in (of.ge, None if of.gt is None else of.gt + 1, -LONG - 1) if bound is not None)
    high = min(bound for bound in (of.le, None if of.lt is None else of.lt - 1, LONG) if bound is not None)
    rest = "" if of.multiple_of is None else f" AND MOD({value}, {of.multiple_of}) = 0"
    return (
        Typed(value, Kind.INTEGER, low, high),
        f"CAST({value} AS STRING) = {column}{_bounds(value, of)}{rest}",
    )


def _bounds(value: str, of: Any) -> str:
    """What a number's declaration says of its size."""
    signs = {">=": of.ge, ">": of.gt, "<=": of.le, "<": of.lt}
    return "".join(f" AND {value} {sign} {bound}" for sign, bound in signs.items() if bound is not None)


def _valid_text(column: str, of: Any) -> str:
    if isinstance(of, msgspec.inspect.LiteralType):
        return f"{column} IN ({', '.join(text_of(str(choice)) for choice in of.values)})"
    length = f"CHAR_LENGTH({column})"
    conditions = []
    if of.min_length is not None and of.max_length is not None:
        conditions.append(f"{length} BETWEEN {of.min_length} AND {of.max_length}")
    else:
        conditions += [f"{length} >= {of.min_length}"] if of.min_length is not None else []
        conditions += [f"{length} <= {of.max_length}"] if of.max_length is not None else []
    conditions += [f"REGEXP({column}, {text_of(of.pattern)})"] if of.pattern is not None else []
    return " AND ".join(conditions)


def _default(kind: Kind | None, value: Any, name: str) -> str:
    match kind:
        case Kind.TEXT:
            return text_of(value)
        case Kind.MONEY:
            return str(int(value * 100))
        case Kind.INTEGER:
            return str(value)
        case Kind.NUMBER:
            return f"CAST({value!r} AS DOUBLE)"
        case Kind.BOOLEAN:
            return str(value).upper()
    raise SetupError(name, "a time with a default cannot be read by Flink; leave the default out")


def source_ddl(source: Source, fields: list[Judged], options: Mapping[str, str], row_time: bool) -> str:
    """The table of a topic. row_time: with watermarks, moved by valid records and heartbeats alone."""
    if any(field.column == name_of(HEARTBEAT) for field in fields):
        raise SetupError(
            source.spec.name, "a field named heartbeat cannot be told from a heartbeat on Flink; rename it"
        )
    columns = [f"{field.column} {field.type}" for field in fields]
    columns += [
        f"{name_of(HEARTBEAT)} STRING",
        f"{name_of(KEY)} BYTES",
        f"{name_of(PARTITION)} INT METADATA FROM 'partition' VIRTUAL",
        f"{name_of(OFFSET)} BIGINT METADATA FROM 'offset' VIRTUAL",
        f"{name_of(STAMP)} TIMESTAMP_LTZ(3) METADATA FROM 'timestamp' VIRTUAL",
        f"{name_of(ARRIVED)} AS PROCTIME()",
    ]
    if row_time:
        reached = f"{name_of(STAMP)} - {interval(source.out_of_orderness_ms + 1)}"
        moved = f"CASE WHEN {_counts(source, fields)} THEN {reached} ELSE {timestamp('0')} END"
        columns.append(f"WATERMARK FOR {name_of(STAMP)} AS {moved}")
    return ddl(source.spec.name, columns, options)


def ddl(table: str, columns: Iterable[str], options: Mapping[str, str]) -> str:
    """A temporary table."""
    shown = ",\n".join(f"  {column}" for column in columns)
    said = ",\n".join(f"  {text_of(name)} = {text_of(value)}" for name, value in options.items())
    return f"CREATE TEMPORARY TABLE {name_of(table)} (\n{shown}\n) WITH (\n{said}\n)"


def valid_records(source: Source, fields: list[Judged], read: Iterable[str], row_time: bool) -> str:
    """The query of the valid records and the heartbeats of a topic; a heartbeat's fields are NULL. read: as above."""
    columns = [named(field.value.text, field.name) for field in fields if field.name in read]
    columns += [name_of(PARTITION), name_of(OFFSET), f"{EPOCH_MS} AS {name_of(TIME_MS)}"]
    columns += [name_of(ARRIVED), *([name_of(STAMP)] if row_time else [])]
    return f"SELECT {', '.join(columns)}\nFROM {name_of(source.spec.name)}\nWHERE {_counts(source, fields)}"


def _counts(source: Source, fields: list[Judged]) -> str:
    """Whether a record moves the partition's clock."""
    key = next(field for field in fields if field.name == source.key)
    conditions = [f"{name_of(KEY)} = CAST({key.column} AS BYTES)", *_key_length(source, key.column)]
    conditions += [field.valid for field in fields if field.valid]
    heartbeat = f"{name_of(KEY)} IS NULL AND {name_of(HEARTBEAT)} = 'true'"
    timely = f"{EPOCH_MS} BETWEEN 0 AND {LATEST_MS}"
    return f"({' AND '.join(conditions)}\n  OR {heartbeat})\n  AND {timely}"


def _key_length(source: Source, column: str) -> list[str]:
    """Nothing where the field's own limits keep it; ISO-8859-1 has a character a byte."""
    info = msgspec.inspect.type_info(source.spec.type)
    of: Any = next(field.type for field in info.fields if field.name == source.key)  # type: ignore[attr-defined]
    while isinstance(of, msgspec.inspect.Metadata):
        of = of.type
    if isinstance(of, msgspec.inspect.LiteralType):
        return []
    if of.min_length and of.max_length is not None and of.max_length * MAX_BYTES_A_CHARACTER <= MAX_KEY_BYTES:
        return []
    return [f"CHAR_LENGTH(DECODE({name_of(KEY)}, 'ISO-8859-1')) BETWEEN 1 AND {MAX_KEY_BYTES}"]
