"""The records of a feature topic: tiles, and now and then how far the view has come.

{"user_id":"u-17","tile":1700000010000,"partition":3}  ->  {"version":4711,"order_count_5m":2,"order_value_5m":1050.00}
{"progress":3}  ->  {"as_of":1700000012345,"offset":4712}      header `fingerprint`
"""

from decimal import Decimal
from typing import Any

import msgspec

from app.core.codec import sum_to_cents
from app.core.errors import BadRecord
from app.core.record import Record
from app.serving.base import TileChange, View
from app.streams.expressions import Kind
from app.streams.outputs import PROGRESS
from app.streams.windows import Tile


class ProgressMark(msgspec.Struct, frozen=True):
    """as_of: every event published before it, ms, is in the tiles that stand before this record."""

    as_of: int


class _ProgressKey(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    progress: int


class TileRecords:
    """Reads the records of one view's topic."""

    def __init__(self, view: View) -> None:
        self._view = view
        key_fields: list[tuple[str, Any]] = [(view.key_field, str), ("tile", int), ("partition", int)]
        value_fields: list[tuple[str, Any]] = [("version", int)]
        for accumulator in view.accumulators:
            exact: Any = Decimal if accumulator.kind is Kind.MONEY else int
            value_fields.append((accumulator.name, exact if accumulator.how == "sum" else exact | None))
        self._names = [accumulator.name for accumulator in view.accumulators]
        self._keys = msgspec.json.Decoder(msgspec.defstruct("TileKey", key_fields, forbid_unknown_fields=True))
        self._values = msgspec.json.Decoder(msgspec.defstruct("TileValue", value_fields))
        self._progress_keys = msgspec.json.Decoder(_ProgressKey)
        self._marks = msgspec.json.Decoder(ProgressMark)

    def read(self, record: Record) -> TileChange | ProgressMark | None:
        """None for a tombstone: tiles go by themselves, and a record without a version takes nothing away.

        Raises: BadRecord; SetupError when the record was written under another declaration.
        """
        if record.value is None:
            return None
        fingerprint = record.header("fingerprint")
        if fingerprint is not None and fingerprint != self._view.fingerprint.encode():
            raise self._view.other_declaration()
        try:
            if record.key is None:
                raise ValueError("the key is null")
            if record.key.startswith(PROGRESS) and b'"tile":' not in record.key:
                self._progress_keys.decode(record.key)
                if fingerprint is None:
                    raise ValueError("a progress record without its fingerprint")
                return self._marks.decode(record.value)
            return self._tile(record.key, record.value)
        except (msgspec.DecodeError, UnicodeDecodeError, ValueError) as error:
            raise BadRecord(
                f"neither a tile nor progress: {error}",
                topic=record.topic,
                partition=record.partition,
                offset=record.offset,
            ) from None

    def _tile(self, key: bytes, value: bytes) -> TileChange:
        place: Any = self._keys.decode(key)
        content: Any = self._values.decode(value)
        values = tuple(_integer(getattr(content, name)) for name in self._names)
        if place.partition < 0 or content.version < 0:
            raise ValueError("partition and version cannot be negative")
        return TileChange(
            getattr(place, self._view.key_field), Tile(place.tile, place.partition, content.version, values)
        )


def _integer(value: int | Decimal | None) -> int | None:
    """A count as it is, dollars as cents. Raises: ValueError for an amount that is not a whole number of cents."""
    return sum_to_cents(value) if isinstance(value, Decimal) else value
