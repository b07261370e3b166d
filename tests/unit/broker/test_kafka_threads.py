"""The thread for blocking calls."""

import pytest

from app.broker.kafka.threads import BlockingCalls


async def test_run_returns_what_the_call_returns() -> None:
    """Result or error, as if it had been called here."""
    calls = BlockingCalls("test")
    assert 3 == await calls.run(lambda: 3)
    with pytest.raises(ZeroDivisionError):
        await calls.run(lambda: 1 // 0)
    calls.stop()


async def test_run_after_stop_raises() -> None:
    """Nobody would answer, so nobody waits; what was asked before is answered."""
    calls = BlockingCalls("test")
    assert 1 == await calls.run(lambda: 1)
    calls.stop()
    with pytest.raises(RuntimeError, match="has ended"):
        await calls.run(lambda: 2)
