"""Kafka and Redis as real local processes: started, found again, restarted over their data, ended."""

import os
import signal
import socket
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from app.core.errors import SetupError
from app.local import process
from app.local.kafka import KafkaServer, count_brokers
from app.local.redis import RedisServer
from app.local.services import Addresses, down, own_directory, running, status, up

pytestmark = [pytest.mark.kafka, pytest.mark.redis]


@pytest.fixture
def directory(kafka_address: str, redis_address: str) -> Iterator[Path]:
    """A place for servers of this test's own; asking for the session's servers first skips where there are none."""
    directory = own_directory("test-local")
    yield directory
    down(directory)


def send_to_redis(address: str, command: bytes) -> bytes:
    port = int(address.removeprefix("redis://127.0.0.1:").removesuffix("/0"))
    with socket.create_connection(("127.0.0.1", port), timeout=5) as connection:
        connection.sendall(command)
        return connection.recv(200)


def pid_of(directory: Path, name: str) -> int:
    (found,) = (each.pid for each in status(directory) if each.name == name)
    assert found is not None
    return found


def test_kafka_started_lists_itself(kafka_address: str) -> None:
    """The broker answers in Kafka's own protocol, on loopback."""
    host, port = kafka_address.removeprefix("kafka://").split(":")
    assert ("127.0.0.1", 1) == (host, count_brokers(host, int(port)))


def test_redis_started_evicts_nothing(redis_address: str) -> None:
    """The server refuses writes rather than forget what it holds."""
    assert b"noeviction" in send_to_redis(redis_address, b"CONFIG GET maxmemory-policy\r\n")


def test_redis_started_stores_nothing_on_disk(redis_address: str) -> None:
    """The server takes no snapshots."""
    assert send_to_redis(redis_address, b"CONFIG GET save\r\n").endswith(b"$4\r\nsave\r\n$0\r\n\r\n")


def test_redis_socket_is_private(redis_socket: str) -> None:
    """Only its owner may use the unix socket."""
    mode = Path(redis_socket.removeprefix("unix://")).stat().st_mode
    assert stat.S_ISSOCK(mode)
    assert 0o700 == stat.S_IMODE(mode)


def test_up_called_twice_finds_the_same_servers(directory: Path) -> None:
    """A second `up` starts nothing and returns the same addresses."""
    first = up(directory, ["redis"])
    pid = pid_of(directory, "redis")
    assert (first, pid) == (up(directory, ["redis"]), pid_of(directory, "redis"))


def test_up_after_a_killed_redis_starts_it_at_its_address(directory: Path) -> None:
    """A pid file of a process that has ended is no reason to believe in it."""
    first = up(directory, ["redis"])
    os.kill(pid_of(directory, "redis"), signal.SIGKILL)
    assert process.wait_until(lambda: status(directory)[0].state == "down", 10)
    assert first == up(directory, ["redis"])
    assert b"+PONG" in send_to_redis(first.redis, b"PING\r\n")


def test_up_names_no_server_that_has_ended(directory: Path) -> None:
    """The addresses are those of servers that run, whichever were asked for."""
    up(directory, ["redis"])
    os.kill(pid_of(directory, "redis"), signal.SIGKILL)
    assert process.wait_until(lambda: status(directory)[0].state == "down", 10)
    assert Addresses() == up(directory, [])


def test_up_after_a_killed_kafka_starts_it_over_its_data(directory: Path) -> None:
    """A killed broker comes back as the same cluster, at its address."""
    first = up(directory, ["kafka"])
    marks = directory / "kafka" / "data" / "meta.properties"
    cluster = marks.read_text()
    os.kill(pid_of(directory, "kafka"), signal.SIGKILL)
    assert process.wait_until(lambda: status(directory)[0].state == "down", 10)
    assert first == up(directory, ["kafka"])
    assert cluster == marks.read_text()


def test_down_leaves_nothing(directory: Path) -> None:
    """Processes, data, sockets and pid files are gone, and a second `down` finds nothing."""
    up(directory, ["redis"])
    pid = pid_of(directory, "redis")
    assert ["redis"] == down(directory)
    assert "" == process.command_line(pid)
    assert not directory.exists()
    assert [] == down(directory)


def test_down_of_one_service_keeps_the_other(directory: Path) -> None:
    """`--only` ends what it names."""
    up(directory, ["kafka", "redis"])
    assert ["kafka"] == down(directory, ["kafka"])
    assert [("redis", "running")] == [(each.name, each.state) for each in status(directory)]


def test_down_with_a_foreign_pid_kills_nobody(directory: Path) -> None:
    """A number that another process uses now is not signalled."""
    up(directory, ["redis"])
    os.kill(pid_of(directory, "redis"), signal.SIGKILL)
    (directory / "redis" / "pid").write_text(str(os.getpid()))
    assert ["redis"] == down(directory)


def test_running_that_fails_inside_ends_its_servers(directory: Path) -> None:
    """An error in the block does not leave a server behind."""
    with pytest.raises(KeyError), running(directory, ["redis"]):
        raise KeyError
    assert not directory.exists()


def test_running_in_two_directories_do_not_meet(directory: Path) -> None:
    """Each directory has servers of its own."""
    other = directory.with_name(f"{directory.name}-other")
    with running(directory, ["redis"]) as one, running(other, ["redis"]) as two:
        send_to_redis(one.redis, b"SET where one\r\n")
        assert b"$-1\r\n" == send_to_redis(two.redis, b"GET where\r\n")


def test_up_of_a_server_that_cannot_start_says_its_last_lines(
    directory: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """What the server wrote before it ended is shown, and nothing of it stays."""
    monkeypatch.setattr("app.local.redis.CONFIGURATION", "port {port}\nno-such-directive {socket}{directory}\n")
    with pytest.raises(SetupError, match="redis: ended at once"):
        up(directory, ["redis"])
    assert "no-such-directive" in capsys.readouterr().err
    assert [] == status(directory)


def test_up_of_a_port_taken_meanwhile_takes_another(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between choosing a port and binding it, somebody else may have bound it."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        ports = iter([[taken.getsockname()[1]], process.free_ports(1)])
        monkeypatch.setattr("app.local.redis.free_ports", lambda _count: next(ports))
        addresses = up(directory, ["redis"])
    assert b"+PONG" in send_to_redis(addresses.redis, b"PING\r\n")


def test_up_in_a_long_path_puts_the_socket_elsewhere(directory: Path) -> None:
    """A path too long for a unix socket is no obstacle, and the other place is cleaned up too."""
    deep = directory / ("d" * 120)
    addresses = up(deep, ["redis"])
    path = Path(addresses.redis_socket.removeprefix("unix://"))
    assert path.is_socket()
    down(deep)
    assert not path.parent.exists()


def test_up_of_an_unknown_service_is_refused(tmp_path: Path) -> None:
    """A wrong name is an error that lists the right ones."""
    with pytest.raises(SetupError, match="mysql: no such service; there are kafka, redis, secure-kafka, secure-redis"):
        up(tmp_path / "services", ["mysql"])


def test_own_directory_sweeps_those_of_dead_processes(directory: Path) -> None:
    """Servers of a test run that was killed end with the next run."""
    dead = directory.with_name("test-swept-999999999")
    up(dead, ["redis"])
    pid = pid_of(dead, "redis")
    own_directory("test-swept")
    assert "" == process.command_line(pid)
    assert not dead.exists()


def test_servers_are_known_by_their_configuration_file() -> None:
    """The file that identifies a process stands on its command line."""
    assert RedisServer("/d", 1, "/d/s").configuration == "/d/redis.conf"
    assert KafkaServer("/d", 1, 2).configuration == "/d/server.properties"


def test_addresses_of_nothing_are_empty() -> None:
    """A service that was not asked for has no address."""
    assert Addresses() == Addresses(kafka="", redis="", redis_socket="")
