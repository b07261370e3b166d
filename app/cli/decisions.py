"""`decisions list|show|replay|forget|verify`: what was decided and why, decided again, taken back, and checked."""

import re
import sys
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import typer

from app.cli import decisions_view as view
from app.cli import output
from app.cli.loading import (
    DEFAULT_APP,
    AppOption,
    BrokerOption,
    StoreOption,
    load_app,
    open_cluster,
    open_servers,
    require_shared_store,
    settings,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from app.application import App
    from app.broker.base import Admin, Broker, Reader
    from app.core.settings import Settings
    from app.decisions.forget import Plan, Remains
    from app.decisions.history import Found, Wanted
    from app.decisions.record import EffectRecord
    from app.decisions.replay import Replayed, Summary
    from app.models.gate import ModelGate

NO = 1
"""Exit code where nothing was found, something differs, something is broken, or something must be waited for."""

commands = typer.Typer(no_args_is_help=True, help="What agents decided, and why.")

AgentOption = Annotated[str | None, typer.Option("--agent", help="Only of this agent, such as `judge_order`.")]
EntityOption = Annotated[
    str | None, typer.Option("--entity", help="Only about this entity: the key of its alerts, such as `u-17`.")
]
SinceOption = Annotated[
    str | None,
    typer.Option("--since", metavar="TIME", help="Not older than `2h`, or than `2026-11-25T08:00:00Z`."),
]
UntilOption = Annotated[str | None, typer.Option("--until", metavar="TIME", help="Older than that.")]
LimitOption = Annotated[int, typer.Option("--limit", min=1, help="So many, the newest ones.")]


@commands.command("list")
def list_decisions(
    broker: BrokerOption = None,
    agent: AgentOption = None,
    entity: EntityOption = None,
    action: Annotated[str | None, typer.Option("--action", help="Only those that ended so, such as `block`.")] = None,
    reason: Annotated[
        str | None, typer.Option("--reason", help="Only those with this reason code, such as `features_stale`.")
    ] = None,
    mode: Annotated[str | None, typer.Option("--mode", help="Only `live`, `shadow` or `dry-run`.")] = None,
    effects: Annotated[
        str | None,
        typer.Option(
            "--effects",
            metavar="STATE",
            help="Only those with an effect that is `open` (not begun, or not at its end), `failed`, `unknown`, "
            "`withheld`, `logged` or `done`; `none` where the action has no effects, `repeated` where another decision "
            "about the alert stands.",
        ),
    ] = None,
    since: SinceOption = None,
    until: UntilOption = None,
    limit: LimitOption = 50,
    json: output.JsonOption = False,
) -> None:
    """List decisions, newest first, and how far their effects are.

    What is stuck right now: `--effects open`. What a person must look at: `--effects failed`, `unknown` and `withheld`.
    A narrow terminal shows fewer columns.

    Examples: `python -m app decisions list --since 1h --action block`; `python -m app decisions list --effects open
    --limit 1000 --json`
    """
    import asyncio

    from app.core.errors import SetupError
    from app.decisions.progress import STATES

    if effects is not None and effects not in STATES:
        raise SetupError("--effects", f"{effects!r} is none; there are {', '.join(STATES)}")
    wanted = _wanted(agent=agent, entity=entity, action=action, reason=reason, mode=mode, since=since, until=until)
    rows, unreadable = asyncio.run(_list(settings(broker=broker), wanted, effects, limit, json))
    if rows:
        output.table(view.COLUMNS, rows, whole=view.WHOLE_COLUMNS, spare=view.SPARE_COLUMNS)
        output.note(f"{output.counted(len(rows), 'decision')}; `decisions show PLACE` shows one whole")
    elif not json:
        output.note("no decisions")
    _note_unreadable(unreadable)


@commands.command()
def show(
    what: Annotated[
        str, typer.Argument(metavar="ALERT_ID|PARTITION/OFFSET", help="As `decisions list` names alert and place.")
    ],
    app: AppOption = DEFAULT_APP,
    broker: BrokerOption = None,
    json: output.JsonOption = False,
) -> None:
    """Show decisions whole: the alert, what the agent saw and was answered, what policy changed, and what came of it.

    Of an alert all decisions are shown, and which one stands. The application is asked which effects there will be where
    they have not begun.

    Examples: `python -m app decisions show 3/17`; `python -m app decisions show high_value_order:u-17:o-1 --json`
    """
    import asyncio

    shown = asyncio.run(_look_up(settings(broker=broker), what))
    for number, one in enumerate(shown):
        intended = _intended(app, one.found) if one.has_not_begun else None
        if json:
            output.json_line(view.whole(*one, intended))
        else:
            if number:
                output.line("")
            view.show(*one, intended)
    if not shown:
        output.error(f"{what}: no decision lies there (any more); `decisions list` names alerts and places")
        raise typer.Exit(NO)


@commands.command()
def replay(
    app: AppOption = DEFAULT_APP,
    broker: BrokerOption = None,
    agent: AgentOption = None,
    entity: EntityOption = None,
    since: SinceOption = None,
    until: UntilOption = None,
    limit: LimitOption = 100,
    model: Annotated[
        str | None,
        typer.Option("--model", help="Ask this one again: `rules`, or a model's name. Else the record answers."),
    ] = None,
    model_url: Annotated[
        str | None, typer.Option("--model-url", metavar="URL", help="Another address for the Messages API.")
    ] = None,
    json: output.JsonOption = False,
) -> None:
    """Decide again, offline, from what was recorded, and show what comes out otherwise. Nothing acts.

    Without --model the recorded answers pass today's validation and policy again: any difference is exit code 1. With
    it the recorded contexts go to another model, and differences are what one wants to know. Recorded are the features,
    the alert and the answers; handlers, prompts and policies are those of the application as it is now.

    Examples: `python -m app decisions replay --since 24h`; `python -m app decisions replay --model claude-haiku-5-5
    --limit 500 --json`
    """
    import asyncio

    from app.core.errors import SetupError

    if model_url is not None and model is None:
        raise SetupError("--model-url", "says where a model is; name it too, with --model")
    wanted = _wanted(agent=agent, entity=entity, since=since, until=until)
    values = settings(broker=broker, model=model, model_url=model_url)
    rows: list[tuple[str, ...]] = []

    def tell(one: "Replayed") -> None:
        if json:
            output.json_line(view.replayed(one))
        elif one.differences or one.changed:
            rows.append(view.replayed_row(one))

    loaded = load_app(app)
    summary, asked, unreadable = asyncio.run(_replay(loaded, values, wanted, limit, model is not None, tell))
    if json:
        output.json_line(view.summed_up(summary, asked, values.model_prices))
    else:
        if rows:
            output.table(view.REPLAYED_COLUMNS, rows)
        view.sum_up(summary, asked, values.model_prices)
    _note_unreadable(unreadable)
    if summary.different and model is None:
        raise typer.Exit(NO)


@commands.command()
def forget(
    entity: Annotated[str, typer.Argument(metavar="ENTITY", help="Who: the key of the alerts, such as `u-17`.")],
    app: AppOption = DEFAULT_APP,
    broker: BrokerOption = None,
    store: StoreOption = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what would be removed, and leave everything.")
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    json: output.JsonOption = False,
) -> None:
    """Remove what is kept about one entity: decisions, reviews, effects and features.

    A decision leaves its place in its chain and its hash, so that `decisions verify` still holds. What has not ended is
    waited for: the exit code is 1 then, and nothing is removed. Afterwards no command here shows those decisions any
    more, at once; their bytes stay on the broker's disks, where any Kafka client can read them, until compaction. It is
    said when that is, and which topics may still name the entity and how long. It may be repeated. What comes while it asks
    is removed, too, or waited for.

    Examples: `python -m app decisions forget u-17 --dry-run`; `python -m app decisions forget u-17 --yes --json`
    """
    import asyncio

    from app.core.errors import SetupError

    values = settings(broker=broker, store=store)
    require_shared_store(values)  # before it asks
    if json and not (yes or dry_run):
        raise SetupError("--json", "does not ask; add --yes or --dry-run")
    loaded = load_app(app)
    plan, remains, final = asyncio.run(_plan_forgetting(loaded, values, entity))
    held = 0
    if not (plan.waits or dry_run or yes):
        view.say_planned(plan)
        typer.confirm("Remove it?", abort=True, err=True)
        # Something may have come meanwhile.
        plan, remains, final = asyncio.run(_plan_forgetting(loaded, values, entity))
    may = not plan.waits and not dry_run
    if may:
        held = asyncio.run(_carry_out(values, plan))
    if json:
        output.json_line(view.forgotten(plan, remains, final, removed=may, stores=held))
    else:
        view.say_forgotten(plan, remains, final, removed=may, stores=held)
    if plan.waits:
        raise typer.Exit(NO)


@commands.command()
def verify(
    broker: BrokerOption = None,
    partition: Annotated[int | None, typer.Option("--partition", min=0, help="Only this one.")] = None,
    json: output.JsonOption = False,
) -> None:
    """Check the chains of decisions: nothing changed, missing, twice or taken back; exit code 1 says what is.

    What was forgotten, and what retention has removed from the beginning, is no break. A worker that is killed while
    the broker takes nothing may leave a gap: that decision was never acknowledged, and its alert was decided again.

    Example: `python -m app decisions verify --json`
    """
    import asyncio

    if not asyncio.run(_verify(settings(broker=broker), partition, json)):
        raise typer.Exit(NO)


def moment_ms(text: str, setting: str, now_ms: int) -> int:
    """Wall ms of `2h` ago, or of an instant with its zone. Raises: SetupError."""
    from datetime import datetime

    from app.core.durations import parse_duration_ms
    from app.core.errors import SetupError
    from app.core.instants import instant_ms

    if re.fullmatch(r"\d+\s*[a-z]+", text.strip()):
        return now_ms - parse_duration_ms(text, setting)
    try:
        return instant_ms(datetime.fromisoformat(text))
    except (ValueError, TypeError):
        raise SetupError(setting, f"{text!r} is no time; write 2h, 7d, or 2026-11-25T08:00:00Z") from None


def _wanted(*, since: str | None, until: str | None, mode: str | None = None, **wanted: str | None) -> "Wanted":
    from typing import get_args

    from app.core.clock import SystemClock
    from app.core.errors import SetupError
    from app.decisions.history import Wanted
    from app.decisions.record import Mode

    if mode is not None and mode not in get_args(Mode):
        raise SetupError("--mode", f"{mode!r} is none; there are {', '.join(get_args(Mode))}")
    now_ms = SystemClock().now_ms()
    return Wanted(
        since_ms=None if since is None else moment_ms(since, "--since", now_ms),
        until_ms=None if until is None else moment_ms(until, "--until", now_ms),
        mode=mode,
        **wanted,
    )


class _Log(NamedTuple):
    """The decisions of a cluster, open for reading."""

    broker: "Broker"
    admin: "Admin"
    reader: "Reader"
    partitions: int


@asynccontextmanager
async def _open_log(values: "Settings") -> "AsyncIterator[_Log]":
    """Raises: SetupError where the topic does not exist; Unavailable."""
    from app.core.errors import SetupError
    from app.decisions.record import DECISIONS

    broker = open_cluster(values)
    admin, reader = broker.admin(), broker.reader()
    try:
        described = (await admin.describe([DECISIONS]))[DECISIONS]
        if described is None:
            raise SetupError(DECISIONS, "is not there; create it: python -m app topics create")
        yield _Log(broker, admin, reader, described.partitions)
    finally:
        await reader.close()
        await admin.close()
        await broker.close()


async def _list(
    values: "Settings", wanted: "Wanted", state: str | None, limit: int, json: bool
) -> tuple[list[tuple[Any, ...]], int]:
    """Rows for a person (for a script each is written as it is found), and how many records nobody can read."""
    from contextlib import aclosing

    from app.core.clock import SystemClock
    from app.decisions.history import PassedOver
    from app.decisions.progress import newest_with_effects

    passed_over = PassedOver()
    now_ms = SystemClock().now_ms() if sys.stdout.isatty() else None
    rows: list[tuple[Any, ...]] = []
    async with (
        _open_log(values) as log,
        aclosing(newest_with_effects(log.reader, log.partitions, wanted, state, limit, passed_over)) as found,
    ):
        async for one in found:
            if json:
                output.json_line(view.listed(one))
            else:
                rows.append(view.row(one, now_ms))
    return rows, passed_over.unreadable


class _Shown(NamedTuple):
    """A decision, the one that stands about its alert and agent, and what is known of that one's effects."""

    found: "Found"
    stands: "Found | None"
    effects: "EffectRecord | None"

    @property
    def has_not_begun(self) -> bool:
        return self.effects is None and self.stands is not None and self.stands.place == self.found.place


async def _look_up(values: "Settings", what: str) -> list[_Shown]:
    """The decisions at a place or about an alert. Raises: SetupError where nothing can lie there."""
    from app.core.errors import SetupError
    from app.decisions.history import PassedOver, about_alert, at_place, effects_of, standing

    async with _open_log(values) as log:
        place = re.fullmatch(r"(\d{1,9})/(\d{1,18})", what)
        chosen, alert_id = None, what
        if place is not None:
            if int(place[1]) >= log.partitions:
                raise SetupError(what, f"partition {place[1]} does not exist; there are 0 to {log.partitions - 1}")
            chosen = await at_place(log.reader, int(place[1]), int(place[2]), PassedOver())
            if chosen is None:
                return []
            alert_id = chosen.record.alert_id
        decisions = await about_alert(log.reader, log.partitions, alert_id, PassedOver())
        if place is None and not decisions and re.match(r"\d+/", what):
            raise SetupError(what, "is neither the id of an alert nor PARTITION/OFFSET, such as 3/17")
        places = {one.record.agent: one.partition for one in decisions}
        entered = {name: await effects_of(log.reader, number, alert_id, name) for name, number in places.items()}
    return [
        _Shown(one, standing(decisions, one.record.agent, entered.get(one.record.agent)), entered.get(one.record.agent))
        for one in ([chosen] if chosen is not None else decisions)
    ]


def _intended(app_name: str, found: "Found") -> list[str] | None:
    """The effects that the application declares for what was decided; None where it does not know the agent, or cannot be
    loaded here: the record can be read without it."""
    from app.core.errors import SetupError

    try:
        agent = load_app(app_name).agents.get(found.record.agent)
    except SetupError:
        return None
    return None if agent is None else [action.name for action in agent.actions(str(found.decision.get("action")))]


async def _replay(
    app: "App", values: "Settings", wanted: "Wanted", limit: int, with_model: bool, tell: "Callable[[Replayed], None]"
) -> "tuple[Summary, str | None, int]":
    """What it came to, the name of the model that was asked, and how many records nobody can read."""
    import os
    from contextlib import aclosing

    from app.connections import open_model
    from app.decisions.history import PassedOver, newest
    from app.decisions.replay import Replayer, replay_all

    gate = _gate(app, values, open_model(values, app.rules, os.environ)) if with_model else None
    passed_over = PassedOver()
    try:
        async with (
            _open_log(values) as log,
            aclosing(newest(log.reader, log.partitions, wanted, limit, passed_over)) as found,
        ):
            summary = await replay_all(Replayer(app.agents, gate), found, values.model_concurrency, tell)
    except BaseExceptionGroup as group:
        raise group.exceptions[0] from None
    finally:
        if gate is not None:
            await gate.close()
    return summary, gate.model.name if gate is not None else None, passed_over.unreadable


def _gate(app: "App", values: "Settings", model: Any) -> "ModelGate":
    from app.models.gate import ModelGate
    from app.models.rules import require_rules

    if values.model == "rules":
        require_rules(app.rules, app.agents)
    return ModelGate(model, concurrency=values.model_concurrency, attempt_ms=values.model_attempt_ms)


async def _plan_forgetting(
    app: "App", values: "Settings", entity: str
) -> "tuple[Plan, list[Remains], dict[str, int | None]]":
    """What there is of the entity, what will remain of it, and when what is removed will be gone."""
    from app.core.clock import SystemClock
    from app.decisions.forget import final_after_ms, find, remaining
    from app.streams.generations import known_generations, others
    from app.streams.pipelines import table_of

    async with _open_log(values) as log:
        app.number(known := await known_generations(log.broker))
        left = {str(table_of(name, pipeline)) for name, pipeline in others(app.pipelines, known)}
        plan = await find(entity, log.reader, SystemClock(), log.partitions, app.views)
        remains = await remaining(log.admin, app.topics.all(), app.views, left)
        return plan, remains, await final_after_ms(log.admin, sorted({write.topic for write in plan.writes}))


async def _carry_out(values: "Settings", plan: "Plan") -> int:
    """Removes what the plan names; returns in how many views the store held the entity."""
    from app.decisions.forget import carry_out

    async with open_servers(values) as (broker, store):
        producer = broker.producer()
        await store.start()
        await producer.start()
        try:
            return await carry_out(plan, producer, store)
        finally:
            await producer.close()


async def _verify(values: "Settings", partition: int | None, json: bool) -> bool:
    """Whether nothing is broken."""
    from app.core.errors import SetupError
    from app.decisions.verify import check_partition

    decisions = chains = forgotten = broken = 0
    async with _open_log(values) as log:
        if partition is not None and partition >= log.partitions:
            raise SetupError("--partition", f"there are 0 to {log.partitions - 1}")
        for number in range(log.partitions) if partition is None else (partition,):
            check = await check_partition(log.reader, number)
            decisions, chains = decisions + check.decisions, chains + check.chains
            forgotten, broken = forgotten + check.forgotten, broken + len(check.broken)
            for what in check.broken:
                if json:
                    output.json_line({"broken": what})
                else:
                    output.line(what)
    if json:
        output.json_line({"decisions": decisions, "chains": chains, "forgotten": forgotten, "broken_count": broken})
    else:
        found = f"{output.counted(decisions, 'decision')} in {output.counted(chains, 'chain')}, {forgotten} forgotten"
        output.line(f"{found}: {f'{broken} broken' if broken else 'nothing is broken'}")
    return not broken


def _note_unreadable(count: int) -> None:
    if count:
        output.note(
            f"{output.counted(count, 'record')} passed over that nobody can read; `decisions verify` names them"
        )
