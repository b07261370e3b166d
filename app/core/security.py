"""How a client proves who it is to Kafka and Redis, and what it wants to see of them: data, and the rules it keeps.

Host names and certificates are always verified where there is TLS; there is no switch that turns that off.
"""

import ssl
from collections.abc import Iterable
from ipaddress import ip_address
from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit

import msgspec

from app.core.errors import SetupError

MECHANISMS = ("SCRAM-SHA-512", "SCRAM-SHA-256", "PLAIN")


class BrokerSecurity(msgspec.Struct, frozen=True, kw_only=True):
    """What every client of a Kafka cluster is given. Files are PEM.

    tls: else plain text. ca: the authorities to trust, empty for the system's. certificate, key: of the client, both or
    none. user: empty for no SASL.
    """

    tls: bool = False
    ca: str = ""
    certificate: str = ""
    key: str = ""
    user: str = ""
    password: str = ""
    mechanism: str = MECHANISMS[0]

    def __repr__(self) -> str:
        return _shown(self)


class StoreSecurity(msgspec.Struct, frozen=True, kw_only=True):
    """The same for the store; whether there is TLS, its address says (rediss://). user: empty for Redis' own `default`."""

    ca: str = ""
    certificate: str = ""
    key: str = ""
    user: str = ""
    password: str = ""

    def __repr__(self) -> str:
        return _shown(self)


OPEN_BROKER, OPEN_STORE = BrokerSecurity(), StoreSecurity()
"""Servers on loopback that ask nobody who he is."""


def check_broker(address: str, security: BrokerSecurity) -> None:
    """Raises: SetupError naming the setting that is missing, contradicts another one, or would show a password."""
    files = {
        "broker_ca": security.ca,
        "broker_certificate": security.certificate,
        "broker_key": security.key,
    }
    _check_files(files, tls=security.tls, turned_on="broker_tls is true")
    if security.mechanism not in MECHANISMS:
        raise SetupError("broker_mechanism", f"must be one of {', '.join(MECHANISMS)}")
    if security.user and not security.password:
        raise SetupError("broker_password", f"is missing for broker_user {security.user}")
    if security.password and not security.user:
        raise SetupError("broker_user", "is missing; broker_password belongs to one")
    if not security.password or security.tls:
        return
    if security.mechanism == "PLAIN":
        raise SetupError("broker_tls", "must be true with broker_mechanism PLAIN, which sends the password itself")
    hosts = (server.rpartition(":")[0] for server in address.partition("://")[2].rstrip("/").split(","))
    _require_loopback("broker_tls", hosts, "must be true")


def check_store(address: str, security: StoreSecurity) -> None:
    """Raises: SetupError naming the setting that is missing, contradicts another one, or would show a password."""
    files = {"store_ca": security.ca, "store_certificate": security.certificate, "store_key": security.key}
    _check_files(files, tls=address.startswith("rediss://"), turned_on="store begins with rediss://")
    if security.user and not security.password:
        raise SetupError("store_password", f"is missing for store_user {security.user}")
    _, at, place = address.partition("://")[2].rpartition("@")
    if at and security.password:
        raise SetupError("store_password", "is given, and store has a user or password in its address; leave one out")
    if address.startswith("redis://") and (at or security.password):
        _require_loopback("store", [_host_of(place)], "must begin with rediss://")


def tls_context(server: Literal["broker", "store"], security: BrokerSecurity | StoreSecurity) -> ssl.SSLContext:
    """Trusts the named authorities alone, else the system's; verifies certificate and host name.

    Raises: SetupError naming the file that cannot be used.
    """
    try:
        context = ssl.create_default_context(cafile=security.ca or None)
    except OSError as error:
        message = f"{security.ca} holds no certificate in PEM form ({error.strerror})"
        raise SetupError(f"{server}_ca", message) from None
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    if security.certificate:
        try:
            context.load_cert_chain(security.certificate, security.key, password=_no_passphrase)
        except (OSError, ValueError) as error:
            why = getattr(error, "reason", None) or str(error)
            message = f"it and {server}_key are no pair in PEM form ({why})"
            raise SetupError(f"{server}_certificate", message) from None
    return context


def _no_passphrase() -> str:
    """Instead of OpenSSL's question on the terminal."""
    raise ValueError("the key is encrypted")


def is_loopback(host: str) -> bool:
    """Whether what is sent to this host never leaves the machine."""
    if host in ("localhost", ""):
        return True
    try:
        return ip_address(host.strip("[]")).is_loopback
    except ValueError:  # a name
        return False


def _host_of(place: str) -> str:
    try:
        return urlsplit(f"//{place}").hostname or ""
    except ValueError:  # the adapter says what is wrong with it
        return ""


def _require_loopback(setting: str, hosts: Iterable[str], must: str) -> None:
    for host in hosts:
        if not is_loopback(host):
            raise SetupError(setting, f"{must}: there is a password, and the way to {host} is open without TLS")


def _check_files(files: dict[str, str], *, tls: bool, turned_on: str) -> None:
    for setting, file in files.items():
        if not file:
            continue
        if not tls:
            raise SetupError(setting, f"is used only where {turned_on}")
        try:
            Path(file).open("rb").close()
        except OSError as error:
            raise SetupError(setting, f"{file}: {error.strerror}") from None
    certificate, key = (setting for setting in files if not setting.endswith("_ca"))
    if bool(files[certificate]) != bool(files[key]):
        missing, given = (key, certificate) if files[certificate] else (certificate, key)
        raise SetupError(missing, f"is missing; it belongs to {given}")


def _shown(security: BrokerSecurity | StoreSecurity) -> str:
    """Without the password, whoever prints it."""
    values = ((name, getattr(security, name)) for name in security.__struct_fields__)
    shown = (f"{name}={'***' if name == 'password' and value else repr(value)}" for name, value in values)
    return f"{type(security).__name__}({', '.join(shown)})"
