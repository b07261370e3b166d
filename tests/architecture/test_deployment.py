"""Docker and Kubernetes files of Flink against the code; and each check against files in which something is wrong."""

from collections.abc import Callable, Iterator

import pytest

from tests.architecture import deployment
from tests.architecture.deployment_files import COMPOSE, DOCKERFILE, IGNORED, KUBERNETES, README, Files, files

Check = Callable[[Files], Iterator[str]]
CHECKS: dict[str, Check] = {
    name.removeprefix("check_"): check for name, check in vars(deployment).items() if name.startswith("check_")
}
SETTINGS, FLINK = KUBERNETES + "settings.yaml", KUBERNETES + "flink.yaml"
SUBMITTER, WORKER = KUBERNETES + "submitter.yaml", KUBERNETES + "worker.yaml"
SCALING, TOPICS = KUBERNETES + "scaling.yaml", KUBERNETES + "topics.yaml"

PLANTED = {
    "commands": [
        (COMPOSE, '"submit", "--keep"', '"submit", "--stay"'),
        (COMPOSE, '"app", "worker"', '"app", "work"'),
        (SUBMITTER, '"agents:app"]', '"agents:app", "--parallelism", "one"]'),
        (WORKER, '"python", "-m", "app"', '"python", "-m", "worker"'),
        (TOPICS, '"create"', '"make"'),
        (DOCKERFILE, '"submit", "--keep"]', '"keep"]'),
        (README, "upgrade raw.user_events", "upgrade raw.clicks"),
        (README, "flink_jobs stop", "flink_jobs halt"),
    ],
    "settings": [
        (COMPOSE, "HEADRACE_ENGINE: flink", "HEADRACE_ENGINES: flink"),
        (COMPOSE, "HEADRACE_ENGINE: flink", "HEADRACE_ENGINE: asyncio"),
        (COMPOSE, "HEADRACE_STORE:", "HEADRACE_ENGINE: flink\n    HEADRACE_STORE:"),
        (SETTINGS, "HEADRACE_ENGINE: flink", "HEADRACE_ENGINE: asyncio"),
        (SETTINGS, 'HEADRACE_BROKER_TLS: "true"', 'HEADRACE_BROKER_TLS: "yes, please"'),
        (SETTINGS, "HEADRACE_BROKER_USER: headrace", "HEADRACE_BROKER_LOGIN: headrace"),
        (WORKER, "name: HEADRACE_INSTANCE", "name: HEADRACE_NAME"),
        (WORKER, "name: ANTHROPIC_API_KEY", "name: ANTHROPIC_KEY"),
    ],
    "versions": [
        (DOCKERFILE, "flink:2.3.0-java17", "flink:2.2.1-java17"),
        (DOCKERFILE, "flink:2.3.0-java17", "flink:2.3.0-java11"),
        (DOCKERFILE, "python:3.11-slim", "python:3.12-slim"),
        (DOCKERFILE, "openjdk-17-jre", "openjdk-11-jre"),
        (FLINK, "v2_3", "v2_2"),
        (WORKER, "headrace:0.1.0", "headrace:latest"),
        (SUBMITTER, "headrace-submitter:0.1.0", "headrace-submit:0.1.0"),
        (README, "headrace-flink:0.1.0", "headrace-flink:0.0.9"),
        (COMPOSE, "target: submitter", "target: cluster"),
    ],
    "dockerfile": [
        (DOCKERFILE, "COPY agents agents", "COPY agent agent"),
        (DOCKERFILE, "COPY features features\n", ""),
        (IGNORED, "!flink_jobs\n", ""),
        (DOCKERFILE, "/headrace/.local/flink/own/*.jar ", ""),
        (DOCKERFILE, "/tmp/submitter.log .local/flink", "/tmp/submitter.log .local"),
        (DOCKERFILE, "own_and_connector", "fetch_all"),
        (DOCKERFILE, "USER 10001\n", ""),
        (DOCKERFILE, "USER 9999\n", ""),
    ],
    "addresses": [
        (COMPOSE, "HEADRACE_FLINK: http://jobmanager:8081", "HEADRACE_FLINK: http://jobmanager:8082"),
        (COMPOSE, "http://127.0.0.1:8081/overview", "http://127.0.0.1:80/overview"),
        (COMPOSE, "jobmanager.rpc.address: jobmanager", "jobmanager.rpc.address: manager"),
        (COMPOSE, "web.submit.enable: false", "web.submit.enable: true"),
        (FLINK, 'web.submit.enable: "false"', 'web.submit.enable: "true"'),
        (SETTINGS, "headrace-flink-rest:8081", "headrace-flink:8081"),
        (SETTINGS, "kafka.example:9093", "kafka.example:9094"),
        (SCALING, "kafka.example:9093", "kafka-2.example:9093"),
        (FLINK, 'rest.port: "8081"', 'rest.port: "8082"'),
        (FLINK, 'blob.server.port: "6124"', 'blob.server.port: "6125"'),
        (FLINK, 'taskmanager.rpc.port: "6122"', 'taskmanager.rpc.port: "6130"'),
        (FLINK, "matchLabels: {app: headrace-submitter}", "matchLabels: {}"),
        (FLINK, "ports: [{port: 6123}, {port: 6124}]", "ports: [{port: 6123}, {port: 6124}, {port: 8081}]"),
        (WORKER, "{port: 6379}", "{port: 6380}"),
        (SUBMITTER, "ports: [{port: 8081}]", "ports: [{port: 8082}]"),
    ],
    "volumes": [
        (COMPOSE, "file:///flink/checkpoints", "file:///tmp/checkpoints"),
        (COMPOSE, "flink-state:/flink:ro", "flink-state:/state:ro"),
        (FLINK, "file:///flink/savepoints", "file:///savepoints"),
        (FLINK, "claimName: headrace-flink}", "claimName: headrace-state}"),
        (FLINK, "ReadWriteMany", "ReadWriteOnce"),
        (FLINK, "mountPath: /run/headrace/kafka", "mountPath: /run/kafka"),
        (SUBMITTER, "readOnly: true}}", "readOnly: false}}"),
        (SUBMITTER, "fsGroup: 9999", "fsGroup: 10001"),
        (WORKER, "/run/headrace/redis/password", "/run/headrace/redis/secret"),
        (SETTINGS, "/run/headrace/kafka/ca.crt", "/run/headrace/ca.crt"),
        (README, "headrace-redis --from-file=password", "headrace-redis --from-file=pass"),
    ],
    "rights": [
        (WORKER, "runAsNonRoot: true", "runAsNonRoot: false"),
        (FLINK, "runAsUser: 9999", "runAsUser: 0"),
        (FLINK, "drop: [ALL]", "drop: [NET_RAW]"),
        (SUBMITTER, "allowPrivilegeEscalation: false", "allowPrivilegeEscalation: true"),
        (SUBMITTER, "allowPrivilegeEscalation: false", "allowPrivilegeEscalation: false\n            privileged: true"),
        (TOPICS, "readOnlyRootFilesystem: true", "readOnlyRootFilesystem: false"),
        (WORKER, "enableServiceLinks: false", "enableServiceLinks: true"),
        (WORKER, "RuntimeDefault", "Unconfined"),
        (COMPOSE, 'command: ["jobmanager"]', 'command: ["jobmanager"]\n    ports: ["127.0.0.1:8081:8081"]'),
        (COMPOSE, '"127.0.0.1:6379:6379"', '"6379:6379"'),
        (COMPOSE, "networks: [flink]", "networks: [default, flink]"),
        (COMPOSE, "internal: true", "internal: false"),
        (COMPOSE, 'user: "9999"', 'user: "0"'),
        (COMPOSE, "networks: [flink]\n  cap_drop: [ALL]", "networks: [flink]\n  cap_drop: []"),
    ],
    "secrets": [
        (COMPOSE, "${ANTHROPIC_API_KEY:-}", "sk-ant-1"),
        (COMPOSE, "HEADRACE_FLINK:", "HEADRACE_ACTION_TOKEN: abc\n      HEADRACE_FLINK:"),
        (SETTINGS, "HEADRACE_BROKER_PASSWORD_FILE: /run/headrace/kafka/password", "HEADRACE_BROKER_PASSWORD: hunter2"),
        (WORKER, "rediss://redis.example", "rediss://u:p@redis.example"),
        (SETTINGS, "kind: ConfigMap", "kind: Secret\nmetadata: {name: x}\n---\nkind: ConfigMap"),
    ],
    "scaling": [
        (SCALING, "maxReplicaCount: 6", "maxReplicaCount: 7"),
        (SCALING, "minReplicaCount: 2", "minReplicaCount: 0"),
        (SCALING, "headrace.agent.judge_order", "headrace.agent.judge_orders"),
        (SCALING, "consumerGroup: headrace.gates.raw.orders", "consumerGroup: headrace.streams"),
        (SCALING, "topic: processed.alerts", "topic: alerts"),
        (SCALING, "kind: StatefulSet", "kind: Deployment"),
        (SCALING, "version: 3.6.0", "version: 1.0.0"),
        (SCALING, "scram_sha512", "scram_sha256"),
        (SCALING, "authenticationRef: {name: headrace-kafka}", "authenticationRef: {name: kafka}"),
        (WORKER, "  serviceName:", "  replicas: 2\n  serviceName:"),
        (SUBMITTER, "replicas: 1", "replicas: 2"),
        (SUBMITTER, "type: Recreate", "type: RollingUpdate"),
        (SUBMITTER, '"agents:app"]', '"agents:app", "--parallelism", "1"]'),
        (COMPOSE, '"--keep", "--app", "agents:app"]', '"--keep", "--app", "agents:app", "--parallelism", "1"]'),
        (FLINK, 'numberOfTaskSlots: "4"', 'numberOfTaskSlots: "2"'),
        (COMPOSE, "numberOfTaskSlots: 4", "numberOfTaskSlots: 2"),
        (FLINK, "mode: standalone", "mode: native"),
    ],
    "stopping": [
        (WORKER, "terminationGracePeriodSeconds: 35", "terminationGracePeriodSeconds: 30"),
        (SETTINGS, "HEADRACE_ENGINE: flink", 'HEADRACE_GRACE_MS: "60000"'),
        (SUBMITTER, "terminationGracePeriodSeconds: 30", "terminationGracePeriodSeconds: 10"),
        (COMPOSE, "stop_grace_period: 15s", "stop_grace_period: 10s"),
        (COMPOSE, "profiles: [flink]", "profiles: []"),
        (COMPOSE, "restart: unless-stopped\n\nservices:", 'restart: "no"\n\nservices:'),
        (
            COMPOSE,
            "      topics: {condition: service_completed_successfully}\n",
            "      submitter: {condition: service_started}\n",
        ),
    ],
    "readme": [
        (README, "deploy/kubernetes/topics.yaml", "deploy/kubernetes/topic.yaml"),
        (README, "exec deployment/headrace-submitter", "exec deployment/headrace-flink"),
        (README, "job/headrace-topics", "job/headrace-topic"),
        (README, "annotate scaledobject headrace-worker", "annotate scaledobject headrace-workers"),
        (README, "| `topics.yaml`", "| `topic.yaml`"),
        (WORKER, "secretKeyRef: {name: headrace-model", "secretKeyRef: {name: headrace-models"),
    ],
    "selectors": [
        (WORKER, "matchLabels: {app: headrace-worker}", "matchLabels: {app: worker}"),
        (FLINK, "component: taskmanager", "component: task-manager"),
        (WORKER, "selector: {app: headrace-worker}", "selector: {app: headrace-workers}"),
    ],
}


@pytest.mark.parametrize("name", CHECKS)
def test_deployment_agrees_with_the_code(name: str) -> None:
    """Nothing in the files contradicts it."""
    assert [] == list(CHECKS[name](files()))


@pytest.mark.parametrize(
    ("name", "path", "right", "wrong"),
    [
        pytest.param(name, *planted, id=f"{name}-{number}")
        for name in CHECKS
        for number, planted in enumerate(PLANTED[name], start=1)
    ],
)
def test_deployment_check_finds_what_is_wrong(name: str, path: str, right: str, wrong: str) -> None:
    """Each check fails on a file in which one word is another."""
    texts = dict(files())
    assert right in texts[path]
    texts[path] = texts[path].replace(right, wrong, 1)
    assert list(CHECKS[name](texts))
