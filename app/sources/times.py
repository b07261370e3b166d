"""Event times as files write them: ISO-8601, dates, or whole milliseconds since 1970."""

import re
from datetime import datetime
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from app.core.errors import SetupError
from app.core.instants import instant_ms

_LAST_MS = 253_402_300_799_999
_WHOLE_NUMBER = re.compile(r"[+-]?[0-9]{1,18}")


class NoTimeZone(ValueError):
    """A local time or a date, and nobody said of which time zone."""


def time_zone(name: str) -> ZoneInfo:
    """Raises: SetupError for a name that is not in the system's time zone database."""
    try:
        return ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError):
        raise SetupError(
            "--timezone", f"{name!r} is no known time zone; write one such as UTC or Europe/Berlin"
        ) from None


def event_time_ms(text: str, zone: ZoneInfo | None) -> int:
    """Milliseconds since 1970-01-01 UTC.

    Args:   text: a whole number of milliseconds, or ISO-8601: a date (its first moment counts) or a date and time;
            finer than a millisecond is cut off. zone: of times that name none; of one that its clocks show twice the first.
    Returns: 1 or more; brokers read 0 as "now" and nothing below it.
    Raises: NoTimeZone where `zone` is needed and None; ValueError for anything else, and beyond the years 1970 to 9999.
    """
    text = text.strip()
    if _WHOLE_NUMBER.fullmatch(text):
        timestamp_ms = int(text)
    else:
        moment = datetime.fromisoformat(text)
        if moment.tzinfo is None:
            if zone is None:
                raise NoTimeZone(text)
            moment = moment.replace(tzinfo=zone)
        timestamp_ms = instant_ms(moment)
    if not 0 < timestamp_ms <= _LAST_MS:
        raise ValueError(f"{text!r} lies beyond the years 1970 to 9999")
    return timestamp_ms
