"""A Flink session cluster as two local processes, job manager and task manager, from PyFlink's own jars on loopback.

PyFlink lives in an environment of its own, `.venv-flink` (made by `make setup-flink`), and is never imported here: its
folder holds a whole Flink. The connector of `deploy/flink/pom.xml` is fetched once into `.local/flink/jars`.

Both run `java` itself rather than Flink's scripts, so that pid, log and signals are ours. The task manager has the job
manager's configuration, so it finds it again wherever it has come back; whatever has state is in the job manager's directory.
"""

import os
import re
import shutil
import socket
from collections.abc import Mapping
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from typing import Any, ClassVar

import msgspec

from app.core.errors import SetupError
from app.local.flink_jars import own_and_connector
from app.local.java import LOGGING, find_java
from app.local.process import ROOT, free_ports

TASK_SLOTS = 4

CONFIGURATION = """\
jobmanager.rpc.address: 127.0.0.1
jobmanager.rpc.port: {rpc_port}
jobmanager.bind-host: 127.0.0.1
rest.address: 127.0.0.1
rest.bind-address: 127.0.0.1
rest.port: {port}
taskmanager.host: 127.0.0.1
taskmanager.bind-host: 127.0.0.1
taskmanager.resource-id: taskmanager
taskmanager.numberOfTaskSlots: {slots}
taskmanager.cpu.cores: {slots}
taskmanager.memory.framework.heap.size: 128m
taskmanager.memory.framework.off-heap.size: 128m
taskmanager.memory.task.heap.size: {heap_mb}m
taskmanager.memory.task.off-heap.size: 0m
taskmanager.memory.managed.size: 256m
taskmanager.memory.network.min: 64m
taskmanager.memory.network.max: 64m
taskmanager.memory.jvm-metaspace.size: 256m
taskmanager.memory.jvm-overhead.min: 192m
taskmanager.memory.jvm-overhead.max: 192m
io.tmp.dirs: {directory}/tmp
execution.checkpointing.dir: file://{directory}/checkpoints
execution.checkpointing.savepoint-dir: file://{directory}/savepoints
web.submit.enable: false
metrics.fetcher.update-interval: 1000
web.refresh-interval: 200
heartbeat.interval: 2000
heartbeat.timeout: 10000
cluster.registration.error-delay: 1000
cluster.registration.max-timeout: 1000
cluster.registration.refused-registration-delay: 1000
"""

LOG_LEVELS = """\
logger.states.name=org.apache.flink.runtime.executiongraph
logger.states.level=INFO
logger.twice.name=org.apache.flink.metrics.MetricGroup
logger.twice.level=ERROR
"""
"""What becomes of a job is worth a line; that a Kafka sink names a metric twice, at each checkpoint, is not."""

JOB_MANAGER_MEMORY = ["-Xms128m", "-Xmx512m", "-XX:MaxMetaspaceSize=256m"]
TASK_HEAP_MB = 512


def task_heap_mb() -> int:
    """What the tasks' state may take, in MB: as `FLINK_HEAP_MB` says in the environment. Raises: SetupError for what is no number."""
    said = os.environ.get("FLINK_HEAP_MB", "")
    if said and not said.isdecimal():
        raise SetupError("FLINK_HEAP_MB", f"is {said!r}; it must be a number of MB, such as 2048")
    return int(said) if said else TASK_HEAP_MB


def task_manager_memory(configuration: str) -> list[str]:
    """Of the sizes in the configuration: both heaps; both off-heaps and network. Flink's scripts would calculate the same."""
    heap_mb = sum(map(int, re.findall(r"^taskmanager\.memory\.\w+\.heap\.size: (\d+)m$", configuration, re.MULTILINE)))
    return [f"-Xms{heap_mb}m", f"-Xmx{heap_mb}m", "-XX:MaxDirectMemorySize=192m", "-XX:MaxMetaspaceSize=256m"]


class FlinkJobManager(msgspec.Struct, frozen=True, tag="flink-jobmanager", tag_field="service"):
    """Takes jobs over REST at `port`. It forgets them when it is killed; their checkpoints stay in `directory`."""

    directory: str
    port: int
    rpc_port: int

    name: ClassVar[str] = "flink-jobmanager"
    start_seconds: ClassVar[float] = 60.0

    @classmethod
    def plan(cls, directory: Path) -> "FlinkJobManager":
        return cls(str(directory), *free_ports(2))

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def variables(self) -> dict[str, str]:
        """The settings of ours that lead there."""
        return {"HEADRACE_FLINK": self.address}

    @property
    def configuration(self) -> str:
        """The file on the command line by which the process is known again: its log, which Flink's dashboard shows."""
        return f"{self.directory}/log"

    def prepare(self) -> None:
        """Fetches the connector, and writes the configuration and what Java is to be told.

        Raises: SetupError without PyFlink, Java or Maven.
        """
        home = find_home()
        find_java()
        jars = own_and_connector(home / "lib")
        directory = Path(self.directory)
        shutil.rmtree(directory, ignore_errors=True)  # of a start that was broken off
        (directory / "tmp").mkdir(parents=True)
        link_jars(directory / "lib", home / "lib", *jars)
        (directory / "config.yaml").write_text(self.properties())
        (directory / "plugins").symlink_to(home / "plugins")
        (directory / "log4j2.properties").write_text(LOGGING + LOG_LEVELS)
        logging = f"-Dlog4j2.configurationFile={directory}/log4j2.properties"
        arguments = [*java_options(home), logging, "-cp", f"{directory}/lib/*"]
        (directory / "java.arguments").write_text("\n".join(f'"{word}"' for word in arguments))

    def properties(self) -> str:
        """What its configuration says, and the task manager's."""
        values = {
            "port": self.port,
            "rpc_port": self.rpc_port,
            "directory": self.directory,
            "slots": TASK_SLOTS,
            "heap_mb": task_heap_mb(),
        }
        return CONFIGURATION.format(**values)

    def command(self) -> list[str]:
        main = "org.apache.flink.runtime.entrypoint.StandaloneSessionClusterEntrypoint"
        return _command(self.directory, self.directory, [*JOB_MANAGER_MEMORY, main])

    def environment(self) -> Mapping[str, str]:
        return _environment(self.directory)

    def answers(self) -> bool:
        """Whether its REST server does."""
        return ask(self.address, "/overview") is not None


class FlinkTaskManager(msgspec.Struct, frozen=True, tag="flink-taskmanager", tag_field="service"):
    """Runs the jobs of the job manager beside it, in `flink-jobmanager` of the same directory, in four slots."""

    directory: str

    name: ClassVar[str] = "flink-taskmanager"
    start_seconds: ClassVar[float] = 60.0

    @classmethod
    def plan(cls, directory: Path) -> "FlinkTaskManager":
        return cls(str(directory))

    @property
    def manager(self) -> str:
        """The job manager's directory."""
        return str(Path(self.directory).with_name(FlinkJobManager.name))

    @property
    def address(self) -> str:
        """The job manager's; empty where there is none."""
        try:
            port = re.search(r"^rest\.port: (\d+)$", Path(self.manager, "config.yaml").read_text(), re.MULTILINE)
        except FileNotFoundError:
            return ""
        return f"http://127.0.0.1:{port[1]}" if port else ""

    @property
    def variables(self) -> dict[str, str]:
        return {}

    @property
    def configuration(self) -> str:
        """The file on the command line by which the process is known again: its log, which Flink's dashboard shows."""
        return f"{self.directory}/log"

    def prepare(self) -> None:
        (Path(self.directory) / "tmp").mkdir(parents=True, exist_ok=True)

    def command(self) -> list[str]:
        main = "org.apache.flink.runtime.taskexecutor.TaskManagerRunner"
        memory = task_manager_memory(Path(self.manager, "config.yaml").read_text())
        return _command(self.directory, self.manager, [*memory, main])

    def environment(self) -> Mapping[str, str]:
        return _environment(self.manager)

    def answers(self) -> bool:
        """Whether the job manager has its slots and it can be reached: one that was killed stays listed for a while."""
        listed = (ask(self.address, "/taskmanagers") if self.address else None) or {}
        return any(each["slotsNumber"] and _is_open(each["path"]) for each in listed.get("taskmanagers", ()))


def find_home() -> Path:
    """PyFlink's folder in `.venv-flink`; with FLINK=2.2 in the environment, that in `.venv-flink-2.2`.

    Raises: SetupError with what to type, also where an installation has not come to its end.
    """
    release = os.environ.get("FLINK", "")
    kind = f"flink-{release}" if release else "flink"
    place = ROOT / f".venv-{kind}"
    found = next(place.glob("lib/python3.*/site-packages/pyflink"), None)
    if found is None or not (place / f"{kind}.stamp").exists():
        make = f"make setup-flink FLINK={release}" if release else "make setup-flink"
        raise SetupError("pyflink", f"the local Flink needs it in {place.name}; type: {make}")
    return found


def link_jars(folder: Path, *sources: Path) -> None:
    """A new folder with links to all jars of others, as Flink wants them: in one place (`FLINK_LIB_DIR`)."""
    folder.mkdir()
    for source in sources:
        for jar in source.glob("*.jar"):
            (folder / jar.name).symlink_to(jar)


def java_options(home: Path) -> list[str]:
    """What Flink's own configuration tells Java: the packages that are open to it.

    Raises: SetupError when it does not say so where it did.
    """
    file = home / "conf" / "config.yaml"
    options = re.search(r"^ +all: (--add-.+)$", file.read_text(), re.MULTILINE)
    if options is None:
        raise SetupError(str(file), "has no env.java.opts.all; is it a Flink from 2.2 on?")
    return options[1].split()


def ask(address: str, path: str) -> Any:
    """What Flink's REST answers, decoded; None where it does not."""
    connection = HTTPConnection(address.removeprefix("http://"), timeout=5)
    try:
        connection.request("GET", path)
        answer = connection.getresponse()
        return msgspec.json.decode(answer.read()) if answer.status == 200 else None
    except (OSError, HTTPException, msgspec.DecodeError):
        return None
    finally:
        connection.close()


def _command(directory: str, manager: str, memory_and_main: list[str]) -> list[str]:
    own = [f"-Dlog.file={directory}/log", f"-Djava.io.tmpdir={directory}/tmp"]
    return [str(find_java()), f"@{manager}/java.arguments", *own, *memory_and_main, "--configDir", manager]


def _environment(manager: str) -> Mapping[str, str]:
    """Without that variable Flink loads plugins from a folder of that name wherever it was started."""
    return {**os.environ, "FLINK_PLUGINS_DIR": f"{manager}/plugins"}


def _is_open(path: str) -> bool:
    """Whether somebody listens at `pekko.tcp://flink@127.0.0.1:41893/user/rpc/taskmanager_0`."""
    found = re.search(r"@127\.0\.0\.1:(\d+)/", path)
    try:
        with socket.create_connection(("127.0.0.1", int(found[1]) if found else 0), timeout=2):
            return True
    except OSError:
        return False
