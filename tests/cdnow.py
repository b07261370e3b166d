"""The real orders of the CDNOW shop, or, where the file is not at hand, made-up ones with the same sums.

Looked for in `$HEADRACE_DATA`, then in `../shared/data/` beside the repository. 80 zero amounts and 215 lines that
occur more than once are genuine.
"""

import gzip
import os
from datetime import date, timedelta
from pathlib import Path

NAME = "cdnow_orders.csv.gz"
ORDERS, CUSTOMERS, CENTS, ZEROS, REPEATS = 69_659, 23_570, 250_031_563, 80, 215

_BESIDE = Path(__file__).resolve().parents[2] / "shared" / "data"


def cdnow_file(folder: Path) -> Path:
    """The file; `folder` takes the made-up one."""
    real = Path(os.environ.get("HEADRACE_DATA", _BESIDE)) / NAME
    return real if real.exists() else make_up(folder / NAME)


def make_up(path: Path) -> Path:
    """Writes as many orders, customers, cents, zero amounts and repeated lines, by customer and date."""
    distinct = ORDERS - REPEATS
    cents = [0 if n < ZEROS else 3_000 + n % 1_000 for n in range(distinct)]
    cents[-1] += CENTS - sum(cents) - sum(cents[ZEROS : ZEROS + REPEATS])
    rows = [_row(n, cents[n]) for n in [*range(distinct), *range(ZEROS, ZEROS + REPEATS)]]
    with gzip.open(path, "wt") as file:
        file.write("customer_id,date,quantity,amount_usd\n")
        file.writelines(sorted(rows))
    return path


def _row(n: int, cents: int) -> str:
    day = date(1997, 1, 1) + timedelta(days=n * 37 % 546)
    return f"{n % CUSTOMERS + 1:05d},{day},{1 + n % 5},{cents // 100}.{cents % 100:02d}\n"
