"""`demo`: the whole system in one process, to watch or to count."""

from importlib import import_module
from typing import TYPE_CHECKING, Annotated, Any

import typer

from app.cli import output
from app.cli.loading import DEFAULT_APP, AppOption, load_app, settings
from app.cli.worker import has_uvloop

if TYPE_CHECKING:
    from app.application import App
    from app.core.clock import Clock
    from app.core.settings import Settings
    from app.demo import Demo, Scenario

START_MS = 1_800_000_000_000
"""Where virtual time begins: the same moment in every run."""


def demo(
    events: Annotated[int, typer.Option("--events", min=1, help="How many events the shop causes.")] = 4_000,
    seed: Annotated[int, typer.Option("--seed", help="Another seed, other shoppers.")] = 7,
    model: Annotated[
        str, typer.Option("--model", help="`rules` answers offline; claude-… needs ANTHROPIC_API_KEY.")
    ] = "rules",
    app: AppOption = DEFAULT_APP,
    scenario: Annotated[
        str, typer.Option("--scenario", metavar="MODULE:FUNCTION", help="Who plays.")
    ] = "features.demo:scenario",
    json: Annotated[
        bool, typer.Option("--json", help="As fast as it can, under virtual time; the summary as one JSON line.")
    ] = False,
) -> None:
    """Watch events become alerts, decisions and effects; nothing has to be installed or running.

    With --json the same seed gives the same counts, every time.

    Examples: `python -m app demo`; `python -m app demo --events 20000 --seed 7 --json`
    """
    from app.core.errors import SetupError
    from app.core.settings import EFFECT_SECRETS

    if json and model != "rules":
        raise SetupError("--json", "runs under virtual time, where a real model has no place; use --model rules")
    unused = dict.fromkeys((*EFFECT_SECRETS, *(f"{secret}_file" for secret in EFFECT_SECRETS)), "")
    values = settings(broker="memory://", store="memory://", model=model, action_urls={}, **unused)
    output.set_up_logs("warning")
    loaded, play = load_app(app), _scenario(scenario)
    if json:
        from app.core.clock import run_virtual

        summary = run_virtual(lambda clock: _make(loaded, values, clock).run(play, events, seed, "virtual"), START_MS)
        output.json_line(summary)
        return
    import anyio

    anyio.run(_watch, loaded, values, play, events, seed, backend_options={"use_uvloop": has_uvloop()})


def _scenario(name: str) -> Any:
    from app.core.errors import SetupError

    module_name, _, function = name.partition(":")
    try:
        return getattr(import_module(module_name), function)
    except (ImportError, AttributeError, ValueError):
        raise SetupError("--scenario", f"no function {name!r}") from None


def _make(app: "App", values: "Settings", clock: "Clock") -> "Demo":
    import os

    from app.connections import open_model
    from app.demo import Demo

    return Demo(app, values, open_model(values, app.rules, os.environ), clock)


async def _watch(app: "App", values: "Settings", play: "Scenario", events: int, seed: int) -> None:
    """Runs the demo beside a task that draws it."""
    import anyio
    from rich.console import Console

    from app.cli.demo_view import DemoView
    from app.cli.demo_watch import DemoWatch
    from app.core.clock import SystemClock

    made = _make(app, values, SystemClock())
    watch, view = DemoWatch(made, events), DemoView(Console())

    async def draw() -> None:
        while True:
            view.show(watch.snapshot())
            await anyio.sleep(0.1)

    with view:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(draw)
            await made.run(play, events, seed, "system")
            tasks.cancel_scope.cancel()
    view.finish(watch.snapshot())
