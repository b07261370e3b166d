"""What a person sees of a demo: it fits 80 x 24, stays calm, and obeys nothing that stands in the events."""

import io

import msgspec
from rich.console import Console

from app.cli.demo_view import DemoSnapshot, DemoView, HopLatency, SeenAgent, SeenDecision, screen, summary
from app.cli.demo_watch import TO_EFFECT, TOTAL
from app.decisions.decision import Decision
from app.decisions.record import HOPS

SHOWN = tuple(HopLatency(name, 1.25, 12_345.6) for name in (*(name for name, _, _ in HOPS), TO_EFFECT, TOTAL))
REASON = "a series of orders: 14 orders of 1234567.89 dollars in five minutes, this one 12345.67, and more that is cut"
FULL = DemoSnapshot(
    elapsed_s=1_234.5,
    planned=1_000_000,
    events=999_999,
    malformed=12_345,
    late={"user_features": 12_345, "order_rate": 12_345},
    agents=tuple(
        SeenAgent(
            name=name,
            alerts={"high_value_order": 12_345, "paid_other_amount": 12_345},
            decisions={"approve": 12_345, "review": 12_345, "block": 12_345},
            severities=Decision.severities,
        )
        for name in ("judge_shopper", "judge_outage", "judge_order", "judge_visit", "judge_cart")
    ),
    effects={"block_transaction": 12_345, "notify_fraud_team": 12_345, "queue_for_manual_review": 12_345},
    hops=SHOWN,
    latest=tuple(SeenDecision("judge_shopper", "block", "u-123456789", "$12,345.67", REASON) for _ in range(20)),
)


def terminal(width: int = 80) -> Console:
    return Console(file=io.StringIO(), force_terminal=True, width=width, height=24, color_system=None)


def text_of(console: Console) -> str:
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_screen_full_fits_a_small_terminal() -> None:
    """The largest numbers and longest reasons still fit 80 x 24, and every part is there."""
    console = terminal()
    console.print(screen(FULL, msgspec.structs.replace(FULL, elapsed_s=1_233.5, events=999_899)))
    lines = text_of(console).splitlines()
    assert len(lines) <= 23
    assert all(len(line) <= 80 for line in lines)
    text = "\n".join(lines)
    for expected in (
        "999,999 of 1,000,000",
        "100/s",
        "malformed 12,345",
        "block 12,345",
        "p99",
        "12,345.6 ms",
        "$12,345.67",
    ):
        assert expected in text


def test_screen_events_from_days_ago_keep_their_columns() -> None:
    """A hop of minutes is told in seconds, and no figure is cut."""
    console = terminal()
    console.print(
        screen(msgspec.structs.replace(FULL, hops=(HopLatency("event time to engine", 5, 86_400_000),)), FULL)
    )
    assert "86,400.0 s" in text_of(console)
    assert 1 == text_of(console).count("86,400")


def test_screen_empty_start_has_no_rate() -> None:
    """Before anything has happened there are zeros and no division by nothing."""
    start = DemoSnapshot(elapsed_s=0, planned=0, events=0, malformed=0, late={}, agents=(), effects={})
    console = terminal()
    console.print(screen(start, start))
    assert "0 of 0 events" in text_of(console)
    assert "/s" not in text_of(console)


def test_screen_escape_sequences_in_events_are_shown_not_obeyed() -> None:
    """Neither a reason nor an id can move the cursor or color the terminal."""
    evil = SeenDecision("judge_order", "\x1b[2Jblock", "u\x1b]0;x\x07", "\u202e1", "[red]x[/red]\x1b[31m\r\n")
    console = terminal()
    console.print(screen(msgspec.structs.replace(FULL, latest=(evil,)), FULL))
    shown = text_of(console)
    assert not {"\x1b", "\x07", "\r", "\u202e"} & set(shown)
    assert "[red]x[/red]" in shown


def test_demo_view_terminal_draws_at_most_eight_times_a_second() -> None:
    """However often it is told, a screen stands for an eighth of a second."""
    console = terminal()
    with DemoView(console) as view:
        before = len(text_of(console))
        drawn = 0
        for tick in range(1_000):
            view.show(msgspec.structs.replace(FULL, elapsed_s=tick / 1_000))
            after = len(text_of(console))
            drawn += after > before
            before = after
    assert 8 == drawn


def test_demo_view_without_a_terminal_prints_a_line_a_second() -> None:
    """A log file gets one plain line a second, unwrapped, and the summary."""
    console = Console(file=io.StringIO(), force_terminal=False, width=100)
    with DemoView(console) as view:
        for tick in range(31):
            view.show(msgspec.structs.replace(FULL, elapsed_s=tick / 10))
    lines = text_of(console).splitlines()
    assert ["0.0 s", "1.0 s", "2.0 s", "3.0 s"] == [line.strip()[:5] for line in lines]
    assert "alerts 123,450  decisions 185,175" in lines[-1]
    view.finish(FULL)
    assert "12,345.6 ms for 99 in 100" in text_of(console)


def test_summary_says_every_count() -> None:
    """The end says what happened to everything, also in a narrow terminal."""
    console = terminal()
    console.print(summary(FULL))
    shown = " ".join(text_of(console).replace("│", " ").split())
    for expected in (
        "999,999",
        "12,345 malformed",
        "user_features 12,345",
        "123,450",
        "judge_outage",
        "approve 12,345",
        "paid_other_amount 12,345",
        "notify_fraud_team",
    ):
        assert expected in shown
    assert all(len(line) <= 80 for line in text_of(console).splitlines())
