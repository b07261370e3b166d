"""`decisions` on the command line: what a person reads, what a script gets, and the exit codes."""

import io
import json
import re
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from app import connections
from app.broker.topics import TopicSpec
from app.cli.decisions import moment_ms
from app.cli.decisions_view import short_moment
from app.cli.main import run
from app.core.clock import Clock, SystemClock, run_virtual
from app.core.errors import SetupError
from app.core.record import TopicPartition
from app.decisions.record import DECISIONS, EFFECTS
from app.serving import stores
from app.serving.memory import MemoryStore
from tests.decisions_kit import START_MS, World, answering, large_order, make_agent, until, with_actions

APP = """
from app.application import App
from app.decisions.decision import review
from features import records, fraud
from tests.decisions_kit import LargeOrder, OrderDecision, ask_model, with_actions

app = App(features=[records, fraud])


def rule(alert, user):
    return OrderDecision(action="approve" if alert.order_id == "o-1" else "block", risk_level="HIGH", reason="by rule")


agent = app.agent("processed.alerts", alert=LargeOrder, decides=OrderDecision, fallback=review, rules=rule)(ask_model)
with_actions(agent)
"""

PLACE = "1/0"


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> World:
    """Two decisions about u-1, effects done, on the cluster and in the store that the commands find."""

    async def main(clock: Clock) -> World:
        world = await World.create(clock, answering("block"))
        await world.broker.admin().create([TopicSpec(name="features.user_features", partitions=12, cleanup="compact")])
        agent = with_actions(make_agent())
        for number in (1, 2):
            world.send(large_order(order=f"o-{number}"))
        async with world.running(world.agent_work(agent), world.actions_work(agent)):
            await until(lambda: len(world.receiver.calls) == 4)
        return world

    world = run_virtual(main, START_MS)
    monkeypatch.setattr(connections, "open_broker", lambda settings, clock: world.broker)
    monkeypatch.setattr(stores, "open_store", lambda *asked: MemoryStore(SystemClock()))
    (tmp_path / "decisions_shop.py").write_text(APP)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    return world


Call = Callable[..., tuple[object, str, str]]


@pytest.fixture
def call(world: World, capsys: pytest.CaptureFixture[str]) -> Call:
    """Runs one command: exit code, what it wrote as data, and what it said beside that."""

    def command(*words: str) -> tuple[object, str, str]:
        with pytest.raises(SystemExit) as left:
            run(["decisions", *words])
        captured = capsys.readouterr()
        return left.value.code, captured.out, captured.err

    return command


APP_OPTION = ("-A", "decisions_shop:app")


def test_decisions_list_is_a_table_newest_first(call: Call) -> None:
    """A person sees place, alert, action and why."""
    code, out, err = call("list")
    assert 0 == code
    assert out.index("large_order:u-1:o-2") < out.index("large_order:u-1:o-1")
    assert "so it was decided" in out
    assert "2 decisions" in err


def test_decisions_list_json_is_one_object_a_decision(call: Call) -> None:
    """A script gets everything by name, and only what it asks for."""
    code, out, _ = call("list", "--action", "block", "--limit", "1", "--json")
    (one,) = [json.loads(line) for line in out.splitlines()]
    assert (0, "1/1", "large_order:u-1:o-2", "u-1") == (code, one["place"], one["alert_id"], one["entity"])
    assert (0, "", "no decisions\n") == call("list", "--entity", "u-9")


def test_decisions_list_says_how_far_effects_are(call: Call, world: World) -> None:
    """What is stuck is found by one option; a script gets all states."""
    del world.broker.logs[TopicPartition(EFFECTS, 1)][-4:]
    states: dict[str, list[str]] = {}
    for state in ("open", "done"):
        code, out, _ = call("list", "--effects", state, "--json")
        assert 0 == code
        states |= {one["place"]: one["effects"] for one in map(json.loads, out.splitlines())}
    assert states
    assert any("open" in found for found in states.values())
    assert "open" in call("list")[1]
    assert (0, "", "no decisions\n") == call("list", "--effects", "withheld")


def test_decisions_list_on_a_narrow_terminal_breaks_no_id(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fewer columns and a short time; whatever one would copy is in one piece, a decision a line."""
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "80")
    _, out, err = call("list")
    first = next(line for line in out.splitlines() if "1/1" in line)
    assert all(text in first for text in (" 11-14 22:13 ", "large_order:u-1:o-2", "block", "done"))
    assert max(map(len, re.sub(r"\x1b\[[0-9;]*m", "", out).splitlines())) <= 80
    assert "left out, as the terminal is narrow: mode, risk" in err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("list", "--mode", "loud"), "--mode: 'loud' is none; there are live, shadow, dry-run"),
        (("list", "--since", "yesterday"), "--since: 'yesterday' is no time"),
        (("replay", "--model-url", "http://127.0.0.1:1", *APP_OPTION), "--model-url: says where a model is"),
        (("forget", "u-1", "--json", *APP_OPTION), "--json: does not ask; add --yes or --dry-run"),
        (("verify", "--partition", "7"), "--partition: there are 0 to 1"),
        (("list", "--effects", "stuck"), "--effects: 'stuck' is none; there are failed, unknown, withheld, open"),
        (("show", "99/1"), "99/1: partition 99 does not exist; there are 0 to 1"),
        (("show", "3/x"), "3/x: is neither the id of an alert nor PARTITION/OFFSET, such as 3/17"),
    ],
)
def test_decisions_wrong_option_is_one_line(call: Call, words: tuple[str, ...], said: str) -> None:
    """What is wrong and what to do, and exit code 2."""
    code, _, err = call(*words)
    assert 2 == code
    assert said in err
    assert 1 == err.count("\n")


def test_decisions_without_their_topic_say_how_to_make_it(call: Call, world: World) -> None:
    """A cluster without topics is one line."""
    del world.broker.specs[DECISIONS]
    code, _, err = call("list")
    assert (2, "error: agent.decisions: is not there; create it: python -m app topics create\n") == (code, err)


def test_decisions_show_has_all_that_the_agent_saw(call: Call) -> None:
    """Alert, features with age, prompt, context, answer, policy, effects, hops and which decision stands."""
    code, out, _ = call("show", PLACE)
    assert 0 == code
    for said in (
        "stands    yes",
        "large_order:u-1:o-1",
        "order_value_5m $24,000.50",
        "complete up to 5 ms before; own event seen",
        "prompt    sha256 ",
        '"order_id":"o-1"',
        'answer    {"action":"block"',
        "effect    block_order done",
        "features to decision",
        "codes     none",
    ):
        assert said in out


@pytest.mark.parametrize(
    ("app", "said"),
    [
        (APP_OPTION, "effects   not begun yet: block_order, notify\n"),
        (
            ("-A", "nowhere:app"),
            "effects   not begun yet; the application that -A names does not say which there are\n",
        ),
    ],
)
def test_decisions_show_says_what_has_not_begun(call: Call, world: World, app: tuple[str, ...], said: str) -> None:
    """The application knows which effects there will be; without it the rest is shown all the same."""
    del world.broker.logs[TopicPartition(EFFECTS, 1)][:]
    code, out, _ = call("show", PLACE, *app)
    assert 0 == code
    assert said in out
    one = json.loads(call("show", PLACE, "--json", *app)[1])
    assert (["block_order", "notify"] if app is APP_OPTION else None) == one["not_begun"]


def test_decisions_show_of_what_nobody_acts_on_says_so(call: Call, world: World) -> None:
    """A shadow has no effects, and is not waited for."""
    first = world.broker.logs[TopicPartition(DECISIONS, 1)][0]
    value = (first.value or b"").replace(b'"mode":"live"', b'"mode":"shadow"')
    world.broker.append(DECISIONS, value, b"k", 1, 0, ())
    assert "effects   none: nobody acts on what is shadow\n" in call("show", "1/2")[1]


def test_decisions_show_json_of_an_alert_has_each_of_its_decisions(call: Call) -> None:
    """By alert id, with the state of its effects."""
    code, out, _ = call("show", "large_order:u-1:o-2", "--json")
    (one,) = [json.loads(line) for line in out.splitlines()]
    assert (0, True, "1/1") == (code, one["stands"], one["standing"])
    assert "done" == one["effects"]["effects"]["notify"]["state"]
    assert "fake-1" == one["record"]["models"][0]["model"]


@pytest.mark.parametrize("what", ["nobody:knows:it", "1/99"])
def test_decisions_show_of_nothing_is_no(call: Call, what: str) -> None:
    """Exit code 1 and one line."""
    code, out, err = call("show", what)
    assert (1, "") == (code, out)
    assert f"{what}: no decision lies there" in err


def test_decisions_replay_of_the_record_is_identical(call: Call) -> None:
    """Nothing has changed, so nothing comes out otherwise."""
    code, out, err = call("replay", *APP_OPTION)
    assert (0, "") == (code, err)
    assert "2 decisions: 2 identical, 0 different" in out


def test_decisions_replay_of_another_agent_is_no(call: Call, world: World) -> None:
    """A record that today's code decides otherwise is shown, and the exit code is 1."""
    place = TopicPartition(DECISIONS, 1)
    first = world.broker.logs[place][0]
    value = (first.value or b"").replace(b'"decision":{"reason":"so it was', b'"decision":{"reason":"so it never was')
    assert value != first.value
    world.broker.logs[place][0] = msgspec.structs.replace(first, value=value)
    code, out, _ = call("replay", *APP_OPTION)
    assert 1 == code
    assert "reason: so it never was decided -> so it was decided" in out


def test_decisions_replay_by_rules_counts_what_they_do_otherwise(call: Call) -> None:
    """Differences of another model are no failure; costs and counts stand at the end."""
    code, out, _ = call("replay", "--model", "rules", "--json", *APP_OPTION)
    *each, summary = [json.loads(line) for line in out.splitlines()]
    assert 0 == code
    assert [("1/1", "block", True), ("1/0", "approve", False)] == [
        (one["place"], one["replayed"], one["identical"]) for one in each
    ]
    assert {"block -> approve": 1, "block -> block": 1} == summary["actions"]
    assert ("rules", 2, "0.000000") == (summary["model"], summary["calls"], summary["usd"])


def test_decisions_verify_says_that_nothing_is_broken(call: Call) -> None:
    """Counts for a person, an object for a script."""
    assert (0, "2 decisions in 1 chain, 0 forgotten: nothing is broken\n", "") == call("verify")
    code, out, _ = call("verify", "--partition", "1", "--json")
    assert (0, {"decisions": 2, "chains": 1, "forgotten": 0, "broken_count": 0}) == (code, json.loads(out))


def test_decisions_verify_names_what_is_broken(call: Call, world: World) -> None:
    """A changed record is named and the exit code is 1."""
    place = TopicPartition(DECISIONS, 1)
    first = world.broker.logs[place][0]
    world.broker.logs[place][0] = msgspec.structs.replace(first, value=(first.value or b"").replace(b"o-1", b"o-7"))
    code, out, _ = call("verify")
    assert 1 == code
    assert "does not follow record 0" in out
    assert "is not the decision that its effects came from" in out


def test_decisions_forget_dry_run_leaves_everything(call: Call, world: World) -> None:
    """It says what would go, what stays how long, and when it is final."""
    before = {place: len(log) for place, log in world.broker.logs.items()}
    code, out, _ = call("forget", "u-1", "--dry-run", *APP_OPTION)
    assert 0 == code
    assert "would remove 2 records of agent.decisions; compaction makes it final within 1d" in out
    assert "may still name it, for 7d after each was written: processed.alerts" in out
    assert before == {place: len(log) for place, log in world.broker.logs.items()}


def test_decisions_forget_removes_and_the_rest_goes_on(call: Call) -> None:
    """Afterwards nothing is listed, the chain holds, and a second time there is nothing to do."""
    code, out, _ = call("forget", "u-1", "--yes", "--json", *APP_OPTION)
    said = json.loads(out)
    assert (0, True, {"agent.decisions": 2, "agent.effects": 2}) == (code, said["removed"], said["records"])
    assert 86_400_000 == said["final_ms"]["agent.decisions"]
    assert (0, "2 decisions in 1 chain, 2 forgotten: nothing is broken\n", "") == call("verify")
    code, out, _ = call("forget", "u-1", "--yes", *APP_OPTION)
    assert 0 == code
    assert "no records about u-1 are left to remove" in out
    assert "waiting for compaction: 2 decisions" in out


def test_decisions_forgotten_are_hidden_from_every_command_at_once(call: Call, world: World) -> None:
    """Listed, shown and replayed is nothing of them, though compaction has not removed their bytes."""
    assert 0 == call("forget", "u-1", "--yes", *APP_OPTION)[0]
    assert any(b"u-1" in (record.value or b"") for record in world.records(DECISIONS))
    assert (0, "", "no decisions\n") == call("list")
    assert "0 decisions: 0 identical, 0 different" in call("replay", *APP_OPTION)[1]
    for what in ("large_order:u-1:o-1", "1/0", "1/1"):
        code, out, err = call("show", what)
        assert (1, "") == (code, out)
        assert f"{what}: no decision lies there (any more)" in err


@pytest.mark.parametrize(("answer", "expected", "more"), [("n", 1, 0), ("y", 0, 2)])
def test_decisions_forget_asks_first(
    call: Call, world: World, monkeypatch: pytest.MonkeyPatch, answer: str, expected: int, more: int
) -> None:
    """Whoever does not say yes has removed nothing."""
    before = len(world.records(DECISIONS))
    monkeypatch.setattr("sys.stdin", io.StringIO(f"{answer}\n"))
    code, _, err = call("forget", "u-1", *APP_OPTION)
    assert expected == code
    assert "u-1: 2 of agent.decisions, 2 of agent.effects, and what the feature store holds" in err
    assert before + more == len(world.records(DECISIONS))


def test_decisions_forget_looks_again_after_it_has_asked(
    call: Call, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What came while somebody thought about it must be waited for, too."""
    before = len(world.records(DECISIONS))

    def confirm(*arguments: object, **options: object) -> bool:
        del world.broker.logs[TopicPartition("agent.effects", 1)][:]  # as if all were open again
        return True

    monkeypatch.setattr("typer.confirm", confirm)
    code, _, err = call("forget", "u-1", *APP_OPTION)
    assert 1 == code
    assert "must be waited for: large_order:u-1:o-1, ask_model" in err
    assert before == len(world.records(DECISIONS))


def test_decisions_forget_waits_for_what_is_open(call: Call, world: World) -> None:
    """Open effects are named, nothing is removed, exit code 1."""
    del world.broker.logs[TopicPartition("agent.effects", 1)][:]
    before = len(world.records(DECISIONS))
    code, _, err = call("forget", "u-1", "--yes", *APP_OPTION)
    assert 1 == code
    assert "must be waited for: large_order:u-1:o-1, ask_model" in err
    assert before == len(world.records(DECISIONS))


def test_short_moment_leaves_out_the_day_only_where_it_is_today() -> None:
    """UTC, as everywhere."""
    assert "22:13:20" == short_moment(START_MS, START_MS + 60_000)
    assert "11-14 22:13" == short_moment(START_MS, START_MS + 86_400_000)


def test_moment_is_an_age_or_an_instant() -> None:
    """Ages count from now, instants need their zone."""
    assert START_MS - 7_200_000 == moment_ms("2h", "--since", START_MS)
    assert 1_795_594_200_000 == moment_ms("2026-11-25T08:10:00Z", "--since", 0)
    for wrong in ("2026-11-25T08:10:00", "soon", "5 years"):
        with pytest.raises(SetupError):
            moment_ms(wrong, "--since", 0)
