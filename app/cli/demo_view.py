"""What a person sees of a running demo: the path of the events, how long each hop takes, the latest decisions.

On a terminal one calm screen of 80 x 24, at most eight times a second; elsewhere one line a second. Time is what the
snapshots say, so a view has no clock.
"""

from collections import deque
from types import TracebackType
from typing import Self

import msgspec
from rich.console import Console, Group
from rich.live import Live
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

SCREEN_EVERY_S = 0.125
LINE_EVERY_S = 1.0
RATE_OVER_S = 3.0
LATEST = 4
"""So many fit below the rest on 24 lines."""

SHOWN_AS_SECONDS_MS = 100_000

COLORS = {"approve": "green", "review": "yellow", "block": "red"}


class HopLatency(msgspec.Struct, frozen=True):
    """How long one hop takes, as `event to alert`."""

    name: str
    p50_ms: float
    p99_ms: float


class SeenDecision(msgspec.Struct, frozen=True):
    """One decision as it is shown. amount: as `$12,345.67`. reason: policy's where it changed the answer."""

    action: str
    entity: str
    amount: str
    reason: str


class DemoSnapshot(msgspec.Struct, frozen=True, kw_only=True):
    """The demo at one moment; all counts are since its start. late: by pipeline. decisions: by action. effects: by name.

    latest: the newest decision first.
    """

    elapsed_s: float
    planned: int
    events: int
    malformed: int
    late: dict[str, int]
    alerts: int
    decisions: dict[str, int]
    effects: dict[str, int]
    dead_letters: int
    hops: tuple[HopLatency, ...] = ()
    latest: tuple[SeenDecision, ...] = ()


class DemoView:
    """Draws snapshots while it is entered; leaving it clears the screen that it drew."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._live = Live(console=console, auto_refresh=False, transient=True) if console.is_terminal else None
        self._every_s = SCREEN_EVERY_S if self._live else LINE_EVERY_S
        self._next_s = 0.0
        self._recent: deque[DemoSnapshot] = deque()

    def __enter__(self) -> Self:
        if self._live:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live:
            self._live.stop()

    def show(self, snapshot: DemoSnapshot) -> None:
        """Draws it, unless the last drawing is too fresh."""
        self._recent.append(snapshot)
        while snapshot.elapsed_s - self._recent[0].elapsed_s > RATE_OVER_S:
            self._recent.popleft()
        if snapshot.elapsed_s < self._next_s:
            return
        self._next_s = snapshot.elapsed_s + self._every_s
        if self._live:
            self._live.update(screen(snapshot, self._recent[0]), refresh=True)
        else:
            self._console.print(line(snapshot), soft_wrap=True)

    def finish(self, snapshot: DemoSnapshot) -> None:
        """Draws what it all came to; to be called after leaving."""
        self._console.print(summary(snapshot))


def line(snapshot: DemoSnapshot) -> Text:
    """A snapshot in one line."""
    return Text(
        f"{snapshot.elapsed_s:6.1f} s  events {snapshot.events:,}  malformed {snapshot.malformed:,}"
        f"  late {_sum(snapshot.late)}  alerts {snapshot.alerts:,}  decisions {_counts(snapshot.decisions)}"
        f"  effects {_sum(snapshot.effects)}"
    )


def screen(snapshot: DemoSnapshot, earlier: DemoSnapshot) -> Group:
    """A snapshot as one screen; rates are those since `earlier`."""
    head = Table.grid(expand=True, padding=(0, 1))
    head.add_column(no_wrap=True)
    head.add_column(ratio=1)
    head.add_column(no_wrap=True, justify="right")
    head.add_row(
        Text(f"{snapshot.elapsed_s:.1f} s", style="bold"),
        ProgressBar(total=max(snapshot.planned, 1), completed=snapshot.events),
        Text(f"{snapshot.events:,} of {snapshot.planned:,} events"),
    )
    return Group(
        head,
        Text(),
        _path(snapshot, earlier),
        Text(),
        _hops(snapshot),
        Text(),
        Text("latest decisions", style="bold"),
        _latest(snapshot),
    )


def summary(snapshot: DemoSnapshot) -> Panel:
    """What a whole run came to."""
    rows = Table.grid(padding=(0, 2))
    rows.add_column(style="bold", no_wrap=True)
    rows.add_column(justify="right", no_wrap=True)
    rows.add_column(overflow="fold")
    rows.add_row(
        "events", f"{snapshot.events:,}", f"{snapshot.malformed:,} malformed, in dead letters with their reason"
    )
    rows.add_row("late", _sum(snapshot.late), _counts(snapshot.late))
    rows.add_row("alerts", f"{snapshot.alerts:,}", "")
    rows.add_row("decisions", _sum(snapshot.decisions), _colored(snapshot.decisions))
    rows.add_row("effects", _sum(snapshot.effects), _counts(snapshot.effects))
    if snapshot.hops:
        total = snapshot.hops[-1]
        rows.add_row(
            "latency",
            _milliseconds(total.p50_ms),
            f"{total.name}, half of them; {_milliseconds(total.p99_ms)} for 99 in 100",
        )
    return Panel(rows, title=f"{snapshot.elapsed_s:.1f} s", title_align="left", expand=False)


def _path(snapshot: DemoSnapshot, earlier: DemoSnapshot) -> Table:
    seconds = snapshot.elapsed_s - earlier.elapsed_s

    def rate(now: int, before: int) -> str:
        return f"{(now - before) / seconds:,.0f}/s" if seconds > 0 else ""

    path = Table.grid(expand=True, padding=(0, 2))
    path.add_column(style="bold", no_wrap=True, width=9)
    path.add_column(justify="right", no_wrap=True, width=9)
    path.add_column(justify="right", no_wrap=True, width=8)
    path.add_column(ratio=1)
    late = f"late {_counts(snapshot.late)}" if snapshot.late else "late 0"
    path.add_row(
        "events",
        f"{snapshot.events:,}",
        rate(snapshot.events, earlier.events),
        Text(f"malformed {snapshot.malformed:,} · {late}"),
    )
    path.add_row("alerts", f"{snapshot.alerts:,}", rate(snapshot.alerts, earlier.alerts), "")
    decided, decided_before = sum(snapshot.decisions.values()), sum(earlier.decisions.values())
    path.add_row("decisions", f"{decided:,}", rate(decided, decided_before), _colored(snapshot.decisions))
    done, done_before = sum(snapshot.effects.values()), sum(earlier.effects.values())
    path.add_row("effects", f"{done:,}", rate(done, done_before), Text(_counts(snapshot.effects)))
    return path


def _hops(snapshot: DemoSnapshot) -> Table:
    hops = Table.grid(padding=(0, 2))
    hops.add_column(no_wrap=True, width=26)
    hops.add_column(justify="right", no_wrap=True, width=11)
    hops.add_column(justify="right", no_wrap=True, width=11)
    hops.add_row(Text("latency", style="bold"), Text("p50", style="dim"), Text("p99", style="dim"))
    for hop in snapshot.hops:
        hops.add_row(hop.name, _milliseconds(hop.p50_ms), _milliseconds(hop.p99_ms))
    return hops


def _latest(snapshot: DemoSnapshot) -> Table:
    latest = Table.grid(expand=True, padding=(0, 2))
    latest.add_column(no_wrap=True, width=9)
    latest.add_column(no_wrap=True, width=11, overflow="ellipsis")
    latest.add_column(no_wrap=True, justify="right", width=12)
    latest.add_column(no_wrap=True, ratio=1, overflow="ellipsis")
    for decision in snapshot.latest[:LATEST]:
        latest.add_row(
            Text(_harmless(decision.action), style=COLORS.get(decision.action, "")),
            Text(_harmless(decision.entity)),
            Text(_harmless(decision.amount)),
            Text(_harmless(decision.reason)),
        )
    return latest


def _colored(counts: dict[str, int]) -> Text:
    return Text(" · ").join(Text(f"{name} {count:,}", style=COLORS.get(name, "")) for name, count in counts.items())


def _counts(counts: dict[str, int]) -> str:
    return " · ".join(f"{name} {count:,}" for name, count in counts.items()) or "0"


def _sum(counts: dict[str, int]) -> str:
    return f"{sum(counts.values()):,}"


def _milliseconds(value_ms: float) -> str:
    return f"{value_ms:,.1f} ms" if value_ms < SHOWN_AS_SECONDS_MS else f"{value_ms / 1_000:,.1f} s "


def _harmless(text: str) -> str:
    """Event and model text may hold escape sequences; a terminal must not obey them."""
    return "".join(character if character.isprintable() else "�" for character in text)
