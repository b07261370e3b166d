"""Settings of one process: one frozen object, from `[tool.headrace]` in pyproject.toml, then `HEADRACE_*` variables,
then the command line. A wrong or unknown one is an error that names it.
"""

import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import msgspec

from app.core.errors import HeadraceError, SetupError
from app.core.security import MECHANISMS, BrokerSecurity, StoreSecurity, check_broker, check_store, is_loopback

PREFIX = "HEADRACE_"
ACTION_URL_PREFIX = "HEADRACE_ACTION_URL_"
MODES = ("live", "shadow", "dry-run")
ENGINES = ("asyncio", "flink")
LOG_LEVELS = ("debug", "info", "warning", "error")

EFFECT_SECRETS = ("action_token", "pagerduty_routing_key")
"""What only actions show to others."""

SECRETS = ("broker_password", "store_password", *EFFECT_SECRETS)
"""Never shown. Each may also be read from a file, as Docker and Kubernetes hand secrets over: `broker_password_file`."""


_URLS = dict[str, str]
_EXPECTED: dict[Any, str] = {
    bool: "must be true or false",
    int: "must be a whole number",
    _URLS: f"must be a table of texts in pyproject.toml; as variables, one an action: {ACTION_URL_PREFIX}NAME",
}


class Settings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Durations are milliseconds where the name ends in `_ms`. Secrets are never printed: see `redacted`."""

    broker: str = "kafka://127.0.0.1:9092"
    broker_tls: bool = False
    """Whether to speak TLS to the brokers; their names and certificates are always verified then."""
    broker_ca: str = ""
    """PEM file of the authorities that sign the brokers' certificates; empty for those that the system trusts."""
    broker_certificate: str = ""
    """PEM file of a client certificate, with `broker_key`; an alternative to user and password."""
    broker_key: str = ""
    """PEM file of the private key of `broker_certificate`."""
    broker_user: str = ""
    """User of SASL; empty for none."""
    broker_password: str = ""
    broker_mechanism: str = MECHANISMS[0]
    """Of SASL: SCRAM-SHA-512, SCRAM-SHA-256 or PLAIN."""
    store: str = "redis://127.0.0.1:6379/0"
    """`rediss://` for TLS; user and password may stand in it, see also `store_password`."""
    store_ca: str = ""
    """PEM file of the authorities that sign the store's certificate; empty for those that the system trusts."""
    store_certificate: str = ""
    """PEM file of a client certificate, with `store_key`."""
    store_key: str = ""
    """PEM file of the private key of `store_certificate`."""
    store_user: str = ""
    """Redis user; empty for its `default`."""
    store_password: str = ""
    engine: str = "asyncio"
    """Where the streams run: in the workers, or as `flink` jobs (`python -m flink_jobs submit`), the same for all workers."""
    flink: str = "http://127.0.0.1:8081"
    """REST address of a Flink cluster's job manager. Whoever reaches it may run code there: loopback, or a closed network."""
    model: str = "claude-sonnet-4-6"
    """`rules` for the offline rules, else the name of an Anthropic model."""
    model_url: str = ""
    """Another address for the Messages API, `https://` unless on loopback; empty for Anthropic's own."""
    model_concurrency: int = 64
    """Model calls at once in this process, 1 to 256."""
    model_attempt_ms: int = 8_000
    """Time limit of one model call; shorter than every agent's deadline."""
    model_requests_per_minute: int = 0
    """Model calls a minute over all processes; 0 for what the API's headers say. So too the next two."""
    model_input_tokens_per_minute: int = 0
    """Without those read from the prompt cache."""
    model_output_tokens_per_minute: int = 0
    model_prices: str = ""
    """`name=input/output/cache-read/cache-write, ...` in dollars per million tokens; claude-sonnet-4-6 is known."""
    action_urls: dict[str, str] = {}
    """Where effects are posted, by the name of the action's function: `[tool.headrace.action_urls]`, or
    `HEADRACE_ACTION_URL_BLOCK_TRANSACTION=https://...`. An effect without an address is logged instead, for good."""
    action_token: str = ""
    """Bearer token sent with effects; `https://` addresses only then, unless on loopback."""
    action_timeout_ms: int = 5_000
    """Time limit of one such post; shorter than the drain."""
    pagerduty_url: str = "https://events.pagerduty.com/v2/enqueue"
    """Where incidents are reported, by the Events API v2; `https://` unless on loopback."""
    pagerduty_routing_key: str = ""
    """The integration key of the service that is paged. Without one incidents are logged instead, for good."""
    mode: str = "live"
    """Only what agents decide `live` is acted on. In `shadow` they decide beside the live ones, in groups of their own."""
    group_protocol: str = "consumer"
    """How workers share partitions: `consumer` (KIP-848, brokers from 4.0 on), or `classic` for older ones."""
    instance: str = ""
    """A name that no other process has and that this one keeps over restarts, such as the name of a StatefulSet's pod: then
    a restart within the session (45 s) gets its partitions back, and no others move. Empty for none."""
    drain_ms: int = 25_000
    """How long a stopping worker lets running work finish."""
    grace_ms: int = 30_000
    """After this much the platform kills the worker."""
    replication: int = 3
    log_level: str = "info"

    def __post_init__(self) -> None:
        _require("model_concurrency", 1 <= self.model_concurrency <= 256, "must be 1 to 256")
        _require("replication", self.replication >= 1, "must be at least 1")
        _require("model_attempt_ms", self.model_attempt_ms > 0, "must be more than 0")
        for name in ("model_requests_per_minute", "model_input_tokens_per_minute", "model_output_tokens_per_minute"):
            _require(name, getattr(self, name) >= 0, "must not be negative; 0 is for what the API's headers say")
        _require_shorter("model_attempt_ms", self.model_attempt_ms, "drain_ms", self.drain_ms)
        _require("action_timeout_ms", self.action_timeout_ms > 0, "must be more than 0")
        _require_shorter("action_timeout_ms", self.action_timeout_ms, "drain_ms", self.drain_ms)
        _require_shorter("drain_ms", self.drain_ms, "grace_ms", self.grace_ms)
        _require("engine", self.engine in ENGINES, f"must be one of {', '.join(ENGINES)}")
        _require("mode", self.mode in MODES, f"must be one of {', '.join(MODES)}")
        protocols = ("consumer", "classic")
        _require("group_protocol", self.group_protocol in protocols, f"must be one of {', '.join(protocols)}")
        known_as = re.fullmatch(r"[A-Za-z0-9._-]{0,249}", self.instance)
        _require("instance", known_as is not None, "may hold 249 letters, digits, dots, dashes and underscores")
        fixed = self.broker.startswith("aiokafka://") and (self.instance or self.group_protocol != "consumer")
        _require("broker", not fixed, "aiokafka:// knows neither instance nor group_protocol; use kafka://")
        _require("log_level", self.log_level in LOG_LEVELS, f"must be one of {', '.join(LOG_LEVELS)}")
        broker_schemes = ("kafka://", "aiokafka://", "memory://")
        broker_rule = "must begin with kafka://, aiokafka:// or memory://"
        _require("broker", self.broker.startswith(broker_schemes), broker_rule)
        store_schemes = ("redis://", "rediss://", "unix://", "memory://")
        _require(
            "store", self.store.startswith(store_schemes), "must begin with redis://, rediss://, unix:// or memory://"
        )
        check_broker(self.broker, self.broker_security)
        check_store(self.store, self.store_security)
        form = "must begin with http:// or https:// and name a host"
        if self.model_url:
            _require("model_url", _is_web_address(self.model_url), form)
            _require_closed("model_url", self.model_url, "an API key")
        _require("flink", _is_web_address(self.flink), form)
        _require("pagerduty_url", _is_web_address(self.pagerduty_url), form)
        if self.pagerduty_routing_key:
            _require_closed("pagerduty_url", self.pagerduty_url, "a routing key")
        for name, url in self.action_urls.items():
            _require("action_urls", _is_web_address(url), f"that of {name} {form}")
            if self.action_token or "@" in urlsplit(url).netloc:
                _require_closed("action_urls", url, "a token or password", f"that of {name} ")

    def __repr__(self) -> str:
        return f"Settings({self.redacted()})"

    @property
    def broker_security(self) -> BrokerSecurity:
        """What all clients of the cluster are given."""
        return BrokerSecurity(
            tls=self.broker_tls,
            ca=self.broker_ca,
            certificate=self.broker_certificate,
            key=self.broker_key,
            user=self.broker_user,
            password=self.broker_password,
            mechanism=self.broker_mechanism,
        )

    @property
    def store_security(self) -> StoreSecurity:
        """What all clients of the store are given."""
        return StoreSecurity(
            ca=self.store_ca,
            certificate=self.store_certificate,
            key=self.store_key,
            user=self.store_user,
            password=self.store_password,
        )

    def redacted(self) -> dict[str, Any]:
        """All settings, with secrets and passwords in addresses replaced by `***`."""
        shown = msgspec.to_builtins(self)
        for name, value in shown.items():
            if name in SECRETS:
                shown[name] = "***" if value else ""
            elif isinstance(value, str):
                shown[name] = without_password(value)
            elif isinstance(value, dict):
                shown[name] = {key: without_password(address) for key, address in value.items()}
        assert isinstance(shown, dict)
        return shown


def without_password(address: str) -> str:
    """An address as it may be shown: whatever stands before its `@` becomes `***`, and options are cut off."""
    scheme, mark, rest = address.partition("://")
    if not mark:
        return address
    user, at, place = rest.rpartition("@")
    return f"{scheme}://{'***' if user else ''}{at}{place.split('?', 1)[0]}"


def in_one_form(error: HeadraceError) -> str:
    """What an error says, with the setting that it names as a variable of the environment, wherever it was set."""
    if not isinstance(error, SetupError):
        return str(error)
    return f"{_as_variable(error.setting)}{str(error).removeprefix(error.setting)}"


def _as_variable(setting: str) -> str:
    return f"{PREFIX}{setting.upper()}" if setting in Settings.__struct_fields__ else setting


def load_settings(
    environment: Mapping[str, str], project: Path | None = None, overrides: Mapping[str, Any] | None = None
) -> Settings:
    """Settings from pyproject.toml in `project`, the environment, and `overrides` (None values are passed over).

    Raises: SetupError that names the wrong setting as the user wrote it.
    """
    values: dict[str, Any] = {}
    sources: dict[str, str] = {}
    file = project / "pyproject.toml" if project else None
    if file and file.exists():
        try:
            table = tomllib.loads(file.read_text()).get("tool", {}).get("headrace", {})
        except tomllib.TOMLDecodeError as error:
            raise SetupError(str(file), str(error)) from None
        for name, value in table.items():
            values[name], sources[name] = value, f"[tool.headrace] {name}"
    action_urls = {
        variable.removeprefix(ACTION_URL_PREFIX).lower(): url
        for variable, url in environment.items()
        if variable.startswith(ACTION_URL_PREFIX)
    }
    if action_urls and isinstance(values.get("action_urls", {}), dict):
        values["action_urls"] = {**values.get("action_urls", {}), **action_urls}
        sources["action_urls"] = f"{ACTION_URL_PREFIX}*"
    for variable, text in environment.items():
        if variable.startswith(PREFIX) and not variable.startswith(ACTION_URL_PREFIX):
            name = variable.removeprefix(PREFIX).lower()
            values[name], sources[name] = text, variable
    for name, value in (overrides or {}).items():
        if value is not None:
            values[name], sources[name] = value, f"--{name.replace('_', '-')}"
    _read_secret_files(values, sources)
    known = {field.name: field for field in msgspec.structs.fields(Settings)}
    for name in values:
        if name not in known:
            there_are = sorted([*known, *(f"{secret}_file" for secret in SECRETS)])
            raise SetupError(sources[name], f"unknown setting; there are {', '.join(there_are)}")
        try:
            values[name] = msgspec.convert(values[name], known[name].type, strict=False)
        except msgspec.ValidationError as error:
            said = _EXPECTED.get(known[name].type, str(error))
            is_hidden = name in SECRETS or known[name].type == _URLS
            raise SetupError(sources[name], said if is_hidden else f"{said}, not {values[name]!r}") from None
    try:
        return Settings(**values)
    except SetupError as error:
        source = sources.get(error.setting, _as_variable(error.setting))
        raise SetupError(source, str(error).removeprefix(f"{error.setting}: ")) from None


def _read_secret_files(values: dict[str, Any], sources: dict[str, str]) -> None:
    """Puts what a secret's file holds, without the end of its last line, in the place of the file's name."""
    for secret in SECRETS:
        name = f"{secret}_file"
        if name not in values:
            continue
        file, source = values.pop(name), sources[name]
        if not file:  # as Docker Compose hands over what is not set
            continue
        if secret in values:
            raise SetupError(source, f"{sources[secret]} is given too; leave one out")
        try:
            text = Path(file).read_text().rstrip("\r\n")
        except (OSError, UnicodeDecodeError, TypeError) as error:
            reason = error.strerror if isinstance(error, OSError) else "is not a text file"
            raise SetupError(source, f"{file}: {reason}") from None
        if not text:
            raise SetupError(source, f"{file} is empty")
        values[secret], sources[secret] = text, source


def _is_web_address(text: str) -> bool:
    try:
        address = urlsplit(text)
        return address.scheme in ("http", "https") and bool(address.hostname) and address.port != 0
    except ValueError:  # a port that is no number, brackets that do not match
        return False


def _require_closed(setting: str, url: str, secret: str, which: str = "") -> None:
    """Nobody on the way may read the secret that goes to this address."""
    address = urlsplit(url)
    host = address.hostname or ""
    closed = address.scheme == "https" or is_loopback(host)
    message = f"{which}must begin with https://: there is {secret}, and the way to {host} is open without TLS"
    _require(setting, closed, message)


def _require(setting: str, holds: bool, message: str) -> None:
    if not holds:
        raise SetupError(setting, message)


def _require_shorter(setting: str, value_ms: int, other: str, other_ms: int) -> None:
    _require(setting, value_ms < other_ms, f"{value_ms} must be shorter than {other}, which is {other_ms}")
