"""The rights of each role: complete, declared, and printed as lines that a shell takes."""

import shlex

import pytest

from app.application import App
from app.broker.base import Right
from app.cli.loading import DEFAULT_APP, load_app
from app.core.errors import SetupError
from app.rights import ROLES, STORE_COMMANDS, commands_of, rights_of, store_rights_of


@pytest.fixture(scope="module")
def app() -> App:
    return load_app(DEFAULT_APP)


@pytest.mark.parametrize("role", ROLES)
def test_rights_are_of_topics_that_are_declared(app: App, role: str) -> None:
    """Nobody is given a right to what is not ours."""
    declared = {spec.name for spec in app.topics.all()}
    named = {right.name.removesuffix("*") for right in rights_of(app, role) if right.kind == "topic"}
    assert set() == named - declared


def test_rights_to_tables_are_to_all_of_their_generations(app: App) -> None:
    """A changed declaration needs no rights of its own; topics that have no generations are named whole."""
    whole = {right.name for right in rights_of(app, "streams") if not right.name.endswith("*")}
    prefixes = {right.name for right in rights_of(app, "streams") if right.name.endswith("*")}
    assert {"features.user_features*", "state.order_rate*", "state.other_amounts*"} <= prefixes
    assert {"raw.orders", "features.order_rate_5m", "streams.generations", "processed.alerts"} <= whole
    (line,) = commands_of([Right("topic", "state.order_rate*", "Read")], "streams")
    assert line.endswith("--operation Read --resource-pattern-type prefixed --topic state.order_rate")


def test_rights_of_effects_are_the_actions_alone(app: App) -> None:
    """What reads event text may not write what was done."""
    writers = {role for role in ROLES if Right("topic", "agent.effects", "Write") in rights_of(app, role)}
    assert {"actions", "operator"} == writers


def test_rights_of_agents_are_to_the_groups_of_every_mode(app: App) -> None:
    """A switch moves an agent into another one's while its worker runs, which ends where it may not read there."""
    groups = {right for right in rights_of(app, "agents") if right.kind == "group"}
    names = {f"headrace.agent.{agent}{mode}" for agent in app.agents for mode in ("", ".shadow", ".dry-run")}
    assert {Right("group", name, "Read") for name in names} == groups


def test_rights_of_an_unknown_role_are_refused(app: App) -> None:
    """The error lists the roles."""
    with pytest.raises(SetupError, match="--role: no role is called boss; there are publisher, "):
        rights_of(app, "boss")


def test_commands_name_user_operation_and_topic_once() -> None:
    """One line a topic or group, words that a shell leaves as they are."""
    rights = [Right("topic", "raw.orders", "Read"), Right("topic", "raw.orders", "Write"), Right("group", "g", "Read")]
    first, second = (shlex.split(line) for line in commands_of(rights, "a b"))
    assert ["User:a b", "--operation", "Read", "--operation", "Write", "--topic", "raw.orders"] == first[-7:]
    assert ["--group", "g"] == second[-2:]


@pytest.mark.parametrize("role", STORE_COMMANDS)
def test_store_rights_begin_with_nothing(app: App, role: str) -> None:
    """Whatever the user could do before, keys of others and other commands are out of reach."""
    words = (store_rights_of(app, role) or "").split()
    assert {"resetkeys", "resetchannels", "-@all"} <= set(words)
    assert [] == [word for word in words if "~" in word and word.endswith("~*")]


def test_store_rights_of_a_role_that_does_not_use_it_are_none(app: App) -> None:
    """Streams know of no store."""
    assert store_rights_of(app, "streams") is None
