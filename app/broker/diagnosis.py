"""Why a Kafka cluster lets no client in: asked with bare sockets, since clients say no more than that nobody answers.

A client's library meets a wrong certificate, a wrong name and a missing TLS as a connection that breaks. Here each has its
own error, which names the setting to look at. Nothing secret is sent.
"""

import socket
import ssl
import struct
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

from app.core.errors import SetupError
from app.core.security import BrokerSecurity, tls_context

SOCKET_SECONDS = 2.0
OTHER_NAME_CODES = (62, 64)
"""Source: OpenSSL, X509_V_ERR_HOSTNAME_MISMATCH and X509_V_ERR_IP_ADDRESS_MISMATCH."""

VERSIONS, METADATA = 18, 3
"""Kinds of request. Source: Kafka protocol, ApiVersions and Metadata."""


class _Server(NamedTuple):
    """One to ask, until `end` on the monotonic clock. name: as the user wrote it."""

    name: str
    host: str
    port: int
    end: float


def diagnose(servers: str, security: BrokerSecurity, seconds: float) -> SetupError | None:
    """What keeps clients with these settings out of `host:port[,…]`; None where nobody listens, nobody says anything, or
    nothing is wrong.

    Blocks, for so many seconds or little more; the first server with something to say counts.
    """
    end = time.monotonic() + seconds
    for name in servers.split(","):
        host, _, port = name.rpartition(":")
        try:
            found = _diagnose(_Server(name, host.strip("[]"), int(port), end), security)
        except OSError:  # nobody listens, or not for long
            continue
        if found is not None:
            return found
    return None


def _diagnose(server: _Server, security: BrokerSecurity) -> SetupError | None:
    if security.tls:
        return _diagnose_tls(server, security)
    if _answers(server, None, VERSIONS):
        return None if security.user or _answers(server, None, METADATA) else _asks_for_a_user(server)
    if _speaks_tls(server):
        return SetupError("broker_tls", f"must be true: {server.name} speaks TLS")
    return None


def _diagnose_tls(server: _Server, security: BrokerSecurity) -> SetupError | None:
    context = tls_context("broker", security)
    try:
        if _answers(server, context, VERSIONS):
            return None if security.user or _answers(server, context, METADATA) else _asks_for_a_user(server)
    except ssl.SSLCertVerificationError as error:
        if error.verify_code in OTHER_NAME_CODES:
            return SetupError(
                "broker",
                f"the certificate of {server.name} is for another name; use a name that is in it ({_short(error)})",
            )
        return SetupError(
            "broker_ca", f"the certificate of {server.name} is signed by nobody that is trusted ({_short(error)})"
        )
    except ssl.SSLError as error:
        if "ALERT" in (error.reason or ""):
            asked = "refuses the client certificate" if security.certificate else "asks for a client certificate"
            return SetupError("broker_certificate", f"{server.name} {asked} ({error.reason})")
    if _answers(server, None, VERSIONS):
        return SetupError("broker_tls", f"must be false: {server.name} speaks no TLS")
    return None


def _asks_for_a_user(server: _Server) -> SetupError:
    return SetupError("broker_user", f"{server.name} closes the connection of a client that does not say who it is")


def _answers(server: _Server, context: ssl.SSLContext | None, kind: int) -> bool:
    """Whether the server answers this request as a Kafka does. Raises: ssl.SSLError; OSError when nobody listens."""
    request = struct.pack(">hhih", kind, 0, kind, -1) + (struct.pack(">i", 0) if kind == METADATA else b"")
    with _connected(server, context) as connection:
        try:
            connection.sendall(struct.pack(">i", len(request)) + request)
            head = _receive(connection, 8)
        except ssl.SSLError:
            raise
        except OSError:
            return False
    return head[4:] == struct.pack(">i", kind)  # the number that we gave it


def _receive(connection: socket.socket, count: int) -> bytes:
    """So many bytes, or fewer when the other side ends."""
    received = b""
    while len(received) < count and (more := connection.recv(count - len(received))):
        received += more
    return received


def _speaks_tls(server: _Server) -> bool:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)  # looks only, and sends nothing afterwards
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    try:
        with _connected(server, context):
            return True
    except ssl.SSLError:
        return False


@contextmanager
def _connected(server: _Server, context: ssl.SSLContext | None) -> Iterator[socket.socket]:
    left = server.end - time.monotonic()
    if left <= 0:
        raise TimeoutError
    with socket.create_connection((server.host, server.port), timeout=min(SOCKET_SECONDS, left)) as plain:
        if context is None:
            yield plain
        else:
            with context.wrap_socket(plain, server_hostname=server.host) as wrapped:
                yield wrapped


def _short(error: ssl.SSLCertVerificationError) -> str:
    return error.verify_message.rstrip(".")
