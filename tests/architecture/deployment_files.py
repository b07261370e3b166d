"""The files that deploy Flink, as data: services of Docker Compose, pods of Kubernetes, and what their containers are given."""

import re
from collections.abc import Iterator, Mapping
from functools import cache
from typing import Any

import yaml

from app.core.settings import Settings, load_settings
from tests.architecture.sources import ROOT

Files = Mapping[str, str]
"""By path in the repository."""

Tree = dict[str, Any]

COMPOSE, KUBERNETES = "docker-compose.yml", "deploy/kubernetes/"
DOCKERFILE, IGNORED = "deploy/flink/Dockerfile", "deploy/flink/Dockerfile.dockerignore"
README = KUBERNETES + "README.md"
CLUSTER = ("jobmanager", "taskmanager")
MOUNTED = ("_FILE", "_CA")
"""Ends of settings that name a file."""


@cache
def parsed_yaml(text: str) -> list[Tree]:
    return list(yaml.safe_load_all(text))


def files() -> Files:
    paths = [ROOT / COMPOSE, ROOT / DOCKERFILE, ROOT / IGNORED, *sorted((ROOT / KUBERNETES).iterdir())]
    return {str(path.relative_to(ROOT)): path.read_text() for path in paths}


def services(texts: Files) -> dict[str, Tree]:
    found: dict[str, Tree] = parsed_yaml(texts[COMPOSE])[0]["services"]
    return found


def kinds(texts: Files, kind: str) -> dict[str, Tree]:
    """Objects of a kind for Kubernetes, by name."""
    every = (each for path in texts if path.endswith(".yaml") for each in parsed_yaml(texts[path]))
    return {each["metadata"]["name"]: each for each in every if each["kind"] == kind}


def cluster(texts: Files) -> Tree:
    """The one that the operator is asked for."""
    (found,) = kinds(texts, "FlinkDeployment").values()
    spec: Tree = found["spec"]
    return {"name": found["metadata"]["name"], **spec}


def pods(texts: Files) -> dict[str, Tree]:
    """Specs of pods, by the name of what makes them."""
    made = {
        name: each["spec"]["template"]["spec"]
        for kind in ("Job", "Deployment", "StatefulSet")
        for name, each in kinds(texts, kind).items()
    }
    return {**made, cluster(texts)["name"]: cluster(texts)["podTemplate"]["spec"]}


def containers(texts: Files) -> dict[str, Tree]:
    """One a pod."""
    return {name: container for name, pod in pods(texts).items() for container in pod["containers"]}


def ours(texts: Files) -> dict[str, Tree]:
    """Containers with a command of ours, by what makes them; in Docker Compose, by service."""
    in_compose = {
        name: service for name, service in services(texts).items() if service.get("command", [""])[0] == "python"
    }
    return in_compose | {name: each for name, each in containers(texts).items() if "command" in each}


def environment(texts: Files, container: Tree) -> dict[str, str]:
    """Its variables; what is read from a secret or a field of the pod is a word."""
    if isinstance(container.get("environment"), dict):
        return {
            name: re.sub(r"\$\{\w+:-(.*?)\}", r"\1", str(value)) for name, value in container["environment"].items()
        }
    found: dict[str, str] = {}
    for source in container.get("envFrom", ()):
        found |= kinds(texts, "ConfigMap")[source["configMapRef"]["name"]]["data"]
    return found | {each["name"]: each.get("value", "given") for each in container.get("env", ())}


def loaded(texts: Files, container: Tree) -> Settings:
    """Settings, with some file in the place of those that are mounted. Raises: SetupError."""
    variables = environment(texts, container)
    some = str(ROOT / "pyproject.toml")
    return load_settings({name: some if name.endswith(MOUNTED) else value for name, value in variables.items()})


def flink_settings(texts: Files) -> Iterator[tuple[str, dict[str, str]]]:
    """What the clusters are configured with: the two processes in Docker Compose, and the one in Kubernetes."""
    for name in CLUSTER:
        lines = services(texts)[name]["environment"]["FLINK_PROPERTIES"].splitlines()
        yield name, dict(line.split(": ", 1) for line in lines)
    yield cluster(texts)["name"], cluster(texts)["flinkConfiguration"]


def stages(texts: Files) -> dict[str, list[list[str]]]:
    """Instructions of the Dockerfile, by stage."""
    found: dict[str, list[list[str]]] = {}
    for line in texts[DOCKERFILE].replace("\\\n", " ").splitlines():
        if line.startswith("FROM "):
            found[line.split(" AS ")[1]] = stage = []
        if line and not line.startswith("#"):
            stage.append(line.split(maxsplit=1))
    return found
