"""`agents`: what is declared, as JSON and as a table."""

import json
from pathlib import Path

import pytest

from agents import app
from app.cli.main import run


def call(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[object, str, str]:
    with pytest.raises(SystemExit) as left:
        run(["agents", *arguments])
    said = capsys.readouterr()
    return left.value.code, said.out, said.err


def test_agents_json_is_what_the_application_declares(capsys: pytest.CaptureFixture[str]) -> None:
    """Alerts, bounds, fallback, and what follows each action."""
    code, out, _ = call(capsys, "--json")
    rows = [json.loads(line) for line in out.splitlines()]
    assert (0, list(app.agents)) == (code, [row["name"] for row in rows])
    for row, agent in zip(rows, app.agents.values(), strict=True):
        assert (agent.topic, agent.decides.__name__) == (row["topic"], row["decides"])
        assert (agent.concurrency, agent.deadline_ms) == (row["concurrency"], row["deadline_ms"])
        assert sorted(agent.alert_types) == row["alerts"]
        assert (agent.fallback.action if agent.fallback else None) == row["fallback"]
        assert set(agent.actions_allowed) == row["actions"].keys()
        assert {name: [effect.name for effect in agent.actions(name)] for name in row["actions"]} == row["actions"]
    assert any(effects for row in rows for effects in row["actions"].values()), "at least one action does something"


def test_agents_table_shows_actions_that_nothing_follows(capsys: pytest.CaptureFixture[str]) -> None:
    """`nothing` is said, so that it is not taken for an oversight of the table."""
    code, out, _ = call(capsys)
    assert 0 == code
    idle = {action for agent in app.agents.values() for action in agent.actions_allowed if not agent.actions(action)}
    assert idle
    assert set() == {action for action in idle if f"{action}: nothing" not in " ".join(out.split())}
    assert "high_value_order" in out


def test_agents_of_an_application_without_any(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing, and no error."""
    (tmp_path / "agents_none.py").write_text("from app.application import App\napp = App(features=[])\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    assert (0, "", "") == call(capsys, "-A", "agents_none:app", "--json")


def test_agents_of_something_else_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    """One line that names the option, exit code 2."""
    code, out, err = call(capsys, "-A", "json:loads")
    assert (2, "") == (code, out)
    assert "--app: json:loads is a function, not an App" in err
