"""What the files that deploy Flink must agree with: each check takes their texts and gives what is wrong. None of them can run here."""

import re
import shlex
import tomllib
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import msgspec
import typer

from agents import app
from app.application import GATES_GROUP
from app.cli.main import cli as app_cli
from app.core.durations import parse_duration_ms
from app.core.errors import SetupError
from app.core.settings import PREFIX, SECRETS, Settings
from app.local import flink, flink_jars
from app.local.java import OLDEST_JAVA
from app.streams.handover import gates_group
from flink_jobs import child
from flink_jobs.cli import cli as jobs_cli
from flink_jobs.compiled import compile_jobs
from tests.architecture.deployment_files import (
    CLUSTER,
    COMPOSE,
    DOCKERFILE,
    IGNORED,
    KUBERNETES,
    MOUNTED,
    README,
    Files,
    Tree,
    cluster,
    containers,
    environment,
    flink_settings,
    kinds,
    loaded,
    ours,
    parsed_yaml,
    pods,
    services,
    stages,
)
from tests.architecture.sources import ROOT

REST_PORT = str(urlsplit(Settings().flink).port)
FLINK_USER = 9999
"""Of the official image."""


@cache
def names_of_jobs() -> frozenset[str]:
    return frozenset(compile_jobs(app, Settings()).pipelines)


def check_commands(texts: Files) -> Iterator[str]:
    """Commands, options and names of jobs exist."""
    commands = [(name, each["command"]) for name, each in ours(texts).items()]
    commands += [(DOCKERFILE, msgspec.json.decode(each[1])) for each in stages(texts)["submitter"] if each[0] == "CMD"]
    blocks = re.findall(r"```sh\n(.*?)```", texts[README], re.DOTALL)
    shown = re.findall(r"python -m [^\n#]+", "".join(blocks))
    commands += [(README, shlex.split(each)) for each in shown]
    for place, command in commands:
        if command[:2] != ["python", "-m"] or command[2] not in ("app", "flink_jobs"):
            yield f"{place}: {command} is none of ours"
            continue
        try:
            given = parsed(app_cli if command[2] == "app" else jobs_cli, command[3:])
        except Exception as error:  # noqa: BLE001 - typer's own kinds
            yield f"{place}: {command}: {error}"
            continue
        named = [given["name"]] if given.get("name") else given.get("names") or []
        yield from (f"{place}: no job {name}" for name in named if name not in names_of_jobs())


def parsed(cli: typer.Typer, arguments: list[str]) -> dict[str, Any]:
    """Arguments as the command line takes them, without running the command."""
    command: Any = typer.main.get_command(cli)
    context = command.make_context("x", ["--help"], resilient_parsing=True)
    while hasattr(command, "commands"):
        name, *arguments = arguments
        command = command.commands[name]
    with command.make_context(command.name, list(arguments), parent=context) as found:
        values: dict[str, Any] = found.params
        return values


def check_settings(texts: Files) -> Iterator[str]:
    """Every variable is a setting that loads, and of one engine."""
    for name, container in ours(texts).items():
        try:
            settings = loaded(texts, container)
        except SetupError as error:
            yield f"{name}: {error}"
            continue
        others = {each for each in environment(texts, container) if not each.startswith(PREFIX)}
        yield from (f"{name}: {each} means nothing" for each in others - {"ANTHROPIC_API_KEY"})
        if name in ("worker-flink", "headrace-worker") and settings.engine != "flink":
            yield f"{name}: its streams do not run on Flink"
        if name == "worker" and settings.engine == "flink":
            yield f"{name}: there is no Flink without its profile"


def check_versions(texts: Files) -> Iterator[str]:
    """Images are of the versions that are pinned and tested."""
    release = re.search(r"^apache-flink==(\S+)", (ROOT / "requirements" / "flink.txt").read_text(), re.MULTILINE)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert release is not None
    bases = {name: stage[0][1].split()[0] for name, stage in stages(texts).items()}
    python = f"python:{project['requires-python'].removeprefix('>=')}-slim-bookworm"
    if bases != {
        "base": python,
        "build": "base",
        "cluster": f"flink:{release[1]}-java{OLDEST_JAVA}",
        "submitter": "base",
    }:
        yield f"{DOCKERFILE}: {bases}"
    if f" openjdk-{OLDEST_JAVA}-jre-headless " not in texts[DOCKERFILE]:
        yield f"{DOCKERFILE}: no Java {OLDEST_JAVA}"
    minor = "_".join(release[1].split(".")[:2])
    if cluster(texts)["flinkVersion"] != f"v{minor}" or f"`v{minor}`" not in texts[README]:
        yield f"flinkVersion: not v{minor}"
    images = [
        *re.findall(r"image: (registry.*)", "".join(texts.values())),
        *re.findall(r"-t (registry\S+)", texts[README]),
    ]
    names = ("headrace", "headrace-flink", "headrace-submitter")
    known = {f"registry.example/{name}:{project['version']}" for name in names}
    yield from (f"image {image}" for image in images if image not in known)
    yield from (f"image {image} is not built or not used" for image in known if images.count(image) < 2)
    targets = {name: services(texts)[name]["build"] for name in (*CLUSTER, "submitter")}
    for name, build in targets.items():
        if (build["dockerfile"], build["target"]) != (DOCKERFILE, "submitter" if name == "submitter" else "cluster"):
            yield f"{name}: {build}"


def check_dockerfile(texts: Files) -> Iterator[str]:
    """It copies what there is, makes the jars as the code does, and ends without root."""
    allowed = {line[1:] for line in texts[IGNORED].splitlines() if line.startswith("!")}
    instructions = [each for stage in stages(texts).values() for each in stage]
    copied = {words.split()[0] for name, words in instructions if name == "COPY" and not words.startswith("--from")}
    yield from (f"{source}: only one of copied and allowed" for source in copied ^ allowed)
    yield from (f"{source}: is not there" for source in copied if not (ROOT / source).exists())
    jars = f"/headrace/{flink_jars.JARS.relative_to(ROOT)}"
    if f"COPY --from=build {jars}/jars/*.jar {jars}/own/*.jar /opt/flink/lib/" not in texts[DOCKERFILE]:
        yield "the cluster has not the jars of the submitter"
    if f"ln -s /tmp/submitter.log {child.LOG.relative_to(ROOT)}" not in texts[DOCKERFILE]:
        yield "the submitter cannot write its log"
    modules = {"flink": flink, "flink_jars": flink_jars}
    (program,) = re.findall(r'python -c "(.*?)"', texts[DOCKERFILE])
    for module, name in re.findall(r"(\w+)\.(\w+)\(", program):
        if not hasattr(modules[module], name):
            yield f"{module}.{name}: is not there"
    for stage, user in (("cluster", str(FLINK_USER)), ("submitter", "10001")):
        if [each[1] for each in stages(texts)[stage] if each[0] == "USER"][-1:] != [user]:
            yield f"{stage}: ends with another user than {user}"


def check_addresses(texts: Files) -> Iterator[str]:
    """Whoever is named listens there; nobody but the submitter reaches the job manager, or needs to."""
    name, configured = cluster(texts)["name"], cluster(texts)["flinkConfiguration"]
    for submitter, host in (("submitter", "jobmanager"), ("headrace-submitter", f"{name}-rest")):
        if loaded(texts, ours(texts)[submitter]).flink != f"http://{host}:{REST_PORT}":
            yield f"{submitter}: HEADRACE_FLINK"
    for manager in CLUSTER:
        if f":{REST_PORT}/overview" not in str(services(texts)[manager]["healthcheck"]["test"]):
            yield f"{manager}: health check asks at another port"
    for place, values in flink_settings(texts):
        if values.get("web.submit.enable") != "false":
            yield f"{place}: takes uploads"
        if place != name and values.get("jobmanager.rpc.address") != "jobmanager":
            yield f"{place}: looks for another job manager"
    broker = loaded(texts, ours(texts)["headrace-worker"]).broker.removeprefix("kafka://")
    (scaled,) = kinds(texts, "ScaledObject").values()
    if {each["metadata"]["bootstrapServers"] for each in scaled["spec"]["triggers"]} != {broker}:
        yield "KEDA asks other brokers"
    yield from wrong_policies(texts, configured, {53, int(broker.rpartition(":")[2])})


def wrong_policies(texts: Files, configured: Tree, names_and_broker: set[int]) -> Iterator[str]:
    policies = {name: each["spec"] for name, each in kinds(texts, "NetworkPolicy").items()}
    rest, *others = policies["headrace-flink-jobmanager"]["ingress"]
    ports = [int(configured[key]) for key in ("jobmanager.rpc.port", "blob.server.port")]
    between = ("taskmanager.data.port", "taskmanager.rpc.port", "metrics.internal.query-service.port")
    who = [each["podSelector"]["matchLabels"] for each in rest["from"]]
    if who != [{"app": "headrace-submitter"}, {"app.kubernetes.io/name": "flink-kubernetes-operator"}]:
        yield f"the REST port is open to {who}"
    if configured["rest.port"] != REST_PORT or [each["port"] for each in rest["ports"]] != [int(REST_PORT)]:
        yield "rest.port"
    if [[each["port"] for each in rule["ports"]] for rule in others] != [ports] or not all(
        rule["from"] == [{"podSelector": {"matchLabels": {"app": "headrace-flink", "component": "taskmanager"}}}]
        for rule in others
    ):
        yield "ports of the job manager"
    (managers,) = policies["headrace-flink-taskmanager"]["ingress"]
    if [each["port"] for each in managers["ports"]] != [int(configured[key]) for key in between]:
        yield "ports of the task managers"
    store = urlsplit(loaded(texts, ours(texts)["headrace-worker"]).store).port or 0
    allowed = {
        "headrace-worker": names_and_broker | {store, 443},
        "headrace-submitter": names_and_broker | {int(REST_PORT)},
        "headrace-flink-egress": names_and_broker,
    }
    for name, expected in allowed.items():
        if {port["port"] for rule in policies[name]["egress"] for port in rule.get("ports", ())} != expected:
            yield f"{name}: egress is not to {sorted(expected)}"
    yield from (
        f"{name}: lets somebody in" for name in ("headrace-worker", "headrace-submitter") if "ingress" in policies[name]
    )


def check_volumes(texts: Files) -> Iterator[str]:
    """Checkpoints lie where both managers write and the submitter reads; files that settings name are mounted."""
    for place, values in flink_settings(texts):
        for key in ("execution.checkpointing.dir", "execution.checkpointing.savepoint-dir"):
            if not values.get(key, "").startswith("file:///flink/"):
                yield f"{place}: {key}"
    for name in (*CLUSTER, "submitter"):
        expected = "flink-state:/flink:ro" if name == "submitter" else "flink-state:/flink"
        if services(texts)[name].get("volumes") != [expected]:
            yield f"{name}: volumes"
    claims = kinds(texts, "PersistentVolumeClaim")
    created = dict(re.findall(r"create secret generic (\S+) (.+)", texts[README]))
    for name, pod in pods(texts).items():
        (container,) = pod["containers"]
        mounted = {each["mountPath"]: each for each in container["volumeMounts"]}
        sources = {each["name"]: each for each in pod["volumes"]}
        if name in ("headrace-submitter", cluster(texts)["name"]):
            state = sources[mounted["/flink"]["name"]]["persistentVolumeClaim"]
            if state["claimName"] not in claims or state.get("readOnly", False) != (name == "headrace-submitter"):
                yield f"{name}: {state}"
            if pod["securityContext"]["fsGroup"] != FLINK_USER:
                yield f"{name}: another group than Flink's"
        variables = environment(texts, container)
        named = [variables[each] for each in variables if each.endswith(MOUNTED)]
        named = named or [
            environment(texts, containers(texts)["headrace-worker"])["HEADRACE_BROKER_CA"]
        ]  # which task managers read
        for path in map(Path, named):
            mount = mounted.get(str(path.parent))
            secret = sources[mount["name"]]["secret"]["secretName"] if mount else ""
            if f"--from-file={path.name}" not in created.get(secret, "").split():
                yield f"{name}: {path} is not mounted, or not in its secret"
    used = {
        each["persistentVolumeClaim"]["claimName"]
        for pod in pods(texts).values()
        for each in pod["volumes"]
        if "persistentVolumeClaim" in each
    }
    if used != set(claims) or any(each["spec"]["accessModes"] != ["ReadWriteMany"] for each in claims.values()):
        yield f"claims: {used}"


def check_rights(texts: Files) -> Iterator[str]:
    """No root, no rights, nothing of the host, nothing that listens beyond loopback."""
    for name, pod in pods(texts).items():
        (container,) = pod["containers"]
        context, own = pod["securityContext"], container["securityContext"]
        closed = [
            context["runAsNonRoot"] is True and context["runAsUser"] == (FLINK_USER if "flink" in name else 10001),
            context["seccompProfile"] == {"type": "RuntimeDefault"},
            own["allowPrivilegeEscalation"] is False and own["capabilities"] == {"drop": ["ALL"]},
            own.get("readOnlyRootFilesystem") is True or "flink" in name,
            pod["enableServiceLinks"] is False and pod["automountServiceAccountToken"] is False,
        ]
        if not all(closed):
            yield f"{name}: {closed}"
    words = "privileged|hostNetwork|hostPID|hostIPC|hostPath|hostPort|NodePort|LoadBalancer|network_mode|docker.sock"
    yield from (f"{path}: {each}" for path in texts for each in re.findall(rf"\b(?:{words})\b", texts[path]))
    for name, service in services(texts).items():
        if service["cap_drop"] != ["ALL"] or service["security_opt"] != ["no-new-privileges:true"]:
            yield f"{name}: rights"
        if not all(port.startswith("127.0.0.1:") for port in service.get("ports", ())):
            yield f"{name}: listens beyond loopback"
        inside = name in (*CLUSTER, "submitter")
        if inside and ("ports" in service or service["networks"] != ["flink"]):
            yield f"{name}: can be reached"
        if not inside and name != "kafka" and "networks" in service:
            yield f"{name}: reaches the job manager"
    if services(texts)["jobmanager"]["user"] != str(FLINK_USER):
        yield "jobmanager: user"
    if parsed_yaml(texts[COMPOSE])[0]["networks"]["flink"] != {"internal": True}:
        yield "networks: flink"


def check_secrets(texts: Files) -> Iterator[str]:
    """None in clear."""
    yield from (f"Secret {name}" for name in kinds(texts, "Secret"))
    hidden = {f"{PREFIX}{secret.upper()}" for secret in SECRETS} | {"ANTHROPIC_API_KEY"}
    for name, container in ours(texts).items():
        for variable, value in environment(texts, container).items():
            if variable in hidden and value not in ("", "given"):
                yield f"{name}: {variable} in clear"
            if "://" in value and "@" in value:
                yield f"{name}: {variable} holds a password"


def check_scaling(texts: Files) -> Iterator[str]:
    """Groups, topics and numbers are the application's; jobs fit their slots."""
    (scaled,) = (each["spec"] for each in kinds(texts, "ScaledObject").values())
    target = scaled["scaleTargetRef"]
    if (
        target["name"] not in kinds(texts, target["kind"])
        or "replicas" in kinds(texts, target["kind"])[target["name"]]["spec"]
    ):
        yield f"scales {target}"
    agents = {agent.group: agent.topic for agent in app.agents.values()}
    groups = {each["metadata"]["consumerGroup"]: each["metadata"].get("topic") for each in scaled["triggers"]}
    if groups != {gates_group(GATES_GROUP, topic): topic for topic in app.sources} | agents:
        yield f"groups: {groups}"
    partitions = min(app.topics.named(topic).partitions for topic in agents.values())
    if not 1 <= scaled["minReplicaCount"] <= scaled["maxReplicaCount"] <= partitions:
        yield f"workers: more than the {partitions} partitions"
    settings = loaded(texts, ours(texts)["headrace-worker"])
    oldest = re.search(r"`consumer` group protocol, ([\d.]+) or newer", (ROOT / "docs" / "operations.md").read_text())
    spoken = {
        "sasl": settings.broker_mechanism.lower().replace("-", "_").replace("sha_", "sha"),
        "tls": "enable" if settings.broker_tls else "disable",
        "version": f"{oldest[1]}.0" if oldest else "",
        "offsetResetPolicy": "earliest",
    }
    for each in scaled["triggers"]:
        if not spoken.items() <= each["metadata"].items():
            yield f"{each['metadata']['consumerGroup']}: not {spoken}"
        if each["authenticationRef"]["name"] not in kinds(texts, "TriggerAuthentication"):
            yield "authenticationRef"
    submitter = kinds(texts, "Deployment")["headrace-submitter"]["spec"]
    if (submitter["replicas"], submitter["strategy"]["type"]) != (1, "Recreate"):
        yield "there may be two submitters"
    jobs = len(names_of_jobs())
    for (place, values), name in zip(
        flink_settings(texts), ("submitter", "submitter", "headrace-submitter"), strict=True
    ):
        if parsed(jobs_cli, ours(texts)[name]["command"][3:])["parallelism"]:
            yield f"{name}: --parallelism goes before the one that is remembered"
        slots = int(values["taskmanager.numberOfTaskSlots"]) * (
            1 if place in CLUSTER else cluster(texts)["taskManager"]["replicas"]
        )
        if jobs + 1 > slots:  # one more while it takes over
            yield f"{place}: {jobs} jobs, {slots} slots"
    if cluster(texts)["mode"] != "standalone":
        yield "a native session has no task manager before its first job, which the submitter asks for"


def check_stopping(texts: Files) -> Iterator[str]:
    """Nobody is killed before he is done; what should run comes back."""
    given = {
        name: parse_duration_ms(services(texts)[name]["stop_grace_period"]) for name in ("worker-flink", "submitter")
    }
    given |= {
        name: 1_000 * pods(texts)[name]["terminationGracePeriodSeconds"]
        for name in ("headrace-worker", "headrace-submitter")
    }
    for name, grace_ms in given.items():
        needed = child.END_SECONDS * 1_000 if "submitter" in name else loaded(texts, ours(texts)[name]).grace_ms
        if grace_ms <= needed:
            yield f"{name}: is killed after {grace_ms} ms, and needs {needed}"
    for name in (*CLUSTER, "submitter", "worker-flink"):
        if services(texts)[name].get("restart") != "unless-stopped" or services(texts)[name].get("profiles") != [
            "flink"
        ]:
            yield f"{name}: restart or profile"
    for name, service in services(texts).items():
        needs = services(texts)
        if "profiles" not in service and any("profiles" in needs[each] for each in service.get("depends_on", ())):
            yield f"{name}: needs what is not started without the profile"


def check_readme(texts: Files) -> Iterator[str]:
    """Files and objects that it names are there."""
    text = texts[README]
    for path in re.findall(r"-f (deploy/[\w./-]*)", text):
        if not (ROOT / path).exists():
            yield f"no file {path}"
    for kind in ("Job", "Deployment", "StatefulSet", "ScaledObject", "FlinkDeployment"):
        for name in re.findall(rf"\b{kind.lower()}[/ ]([a-z]\S*[a-z])", text):
            if name.startswith("headrace") and name not in kinds(texts, kind):
                yield f"no {kind} {name}"
    listed = set(re.findall(r"`(\w+\.yaml)`", text.partition("Needs:")[0]))
    if listed != {path.removeprefix(KUBERNETES) for path in texts if path.startswith(KUBERNETES)} - {"README.md"}:
        yield f"lists {sorted(listed)}"
    secrets = {
        source["secret"]["secretName"]
        for pod in pods(texts).values()
        for source in pod["volumes"]
        if "secret" in source
    }
    secrets |= {
        each["valueFrom"]["secretKeyRef"]["name"]
        for container in containers(texts).values()
        for each in container.get("env", ())
        if "secretKeyRef" in each.get("valueFrom", {})
    }
    if secrets != set(re.findall(r"create secret generic (\S+)", text)):
        yield f"secrets: {sorted(secrets)}"


def check_selectors(texts: Files) -> Iterator[str]:
    """Whatever selects pods selects some."""
    labels = [
        each["spec"]["template"]["metadata"]["labels"]
        for kind in ("Job", "Deployment", "StatefulSet")
        for each in kinds(texts, kind).values()
    ]
    labels += [{"app": cluster(texts)["name"], "component": component} for component in CLUSTER]
    labels.append({"app.kubernetes.io/name": "flink-kubernetes-operator"})
    for path in texts:
        for found in parsed_yaml(texts[path]) if path.endswith(".yaml") else ():
            for wanted in selected(found):
                if not any(wanted.items() <= each.items() for each in labels):
                    yield f"{path}: nobody is {wanted}"


def selected(tree: Any) -> Iterator[Tree]:
    """Labels that are asked of pods, anywhere below."""
    if isinstance(tree, dict):
        for key, value in tree.items():
            if key in ("podSelector", "selector"):
                yield value.get("matchLabels", value)
            else:
                yield from selected(value)
    if isinstance(tree, list):
        for each in tree:
            yield from selected(each)
