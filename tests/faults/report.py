"""RELIABILITY.md and the table, from what is kept of the rows."""

from typing import Any

from tests.faults.results import FIGURES, Result

COLUMNS = ("fault", *(name.replace("_", " ") for name in FIGURES), "verdict", "ablations noticed")


def cells(result: Result) -> list[str]:
    """A row of the table."""
    return [result.fault, *(_number(result.figures.get(name)) for name in FIGURES), result.verdict, _noticed(result)]


def _number(value: Any) -> str:
    return "-" if value is None else f"{value:,}"


def _noticed(result: Result) -> str:
    noticed = sum(one.noticed for one in result.ablations)
    return f"{noticed} of {len(result.ablations)}" if result.ablations else "-"
