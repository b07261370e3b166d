"""What keeps commands out of servers with passwords and TLS: one line that names the setting, exit code 2, in time."""

import ssl
from collections.abc import Callable, Mapping
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import pytest
from redis.exceptions import ConnectionError

from app.broker.kafka import KafkaBroker, cluster
from app.broker.kafka.cluster import client_words
from app.core.clock import SystemClock
from app.core.security import BrokerSecurity, StoreSecurity, tls_context
from app.core.settings import Settings, load_settings
from app.local.services import Addresses
from app.serving import redis
from benchmarks.common import redis_at
from tests.secure import Ended, Running, Secured, elsewhere

pytestmark = [pytest.mark.kafka, pytest.mark.redis]

AT_ONCE = 4
WRONG = "wr0ng-S3cret"
ORDER = '{"order_id":"o-1","user_id":"u-1","amount_usd":1.00,"status":"placed","timestamp":"2026-01-01T00:00:00Z"}'

WORKER = ("worker", "--model", "rules")
TOPICS = ("topics", "create")
SEND = ("send", "raw.orders", ORDER)
REPLAY = ("replay", "orders.ndjson", "--topic", "raw.orders")
FEATURES = ("features", "get", "user_features", "u-1")

Change = Callable[[Secured, Addresses], Mapping[str, str | None]]
"""Settings other than the administrator's; None takes one away."""

NO_TLS: dict[str, str | None] = dict.fromkeys(("TLS", "CA", "USER", "PASSWORD_FILE"))
REFUSALS: dict[str, tuple[tuple[str, ...], Change, str]] = {
    "kafka password, worker": (
        WORKER,
        lambda *_: broker(PASSWORD_FILE=None, PASSWORD=WRONG),
        "HEADRACE_BROKER_PASSWORD: the",
    ),
    "kafka password, send": (
        SEND,
        lambda *_: broker(PASSWORD_FILE=None, PASSWORD=WRONG),
        "HEADRACE_BROKER_PASSWORD: the",
    ),
    "kafka user": (
        TOPICS,
        lambda *_: broker(USER="nobody"),
        "HEADRACE_BROKER_PASSWORD: the brokers do not know user nobody",
    ),
    "kafka mechanism": (
        TOPICS,
        lambda *_: broker(MECHANISM="PLAIN"),
        "HEADRACE_BROKER_MECHANISM: PLAIN is not among SCRAM",
    ),
    "kafka authority, worker": (
        WORKER,
        lambda to, _: broker(CA=str(to.redis / "ca.pem")),
        "HEADRACE_BROKER_CA: the certificate",
    ),
    "kafka host name, topics": (
        TOPICS,
        lambda to, _: broker(elsewhere(to.variables["HEADRACE_BROKER"])),
        "HEADRACE_BROKER: the certificate of localhost:",
    ),
    "kafka speaks no TLS, replay": (
        REPLAY,
        lambda _, plain: broker(plain.kafka),
        "HEADRACE_BROKER_TLS: must be false: 127",
    ),
    "kafka speaks TLS, worker": (
        WORKER,
        lambda *_: broker("", **NO_TLS),
        "HEADRACE_BROKER_TLS: must be true: 127.0.0.1:",
    ),
    "kafka asks who": (TOPICS, lambda *_: broker(USER=None, PASSWORD_FILE=None), "HEADRACE_BROKER_USER: 127.0.0.1:"),
    "kafka asks for a certificate": (
        TOPICS,
        lambda to, _: broker(to.certificate_address, USER=None, PASSWORD_FILE=None),
        "HEADRACE_BROKER_CERTIFICATE: 127.0.0.1:",
    ),
    "redis password, features": (
        FEATURES,
        lambda *_: store(PASSWORD_FILE=None, PASSWORD=WRONG),
        "HEADRACE_STORE_PASSWORD: redis",
    ),
    "redis password, worker": (
        WORKER,
        lambda *_: store(PASSWORD_FILE=None, PASSWORD=WRONG),
        "HEADRACE_STORE_PASSWORD: redis",
    ),
    "redis authority": (
        FEATURES,
        lambda to, _: store(CA=str(to.kafka / "ca.pem")),
        "HEADRACE_STORE_CA: the certificate of",
    ),
    "redis host name": (
        FEATURES,
        lambda to, _: store(elsewhere(to.variables["HEADRACE_STORE"])),
        "HEADRACE_STORE: the certificate of rediss://localhost:",
    ),
    "redis speaks no TLS": (
        FEATURES,
        lambda _, plain: store(plain.redis.replace("redis:", "rediss:")),
        "HEADRACE_STORE: must begin with redis://",
    ),
    "redis speaks TLS": (
        FEATURES,
        lambda to, _: store(to.variables["HEADRACE_STORE"].replace("rediss:", "redis:"), CA=None),
        "HEADRACE_STORE: must begin with rediss://",
    ),
    "redis right": (
        FEATURES,
        lambda to, _: store(USER="agents", PASSWORD_FILE=f"{to.redis}/agents.password"),
        "permissions to run the 'info'",
    ),
}


def broker(address: str = "", **more: str | None) -> dict[str, str | None]:
    return _settings("HEADRACE_BROKER", address, more)


def store(address: str = "", **more: str | None) -> dict[str, str | None]:
    return _settings("HEADRACE_STORE", address, more)


def _settings(name: str, address: str, more: Mapping[str, str | None]) -> dict[str, str | None]:
    return {f"{name}_{each}": value for each, value in more.items()} | ({name: address} if address else {})


@pytest.fixture(scope="module")
def ended(
    secured: Secured, redis_addresses: Addresses, kafka_address: str, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Ended]:
    """What became of every case; a few at a time, since each waits for servers more than it computes."""
    plain = Addresses(kafka=kafka_address, redis=redis_addresses.redis)
    folder = tmp_path_factory.mktemp("refusals")
    cases = iter(REFUSALS.items())
    results: dict[str, Ended] = {}
    while some := dict(islice(cases, AT_ONCE)):
        running = {}
        for name, (arguments, change, _) in some.items():
            variables: dict[str, str | None] = {**secured.variables, **change(secured, plain)}
            given = {variable: value for variable, value in variables.items() if value is not None}
            place = folder / name.replace(" ", "-")
            place.mkdir()
            (place / "orders.ndjson").write_text(ORDER)
            running[name] = Running(arguments, given, place)
        results |= {name: each.ended() for name, each in running.items()}
    return results


@pytest.mark.parametrize("name", REFUSALS)
def test_refused_command_names_the_setting_in_one_line(ended: dict[str, Ended], name: str) -> None:
    """Exit code 2 and one line that says what is wrong, long before anybody gives up."""
    result = ended[name]
    assert REFUSALS[name][2] in result.refusal
    assert ("", []) == (result.out, result.warnings)


def test_refused_commands_tell_no_secret(ended: dict[str, Ended], secured: Secured) -> None:
    """Neither right nor wrong passwords are in anything that was said."""
    said = "".join(result.out + result.err for result in ended.values())
    assert [] == [secret for secret in (*secured.secrets(), WRONG) if secret in said]


def test_refused_command_with_debug_tells_no_secret(secured: Secured, tmp_path: Path) -> None:
    """A traceback, and the settings that a worker logs for developers, hide it too."""
    variables = secured.variables | {"HEADRACE_LOG_LEVEL": "debug", "HEADRACE_BROKER_CA": f"{secured.redis}/ca.pem"}
    running = Running(("--debug", *WORKER), variables, tmp_path / "debug")
    arguments = Path(f"/proc/{running.process.pid}/cmdline").read_text()
    result = running.ended()
    assert "Traceback" in result.err
    assert "settings {" in result.err
    said = result.out + result.err + arguments
    assert [] == [secret for secret in secured.secrets() if secret in said]


def test_bare_client_of_benchmarks_gets_in_by_the_settings_and_by_another_authority_not(
    secured: Secured, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A benchmark asks the store of the settings, too, past our own client."""
    for variable, value in secured.variables.items():
        monkeypatch.setenv(variable, value)
    with redis_at(secured.variables["HEADRACE_STORE"]) as client:
        assert client.ping()
    monkeypatch.setenv("HEADRACE_STORE_CA", f"{secured.kafka}/ca.pem")
    with redis_at(secured.variables["HEADRACE_STORE"]) as client, pytest.raises(ConnectionError, match="CERTIFICATE"):
        client.ping()


@pytest.fixture
def loaded(secured: Secured) -> Settings:
    return load_settings(secured.variables)


async def test_kafka_under_another_name_is_kept_out_by_the_check_alone(
    secured: Secured, loaded: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ablation: without the check of the name a client gets in, so the refusal above is that check's work."""

    def unchecked(security: BrokerSecurity) -> dict[str, Any]:
        return client_words(security) | {"ssl.endpoint.identification.algorithm": "none"}

    monkeypatch.setattr(cluster, "client_words", unchecked)
    security = loaded.broker_security
    broker = KafkaBroker(elsewhere(secured.variables["HEADRACE_BROKER"]), SystemClock(), security=security)
    assert "raw.orders" in await broker.admin().list()
    await broker.close()


async def test_redis_under_another_name_is_kept_out_by_the_check_alone(
    secured: Secured, loaded: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ablation: the same for both connections to Redis."""

    def unchecked(server: Literal["broker", "store"], security: StoreSecurity) -> ssl.SSLContext:
        context = tls_context(server, security)
        context.check_hostname = False
        return context

    monkeypatch.setattr(redis, "tls_context", unchecked)
    security = loaded.store_security
    store = redis.RedisStore(elsewhere(secured.variables["HEADRACE_STORE"]), SystemClock(), security)
    await store.start()
    await store.close()
