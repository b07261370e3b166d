"""The use cases read by brute force: how many alerts of each type, and which, any engine must raise for the same records.

As `tests.reference`, of which this is the rest: nothing of `app.streams` is used, and no care is taken of time or memory. A
topic is read to its end first, and everything is found by looking at all of it.
"""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, NamedTuple

import msgspec

from app.broker.topics import partition_of
from app.sources.generator import Publication
from features.records import OrderEvent, PaymentEvent, ServiceEvent, UserEvent
from tests.reference import SourceRecord, valid_order

SECOND_MS, MINUTE_MS = 1_000, 60_000
LATENESS_MS = 5 * SECOND_MS
ONCE_MS = MINUTE_MS


class Passed(NamedTuple):
    """A valid event that is no repeat. m: the largest event time of its partition so far, with this one."""

    partition: int
    t: int
    m: int
    event: Any

    @property
    def on_time(self) -> bool:
        return self.t > self.m - LATENESS_MS


@dataclass
class Log:
    """One topic, read to its end."""

    passed: list[Passed] = field(default_factory=list)
    reached: dict[int, int] = field(default_factory=dict)
    """The largest event time of each partition."""

    def over(self, partition: int, end_ms: int) -> bool:
        """Whether what ends then has ended."""
        return end_ms <= self.reached[partition] - LATENESS_MS


def read_log(
    publications: Iterable[Publication],
    topic: str,
    partitions: int,
    decode: Callable[[Publication], Any],
    key: str,
    id: str,
) -> Log:
    """The events of a topic that `once(id, within="1m")` lets pass. decode: None for what is not valid."""
    log, sightings = Log(), dict[tuple[int, str, str], int]()
    for publication in publications:
        event = decode(publication) if publication.topic == topic else None
        if event is None:
            continue
        partition, t = partition_of((publication.key or b""), partitions), publication.timestamp_ms
        m = log.reached[partition] = max(t, log.reached.get(partition, t))
        sighting = (partition, getattr(event, key), getattr(event, id))
        last = sightings.get(sighting)
        sightings[sighting] = t if last is None else max(t, last)
        if last is None or m - last > ONCE_MS:
            log.passed.append(Passed(partition, t, m, event))
    return log


class Row(NamedTuple):
    """One alert of a window or session."""

    key: str
    start_ms: int
    values: dict[str, int]


@dataclass
class Cases:
    """What was found. late: late references by pipeline."""

    order_bursts: list[OrderEvent] = field(default_factory=list)
    failed_payments: list[PaymentEvent] = field(default_factory=list)
    other_amounts: list[tuple[OrderEvent, PaymentEvent]] = field(default_factory=list)
    failure_bursts: list[ServiceEvent] = field(default_factory=list)
    error_rates: list[Row] = field(default_factory=list)
    recoveries: list[Row] = field(default_factory=list)
    empty_handed_visits: list[Row] = field(default_factory=list)
    abandoned_carts: list[UserEvent] = field(default_factory=list)
    clicks: defaultdict[str, Counter[str]] = field(default_factory=lambda: defaultdict(Counter))
    """All clicks of each shopper by kind, but those too late for the live view."""
    late: Counter[str] = field(default_factory=Counter)

    @property
    def alerts(self) -> dict[str, int]:
        """By type."""
        return {
            "order_burst": len(self.order_bursts),
            "failed_payments": len(self.failed_payments),
            "paid_other_amount": len(self.other_amounts),
            "failure_burst": len(self.failure_bursts),
            "high_error_rate": len(self.error_rates),
            "service_recovered": len(self.recoveries),
            "left_empty_handed": len(self.empty_handed_visits),
            "abandoned_cart": len(self.abandoned_carts),
        }


def read_cases(publications: Sequence[Publication]) -> Cases:
    """Everything that they give but what `tests.reference` finds."""
    cases = Cases()
    orders = read_log(publications, "raw.orders", 12, _order, "user_id", "order_id")
    payments = read_log(publications, "raw.payments", 12, _of(PaymentEvent), "user_id", "payment_id")
    clicks = read_log(publications, "raw.user_events", 24, _of(UserEvent), "user_id", "event_id")
    requests = read_log(publications, "raw.service_events", 6, _of(ServiceEvent), "service", "event_id")

    placed = _timely(cases, "order_bursts", [p for p in orders.passed if p.event.status == "placed"])
    cases.order_bursts = [p.event for p in _bursts(placed, "user_id", 5, 5 * MINUTE_MS)]
    failed = _timely(cases, "failed_payments", [p for p in payments.passed if p.event.status == "failed"])
    cases.failed_payments = [p.event for p in _bursts(failed, "user_id", 3, 10 * MINUTE_MS)]
    authorized = _timely(cases, "other_amounts", [p for p in payments.passed if p.event.status == "authorized"])
    cases.late["other_amounts"] += cases.late["order_bursts"]
    _read_other_amounts(cases, placed, authorized)
    _read_outages(cases, requests)
    _read_clicks(cases, clicks)
    return cases


def _order(publication: Publication) -> OrderEvent | None:
    return valid_order(SourceRecord(0, 0, publication.timestamp_ms, publication.key, publication.value))


def _of(kind: type[msgspec.Struct]) -> Callable[[Publication], Any]:
    return lambda publication: msgspec.json.decode(publication.value or b"", type=kind)


def _timely(cases: Cases, pipeline: str, passed: list[Passed]) -> list[Passed]:
    """Those that are on time; the others are late references."""
    cases.late[pipeline] += sum(not p.on_time for p in passed)
    return [p for p in passed if p.on_time]


def _bursts(passed: Iterable[Passed], key: str, count: int, within_ms: int) -> list[Passed]:
    """The events at which the last `count` of their key span no more, and one event earlier they did."""
    begun, times, was = [], defaultdict[str, list[int]](list), dict[str, bool]()
    for one in passed:
        entity = getattr(one.event, key)
        times[entity].append(one.t)
        last = times[entity][-count:]
        now = len(last) == count and max(last) - min(last) <= within_ms
        if now and not was.get(entity):
            begun.append(one)
        was[entity] = now
    return begun


def _read_other_amounts(cases: Cases, placed: list[Passed], authorized: list[Passed]) -> None:
    payments: defaultdict[tuple[str, str], list[Passed]] = defaultdict(list)
    for paid in authorized:
        payments[paid.event.user_id, paid.event.order_id].append(paid)
    for order in placed:
        for paid in payments[order.event.user_id, order.event.order_id]:
            near = -MINUTE_MS <= paid.t - order.t <= 10 * MINUTE_MS
            if near and order.event.amount_usd != paid.event.amount_usd:
                cases.other_amounts.append((order.event, paid.event))


def _read_outages(cases: Cases, requests: Log) -> None:
    failures = _timely(cases, "failure_bursts", [p for p in requests.passed if p.event.status == "failed"])
    cases.late["recoveries"] = cases.late["failure_bursts"]
    latest: dict[str, int] = {}
    for one in _bursts(failures, "service", 10, MINUTE_MS):
        start_ms = one.t - one.t % (5 * MINUTE_MS)
        if start_ms > latest.get(one.event.service, -1):
            latest[one.event.service] = start_ms
            cases.failure_bursts.append(one.event)

    in_step = [p for p in requests.passed if p.t - p.t % MINUTE_MS + MINUTE_MS > p.m - LATENESS_MS]
    cases.late["error_rates"] = len(requests.passed) - len(in_step)
    windows = {
        (p.partition, p.event.service, p.t - p.t % MINUTE_MS - back * MINUTE_MS) for p in in_step for back in range(5)
    }
    for partition, service, start_ms in windows:
        held = [p.event for p in in_step if p.event.service == service and 0 <= p.t - start_ms < 5 * MINUTE_MS]
        failed = sum(event.status == "failed" for event in held)
        if requests.over(partition, start_ms + 5 * MINUTE_MS) and failed >= 10 and 10 * failed >= len(held):
            mean_ms = (2 * sum(event.latency_ms for event in held) + len(held)) // (2 * len(held))
            values = {"requests": len(held), "failures": failed, "mean_latency_ms": mean_ms}
            cases.error_rates.append(Row(service, start_ms, values))

    for service, start_ms, held in _sessions(requests, failures, "service", 5 * MINUTE_MS):
        if len(held) >= 5:
            cases.recoveries.append(Row(service, start_ms, {"failures": len(held)}))


def _read_clicks(cases: Cases, clicks: Log) -> None:
    for one in clicks.passed:
        if one.t - one.t % (5 * MINUTE_MS) + 5 * MINUTE_MS > one.m - LATENESS_MS:
            cases.clicks[one.event.user_id][one.event.kind] += 1
        else:
            cases.late["user_clicks"] += 1
    timely = _timely(cases, "empty_handed_visits", clicks.passed)
    for user, start_ms, held in _sessions(clicks, timely, "user_id", 30 * MINUTE_MS):
        kinds = Counter(event.kind for event in held)
        looked, left = kinds["view"] + kinds["search"], kinds["cart_add"] - kinds["cart_remove"]
        if looked >= 8 and kinds["checkout"] == 0 and left <= 0:
            values = {"views": kinds["view"], "searches": kinds["search"], "cart_adds": kinds["cart_add"]}
            cases.empty_handed_visits.append(Row(user, start_ms, values))

    adds = _timely(cases, "abandoned_carts", [p for p in clicks.passed if p.event.kind == "cart_add"])
    signs = [p for p in clicks.passed if p.event.kind in ("cart_add", "checkout")]
    signs = _timely(cases, "abandoned_carts", signs)  # the right side of the join names what is late once more
    for add in adds:
        theirs = [p.t - add.t for p in signs if p.event.user_id == add.event.user_id]
        passed_ms = clicks.reached[add.partition] - LATENESS_MS
        if passed_ms >= add.t + 30 * MINUTE_MS and not any(1 <= after <= 30 * MINUTE_MS for after in theirs):
            cases.abandoned_carts.append(add.event)


def _sessions(log: Log, timely: Iterable[Passed], key: str, gap_ms: int) -> list[tuple[str, int, list[Any]]]:
    """Key, first event time and events of each session that has ended: those of a key at most the gap apart."""
    of: defaultdict[tuple[int, str], list[Passed]] = defaultdict(list)
    for one in timely:
        of[one.partition, getattr(one.event, key)].append(one)
    ended = []
    for (partition, entity), events in of.items():
        events.sort(key=lambda one: one.t)
        begins = [0, *(n for n in range(1, len(events)) if events[n].t - events[n - 1].t > gap_ms), len(events)]
        for first, end in pairwise(begins):
            held = events[first:end]
            if log.over(partition, held[-1].t + gap_ms):
                ended.append((entity, held[0].t, [one.event for one in held]))
    return ended
