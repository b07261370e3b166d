"""What tests of the model gate share: a model that does as a request says, and a loop of virtual time."""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

import msgspec
import pytest

from app.core.clock import Clock, run_virtual
from app.models.base import FailureCode, ModelAnswer, ModelFailure, ModelRequest, StopReason

T = TypeVar("T")


class Verdict(msgspec.Struct, frozen=True):
    action: str


class ScriptedModel:
    """Takes the seconds that a request's context says, fails as it says, and remembers what ran."""

    name = "scripted"

    def __init__(self) -> None:
        self.started: list[str] = []
        self.timeouts_ms: list[int] = []
        self.running = 0
        self.most_running = 0
        self.closed = False

    async def decide(self, request: ModelRequest) -> ModelAnswer:
        self.started.append(request.agent)
        self.timeouts_ms.append(request.timeout_ms)
        self.running += 1
        self.most_running = max(self.most_running, self.running)
        try:
            await asyncio.sleep(request.context["seconds"])
            if "fails" in request.context:
                context = request.context
                answer = None if "bare" in context else ANSWER
                raise ModelFailure(
                    context["fails"], "scripted", answer=answer, retry_after_ms=context.get("retry_after_ms")
                )
            return msgspec.structs.replace(ANSWER, rates=request.context.get("rates"))
        finally:
            self.running -= 1

    async def close(self) -> None:
        self.closed = True


ANSWER = ModelAnswer(
    text="{}",
    model="scripted",
    stop_reason=StopReason.COMPLETE,
    input_tokens=10,
    output_tokens=5,
    cache_read_tokens=3,
    cache_write_tokens=2,
)


def request(seconds: float = 1.0, name: str = "agent", partition: int = -1, **context: Any) -> ModelRequest:
    return ModelRequest(
        agent=name,
        instructions="",
        context_text="",
        context={"seconds": seconds, **context},
        answer_type=Verdict,
        timeout_ms=1,
        partition=partition,
    )


def virtual(main: Callable[[asyncio.AbstractEventLoop], Coroutine[Any, Any, T]]) -> T:
    async def run(clock: Clock) -> T:
        return await main(asyncio.get_running_loop())

    return run_virtual(run, 0)


async def code_of(call: Coroutine[Any, Any, ModelAnswer]) -> FailureCode:
    with pytest.raises(ModelFailure) as caught:
        await call
    return caught.value.code


async def steps(count: int) -> None:
    for _ in range(count):
        await asyncio.sleep(0)
