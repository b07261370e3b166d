"""What one run of a handler comes to, in words."""

import pytest

from app.core.clock import Clock, run_virtual
from app.core.errors import Unavailable
from app.decisions.outcome import failure_of
from app.models.base import FailureCode, ModelFailure, ModelRequest
from tests.decisions_kit import START_MS, World, large_order, make_agent, until


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (ModelFailure(FailureCode.OVERLOADED, "is busy"), ("overloaded", "is busy (attempt 3)")),
        (Unavailable("store: is away"), ("unavailable", "store: is away (attempt 3)")),
        (ValueError("odd"), ("handler_failed", "ValueError: odd (attempt 3)")),
    ],
)
def test_failure_of_says_its_code_once(error: Exception, expected: tuple[str, str]) -> None:
    """The code stands before the detail, and not in it."""
    failure = failure_of(error, 3)
    assert expected == (failure.code, failure.detail)


def test_decision_of_a_fallback_says_its_code_once(caplog: pytest.LogCaptureFixture) -> None:
    """In the decision's reason as in the log."""

    def refuses(request: ModelRequest) -> str:
        raise ModelFailure(FailureCode.REFUSED, "will not say")

    async def main(clock: Clock) -> None:
        world = await World.create(clock, refuses)
        async with world.running(world.agent_work(make_agent())):
            world.send(large_order())
            await until(lambda: len(world.decisions()) == 1)
        (record,) = world.decisions()
        assert b'"reason":"refused: will not say"' in bytes(record.decision)

    run_virtual(main, START_MS)
    assert any(line.endswith("large_order:u-1:o-1: refused: will not say") for line in caplog.messages)
