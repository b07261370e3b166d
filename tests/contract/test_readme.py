"""The README's commands, word for word, on servers of their own."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from app.local.services import Addresses, own_directory, running

pytestmark = [pytest.mark.kafka, pytest.mark.redis, pytest.mark.slow]

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text()

WAITS = """
for try in $(seq 100); do
    {command} | tee answer; if grep -q '{expected}' answer; then break; fi
    if [ $try = 100 ]; then exit 1; fi
    sleep 0.2
done
"""


@pytest.fixture
def addresses(kafka_address: str, redis_address: str) -> Iterator[Addresses]:
    """kafka_address, redis_address: skips this where one is missing."""
    with running(own_directory("readme")) as addresses:
        yield addresses


def commands_of(section: str) -> list[str]:
    """The commands in a section of the README, without what is said about them."""
    lines = README.partition(f"## {section}\n\n```sh\n")[2].partition("```")[0].splitlines()
    return [line.partition(" #")[0].strip() for line in lines]


def test_readme_run_it_for_real_shows_the_order_in_the_features(addresses: Addresses, tmp_path: Path) -> None:
    """Nothing is replaced but where the servers come from and go; a person waits until the worker says that it runs."""
    lines = README.partition("## Run it for real\n\n```sh\n")[2].partition("```")[0].splitlines()
    assert ". .venv/bin/activate" == lines[0].partition("#")[0].strip()
    assert 'eval "$(python -m app local up)"' == lines[1].partition("#")[0].strip()
    assert "kill %1; python -m app local down" == lines[-1]
    get = lines[-2].partition("#")[0].strip()
    assert get.startswith("python -m app features get user_features u-17")
    listing, *looking, forgetting = commands_of("What was decided, and why")
    assert ("python -m app decisions list --since 1h", 5) == (listing, len(looking))
    script = [
        "set -m",
        *lines[2:-2],
        WAITS.format(command=get, expected="order_count_5m *1"),
        WAITS.format(command=listing, expected="o-1"),
        *(f"{command} || exit 1" for command in looking),
        forgetting,
        "kill %1; wait %1",
    ]
    environment = os.environ | {
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        "HEADRACE_BROKER": addresses.kafka,
        "HEADRACE_STORE": addresses.redis_socket,
    }
    done = subprocess.run(
        ["bash", "-c", "\n".join(script)],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=110,
    )
    assert 0 == done.returncode, done.stdout + done.stderr
    assert "$12,500.00" in done.stdout
    assert "nothing is broken" in done.stdout
    assert "user_features of u-17: counts what was done lately" in done.stderr
    assert "Traceback" not in done.stderr
