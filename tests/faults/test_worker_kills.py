"""Real worker processes, a real broker, kill -9 while records are read: the outputs are those of a plain reading."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from app.local.services import own_directory, running
from tests.faults.streams import Plan, Process, run

pytestmark = [pytest.mark.kafka, pytest.mark.timeout(300)]

PLAN = Plan(events=6_000, faults=8, seed=20261124)
PROJECT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def own_kafka(kafka_address: str) -> Iterator[str]:
    """A broker of its own, since the application's topics have fixed names. The session's one says if there can be any."""
    with running(own_directory("test-kills"), ["kafka"]) as addresses:
        yield addresses.kafka


async def test_workers_killed_while_they_read_outputs_equal_a_plain_reading(own_kafka: str) -> None:
    """Whenever a process dies, alone or beside another, alerts, rows, tiles, late references and dead letters come out
    the same; and they do come twice, so it was at work."""

    def start() -> Process:
        command = [sys.executable, "-m", "app", "worker", "--only", "streams", "--broker", own_kafka]
        environment = {**os.environ, "HEADRACE_LOG_LEVEL": "warning", "HEADRACE_STORE": "memory://"}
        return subprocess.Popen(command, cwd=PROJECT, env=environment)

    outcome = await run(own_kafka, PLAN, start)
    assert [] == outcome.violations
    assert PLAN.events == outcome.events
    assert outcome.repeated > 0
