"""The application by name: each way to get it wrong is one line that says how to get it right."""

from pathlib import Path

import pytest

from app.cli.loading import load_app, settings
from app.cli.main import run
from app.core.errors import SetupError


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder that is current and importable; module names are used once."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    return tmp_path


def test_load_app_finds_the_variable(project: Path) -> None:
    """`module:variable` is imported from the current folder."""
    (project / "shop_agents.py").write_text("from app.application import App\napp = App(features=[])\n")
    assert "App" == type(load_app("shop_agents:app")).__name__


@pytest.mark.parametrize("name", ["agents", "agents:", ":app", ""])
def test_load_app_without_both_parts_is_refused(name: str) -> None:
    """A name is always module and variable."""
    with pytest.raises(SetupError, match=r"--app: .* is not module:variable, such as agents:app"):
        load_app(name)


def test_load_app_of_a_missing_module_names_the_folder(project: Path) -> None:
    """The usual cause is the wrong folder."""
    with pytest.raises(SetupError, match=r"--app: no module 'no_such_agents' from .*; go to the project's folder"):
        load_app("no_such_agents:app")


def test_load_app_of_a_module_that_lacks_a_library_names_it(project: Path) -> None:
    """A missing library is not mistaken for a missing module."""
    (project / "lacking_agents.py").write_text("import no_such_library\n")
    with pytest.raises(SetupError, match="--app: lacking_agents imports 'no_such_library', which is not installed"):
        load_app("lacking_agents:app")


def test_load_app_of_a_broken_module_says_the_error(project: Path) -> None:
    """An error in the user's module is one line; its traceback stays attached for --debug."""
    (project / "broken_agents.py").write_text("1 / 0\n")
    with pytest.raises(SetupError, match="--app: importing broken_agents failed: ZeroDivisionError") as caught:
        load_app("broken_agents:app")
    assert isinstance(caught.value.__cause__, ZeroDivisionError)


def test_load_app_of_a_wrong_declaration_passes_its_error_on(project: Path) -> None:
    """A declaration that this project refuses says so itself."""
    (project / "wrong_agents.py").write_text("from app.core.errors import SetupError\nraise SetupError('x', 'y')\n")
    with pytest.raises(SetupError, match=r"^x: y$"):
        load_app("wrong_agents:app")


def test_load_app_of_a_missing_variable_names_it(project: Path) -> None:
    """A module without the variable is named with it."""
    (project / "empty_agents.py").write_text("")
    with pytest.raises(SetupError, match="--app: module empty_agents has no variable 'app'"):
        load_app("empty_agents:app")


def test_load_app_of_something_else_says_what_it_is(project: Path) -> None:
    """Only an App will do."""
    (project / "odd_agents.py").write_text("app = 7\n")
    with pytest.raises(SetupError, match="--app: odd_agents:app is a int, not an App"):
        load_app("odd_agents:app")


def test_settings_option_overrides_environment(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An option that is given wins, one that is not is passed over."""
    monkeypatch.setenv("HEADRACE_BROKER", "kafka://one:9092")
    monkeypatch.setenv("HEADRACE_STORE", "redis://one:6379/0")
    loaded = settings(broker="kafka://two:9092", store=None)
    assert ("kafka://two:9092", "redis://one:6379/0") == (loaded.broker, loaded.store)


@pytest.mark.parametrize(
    "command",
    [
        ["topics", "create"],
        ["topics", "list"],
        ["topics", "plan"],
        ["dead", "list"],
        ["dead", "show", "raw.orders.dead/0/0"],
        [
            "send",
            "raw.orders",
            '{"order_id":"o","user_id":"u","amount_usd":1,"status":"placed","timestamp":"2026-01-01T00:00:00Z"}',
        ],
        ["replay", "orders.csv", "--topic", "raw.orders"],
        ["streams", "run", "order_rate", "--bounded"],
        ["streams", "reset", "order_rate"],
    ],
    ids=" ".join,
)
def test_commands_that_need_a_cluster_refuse_memory(command: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """A broker that lives in this process holds nothing that a command could show or change."""
    with pytest.raises(SystemExit) as left:
        run([*command, "--broker", "memory://"])
    assert 2 == left.value.code
    said = capsys.readouterr()
    assert ("", 1) == (said.out, said.err.count("\n"))
    assert said.err.startswith("error: --broker: memory:// ") or said.err.startswith(
        "error: HEADRACE_BROKER: memory:// "
    )
