"""A real Flink cluster as two local processes: on loopback, killed and back again, ended."""

import json
import os
import re
import signal
import socket
import zipfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from app.cli.main import run
from app.core.settings import load_settings
from app.local import process
from app.local.flink import CONFIGURATION, TASK_SLOTS, ask, find_home
from app.local.services import FLINK_SERVICES, down, own_directory, status, up

pytestmark = [pytest.mark.flink, pytest.mark.slow]

MANAGER, WORKER = FLINK_SERVICES
LISTENING = "0A"
LOOPBACK = {"0100007F", "0000000000000000FFFF00000100007F"}
"""127.0.0.1, and the same as an IPv6 address, as the kernel writes them."""


@pytest.fixture(scope="module")
def directory(flink_address: str) -> Iterator[Path]:
    """A cluster of these tests' own; asking for the session's first skips where there is none."""
    directory = own_directory("test-flink")
    up(directory, FLINK_SERVICES)
    yield directory
    down(directory)


def pid_of(directory: Path, name: str) -> int:
    (found,) = (each.pid for each in status(directory) if each.name == name)
    assert found is not None
    return found


def kill(directory: Path, name: str) -> None:
    os.kill(pid_of(directory, name), signal.SIGKILL)
    assert process.wait_until(lambda: any(each.state == "down" for each in status(directory)), 10)


def listened_at(pid: int) -> list[str]:
    """The addresses, without their ports, of all TCP sockets on which a process listens."""
    sockets = set()
    for file in Path(f"/proc/{pid}/fd").iterdir():
        with suppress(FileNotFoundError):  # closed meanwhile
            sockets.add(os.readlink(file))
    rows = [
        line.split() for kind in ("tcp", "tcp6") for line in Path(f"/proc/{pid}/net/{kind}").read_text().splitlines()
    ]
    return [row[1].partition(":")[0] for row in rows if row[3] == LISTENING and f"socket:[{row[9]}]" in sockets]


def test_flink_started_offers_its_slots(flink_address: str) -> None:
    """One task manager is registered when `up` returns."""
    overview = ask(flink_address, "/overview")
    assert (1, TASK_SLOTS) == (overview["taskmanagers"], overview["slots-total"])


@pytest.mark.skipif(not Path("/proc/self/net/tcp").exists(), reason="the kernel shows sockets elsewhere")
@pytest.mark.parametrize("name", FLINK_SERVICES)
def test_flink_listens_on_loopback_alone(flink_address: str, service_directory: Path, name: str) -> None:
    """Whoever reaches its ports may run code: REST, RPC, blobs, data and metrics."""
    addresses = listened_at(pid_of(service_directory, name))
    assert (True, set()) == (len(addresses) >= 3, set(addresses) - LOOPBACK)


def test_flink_takes_no_uploads(flink_address: str) -> None:
    """The dashboard looks on; nobody submits a jar through it."""
    assert not ask(flink_address, "/config")["features"]["web-submit"]


def test_flink_configuration_has_no_unknown_name(flink_address: str) -> None:
    """Flink passes over a misspelt name in silence."""
    (jar,) = (find_home() / "lib").glob("flink-dist-*.jar")
    with zipfile.ZipFile(jar) as opened:
        options = [name for name in opened.namelist() if re.match(r"org/apache/flink/configuration/\w+Options", name)]
        known = b"".join(opened.read(name) for name in options)
    given = re.findall(r"^([\w.-]+):", CONFIGURATION, re.MULTILINE)
    assert [] == [name for name in given if name.encode() not in known]


def test_up_after_a_killed_task_manager_starts_it_alone(directory: Path) -> None:
    """The killed one, which the job manager has not missed yet, is not taken for the new one."""
    first, manager, killed = up(directory, FLINK_SERVICES), pid_of(directory, MANAGER), pid_of(directory, WORKER)
    kill(directory, WORKER)
    assert first == up(directory, FLINK_SERVICES)
    overview = ask(first.flink, "/overview")
    assert (1, TASK_SLOTS) == (overview["taskmanagers"], overview["slots-total"])
    assert manager == pid_of(directory, MANAGER)
    assert killed != pid_of(directory, WORKER)


def test_up_after_a_killed_job_manager_waits_until_the_task_manager_has_found_it(directory: Path) -> None:
    """It comes back at its address, over its checkpoints, and the task manager has lived on."""
    first, worker = up(directory, FLINK_SERVICES), pid_of(directory, WORKER)
    kept = directory / MANAGER / "checkpoints" / "kept"
    kept.mkdir(parents=True)
    kill(directory, MANAGER)
    assert first == up(directory, FLINK_SERVICES)
    assert (1, worker) == (ask(first.flink, "/overview")["taskmanagers"], pid_of(directory, WORKER))
    assert kept.exists()


def test_local_up_prints_a_setting_that_loads(
    directory: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """One line for the shell, and both processes in the status."""
    monkeypatch.setattr("app.local.services.DEFAULT_DIRECTORY", directory)
    with pytest.raises(SystemExit, match="0"):
        run(["local", "up", "--only", "flink"])
    (line,) = capsys.readouterr().out.splitlines()
    name, _, address = line.removeprefix("export ").partition("=")
    assert up(directory, FLINK_SERVICES).flink == load_settings({name: address}).flink
    with pytest.raises(SystemExit, match="0"):
        run(["local", "status", "--json"])
    found = map(json.loads, capsys.readouterr().out.splitlines())
    assert [(MANAGER, "running"), (WORKER, "running")] == [(each["name"], each["state"]) for each in found]


def test_up_of_a_port_taken_meanwhile_takes_another(flink_address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between choosing a port and binding it, somebody else may have bound it."""
    directory = own_directory("test-flink-port")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        ports = iter([[taken.getsockname()[1], *process.free_ports(1)], process.free_ports(2)])
        monkeypatch.setattr("app.local.flink.free_ports", lambda _count: next(ports))
        try:
            assert ask(up(directory, [MANAGER]).flink, "/overview") is not None
        finally:
            down(directory)


def test_down_leaves_nothing(directory: Path) -> None:
    """Both processes and all their files are gone."""
    up(directory, FLINK_SERVICES)
    pids = [pid_of(directory, name) for name in FLINK_SERVICES]
    assert [MANAGER, WORKER] == down(directory)
    assert ["", ""] == [process.command_line(pid) for pid in pids]
    assert not directory.exists()
