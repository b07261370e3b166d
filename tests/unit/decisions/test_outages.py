"""What is known by now is written however long the broker is away."""

import asyncio

import pytest

from app.core.clock import Clock, run_virtual
from app.core.errors import Unavailable
from app.decisions.outages import waited_out


def test_waited_out_of_many_records_is_one_line(caplog: pytest.LogCaptureFixture) -> None:
    """All in flight wait for the same broker: they are written when it is back, and told of once a minute."""

    async def main(clock: Clock) -> list[int]:
        loop = asyncio.get_running_loop()
        back_s = loop.time() + 30

        async def write() -> int:
            if loop.time() < back_s:
                raise Unavailable("broker: away")
            return 1

        return await asyncio.gather(*(waited_out("what many records have", write) for _ in range(64)))

    assert [1] * 64 == run_virtual(main, 0)
    assert ["what many records have waits to be written: broker: away"] == caplog.messages
