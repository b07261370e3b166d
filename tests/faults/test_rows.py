"""The small version of every row, on one Kafka and one Redis: what `python -m tests.faults --small` runs without ablations."""

import sys
from collections.abc import AsyncIterator, Iterator

import pytest
import pytest_asyncio

from app.local.process import LOCAL
from app.local.services import own_directory
from tests.faults.application import app
from tests.faults.cluster import Cluster
from tests.faults.results import measured
from tests.faults.rows import Bench, all_rows

ROWS = {name: row for name, row in all_rows().items() if row.small is not None}
SEED = 20261125
LIMIT_S = 150

pytestmark = [
    pytest.mark.kafka,
    pytest.mark.redis,
    pytest.mark.slow,
    pytest.mark.asyncio(loop_scope="module"),
    pytest.mark.timeout(LIMIT_S + 90),
]


def say(text: str) -> None:
    """pytest shows it where a row fails."""
    sys.stderr.write(f"{text}\n")


@pytest.fixture(scope="module")
def took_s(pytestconfig: pytest.Config) -> Iterator[dict[str, float]]:
    """Seconds of each row. Their sum is printed, not judged: how fast a machine is, is no promise."""
    seconds: dict[str, float] = {}
    yield seconds
    capture = pytestconfig.pluginmanager.get_plugin("capturemanager")
    assert capture is not None
    with capture.global_and_fixture_disabled():
        say(f"\n{len(seconds)} small rows took {sum(seconds.values()):.0f} s together")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def bench(kafka_address: str, redis_address: str) -> AsyncIterator[Bench]:
    """Servers of their own, since the application's topics have fixed names. The session's say if there can be any."""
    async with Cluster(app, own_directory("test-rows")) as cluster:
        yield Bench(cluster, LOCAL / "faults" / "tests", SEED, say)


@pytest.mark.parametrize("name", ROWS)
async def test_row_small_holds(bench: Bench, took_s: dict[str, float], name: str) -> None:
    """Every promise of the row is kept; the seed is in the file above."""
    result = await measured(bench, ROWS[name], small=True, limit_s=LIMIT_S)
    took_s[name] = result.seconds
    assert ("held", []) == (result.verdict, result.complaints), result.as_row()
