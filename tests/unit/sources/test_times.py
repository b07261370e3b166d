"""Event times as files write them."""

from zoneinfo import ZoneInfo

import pytest

from app.core.errors import SetupError
from app.sources.times import NoTimeZone, event_time_ms, time_zone

BERLIN = ZoneInfo("Europe/Berlin")


@pytest.mark.parametrize(
    ("text", "expected_ms"),
    [
        ("852073200000", 852_073_200_000),
        (" 1997-01-01T00:00:00+01:00 ", 852_073_200_000),
        ("1996-12-31T23:00:00Z", 852_073_200_000),
        ("1996-12-31 23:00:00+00", 852_073_200_000),
        ("1997-01-01", 852_073_200_000),
        ("1997-01-01 00:00:00.0019", 852_073_200_001),
        ("2020-10-25 02:30:00", 1_603_585_800_000),
    ],
)
def test_event_time_ms_known_forms(text: str, expected_ms: int) -> None:
    """Milliseconds, ISO-8601 with and without a zone, and dates; of an hour that comes twice the first is meant."""
    assert expected_ms == event_time_ms(text, BERLIN)


def test_event_time_ms_local_time_without_zone_is_its_own_error() -> None:
    """Nobody guesses the zone of a local time or a date."""
    for text in ("1997-01-01", "1997-01-01T10:00:00"):
        with pytest.raises(NoTimeZone):
            event_time_ms(text, None)
    assert 1 == event_time_ms("1970-01-01T00:00:00.001Z", None)


@pytest.mark.parametrize(
    "text", ["", "soon", "1e12", "٣٤", "0", "-1", "1969-12-31T00:00:00Z", "9" * 18, "2020-13-01", "NaN"]
)
def test_event_time_ms_anything_else_is_refused(text: str) -> None:
    """What is no time, or lies where a record cannot, is a ValueError and not a wrong time."""
    with pytest.raises(ValueError):
        event_time_ms(text, BERLIN)


def test_time_zone_unknown_names_the_option() -> None:
    """A wrong zone is one line that names the option."""
    for name in ("Europe/Belgrad e", "../etc/passwd", ""):
        with pytest.raises(SetupError, match=r"--timezone: .* is no known time zone"):
            time_zone(name)
