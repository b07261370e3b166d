"""Instants: whole milliseconds since 1970-01-01 UTC here, aware datetimes in handlers; exact, never by way of a float."""

from datetime import UTC, datetime, timedelta

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)

_MILLISECOND = timedelta(milliseconds=1)


def instant(time_ms: int) -> datetime:
    """The UTC datetime of milliseconds since 1970. Raises: OverflowError beyond the years 1 to 9999."""
    return EPOCH + timedelta(milliseconds=time_ms)


def instant_ms(moment: datetime) -> int:
    """Milliseconds since 1970 of an aware datetime; what is finer is cut off downwards. Raises: TypeError without zone."""
    return (moment - EPOCH) // _MILLISECOND
