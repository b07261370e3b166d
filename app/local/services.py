"""Kafka, Redis and Flink up, down and their status: processes that are found again by whoever comes later.

Everything of one set of servers is in one directory: `state.json` (what was started, and where it listens), and a
folder a server with its configuration, data, log and pid file. A server that died comes back over its data, at its
address. `down` removes all of it. Different directories do not know of each other.
"""

import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

import msgspec

from app.core.errors import SetupError
from app.local import process
from app.local.flink import FlinkJobManager, FlinkTaskManager
from app.local.kafka import KafkaServer
from app.local.process import LOCAL, last_lines, locked, say
from app.local.redis import RedisServer
from app.local.secure import SecureKafka, SecureRedis

SERVICES = ("kafka", "redis")
SECURE_SERVICES = ("secure-kafka", "secure-redis")
FLINK_SERVICES = ("flink-jobmanager", "flink-taskmanager")
ALL_SERVICES = (*SERVICES, *SECURE_SERVICES, *FLINK_SERVICES)
DEFAULT_DIRECTORY = LOCAL / "services"

PORT_ATTEMPTS = 3
"""A free port may be taken by somebody else before the server binds it."""

PORT_TAKEN = ("already in use", "BindException")
"""So a log line says that: Kafka's, Redis' and Flink's."""

Server = KafkaServer | RedisServer | SecureKafka | SecureRedis | FlinkJobManager | FlinkTaskManager
_PLANS: dict[str, Callable[[Path], Server]] = {
    kind.name: kind.plan
    for kind in (KafkaServer, RedisServer, SecureKafka, SecureRedis, FlinkJobManager, FlinkTaskManager)
}


class Addresses(msgspec.Struct, frozen=True, omit_defaults=True):
    """Where the servers listen; empty for one that was not asked for. variables: the settings that lead to secure ones."""

    kafka: str = ""
    redis: str = ""
    redis_socket: str = ""
    flink: str = ""
    variables: dict[str, str] = {}


class ServiceStatus(msgspec.Struct, frozen=True):
    """One server. `silent`: its process runs but does not answer; `down`: it was started and has ended."""

    name: str
    state: Literal["running", "silent", "down"]
    address: str
    pid: int | None
    log: str


def up(directory: Path, services: Sequence[str] = SERVICES) -> Addresses:
    """Starts what does not run yet, waits until everything answers, and returns the addresses of all that runs.

    Called twice it finds the running servers. Interrupted, it may leave servers running, which `down` ends.
    Raises: SetupError for what is missing, or for a server that does not start, after its last log lines were said.
    """
    directory = directory.absolute()
    for name in services:
        if name not in _PLANS:
            raise SetupError(name, f"no such service; there are {', '.join(_PLANS)}")
    with locked(directory.parent):
        servers = _load(directory)
        for name in services:
            _start(directory, servers, name)
        return _addresses(servers)


def down(directory: Path, services: Sequence[str] = ALL_SERVICES) -> list[str]:
    """Ends the servers and removes their files. Returns the names of those that there were."""
    directory = directory.absolute()
    if not directory.exists():
        return []
    with locked(directory.parent):
        servers = _load(directory)
        ended = [name for name in services if name in servers]
        for name in ended:
            _end(servers.pop(name))
            _save(directory, servers)
        if not servers:
            shutil.rmtree(directory)
    return ended


def status(directory: Path) -> list[ServiceStatus]:
    """What was started in that directory, and whether it answers now. Changes nothing."""
    found = []
    for server in _load(directory.absolute()).values():
        pid = _pid(server)
        state: Literal["running", "silent", "down"] = "down"
        if pid is not None:
            state = "running" if server.answers() else "silent"
        found.append(ServiceStatus(server.name, state, server.address, pid, str(_log(server))))
    return found


@contextmanager
def running(directory: Path, services: Sequence[str] = SERVICES) -> Iterator[Addresses]:
    """Servers of one's own for as long as the block runs; always taken down."""
    try:
        yield up(directory, services)
    finally:
        down(directory)


def directories() -> list[Path]:
    """Every directory of this clone with servers in it, those of test runs among them."""
    return sorted(file.parent for file in LOCAL.glob("*/state.json"))


def own_directory(purpose: str) -> Path:
    """A directory for servers that end with this process, after those of dead processes have been taken down."""
    for left in LOCAL.glob(f"{purpose}-*"):
        pid = left.name.removeprefix(f"{purpose}-")
        if pid.isdigit() and not process.command_line(int(pid)):
            down(left)
    return LOCAL / f"{purpose}-{os.getpid()}"


def _start(directory: Path, servers: dict[str, Server], name: str) -> None:
    """Makes sure that one server answers; one that was never up takes other ports when its own were taken."""
    for attempt in range(PORT_ATTEMPTS):
        fresh = name not in servers
        if fresh:
            server = _PLANS[name](directory / name)
            server.prepare()
            servers[name] = server
            _save(directory, servers)
        failure = _launch(servers[name])
        if failure is None:
            return
        lines = last_lines(_log(servers[name]))
        if fresh:
            _end(servers.pop(name))
            _save(directory, servers)
        if not fresh or attempt + 1 == PORT_ATTEMPTS or not any(said in line for line in lines for said in PORT_TAKEN):
            break
    for line in lines:
        say(f"  {line}")
    raise SetupError(name, f"{failure}; its last log lines are above")


def _launch(server: Server) -> str | None:
    """Starts the process unless it runs, and waits for its answer. Returns why there is none, or None."""
    if _pid(server) is None:
        say(f"{server.name}: starting at {server.address}")
        process.spawn(server.command(), _log(server), _pid_file(server), server.environment())
    if not process.wait_until(lambda: server.answers() or _pid(server) is None, server.start_seconds):
        return f"does not answer after {server.start_seconds:.0f} s"
    return None if _pid(server) is not None else "ended at once"


def _end(server: Server) -> None:
    say(f"{server.name}: ending")
    process.kill(_pid_file(server), server.configuration)
    shutil.rmtree(server.directory, ignore_errors=True)
    if isinstance(server, RedisServer) and Path(server.socket).parent != Path(server.directory):
        shutil.rmtree(Path(server.socket).parent, ignore_errors=True)


def _pid(server: Server) -> int | None:
    return process.find(_pid_file(server), server.configuration)


def _pid_file(server: Server) -> Path:
    return Path(server.directory) / "pid"


def _log(server: Server) -> Path:
    return Path(server.directory) / "log"


def _addresses(servers: dict[str, Server]) -> Addresses:
    alive = {name: server for name, server in servers.items() if _pid(server) is not None}
    kafka, redis, flink = alive.get("kafka"), alive.get("redis"), alive.get("flink-jobmanager")
    secure = [alive[name].variables for name in SECURE_SERVICES if name in alive]
    return Addresses(
        kafka=kafka.address if kafka else "",
        redis=redis.address if redis else "",
        redis_socket=redis.socket_address if isinstance(redis, RedisServer) else "",
        flink=flink.address if flink else "",
        variables={name: value for variables in secure for name, value in variables.items()},
    )


def _load(directory: Path) -> dict[str, Server]:
    """Raises: SetupError when the file is not one of ours."""
    file = directory / "state.json"
    try:
        return msgspec.json.decode(file.read_bytes(), type=dict[str, Server])
    except FileNotFoundError:
        return {}
    except msgspec.DecodeError as error:
        raise SetupError(str(file), f"cannot be read ({error}); end the servers by hand and remove it") from None


def _save(directory: Path, servers: dict[str, Server]) -> None:
    """Replaces the file in one step, so that a crash leaves the old state or the new one."""
    directory.mkdir(parents=True, exist_ok=True)
    fresh = directory / "state.json.new"
    fresh.write_bytes(msgspec.json.encode(servers))
    fresh.replace(directory / "state.json")
