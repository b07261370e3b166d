"""Rows of text files, exactly as they are: line number, place, bytes, and the fields inside.

CSV is read as RFC 4180 says: a header, fields in double quotes may hold separators and line breaks. A row that cannot be
read is still a row, so that nothing of a file is passed over in silence; blank lines are no rows.
"""

import csv
import gzip
import os
import shutil
import tempfile
import zlib
from collections.abc import Generator
from contextlib import closing
from decimal import Decimal
from pathlib import Path
from typing import IO, Any, NamedTuple

import msgspec

from app.core.errors import SetupError

BYTE_ORDER_MARK = b"\xef\xbb\xbf"
DELIMITERS = (",", ";", "\t", "|")

_decode_object = msgspec.json.Decoder(dict[str, Any], float_hook=Decimal).decode


class BadRow(ValueError):
    """A row that cannot become a record; `str(error)` says why in one line."""


class Row(NamedTuple):
    """line: of its first byte, from 1 (of Parquet: the row). offset: of its first byte. raw: its bytes, line break and all."""

    line: int
    offset: int
    raw: bytes


class _Bytes:
    """A file as plain bytes that can be read at any place; a gzipped one is unpacked into a temporary file first.

    Raises: SetupError that names the file when it cannot be read.
    """

    def __init__(self, path: Path) -> None:
        try:
            self.file = _unpacked(path) if path.suffix == ".gz" else path.open("rb")
        except (OSError, EOFError, zlib.error) as error:
            raise SetupError(str(path), f"cannot be read: {error}") from None
        self.start = len(BYTE_ORDER_MARK) if self.at(0, 3) == BYTE_ORDER_MARK else 0

    def at(self, offset: int, length: int) -> bytes:
        return os.pread(self.file.fileno(), length, offset)

    def lines(self) -> Generator[bytes]:
        self.file.seek(self.start)
        yield from iter(self.file.readline, b"")  # not from the file, which would be closed with the generator


def _unpacked(path: Path) -> IO[bytes]:
    file = tempfile.TemporaryFile()  # noqa: SIM115 - the reader closes it
    try:
        with gzip.open(path) as packed:
            shutil.copyfileobj(packed, file, 1 << 20)
        file.flush()
    except BaseException:
        file.close()
        raise
    return file


class CsvFile:
    """CSV with a header, whose names are `columns`; the separator is that of `,` `;` tab and `|` which it has most of.

    Raises: SetupError when it cannot be read, has no header, or names a column twice.
    """

    def __init__(self, path: Path) -> None:
        self.name = path.name
        self._bytes = _Bytes(path)
        self._delimiter = ","
        try:
            self.columns = self._header(path)
        except BaseException:
            self.close()
            raise

    def _header(self, path: Path) -> tuple[str, ...]:
        with closing(self._all_rows()) as rows:
            header = next(rows, None)
        if header is None:
            raise SetupError(str(path), "is empty; a CSV file begins with a line of column names")
        first_line = header.raw.decode(errors="replace")
        self._delimiter = max(DELIMITERS, key=first_line.count)
        try:
            names = tuple(name.strip() for name in self._values(header.raw))
        except BadRow as error:
            raise SetupError(str(path), f"its header cannot be read: {error}") from None
        if len(set(names)) < len(names):
            raise SetupError(str(path), "its header names a column twice")
        return names

    def rows(self) -> Generator[Row]:
        """All rows but the header, in the order of the file."""
        rows = self._all_rows()
        next(rows)
        return rows

    def _all_rows(self) -> Generator[Row]:
        """A row ends where the CSV reader says so, also after one that it cannot read."""
        taken: list[bytes] = []

        def lines() -> Generator[str]:
            for line in self._bytes.lines():
                taken.append(line)
                yield line.decode(errors="surrogateescape")

        reader = csv.reader(lines(), delimiter=self._delimiter, strict=True)
        line, offset = 1, self._bytes.start
        while True:
            try:
                next(reader)
            except StopIteration:
                return
            except csv.Error:
                pass  # whoever asks for the row's fields is told
            raw = b"".join(taken)
            if raw.strip():
                yield Row(line, offset, raw)
            line, offset = line + len(taken), offset + len(raw)
            taken.clear()

    def row_at(self, line: int, offset: int, length: int) -> Row:
        return Row(line, offset, self._bytes.at(offset, length))

    def fields(self, raw: bytes) -> dict[str, Any]:
        """Texts by column, without the empty ones. Raises: BadRow."""
        values = self._values(raw)
        if len(values) != len(self.columns):
            raise BadRow(f"{len(values)} fields, the header names {len(self.columns)}")
        return {column: value for column, value in zip(self.columns, values, strict=True) if value}

    def _values(self, raw: bytes) -> list[str]:
        try:
            return next(csv.reader([raw.decode()], delimiter=self._delimiter, strict=True))
        except UnicodeDecodeError as error:
            raise BadRow(f"invalid UTF-8 at byte {error.start}") from None
        except csv.Error as error:
            raise BadRow(f"CSV: {error}") from None

    def close(self) -> None:
        self._bytes.file.close()


class NdjsonFile:
    """One JSON object a line, each naming its own columns. Numbers keep their digits."""

    columns: tuple[str, ...] | None = None

    def __init__(self, path: Path) -> None:
        self.name = path.name
        self._bytes = _Bytes(path)

    def rows(self) -> Generator[Row]:
        offset = self._bytes.start
        for line, raw in enumerate(self._bytes.lines(), 1):
            if raw.strip():
                yield Row(line, offset, raw)
            offset += len(raw)

    def row_at(self, line: int, offset: int, length: int) -> Row:
        return Row(line, offset, self._bytes.at(offset, length))

    def fields(self, raw: bytes) -> dict[str, Any]:
        return object_fields(raw)

    def close(self) -> None:
        self._bytes.file.close()


def object_fields(raw: bytes) -> dict[str, Any]:
    """The fields of one JSON object, scalars as texts. Raises: BadRow."""
    try:
        decoded = _decode_object(raw)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise BadRow(f"JSON: {error}") from None
    return {name: _as_text(value) for name, value in decoded.items() if value is not None and value != ""}


def _as_text(value: Any) -> Any:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | Decimal):
        return str(value)
    return value
