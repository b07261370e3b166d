"""A budget is reserved, settled, belongs to partitions and begins anew with each UTC day."""

from decimal import Decimal
from typing import Any

import pytest

from app.core.clock import ManualClock
from app.core.errors import SetupError
from app.models.base import MAX_ANSWER_TOKENS, Usage
from app.models.budget import Budget, Budgets, BudgetStatistics, Spent
from app.models.pricing import KNOWN_PRICES

MORNING_MS = 1_764_060_000_000  # 2025-11-25 08:40 UTC
DAY_MS = 86_400_000
USED = Usage(900, 300, 0, 0)


def budgets(budget: Budget, clock: ManualClock | None = None, partitions: int = 1, owned: int = 1) -> Budgets:
    made = Budgets(clock or ManualClock(MORNING_MS), KNOWN_PRICES, "claude-sonnet-4-6")
    made.declare("judge", budget, partitions)
    for partition in range(owned):
        made.assigned("judge", partition, None)
    return made


def spend(known: Budgets, usage: Usage = USED, partition: int = 0) -> bool:
    reservation = known.reserve("judge", partition, usage.input_tokens)
    if reservation is not None:
        known.settle(reservation, usage)
    return reservation is not None


def test_budget_counts_real_use_and_refuses_what_could_pass_it() -> None:
    """A call at its most expensive must fit in what is left."""
    known = budgets(Budget(tokens_a_day=10_000))
    assert [True] * 5 + [False] == [spend(known) for _ in range(6)]
    spent = known.spent("judge", 0)
    assert spent is not None
    assert ("2025-11-25", 6_000) == (spent.day, spent.tokens)
    assert 10_000 - 6_000 < 900 + MAX_ANSWER_TOKENS


def test_budget_reservations_of_running_calls_count() -> None:
    """Two calls at once cannot share the rest."""
    known = budgets(Budget(tokens_a_day=9_000))
    first = known.reserve("judge", 0, 900)
    assert first is not None
    assert known.reserve("judge", 0, 900) is None
    assert (4_996, SONNET_MOST) == known.reserved
    known.settle(first, Usage(0, 0, 0, 0))
    assert (0, 0) == known.reserved
    assert known.reserve("judge", 0, 900) is not None


SONNET_MOST = KNOWN_PRICES["claude-sonnet-4-6"].most(900, MAX_ANSWER_TOKENS)


def test_budget_in_dollars_prices_the_prompt_cache_apart() -> None:
    """Tokens from the cache cost a tenth."""
    known = budgets(Budget(usd_a_day="0.50"))
    spend(known, Usage(1_000, 200, 10_000, 1_000))
    spent = known.spent("judge", 0)
    assert spent is not None
    assert 1_000 * 3 + 200 * 15 + 10_000 * 0.3 + 1_000 * 3.75 == spent.micro_usd
    while spend(known, Usage(1_000, 1_000, 0, 0)):
        pass
    spent = known.spent("judge", 0)
    assert spent is not None
    assert 500_000 - SONNET_MOST - 4_000 < spent.micro_usd <= 500_000


def test_budget_begins_anew_at_midnight_utc() -> None:
    """Not before; a clock that is set back begins no day; a call over midnight counts on the day it ends."""
    clock = ManualClock(MORNING_MS)
    known = budgets(Budget(tokens_a_day=6_000), clock)
    assert spend(known)
    assert not spend(known)
    over_midnight = budgets(Budget(tokens_a_day=6_000), clock)
    reservation = over_midnight.reserve("judge", 0, 900)
    assert reservation is not None
    clock.time_ms = MORNING_MS // DAY_MS * DAY_MS + DAY_MS - 1
    assert not spend(known)
    clock.time_ms += 1
    assert spend(known)
    over_midnight.settle(reservation, USED)
    clock.time_ms -= 1_000
    assert not spend(known)
    for one in (known, over_midnight):
        assert Spent("2025-11-26", 1_200, 7_200) == one.spent("judge", 0)


def test_budget_is_divided_over_partitions() -> None:
    """Each has its part, and only the owned ones can be spent from."""
    known = budgets(Budget(tokens_a_day=40_000), partitions=4, owned=2)
    assert [True] * 5 + [False] == [spend(known) for _ in range(6)]
    assert spend(known, partition=1)
    assert not spend(known, partition=3)
    assert known.spent("judge", 3) is None


def test_budget_spent_before_goes_with_the_partition() -> None:
    """The new owner goes on where the last one was; what was spent yesterday is over."""
    known = budgets(Budget(tokens_a_day=10_000), owned=0)
    known.assigned("judge", 0, Spent("2025-11-25", 5_500, 77))
    assert not spend(known)
    known.assigned("judge", 0, Spent("2025-11-24", 9_000, 77))
    assert spend(known)
    known.ended("judge", 0)
    assert not spend(known)


def test_budget_call_of_an_ended_partition_settles_into_nothing() -> None:
    """Its new owner's account is not touched."""
    known = budgets(Budget(tokens_a_day=10_000))
    reservation = known.reserve("judge", 0, 900)
    assert reservation is not None
    known.ended("judge", 0)
    known.assigned("judge", 0, Spent("2025-11-25", 100, 1))
    known.settle(reservation, USED)
    assert Spent("2025-11-25", 100, 1) == known.spent("judge", 0)
    assert (0, 0) == known.reserved


def test_budget_agent_without_one_is_never_refused() -> None:
    """And says nothing in its decisions."""
    known = budgets(Budget(tokens_a_day=10_000))
    reservation = known.reserve("other", 7, 10**9)
    assert reservation is not None
    known.settle(reservation, USED)
    assert known.spent("other", 7) is None
    assert {"judge"} == known.statistics().keys()


def test_budget_statistics_show_what_is_left_of_the_owned_partitions() -> None:
    """What is reserved is not left; what is not limited has no rest."""
    known = budgets(Budget(tokens_a_day=40_000), partitions=4, owned=2)
    spend(known)
    known.reserve("judge", 1, 900)
    assert {"judge": BudgetStatistics(1_200, 7_200, 20_000 - 1_200 - 4_996, None)} == known.statistics()


def test_spent_is_read_as_it_was_written() -> None:
    """And what is no such header is nothing."""
    spent = Spent("2025-11-25", 5_500, 77)
    assert spent == Spent.decode(spent.encode())
    assert [None, None] == [Spent.decode(data) for data in (b"", b'{"day":3}')]


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        ({}, "needs tokens_a_day or usd_a_day"),
        ({"tokens_a_day": 0}, "tokens_a_day is 0"),
        ({"usd_a_day": -1}, "usd_a_day is -1"),
        ({"usd_a_day": "much"}, "no amount of dollars"),
        ({"usd_a_day": float("inf")}, "no amount of dollars"),
    ],
)
def test_budget_that_is_none_is_a_setup_error(arguments: dict[str, Any], problem: str) -> None:
    """Said where it is declared."""
    with pytest.raises(SetupError, match=f"^budget: .*{problem}"):
        Budget(**arguments)


@pytest.mark.parametrize(
    ("amount", "micro_usd"), [(50, 50_000_000), (0.1, 100_000), ("12.5", 12_500_000), (Decimal("0.25"), 250_000)]
)
def test_budget_dollars_are_exact(amount: Any, micro_usd: int) -> None:
    """In whole micro-dollars, however they are given."""
    assert micro_usd == Budget(usd_a_day=amount).micro_usd_a_day


def test_budgets_in_dollars_without_a_price_name_the_setting() -> None:
    """Dollars of a model whose price nobody knows cannot be counted; tokens can."""
    known = Budgets(ManualClock(MORNING_MS), KNOWN_PRICES, "claude-opus-5-5")
    with pytest.raises(SetupError, match=r"^model_prices: agent judge .* claude-opus-5-5=input/output"):
        known.declare("judge", Budget(usd_a_day=5), 1)
    known.declare("judge", Budget(tokens_a_day=50_000), 1)


@pytest.mark.parametrize(
    ("budget", "least"), [(Budget(tokens_a_day=24_000), "27576"), (Budget(usd_a_day=0.3), "0.37989")]
)
def test_budgets_that_pay_no_call_are_refused(budget: Budget, least: str) -> None:
    """Six partitions whose part is less than one answer would never ask: the line says how much is needed."""
    known = Budgets(ManualClock(MORNING_MS), KNOWN_PRICES, "claude-sonnet-4-6")
    with pytest.raises(SetupError, match=rf"^agent judge, budget: .*give more than {least}$"):
        known.declare("judge", budget, 6)
