"""One Redis server as a local process: loopback TCP and a unix socket, nothing on disk, nothing evicted."""

import os
import socket
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar

import msgspec

from app.core.errors import SetupError
from app.local.process import find_program, free_ports, run_quietly, say

CONFIGURATION = """\
bind 127.0.0.1
port {port}
unixsocket {socket}
unixsocketperm 700
dir {directory}
save ""
appendonly no
maxmemory-policy noeviction
daemonize no
set-proc-title no
"""

LONGEST_SOCKET_BYTES = 100
"""A unix socket's path has 108 bytes on Linux and 104 on macOS, its end included."""

INSTALL = ["apt-get", "install", "-y", "-q", "--no-install-recommends", "redis-server"]


class RedisServer(msgspec.Struct, frozen=True, tag="redis", tag_field="service"):
    """A server whose files are all in `directory`; its socket too, unless that path is too long for one."""

    directory: str
    port: int
    socket: str

    name: ClassVar[str] = "redis"
    start_seconds: ClassVar[float] = 20.0

    @classmethod
    def plan(cls, directory: Path) -> "RedisServer":
        path = directory / "redis.sock"
        if len(os.fsencode(path)) > LONGEST_SOCKET_BYTES:
            path = Path(tempfile.mkdtemp(prefix="headrace-")) / "redis.sock"
        return cls(str(directory), free_ports(1)[0], str(path))

    @property
    def address(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    @property
    def socket_address(self) -> str:
        return f"unix://{self.socket}"

    @property
    def variables(self) -> dict[str, str]:
        """The settings of ours that lead there."""
        return {"HEADRACE_STORE": self.socket_address}

    @property
    def configuration(self) -> str:
        """The file that stands on the command line, by which the process is known again."""
        return f"{self.directory}/redis.conf"

    def prepare(self) -> None:
        """Writes the configuration, and installs Debian's package when root and there is no `redis-server`.

        Raises: SetupError with the command to type.
        """
        find_redis()
        Path(self.directory).mkdir(parents=True, exist_ok=True)
        Path(self.configuration).write_text(self.configuration_text())

    def configuration_text(self) -> str:
        values = {"port": self.port, "socket": self.socket, "directory": self.directory}
        return CONFIGURATION.format(**values)

    def command(self) -> list[str]:
        return [str(find_redis()), self.configuration]

    def environment(self) -> Mapping[str, str]:
        return os.environ

    def answers(self) -> bool:
        try:
            with socket.create_connection(("127.0.0.1", self.port), timeout=2) as connection:
                connection.sendall(b"PING\r\n")
                return connection.recv(16).startswith(b"+PONG")
        except OSError:
            return False


def find_redis() -> Path:
    """`redis-server` from the PATH, after Debian's package was installed if need and right are there.

    Raises: SetupError with the command to type.
    """
    found = find_program("redis-server")
    if found is not None:
        return found
    apt = find_program("apt-get")
    if apt is None:
        raise SetupError("redis-server", "is not on the PATH; install Redis 6.2 or newer")
    if os.geteuid() != 0:
        raise SetupError("redis-server", "is not on the PATH; type: sudo apt-get install redis-server")
    say("redis: installing Debian's redis-server")
    # RUNLEVEL=1 keeps the package from starting a server of its own.
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive", "RUNLEVEL": "1"}
    run_quietly([str(apt), "update", "-q"], "apt-get update", environment)
    run_quietly([str(apt), *INSTALL[1:]], "installing redis-server", environment)
    found = find_program("redis-server")
    if found is None:
        raise SetupError("redis-server", "is not on the PATH even after apt-get install redis-server")
    return found
