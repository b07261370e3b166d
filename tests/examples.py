"""How many generated cases a property is tried on: all of them in `make test`, a quarter while one works."""

from hypothesis import settings

FULL, QUICK = "full", "quick"


def examples(full: int) -> int:
    """As many of `full` cases as the profile of this run has time for."""
    return full // 4 if settings.get_current_profile_name() == QUICK else full
