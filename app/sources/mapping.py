"""From the fields of a row to a record of the topic: which column, which constant, which derived id."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from typing import Any

import msgspec
from msgspec import inspect

from app.broker.publisher import TIME_FIELD
from app.core.codec import to_cents
from app.core.errors import SetupError
from app.sources.rows import BadRow


@dataclass(frozen=True)
class RecordMapping:
    """Makes records of one type. Columns beyond those that it names are ignored.

    columns: column by record field, for every field that a column feeds. constants: text by field. id_field: the field
    that gets `FILE#LINE`, the same whenever the file is read, or None.
    """

    record_type: type[msgspec.Struct]
    columns: Mapping[str, str]
    constants: Mapping[str, str]
    id_field: str | None
    money_fields: tuple[str, ...]

    @property
    def time_column(self) -> str:
        return self.columns[TIME_FIELD]

    def record(self, fields: Mapping[str, Any], moment: datetime, identity: str) -> msgspec.Struct:
        """Args: fields of one row, texts; moment: its event time; identity: for the id field. Raises: BadRow."""
        values: dict[str, Any] = dict(self.constants)
        for field, column in self.columns.items():
            if column in fields:
                values[field] = fields[column]
        values[TIME_FIELD] = moment
        if self.id_field is not None:
            values[self.id_field] = identity
        try:
            record = msgspec.convert(values, self.record_type, strict=False)
            for field in self.money_fields:
                amount = getattr(record, field)
                if isinstance(amount, Decimal):
                    _require_amount(field, amount)
        except (msgspec.ValidationError, ValueError) as error:
            raise BadRow(str(error)) from None
        return record


def _require_amount(field: str, amount: Decimal) -> None:
    try:
        to_cents(amount)
    except ValueError as error:
        raise BadRow(f"{field}: {error}") from None


def plan_mapping(
    record_type: type[msgspec.Struct],
    file_columns: tuple[str, ...] | None,
    mapped: Mapping[str, str],
    constants: Mapping[str, str],
    id_field: str | None,
) -> RecordMapping:
    """Checks what the user asked for against the record and, where it has a header, the file.

    A field that is not mentioned takes the column of its own name. Raises: SetupError that names the option.
    """
    fields = {field.name: field for field in msgspec.structs.fields(record_type)}
    asked = [("--map", mapped), ("--constant", constants), ("--id", {id_field: ""} if id_field else {})]
    taken: dict[str, str] = {}
    for option, names in asked:
        for name in names:
            if name not in fields:
                raise SetupError(f"{option} {name}", f"{record_type.__name__} has only {', '.join(fields)}")
            if name in taken:
                raise SetupError(f"{option} {name}", f"the field has its value from {taken[name]} already")
            taken[name] = option
    for name, column in mapped.items():
        if file_columns is not None and column not in file_columns:
            raise SetupError(f"--map {name}={column}", f"the file has no such column, only {', '.join(file_columns)}")
    columns = dict(mapped)
    for name, field in fields.items():
        if name in taken:
            continue
        if file_columns is None or name in file_columns:
            columns[name] = name
        elif field.required:
            raise SetupError(
                f"--map {name}=COLUMN",
                f"is needed: the file has no column {name}, only {', '.join(file_columns)}"
                f" (or give --constant {name}=VALUE, or --id {name} for ids from file and line)",
            )
    if TIME_FIELD not in columns:
        raise SetupError(f"--map {TIME_FIELD}=COLUMN", "is needed: event times come from a column")
    money = tuple(field.name for field in fields.values() if _is_money(inspect.type_info(field.type)))
    return RecordMapping(record_type, columns, dict(constants), id_field, money)


def _is_money(info: inspect.Type) -> bool:
    if isinstance(info, inspect.UnionType):
        return any(_is_money(member) for member in info.types)
    return isinstance(info, inspect.Metadata) and (info.extra or {}).get("unit") == "usd"
