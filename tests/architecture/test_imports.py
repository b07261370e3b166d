"""What importing a room costs, and what the shop window shows."""

import subprocess
import sys

import pytest

import app

CLIENTS = (
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
    """Each exported name exists, is documented, and lives in this package."""
    assert sorted(set(app.__all__)) == list(app.__all__) == dir(app)
    for name in app.__all__:
        found = getattr(app, name)
        assert (getattr(found, "__module__", None) or "app").startswith(("app", "typing")), name


def test_import_of_an_unknown_name_is_an_attribute_error() -> None:
    """A wrong name fails like that of any module."""
    with pytest.raises(AttributeError, match="module 'app' has no attribute 'Agnet'"):
        _ = app.Agnet
