"""The gate before a model: no call without time for it, no more calls at once than agreed, first come first served.

In this order: the deadline, a permit, the deadline again, the call. A caller that waits, or that will retry, holds no
permit; a permit is given back however its call ends.
"""

import asyncio
from collections import Counter

import msgspec

from app.models.base import FailureCode, Model, ModelAnswer, ModelFailure, ModelRequest

LEAST_ATTEMPT_MS = 20
"""With less time than this left no round trip to a model fits, so none is begun."""


class GateStatistics(msgspec.Struct, frozen=True):
    """What a gate has done so far, and does now.

    calls: begun. failures: calls and refusals of the gate by reason code; an answer that turns out not to be a decision
    is not among them. Tokens are those of all answers.
    """

    concurrency: int
    in_flight: int
    waiting: int
    calls: int
    answers: int
    failures: dict[str, int]
    input_tokens: int
    output_tokens: int
    cache_read_tokens: int
    cache_write_tokens: int


class ModelGate:
    """Guards one model. concurrency: calls at once, at least 1. attempt_ms: limit of one call, more than 0."""

    def __init__(self, model: Model, *, concurrency: int, attempt_ms: int) -> None:
        assert concurrency >= 1
        assert attempt_ms > 0
        self.model = model
        self._concurrency = concurrency
        self._attempt_ms = attempt_ms
        self._permits = asyncio.Semaphore(concurrency)  # wakes its waiters in the order of their coming
        self._closed = False
        self._waiting = 0
        self._in_flight = 0
        self._calls = 0
        self._answers = 0
        self._failures: Counter[str] = Counter()
        self._tokens: Counter[str] = Counter()

    async def decide(self, request: ModelRequest, deadline: float) -> ModelAnswer:
        """One attempt, ended by `deadline` or after `attempt_ms`, whichever is first; `request.timeout_ms` is set here.

        Args:    deadline: loop time in seconds at which an answer is of no more use.
        Raises:  ModelFailure: deadline (before or during the call), timeout (this attempt only), gate_closed, or the
                 model's own. On cancellation the call is given up and its permit is back.
        """
        try:
            answer = await self._decide(request, deadline)
        except ModelFailure as failure:
            self._failures[failure.code.value] += 1
            if failure.answer:
                self._count_tokens(failure.answer)
            raise
        self._answers += 1
        self._count_tokens(answer)
        return answer

    async def close(self) -> None:
        """Begins no more calls, and closes the model: calls that run fail."""
        self._closed = True
        await self.model.close()

    def statistics(self) -> GateStatistics:
        return GateStatistics(
            self._concurrency,
            self._in_flight,
            self._waiting,
            self._calls,
            self._answers,
            dict(self._failures),
            self._tokens["input"],
            self._tokens["output"],
            self._tokens["cache_read"],
            self._tokens["cache_write"],
        )

    async def _decide(self, request: ModelRequest, deadline: float) -> ModelAnswer:
        _remaining_ms(deadline)
        await self._acquire(deadline)
        try:
            if self._closed:
                raise ModelFailure(FailureCode.GATE_CLOSED, "this process is stopping and calls no more models")
            remaining_ms = _remaining_ms(deadline)
            timeout_ms = min(self._attempt_ms, remaining_ms)
            out_of_time = FailureCode.DEADLINE if remaining_ms <= self._attempt_ms else FailureCode.TIMEOUT
            self._in_flight += 1
            self._calls += 1
            try:
                return await self._attempt(msgspec.structs.replace(request, timeout_ms=timeout_ms), out_of_time)
            finally:
                self._in_flight -= 1
        finally:
            self._permits.release()

    async def _acquire(self, deadline: float) -> None:
        self._waiting += 1
        try:
            async with asyncio.timeout_at(deadline - LEAST_ATTEMPT_MS / 1000):
                await self._permits.acquire()
        except TimeoutError:
            raise ModelFailure(FailureCode.DEADLINE, "the deadline came while all permits were taken") from None
        finally:
            self._waiting -= 1

    async def _attempt(self, request: ModelRequest, out_of_time: FailureCode) -> ModelAnswer:
        """The model keeps the time limit itself; one that does not loses its call here."""
        try:
            async with asyncio.timeout(request.timeout_ms / 1000):
                return await self.model.decide(request)
        except TimeoutError:
            raise ModelFailure(out_of_time, f"no answer within {request.timeout_ms} ms") from None
        except ModelFailure as failure:
            if failure.code is FailureCode.TIMEOUT and out_of_time is FailureCode.DEADLINE:
                raise ModelFailure(out_of_time, f"no answer within {request.timeout_ms} ms") from failure
            raise

    def _count_tokens(self, answer: ModelAnswer) -> None:
        self._tokens["input"] += answer.input_tokens
        self._tokens["output"] += answer.output_tokens
        self._tokens["cache_read"] += answer.cache_read_tokens
        self._tokens["cache_write"] += answer.cache_write_tokens


def _remaining_ms(deadline: float) -> int:
    """Raises: ModelFailure(deadline) where no call fits any more."""
    remaining_ms = int((deadline - asyncio.get_running_loop().time()) * 1000)
    if remaining_ms < LEAST_ATTEMPT_MS:
        raise ModelFailure(FailureCode.DEADLINE, f"{max(remaining_ms, 0)} ms are left, too few for a call")
    return remaining_ms
