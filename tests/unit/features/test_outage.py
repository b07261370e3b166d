"""Outages as the streams see them: one alert for a storm, and one recovery for each run of failures."""

from datetime import timedelta
from typing import Any, Literal

import pytest

from app.core.instants import instant
from features import outage
from features.records import ServiceEvent
from tests.cases_kit import START_MS, alerts_of

SECOND_MS, MINUTE_MS = 1_000, 60_000


def request(
    number: int, at_ms: int, status: Literal["ok", "failed"] = "failed", service: str = "checkout"
) -> ServiceEvent:
    return ServiceEvent(f"r-{number}", service, status, 100, instant(START_MS + at_ms))


def failures(count: int, first_ms: int = 0, every_ms: int = SECOND_MS, number: int = 0) -> list[ServiceEvent]:
    return [request(number + n, first_ms + n * every_ms) for n in range(count)]


def raised(events: list[ServiceEvent], minutes: int = 0) -> list[dict[str, Any]]:
    return alerts_of(outage, events, START_MS + minutes * MINUTE_MS)


def types(events: list[ServiceEvent], minutes: int = 0) -> list[str]:
    return [alert["alert_type"] for alert in raised(events, minutes)]


def test_failure_burst_takes_ten_within_a_minute() -> None:
    """Nine are none, nor are ten in a longer time."""
    assert ["failure_burst"] == types(failures(10, every_ms=6_666))
    assert [] == types(failures(9))
    assert [] == types(failures(10, every_ms=6_667))


def test_failure_burst_again_and_again_is_one_alert_in_five_minutes() -> None:
    """A service that fails, works and fails is told of once; in the next five minutes once more."""
    storm = [*failures(10), *failures(10, 2 * MINUTE_MS, number=10), *failures(10, 4 * MINUTE_MS, number=20)]
    first = raised(storm)
    assert [f"failure_burst:checkout:{START_MS}"] == [
        one["alert_id"] for one in first if one["alert_type"] == "failure_burst"
    ]
    later = raised([*storm, *failures(10, 6 * MINUTE_MS, number=30)])
    assert 2 == sum(one["alert_type"] == "failure_burst" for one in later)


@pytest.mark.parametrize(("ok", "failed", "expected"), [(90, 10, True), (91, 10, False), (0, 10, True), (20, 9, False)])
def test_high_error_rate_is_one_in_ten_and_ten_at_least(ok: int, failed: int, expected: bool) -> None:
    """A few failures at night are no outage, however large a part they are."""
    every_ms = 5 * MINUTE_MS // (ok + failed)
    statuses: list[Literal["ok", "failed"]] = ["ok"] * ok
    for n in range(failed):
        statuses.insert(n * (ok + failed) // failed, "failed")
    alerts = raised([request(n, n * every_ms, status) for n, status in enumerate(statuses)], minutes=6)
    whole = [one for one in alerts if one["alert_id"] == f"high_error_rate:checkout:{START_MS}"]
    assert expected == bool(whole)
    if whole:
        assert (ok + failed, failed, 100) == (whole[0]["requests"], whole[0]["failures"], whole[0]["mean_latency_ms"])


def test_recovery_comes_once_when_nothing_has_failed_for_five_minutes() -> None:
    """Successful requests and other services change nothing; a failure in between puts it off."""
    burst = failures(10)
    last_ms = 9 * SECOND_MS
    others = [request(90, 2 * MINUTE_MS, "ok"), request(91, 4 * MINUTE_MS, service="login")]
    (recovered,) = [one for one in raised([*burst, *others], minutes=10) if one["alert_type"] == "service_recovered"]
    over = instant(START_MS + last_ms) + timedelta(minutes=5)
    assert ("checkout", 10, over.strftime("%FT%TZ")) == (
        recovered["service"],
        recovered["failures"],
        recovered["triggered_at"],
    )
    again = [*burst, request(92, last_ms + 5 * MINUTE_MS)]
    assert "service_recovered" not in types(again, minutes=6)
    assert 1 == types(again, minutes=15).count("service_recovered")


def test_recovery_follows_every_alert_of_trouble() -> None:
    """However thinly the failures of a window are spread, their run ends in a recovery; a single failure ends in nothing."""
    thin = failures(10, every_ms=29 * SECOND_MS)
    found = types(thin, minutes=20)
    assert ("high_error_rate", "service_recovered") == (found[0], found[-1])
    assert 1 == found.count("service_recovered")
    assert [] == types(failures(1), minutes=20)


def test_failed_request_that_is_published_again_counts_once() -> None:
    """A publisher that repeats itself makes no outage."""
    assert [] == types([request(n % 4, n * SECOND_MS) for n in range(20)], minutes=20)
