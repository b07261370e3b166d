"""`switch`: names are checked, what is written is shown, and who knows it is said."""

import asyncio
import json

import pytest

from agents import app
from app.broker.memory import MemoryBroker
from app.cli import switch
from app.cli.main import run
from app.core.clock import SystemClock
from app.core.codec import encode
from app.core.errors import Unavailable
from app.decisions.record import SWITCHES
from app.decisions.switches import HEARTBEAT_KEY, Heartbeat, ModeSwitch, Switch


@pytest.fixture
def broker(monkeypatch: pytest.MonkeyPatch) -> MemoryBroker:
    """A cluster with the application's topics, and nobody who beats."""
    broker = MemoryBroker(SystemClock())
    asyncio.run(broker.admin().create(app.topics.all()))
    monkeypatch.setattr(switch, "open_cluster", lambda values: broker)
    monkeypatch.setattr(switch, "CONFIRMED_WITHIN_SECONDS", 0.05)
    monkeypatch.setattr("getpass.getuser", lambda: "ada")
    return broker


def call(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[object, str, str]:
    with pytest.raises(SystemExit) as left:
        run(["switch", *arguments])
    said = capsys.readouterr()
    return left.value.code, said.out, said.err


def rows(capsys: pytest.CaptureFixture[str]) -> dict[str, dict[str, object]]:
    code, out, err = call(capsys, "list", "--json")
    assert (0, "") == (code, err)
    return {row["switch"]: row for row in map(json.loads, out.splitlines())}


def test_switch_list_shows_everything_that_can_be_switched(
    broker: MemoryBroker, capsys: pytest.CaptureFixture[str]
) -> None:
    """All is on and live until somebody says otherwise."""
    found = rows(capsys)
    assert {"all", "judge_order", "block", "judge_order.block"} < found.keys()
    assert {"on"} == {row["state"] for row in found.values()}
    assert ("live", None) == (found["judge_order"]["mode"], found["judge_order"]["who"])


def test_switch_off_is_listed_with_who_and_why(broker: MemoryBroker, capsys: pytest.CaptureFixture[str]) -> None:
    """And on again takes it back, with who did that."""
    code, out, err = call(capsys, "off", "block", "--reason", "too many")
    assert (0, "block is off\n") == (code, out)
    assert "no worker's heartbeat was seen" in err
    block = rows(capsys)["block"]
    assert ("off", "ada", "too many") == (block["state"], block["who"], block["reason"])
    assert 0 == call(capsys, "on", "block")[0]
    assert ("on", "") == (rows(capsys)["block"]["state"], rows(capsys)["block"]["reason"])
    _, out, _ = call(capsys, "list")
    assert "judge_order.block" in out


def test_switch_that_another_one_covers_is_listed_as_off(
    broker: MemoryBroker, capsys: pytest.CaptureFixture[str]
) -> None:
    """Who looks in an emergency must not read `on` where nothing happens; every row has the same fields."""

    def effective(*names: str) -> list[tuple[object, object, object]]:
        found = rows(capsys)
        assert 1 == len({tuple(row) for row in found.values()})
        return [(found[name]["state"], found[name]["effective"], found[name]["because"]) for name in names]

    call(capsys, "off", "block")
    assert [("off", "off", None), ("on", "off", "block")] == effective("block", "judge_order.block")
    assert [("on", "on", None)] * 2 == effective("judge_order", "judge_order.approve")
    call(capsys, "off", "judge_order")
    assert [("on", "off", "judge_order"), ("on", "on", None)] == effective("judge_order.approve", "approve")
    call(capsys, "off", "all")
    assert [("off", "off", None), ("on", "off", "all")] == effective("all", "approve")
    assert "on (all is off)" in call(capsys, "list")[1]


def test_switch_mode_is_listed_beside_the_agent(broker: MemoryBroker, capsys: pytest.CaptureFixture[str]) -> None:
    """The mode stands in the agent's row."""
    code, out, _ = call(capsys, "mode", "judge_order", "shadow", "--json")
    written = json.loads(out)
    assert (0, "mode", "shadow", 0) == (code, written["record"], written["mode"], written["workers"])
    row = rows(capsys)["judge_order"]
    assert ("on", "shadow", "ada") == (row["state"], row["mode"], row["who"])


def test_switch_says_how_many_workers_know_it(
    broker: MemoryBroker, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those whose heartbeat says that they have read it, and those that beat without having read it."""
    append = broker.append

    def answered(*arguments: object) -> object:
        confirmation = append(*arguments)  # type: ignore[arg-type]
        for process, known in (("a", 1), ("b", 1), ("c", 0)):
            beat = Heartbeat(process=process, number=1, known=known)
            append(SWITCHES, encode(beat), HEARTBEAT_KEY, 0, 0, ())
        return confirmation

    monkeypatch.setattr(broker, "append", answered)
    code, _, err = call(capsys, "off", "all")
    assert (0, True, True) == (code, "2 workers know it" in err, "1 did not say so" in err)


def test_switch_that_is_written_and_cannot_be_confirmed_says_so(
    broker: MemoryBroker, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The broker goes behind the acknowledgement: who reads exit code 2 would take it for not written."""

    async def away(*arguments: object) -> dict[str, bool]:
        raise Unavailable("broker: does not answer")

    monkeypatch.setattr("app.decisions.switches.heard", away)
    code, out, err = call(capsys, "off", "block")
    assert (0, "block is off\n") == (code, out)
    assert "it is written; who knows it could not be heard: broker: does not answer" in err
    assert 1 == len(err.splitlines())
    assert "off" == rows(capsys)["block"]["state"]
    code, out, err = call(capsys, "off", "block", "--json")
    assert (0, 0, 1) == (code, json.loads(out)["workers"], len(err.splitlines()))


@pytest.mark.parametrize(
    ("mode", "said"), [("shadow", "may decide live, and that is withheld"), ("live", "decide in the mode they know")]
)
def test_switch_mode_does_not_promise_that_decisions_are_held(
    broker: MemoryBroker, capsys: pytest.CaptureFixture[str], mode: str, said: str
) -> None:
    """Workers hold effects, never decisions."""
    _, _, err = call(capsys, "mode", "judge_order", mode)
    assert (True, False) == (said in err, "hold" in err)


def test_switch_of_a_name_that_is_gone_can_be_removed(broker: MemoryBroker, capsys: pytest.CaptureFixture[str]) -> None:
    """An agent that was renamed leaves its switch and its mode: `on` takes them back; `off` of it stays refused."""
    switched = Switch(name="old_agent", state="off", who="ada", reason="", at_ms=1)
    in_shadow = ModeSwitch(agent="old_agent", mode="shadow", who="ada", reason="", at_ms=2)
    for one in (switched, in_shadow):
        broker.append(SWITCHES, encode(one), one.key, 0, 0, ())
    listed = rows(capsys)["old_agent"]
    assert ("off", "shadow") == (listed["state"], listed["mode"])
    assert 2 == call(capsys, "off", "old_agent")[0]
    code, out, _ = call(capsys, "on", "old_agent")
    assert (0, "old_agent is removed\n") == (code, out)
    assert "old_agent" not in rows(capsys)
    assert 2 == call(capsys, "on", "old_agent")[0]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("off", "bock"), "NAME: no switch is called 'bock'; there are all, judge_cart"),
        (("on", "judge_order.ban"), "NAME: no switch is called 'judge_order.ban'"),
        (("mode", "block", "live"), "AGENT: no agent is called 'block'; there are judge_cart, "),
        (("mode", "judge_order", "dead"), "MODE: 'dead' is no mode; there are live, shadow, dry-run"),
    ],
)
def test_switch_of_what_is_not_there_is_refused(
    broker: MemoryBroker, capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], said: str
) -> None:
    """One line that names what there is, exit code 2, and nothing is written."""
    code, out, err = call(capsys, *arguments)
    assert (2, "") == (code, out)
    assert said in err
    assert 1 == len(err.splitlines())
    assert [] == [record for place, log in broker.logs.items() if place.topic == SWITCHES for record in log]


def test_switch_without_a_user_name_says_the_number(
    broker: MemoryBroker, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A container's user often has no name."""

    def nameless() -> str:
        raise KeyError("uid not found")

    monkeypatch.setattr("getpass.getuser", nameless)
    assert 0 == call(capsys, "off", "block")[0]
    assert str(rows(capsys)["block"]["who"]).startswith("uid ")
