"""`python -m app local`: what it prints, and its exit codes."""

import json
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from app.cli.main import run
from app.core.settings import load_settings
from app.local.services import Addresses, down, own_directory, up

pytestmark = pytest.mark.redis


@pytest.fixture(autouse=True)
def directory(redis_addresses: Addresses, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Servers of this test's own instead of the developer's."""
    directory = own_directory("test-command")
    monkeypatch.setattr("app.local.services.DEFAULT_DIRECTORY", directory)
    yield directory
    down(directory)


def exit_code(*arguments: str) -> object:
    with pytest.raises(SystemExit) as left:
        run(["local", *arguments])
    return left.value.code


def test_local_up_prints_lines_for_the_shell(directory: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What is on stdout can be evaluated; progress is on stderr."""
    assert 0 == exit_code("up", "--only", "redis")
    shown = capsys.readouterr()
    assert f"export HEADRACE_STORE=unix://{directory}/redis/redis.sock\n" == shown.out
    assert "redis: starting at redis://127.0.0.1:" in shown.err


def test_local_up_secure_prints_settings_that_load_and_no_password(
    directory: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """One shell line a setting; the password stays in a file of its owner's, and Redis knows no more than its hash."""
    assert 0 == exit_code("up", "--secure", "--only", "secure-redis")
    shown = capsys.readouterr()
    lines = [line.removeprefix("export ").partition("=") for line in shown.out.splitlines()]
    loaded = load_settings({name: value for name, _, value in lines})
    assert loaded.store.startswith("rediss://127.0.0.1:")
    assert "admin" == loaded.store_user
    file = directory / "secure-redis" / "admin.password"
    assert (loaded.store_password, 0o600) == (file.read_text(), stat.S_IMODE(file.stat().st_mode))
    assert loaded.store_password not in shown.out + shown.err + (directory / "secure-redis" / "redis.conf").read_text()


def test_local_up_json_is_one_object(capsys: pytest.CaptureFixture[str]) -> None:
    """A script reads the addresses of what runs."""
    assert 0 == exit_code("up", "--only", "redis", "--json")
    assert {"redis", "redis_socket"} == json.loads(capsys.readouterr().out).keys()


def test_local_status_json_says_what_answers(capsys: pytest.CaptureFixture[str]) -> None:
    """One object a server, exit code 0 when all answer."""
    exit_code("up", "--only", "redis")
    capsys.readouterr()
    assert 0 == exit_code("status", "--json")
    (server,) = map(json.loads, capsys.readouterr().out.splitlines())
    assert ("redis", "running") == (server["name"], server["state"])


def test_local_status_of_nothing_leaves_with_1(capsys: pytest.CaptureFixture[str]) -> None:
    """A script can ask whether servers are there."""
    assert 1 == exit_code("status")
    assert ("", "nothing was started; type: python -m app local up\n") == capsys.readouterr()


def test_local_down_names_what_it_ended(directory: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """After `down` nothing is left, and saying it twice is no error."""
    exit_code("up", "--only", "redis")
    capsys.readouterr()
    assert 0 == exit_code("down", "--json")
    assert {"ended": ["redis"]} == json.loads(capsys.readouterr().out)
    assert not directory.exists()
    assert 0 == exit_code("down")


def test_local_down_all_ends_every_set_of_servers(
    directory: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """What a killed test run has left is ended too; folders without servers stay."""
    monkeypatch.setattr("app.local.services.LOCAL", tmp_path)
    (tmp_path / "jars").mkdir()
    for name in ("one", "two"):
        up(tmp_path / name, ["redis"])
    up(directory, ["redis"])
    assert 0 == exit_code("down", "--all", "--json")
    assert {"ended": ["redis", "redis"]} == json.loads(capsys.readouterr().out)
    assert ["jars"] == [folder.name for folder in tmp_path.iterdir()]
    assert directory.exists()
