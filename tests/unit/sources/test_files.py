"""Files in the order of time, Parquet, and what DuckDB's errors mean."""

import random
from collections.abc import Callable
from pathlib import Path

import duckdb
import pytest

from app.core.errors import SetupError, Unavailable
from app.sources.files import MEANINGS, Sorter, open_file, ordered_rows, translated
from app.sources.rows import Row


def ordered(path: Path, time_of: Callable[[dict[str, str]], int | None]) -> list[tuple[int | None, Row]]:
    file, sorter = open_file(path), Sorter()
    try:
        for row in file.rows():
            sorter.add(time_of(file.fields(row.raw)), row)
        return [dated for batch in ordered_rows(file, sorter) for dated in batch]
    finally:
        sorter.close()
        file.close()


@pytest.mark.parametrize("suffix", ["csv", "ndjson", "parquet"])
def test_ordered_rows_any_kind_sorts_by_time_then_line(tmp_path: Path, suffix: str) -> None:
    """Rows come by event time, equal times by line, rows without a time last; none is lost between batches."""
    path = tmp_path / f"events.{suffix}"
    times: list[int | None] = [random.Random(1).randrange(1_000) for _ in range(5_000)]
    times[17] = times[4_000] = None
    with duckdb.connect() as connection:
        connection.execute("CREATE TABLE events (n INTEGER, t BIGINT)")
        values = ", ".join(f"({n}, {'NULL' if t is None else t})" for n, t in enumerate(times))
        connection.execute(f"INSERT INTO events VALUES {values}")
        form = {"csv": "csv, header", "ndjson": "json", "parquet": "parquet, row_group_size 2048"}[suffix]
        connection.execute(f"COPY (SELECT * FROM events ORDER BY n) TO '{path}' (FORMAT {form})")
    found = ordered(path, lambda fields: int(fields["t"]) if "t" in fields else None)
    first_line = 2 if suffix == "csv" else 1
    expected = sorted(((t is None, t or 0, n + first_line) for n, t in enumerate(times)))
    assert [(None if missing else t, line) for missing, t, line in expected] == [(t, row.line) for t, row in found]


def test_parquet_file_gives_exact_texts(tmp_path: Path) -> None:
    """Decimals keep their digits, times say their zone where they have one, and nulls are absent."""
    path = tmp_path / "a.parquet"
    with duckdb.connect() as connection:
        connection.execute(f"""COPY (SELECT 12345678901234567.80::DECIMAL(20, 2) AS amount, 10.1::DOUBLE AS rough,
            TIMESTAMPTZ '2026-01-02 03:04:05.678+02' AS zoned, TIMESTAMP '2026-01-02 03:04:05' AS local,
            DATE '2026-01-02' AS day, NULL::INTEGER AS nothing, true AS yes, 'x "y"' AS "odd ""name"
        ) TO '{path}' (FORMAT parquet)""")
    file = open_file(path)
    (row,) = file.rows()
    assert ("amount", "rough", "zoned", "local", "day", "nothing", "yes", 'odd "name') == file.columns
    assert {
        "amount": "12345678901234567.80",
        "rough": "10.1",
        "zoned": "2026-01-02 01:04:05.678+00",
        "local": "2026-01-02 03:04:05",
        "day": "2026-01-02",
        "yes": "true",
        'odd "name': 'x "y"',
    } == file.fields(row.raw)


def test_open_file_unusable_names_the_file(tmp_path: Path) -> None:
    """No file, another kind of file and a broken one are each one line that names the file."""
    (tmp_path / "broken.parquet").write_bytes(b"PAR1 not really")
    (tmp_path / "events.xlsx").write_bytes(b"")
    (tmp_path / "events.parquet.gz").write_bytes(b"")
    (tmp_path / "events.csv").mkdir()
    for name in ("broken.parquet", "events.xlsx", "events.parquet.gz", "events.csv", "nowhere.csv"):
        with pytest.raises(SetupError, match=name) as raised:
            open_file(tmp_path / name)
        assert "\n" not in str(raised.value)


def test_sorter_close_leaves_nothing_on_disk() -> None:
    """What a sorter wrote is gone when it is closed, also when nothing was read."""
    sorter = Sorter()
    folder = Path(sorter._folder.name)
    sorter.add(1, Row(1, 0, b"x"))
    assert folder.exists()
    sorter.close()
    assert not folder.exists()


def test_translated_covers_every_class_of_the_library() -> None:
    """A class that DuckDB grows has to be given a meaning here."""
    classes = {
        value
        for value in vars(duckdb).values()
        if isinstance(value, type) and issubclass(value, duckdb.Error) and value.__name__.endswith("Exception")
    }
    assert classes == MEANINGS.keys()


def test_translated_says_what_the_caller_can_do() -> None:
    """A broken file is a setup error in one line, too little room is unavailable, our mistakes stay what they are."""
    broken = translated(duckdb.IOException("No magic bytes\nLINE 1: SELECT"), "a.parquet")
    assert isinstance(broken, SetupError)
    assert "a.parquet: cannot be read: No magic bytes" == str(broken)
    assert isinstance(translated(duckdb.OutOfMemoryException("full"), "sorting"), Unavailable)
    mistake = duckdb.ParserException("syntax error")
    assert translated(mistake, "sorting") is mistake


def test_files_use_no_extension_and_no_network(tmp_path: Path) -> None:
    """Nothing is installed or loaded on the way, whatever a file is called."""
    from app.sources.files import _connect

    with _connect(None) as connection:
        for setting in ("autoinstall_known_extensions", "autoload_known_extensions", "allow_community_extensions"):
            assert [(False,)] == connection.execute(f"SELECT current_setting('{setting}')").fetchall()
        with pytest.raises(duckdb.Error):
            connection.execute("SELECT * FROM read_parquet('https://127.0.0.1:9/a.parquet')")
