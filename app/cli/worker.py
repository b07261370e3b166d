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

SIGNALLED = 128
"""Plus the number of the signal: the exit code of a process that a signal has ended, as shells say it."""

ModelOption = Annotated[
    str | None,
    typer.Option(
        "--model",
        help="`rules` answers offline; otherwise a model's name. [default: HEADRACE_MODEL, or claude-sonnet-4-6]",
    ),
]


def worker(
    app: AppOption = DEFAULT_APP,
    broker: BrokerOption = None,
    store: StoreOption = None,
    model: ModelOption = None,
    only: Annotated[
        list[str] | None,
        typer.Option(
            "--only",
            metavar="PART",
            help="Just this part: streams, features, agents, actions. May be repeated. [default: all; "
            "agents in another mode than live]",
        ),
    ] = None,
    engine: Annotated[
        str | None,
        typer.Option(
            "--engine",
            metavar="ENGINE",
            help="Where the streams run: `asyncio`, in here, or `flink`. [default: HEADRACE_ENGINE, or asyncio]",
        ),
    ] = None,
    mode: Annotated[
        str | None,
        typer.Option(
            "--mode",
            metavar="MODE",
            help="`shadow` or `dry-run`: decide beside the live workers, act on nothing. [default: HEADRACE_MODE, or live]",
        ),
    ] = None,
) -> None:
    """Run the application: streams, features, agents and actions in one process, or some of them.

    Start as many workers as you like: partitions are shared among them. The first SIGTERM or Ctrl-C lets running
    decisions finish, commits and leaves; the second one ends at once, with exit code 143 or 130.

    With `--engine flink` it runs all but the streams, which are jobs of their own: `python -m flink_jobs submit`. It still judges
    every record, and says how far the features are. All workers have the same engine.

    In another mode than live it runs agents alone: they read the features that the live workers keep.

    Examples: `python -m app worker --model rules`; `python -m app worker --only agents --only actions`;
    `python -m app worker --mode shadow`
    """
    import anyio

    from app.worker import parts_in

    loaded = load_app(app)
    values = settings(broker=broker, store=store, model=model, mode=mode, engine=engine)
    output.set_up_logs(values.log_level)
    parts = tuple(only or parts_in(values.mode))
    forced_by = anyio.run(_work, loaded, values, parts, backend_options={"use_uvloop": has_uvloop()})
    if forced_by is not None:
        raise typer.Exit(SIGNALLED + forced_by)


def has_uvloop() -> bool:
    """Whether uvloop is installed; it is not there for every platform."""
    from importlib.util import find_spec

    return find_spec("uvloop") is not None


async def _work(app: "App", settings: "Settings", parts: tuple[str, ...]) -> int | None:
    """Runs the worker until a signal. The number of the second one, which has ended it at once; None where none came."""
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
        forced: list[int] = []
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(_heed_signals, stopping, tasks.cancel_scope, forced)
            await worker.run(stopping)
            tasks.cancel_scope.cancel()
        return forced[0] if forced else None
    finally:
        await store.close()
        await broker.close()


async def _heed_signals(stopping: "asyncio.Event", scope: "anyio.CancelScope", forced: list[int]) -> None:
    """The first SIGTERM or Ctrl-C stops in order, the second at once; it and those behind it are put into `forced`."""
    import signal

    import anyio

    with anyio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
        async for number in signals:
            if stopping.is_set():
                forced.append(number)
                output.note("ends at once; what is not committed is handled again by the next worker")
                scope.cancel()
            stopping.set()
