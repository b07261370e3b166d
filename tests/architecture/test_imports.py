"""What importing a room costs, and what the shop window shows."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import app
from tests.architecture.sources import tree

CLIENTS = (
    "aiokafka",
    "confluent_kafka",
    "redis",
    "hiredis",
    "anthropic",
    "duckdb",
    "pyflink",
    "httpx2",
    "starlette",
    "uvicorn",
    "typer",
)


def loaded_by(statement: str) -> set[str]:
    """The clients that are loaded after a statement in a fresh interpreter."""
    code = f"{statement}\nimport sys\nprint(*[name for name in {CLIENTS!r} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    return set(done.stdout.split())


@pytest.mark.parametrize(
    "statement",
    [
        "import app",
        "import app.streams.windows",
        "import app.core.settings",
        "import app.broker.memory",
        "import features.fraud",
    ],
)
def test_import_of_a_pure_room_loads_no_client(statement: str) -> None:
    """Declaring streams needs no Kafka, Redis, model or Flink."""
    assert set() == loaded_by(statement)


def test_import_of_the_shop_window_shows_all_names() -> None:
    """Each exported name exists, at run time and for type checkers, and no other does."""
    for name in app.__all__:
        assert getattr(app, name) is not None
    typed = [
        alias.asname
        for node in ast.walk(tree(Path("app/__init__.py")))
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("app.")
        for alias in node.names
    ]
    assert sorted(set(app.__all__)) == list(app.__all__) == dir(app) == sorted(typed, key=str)


def test_import_of_an_unknown_name_is_an_attribute_error() -> None:
    """A wrong name fails like that of any module."""
    with pytest.raises(AttributeError, match="module 'app' has no attribute 'Agnet'"):
        _ = app.Agnet
