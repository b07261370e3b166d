"""What every benchmark shares: the servers, the environment it names, percentiles, kept results, progress."""

import os
import platform
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import typer
from redis import Redis

from app.broker.kafka import KafkaBroker
from app.core.clock import SystemClock
from app.core.codec import cents_to_json, encode
from app.core.security import BrokerSecurity, StoreSecurity
from app.core.settings import load_settings
from app.local.services import Addresses, own_directory, running
from app.serving.base import FeatureStore
from app.serving.stores import open_store

RESULTS = Path(__file__).parent / "results"
LIBRARIES = ("confluent-kafka", "redis", "hiredis", "msgspec", "uvloop", "anthropic")


def say(text: str) -> None:
    """Progress, for the person who waits; not data."""
    sys.stderr.write(f"{text}\n")
    sys.stderr.flush()


def environment() -> dict[str, Any]:
    """Machine, versions and commit: without them a figure means nothing."""
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    return {
        "at": datetime.fromtimestamp(SystemClock().now_ms() / 1000, UTC).isoformat(timespec="seconds"),
        "commit": commit.stdout.strip(),
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.release().partition('-')[0]}",
        "processor": _processor(),
        "cores": os.cpu_count(),
        "load_1m": round(os.getloadavg()[0], 2),
        "versions": {name: version(name) for name in LIBRARIES},
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "unknown")


def percentiles(values: Sequence[float]) -> dict[str, float]:
    """p50, p90, p99, p99.9 and the largest; empty for no values.

    By nearest rank: the smallest value that at least so many of a thousand do not exceed.
    """
    ordered = sorted(values)
    if not ordered:
        return {}
    ranks = {"p50": 500, "p90": 900, "p99": 990, "p99.9": 999}
    found = {name: ordered[-(-len(ordered) * rank // 1_000) - 1] for name, rank in ranks.items()}
    return {name: round(value, 3) for name, value in {**found, "max": ordered[-1]}.items()}


@contextmanager
def servers(kafka: str | None, redis: str | None, services: Sequence[str]) -> Iterator[Addresses]:
    """The given servers, or local ones for as long as the block runs; Flink is always one of these."""
    given = {"kafka": kafka, "redis": redis}
    missing = [name for name in services if not given.get(name)]
    if not missing:
        yield Addresses(kafka=kafka or "", redis=redis or "", redis_socket=redis or "")
        return
    say(f"starting {' and '.join(missing)} on this machine")
    with running(directory(), missing) as started:
        yield Addresses(
            kafka=kafka or started.kafka,
            redis=redis or started.redis,
            redis_socket=redis or started.redis_socket,
            flink=started.flink,
        )


def directory() -> Path:
    """Of the local servers of this process."""
    return own_directory("bench")


def variables(addresses: Addresses) -> dict[str, str]:
    """The environment of a command that meets these servers."""
    named = {
        "HEADRACE_BROKER": addresses.kafka,
        "HEADRACE_STORE": addresses.redis_socket,
        "HEADRACE_FLINK": addresses.flink,
    }
    return {**os.environ, **{name: address for name, address in named.items() if address}}


def submit(addresses: Addresses, *jobs: str) -> None:
    """Gives jobs of the application to the cluster, all unless some are named, and waits until they run; ends the benchmark when
    one does not."""
    command = [sys.executable, "-m", "flink_jobs", "submit", *jobs]
    if subprocess.run(command, env=variables(addresses), check=False).returncode:
        raise SystemExit("error: a job was not taken; the line above says why")


def broker_at(address: str) -> KafkaBroker:
    """The cluster there, by the TLS and the user that `HEADRACE_BROKER_*` say."""
    return KafkaBroker(address, SystemClock(), replication=1, security=broker_security(address))


def broker_security(address: str) -> BrokerSecurity:
    return load_settings({**os.environ, "HEADRACE_BROKER": address}).broker_security


def store_at(address: str) -> FeatureStore:
    """The store there, by the certificates and the user that `HEADRACE_STORE_*` say."""
    return open_store(address, SystemClock(), _store_security(address))


def redis_at(address: str) -> Redis:
    """A bare client there, by the same settings."""
    security = _store_security(address)
    login = {"username": security.user or None, "password": security.password} if security.password else {}
    files = {"ssl_ca_certs": security.ca, "ssl_certfile": security.certificate, "ssl_keyfile": security.key}
    return Redis.from_url(address, retry=None, **login, **{name: file for name, file in files.items() if file})


def _store_security(address: str) -> StoreSecurity:
    return load_settings({**os.environ, "HEADRACE_STORE": address}).store_security


def keep(name: str, result: dict[str, Any]) -> Path:
    """Writes a result under benchmarks/results/ and returns where."""
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}-{datetime.fromtimestamp(SystemClock().now_ms() / 1000, UTC):%Y%m%dT%H%M%S}.json"
    path.write_bytes(encode(result) + b"\n")
    return path


def finished(name: str, result: dict[str, Any], json: bool) -> Path | None:
    """Keeps the result of a benchmark with its environment. Returns where, to be told to a person; None where it was printed as JSON."""
    whole = {"benchmark": name, **result, "environment": environment()}
    path = keep(name, whole)
    if not json:
        return path
    typer.echo(encode(whole).decode())
    return None


def event_json(user: str, cents: int, status: str = "placed", **ids: str) -> bytes:
    """An order with its `order_id`, or a payment that has a `payment_id` before it. Its timestamp says nothing: the record's counts."""
    named = "".join(f'"{name}":"{value}",' for name, value in ids.items())
    return (
        f'{{{named}"user_id":"{user}","amount_usd":{cents_to_json(cents).decode()},"status":"{status}",'
        f'"timestamp":"2026-11-24T10:00:00.000Z"}}'
    ).encode()


def now_s() -> float:
    """Wall time in seconds, finer than the milliseconds of a `Clock`."""
    return time.time()  # noqa: TID251 - a benchmark compares with stamps of other processes
