"""Files of events in the order of their event times, however they are written. The only module that knows DuckDB.

DuckDB reads Parquet, and it sorts: only time, line and place of each row go through it, on disk where they are many, and
the rows are fetched in that order. It may load no extension, and so never uses the network.
"""

import tempfile
from collections.abc import Generator
from pathlib import Path
from typing import Any

import duckdb

from app.core.codec import encode
from app.core.errors import SetupError, Unavailable
from app.sources.rows import CsvFile, NdjsonFile, Row, object_fields

BATCH_ROWS = 2_000

Dated = tuple[int | None, Row]
"""Event time of a row, ms since 1970 UTC or None where it has none, and the row."""

_CONFIGURATION: dict[str, str | bool | int | float | list[str]] = {
    "autoinstall_known_extensions": "false",
    "autoload_known_extensions": "false",
    "allow_community_extensions": "false",
    "memory_limit": "1GB",
}

_PLACES = """
WITH places AS (
  SELECT * FROM read_csv($places, auto_detect = false, header = false, delim = ',', columns = {
    'event_ms': 'BIGINT', 'line': 'BIGINT', 'place': 'BIGINT', 'size': 'BIGINT'}))
"""

_PARQUET = "read_parquet($file, file_row_number = true) AS rows"


class Sorter:
    """Places of rows, added in any order and read back by event time, then by line; those without a time come last."""

    def __init__(self) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="headrace-sort-")
        self._path = Path(self._folder.name, "places.csv")
        self._file = self._path.open("w")

    def add(self, event_ms: int | None, row: Row) -> None:
        time = "" if event_ms is None else event_ms
        self._file.write(f"{time},{row.line},{row.offset},{len(row.raw)}\n")

    def select(self, query: str, parameters: dict[str, str]) -> Generator[list[Any]]:
        """Batches of the rows of a query over the table `places`. Nothing is added afterwards."""
        self._file.close()
        with _connect(self._folder.name) as connection:
            yield from _fetch(connection, _PLACES + query, {"places": str(self._path), **parameters})

    def close(self) -> None:
        """Removes what was written on disk."""
        self._file.close()
        self._folder.cleanup()


class ParquetFile:
    """Rows of a Parquet file, numbered from 1; each as one JSON object of texts, since it has no text of its own.

    Raises: SetupError that names the file when it cannot be read.
    """

    def __init__(self, path: Path) -> None:
        self.name = path.name
        self._file = {"file": str(path)}
        with _connect(None) as connection:
            query = "SELECT column_name FROM (DESCRIBE SELECT * FROM read_parquet($file))"
            self.columns = tuple(name for batch in _fetch(connection, query, self._file) for (name,) in batch)
        texts = (f"CAST(rows.{_quoted(column)} AS VARCHAR)" for column in self.columns)
        self._numbered = ", ".join(["rows.file_row_number + 1", *texts])

    def rows(self) -> Generator[Row]:
        with _connect(None) as connection:
            for batch in _fetch(connection, f"SELECT {self._numbered} FROM {_PARQUET}", self._file):
                for line, *values in batch:
                    yield self._row(line, values)

    def ordered(self, sorter: Sorter) -> Generator[list[Dated]]:
        query = f"""
            SELECT places.event_ms, {self._numbered}
            FROM places JOIN {_PARQUET} ON places.line = rows.file_row_number + 1
            ORDER BY places.event_ms NULLS LAST, places.line"""
        for batch in sorter.select(query, self._file):
            yield [(event_ms, self._row(line, values)) for event_ms, line, *values in batch]

    def _row(self, line: int, values: list[Any]) -> Row:
        return Row(line, 0, encode(dict(zip(self.columns, values, strict=True))))

    def fields(self, raw: bytes) -> dict[str, Any]:
        return object_fields(raw)

    def close(self) -> None:
        """Nothing is kept open."""


SourceFile = CsvFile | NdjsonFile | ParquetFile

_READERS: dict[str, type[SourceFile]] = {
    ".csv": CsvFile,
    ".tsv": CsvFile,
    ".ndjson": NdjsonFile,
    ".jsonl": NdjsonFile,
    ".parquet": ParquetFile,
}


def open_file(path: Path) -> SourceFile:
    """The file, read as its name says; CSV and NDJSON may be gzipped.

    Raises: SetupError that names the file when it is not there, cannot be read, or is of another kind.
    """
    if not path.is_file():
        raise SetupError(str(path), "no such file")
    suffix = Path(path.stem).suffix if path.suffix == ".gz" else path.suffix
    reader = _READERS.get(suffix.lower())
    if reader is None or (reader is ParquetFile and path.suffix == ".gz"):
        raise SetupError(str(path), f"its name ends in none of {', '.join(_READERS)}, nor in .csv.gz or .ndjson.gz")
    return reader(path)


def ordered_rows(file: SourceFile, sorter: Sorter) -> Generator[list[Dated]]:
    """The rows that were added to the sorter, in its order, in batches."""
    if isinstance(file, ParquetFile):
        yield from file.ordered(sorter)
        return
    query = "SELECT event_ms, line, place, size FROM places ORDER BY event_ms NULLS LAST, line"
    for batch in sorter.select(query, {}):
        yield [(event_ms, file.row_at(line, place, size)) for event_ms, line, place, size in batch]


def _connect(folder: str | None) -> duckdb.DuckDBPyConnection:
    """An empty database in memory; what does not fit goes to `folder`."""
    connection = duckdb.connect(":memory:", config=_CONFIGURATION | {"temp_directory": folder or ""})
    connection.execute("SET TimeZone = 'UTC'")
    return connection


def _fetch(connection: duckdb.DuckDBPyConnection, query: str, parameters: dict[str, str]) -> Generator[list[Any]]:
    try:
        cursor = connection.execute(query, parameters)
        while batch := cursor.fetchmany(BATCH_ROWS):
            yield batch
    except duckdb.Error as error:
        raise translated(error, parameters.get("file", "sorting")) from error


def _quoted(column: str) -> str:
    return '"' + column.replace('"', '""') + '"'


UNREADABLE, NO_ROOM, OUR_MISTAKE = (
    "the file is broken or of another kind",
    "too much to sort",
    "a mistake of this module",
)

MEANINGS: dict[type[duckdb.Error], str] = {
    duckdb.BinderException: UNREADABLE,
    duckdb.CatalogException: OUR_MISTAKE,
    duckdb.ConnectionException: OUR_MISTAKE,
    duckdb.ConstraintException: OUR_MISTAKE,
    duckdb.ConversionException: UNREADABLE,
    duckdb.DependencyException: OUR_MISTAKE,
    duckdb.FatalException: OUR_MISTAKE,
    duckdb.HTTPException: UNREADABLE,
    duckdb.InternalException: OUR_MISTAKE,
    duckdb.InterruptException: OUR_MISTAKE,
    duckdb.InvalidInputException: UNREADABLE,
    duckdb.InvalidTypeException: UNREADABLE,
    duckdb.IOException: UNREADABLE,
    duckdb.NotImplementedException: UNREADABLE,
    duckdb.OutOfMemoryException: NO_ROOM,
    duckdb.OutOfRangeException: UNREADABLE,
    duckdb.ParserException: OUR_MISTAKE,
    duckdb.PermissionException: UNREADABLE,
    duckdb.ResourceInUseException: NO_ROOM,
    duckdb.SequenceException: OUR_MISTAKE,
    duckdb.SerializationException: UNREADABLE,
    duckdb.SyntaxException: OUR_MISTAKE,
    duckdb.TransactionException: OUR_MISTAKE,
    duckdb.TypeMismatchException: UNREADABLE,
}
"""What each of DuckDB's errors means here."""


def translated(error: duckdb.Error, what: str) -> Exception:
    """Our error for one of DuckDB's; what only a mistake in this module can cause stays as it is."""
    meaning = MEANINGS.get(type(error), OUR_MISTAKE)
    first_line = str(error).partition("\n")[0]
    if meaning is UNREADABLE:
        return SetupError(what, f"cannot be read: {first_line}")
    if meaning is NO_ROOM:
        return Unavailable(f"{what}: no room to sort it: {first_line}")
    return error
