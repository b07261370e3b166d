"""Real orders through real Kafka: replayed by the command line, added up by a bounded run, compared with DuckDB."""

import subprocess
import sys
from pathlib import Path

import duckdb
import msgspec
import pytest

from app.broker.kafka import KafkaBroker
from app.core.clock import SystemClock
from app.core.record import TopicPartition
from tests.cdnow import CENTS, ORDERS, cdnow_file
from tests.cdnow_app import app

pytestmark = [pytest.mark.kafka, pytest.mark.timeout(180)]

DAY_MS = 86_400_000


def command(*arguments: str) -> dict[str, int]:
    """Runs `python -m app ... --json` and returns its last line."""
    finished = subprocess.run(
        [sys.executable, "-m", "app", *arguments, "--json"],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        check=False,
    )
    assert 0 == finished.returncode, finished.stderr
    line: dict[str, int] = msgspec.json.decode(finished.stdout.splitlines()[-1])
    return line


async def rows_of(address: str, topic: str) -> dict[tuple[str, int], tuple[int, int]]:
    """(customer, day since 1970) -> (orders, cents)."""
    broker = KafkaBroker(address, SystemClock(), replication=1)
    reader, rows = broker.reader(), dict[tuple[str, int], tuple[int, int]]()
    places = [TopicPartition(topic, partition) for partition in range(12)]
    for place, end in (await reader.end_offsets(places)).items():
        async for records in reader.read(place, 0, end):
            for record in records:
                row = msgspec.json.decode(record.value or b"")
                where = row["user_id"], row["window_start"] // DAY_MS
                assert where not in rows, "one final row a customer and day"
                rows[where] = row["orders"], round(row["usd"] * 100)
    await reader.close()
    await broker.close()
    return rows


def rows_by_duckdb(file: Path) -> dict[tuple[str, int], tuple[int, int]]:
    found = duckdb.execute(
        """
        SELECT customer_id, date - DATE '1970-01-01', count(*), sum(CAST(amount_usd AS DECIMAL(18, 2)) * 100)
        FROM read_csv(?, types = {'customer_id': 'VARCHAR', 'date': 'DATE', 'amount_usd': 'DECIMAL(18, 2)'})
        GROUP BY ALL
        """,
        [str(file)],
    ).fetchall()
    return {(customer, day): (orders, int(cents)) for customer, day, orders, cents in found}


async def test_replay_and_bounded_run_of_real_orders_equal_duckdb_to_the_cent(
    kafka_address: str, tmp_path: Path
) -> None:
    """69,659 orders and 250,031,563 cents are accounted for, by customer and day."""
    file = cdnow_file(tmp_path)
    broker = KafkaBroker(kafka_address, SystemClock(), replication=1)
    admin = broker.admin()
    await admin.create(app.topics.all())
    target = ["-A", "tests.cdnow_app:app", "--broker", kafka_address]
    mapping = ["--map", "user_id=customer_id", "--map", "timestamp=date", "--constant", "status=placed"]
    try:
        replayed = command(
            "replay", str(file), "--topic", "cdnow.orders", *mapping, "--id", "order_id", "--timezone", "UTC", *target
        )
        assert (ORDERS, ORDERS, 0) == (replayed["rows"], replayed["published"], replayed["dead"])
        run = command("streams", "run", "daily_orders", "--bounded", "--to", "cdnow.daily", *target)
        assert (ORDERS, 0, 0) == (run["events"], run["malformed"], run["late"])
        rows = await rows_of(kafka_address, "cdnow.daily")
        assert rows_by_duckdb(file) == rows
        assert (ORDERS, CENTS) == (sum(row[0] for row in rows.values()), sum(row[1] for row in rows.values()))
    finally:
        await admin.delete([*(spec.name for spec in app.topics.all()), "cdnow.daily"])
        await admin.close()
        await broker.close()
