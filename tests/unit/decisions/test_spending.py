"""What an agent has spent stands in its decisions, goes with the partition, and ends in the fallback when it is all; and
what total failure of a model costs an agent."""

import asyncio
from collections.abc import Callable
from typing import Any

import msgspec
import pytest

from app.core.clock import Clock, run_virtual
from app.core.record import Record
from app.decisions import decided as decided_module
from app.decisions.context import Context
from app.decisions.decided import spent_today
from app.decisions.decision import Decision
from app.decisions.handling import AgentWork
from app.decisions.record import DecisionRecord
from app.models.base import FailureCode, ModelFailure, ModelRequest
from app.models.budget import SPENT, Budget, Budgets, Spent
from app.models.gate import ModelGate
from app.models.pricing import KNOWN_PRICES
from tests.decisions_kit import ALERTS, START_MS, World, answering, large_order, make_agent, until

DAY_MS = 86_400_000
MIDNIGHT_MS = START_MS // DAY_MS * DAY_MS + DAY_MS
TODAY, TOMORROW = "2023-11-14", "2023-11-15"
A_CALL = 10
"""Tokens of one call of the fake model."""


def budgeted_work(world: World, budget: Budget | None, *, concurrency: int = 8) -> AgentWork:
    agent = make_agent()
    agent.budget = budget
    budgets = Budgets(world.clock, KNOWN_PRICES, "claude-sonnet-4-6")
    gate = ModelGate(world.model, concurrency=concurrency, attempt_ms=8_000, budgets=budgets)
    gate.declare(agent.name, ALERTS.partitions, budget)
    return AgentWork(
        agent,
        producer=world.broker.producer(),
        reader=world.broker.reader(),
        features=world.features,
        gate=gate,
        clock=world.clock,
        declared=("large_order",),
        partitions=ALERTS.partitions,
        switches=world.switches,
    )


def spent_headers(world: World) -> list[Spent | None]:
    return [Spent.decode(record.header(SPENT) or b"") for record in world.records("agent.decisions")]


async def decide(world: World, work: AgentWork, first: int, count: int) -> None:
    """So many alerts more, of one user, to their decisions."""
    before = len(world.decisions())
    for number in range(first, first + count):
        world.send(large_order(order=f"o-{number}"))
    async with world.running(work):
        await until(lambda: len(world.records("agent.decisions")) == before + count)


def test_decision_says_what_its_agent_has_spent() -> None:
    """Cumulative, of the day, in tokens and micro-dollars; an agent without a budget says nothing."""

    async def main(clock: Clock) -> None:
        world = await World.create(clock)
        await decide(world, budgeted_work(world, Budget(tokens_a_day=100_000)), 0, 3)
        assert [Spent(TODAY, A_CALL * n, 66 * n) for n in (1, 2, 3)] == spent_headers(world)
        other = await World.create(clock)
        await decide(other, budgeted_work(other, None), 0, 1)
        assert [None] == spent_headers(other)

    run_virtual(main, START_MS)


def test_spending_goes_on_where_the_last_owner_was() -> None:
    """A new process reads it from the log; the day after it begins anew."""

    async def main(clock: Clock) -> None:
        world = await World.create(clock)
        budget = Budget(tokens_a_day=100_000)
        await decide(world, budgeted_work(world, budget), 0, 2)
        await decide(world, budgeted_work(world, budget), 2, 1)
        assert Spent(TODAY, A_CALL * 3, 66 * 3) == spent_headers(world)[-1]
        moved = await World.create(clock)
        moved.broker.logs.update(world.broker.logs)
        run = budgeted_work(moved, budget)
        await until(lambda: clock.now_ms() >= MIDNIGHT_MS, seconds=DAY_MS / 1000)
        await decide(moved, run, 3, 1)
        assert Spent(TOMORROW, A_CALL, 66) == spent_headers(moved)[-1]

    run_virtual(main, MIDNIGHT_MS - 60_000)


def test_spending_beyond_the_budget_is_the_fallback_without_a_call() -> None:
    """The reason is no_budget, and nobody asked a model."""

    async def main(clock: Clock) -> None:
        world = await World.create(clock, answering("approve"))
        work = budgeted_work(world, Budget(tokens_a_day=9_800))
        await decide(world, work, 0, 30)
        calls = len(world.model.requests)
        assert 0 < calls < 30
        assert ["approve"] * calls + ["review"] * (30 - calls) == world.decided()
        assert {"no_budget": 30 - calls} == work.statistics.fallbacks

    run_virtual(main, START_MS)


def test_spent_today_is_the_largest_of_the_newest() -> None:
    """An owner of before that wakes late writes a smaller sum behind a larger one: it does not count."""
    entries = [("judge", Spent(TODAY, 500, 5)), ("judge", Spent(TODAY, 300, 3)), ("other", Spent(TODAY, 900, 9))]
    assert Spent(TODAY, 500, 5) == found(entries)
    assert found([("other", Spent(TODAY, 900, 9))]) is None
    assert found([]) is None


def test_spent_today_of_a_quiet_agent_is_found_behind_others(monkeypatch: pytest.MonkeyPatch) -> None:
    """Back to midnight if need be, and no further."""
    monkeypatch.setattr(decided_module, "FIRST_STEP", 4)
    others = [("other", Spent(TODAY, number, 0)) for number in range(100)]
    assert Spent(TODAY, 7, 7) == found([("judge", Spent(TODAY, 7, 7)), *others])


def found(entries: list[tuple[str, Spent]]) -> Spent | None:
    async def main(clock: Clock) -> Spent | None:
        world = await World.create(clock)
        for agent, spent in entries:
            headers = (("agent", agent.encode()), ("mode", b"live"), (SPENT, spent.encode()))
            world.broker.append("agent.decisions", b"{}", None, 1, 0, headers)
        return await spent_today(world.broker.reader(), clock, "judge", "live", 1)

    return run_virtual(main, START_MS)


def always(code: FailureCode) -> Callable[[ModelRequest], str]:
    def fail(request: ModelRequest) -> str:
        raise ModelFailure(code, "scripted")

    return fail


def under_total_failure(text: Callable[[ModelRequest], str], seconds: float) -> tuple[int, list[DecisionRecord]]:
    """Two hundred alerts of two hundred users, one a tenth of a second: calls, and decisions."""

    async def main(clock: Clock) -> tuple[int, list[DecisionRecord]]:
        world = await World.create(clock, text)
        world.model.seconds = seconds
        work = budgeted_work(world, None, concurrency=64)
        async with world.running(work):
            for number in range(200):
                world.send(large_order(f"u-{number}", f"o-{number}"), key=f"u-{number}")
                await asyncio.sleep(0.1)
            await until(lambda: len(world.records("agent.decisions")) == 200)
        return len(world.model.requests), world.decisions()

    return run_virtual(main, START_MS)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        (always(FailureCode.UNAVAILABLE), 0.1),
        (always(FailureCode.OVERLOADED), 0.1),
        (always(FailureCode.RATE_LIMITED), 0.1),
        (always(FailureCode.REFUSED), 0.1),
        (answering("approve"), 3_600.0),
    ],
    ids=["server error", "overloaded", "rate limited", "refused", "hang"],
)
def test_agent_under_total_failure_of_its_model_ends_every_alert_in_time(text: Any, seconds: float) -> None:
    """Each ends in the fallback by its deadline, 20 s from the beginning of its handler, and a second, at 1.3 calls an
    alert or fewer."""
    calls, decisions = under_total_failure(text, seconds)
    assert calls <= 260
    assert {"review"} == {action_of(record.decision) for record in decisions}
    took_ms = [record.hops.decided_ms - record.hops.agent_ms for record in decisions]
    assert max(took_ms) <= 21_000


def action_of(decision: Any) -> str:
    return msgspec.json.decode(decision, type=Decision).action


@pytest.mark.parametrize("code", [FailureCode.SPEND_LIMIT, FailureCode.UNAUTHORIZED])
def test_agent_of_a_refused_account_calls_once(code: FailureCode) -> None:
    """Two hundred alerts, one call."""
    calls, decisions = under_total_failure(always(code), 0.1)
    assert (1, 200) == (calls, len(decisions))


def test_agent_alert_that_is_tried_again_keeps_its_deadline() -> None:
    """Three attempts share it: a model that answers too late each time is not waited for three times."""

    async def main(clock: Clock) -> None:
        world = await World.create(clock)
        world.model.seconds = 3_600.0
        world.send(large_order())
        async with world.running(budgeted_work(world, None)):
            await until(lambda: len(world.decisions()) == 1)
        (record,) = world.decisions()
        assert record.hops.decided_ms - record.hops.alert_ms <= 20_500
        assert ["timeout", "timeout", "deadline"] == [use.failure for use in record.models]

    run_virtual(main, START_MS)


def test_ablation_deadline_of_its_own_for_each_attempt_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three attempts of twenty seconds take a minute."""
    make_context = AgentWork._context

    def anew(self: AgentWork, record: Record, alert: Any) -> Context:
        context = make_context(self, record, alert)
        context.deadline = asyncio.get_running_loop().time() + 20
        return context

    monkeypatch.setattr(AgentWork, "_context", anew)
    with pytest.raises(AssertionError):
        test_agent_alert_that_is_tried_again_keeps_its_deadline()


def test_ablation_spending_that_is_not_looked_up_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """A new owner that begins at nothing."""

    async def nothing(*arguments: object) -> None:
        return None

    monkeypatch.setattr("app.decisions.handling.spent_today", nothing)
    with pytest.raises(AssertionError):
        test_spending_goes_on_where_the_last_owner_was()
