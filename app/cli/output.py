"""How commands speak: data on stdout (JSON a line, or a table for a person), everything else on stderr.

What an event holds may end here, so every character that could do something to a terminal, or begin a line that nobody
wrote, is shown as an escape.
"""

import sys
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Any

import typer

from app.core.codec import encode
from app.core.text import escape_unsafe

if TYPE_CHECKING:
    from rich.table import Table

PIPED_COLUMNS = 200
"""So wide are tables where no terminal is."""

LEAST_COLUMNS = 20
"""So wide stays a column of sentences beside others that are not broken; one of few words breaks between them."""

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


def table(
    columns: Sequence[str],
    rows: Iterable[Sequence[Any]],
    *,
    whole: Collection[str] = (),
    spare: Sequence[str] = (),
) -> None:
    """Rows for a person; where the terminal is too narrow, cells wrap rather than lose text.

    whole: columns whose cells are never broken, such as ids that one copies; at worst the lines are longer than the
    terminal is wide. spare: columns that are left out before that, in this order.
    """
    from rich.console import Console

    console = Console(width=None if sys.stdout.isatty() else PIPED_COLUMNS)
    cells = [dict(zip(columns, row, strict=True)) for row in rows]
    shown, left_out = list(columns), []
    drawn, needed = _drawn(shown, cells, whole)
    for column in spare if sys.stdout.isatty() else ():
        if needed <= console.width:
            break
        shown.remove(column)
        left_out.append(column)
        drawn, needed = _drawn(shown, cells, whole)
    console.width = max(console.width, needed)
    console.print(drawn)
    if left_out:
        note(f"left out, as the terminal is narrow: {', '.join(left_out)}; --json has everything")


def _drawn(columns: Sequence[str], rows: Sequence[dict[str, Any]], whole: Collection[str]) -> "tuple[Table, int]":
    """The table, and how wide it must be for the whole columns."""
    from rich import box
    from rich.cells import cell_len
    from rich.console import Console
    from rich.measure import Measurement
    from rich.table import Table
    from rich.text import Text

    drawn = Table(box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    shown = [["" if row[column] is None else escape_unsafe(str(row[column])) for column in columns] for row in rows]
    for number, column in enumerate(columns):
        texts = [column, *(cells[number] for cells in shown)]
        longest, word = (
            max(map(cell_len, texts)),
            max(cell_len(word) for text in texts for word in text.split() or [""]),
        )
        is_whole = column in whole
        least = longest if is_whole else word if longest <= LEAST_COLUMNS else max(word, LEAST_COLUMNS)
        drawn.add_column(column, overflow="fold", no_wrap=is_whole, min_width=least if whole else None)
    for cells in shown:
        drawn.add_row(*map(Text, cells))
    if not whole:
        return drawn, 0
    console = Console(width=sys.maxsize)
    return drawn, Measurement.get(console, console.options, drawn).minimum


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
