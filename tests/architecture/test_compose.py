"""docker-compose.yml and deploy/Dockerfile against the code: they cannot run here, so every word in them is looked up."""

import re
import shlex
import tomllib
from pathlib import Path
from typing import Any

import msgspec
import pytest
import typer
import yaml

from app.cli.main import cli
from app.core.durations import parse_duration_ms
from app.core.settings import PREFIX, Settings, load_settings

ROOT = Path(__file__).resolve().parents[2]
COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
OURS = {
    name: service
    for name, service in SERVICES.items()
    if service.get("build", {}).get("dockerfile") == "deploy/Dockerfile"  # those of Flink: test_deployment.py
}
DOCKERFILE = [
    line.split(maxsplit=1)
    for line in (ROOT / "deploy" / "Dockerfile").read_text().replace("\\\n", " ").splitlines()
    if line and not line.startswith("#")
]
IMAGE_TAG = re.compile(r"[a-z0-9/._-]+:[0-9][\w.-]*")


def instructions(name: str) -> list[str]:
    return [words[1] for words in DOCKERFILE if words[0] == name]


def app_arguments(command: list[str]) -> list[str]:
    """What follows `python -m app`."""
    assert ["python", "-m", "app"] == command[:3]
    return command[3:]


def check_arguments(arguments: list[str]) -> None:
    """Parses arguments as the command line does, without running the command."""
    command: Any = typer.main.get_command(cli)
    context = command.make_context("app", ["--help"], resilient_parsing=True)
    while hasattr(command, "commands"):
        name, *arguments = arguments
        assert name in command.commands, f"no such command: {name}"
        command = command.commands[name]
    with command.make_context(command.name, list(arguments), parent=context):
        pass


def environment(service: dict[str, Any]) -> dict[str, str]:
    """Its variables, with `${NAME:-default}` as it is when NAME is unset."""
    variables = service.get("environment", {})
    return {name: re.sub(r"\$\{\w+:-(.*?)\}", r"\1", str(value)) for name, value in variables.items()}


@pytest.mark.parametrize("name", sorted(OURS))
def test_compose_command_is_one_the_command_line_takes(name: str) -> None:
    """Commands and options of our containers exist."""
    check_arguments(app_arguments(OURS[name]["command"]))


def test_dockerfile_command_is_one_the_command_line_takes() -> None:
    """What an image runs by itself exists too."""
    (command,) = instructions("CMD")
    check_arguments(app_arguments(msgspec.json.decode(command, type=list[str])))


@pytest.mark.parametrize("name", sorted(OURS))
def test_compose_variables_are_settings_that_load(name: str) -> None:
    """Each HEADRACE_* variable is a setting, with a value that it takes."""
    variables = environment(OURS[name])
    loaded = load_settings(variables)
    known = {field.name for field in msgspec.structs.fields(Settings)}
    ours = {variable.removeprefix(PREFIX).lower() for variable in variables if variable.startswith(PREFIX)}
    assert ours
    assert ours <= known
    assert {"ANTHROPIC_API_KEY"} == {variable for variable in variables if not variable.startswith(PREFIX)}
    assert "kafka://kafka:19092" == loaded.broker


@pytest.mark.parametrize("name", sorted(OURS))
def test_compose_addresses_are_services_that_listen(name: str) -> None:
    """Broker and store are names of services, at ports where those listen."""
    loaded = load_settings(environment(OURS[name]))
    broker, broker_port = loaded.broker.removeprefix("kafka://").split(":")
    assert f"//:{broker_port}" in SERVICES[broker]["environment"]["KAFKA_LISTENERS"]
    assert f"//{broker}:{broker_port}" in SERVICES[broker]["environment"]["KAFKA_ADVERTISED_LISTENERS"]
    store, store_port = loaded.store.removeprefix("redis://").removesuffix("/0").split(":")
    assert [store_port] == [port.rsplit(":", 1)[1] for port in SERVICES[store]["ports"]]


def test_compose_kafka_is_the_version_of_the_local_one() -> None:
    """Docker and deploy/pom.xml run the same broker."""
    pom = (ROOT / "deploy" / "pom.xml").read_text()
    match = re.search(r"<kafka.version>(.+)</kafka.version>", pom)
    assert match is not None
    assert f"apache/kafka:{match[1]}" == SERVICES["kafka"]["image"]


def test_compose_default_addresses_are_the_ports_on_the_host() -> None:
    """A command on the host reaches the containers without any setting."""
    defaults = Settings()
    assert ["127.0.0.1:9092:9092"] == SERVICES["kafka"]["ports"]
    assert "HOST://127.0.0.1:9092" in SERVICES["kafka"]["environment"]["KAFKA_ADVERTISED_LISTENERS"]
    assert ["127.0.0.1:6379:6379"] == SERVICES["redis"]["ports"]
    assert ("kafka://127.0.0.1:9092", "redis://127.0.0.1:6379/0") == (defaults.broker, defaults.store)


def test_compose_publishes_ports_on_loopback_only() -> None:
    """Nothing without authentication is reachable from other machines."""
    ports = [port for service in SERVICES.values() for port in service.get("ports", [])]
    assert ports
    assert [] == [port for port in ports if not port.startswith("127.0.0.1:")]


def test_compose_images_are_pinned() -> None:
    """Every image that is not built here has a version."""
    images = [service["image"] for service in SERVICES.values() if "build" not in service]
    images += [line.split()[0] for line in instructions("FROM")]
    assert [] == [image for image in images if not IMAGE_TAG.fullmatch(image)]


def test_compose_long_running_services_restart_and_drop_rights() -> None:
    """No container may gain rights, and what should run comes back."""
    for name, service in SERVICES.items():
        assert ["ALL"] == service["cap_drop"], name
        assert ["no-new-privileges:true"] == service["security_opt"], name
        assert name == "topics" or "unless-stopped" == service["restart"], name


def test_compose_waits_for_what_can_answer() -> None:
    """A dependency on health is one on a service that has a health check."""
    for name, service in SERVICES.items():
        for needed, how in service.get("depends_on", {}).items():
            healthy = "healthcheck" in SERVICES[needed]
            assert healthy or "service_healthy" != how["condition"], f"{name} on {needed}"


def test_compose_grace_period_is_the_one_the_worker_plans_with() -> None:
    """Docker kills the worker later than the worker expects."""
    grace_ms = parse_duration_ms(SERVICES["worker"]["stop_grace_period"])
    assert load_settings(environment(SERVICES["worker"])).grace_ms < grace_ms


def test_compose_redis_forgets_nothing() -> None:
    """The container keeps to the policy that the store asks for."""
    command = SERVICES["redis"]["command"]
    assert "noeviction" == command[command.index("--maxmemory-policy") + 1]


def test_compose_volumes_are_declared() -> None:
    """Named volumes exist."""
    used = {each.split(":")[0] for service in SERVICES.values() for each in service.get("volumes", [])}
    assert set(COMPOSE["volumes"]) == used


def test_dockerfile_copies_what_exists_and_is_not_ignored() -> None:
    """Each copied path is in the repository and passes .dockerignore."""
    allowed = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    sources = [shlex.split(line)[0] for line in instructions("COPY") if not line.startswith("--from")]
    assert allowed == set(sources)
    assert [] == [source for source in sources if not (ROOT / source).exists()]


def test_dockerfile_python_is_new_enough() -> None:
    """The image's Python is the oldest that we promise, so that images run what tests ran."""
    required = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["requires-python"].removeprefix(">=")
    assert [] == [line for line in instructions("FROM") if not line.startswith(f"python:{required}-")]


def test_dockerfile_ends_without_root() -> None:
    """The last user is a number that is not root's."""
    assert ["10001"] == instructions("USER")


def test_compose_builds_with_the_dockerfile() -> None:
    """The build points at files that exist."""
    for service in OURS.values():
        assert (ROOT / service["build"]["context"] / service["build"]["dockerfile"]).exists()
