"""Log lines about what may happen often: the first is written at once, and after it one a minute that counts the others."""

import asyncio
import logging
from dataclasses import dataclass

EVERY_S = 60.0


@dataclass(slots=True)
class _Told:
    at_s: float
    since: int = 0


class Notices:
    """Speaks for one logger, on the running loop's time. Subjects are few: topics, reason codes."""

    def __init__(self, logger: logging.Logger, level: int) -> None:
        self._logger = logger
        self._level = level
        self._told: dict[str, _Told] = {}

    def tell(self, subject: str, text: str, error: BaseException | None = None) -> None:
        """Logs one occurrence, unless another one of its subject was logged within the last minute.

        error: what was not expected, with the traceback that finds it.
        """
        now_s = asyncio.get_running_loop().time()
        told = self._told.get(subject)
        if told is not None and now_s < told.at_s + EVERY_S:
            told.since += 1
            return
        before = f" ({told.since:,} more since the last such line)" if told is not None and told.since else ""
        self._logger.log(self._level, "%s%s", text, before, exc_info=error)
        self._told[subject] = _Told(now_s)
