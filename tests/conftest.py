"""Real servers for the tests that need them, started when the first one asks and always taken down.

Where Java, Maven, Redis or PyFlink are missing, those tests are skipped and the run says so at its end; with CI=true
that is a failure. Blocking calls of `app` on an event loop fail. Generated inputs are new in each run, and always the
same in CI.
"""

import itertools
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from blockbuster import blockbuster_ctx
from hypothesis import HealthCheck, settings

from app.core.errors import SetupError
from app.local.services import FLINK_SERVICES, Addresses, down, own_directory, up
from tests.examples import FULL, QUICK

MISSING_PROGRAMS = ("java", "mvn", "redis-server", "pyflink")
IN_CI = os.environ.get("CI") == "true"

# How long an input takes says how busy the machine is; what a test may take is pytest's limit.
settings.register_profile(FULL, deadline=None, suppress_health_check=[HealthCheck.too_slow], derandomize=IN_CI)
settings.register_profile(QUICK, settings.get_profile(FULL), max_examples=settings.get_profile(FULL).max_examples // 4)
settings.load_profile(FULL)

missing_key = pytest.StashKey[dict[str, str]]()
_numbers = itertools.count(1)


def pytest_configure(config: pytest.Config) -> None:
    config.stash[missing_key] = {}


def pytest_runtest_setup() -> None:
    """A run that is told to end, as CI does with one it no longer wants, takes its servers and workers along."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    for folder, (count, seconds) in times_by_folder(terminalreporter).items():
        terminalreporter.write_line(f"== {folder:<12} {count} tests, {seconds:.1f} s")
    for service, reason in config.stash[missing_key].items():
        terminalreporter.write_line(f"NOT TESTED with a real {service}. {reason}", yellow=True, bold=True)


def times_by_folder(terminalreporter: pytest.TerminalReporter) -> dict[str, tuple[int, float]]:
    """Tests and seconds of each folder below tests/, with what their fixtures took."""
    times: dict[str, tuple[int, float]] = {}
    reports = [report for some in terminalreporter.stats.values() for report in some]
    for report in reports:
        if isinstance(report, pytest.TestReport):
            folder = report.nodeid.split("/")[1]
            count, seconds = times.get(folder, (0, 0.0))
            times[folder] = count + (report.when == "call"), seconds + report.duration
    return dict(sorted(times.items()))


@pytest.fixture(scope="session")
def service_directory() -> Iterator[Path]:
    """Where this session's servers are; they end with it."""
    directory = own_directory("test")
    yield directory
    down(directory)


@pytest.fixture(scope="session")
def kafka_address(service_directory: Path, pytestconfig: pytest.Config) -> str:
    """A real Kafka, `kafka://127.0.0.1:PORT`, for the whole session."""
    return start(service_directory, pytestconfig, "kafka").kafka


@pytest.fixture(scope="session")
def redis_addresses(service_directory: Path, pytestconfig: pytest.Config) -> Addresses:
    return start(service_directory, pytestconfig, "redis")


@pytest.fixture(scope="session")
def redis_address(redis_addresses: Addresses) -> str:
    """A real Redis over TCP, `redis://127.0.0.1:PORT/0`, for the whole session."""
    return redis_addresses.redis


@pytest.fixture(scope="session")
def redis_socket(redis_addresses: Addresses) -> str:
    """The same Redis over its unix socket, `unix:///…/redis.sock`."""
    return redis_addresses.redis_socket


@pytest.fixture(scope="session")
def flink_address(service_directory: Path, pytestconfig: pytest.Config) -> str:
    """The REST address of a real Flink cluster with four slots, `http://127.0.0.1:PORT`, for the whole session."""
    return start(service_directory, pytestconfig, *FLINK_SERVICES).flink


def start(directory: Path, config: pytest.Config, *services: str) -> Addresses:
    """Starts servers; skips the test when they cannot be had here, unless under CI."""
    try:
        return up(directory, services)
    except SetupError as error:
        if IN_CI or error.setting not in MISSING_PROGRAMS:
            raise
        config.stash[missing_key][services[0].partition("-")[0]] = str(error)
        pytest.skip(str(error))


@pytest.fixture
def unique() -> Callable[[str], str]:
    """Names nobody else uses in this session: unique("orders") -> "orders-4711-1", for topics, groups and keys."""
    return lambda name: f"{name}-{os.getpid()}-{next(_numbers)}"


@pytest.fixture(autouse=True)
def no_blocking_calls() -> Iterator[None]:
    """What `app` calls on a running loop may not block; threads and plain functions may."""
    with blockbuster_ctx(scanned_modules=["app"]):
        yield
