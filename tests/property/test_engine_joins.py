"""Generated joins over generated events of one or two topics, the engine killed in between, against all pairs of a list."""

import json
from collections import defaultdict
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from itertools import product
from typing import Annotated, Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.broker.memory import MemoryBroker
from app.core.clock import Clock, run_virtual
from app.core.codec import Usd, encode
from app.streams import joins, restore
from app.streams.expressions import col
from app.streams.graph import Alert, Topic
from app.streams.pipelines import JoinPipeline
from tests.examples import examples
from tests.killed_broker import NEVER, newest_after_compaction, run_killed
from tests.reference import SourceRecord, escaped

START_MS = 1_800_000_000_000
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
Id = Annotated[str, msgspec.Meta(max_length=100)]


class Move(msgspec.Struct):
    move_id: Id
    user: str
    order: str
    amount: Usd
    kind: str


class Met(Alert, frozen=True):
    amount: Usd
    order: str
    other: Usd


class Alone(Alert, frozen=True):
    amount: Usd


class Maybe(Alert, frozen=True):
    amount: Usd
    other: Usd | None
    note: str | None


moves = st.fixed_dictionaries(
    {
        "user": st.sampled_from(["u1", "u:2"]),
        "order": st.sampled_from(["a", "b"]),
        "amount": st.sampled_from(["1", "2.50"]),
        "kind": st.sampled_from(["add", "pay"]),
    }
)
steps_ms = st.one_of(st.integers(0, 3_000), st.sampled_from([0, 5_000, -5_000, 10_000, -10_000, 60_000, 1]))
plans = st.lists(st.tuples(st.booleans(), steps_ms, st.one_of(moves, moves, moves, st.none())), min_size=3, max_size=40)
bounds = st.sampled_from([("0s", "10s"), ("-5s", "5s"), ("1ms", "20s"), ("-10s", "-1s"), ("0s", "0s"), ("-1m", "1m")])


def topic(name: str, lateness: str) -> Topic:
    return Topic(name, Move, key="user", out_of_orderness=lateness, partitions=1)


@st.composite
def joined(draw: st.DrawFn) -> tuple[Topic, Topic, JoinPipeline]:
    """Of two topics, or of one with itself."""
    left = topic("left", draw(st.sampled_from(["1ms", "5s"])))
    right = left if draw(st.booleans()) else topic("right", draw(st.sampled_from(["1ms", "5s"])))
    how = draw(st.sampled_from(["inner", "left", "missing"]))
    if draw(st.booleans()):
        adds, pays = left.where(col.kind == "add"), right.where(col.kind == "pay")
    else:
        adds, pays = left.once("move_id", within="1m"), right
    on: Any = draw(st.sampled_from([(), "order", ("order", "amount")]))
    pairs = adds.join(pays, on=on, within=draw(bounds), prefix="other_", how="left" if how == "left" else "inner")
    if how == "missing":
        return left, right, pairs.missing().alert(Alone, id="move_id")
    if how == "left":
        return left, right, pairs.alert(Maybe, id="move_id", other=col.other_amount, note=col.other_order)
    if draw(st.booleans()):
        pairs = pairs.where(col.amount != col.other_amount)
    return left, right, pairs.alert(Met, id=("move_id", "other_move_id"), other=col.other_amount)


class Taken:
    """What one side takes."""

    def __init__(self, lateness_ms: int) -> None:
        self.lateness_ms = lateness_ms
        self.reached_ms = -1
        self.records: list[tuple[int, int, dict[str, Any]]] = []
        self.late: set[int] = set()

    def read(self, record: SourceRecord, event: dict[str, Any] | None, is_mine: bool) -> None:
        self.reached_ms = max(self.reached_ms, record.timestamp_ms)
        if event is not None and is_mine:
            if record.timestamp_ms <= self.reached_ms - self.lateness_ms:
                self.late.add(record.offset)
            else:
                self.records.append((record.timestamp_ms, record.offset, event))


def read_plainly(pipeline: JoinPipeline, records: list[SourceRecord], on_right: bool) -> list[dict[str, Any]]:
    """Every pair, and every left record without one that can have none any more."""
    join = pipeline.join
    left, right = Taken(join.left.source.out_of_orderness_ms), Taken(join.right.source.out_of_orderness_ms)
    filtered = bool(join.left.steps)
    for record in records:
        event = json.loads(record.value or b"", parse_float=Decimal) if record.key else None
        kind = event["kind"] if event else ""
        if record.partition == 0:
            left.read(record, event, not filtered or kind == "add")
        if (record.partition == -1) == on_right:
            right.read(record, event, not filtered or kind == "pay")
    found, lone = [], min(left.reached_ms - left.lateness_ms, right.reached_ms - right.lateness_ms)
    for t, offset, event in left.records:
        partners = [
            (other_t, other_offset, other)
            for other_t, other_offset, other in right.records
            if join.lower_ms <= other_t - t <= join.upper_ms
            and event["user"] == other["user"]
            and all(event[mine] == other[theirs] for mine, theirs in join.on)
        ]
        for other_t, other_offset, other in partners:
            if join.how != "missing" and not (pipeline.steps and event["amount"] == other["amount"]):
                at = "left/0", offset
                if other_t >= t:
                    at = f"{join.right.source.spec.name}/0", other_offset
                found.append(alert_of(pipeline, event, other, max(t, other_t), at))
        if not partners and join.how != "inner" and lone >= t + join.upper_ms:
            found.append(alert_of(pipeline, event, None, t + max(join.upper_ms, 0), ("left/0", offset)))
    return found


def alert_of(pipeline: JoinPipeline, event: Any, other: Any, at_ms: int, origin: tuple[str, int]) -> dict[str, Any]:
    ids = [event["move_id"], *([other["move_id"]] if len(pipeline.raised.id_fields) > 1 else [])]
    made = {
        "alert_id": ":".join(escaped(part) for part in ("", event["user"], *ids)).replace("", pipeline.raised.rule, 1),
        "alert_type": pipeline.raised.tag,
        "triggered_at": EPOCH + timedelta(milliseconds=at_ms),
        "origin": f"{origin[0]}/{origin[1]}",
        "amount": Decimal(event["amount"]),
    }
    if pipeline.join.how == "inner":
        made |= {"order": event["order"], "other": Decimal(other["amount"])}
    if pipeline.join.how == "left":
        made |= {"other": Decimal(other["amount"]) if other else None, "note": other["order"] if other else None}
    return made


def written(broker: MemoryBroker) -> list[dict[str, Any]]:
    alerts = []
    for place, log in broker.logs.items():
        for record in log if place.topic == "processed.alerts" else []:
            alert = json.loads(record.value or b"", parse_float=Decimal)
            alert["triggered_at"] = datetime.fromisoformat(alert["triggered_at"])
            alert["origin"] = (record.header("origin") or b"").decode()
            alert |= {name: Decimal(alert[name]) for name in ("amount", "other") if alert.get(name) is not None}
            alerts.append(alert)
    return alerts


def different(alerts: list[dict[str, Any]]) -> list[str]:
    """Each once; repeats of a crash are the same."""
    return sorted(
        {
            str(sorted((n, f"{v:.2f}" if isinstance(v, Decimal) else str(v)) for n, v in alert.items()))
            for alert in alerts
        }
    )


def run_case(case: tuple[Topic, Topic, JoinPipeline], plan: list[Any], kills: list[int], seed: int) -> None:
    left, right, pipeline = case
    on_right = right is not left
    records, ends, time_ms = [], defaultdict[int, int](int), START_MS
    for number, (is_right, step_ms, move) in enumerate(plan):
        time_ms += step_ms
        partition = -1 if is_right and on_right else 0
        key, value = (
            (move["user"].encode(), encode({"move_id": f"{number}", **move})) if move else (None, b'{"heartbeat":true}')
        )
        records.append(SourceRecord(partition, ends[partition], time_ms, key, value))
        ends[partition] += 1

    async def main(clock: Clock) -> None:
        broker = await run_killed(
            clock, left.source, {"met": pipeline}, records, kills, seed, right.source if on_right else None
        )
        assert different(read_plainly(pipeline, records, on_right)) == different(written(broker))

    run_virtual(main, START_MS)


@given(case=joined(), plan=plans, kills=st.lists(st.integers(0, 40), max_size=3), seed=st.integers(0, 99))
@settings(max_examples=examples(300))
def test_engine_any_join_gives_what_all_pairs_of_a_list_give(
    case: tuple[Topic, Topic, JoinPipeline], plan: list[Any], kills: list[int], seed: int
) -> None:
    """Whatever joins, whatever comes, and wherever the engine dies: the same pairs, and the same that have none."""
    run_case(case, plan, kills, seed)


def fixed(how: str) -> tuple[Topic, Topic, JoinPipeline]:
    """Payments of orders within ten seconds."""
    left, right = topic("left", "1ms"), topic("right", "1ms")
    pairs = left.join(right, on="order", within=("0s", "10s"), prefix="other_")
    if how == "missing":
        return left, right, pairs.missing().alert(Alone, id="move_id")
    return left, right, pairs.alert(Met, id=("move_id", "other_move_id"), other=col.other_amount)


def move(order: str) -> dict[str, str]:
    return {"user": "u1", "order": order, "amount": "1", "kind": "add"}


FIXED_PLAN: list[Any] = [
    (False, 0, move("a")),
    (True, 1_000, move("a")),
    (False, 1_000, move("b")),
    (True, 30_000, None),
    (False, 0, None),
    (True, 30_000, move("c")),
    (False, 0, None),
]


@pytest.mark.parametrize(
    "safeguard", ["a partner found is written", "tombstones wait for both commits", "the table of joins", "versions"]
)
def test_join_safeguard_removed_turns_the_proof_red(safeguard: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ablation: without any one of them a lone record is told that is none, or a pair is lost."""
    table = joins.JoinTable
    match safeguard:
        case "a partner found is written":
            monkeypatch.setattr(table, "rewrite", lambda self, place: None)
        case "tombstones wait for both commits":
            monkeypatch.setattr(table, "passed", all_dead)
            monkeypatch.setattr(restore, "_newest_entries", newest_after_compaction)
        case "the table of joins":
            monkeypatch.setattr(table, "changes", lambda self: self.changed.clear() or [])
        case "versions":
            monkeypatch.setattr(table, "restore", restore_oldest)
    with pytest.raises(AssertionError):
        run_fixed_cases()


def run_fixed_cases() -> None:
    for how in ("missing", "inner"):
        for kill, lives, seed in product(range(24), (3, 6), range(3)):
            run_case(fixed(how), FIXED_PLAN, [40] * (lives - 1) + [kill], seed)


@pytest.mark.parametrize("seed", range(6))
def test_join_partner_found_survives_a_write_that_was_torn(seed: int) -> None:
    """The right record may be in the table, and what it says of a left one that was committed before may not."""
    plan: list[Any] = [(False, 0, move("a")), (True, 1_000, move("a")), (True, 30_000, None), (False, 0, None)]
    for kill in range(24):
        run_case(fixed("missing"), plan, [NEVER, kill, NEVER], seed)


def test_join_fixed_cases_hold_with_every_safeguard() -> None:
    """What the ablations run is right as long as nothing is removed."""
    run_fixed_cases()


def all_dead(table: Any) -> list[Any]:
    """Committed or not."""
    places = [dead.place for dead in table._dead]
    table._dead.clear()
    return places


def restore_oldest(table: Any, entries: Any, position: int) -> None:
    """The first value of each counts."""
    original_restore(table, {place: [*e[:3], False, *e[4:]] for place, e in entries.items()}, position)


original_restore = joins.JoinTable.restore
