"""Milliseconds and datetimes are the same instants."""

from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.core.instants import instant, instant_ms


@given(time_ms=st.integers(-62_135_596_800_000, 253_402_300_799_999))
def test_instant_every_millisecond_survives(time_ms: int) -> None:
    """No float comes in between, from the year 1 to 9999."""
    assert time_ms == instant_ms(instant(time_ms))


def test_instant_ms_finer_parts_are_cut_off() -> None:
    """Microseconds never move an instant to a later millisecond."""
    assert 1 == instant_ms(datetime(1970, 1, 1, 0, 0, 0, 1_999, tzinfo=UTC))


def test_instant_ms_without_zone_is_an_error() -> None:
    """A local time is no instant."""
    with pytest.raises(TypeError):
        instant_ms(datetime(2024, 1, 1))
