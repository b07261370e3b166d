"""Writing through an outage: what is known by now is offered again until the broker takes it."""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import TypeVar

from app.core.errors import Unavailable
from app.core.notices import Notices
from app.core.text import one_line

T = TypeVar("T")

logger = logging.getLogger(__name__)

_notices = Notices(logger, logging.WARNING)
"""One for all that waits: an outage concerns whatever is in flight."""

FIRST_DELAY_SECONDS = 0.1
LONGEST_DELAY_SECONDS = 5.0


async def waited_out(what: str, write: Callable[[], Awaitable[T]]) -> T:
    """Calls `write` until it does not raise Unavailable, whose answers may be lost: `write` stands being repeated.

    what: for the log, that which waits; records of one kind have the same. Raises: whatever else `write` raises.
    """
    delay = FIRST_DELAY_SECONDS
    while True:
        try:
            return await write()
        except Unavailable as error:
            _notices.tell(what, f"{what} waits to be written: {one_line(error)}")
            await asyncio.sleep(delay)
            delay = min(delay * 2, LONGEST_DELAY_SECONDS)
