"""Durations as people write them: `250ms`, `30s`, `5m`, `24h`, `7d`; inside, integers of milliseconds."""

import re

from app.core.errors import SetupError

_UNITS_MS = {"ms": 1, "s": 1_000, "m": 60_000, "h": 3_600_000, "d": 86_400_000}
_PATTERN = re.compile(r"(\d+)\s*(ms|s|m|h|d)")


def parse_duration_ms(text: str, setting: str = "duration") -> int:
    """Milliseconds of a duration such as `5m`.

    Raises: SetupError naming `setting` for anything else.
    """
    match = _PATTERN.fullmatch(text.strip())
    if match is None:
        raise SetupError(setting, f"{text!r} is not a duration; write a whole number and ms, s, m, h or d, such as 30s")
    return int(match[1]) * _UNITS_MS[match[2]]


def format_duration(duration_ms: int) -> str:
    """The shortest exact form: 300000 -> `5m`."""
    for unit in ("d", "h", "m", "s"):
        if duration_ms and duration_ms % _UNITS_MS[unit] == 0:
            return f"{duration_ms // _UNITS_MS[unit]}{unit}"
    return f"{duration_ms}ms"
