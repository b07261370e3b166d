"""Rows of text files: where they begin, what is in them, and what is left of those that cannot be read."""

import gzip
from decimal import Decimal
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.core.errors import SetupError
from app.sources.rows import BadRow, CsvFile, NdjsonFile, Row


@pytest.fixture
def written(tmp_path: Path):  # type: ignore[no-untyped-def]
    def write(name: str, content: bytes) -> Path:
        path = tmp_path / name
        path.write_bytes(content)
        return path

    return write


def rows_of(file: CsvFile | NdjsonFile) -> list[Row]:
    rows = list(file.rows())
    assert rows == [file.row_at(row.line, row.offset, len(row.raw)) for row in rows]
    return rows


def test_csv_file_quoted_line_breaks_keep_line_numbers(written) -> None:  # type: ignore[no-untyped-def]
    """A row is known by the line it begins on, however many lines the rows before it take; blank lines count as lines."""
    file = CsvFile(written("a.csv", b'id,note\n1,"two\nlines, and a ""quote"""\n\n2,last'))
    first, last = rows_of(file)
    assert (2, {"id": "1", "note": 'two\nlines, and a "quote"'}) == (first.line, file.fields(first.raw))
    assert (5, {"id": "2", "note": "last"}) == (last.line, file.fields(last.raw))
    file.close()


@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
def test_csv_file_finds_its_delimiter(written, delimiter: str) -> None:  # type: ignore[no-untyped-def]
    """The separator is the one that the header has most of; byte order mark and Windows line ends do not matter."""
    text = "id,amount,x\r\n1,2.50,\r\n".replace(",", delimiter)
    file = CsvFile(written("a.csv", b"\xef\xbb\xbf" + text.encode()))
    assert ("id", "amount", "x") == file.columns
    assert [{"id": "1", "amount": "2.50"}] == [file.fields(row.raw) for row in rows_of(file)]
    file.close()


def test_csv_file_broken_rows_stay_rows(written) -> None:  # type: ignore[no-untyped-def]
    """A row with too many or too few fields, a stray quote or invalid UTF-8 is a row with its bytes and a reason."""
    broken = [b"1\n", b"1,2,3\n", b'"1"x,2\n', b"\xff,2\n"]
    file = CsvFile(written("a.csv", b"id,note\n" + b"".join(broken) + b'3,5" pipe\n4,"open\n'))
    rows = rows_of(file)
    assert [*broken, b'3,5" pipe\n', b'4,"open\n'] == [row.raw for row in rows]
    assert {"id": "3", "note": '5" pipe'} == file.fields(rows[4].raw)
    for row in [*rows[:4], rows[5]]:
        with pytest.raises(BadRow):
            file.fields(row.raw)
    file.close()


def test_csv_file_open_quote_does_not_swallow_the_file(written) -> None:  # type: ignore[no-untyped-def]
    """A quote that is never closed takes at most the reader's longest field with it, as one row."""
    filler = b"".join(b"%d,%s\n" % (n, b"x" * 1_000) for n in range(300))
    file = CsvFile(written("a.csv", b'id,note\n0,"open\n' + filler))
    rows = rows_of(file)
    assert 100 < len(rows) < 300
    assert len(filler) + 8 == sum(len(row.raw) for row in rows)
    assert 302 == rows[-1].line
    file.close()


def test_csv_file_without_usable_header_is_refused(written) -> None:  # type: ignore[no-untyped-def]
    """An empty file, and one that names a column twice, are refused by name."""
    for name, content in (("empty.csv", b""), ("twice.csv", b"id,id\n1,2\n"), ("open.csv", b'id,"x\n')):
        with pytest.raises(SetupError, match=name):
            CsvFile(written(name, content))


def test_csv_file_gzipped_is_unpacked(written) -> None:  # type: ignore[no-untyped-def]
    """A gzipped file reads as its content; a cut one is an error that names it."""
    packed = gzip.compress(b"id\n" + b"1\n" * 1_000)
    file = CsvFile(written("a.csv.gz", packed))
    assert 1_000 == len(rows_of(file))
    file.close()
    with pytest.raises(SetupError, match=r"b\.csv\.gz: cannot be read"):
        CsvFile(written("b.csv.gz", packed[:-9]))


def test_ndjson_file_numbers_keep_their_digits(written) -> None:  # type: ignore[no-untyped-def]
    """Numbers come out as they were written, nulls and empty texts are absent, nested values stay."""
    file = NdjsonFile(
        written("a.ndjson", b'{"a":1.10,"b":12345678901234567890.12,"c":true,"d":null,"e":"","f":[1.5]}\n\n{"a":7}')
    )
    first, second = rows_of(file)
    assert {"a": "1.10", "b": "12345678901234567890.12", "c": "true", "f": [Decimal("1.5")]} == file.fields(first.raw)
    assert (3, {"a": "7"}) == (second.line, file.fields(second.raw))
    file.close()


@pytest.mark.parametrize("raw", [b"not json\n", b"[1]\n", b'{"a":1\n', b'{"a":"\xff"}\n', b'{"a":' + b"[" * 100_000])
def test_ndjson_file_broken_row_says_why(written, raw: bytes) -> None:  # type: ignore[no-untyped-def]
    """What is no JSON object is a row with a reason."""
    file = NdjsonFile(written("a.ndjson", raw))
    (row,) = rows_of(file)
    with pytest.raises(BadRow, match="JSON"):
        file.fields(row.raw)
    file.close()


@given(
    rows=st.lists(
        st.lists(st.text(st.characters(exclude_categories=["Cs"]), max_size=8), min_size=2, max_size=2), max_size=20
    )
)
def test_csv_file_any_written_rows_come_back(tmp_path_factory: pytest.TempPathFactory, rows: list[list[str]]) -> None:
    """What a CSV writer writes is read back field by field, each row on the line where it begins."""
    import csv
    import io

    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(["a", "b"])
    begins = []
    for row in rows:
        begins.append(text.getvalue().count("\n") + 1)
        writer.writerow(row)
    path = tmp_path_factory.mktemp("csv") / "a.csv"
    path.write_bytes(text.getvalue().encode())
    file = CsvFile(path)
    read = rows_of(file)
    assert begins == [row.line for row in read]
    assert [{name: value for name, value in zip("ab", row, strict=True) if value} for row in rows] == [
        file.fields(row.raw) for row in read
    ]
    file.close()
