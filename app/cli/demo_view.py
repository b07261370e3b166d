"""What a person sees of a running demo: the path of the events, how long each hop takes, the latest decisions.

On a terminal one calm screen of 80 x 24, at most eight times a second; elsewhere one line a second. Time is what the
snapshots say, so a view has no clock.
"""

from collections import deque
from collections.abc import Mapping
from types import TracebackType
from typing import Self

import msgspec
from rich.console import Console, Group
from rich.live import Live
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from app.decisions.decision import Severity

SCREEN_EVERY_S = 0.125
LINE_EVERY_S = 1.0
RATE_OVER_S = 3.0
LATEST = 3
"""So many fit below the rest on 24 lines, with five agents."""

SHOWN_AS_SECONDS_MS = 100_000

COLORS = {Severity.APPROVE: "green", Severity.REVIEW: "yellow", Severity.BLOCK: "red"}


class HopLatency(msgspec.Struct, frozen=True):
    """How long one hop takes, as `event to alert`."""

    name: str
    p50_ms: float
    p99_ms: float


class SeenAgent(msgspec.Struct, frozen=True, kw_only=True):
    """One agent: its alerts by type, its decisions by action, and how severe each action is."""

    name: str
    alerts: dict[str, int]
    decisions: dict[str, int]
    severities: Mapping[str, Severity]


class SeenDecision(msgspec.Struct, frozen=True):
    """One decision as it is shown. amount: as `$12,345.67`. reason: policy's where it changed the answer."""

    agent: str
    action: str
    entity: str
    amount: str
    reason: str


class DemoSnapshot(msgspec.Struct, frozen=True, kw_only=True):
    """The demo at one moment; all counts are since its start. late: by pipeline. effects: by name.

    latest: the newest decision first.
    """

    elapsed_s: float
    planned: int
    events: int
    malformed: int
    late: dict[str, int]
    agents: tuple[SeenAgent, ...]
    effects: dict[str, int]
    hops: tuple[HopLatency, ...] = ()
    latest: tuple[SeenDecision, ...] = ()

    @property
    def alerts(self) -> int:
        return sum(sum(agent.alerts.values()) for agent in self.agents)

    @property
    def decisions(self) -> int:
        return sum(sum(agent.decisions.values()) for agent in self.agents)


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
        f"  late {_sum(snapshot.late)}  alerts {snapshot.alerts:,}  decisions {snapshot.decisions:,}"
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
    return Group(head, _path(snapshot, earlier), Text(), _hops(snapshot), Text(), _latest(snapshot))


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
    rows.add_row("decisions", f"{snapshot.decisions:,}", "")
    for agent in snapshot.agents:
        rows.add_row(Text(f"  {agent.name}", style="not bold"), _sum(agent.decisions), _decisions(agent))
        rows.add_row("", "", Text(f"of {_counts(agent.alerts)}", style="dim"))
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

    path = Table.grid(expand=True, padding=(0, 1))
    path.add_column(style="bold", no_wrap=True, width=15)
    path.add_column(justify="right", no_wrap=True, width=9)
    path.add_column(justify="right", no_wrap=True, width=8)
    path.add_column(no_wrap=True, ratio=1, overflow="ellipsis")
    troubles = Text(f"malformed {snapshot.malformed:,} · late {_sum(snapshot.late)}")
    path.add_row("events", f"{snapshot.events:,}", rate(snapshot.events, earlier.events), troubles)
    path.add_row("alerts", f"{snapshot.alerts:,}", rate(snapshot.alerts, earlier.alerts), "")
    path.add_row("decisions", f"{snapshot.decisions:,}", rate(snapshot.decisions, earlier.decisions), "")
    for agent in snapshot.agents:
        path.add_row(Text(f"  {agent.name}", style="not bold"), _sum(agent.decisions), "", _decisions(agent))
    done, done_before = sum(snapshot.effects.values()), sum(earlier.effects.values())
    path.add_row("effects", f"{done:,}", rate(done, done_before), "")
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
    latest.add_column(style="bold", no_wrap=True, width=13)
    latest.add_column(no_wrap=True, width=7)
    latest.add_column(no_wrap=True, width=11, overflow="ellipsis")
    latest.add_column(no_wrap=True, justify="right", width=10)
    latest.add_column(no_wrap=True, ratio=1, overflow="ellipsis")
    severities = {agent.name: agent.severities for agent in snapshot.agents}
    for decision in snapshot.latest[:LATEST]:
        latest.add_row(
            Text(decision.agent),
            Text(_harmless(decision.action), style=_color(severities[decision.agent], decision.action)),
            Text(_harmless(decision.entity)),
            Text(_harmless(decision.amount)),
            Text(_harmless(decision.reason)),
        )
    return latest


def _decisions(agent: SeenAgent) -> Text:
    return Text(" · ").join(
        Text(f"{name} {count:,}", style=_color(agent.severities, name)) for name, count in agent.decisions.items()
    )


def _color(severities: Mapping[str, Severity], action: str) -> str:
    return COLORS[severities[action]] if action in severities else ""


def _counts(counts: dict[str, int]) -> str:
    return " · ".join(f"{name} {count:,}" for name, count in counts.items()) or "0"


def _sum(counts: dict[str, int]) -> str:
    return f"{sum(counts.values()):,}"


def _milliseconds(value_ms: float) -> str:
    return f"{value_ms:,.1f} ms" if value_ms < SHOWN_AS_SECONDS_MS else f"{value_ms / 1_000:,.1f} s "


def _harmless(text: str) -> str:
    """Event and model text may hold escape sequences; a terminal must not obey them."""
    return "".join(character if character.isprintable() else "�" for character in text)
