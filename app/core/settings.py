"""Settings of one process: one frozen object, from `[tool.headrace]` in pyproject.toml, then `HEADRACE_*` variables,
then the command line. A wrong or unknown one is an error that names it.
"""

import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import msgspec

from app.core.errors import SetupError

PREFIX = "HEADRACE_"
ACTION_URL_PREFIX = "HEADRACE_ACTION_URL_"
LOG_LEVELS = ("debug", "info", "warning", "error")


class Settings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Durations are milliseconds where the name ends in `_ms`. Secrets are never printed: see `redacted`."""

    broker: str = "kafka://127.0.0.1:9092"
    store: str = "redis://127.0.0.1:6379/0"
    model: str = "claude-sonnet-4-6"
    """`rules` for the offline rules, else the name of an Anthropic model."""
    model_url: str = ""
    """Another address for the Messages API; empty for Anthropic's own."""
    model_concurrency: int = 64
    """Model calls at once in this process, 1 to 256."""
    model_attempt_ms: int = 8_000
    """Time limit of one model call; shorter than every agent's deadline."""
    action_urls: dict[str, str] = {}
    """Where effects are posted, by the name of the action's function: `[tool.headrace.action_urls]`, or
    `HEADRACE_ACTION_URL_BLOCK_TRANSACTION=https://...`. An effect without an address is logged instead."""
    action_token: str = ""
    """Bearer token sent with effects."""
    action_timeout_ms: int = 5_000
    """Time limit of one such post; shorter than the drain."""
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
        _require_shorter("model_attempt_ms", self.model_attempt_ms, "drain_ms", self.drain_ms)
        _require("action_timeout_ms", self.action_timeout_ms > 0, "must be more than 0")
        _require_shorter("action_timeout_ms", self.action_timeout_ms, "drain_ms", self.drain_ms)
        _require_shorter("drain_ms", self.drain_ms, "grace_ms", self.grace_ms)
        _require("log_level", self.log_level in LOG_LEVELS, f"must be one of {', '.join(LOG_LEVELS)}")
        _require("broker", self.broker.startswith(("kafka://", "memory://")), "must begin with kafka:// or memory://")
        store_schemes = ("redis://", "rediss://", "unix://", "memory://")
        _require("store", self.store.startswith(store_schemes), "must begin with redis://, unix:// or memory://")
        form = "must begin with http:// or https:// and name a host"
        _require("model_url", not self.model_url or _is_web_address(self.model_url), form)
        for name, url in self.action_urls.items():
            _require("action_urls", _is_web_address(url), f"that of {name} {form}")

    def redacted(self) -> dict[str, Any]:
        """All settings, with secrets and passwords in addresses replaced by `***`."""
        shown = msgspec.to_builtins(self)
        for name, value in shown.items():
            if name.endswith(("_token", "_password", "_key")) and value:
                shown[name] = "***"
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
    known = {field.name: field for field in msgspec.structs.fields(Settings)}
    for name in values:
        if name not in known:
            raise SetupError(sources[name], f"unknown setting; there are {', '.join(sorted(known))}")
        try:
            values[name] = msgspec.convert(values[name], known[name].type, strict=False)
        except msgspec.ValidationError as error:
            raise SetupError(sources[name], str(error)) from None
    try:
        return Settings(**values)
    except SetupError as error:
        source = sources.get(error.setting, error.setting)
        raise SetupError(source, str(error).removeprefix(f"{error.setting}: ")) from None


def _is_web_address(text: str) -> bool:
    try:
        address = urlsplit(text)
        return address.scheme in ("http", "https") and bool(address.hostname) and address.port != 0
    except ValueError:  # a port that is no number, brackets that do not match
        return False


def _require(setting: str, holds: bool, message: str) -> None:
    if not holds:
        raise SetupError(setting, message)


def _require_shorter(setting: str, value_ms: int, other: str, other_ms: int) -> None:
    _require(setting, value_ms < other_ms, f"{value_ms} must be shorter than {other}, which is {other_ms}")
