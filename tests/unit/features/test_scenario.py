"""The demo's shoppers: exact counts, spacing, and every kind of trouble in them."""

from collections import Counter
from itertools import islice

from app.sources.generator import Publication
from features.scenario import BREAKS, SHOPPERS, scenario
from tests.reference import LIVE, TUMBLING, Reading, Rules, SourceRecord, as_records, read_all, valid_order

START_MS = 1_767_225_600_000


def read(publications: list[Publication]) -> Reading:
    return read_all(as_records(publications))


def test_scenario_same_seed_same_bytes() -> None:
    """The same arguments give the same sequence; another seed gives another."""
    assert list(scenario(3_000, 7, START_MS)) == list(scenario(3_000, 7, START_MS))
    assert list(scenario(300, 7, START_MS)) != list(scenario(300, 8, START_MS))


def test_scenario_shorter_is_a_prefix_of_longer() -> None:
    """The number of events only says where the sequence ends, and nothing is made before it is asked for."""
    endless = scenario(10**12, 7, START_MS)
    assert list(scenario(500, 7, START_MS)) == list(islice(endless, 500))


def test_scenario_publications_keep_their_distance() -> None:
    """At least 5 ms between two, 50 ms between two of one shopper, and no one near a tile's boundary."""
    last_ms, last_of = 0, dict[bytes, int]()
    for publication in scenario(20_000, 7, START_MS):
        assert publication.at_ms - last_ms >= 5
        last_ms = publication.at_ms
        assert 50 <= publication.at_ms % 30_000 < 29_950
        if publication.key is not None and publication.key.startswith(b"u-") and publication.key != b"u-nobody":
            assert publication.at_ms - last_of.get(publication.key, 0) >= 50
            last_of[publication.key] = publication.at_ms
    assert 19 <= (last_ms - START_MS) / 20_000 <= 22


def test_scenario_of_the_demo_holds_every_kind_of_trouble() -> None:
    """Late events for tile and window, repeats, series and single high values all occur, also together."""
    publications = list(scenario(20_000, 7, START_MS))
    reading = read(publications)
    assert 20_000 == reading.events
    assert 300 < len(reading.malformed) < 500
    assert reading.late[LIVE] > reading.late[TUMBLING] > 50
    assert len(reading.alerts) == len(reading.alert_ids) > 500
    orders_seen = Counter(alert.features.orders for alert in reading.alerts if alert.features)
    assert set(range(10)) <= orders_seen.keys()
    assert any(alert.late_for for alert in reading.alerts)
    values = Counter((publication.key, publication.value) for publication in publications)
    assert sum(1 for count in values.values() if count == 2) > 300
    assert len({publication.key for publication in publications}) < SHOPPERS


def test_scenario_every_break_is_malformed_and_occurs() -> None:
    """Each way to break an order gives a record that is not valid, and the demo has all of them."""
    order = valid_order(next(r for r in as_records(scenario(50, 7, START_MS)) if valid_order(r)))
    assert order is not None
    for break_it in BREAKS:
        key, value = break_it(order)
        assert valid_order(SourceRecord(0, 0, START_MS, key, value)) is None
    malformed = read(list(scenario(20_000, 7, START_MS))).malformed
    assert any(record.key is None for record in malformed)
    assert any(record.value is None for record in malformed)
    assert len(malformed) > 10 * len(BREAKS)


def test_scenario_every_rule_matters() -> None:
    """Repeats, lateness and the length of the window each change what an alert sees, so a wrong one would show."""
    records = list(as_records(scenario(20_000, 7, START_MS)))
    right = read_all(records)
    for wrong in (Rules(once_within_ms=None), Rules(out_of_orderness_ms=10**9), Rules(live_ms=330_000)):
        seen = read_all(records, wrong)
        assert [alert.features for alert in seen.alerts] != [alert.features for alert in right.alerts]
