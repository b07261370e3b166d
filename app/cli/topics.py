"""`topics create|list|plan|rights`: the topics of an application, on its cluster."""

from shlex import quote
from typing import TYPE_CHECKING, Annotated

import typer

from app.cli import output
from app.cli.loading import DEFAULT_APP, AppOption, BrokerOption, StoreOption, load_app, open_cluster, settings

if TYPE_CHECKING:
    from app.application import App
    from app.broker.base import Broker, Right, TopicDescription
    from app.broker.topics import TopicRegistry, TopicSpec
    from app.core.settings import Settings

NOT_AS_PLANNED = 1
"""Exit code of `plan` where a topic has too few partitions."""

commands = typer.Typer(no_args_is_help=True, help="The topics an application reads and writes.")

RetentionOption = Annotated[
    list[str] | None,
    typer.Option(
        "--retention",
        metavar="TOPIC=DURATION",
        help="How long a topic keeps its records, such as `raw.orders=30d` or `raw.orders=forever`. May be repeated.",
    ),
]


@commands.command()
def create(
    app: AppOption = DEFAULT_APP,
    broker: BrokerOption = None,
    retention: RetentionOption = None,
    json: output.JsonOption = False,
) -> None:
    """Create the topics that are missing; give those that exist the `--retention` asked for, and let them take records as large as
    declared.

    Copies: `HEADRACE_REPLICATION`, 3 unless set, and fewer only on a cluster of fewer brokers.

    Example: `python -m app topics create --retention raw.orders=forever`
    """
    import asyncio

    values = settings(broker=broker)
    rows = asyncio.run(_create(open_cluster(values), load_app(app), retention or []))
    copies = [int(str(row["replication"])) for row in rows]
    wanted = values.replication
    for row in rows:
        if json:
            output.json_line(row)
    if not json:
        output.table(
            ("topic", "partitions", "copies", "keeps", "done"),
            [(row["topic"], row["partitions"], row["replication"], row["retention"], row["done"]) for row in rows],
        )
    fewest = min(copies, default=wanted)
    if fewest < wanted:
        output.note(f"note: {fewest} instead of {wanted} copies of each partition; losing a broker may lose records")


async def _create(broker: "Broker", app: "App", retention: list[str]) -> list[dict[str, object]]:
    from msgspec.structs import replace

    from app.streams.generations import add_generations

    admin = broker.admin()
    try:
        app.number(await add_generations(broker, app.pipelines))
        asked = retentions(retention, app.topics)
        specs = [replace(s, retention_ms=asked[s.name]) if s.name in asked else s for s in app.topics.all()]
        created = await admin.create(specs)
        found = await admin.describe([spec.name for spec in specs])
        rows = []
        for spec in specs:
            described, done = found[spec.name], "created" if created[spec.name] else "exists"
            changed = [] if created[spec.name] else _differing(spec, described, is_asked=spec.name in asked)
            if changed:
                await admin.configure(spec.name, {name: spec.config()[name] for name in changed})
                described, done = (
                    (await admin.describe([spec.name]))[spec.name],
                    ", ".join(_CHANGED[name] for name in changed),
                )
            rows.append(_row(spec, described) | {"done": done})
        return rows
    finally:
        await admin.close()
        await broker.close()


_CHANGED = {"retention.ms": "retention changed", "max.message.bytes": "takes larger records"}


def _differing(spec: "TopicSpec", found: "TopicDescription | None", *, is_asked: bool) -> list[str]:
    """The settings of a topic that exists which are to be as declared: how long it keeps records where that was asked for, and records
    that it would refuse, which nobody can write."""
    assert found is not None
    differing = ["retention.ms"] if is_asked and _retention_of(found) != spec.retention_ms else []
    if int(found.config["max.message.bytes"]) < spec.max_message_bytes:
        differing.append("max.message.bytes")
    return differing


@commands.command("list")
def list_topics(app: AppOption = DEFAULT_APP, broker: BrokerOption = None, json: output.JsonOption = False) -> None:
    """List the application's topics and how they are on the cluster.

    Example: `python -m app topics list --json`
    """
    import asyncio

    found = asyncio.run(_describe(open_cluster(settings(broker=broker)), load_app(app)))
    rows = [_row(spec, description) for spec, description in found]
    for row in rows:
        if json:
            output.json_line(row)
    if not json:
        columns = ("topic", "state", "partitions", "replication", "retention", "cleanup")
        output.table(
            ("topic", "state", "partitions", "copies", "keeps", "cleanup"), [[row[c] for c in columns] for row in rows]
        )


@commands.command()
def plan(
    app: AppOption = DEFAULT_APP,
    broker: BrokerOption = None,
    threads: Annotated[
        int, typer.Option(min=1, help="Consumer threads of a group, all workers together: one for each worker process.")
    ] = 6,
    json: output.JsonOption = False,
) -> None:
    """Say which topics have too few or too many partitions: the rule is 1 to 2 for each consumer thread.

    Nothing is grown in place: somebody relies on where the keys of each of these topics lie. The exit code is 1 where a
    topic has too few.

    Example: `python -m app topics plan --threads 12`
    """
    import asyncio

    from app.broker.planning import advise, is_read_by_many

    advice = []
    for spec, described in asyncio.run(_describe(open_cluster(settings(broker=broker)), load_app(app))):
        if is_read_by_many(spec):
            advice.append(advise(spec, described.partitions if described else None, threads))
    for each in advice:
        if json:
            wanted = {"least": each.wanted[0], "most": each.wanted[1]}
            row = {"topic": each.topic, "partitions": each.partitions, **wanted, "verdict": each.verdict}
            output.json_line({**row, "action": each.action})
    if not json:
        least, most = advice[0].wanted if advice else (threads, 2 * threads)
        output.note(f"{threads} consumer threads: {least} to {most} partitions")
        output.table(
            ("topic", "partitions", "verdict", "what to do"),
            [(each.topic, each.partitions, each.verdict, each.action) for each in advice],
        )
    if any(each.verdict == "too few" for each in advice):
        raise typer.Exit(NOT_AS_PLANNED)


@commands.command()
def rights(
    app: AppOption = DEFAULT_APP,
    role: Annotated[
        str | None,
        typer.Option("--role", help="publisher, streams, features, agents, actions or operator. [default: all]"),
    ] = None,
    user: Annotated[str | None, typer.Option("--user", help="Who gets them. [default: the name of the role]")] = None,
    apply: Annotated[
        bool, typer.Option("--apply", help="Give them, in Kafka and in Redis, instead of printing them.")
    ] = False,
    broker: BrokerOption = None,
    store: StoreOption = None,
    json: output.JsonOption = False,
) -> None:
    """Print the least rights each role needs, as lines for a shell: Kafka's own tool for topics and groups, `redis-cli` for
    the store. A worker that runs several parts needs those of each.

    `--apply` gives them as the user of the settings, who must be allowed to: Kafka's users may not be there yet, and keep
    what else they may do; Redis' users keep their passwords, and may do nothing else.

    Examples: `python -m app topics rights --role agents --user headrace-agents`; `python -m app topics rights --apply`
    """
    import asyncio

    from app.rights import ROLES, commands_of, rights_of, store_rights_of

    loaded, values = load_app(app), settings(broker=broker, store=store)
    roles = [role] if role else list(ROLES)
    if apply:
        asked = [(user or each, rights_of(loaded, each), store_rights_of(loaded, each)) for each in roles]
        asyncio.run(_apply(values, asked))
        return
    for each in roles:
        found = rights_of(loaded, each)
        if json:
            for right in found:
                output.json_line({"role": each, **right._asdict()})
            continue
        output.note(f"# {each}: {ROLES[each]}")
        for line in commands_of(found, user or each):
            output.line(line)
        store = store_rights_of(loaded, each)
        if store is not None:
            output.line(f"redis-cli ACL SETUSER {quote(user or each)} on '#SHA256-OF-PASSWORD' {quote_each(store)}")


async def _apply(values: "Settings", asked: "list[tuple[str, list[Right], str | None]]") -> None:
    """Gives each user rights in Kafka, and in Redis where there are any. Says what is done as soon as it is."""
    from app.broker.kafka.admin import KafkaAdmin
    from app.core.clock import SystemClock
    from app.core.errors import SetupError
    from app.serving.redis import RedisStore

    cluster = open_cluster(values)
    admin = cluster.admin()
    try:
        if not isinstance(admin, KafkaAdmin):
            raise SetupError("broker", "rights are given through kafka://, whichever way they are used later")
        for user, rights, _ in asked:
            await admin.grant(user, rights)
            output.line(f"{user}: {len(rights)} rights in Kafka")
    finally:
        await admin.close()
        await cluster.close()
    if not any(words for _, _, words in asked) or values.store.startswith("memory://"):
        return
    store = RedisStore(values.store, SystemClock(), values.store_security)
    try:
        for user, _, words in asked:
            if words is not None:
                await store.grant(user, words)
                output.line(f"{user}: {len(words.split())} words of ACL SETUSER in Redis")
    finally:
        await store.close()


def quote_each(words: str) -> str:
    """Words, each of which a shell takes as it is."""
    return " ".join(quote(word) for word in words.split())


def retentions(texts: list[str], registry: "TopicRegistry") -> dict[str, int | None]:
    """`raw.orders=30d` -> milliseconds, None for forever.

    Raises: SetupError for another form, an unknown topic or a wrong duration.
    """
    from app.core.errors import SetupError
    from app.streams.graph import parse_retention_ms

    asked = {}
    for text in texts:
        name, separator, duration = text.partition("=")
        if not separator:
            raise SetupError("--retention", f"{text!r} is not TOPIC=DURATION, such as raw.orders=30d")
        asked[registry.named(name).name] = parse_retention_ms(duration, f"--retention {name}")
    return asked


async def _describe(broker: "Broker", app: "App") -> "list[tuple[TopicSpec, TopicDescription | None]]":
    from app.streams.generations import known_generations

    admin = broker.admin()
    try:
        app.number(await known_generations(broker))
        specs = app.topics.all()
        found = await admin.describe([spec.name for spec in specs])
        return [(spec, found[spec.name]) for spec in specs]
    finally:
        await admin.close()
        await broker.close()


def _row(spec: "TopicSpec", found: "TopicDescription | None") -> dict[str, object]:
    from app.core.durations import format_duration

    config = found.config if found else spec.config()
    retention_ms = _retention_of(found) if found else spec.retention_ms
    state = "missing"
    if found is not None:
        state = "ready" if found.partitions == spec.partitions else f"declared with {spec.partitions} partitions"
    return {
        "topic": spec.name,
        "state": state,
        "partitions": found.partitions if found else spec.partitions,
        "replication": found.replication if found else 0,
        "cleanup": config["cleanup.policy"],
        "retention": "forever" if retention_ms is None else format_duration(retention_ms),
        "time": config["message.timestamp.type"],
    }


def _retention_of(found: "TopicDescription | None") -> int | None:
    retention_ms = int(found.config["retention.ms"]) if found else -1
    return None if retention_ms < 0 else retention_ms
