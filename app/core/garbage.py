"""The garbage collector of a process that keeps millions of small objects for as long as they matter, none of them garbage.

What survives two looks is exempt from all further ones: it is freed when nobody refers to it any more, as everything is. Cycles that
become garbage after that are kept; there are as many as were in use at that moment. Without this a full look at the tables of seven
million entries stood still for up to 17 s, and younger ones for a quarter of a second.
"""

import gc
from typing import Any

THRESHOLDS = (20_000, 5, 50)
"""New objects until a look at them, and such looks until one at what has survived a first one: 7 ms as a rule."""


def exempt_what_lasts() -> None:
    """For this process, from now on. May be repeated."""
    gc.set_threshold(*THRESHOLDS)
    if _exempt not in gc.callbacks:
        gc.callbacks.append(_exempt)


def _exempt(phase: str, about: dict[str, Any]) -> None:
    if phase == "stop" and about["generation"] > 0:
        gc.freeze()
