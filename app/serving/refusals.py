"""Why Redis lets no client in, as the setting to look at: from the error where it says so, else asked with bare sockets."""

import asyncio
import ssl

from app.core.errors import SetupError

PROBE_SECONDS = 2.0
OTHER_NAME_CODES = (62, 64)
"""Source: OpenSSL, X509_V_ERR_HOSTNAME_MISMATCH and X509_V_ERR_IP_ADDRESS_MISMATCH."""


def refusal_in(error: BaseException, address: str) -> SetupError | None:
    """What a broken TLS handshake means, which redis-py wraps into other errors; None where there is none."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, ssl.SSLCertVerificationError):
            reason = cause.verify_message.rstrip(".")
            if cause.verify_code in OTHER_NAME_CODES:
                return SetupError(
                    "store", f"the certificate of {address} is for another name ({reason}); use one in it"
                )
            return SetupError(
                "store_ca", f"the certificate of {address} is signed by nobody that is trusted ({reason})"
            )
        if isinstance(cause, ssl.SSLError) and "ALERT" in (cause.reason or ""):
            return SetupError("store_certificate", f"{address} asks for another client certificate ({cause.reason})")
        cause = cause.__cause__ or cause.__context__
    return None


async def wrong_scheme(host: str, port: int, address: str, *, tls: bool) -> SetupError | None:
    """Whether the server speaks TLS where we do not, or the other way round. None where that is not clear; takes 2 s at
    most."""
    try:
        async with asyncio.timeout(PROBE_SECONDS):
            if tls and await _speaks_plainly(host, port):
                return SetupError("store", f"must begin with redis://: {address} speaks no TLS")
            if not tls and await _speaks_tls(host, port):
                return SetupError("store", f"must begin with rediss://: {address} speaks TLS")
    except OSError:
        pass
    return None


async def _speaks_plainly(host: str, port: int) -> bool:
    reader, writer = await asyncio.open_connection(host, port)
    try:
        writer.write(b"PING\r\n")
        return await reader.read(1) in (b"+", b"-")
    finally:
        writer.transport.abort()


async def _speaks_tls(host: str, port: int) -> bool:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)  # looks only, and sends nothing afterwards
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    _, writer = await asyncio.open_connection(host, port, ssl=context, server_hostname=host)
    writer.transport.abort()
    return True
