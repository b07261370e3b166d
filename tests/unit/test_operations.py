"""docs/operations.md, held to the settings and to what is logged."""

import ast
import inspect
import re
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import msgspec
import pytest

from agents import app, fraud
from app.application import FLINK_GROUP, GATES_GROUP, STREAMS_GROUP
from app.broker.dead_replay import Fate
from app.core.durations import parse_duration_ms
from app.core.settings import PREFIX, SECRETS, Settings
from app.decisions.actions import GROUP as ACTIONS_GROUP
from app.decisions.record import ReviewRequest
from app.serving.materializer import GROUP as FEATURES_GROUP

ROOT = Path(__file__).resolve().parents[2]
TEXT = (ROOT / "docs" / "operations.md").read_text()
ROW = re.compile(rf"\| `{PREFIX}(\w+)` \| (?:`(.+?)`|none) \| (.+) \|")
SETTINGS = {field.name: field for field in msgspec.structs.fields(Settings)}
SAID = [
    "does not answer since",
    "waits to be written",
    "not delivered: ",
    "giving up failed",
    "the log begins anew",
    "this member has lost the brokers",
    "failed, and is tried again",
    "committed offsets are not to be had",
    "starts again in",
    "its fallback decides",
    "asks for a pause of",
    "that a limit is whole again in",
    "pays no such call",
    "of its policy failed",
    "not looked for older states, later",
    "are no states of effects: passed over",
    "effects are held: no heartbeat",
    "effects are made again",
    "is off since",
    "is in mode",
    "the breaker opens, alerts fall back",
    "REFUSES ALL CALLS",
    "answers again",
    "features wait: ",
    "features go on",
    "older than max_age",
    "records were deleted before they were read",
    "handlers swallow their cancellation",
    "stopped",
    "stopping",
]


def section(title: str) -> str:
    """The text below a heading."""
    return TEXT.partition(f"\n## {title}\n")[2].partition("\n## ")[0]


LOG = section("When the log says")


def test_operations_has_every_setting_in_order_with_its_default() -> None:
    """A setting that is added, renamed or given another default is found here."""
    documented = {name.lower(): default for name, default, _ in ROW.findall(TEXT)}
    assert list(SETTINGS) == list(documented)
    for name, text in documented.items():
        default = getattr(Settings(), name)
        assert default == msgspec.convert(text or ("" if default == "" else {}), SETTINGS[name].type, strict=False), (
            name
        )


def test_operations_names_the_file_of_every_secret() -> None:
    """Whoever looks for a secret finds that it need not stand in a variable."""
    assert [] == [secret for secret in SECRETS if f"{PREFIX}{secret.upper()}_FILE" not in TEXT]


@pytest.mark.parametrize("line", SAID)
def test_operations_explains_lines_that_are_logged(line: str) -> None:
    """In the words of the code, so that one finds them."""
    assert line.strip(": ") in TEXT
    assert any(line in file.read_text() for file in (ROOT / "app").rglob("*.py")), line


def logged() -> list[tuple[str, list[str]]]:
    """Every literal text that `logger` writes as a warning or an error: where it stands, and its parts between values and marks."""
    found = []
    for file in sorted((ROOT / "app").rglob("*.py")):
        for call in (node for node in ast.walk(ast.parse(file.read_text())) if isinstance(node, ast.Call)):
            match call:
                case (
                    ast.Call(
                        func=ast.Attribute(
                            value=ast.Name("logger"), attr="warning" | "error" | "exception" | "critical"
                        ),
                        args=[ast.Constant(str(text)), *_],
                    )
                    | ast.Call(
                        func=ast.Attribute(value=ast.Name("logger"), attr="log"), args=[_, ast.Constant(str(text)), *_]
                    )
                ):
                    parts = [part.strip(" .()") for part in re.split(r"%[.\d]*[sdf]|[:;,]", text)]
                    found.append((f"{file.relative_to(ROOT)}:{call.lineno}", [part for part in parts if len(part) > 6]))
    return found


def test_operations_has_a_row_for_each_warning_and_error() -> None:
    """A line that asks something of an operator is explained; one whose whole text comes from elsewhere is told there."""
    lines = [line for line in logged() if line[1]]
    assert len(lines) > 30
    assert [] == [(where, parts) for where, parts in lines if not any(part in LOG for part in parts)]


def test_operations_has_the_arguments_of_agents_with_their_defaults() -> None:
    """What bounds an agent is found without reading the code."""
    parameters = inspect.signature(app.agent).parameters.values()
    declared = {one.name: one.default for one in parameters if one.default is not one.empty}
    rows = re.findall(r"^\| `(\w+)` \| (?:`(.+?)`|none) \|", section("What an agent declares"), re.MULTILINE)
    documented: dict[str, Any] = {name: ast.literal_eval(default) if default else None for name, default in rows}
    assert declared == documented


def test_operations_says_how_long_each_topic_is_kept() -> None:
    """Retention as it is declared; a topic whose time is in words has none in days."""
    table = re.findall(r"^\| (`.+`) \| (.+) \|$", section("What it runs on"), re.MULTILINE)
    for spec in app.topics.all():
        rows = [(pattern, kept) for patterns, kept in table for pattern in re.findall(r"`(.+?)`", patterns)]
        ((_, kept), *_) = sorted((row for row in rows if fnmatch(spec.name, row[0])), key=lambda row: row[0] == "raw.*")
        in_days = kept.endswith(" d")
        assert in_days == (spec.retention_ms is not None and spec.retention_ms % 86_400_000 == 0), spec.name
        if in_days:
            assert parse_duration_ms(kept.replace(" ", ""), spec.name) == spec.retention_ms, spec.name


def test_operations_has_every_field_of_a_review() -> None:
    """Whoever connects a case system finds them all."""
    shown = re.findall(r"`(\w+)`", "".join(re.findall(r"^\| (`.+?) \|", section("Reviews"), re.MULTILINE)))
    assert sorted(("record", *ReviewRequest.__struct_fields__)) == sorted(shown)


def test_operations_names_every_consumer_group() -> None:
    """By the names that Kafka's own tools show."""
    agents = fraud.judge_order.group.removesuffix(fraud.judge_order.name) + "NAME"
    on_flink = {f"{GATES_GROUP}.TOPIC", f"{FLINK_GROUP}.JOB.N"}
    groups = {STREAMS_GROUP, FEATURES_GROUP, ACTIONS_GROUP, agents} | on_flink
    assert groups == set(re.findall(r"^\| `(headrace\.[\w.]+)`", section("Watching it"), re.MULTILINE))


def test_operations_says_why_a_dead_letter_is_left() -> None:
    """In the words of `dead replay`."""
    left = {Fate.COUNTED, Fate.CUT, Fate.NO_RECORD, Fate.NO_LETTER, Fate.UNREADABLE, Fate.FORGOTTEN, Fate.REFUSED}
    told = " ".join(section("Dead letters").lower().split())
    assert set() == {fate.value for fate in left if f"*{fate.value.partition(':')[0]}*" not in told}
