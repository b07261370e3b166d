"""The fraud streams read by brute force: what any engine must give for the same records, in the plainest Python.

Nothing of `app.streams` is used: the rules of event time (DESIGN.md, "Time") and of valid records (docs/validity.md) are
written down here a second time, slowly. Records are read in the order given; state is kept per partition.
"""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from decimal import Decimal
from typing import NamedTuple, Protocol

import msgspec

from app.broker.topics import partition_of
from features.records import OrderEvent

LIVE, TUMBLING = "user_features", "order_rate"
CENT = Decimal("0.01")


class Published(Protocol):
    """What a scenario gives; `app.sources.generator.Publication` is one."""

    @property
    def at_ms(self) -> int: ...
    @property
    def key(self) -> bytes | None: ...
    @property
    def value(self) -> bytes | None: ...
    @property
    def timestamp_ms(self) -> int: ...


class SourceRecord(NamedTuple):
    """One record of the source topic. `at_ms`: when it was published, needed for the features that its alert sees."""

    partition: int
    offset: int
    timestamp_ms: int
    key: bytes | None
    value: bytes | None
    at_ms: int | None = None


class Rules(NamedTuple):
    """The declarations of features/fraud.py as numbers. once_within_ms: None reads every repeat as a new event."""

    out_of_orderness_ms: int = 5_000
    once_within_ms: int | None = 60_000
    tile_ms: int = 30_000
    live_ms: int = 300_000
    tumbling_ms: int = 300_000
    limit_cents: int = 1_000_000


class Total(NamedTuple):
    """Orders and cents of one slice. version: source offset of its last change."""

    orders: int
    cents: int
    version: int

    def plus(self, cents: int, offset: int) -> "Total":
        return Total(self.orders + 1, self.cents + cents, max(self.version, offset))


NOTHING = Total(0, 0, -1)


class Slice(NamedTuple):
    """One tile or window of one user in one partition."""

    user_id: str
    start_ms: int
    partition: int


class LateReference(NamedTuple):
    pipeline: str
    partition: int
    offset: int
    timestamp_ms: int


class AlertSeen(NamedTuple):
    """One alert, and the live features that a reader sees at the moment its order is published: with the order itself,
    unless that is late for its tile. `features` is None where the moment of publishing is unknown."""

    alert_id: str
    order_id: str
    user_id: str
    cents: int
    triggered_ms: int
    partition: int
    offset: int
    late_for: tuple[str, ...]
    features: Total | None


@dataclass
class Reading:
    """Everything that the records give. Rows of windows that no later record has closed yet are in `open_rows`."""

    events: int = 0
    heartbeats: int = 0
    malformed: list[SourceRecord] = field(default_factory=list)
    late_references: list[LateReference] = field(default_factory=list)
    alerts: list[AlertSeen] = field(default_factory=list)
    tiles: dict[Slice, Total] = field(default_factory=dict)
    final_rows: dict[Slice, Total] = field(default_factory=dict)
    open_rows: dict[Slice, Total] = field(default_factory=dict)

    @property
    def late(self) -> dict[str, int]:
        """Late records by pipeline."""
        counts = Counter(reference.pipeline for reference in self.late_references)
        return {LIVE: counts[LIVE], TUMBLING: counts[TUMBLING]}

    @property
    def alert_ids(self) -> set[str]:
        return {alert.alert_id for alert in self.alerts}

    def decisions(self, judge: Callable[[AlertSeen], str]) -> dict[str, str]:
        """Action by alert id; the first alert of an id is the one that is judged."""
        actions: dict[str, str] = {}
        for alert in self.alerts:
            if alert.alert_id not in actions:
                actions[alert.alert_id] = judge(alert)
        return actions


def as_records(publications: Iterable[Published], partitions: int = 12) -> Iterator[SourceRecord]:
    """Publications as the records of a topic to which nobody else writes.

    A publication without a key may go anywhere, and is malformed anywhere; here it goes to partition 0.
    """
    ends: Counter[int] = Counter()
    for publication in publications:
        partition = 0 if publication.key is None else partition_of(publication.key, partitions)
        yield SourceRecord(
            partition,
            ends[partition],
            publication.timestamp_ms,
            publication.key,
            publication.value,
            publication.at_ms,
        )
        ends[partition] += 1


def read_all(records: Iterable[SourceRecord], rules: Rules = Rules()) -> Reading:  # noqa: B008 - it is a constant
    """Reads the records one after another and says what they give."""
    reading = Reading()
    reached: dict[int, int] = {}  # partition -> m, the largest event time so far
    sightings: dict[tuple[int, str, str], int] = {}  # partition, user, order -> largest event time
    windows: dict[Slice, Total] = {}
    places: defaultdict[str, set[Slice]] = defaultdict(set)  # user -> tiles, or each alert would look through all
    for record in records:
        reading.events += 1
        t, partition = record.timestamp_ms, record.partition
        order = valid_order(record)
        if order is None and not is_heartbeat(record):
            reading.malformed.append(record)
            continue
        m = reached[partition] = max(t, reached.get(partition, t))
        if order is None:
            reading.heartbeats += 1
            continue

        sighting = (partition, order.user_id, order.order_id)
        last = sightings.get(sighting)
        sightings[sighting] = t if last is None else max(t, last)
        if rules.once_within_ms is not None and last is not None and m - last <= rules.once_within_ms:
            continue

        cents = int(order.amount_usd.quantize(CENT) * 100)
        late_for = []
        for name, size_ms, slices in (
            (LIVE, rules.tile_ms, reading.tiles),
            (TUMBLING, rules.tumbling_ms, windows),
        ):
            start_ms = t - t % size_ms
            if start_ms + size_ms - 1 > m - rules.out_of_orderness_ms - 1:
                where = Slice(order.user_id, start_ms, partition)
                slices[where] = slices.get(where, NOTHING).plus(cents, record.offset)
                if slices is reading.tiles:
                    places[order.user_id].add(where)
            else:
                late_for.append(name)
                reading.late_references.append(LateReference(name, partition, record.offset, t))

        if cents > rules.limit_cents:
            alert_id = f"high_value_order:{escaped(order.user_id)}:{escaped(order.order_id)}"
            tiles = {where: reading.tiles[where] for where in places[order.user_id]}
            features = live_features(tiles, record.at_ms, rules)
            reading.alerts.append(
                AlertSeen(
                    alert_id,
                    order.order_id,
                    order.user_id,
                    cents,
                    t,
                    partition,
                    record.offset,
                    tuple(late_for),
                    features,
                )
            )

    for where, total in windows.items():
        closed = where.start_ms + rules.tumbling_ms - 1 <= reached[where.partition] - rules.out_of_orderness_ms - 1
        (reading.final_rows if closed else reading.open_rows)[where] = total
    return reading


def valid_order(record: SourceRecord) -> OrderEvent | None:
    """The order that a record holds, or None where it is not valid."""
    if record.key is None or record.value is None or record.timestamp_ms < 0:
        return None
    try:
        order = msgspec.json.decode(record.value, type=OrderEvent)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
    amount = order.amount_usd
    if not amount.is_finite() or not 0 <= amount <= 10**10 or amount.quantize(CENT) != amount:
        return None
    return order if record.key == order.user_id.encode() else None


def is_heartbeat(record: SourceRecord) -> bool:
    """Whether a record only says how late it is."""
    if record.key is not None or record.value is None or record.timestamp_ms < 0:
        return False
    try:
        said = msgspec.json.decode(record.value)
        return isinstance(said, dict) and list(said) == ["heartbeat"] and said["heartbeat"] is True
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return False


def live_features(tiles: dict[Slice, Total], now_ms: int | None, rules: Rules) -> Total | None:
    """Sums of those of a user's tiles whose end lies after now - window."""
    if now_ms is None:
        return None
    counting = [total for where, total in tiles.items() if where.start_ms + rules.tile_ms > now_ms - rules.live_ms]
    return Total(
        sum(total.orders for total in counting),
        sum(total.cents for total in counting),
        max((total.version for total in counting), default=-1),
    )


def escaped(part: str) -> str:
    """A part of an alert id, with `%` and `:` escaped."""
    return part.replace("%", "%25").replace(":", "%3A")
