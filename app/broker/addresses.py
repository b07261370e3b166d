"""Where a cluster is, as the user writes it: one scheme for each adapter, the same form behind it."""

from app.core.errors import SetupError
from app.core.settings import without_password


def servers_of(address: str, scheme: str) -> str:
    """scheme: `kafka://`. `kafka://a:9092,b:9092` -> `a:9092,b:9092`.

    Raises: SetupError for any other form.
    """
    servers = address.removeprefix(scheme).rstrip("/").split(",")
    for server in servers:
        host, separator, port = server.rpartition(":")
        if not address.startswith(scheme) or not host or not separator or not port.isdigit():
            shown = without_password(address)
            raise SetupError("broker", f"{shown!r} is not an address; write {scheme}host:port[,host:port]")
    return ",".join(servers)
