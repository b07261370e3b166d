"""Batches of generated logs: one declaration of many pipelines, and as many logs as there are pairs of partitions.

Lateness goes by partition, so every log has its own, and its keys carry its number: one job runs a hundred logs, and what it writes is
told apart again. Or a batch is one long log of two partitions a topic.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

from app.core.codec import encode
from app.core.errors import SetupError
from app.streams.pipelines import Pipeline
from app.streams.sql import Settings, compile_job
from tests.generated import START_MS, Planned, joined_graphs, logs
from tests.parity.meaning import SourceRecord
from tests.parity.reference import Outputs

T = TypeVar("T")

PIPELINES, LEAST_RECORDS, SHOPS_IN_A_ROW = 12, 12, 10

GOOD = (
    '{"sale_id":"1","shop":"%s","price":1,"items":1,"note":"","gift":true,"weight":1,"state":"new",'
    '"at":"2026-11-30T10:00:00Z","due":"2026-11-30T10:00:00Z"}'
)
CHANGES = (
    ('"sale_id":"1"', f'"sale_id":"{"x" * 101}"'),
    ('"shop":"%s"', '"shop":"somebody else"'),
    *(('"price":1', f'"price":{value}') for value in ("-1", "1.005", "10000000000.01", '"NaN"', "null", "[]")),
    *(('"items":1', f'"items":{value}') for value in ("1.5", "1.0", "9223372036854775808", "1001", "true", "null")),
    *(('"gift":true', f'"gift":{value}') for value in ("1", "null", '"yes"')),
    *(('"weight":1', f'"weight":{value}') for value in ("1e7", '"heavy"', "null", "true")),
    *(('"state":"new"', f'"state":{value}') for value in ('"New"', '""', "null")),
    *(('"at":"2026-11-30T10:00:00Z"', f'"at":{value}') for value in ('"2026-11-30T10:00:00"', '"2026-11-30"', "null")),
    *((f',"{name}":', f',"no_{name}":') for name in ("price", "items", "note", "gift", "weight", "state", "at", "due")),
    ("{", "{{"),
    ("}", ""),
)
BAD_VALUES = (
    *(GOOD.replace(valid, bad).encode() for valid, bad in CHANGES),
    *(b"", b"null", b"[]", b"{}", b"7", b'"text"'),
    GOOD.encode().replace(b'"note":""', b'"note":"\xff"'),
)
"""Of those kinds that docs/validity.md calls alike on both engines."""


class Batch(NamedTuple):
    """topics: their names. plans: one a log."""

    topics: list[str]
    pipelines: dict[str, Pipeline]
    plans: list[list[Planned]]


def batch_of(number: int, count: int, prefix: str, in_a_row: bool = False) -> Batch:
    """The batch of that number: the same for the same arguments. count: of its logs. in_a_row: one log of all of them, one behind the
    other. Of many partitions the quietest holds Flink's watermark until it ends, so only there it moves."""
    names = (f"{prefix}sales", f"{prefix}others")
    plans = generated(logs(2, LEAST_RECORDS), count, number)
    plans = [joined(plans)] if in_a_row else plans
    topics, pipelines = generated(joined_graphs(2 * len(plans), names, PIPELINES), 20, number)[-1]
    return Batch(topics, {n: p for n, p in pipelines.items() if runs_on_flink(p)}, plans)


def joined(plans: Sequence[Sequence[Planned]]) -> list[Planned]:
    """Each begins at the latest time of those before it; its shops come again some logs later."""
    whole, time_ms, latest_ms = list[Planned](), 0, 0
    for number, plan in enumerate(plans):
        for index, (topic, step_ms, sale) in enumerate(plan):
            step_ms += latest_ms - time_ms if index == 0 else 0
            time_ms += step_ms
            latest_ms = max(latest_ms, time_ms)
            mine = None if sale is None else sale | {"shop": f"{sale['shop']}.{number % SHOPS_IN_A_ROW}"}
            whole.append(Planned(topic, step_ms, mine))
    return whole


def generated(strategy: st.SearchStrategy[T], count: int, number: int) -> list[T]:
    """So many values of a strategy, the same for the same number. The first ones are the simplest."""
    drawn: list[T] = []

    @seed(number)
    @settings(max_examples=2 * count, database=None, phases=[Phase.generate], suppress_health_check=list(HealthCheck))
    @given(strategy)
    def draw(value: T) -> None:
        drawn.append(value)

    draw()
    return drawn[-count:]


def runs_on_flink(pipeline: Pipeline) -> bool:
    """Whether it is not what Flink refuses (ADR 65): numbers that may grow without end."""
    try:
        compile_job("one", {"one": pipeline}, Settings(bootstrap_servers=""))
    except SetupError as error:
        if "more than 38 digits" in str(error):
            return False
        raise
    return True


def records_of(topics: Sequence[str], plans: Mapping[int, Sequence[Planned]]) -> list[SourceRecord]:
    """The records of the logs, by their numbers: log n has the partitions 2n and 2n + 1. Now and then a bad one in between."""
    records: list[SourceRecord] = []
    ends: dict[tuple[str, int], int] = {}

    def add(topic: str, partition: int, time_ms: int, key: bytes | None, value: bytes | None) -> None:
        offset = ends[topic, partition] = ends.get((topic, partition), -1) + 1
        records.append(SourceRecord(topic, partition, offset, time_ms, key, value))

    for log, plan in plans.items():
        time_ms = START_MS
        for index, (topic, step_ms, sale) in enumerate(plan):
            time_ms += step_ms
            if sale is None:
                add(topics[topic], 2 * log + time_ms % 2, time_ms, None, b'{"heartbeat":true}')
                continue
            shop = f"{sale['shop']}@{log}"
            place = topics[topic], 2 * log + sum(sale["shop"].encode()) % 2
            if index % 7 == 6:
                bad = BAD_VALUES[(log + index // 7) % len(BAD_VALUES)].replace(b"%s", shop.replace('"', '\\"').encode())
                add(*place, time_ms + 100_000, shop.encode(), bad)
            add(*place, time_ms, shop.encode(), encode({**sale, "shop": shop}))
    return records


def of_log(outputs: Outputs, log: int) -> dict[str, Any]:
    """What belongs to one log."""
    mine, suffix = {2 * log, 2 * log + 1}, f"@{log}"
    return {
        "alerts": {alert for alert in outputs.alerts if alert.place[1] in mine},
        "tiles": {place: value for place, value in outputs.tiles.items() if place[1].endswith(suffix)},
        "rows": {place[:3]: value for place, value in outputs.rows.items() if place[1].endswith(suffix)},
        "late": {late for late in outputs.late if late[2] in mine},
        "bad": {bad for bad in outputs.bad if bad[1] in mine},
    }


def differing(expected: Outputs, found: Outputs, logs: Sequence[int]) -> list[int]:
    """The logs that are not the same."""
    return [log for log in logs if of_log(expected, log) != of_log(found, log)]


def count_of(outputs: Outputs) -> int:
    """Rows of all kinds."""
    return len(outputs.alerts) + len(outputs.tiles) + len(outputs.rows) + len(outputs.late)
