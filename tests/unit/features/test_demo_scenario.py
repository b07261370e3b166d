"""The demo's sequence of all cases: one seed, exact counts, and a past that catches up."""

from collections import Counter, defaultdict
from itertools import islice

import pytest

from app.sources.generator import Publication
from features.demo import CASES, scenario
from features.demo.stories import CAUGHT_UP_MS
from tests.cases_reference import read_cases

START_MS = 1_767_225_600_000
TOPICS = {"raw.orders", "raw.payments", "raw.user_events", "raw.service_events"}


def test_demo_scenario_same_seed_same_bytes() -> None:
    """The same arguments give the same sequence; another seed gives another."""
    assert list(scenario(3_000, 7, START_MS)) == list(scenario(3_000, 7, START_MS))
    for case in CASES:
        assert list(case(300, 7, START_MS)) != list(case(300, 8, START_MS))


def test_demo_scenario_shorter_is_a_prefix_of_longer() -> None:
    """The number of events only says where the sequence ends."""
    longer = list(scenario(4_000, 7, START_MS))
    assert longer[:700] == list(scenario(700, 7, START_MS))
    for case in CASES:
        assert list(case(200, 7, START_MS)) == list(islice(case(10**12, 7, START_MS), 200))


def test_demo_scenario_publications_keep_their_distance() -> None:
    """In order, 50 ms between two of one key, and none near a tile's boundary: what an alert sees is what brute force says."""
    last_ms, last_of = 0, dict[tuple[str, bytes], int]()
    for publication in scenario(20_000, 7, START_MS):
        assert publication.at_ms >= last_ms
        last_ms = publication.at_ms
        assert 50 <= publication.at_ms % 30_000 < 29_950
        if publication.key is not None and publication.key.startswith(b"u-") and publication.key != b"u-nobody":
            place = publication.topic, publication.key
            assert publication.at_ms - last_of.get(place, 0) >= 50
            last_of[place] = publication.at_ms


def test_demo_scenario_past_catches_up() -> None:
    """Clicks and service events are first told in a hurry, in order and never ahead of time; then as they happen."""
    firsts: dict[str, list[Publication]] = defaultdict(list)
    seen = set[bytes]()
    for publication in scenario(20_000, 7, START_MS):
        if publication.value is not None and publication.value not in seen:
            seen.add(publication.value)
            firsts[publication.topic].append(publication)
    assert TOPICS == firsts.keys()
    for topic, behind_ms in (("raw.user_events", 5_400_000), ("raw.service_events", 1_800_000)):
        times = [publication.timestamp_ms for publication in firsts[topic]]
        assert times == sorted(times)
        assert START_MS - behind_ms <= times[0] < START_MS - behind_ms + 60_000
        late = [publication for publication in firsts[topic] if publication.at_ms >= START_MS + CAUGHT_UP_MS]
        assert {0} == {publication.at_ms - publication.timestamp_ms for publication in late}


@pytest.mark.parametrize("seed", [7, 8])
def test_demo_scenario_shows_every_case_in_its_first_seconds(seed: int) -> None:
    """As many events as `make demo` plays raise every type of alert, and repeats are among them."""
    publications = list(scenario(4_000, seed, START_MS))
    assert [] == [kind for kind, count in read_cases(publications).alerts.items() if count == 0]
    copies = Counter((publication.topic, publication.value) for publication in publications)
    assert TOPICS == {topic for (topic, _), count in copies.items() if count > 1}
