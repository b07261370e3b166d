"""Durations as people write them."""

import pytest
from hypothesis import given
from hypothesis.strategies import integers

from app.core.durations import format_duration, parse_duration_ms
from app.core.errors import SetupError


@pytest.mark.parametrize(
    ("text", "expected_ms"),
    [
        ("250ms", 250),
        ("0s", 0),
        ("30s", 30_000),
        ("5m", 300_000),
        ("24h", 86_400_000),
        ("7d", 604_800_000),
        (" 1 s ", 1_000),
    ],
)
def test_parse_duration_known_units_are_milliseconds(text: str, expected_ms: int) -> None:
    """Each unit is worth what it says."""
    assert expected_ms == parse_duration_ms(text)


@pytest.mark.parametrize("text", ["", "5", "m", "-5m", "1.5s", "5 weeks", "5M", "5m 3s", "5mm"])
def test_parse_duration_anything_else_is_refused(text: str) -> None:
    """What is not a duration names the setting and an example."""
    with pytest.raises(SetupError, match=r"^deadline: .* is not a duration; .* such as 30s$") as caught:
        parse_duration_ms(text, "deadline")
    assert "deadline" == caught.value.setting


@given(duration_ms=integers(0, 10**12))
def test_format_duration_reads_back(duration_ms: int) -> None:
    """The shown form is exact."""
    assert duration_ms == parse_duration_ms(format_duration(duration_ms))


@pytest.mark.parametrize(
    ("duration_ms", "expected"), [(300_000, "5m"), (90_000, "90s"), (1, "1ms"), (86_400_000, "1d")]
)
def test_format_duration_takes_the_largest_whole_unit(duration_ms: int, expected: str) -> None:
    """A person reads 5m, not 300000."""
    assert expected == format_duration(duration_ms)
