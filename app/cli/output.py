"""How commands speak: data on stdout (JSON a line, or a table for a person), everything else on stderr.

What an event holds may end here, so every character that could do something to a terminal, or begin a line that nobody
wrote, is shown as an escape.
"""

import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Annotated, Any

import typer

from app.core.codec import encode
from app.core.text import escape_unsafe

TALKATIVE = ("httpx2", "httpcore2", "anthropic", "asyncio")
"""Libraries whose lines below a warning are not ours to show: addresses with passwords and tokens, whole requests."""

JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON, one object a line.")]


def line(text: str) -> None:
    """One line of data."""
    sys.stdout.write(f"{escape_unsafe(text)}\n")


def json_line(value: Any) -> None:
    """One JSON object, compact, on a line of its own; visible at once to whoever reads the pipe."""
    line(encode(value).decode())
    sys.stdout.flush()


def note(text: str) -> None:
    """Something for the person at the terminal that is not data."""
    sys.stderr.write(f"{escape_unsafe(text)}\n")


def counted(count: int, noun: str) -> str:
    """`1 letter`, `1,000 letters`."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def error(text: str) -> None:
    """What is wrong and what to do, in one line."""
    note(f"error: {' '.join(text.split())}")


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
        drawn.add_row(*(Text("" if cell is None else escape_unsafe(str(cell))) for cell in row))
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
    """Log lines of a running process go to stderr, with time, level and the module that speaks."""
    import logging

    class Escaping(logging.Formatter):
        """One record, one line; a traceback's lines are indented, so that none looks like a record."""

        def formatMessage(self, record: logging.LogRecord) -> str:
            return escape_unsafe(super().formatMessage(record))

        def formatException(self, ei: Any) -> str:
            return "\n".join(f"  {escape_unsafe(line)}" for line in super().formatException(ei).splitlines())

    shown = logging.getLevelNamesMapping()[level.upper()]
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(Escaping("%(asctime)s %(levelname)-7s %(name)s: %(message)s"))
    logging.basicConfig(level=shown, handlers=[handler])
    for name in TALKATIVE:
        logging.getLogger(name).setLevel(max(shown, logging.WARNING))
