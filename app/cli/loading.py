"""What most commands begin with: the application by name, and the settings with the options that override them."""

import importlib
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from app.core.errors import HeadraceError, SetupError
from app.core.settings import Settings, load_settings

if TYPE_CHECKING:
    from app.application import App
    from app.broker.base import Broker
    from app.serving.base import FeatureStore

DEFAULT_APP = "agents:app"

AppOption = Annotated[
    str, typer.Option("-A", "--app", metavar="MODULE:NAME", help="The application, as `module:variable`.")
]
BrokerOption = Annotated[
    str | None,
    typer.Option(
        "--broker",
        metavar="ADDRESS",
        help="`kafka://host:port`, or aiokafka://… [default: HEADRACE_BROKER, or port 9092 here]",
    ),
]
StoreOption = Annotated[
    str | None,
    typer.Option(
        "--store",
        metavar="ADDRESS",
        help="Feature store: `redis://…`, `rediss://…`, `unix:///…` or `memory://`. [default: HEADRACE_STORE, or port 6379 here]",
    ),
]


def load_app(name: str) -> "App":
    """The application of `module:variable`, imported from the folder one is in.

    Raises: SetupError in one line when there is no such module or variable, when its import fails, or when the variable
    is something else.
    """
    module_name, _, variable = name.partition(":")
    if not module_name or not variable:
        raise SetupError("--app", f"{name!r} is not module:variable, such as {DEFAULT_APP}")
    module = _import(module_name)
    if not hasattr(module, variable):
        raise SetupError("--app", f"module {module_name} has no variable {variable!r}")
    from app.application import App

    found = getattr(module, variable)
    if not isinstance(found, App):
        raise SetupError("--app", f"{name} is a {type(found).__name__}, not an App")
    return found


def settings(**overrides: Any) -> Settings:
    """Settings of this process: pyproject.toml in this folder, the environment, then `overrides` that are not None.

    Raises: SetupError naming the wrong one.
    """
    return load_settings(os.environ, Path.cwd(), overrides)


def open_cluster(values: Settings) -> "Broker":
    """The cluster that the settings name.

    Raises: SetupError for memory://, which no other process can see.
    """
    from app.connections import open_broker
    from app.core.clock import SystemClock

    if values.broker.startswith("memory://"):
        raise SetupError("broker", "memory:// lives and dies with one process; name the cluster, kafka://host:port")
    return open_broker(values, SystemClock())


def require_shared_store(values: Settings) -> None:
    """Raises: SetupError for memory://, which no other process can see."""
    if values.store.startswith("memory://"):
        raise SetupError("store", "memory:// lives and dies with one process; name the store of the running worker")


@asynccontextmanager
async def open_servers(values: Settings) -> "AsyncIterator[tuple[Broker, FeatureStore]]":
    """The cluster and the store that the settings name, the store still to be started; both are closed at the end.

    Raises: SetupError where one of them is memory://.
    """
    from app.core.clock import SystemClock
    from app.serving.stores import open_store

    require_shared_store(values)
    broker = open_cluster(values)
    store = open_store(values.store, SystemClock(), values.store_security)
    try:
        yield broker, store
    finally:
        await store.close()
        await broker.close()


def _import(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except HeadraceError:
        raise
    except ModuleNotFoundError as error:
        if error.name is not None and (name == error.name or name.startswith(f"{error.name}.")):
            raise SetupError(
                "--app", f"no module {error.name!r} from {Path.cwd()}; go to the project's folder"
            ) from None
        raise SetupError("--app", f"{name} imports {error.name!r}, which is not installed") from error
    except Exception as error:
        raise SetupError("--app", f"importing {name} failed: {type(error).__name__}: {error}") from error
