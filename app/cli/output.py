"""How commands speak: data on stdout (JSON a line, or a table for a person), everything else on stderr."""

import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Annotated, Any

import typer

from app.core.codec import encode

JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON, one object a line.")]


def line(text: str) -> None:
    """One line of data."""
    sys.stdout.write(f"{text}\n")


def json_line(value: Any) -> None:
    """One JSON object, compact, on a line of its own; visible at once to whoever reads the pipe."""
    line(encode(value).decode())
    sys.stdout.flush()


def note(text: str) -> None:
    """Something for the person at the terminal that is not data."""
    sys.stderr.write(f"{text}\n")


def error(text: str) -> None:
    """What is wrong and what to do, in one line."""
    one_line = " ".join(text.split())
    sys.stderr.write(f"error: {one_line}\n")


def table(columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """Rows for a person; where the terminal is too narrow, cells wrap rather than lose text."""
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    drawn = Table(box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    for column in columns:
        drawn.add_column(column, overflow="fold")
    for row in rows:
        drawn.add_row(*(Text("" if cell is None else str(cell)) for cell in row))
    console = Console(width=None if sys.stdout.isatty() else 200)
    console.print(drawn)


@contextmanager
def counter(text: str) -> Iterator[Callable[[int], None]]:
    """A line on stderr that counts up while something long goes on; silent where nobody watches."""
    from rich.console import Console
    from rich.progress import Progress, TextColumn, TimeElapsedColumn

    console = Console(stderr=True)
    columns = (TextColumn("{task.description} {task.completed:,.0f}"), TimeElapsedColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        task = progress.add_task(text)

        def count(total: int) -> None:
            progress.update(task, completed=total)

        yield count


def set_up_logs(level: str) -> None:
    """Log lines of a running process go to stderr, with time, level and the module that speaks.

    The HTTP client's line a request counts as debugging.
    """
    import logging

    logging.basicConfig(
        level=level.upper(), stream=sys.stderr, format="%(asctime)s %(levelname)-7s %(name)s: %(message)s"
    )
    if level != "debug":
        logging.getLogger("httpx2").setLevel(logging.WARNING)
