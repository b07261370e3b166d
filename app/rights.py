"""What each role of an application may do on its Kafka cluster, and needs to: the least, as data.

A role is a user of the cluster: a part of the worker, whoever publishes, the person at the command line. A worker that runs
several parts needs the rights of all of them. Right to read or write is right to describe, as on the cluster itself.
"""

from collections.abc import Iterable
from shlex import quote

from app.application import FLINK_GROUP, GATES_GROUP, STREAMS_GROUP, App
from app.broker.base import Right
from app.core.errors import SetupError
from app.core.settings import MODES
from app.decisions.actions import GROUP as ACTIONS_GROUP
from app.decisions.record import DECISIONS, EFFECTS, REVIEWS, SWITCHES
from app.serving.materializer import GROUP as FEATURES_GROUP
from app.streams.generations import TOPIC as GENERATIONS
from app.streams.kept_jobs import TOPIC as FLINK_JOBS
from app.streams.pipelines import LivePipeline, table_of

ROLES = {
    "publisher": "publishes events: applications, `send`, `replay`",
    "streams": "`worker --only streams`",
    "flink": "the jobs on Flink and whoever submits them, `python -m flink_jobs`",
    "features": "`worker --only features`",
    "agents": "`worker --only agents`",
    "actions": "`worker --only actions`",
    "operator": "a person at the command line: `topics`, `dead`, `switch`, `decisions`, `streams reset|prune`",
}

OF_JOBS, OF_GATES = f"{FLINK_GROUP}.*", f"{GATES_GROUP}.*"
"""The groups of all generations of all jobs."""

STORE_COMMANDS = {
    "features": ("info", "select", "hgetall", "hmget", "hset", "hdel", "pexpire", "eval", "evalsha"),
    "agents": ("info", "select", "hgetall", "hmget"),
    "operator": ("info", "select", "hgetall", "hmget", "del", "unlink", "scan"),
}
"""What the roles that use Redis ask of it."""


def rights_of(app: App, role: str) -> list[Right]:
    """Every right that a role needs, ordered by kind and name.

    Raises: SetupError for an unknown role.
    """
    if role not in ROLES:
        raise SetupError("--role", f"no role is called {role}; there are {', '.join(ROLES)}")
    every = sorted(_names(app))
    used = set(_USES[role](app))
    if role != "publisher":  # a worker looks at all topics before it starts, and a person at any
        used |= {Right("topic", name, "Read") for name in every if name == GENERATIONS.name}
        written = {right.name for right in used if right.operation in ("Read", "Write")}
        used |= {Right("topic", name, "Describe") for name in every if name not in written}
        used |= {Right("topic", name, "DescribeConfigs") for name in every}
    return sorted(used)


def store_rights_of(app: App, role: str) -> str | None:
    """The same in Redis' words, behind `ACL SETUSER name on >password`; None for a role that does not use it."""
    if role not in STORE_COMMANDS:
        return None
    keys = "%R~" if role == "agents" else "~"
    patterns = [f"{keys}{name}:*" for name in ("headrace:view", *sorted(f"{view}*" for view in app.views))]
    commands = (f"+{command}" for command in STORE_COMMANDS[role])
    return " ".join(["resetkeys", *patterns, "resetchannels", "-@all", *commands])


def commands_of(rights: Iterable[Right], user: str) -> list[str]:
    """The rights as lines for a shell with Kafka's own `kafka-acls.sh`."""
    grouped: dict[tuple[str, str], list[str]] = {}
    for right in rights:
        grouped.setdefault((right.kind, right.name), []).append(f"--operation {right.operation}")
    begin = 'kafka-acls.sh --bootstrap-server "$BROKER" --command-config admin.properties --add'
    return [
        f"{begin} --allow-principal {quote(f'User:{user}')} {' '.join(operations)}{_pattern(name)} --{kind} "
        + quote(name.removesuffix("*"))
        for (kind, name), operations in grouped.items()
    ]


def _pattern(name: str) -> str:
    return " --resource-pattern-type prefixed" if name.endswith("*") else ""


def _names(app: App) -> list[str]:
    """Of all topics; of tables those of every generation, see `streams.generations`."""
    tables = {table_of(name, pipeline) for name, pipeline in app.pipelines.items()}
    return [f"{spec.name}*" if spec.name in tables else spec.name for spec in app.topics.all()]


def _topic(name: str, *operations: str) -> list[Right]:
    return [Right("topic", name, operation) for operation in operations]


def _publisher(app: App) -> list[Right]:
    rights = []
    for source in app.sources:
        for name in (source, f"{source}.dead"):  # `replay` puts what cannot be published where everybody looks for it
            rights += _topic(name, "Write", "DescribeConfigs")
    return rights


def _streams(app: App) -> list[Right]:
    rights = [Right("group", group, "Read") for group in (STREAMS_GROUP, OF_GATES)]
    rights += [Right("group", OF_JOBS, "Describe")]
    rights += _topic(FLINK_JOBS.name, "Read")
    for source in app.sources:
        rights += _topic(source, "Read") + _topic(f"{source}.dead", "Write") + _topic(f"{source}.late", "Write")
    for name, pipeline in app.pipelines.items():
        table = table_of(name, pipeline)
        if table is not None:
            rights += _topic(f"{table}*", "Read", "Write")
        if table != pipeline.topic:
            rights += _topic(pipeline.topic, "Write")
    return rights


def _flink(app: App) -> list[Right]:
    rights = [Right("group", OF_JOBS, "Read"), Right("group", STREAMS_GROUP, "Describe")]
    rights += _topic(FLINK_JOBS.name, "Read", "Write")
    for source in app.sources:
        rights += _topic(source, "Read") + _topic(f"{source}.late", "Write")
    for pipeline in app.pipelines.values():
        rights += _topic(f"{pipeline.topic}*" if isinstance(pipeline, LivePipeline) else pipeline.topic, "Write")
    return rights


def _features(app: App) -> list[Right]:
    views = [f"{pipeline.topic}*" for pipeline in app.pipelines.values() if isinstance(pipeline, LivePipeline)]
    return [Right("group", FEATURES_GROUP, "Read")] + [right for topic in views for right in _topic(topic, "Read")]


def _agents(app: App) -> list[Right]:
    rights = _topic(DECISIONS, "Read", "Write") + _topic(SWITCHES, "Read", "Write")
    for agent in app.agents.values():
        for mode in MODES:  # all of them: a switch moves an agent into another one's group while it runs
            rights.append(Right("group", agent.group if mode == "live" else f"{agent.group}.{mode}", "Read"))
        rights += _topic(agent.topic, "Read") + _topic(f"{agent.topic}.dead", "Write")
    return rights


def _actions(app: App) -> list[Right]:
    return [
        Right("group", ACTIONS_GROUP, "Read"),
        *_topic(DECISIONS, "Read"),
        *_topic(f"{DECISIONS}.dead", "Write"),
        *_topic(EFFECTS, "Read", "Write"),
        *_topic(REVIEWS, "Write"),
        *_topic(SWITCHES, "Read", "Write"),
    ]


def _operator(app: App) -> list[Right]:
    rights = [Right("group", STREAMS_GROUP, "Read")]
    for name in _names(app):
        rights += _topic(name, "Create", "AlterConfigs", "Delete", "Read", "Write")
    return rights


_USES = {
    "publisher": _publisher,
    "streams": _streams,
    "flink": _flink,
    "features": _features,
    "agents": _agents,
    "actions": _actions,
    "operator": _operator,
}
