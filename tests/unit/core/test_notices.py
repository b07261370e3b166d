"""What happens often is told once a minute."""

import asyncio
import logging

import pytest

from app.core.clock import Clock, run_virtual
from app.core.notices import EVERY_S, Notices

logger = logging.getLogger("tests.notices")


def test_tell_often_is_one_line_a_minute_and_a_count(caplog: pytest.LogCaptureFixture) -> None:
    """The first of each subject at once; those within a minute are counted in the next line."""

    async def main(clock: Clock) -> None:
        notices = Notices(logger, logging.INFO)
        for number in range(5):
            notices.tell("orders", f"order {number} is bad")
        notices.tell("payments", "payment 0 is bad")
        await asyncio.sleep(EVERY_S)
        notices.tell("orders", "order 5 is bad")
        notices.tell("payments", "payment 1 is bad")

    with caplog.at_level(logging.INFO):
        run_virtual(main, 0)
    assert [
        "order 0 is bad",
        "payment 0 is bad",
        "order 5 is bad (4 more since the last such line)",
        "payment 1 is bad",
    ] == caplog.messages
