"""What is computed of a slice's records, and the integers that are kept for it.

An aggregate is kept as one or two *accumulators*: integers (counts, whole numbers, cents) that merge without an order, so
that tiles and steps can be put together later. What others see is made of them when it is written or read.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

from app.streams.expressions import Expression, Kind

How = Literal["sum", "min", "max"]
Function = Literal["count", "total", "min", "max", "mean"]
Amounts = Sequence[int | None]
"""One value an accumulator; None where a smallest or largest is of nothing."""


@dataclass(frozen=True, eq=False)
class Aggregate:
    """count: records. total, min, max, mean: of `value`, money in cents. Only records where `when` holds, if given."""

    function: Function
    value: Expression | None = None
    when: Expression | None = None

    def __str__(self) -> str:
        inside = [str(self.value)] if self.value is not None else []
        inside += [f"when={self.when}"] if self.when is not None else []
        return f"{self.function}({', '.join(inside)})"

    @property
    def may_be_nothing(self) -> bool:
        """Whether a row may hold null: of no record there is no smallest, largest or mean."""
        return self.function in ("min", "max", "mean") and self.when is not None


def count(*, when: Expression | None = None) -> Aggregate:
    """How many records."""
    return Aggregate("count", None, when)


def total(value: Expression, *, when: Expression | None = None) -> Aggregate:
    """Sum of a whole number or of money."""
    return Aggregate("total", value, when)


def minimum(value: Expression, *, when: Expression | None = None) -> Aggregate:
    """The smallest whole number or amount; null where there is none."""
    return Aggregate("min", value, when)


def maximum(value: Expression, *, when: Expression | None = None) -> Aggregate:
    """The largest whole number or amount; null where there is none."""
    return Aggregate("max", value, when)


def mean(value: Expression, *, when: Expression | None = None) -> Aggregate:
    """The mean in whole units, or cents of money, halves upwards; null where there is none."""
    return Aggregate("mean", value, when)


class Accumulator(NamedTuple):
    """One integer that is kept, under its name in tables and tiles."""

    name: str
    how: How
    kind: Kind


class OutputField(NamedTuple):
    """One aggregate as others see it."""

    name: str
    kind: Kind
    function: Function = "total"

    @property
    def accumulators(self) -> tuple[Accumulator, ...]:
        """What is kept for it."""
        if self.function == "mean":
            return Accumulator(f"{self.name}_total", "sum", self.kind), Accumulator(
                f"{self.name}_count", "sum", Kind.INTEGER
            )
        how: How = self.function if self.function in ("min", "max") else "sum"
        return (Accumulator(self.name, how, self.kind),)


def accumulators_of(outputs: Iterable[OutputField]) -> tuple[Accumulator, ...]:
    """What is kept for all of them, in order."""
    return tuple(accumulator for output in outputs for accumulator in output.accumulators)


def of_nothing(accumulators: Iterable[Accumulator]) -> list[int | None]:
    """What is kept of no record."""
    return [0 if accumulator.how == "sum" else None for accumulator in accumulators]


def merge_into(held: list[int | None], more: Amounts, accumulators: Sequence[Accumulator]) -> None:
    """Adds to `held` what was kept elsewhere."""
    for index, (accumulator, value) in enumerate(zip(accumulators, more, strict=True)):
        mine = held[index]
        if mine is None or value is None:
            held[index] = value if mine is None else mine
        elif accumulator.how == "sum":
            held[index] = mine + value
        else:
            held[index] = min(mine, value) if accumulator.how == "min" else max(mine, value)


def seen(outputs: Iterable[OutputField], amounts: Amounts) -> list[int | None]:
    """What others see of accumulators, in whole units and cents."""
    values, at = [], 0
    for output in outputs:
        values.append(amounts[at] if output.function != "mean" else mean_of(amounts[at], amounts[at + 1]))
        at += len(output.accumulators)
    return values


def mean_of(summed: int | None, number: int | None) -> int | None:
    """Halves upwards, so that both engines round alike; None of nothing."""
    assert summed is not None
    return (2 * summed + number) // (2 * number) if number else None
