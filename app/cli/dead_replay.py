"""`dead replay`: letters published again into the topic that their records came from."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Any

import typer

from app.cli import output
from app.cli.loading import DEFAULT_APP, AppOption, BrokerOption, load_app, open_cluster, settings

if TYPE_CHECKING:
    from app.broker.base import Broker
    from app.broker.dead_letters import Letter
    from app.broker.dead_replay import Outcome
    from app.broker.topics import TopicRegistry, TopicSpec

NOT_ALL = 1
"""Exit code where a chosen letter cannot be replayed."""

NAMED = 20
"""So many letters that cannot be replayed are named; the others are counted, and `--json` names all."""


def replay(
    topic: Annotated[str, typer.Argument(metavar="TOPIC", help="Whose letters, such as `raw.orders`.")],
    app: AppOption = DEFAULT_APP,
    broker: BrokerOption = None,
    partition: Annotated[int | None, typer.Option(min=0, help="Only letters that lie in this partition.")] = None,
    offset: Annotated[int | None, typer.Option(min=0, help="Only the letter at this offset.")] = None,
    reason: Annotated[str | None, typer.Option(help="Only letters whose reason contains this.")] = None,
    since: Annotated[str | None, typer.Option(help="Only letters of the last `30m`, `12h`, `7d` …")] = None,
    to: Annotated[
        str | None, typer.Option("--to", metavar="TOPIC", help="Another topic, by key. [default: their own]")
    ] = None,
    again: Annotated[bool, typer.Option("--again", help="Also letters that were replayed before.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be done, and write nothing.")] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    json: output.JsonOption = False,
) -> None:
    """Publish dead letters again: original bytes, key, time and headers, each letter once.

    For when what was wrong has been mended: a declaration, an agent. What fails again comes back as a new letter;
    `dead list` shows how often. Letters that were cut cannot be replayed, nor rows of files, nor what is no decision, or
    was forgotten, into `agent.decisions`: they are named, and the exit code is 1. Records keep their time, so those older than
    the watermark of their partition are late. Run one replay of a topic at a time.

    Examples: `python -m app dead replay raw.orders --dry-run`;
    `python -m app dead replay raw.orders --reason amount --since 2h --yes`;
    `python -m app dead replay processed.alerts --partition 3 --offset 17`
    """
    import asyncio

    from app.core.clock import SystemClock
    from app.core.durations import parse_duration_ms
    from app.core.errors import SetupError

    if json and not (yes or dry_run):
        raise SetupError("--json", "does not ask; add --yes or --dry-run")
    if offset is not None and partition is None:
        raise SetupError("--offset", "numbers the letters of one partition; add --partition")
    registry = load_app(app).topics
    dead = letters_of(registry, topic)
    target = registry.named(to or dead.name.removesuffix(".dead"))
    since_ms = None if since is None else SystemClock().now_ms() - parse_duration_ms(since, "--since")

    def chosen(letter: "Letter") -> bool:
        return (
            partition in (None, letter.lies_at[1])
            and offset in (None, letter.lies_at[2])
            and (reason is None or reason in letter.reason)
            and (since_ms is None or letter.written_ms >= since_ms)
        )

    def asks(waiting: int) -> bool:
        output.note(f"{output.counted(waiting, 'letter')} of {dead.name} to {target.name}. {_warning(target)}")
        return yes or typer.confirm("Publish them?", err=True)

    cluster = open_cluster(settings(broker=broker))
    outcomes = asyncio.run(_replay(cluster, dead.name, target.name, chosen, asks, again=again, dry_run=dry_run))
    if json:
        for outcome in outcomes:
            output.json_line(_as_json(outcome))
    else:
        _sum_up(outcomes)
    if any(_cannot(outcome) for outcome in outcomes):
        raise typer.Exit(NOT_ALL)


def letters_of(registry: "TopicRegistry", topic: str) -> "TopicSpec":
    """The topic with the dead letters of `topic`, which may also be its own name. Raises: SetupError that lists them."""
    from app.core.errors import SetupError

    source = topic.removesuffix(".dead")
    dead = {spec.name: spec for spec in registry.all() if spec.name.endswith(".dead")}
    if f"{source}.dead" not in dead:
        names = ", ".join(sorted(name.removesuffix(".dead") for name in dead)) or "none"
        raise SetupError(source, f"no such topic is declared that has dead letters; there are {names}")
    return dead[f"{source}.dead"]


async def _replay(
    broker: "Broker",
    dead: str,
    target: str,
    chosen: "Callable[[Letter], bool]",
    asks: Callable[[int], bool],
    *,
    again: bool,
    dry_run: bool,
) -> "list[Outcome]":
    """Fates without the letters' values, of which there may be many. Raises: typer.Abort where the answer is no."""
    from app.broker.dead_replay import DeadReplay, Fate
    from app.decisions.letters import DecisionBar
    from app.decisions.record import DECISIONS

    concerned = DECISIONS in (target, dead.removesuffix(".dead"))
    bar = DecisionBar(broker) if concerned else None
    replaying = DeadReplay(broker, dead, target, chosen, again=again, bar=bar)
    try:
        outcomes = [_light(outcome) async for outcome in replaying.survey()]
        waiting = sum(outcome.fate is Fate.WAITING for outcome in outcomes)
        if dry_run or not waiting:
            return outcomes
        if not asks(waiting):
            raise typer.Abort
        return [_light(outcome) async for outcome in replaying.run()]
    finally:
        await replaying.close()
        await broker.close()


def _light(outcome: "Outcome") -> "Outcome":
    import msgspec

    return outcome._replace(letter=msgspec.structs.replace(outcome.letter, key=None, value=None, headers=()))


def _warning(target: "TopicSpec") -> str:
    if target.time == "event":
        return f"They keep their time: what is older than the watermark is late, see {target.name}.late."
    return "Every reader of that topic gets them again, and passes over what it still remembers under its id, a day at the most."


def _cannot(outcome: "Outcome") -> bool:
    from app.broker.dead_replay import Fate

    return outcome.fate in (Fate.CUT, Fate.NO_RECORD, Fate.COUNTED, Fate.UNREADABLE, Fate.FORGOTTEN, Fate.REFUSED)


def _as_json(outcome: "Outcome") -> dict[str, Any]:
    shown = {"letter": "/".join(map(str, outcome.letter.lies_at)), "outcome": outcome.fate.name.lower()}
    if outcome.place is not None:
        shown["record"] = outcome.place
    return shown | ({"detail": outcome.detail} if outcome.detail else {})


def _sum_up(outcomes: "list[Outcome]") -> None:
    from collections import Counter

    from app.broker.dead_replay import Fate

    for outcome in [outcome for outcome in outcomes if _cannot(outcome)][:NAMED]:
        detail = f": {outcome.detail}" if outcome.detail else ""
        output.note(f"{'/'.join(map(str, outcome.letter.lies_at))}: {outcome.fate.value}{detail}")
    numbers = Counter(outcome.fate for outcome in outcomes)
    for fate in Fate:
        if numbers[fate]:
            output.line(f"{output.counted(numbers[fate], 'record')}: {fate.value}")
    if not outcomes:
        output.note("no such letters")
