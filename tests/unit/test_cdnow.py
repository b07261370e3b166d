"""The made-up orders have the sums of the real ones."""

import gzip
from collections import Counter
from pathlib import Path

from tests.cdnow import CENTS, CUSTOMERS, ORDERS, REPEATS, ZEROS, cdnow_file, make_up


def sums_of(path: Path) -> tuple[int, int, int, int, int]:
    with gzip.open(path, "rt") as file:
        rows = file.read().splitlines()[1:]
    cents = [int(row.rpartition(",")[2].replace(".", "")) for row in rows]
    repeated = sum(1 for times in Counter(rows).values() if times > 1)
    return len(rows), len({row[:5] for row in rows}), sum(cents), cents.count(0), repeated


def test_cdnow_file_and_its_stand_in_have_the_same_sums(tmp_path: Path) -> None:
    """Whichever file a test gets, it counts the same orders and cents."""
    expected = (ORDERS, CUSTOMERS, CENTS, ZEROS, REPEATS)
    assert expected == sums_of(cdnow_file(tmp_path))
    assert expected == sums_of(make_up(tmp_path / "made_up.csv.gz"))
