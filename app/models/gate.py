"""The gate before a model: no call without time, hope, money, room and a permit for it; and what it took is settled.

In this order: the deadline; the breaker; the agent's budget; the line, in which agents take turns, for the buckets of
requests and tokens and for a permit; the deadline again; the call; settlement. Whoever waits, or will retry, holds no
permit. However a call ends, and wherever it is cancelled, everything that it holds is given back.
"""

import asyncio
import logging
import math
from collections import Counter
from dataclasses import dataclass

import msgspec

from app.core.notices import Notices
from app.core.text import one_line
from app.models.base import (
    MAX_ANSWER_TOKENS,
    SCHEMA_TOKENS,
    FailureCode,
    Model,
    ModelAnswer,
    ModelFailure,
    ModelRequest,
    Usage,
)
from app.models.breaker import FIRST_OPEN_S, REFUSED_OPEN_S, Breaker, BreakerState, Ticket
from app.models.buckets import LONGEST_REFILL_S, NOTHING, Amounts, Buckets, longest_refill_s
from app.models.budget import NO_USAGE, Budget, Budgets, BudgetStatistics, Reservation, Spent
from app.models.line import Line, Place
from app.models.permits import Permits
from app.models.shares import Shares

logger = logging.getLogger(__name__)

LEAST_ATTEMPT_MS = 20
"""With less time than this left no round trip to a model fits, so none is begun."""

LONGEST_PAUSE_S = 300.0
"""No `retry-after` closes the gate for longer; a call after it tells whether more is asked for."""

_CLOCK_S = 0.001
"""A loop's timers may come so much early."""

_BYTES_A_TOKEN = 3
_USUAL_OUTPUT_TOKENS = min(500, MAX_ANSWER_TOKENS)

_REFUSALS = frozenset({FailureCode.SPEND_LIMIT, FailureCode.UNAUTHORIZED})
_OVERLOADS = frozenset({FailureCode.RATE_LIMITED, FailureCode.OVERLOADED})
_OUTAGES = frozenset({FailureCode.RATE_LIMITED, FailureCode.OVERLOADED, FailureCode.TIMEOUT, FailureCode.UNAVAILABLE})


class BucketStatistics(msgspec.Struct, frozen=True):
    """a_minute: this process's part of the limit; left: now; None where no limit is known."""

    a_minute: int | None
    left: int | None


class GateStatistics(msgspec.Struct, frozen=True, kw_only=True):
    """What a gate has done so far, and does now.

    concurrency: calls at once at the most; permits: at once now. calls: begun. failures: calls and refusals of the gate
    by reason code; an answer that turns out not to be a decision is not among them. Tokens are those of all answers;
    cost is what was paid, or may have been. paused_ms: how long the model's side wants no call. share: of the limits.
    """

    concurrency: int
    permits: int
    in_flight: int
    waiting: int
    calls: int
    answers: int
    failures: dict[str, int]
    breaker: str
    breaker_openings: int
    paused_ms: int
    share: float
    buckets: dict[str, BucketStatistics]
    budgets: dict[str, BudgetStatistics]
    input_tokens: int
    output_tokens: int
    cache_read_tokens: int
    cache_write_tokens: int
    cost_micro_usd: int


@dataclass(slots=True)
class _Call:
    """What one caller holds on its way, and what its call has told. given_ms: the time its call was given, 0 until the
    model is asked."""

    ticket: Ticket
    input_tokens: int
    budget: Reservation | None = None
    place: Place | None = None
    given_ms: int = 0
    answer: ModelAnswer | None = None
    failure: ModelFailure | None = None

    @property
    def usage(self) -> Usage:
        """What came back says that it was used."""
        answer = self.answer or (self.failure and self.failure.answer)
        return answer.usage if answer else NO_USAGE

    @property
    def charged(self) -> Usage:
        """What was paid, or may have been: of a call that broke off, the input."""
        unknown = self.given_ms and not self.answer and (self.failure is None or self.failure.unknown)
        return Usage(self.input_tokens, 0, 0, 0) if unknown else self.usage


class ModelGate:
    """Guards one model for all agents of a process.

    concurrency: calls at once at the most, at least 1. attempt_ms: limit of one call, more than 0. buckets: the limits a
    minute that are known beforehand. budgets: None where no agent has one.
    """

    def __init__(
        self,
        model: Model,
        *,
        concurrency: int,
        attempt_ms: int,
        buckets: Buckets | None = None,
        budgets: Budgets | None = None,
    ) -> None:
        assert attempt_ms > 0
        self.model = model
        self._attempt_ms = attempt_ms
        self._breaker = Breaker()
        self._permits = Permits(concurrency)
        self._buckets = buckets or Buckets(0, 0, 0)
        self._budgets = budgets
        self._line = Line(self._permits, self._buckets)
        self._shares = Shares()
        self._pause_code = FailureCode.RATE_LIMITED
        self._opened_by = ""
        self._closed = False
        self._revoked: set[tuple[str, int]] = set()
        self._in_flight = 0
        self._calls = 0
        self._answers = 0
        self._failures: Counter[str] = Counter()
        self._paid = NO_USAGE
        self._cost_micro_usd = 0
        self._notices = Notices(logger, logging.WARNING)

    async def decide(self, request: ModelRequest, deadline: float) -> ModelAnswer:
        """One attempt, ended by `deadline` or after `attempt_ms`, whichever is first; `request.timeout_ms` is set here.

        Args:    deadline: loop time in seconds at which an answer is of no more use.
        Raises:  ModelFailure: deadline (before or during the call), breaker_open, no_budget, rate_limited or overloaded
                 (the model's side wants no call before the deadline), timeout (this attempt only), gate_closed, or the
                 model's own. On cancellation the call is given up, and everything that was held for it is back.
        """
        try:
            answer = await self._decide(request, deadline)
        except ModelFailure as failure:
            self._failures[failure.code.value] += 1
            raise
        self._answers += 1
        return answer

    async def close(self) -> None:
        """Begins no more calls, and closes the model: calls that run fail."""
        self._closed = True
        self._line.dismiss(_stopping)
        await self.model.close()

    def declare(self, agent: str, partitions: int, budget: Budget | None) -> None:
        """An agent that will call, how many partitions its topic has, and its budget.

        Raises: SetupError for a budget that cannot be kept.
        """
        self._shares.declare(agent, partitions)
        if budget is not None:
            assert self._budgets is not None, "budgets need a gate with budgets"
            self._budgets.declare(agent, budget, partitions)

    def assigned(self, agent: str, partition: int, spent: Spent | None) -> None:
        """A partition is ours: its part of limits and budget too, less what its decisions say was spent."""
        self._revoked.discard((agent, partition))
        self._shares.assigned(agent, partition)
        if self._budgets is not None:
            self._budgets.assigned(agent, partition, spent)
        self._share_out()

    def revoked(self, agent: str, partition: int) -> None:
        """A partition is being taken away, until `ended`: its calls go on, and no more of them begin."""
        self._revoked.add((agent, partition))
        self._line.dismiss(_taken_away, only=lambda place: (place.agent, place.partition) == (agent, partition))

    def ended(self, agent: str, partition: int) -> None:
        """A partition is another's. Known or not."""
        self._revoked.discard((agent, partition))
        self._shares.ended(agent, partition)
        if self._budgets is not None:
            self._budgets.ended(agent, partition)
        self._share_out()

    def spent(self, agent: str, partition: int) -> Spent | None:
        """What a decision says about its agent's spending; None without a budget."""
        return self._budgets.spent(agent, partition) if self._budgets is not None else None

    def statistics(self) -> GateStatistics:
        """On the running loop."""
        now = asyncio.get_running_loop().time()
        buckets = self._buckets
        named = {
            "requests": buckets.requests,
            "input_tokens": buckets.input_tokens,
            "output_tokens": buckets.output_tokens,
        }
        return GateStatistics(
            concurrency=self._permits.most,
            permits=self._permits.allowed(now),
            in_flight=self._in_flight,
            waiting=len(self._line),
            calls=self._calls,
            answers=self._answers,
            failures=dict(self._failures),
            breaker=self._breaker.state.value,
            breaker_openings=self._breaker.openings,
            paused_ms=math.ceil(self._permits.closed_s(now) * 1000),
            share=self._shares.share,
            buckets={
                name: BucketStatistics(_whole(bucket.size), _whole(bucket.left(now))) for name, bucket in named.items()
            },
            budgets=self._budgets.statistics() if self._budgets is not None else {},
            input_tokens=self._paid.input_tokens,
            output_tokens=self._paid.output_tokens,
            cache_read_tokens=self._paid.cache_read_tokens,
            cache_write_tokens=self._paid.cache_write_tokens,
            cost_micro_usd=self._cost_micro_usd,
        )

    async def _decide(self, request: ModelRequest, deadline: float) -> ModelAnswer:
        _remaining_ms(deadline)
        if self._closed:
            raise _stopping()
        if (request.agent, request.partition) in self._revoked:
            raise _taken_away()
        input_tokens = _estimated_tokens(request)
        call = _Call(self._enter(deadline), input_tokens)  # with its ticket: nothing may fail before the `try`
        try:
            if self._budgets is not None:
                call.budget = self._reserve(self._budgets, request, call.input_tokens)
            call.place = await self._wait(request, call, deadline)
            remaining_ms = _remaining_ms(deadline)
            call.given_ms = min(self._attempt_ms, remaining_ms)
            out_of_time = FailureCode.DEADLINE if remaining_ms <= self._attempt_ms else FailureCode.TIMEOUT
            call.answer = await self._attempt(msgspec.structs.replace(request, timeout_ms=call.given_ms), out_of_time)
            return call.answer
        except ModelFailure as failure:
            call.failure = failure
            raise
        except asyncio.CancelledError:
            # Whoever keeps the same deadline outside may be the first to notice that it has come.
            if call.given_ms and asyncio.get_running_loop().time() >= deadline - _CLOCK_S:
                call.failure = _no_answer(FailureCode.DEADLINE, call.given_ms)
            raise
        finally:
            self._settle(call)

    def _enter(self, deadline: float) -> Ticket:
        """Raises: ModelFailure where the breaker is open (also to a call whose end would tell nothing, since an alert that
        has waited for the next try has little time left), or a pause that was asked for is longer than the time left."""
        now = asyncio.get_running_loop().time()
        pause_s = self._permits.closed_s(now)
        if pause_s and now + pause_s > deadline - LEAST_ATTEMPT_MS / 1000:
            raise self._paused()
        may_enter = self._breaker.state is BreakerState.CLOSED or self._tells(int((deadline - now) * 1000))
        ticket = self._breaker.enter(now) if may_enter else None
        if ticket is None:
            raise self._breaker_open()
        return ticket

    def _reserve(self, budgets: Budgets, request: ModelRequest, input_tokens: int) -> Reservation:
        reservation = budgets.reserve(request.agent, request.partition, input_tokens)
        if reservation is not None:
            return reservation
        text = f"the day's budget of {request.agent} is used up or reserved"
        if not budgets.pays(request.agent, input_tokens):
            text = (
                f"the budget of {request.agent} pays no such call, however little is spent: it may take {input_tokens} "
                f"tokens of input and {MAX_ANSWER_TOKENS} of output, more than a partition's part of a day"
            )
            self._notices.tell(f"budget of {request.agent}", text)
        raise ModelFailure(FailureCode.NO_BUDGET, text)

    def _tells(self, given_ms: int) -> bool:
        """Whether a call that gets no answer in this time says something about the model's side."""
        return given_ms * 2 >= self._attempt_ms

    async def _wait(self, request: ModelRequest, call: _Call, deadline: float) -> Place:
        amounts = Amounts(1, call.input_tokens, _USUAL_OUTPUT_TOKENS)
        latest = deadline - LEAST_ATTEMPT_MS / 1000
        if self._line.is_hopeless(request.agent, latest):
            raise ModelFailure(FailureCode.DEADLINE, f"{len(self._line)} wait for their turn, too many for this alert")
        try:
            return await self._line.enter(request.agent, request.partition, amounts, latest)
        except TimeoutError:
            raise ModelFailure(FailureCode.DEADLINE, "the deadline came before the turn to call") from None

    async def _attempt(self, request: ModelRequest, out_of_time: FailureCode) -> ModelAnswer:
        """The model keeps the time limit itself; one that does not loses its call here."""
        self._calls += 1
        self._in_flight += 1
        try:
            async with asyncio.timeout(request.timeout_ms / 1000):
                return await self.model.decide(request)
        except TimeoutError:
            raise _no_answer(out_of_time, request.timeout_ms) from None
        except ModelFailure as failure:
            if failure.code is FailureCode.TIMEOUT and out_of_time is FailureCode.DEADLINE:
                raise _no_answer(out_of_time, request.timeout_ms) from failure
            raise
        finally:
            self._in_flight -= 1

    def _settle(self, call: _Call) -> None:
        """Gives back what the call holds, learns from its end, and lets others go on."""
        self._paid = Usage(*(sum(pair) for pair in zip(self._paid, call.usage, strict=True)))
        charged = call.charged
        if call.budget is not None and self._budgets is not None:
            self._budgets.settle(call.budget, charged)
            self._cost_micro_usd += self._budgets.cost(charged)
        self._learn(call)
        if call.place is not None:
            input_tokens = charged.input_tokens + charged.cache_write_tokens  # what the cache held counts for no limit
            used = Amounts(1, input_tokens, charged.output_tokens) if call.given_ms else NOTHING
            told = call.answer or call.failure
            rates = told.rates if told is not None else None
            self._line.leave(call.place, used, rates)
            if rates is not None and (longest_s := longest_refill_s(rates)) > LONGEST_REFILL_S:
                self._notices.tell(
                    "reset",
                    f"{self.model.name} says that a limit is whole again in {longest_s:.0f} s; "
                    f"the gate reckons with {LONGEST_REFILL_S:.0f} s",
                )

    def _learn(self, call: _Call) -> None:
        """What the end of a call says about the model's side."""
        now = asyncio.get_running_loop().time()
        failure = call.failure
        if call.place is None or not call.given_ms or (call.answer is None and failure is None):
            self._breaker.left(call.ticket, now)
            return
        if failure is not None and failure.code in _REFUSALS:
            self._refused(call.ticket, failure, now)
        elif failure is not None and failure.code in _OUTAGES:
            self._failed(call.ticket, call.place.epoch, failure, now)
        elif failure is not None and failure.code is FailureCode.DEADLINE:
            if call.ticket.is_probe or self._tells(call.given_ms):
                self._failed(call.ticket, call.place.epoch, failure, now)
            else:
                self._breaker.left(call.ticket, now)
        else:
            self._permits.succeeded(call.place.epoch, now)
            if self._breaker.succeeded(call.ticket):
                logger.warning("%s answers again; calls begin slowly", self.model.name)
                self._permits.restart()

    def _failed(self, ticket: Ticket, epoch: int, failure: ModelFailure, now: float) -> None:
        if failure.code in _OVERLOADS:
            self._permits.overloaded(epoch, now)
        else:
            self._permits.heard(epoch, now)
        if failure.retry_after_ms:
            self._pause_code = failure.code
            pause_s = min(failure.retry_after_ms / 1000, LONGEST_PAUSE_S)
            self._permits.close(now + pause_s)
            self._notices.tell("pause", f"{self.model.name} asks for a pause of {pause_s:g} s: {one_line(failure)}")
            self._line.dismiss(self._paused, only=lambda place: place.deadline < now + pause_s)
        if self._breaker.failed(ticket, now):
            self._opened_by = one_line(failure)
            self._notices.tell("open", f"{self.model.name}: the breaker opens, alerts fall back: {one_line(failure)}")
            self._line.dismiss(self._breaker_open)

    def _refused(self, ticket: Ticket, failure: ModelFailure, now: float) -> None:
        if self._breaker.refused(ticket, now):
            self._opened_by = one_line(failure)
            logger.error(
                "%s REFUSES ALL CALLS: %s. Alerts fall back until this is put right; one call every %d s tries it",
                self.model.name,
                one_line(failure).removesuffix("."),
                REFUSED_OPEN_S,
            )
            self._line.dismiss(self._breaker_open)

    def _breaker_open(self) -> ModelFailure:
        wait_s = (
            self._breaker.wait_s(asyncio.get_running_loop().time()) or FIRST_OPEN_S
        )  # until somebody else has tried
        until = "while one call tries it" if self._breaker.state is BreakerState.HALF_OPEN else f"for {wait_s:.1f} s"
        return ModelFailure(
            FailureCode.BREAKER_OPEN,
            f"{self.model.name} is not called {until}, after {self._opened_by}",
            retry_after_ms=math.ceil(wait_s * 1000),
            was_tried=False,
        )

    def _paused(self) -> ModelFailure:
        seconds = self._permits.closed_s(asyncio.get_running_loop().time())
        text = f"{self.model.name} wants no call for {seconds:.1f} s more, longer than this alert can wait"
        return ModelFailure(self._pause_code, text, retry_after_ms=math.ceil(seconds * 1000), was_tried=False)

    def _share_out(self) -> None:
        self._buckets.set_share(asyncio.get_running_loop().time(), self._shares.share)
        self._line.tick()


def _stopping() -> ModelFailure:
    return ModelFailure(FailureCode.GATE_CLOSED, "this process is stopping and calls no more models", was_tried=False)


def _taken_away() -> ModelFailure:
    text = "the alert's partition is being taken away; its next owner asks"
    return ModelFailure(FailureCode.GATE_CLOSED, text, was_tried=False)


def _no_answer(code: FailureCode, within_ms: int) -> ModelFailure:
    return ModelFailure(code, f"no answer within {within_ms} ms", unknown=True)


def _estimated_tokens(request: ModelRequest) -> int:
    """Of the input, rather too many than too few."""
    size = len(request.instructions.encode(errors="replace")) + len(request.context_text.encode(errors="replace"))
    return size // _BYTES_A_TOKEN + SCHEMA_TOKENS


def _whole(value: float) -> int | None:
    return None if math.isinf(value) else math.floor(value)


def _remaining_ms(deadline: float) -> int:
    """Raises: ModelFailure(deadline) where no call fits any more."""
    remaining_ms = int((deadline - asyncio.get_running_loop().time()) * 1000)
    if remaining_ms < LEAST_ATTEMPT_MS:
        raise ModelFailure(FailureCode.DEADLINE, f"{max(remaining_ms, 0)} ms are left, too few for a call")
    return remaining_ms
