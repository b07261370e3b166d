"""`switch list|off|on|mode`: what agents may do and actions may make, changed while they run."""

from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import typer

from app.cli import output
from app.cli.loading import DEFAULT_APP, AppOption, BrokerOption, load_app, open_cluster, settings

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from app.application import App
    from app.broker.base import Broker, Producer
    from app.decisions.switches import ModeSwitch, Switch, Switches

CONFIRMED_WITHIN_SECONDS = 2.0
"""How long the heartbeats of running workers are listened to: within it they know it, or make no effects."""

ReasonOption = Annotated[str, typer.Option("--reason", metavar="TEXT", help="Why, for those who look later.")]
NameArgument = Annotated[
    str,
    typer.Argument(
        metavar="NAME", help="`all`, an agent, an action of all agents (`block`), or of one (`judge_order.block`)."
    ),
]

commands = typer.Typer(no_args_is_help=True, help="Switches of agents and actions, and modes of agents.")


@commands.command()
def off(
    name: NameArgument,
    reason: ReasonOption = "",
    app: AppOption = DEFAULT_APP,
    broker: BrokerOption = None,
    json: output.JsonOption = False,
) -> None:
    """Switch something off, in all workers, within two seconds and until it is switched on again.

    An action that is off is decided no more, the agent's fallback stands instead, and effects that were decided but not
    made are withheld: a person is asked about each. So it is with a fallback's own action: it goes on being decided, and
    people are asked. An agent that is off asks no model; its fallback decides, and is acted on where it leaves the matter
    to a person. `all`: both, of everything.

    Examples: `python -m app switch off block --reason "payments look wrong"`; `python -m app switch off judge_order.block`
    """
    _switch(name, "off", reason, app, broker, json)


@commands.command()
def on(
    name: NameArgument,
    reason: ReasonOption = "",
    app: AppOption = DEFAULT_APP,
    broker: BrokerOption = None,
    json: output.JsonOption = False,
) -> None:
    """Switch something on again. What was withheld in between stays with the people who were asked.

    A name that is listed and that the application has no more is removed, with its mode.

    Example: `python -m app switch on block`
    """
    _switch(name, "on", reason, app, broker, json)


@commands.command()
def mode(
    agent: Annotated[str, typer.Argument(metavar="AGENT", help="Its name, as `python -m app agents` says.")],
    mode: Annotated[str, typer.Argument(metavar="MODE", help="`live`, `shadow` or `dry-run`.")],
    reason: ReasonOption = "",
    app: AppOption = DEFAULT_APP,
    broker: BrokerOption = None,
    json: output.JsonOption = False,
) -> None:
    """Set an agent's mode, in all workers. Only what is decided `live` is acted on. A worker that has not yet heard of the
    switch may still decide live; such effects are withheld and a person is asked.

    `shadow` and `dry-run` do the same, each in groups and with limits and a budget of its own: take `shadow`, and `dry-run`
    for a second trial beside it.

    A worker runs the agent in this mode or in its own (`worker --mode`), whichever is more careful. Alerts that come while
    no worker is live wait for one.

    Example: `python -m app switch mode judge_order shadow --reason "new prompt on trial"`
    """
    import asyncio

    from app.core.errors import SetupError
    from app.decisions.switches import CAUTION, ModeSwitch, write_switch

    agents = load_app(app).agents
    if agent not in agents:
        raise SetupError("AGENT", f"no agent is called {agent!r}; there are {', '.join(agents) or 'none'}")
    modes = {known: known for known in CAUTION}
    if mode not in modes:
        raise SetupError("MODE", f"{mode!r} is no mode; there are {', '.join(reversed(CAUTION))}")
    written = ModeSwitch(agent=agent, mode=modes[mode], **_by_whom(reason))
    told = asyncio.run(_write(open_cluster(settings(broker=broker)), lambda producer: write_switch(producer, written)))
    meanwhile = "may decide live, and that is withheld" if mode != "live" else "decide in the mode they know"
    _confirm(written, f"agent {agent} is in mode {mode}", told, meanwhile, json)


@commands.command("list")
def list_switches(app: AppOption = DEFAULT_APP, broker: BrokerOption = None, json: output.JsonOption = False) -> None:
    """List what can be switched off, what is, and in which mode each agent is.

    A switch that is on does nothing while another one that covers it is off: `on (all is off)`.

    Example: `python -m app switch list --json`
    """
    import asyncio

    from app.core.instants import instant

    loaded = load_app(app)
    switches = asyncio.run(_read(open_cluster(settings(broker=broker))))
    rows = _rows(loaded, switches)
    if json:
        for row in rows:
            output.json_line(row)
        return
    output.table(
        ("switch", "state", "mode", "since", "by", "reason"),
        [
            (
                row["switch"],
                row["state"] if row["state"] == row["effective"] else f"{row['state']} ({row['because']} is off)",
                row["mode"],
                row["at_ms"] and f"{instant(row['at_ms']):%Y-%m-%d %H:%M:%S}Z",
                row["who"],
                row["reason"],
            )
            for row in rows
        ],
    )


def _rows(app: "App", switches: "Switches") -> list[dict[str, Any]]:
    """One a name; those of an agent's mode stand beside it. The last one of both says who, when and why.

    effective: whether it is off, by itself or because of another one, which `because` names.
    """
    from app.decisions.switches import covering, switch_names

    names = switch_names(app.agents)
    rows = []
    for name in (*names, *sorted((switches.switched.keys() | switches.modes.keys()) - set(names))):
        switch, mode = switches.switched.get(name), switches.modes.get(name)
        last = max((one for one in (switch, mode) if one is not None), key=lambda one: one.at_ms, default=None)
        because = next((other for other in covering(name, app.agents) if switches.is_off(other)), None)
        row: dict[str, Any] = {
            "switch": name,
            "state": switch.state if switch else "on",
            "effective": "off" if because or switches.is_off(name) else "on",
            "because": because,
            "mode": mode.mode if mode else "live" if name in app.agents else None,
        }
        row |= {"at_ms": last and last.at_ms, "who": last and last.who, "reason": last and last.reason}
        rows.append(row)
    return rows


def _switch(name: str, state: Any, reason: str, app_name: str, broker: str | None, json: bool) -> None:
    import asyncio

    from app.core.errors import SetupError
    from app.decisions.switches import Switch, switch_names, take_back, write_switch

    names = switch_names(load_app(app_name).agents)
    written = Switch(name=name, state=state, **_by_whom(reason))
    said, write = f"{name} is {state}", lambda producer: write_switch(producer, written)
    if name not in names:
        listed = asyncio.run(_read(open_cluster(settings(broker=broker)))) if state == "on" else None
        if listed is None or name not in listed.switched.keys() | listed.modes.keys():
            raise SetupError("NAME", f"no switch is called {name!r}; there are {', '.join(names)}")
        said, write = f"{name} is removed", lambda producer: take_back(producer, name)
    told = asyncio.run(_write(open_cluster(settings(broker=broker)), write))
    _confirm(written, said, told, "hold their effects", json)


def _by_whom(reason: str) -> dict[str, Any]:
    import getpass
    import os

    from app.core.clock import SystemClock

    try:
        who = getpass.getuser()
    except (KeyError, OSError):  # a container's user often has no name
        who = f"uid {os.getuid()}"
    return {"who": who, "reason": reason, "at_ms": SystemClock().now_ms()}


class _Told(NamedTuple):
    """Whose heartbeats were seen, and whether each knows; trouble: why nobody could be listened to."""

    workers: dict[str, bool]
    trouble: str = ""


def _confirm(written: "Switch | ModeSwitch", said: str, told: _Told, meanwhile: str, json: bool) -> None:
    """Says what is written and who knows it. meanwhile: what those do that do not."""
    import msgspec

    know = sum(told.workers.values())
    behind = len(told.workers) - know
    if json:
        output.json_line({**msgspec.to_builtins(written), "workers": know, "behind": behind})
    else:
        output.line(said)
    if told.trouble:
        output.note(f"it is written; who knows it could not be heard: {told.trouble}")
    if json:
        return
    if told.workers:
        output.note(f"{know} {'worker knows' if know == 1 else 'workers know'} it")
    elif not told.trouble:
        output.note(f"no worker's heartbeat was seen; whichever starts reads it first, and those that run {meanwhile}")
    if behind:
        output.note(f"{behind} did not say so within {CONFIRMED_WITHIN_SECONDS:.0f} s; until they do they {meanwhile}")


async def _write(broker: "Broker", write: "Callable[[Producer], Awaitable[int]]") -> _Told:
    """Raises: Unavailable, Rejected where nothing may have been written; never once that is acknowledged."""
    from app.core.errors import Rejected, Unavailable
    from app.core.text import one_line
    from app.decisions.switches import heard

    producer, reader = broker.producer(), broker.reader()
    try:
        await producer.start()
        offset = await write(producer)
        try:
            return _Told(await heard(reader, offset, CONFIRMED_WITHIN_SECONDS))
        except (Unavailable, Rejected) as error:
            return _Told({}, one_line(error))
    finally:
        await reader.close()
        await producer.close()
        await broker.close()


async def _read(broker: "Broker") -> "Switches":
    from app.decisions.switches import Switches

    reader = broker.reader()
    try:
        switches = Switches(broker.producer(), reader, process="")
        await switches.load()
        return switches
    finally:
        await reader.close()
        await broker.close()
