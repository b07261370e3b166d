"""What processes that share partitions spend together."""

from hypothesis import given
from hypothesis import strategies as st

from app.core.clock import Clock, run_virtual
from app.models.base import ModelAnswer, StopReason, Usage
from app.models.budget import Budget, Budgets, Spent
from app.models.pricing import KNOWN_PRICES

START_MS = 1_700_000_000_000
MODEL = "claude-sonnet-4-6"


@given(
    owners=st.lists(st.permutations([0, 0, 1, 1]), min_size=1, max_size=4),
    calls=st.lists(st.tuples(st.integers(0, 3), st.integers(1, 4_000)), max_size=60),
)
def test_budgets_under_any_change_of_owners_are_never_exceeded(
    owners: list[list[int]], calls: list[tuple[int, int]]
) -> None:
    """Two processes, four partitions that move between them with what was spent: the sum keeps below the budget."""
    budget = 60_000

    async def main(clock: Clock) -> None:
        processes = [Budgets(clock, KNOWN_PRICES, MODEL) for _ in range(2)]
        for process in processes:
            process.declare("agent", Budget(tokens_a_day=budget), 4)
        log: dict[int, Spent | None] = dict.fromkeys(range(4))
        total = 0
        share = len(calls) // len(owners) + 1
        for number, owned in enumerate(owners):
            for partition, owner in enumerate(owned):
                processes[owner].assigned("agent", partition, log[partition])
                processes[1 - owner].ended("agent", partition)
            for partition, output in calls[number * share : (number + 1) * share]:
                process = processes[owned[partition]]
                reservation = process.reserve("agent", partition, 100)
                assert process.reserve("other", partition, 100) is not None
                if reservation is not None:
                    process.settle(reservation, used(output))
                    total += 100 + output
                    log[partition] = process.spent("agent", partition)
        assert budget >= total
        assert all(one.tokens <= budget // 4 for one in log.values() if one is not None)

    run_virtual(main, START_MS)


def used(output: int) -> Usage:
    return ModelAnswer(
        text="", model=MODEL, stop_reason=StopReason.COMPLETE, input_tokens=100, output_tokens=output
    ).usage
