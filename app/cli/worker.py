"""`worker`: runs streams, features, agents and actions until it is told to stop."""

from typing import TYPE_CHECKING, Annotated

import typer

from app.cli import output
from app.cli.loading import DEFAULT_APP, AppOption, BrokerOption, StoreOption, load_app, open_cluster, settings

if TYPE_CHECKING:
    import asyncio

    import anyio

    from app.application import App
    from app.core.settings import Settings

ModelOption = Annotated[
    str | None,
    typer.Option("--model", help="`rules` answers offline; otherwise a model's name. [default: claude-sonnet-4-6]"),
]


def worker(
    app: AppOption = DEFAULT_APP,
    broker: BrokerOption = None,
    store: StoreOption = None,
    model: ModelOption = None,
    only: Annotated[
        list[str] | None,
        typer.Option(
            "--only", metavar="PART", help="Just this part: streams, features, agents, actions. May be repeated."
        ),
    ] = None,
    mode: Annotated[
        str | None,
        typer.Option(
            "--mode", metavar="MODE", help="`shadow` or `dry-run`: decide beside the live workers, act on nothing."
        ),
    ] = None,
) -> None:
    """Run the application: streams, features, agents and actions in one process, or some of them.

    Start as many workers as you like: partitions are shared among them. The first SIGTERM or Ctrl-C lets running
    decisions finish, commits and leaves; the second one ends at once.

    Examples: `python -m app worker --model rules`; `python -m app worker --only agents --only actions`;
    `python -m app worker --only agents --mode shadow`
    """
    import anyio

    from app.worker import PARTS

    loaded = load_app(app)
    values = settings(broker=broker, store=store, model=model, mode=mode)
    output.set_up_logs(values.log_level)
    anyio.run(_work, loaded, values, tuple(only or PARTS), backend_options={"use_uvloop": has_uvloop()})


def has_uvloop() -> bool:
    """Whether uvloop is installed; it is not there for every platform."""
    from importlib.util import find_spec

    return find_spec("uvloop") is not None


async def _work(app: "App", settings: "Settings", parts: tuple[str, ...]) -> None:
    import asyncio
    import os

    import anyio

    from app.connections import open_model
    from app.core.clock import SystemClock
    from app.serving.stores import open_store
    from app.worker import Worker

    clock = SystemClock()
    broker, store = open_cluster(settings), open_store(settings.store, clock, settings.store_security)
    try:
        model = open_model(settings, app.rules, os.environ) if "agents" in parts and app.agents else None
        worker = Worker(app, settings, broker=broker, store=store, model=model, clock=clock, parts=parts)
        stopping = asyncio.Event()
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(_heed_signals, stopping, tasks.cancel_scope)
            await worker.run(stopping)
            tasks.cancel_scope.cancel()
    finally:
        await store.close()
        await broker.close()


async def _heed_signals(stopping: "asyncio.Event", scope: "anyio.CancelScope") -> None:
    """The first SIGTERM or Ctrl-C stops in order, the second at once."""
    import signal

    import anyio

    with anyio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
        async for _ in signals:
            if stopping.is_set():
                output.note("ends at once; what is not committed is handled again by the next worker")
                scope.cancel()
            stopping.set()
