"""The breaker opens after failures in a row, tries with one call, and closes when that succeeds."""

import pytest

from app.models.breaker import (
    FAILURES_IN_A_ROW,
    FIRST_OPEN_S,
    LASTING_FAILURES,
    LASTING_S,
    LONGEST_OPEN_S,
    REFUSED_OPEN_S,
    Breaker,
    BreakerState,
    Ticket,
)


def entered(breaker: Breaker, now: float) -> Ticket:
    ticket = breaker.enter(now)
    assert ticket is not None
    return ticket


def opened(now: float = 0.0) -> Breaker:
    breaker = Breaker()
    for _ in range(FAILURES_IN_A_ROW):
        breaker.failed(entered(breaker, now), now)
    return breaker


def test_breaker_failures_in_a_row_open_it() -> None:
    """The last of them opens it, for a second at first; while it is open nobody enters."""
    breaker = Breaker()
    news = [breaker.failed(entered(breaker, 0.0), 0.0) for _ in range(FAILURES_IN_A_ROW)]
    assert [False] * (FAILURES_IN_A_ROW - 1) + [True] == news
    assert BreakerState.OPEN is breaker.state
    assert breaker.enter(FIRST_OPEN_S - 0.01) is None
    assert FIRST_OPEN_S == breaker.wait_s(0.0)


def test_breaker_success_in_between_begins_the_row_again() -> None:
    """Nine of ten may fail for ever."""
    breaker = Breaker()
    for _ in range(5):
        for _ in range(FAILURES_IN_A_ROW - 1):
            assert not breaker.failed(entered(breaker, 0.0), 0.0)
        assert not breaker.succeeded(entered(breaker, 0.0))
    assert (BreakerState.CLOSED, 0) == (breaker.state, breaker.openings)


def test_breaker_few_slow_failures_open_it() -> None:
    """A model that hangs fails seldom: three over ten seconds are enough, three at once are not."""
    breaker = Breaker()
    news = [breaker.failed(entered(breaker, 0.0), at) for at in (8.0, 8.0, 8.0 + LASTING_S)]
    assert [False, False, True] == news
    assert LASTING_FAILURES == len(news)


def test_breaker_half_open_lets_one_call_try() -> None:
    """One enters when the time is over; the others are told to come again."""
    breaker = opened()
    probe = entered(breaker, FIRST_OPEN_S)
    assert probe.is_probe
    assert "half_open" == breaker.state.value
    assert breaker.enter(FIRST_OPEN_S) is None
    assert breaker.wait_s(FIRST_OPEN_S) > 0
    assert breaker.succeeded(probe)
    assert "closed" == breaker.state.value


def test_breaker_failing_probes_double_the_time_up_to_a_bound() -> None:
    """1, 2, 4, 8, 16, 30, 30 s; a success in between begins with 1 again."""
    breaker, now, lengths = opened(), 0.0, []
    for _ in range(7):
        length = breaker.wait_s(now)
        lengths.append(length)
        now += length
        assert breaker.failed(entered(breaker, now), now)
    assert [1, 2, 4, 8, 16, LONGEST_OPEN_S, LONGEST_OPEN_S] == lengths
    now += LONGEST_OPEN_S
    breaker.succeeded(entered(breaker, now))
    for _ in range(FAILURES_IN_A_ROW):
        breaker.failed(entered(breaker, now), now)
    assert FIRST_OPEN_S == breaker.wait_s(now)


def test_breaker_refusal_opens_it_at_once_and_is_news_once() -> None:
    """A wrong key needs no second call; probes that meet the same say nothing new, and open it for as long again."""
    breaker = Breaker()
    first, second = entered(breaker, 0.0), entered(breaker, 0.0)
    assert breaker.refused(first, 0.0)
    assert not breaker.refused(second, 100.0)
    assert REFUSED_OPEN_S == breaker.wait_s(0.0)
    probe = entered(breaker, REFUSED_OPEN_S)
    assert not breaker.refused(probe, REFUSED_OPEN_S)
    assert REFUSED_OPEN_S == breaker.wait_s(REFUSED_OPEN_S)


def test_breaker_refusal_recovers_by_itself_and_is_news_again() -> None:
    """When somebody has put it right the next probe closes it; another refusal later is told again."""
    breaker = Breaker()
    breaker.refused(entered(breaker, 0.0), 0.0)
    assert breaker.succeeded(entered(breaker, REFUSED_OPEN_S))
    assert breaker.refused(entered(breaker, REFUSED_OPEN_S), REFUSED_OPEN_S)


def test_breaker_late_outcomes_of_an_earlier_time_change_nothing() -> None:
    """Calls begun before it opened end while it is open, or after it has closed again."""
    breaker = Breaker()
    late = [entered(breaker, 0.0) for _ in range(30)]
    for ticket in late[:10]:
        breaker.failed(ticket, 0.0)
    assert not breaker.failed(late[10], 0.5)
    assert not breaker.succeeded(late[11])
    assert (BreakerState.OPEN, FIRST_OPEN_S, 1) == (breaker.state, breaker.wait_s(0.0), breaker.openings)
    breaker.succeeded(entered(breaker, FIRST_OPEN_S))
    for ticket in late[12:]:
        assert not breaker.failed(ticket, 2.0)
    assert not breaker.refused(late[0], 2.0)
    assert BreakerState.CLOSED is breaker.state


@pytest.mark.parametrize("begins_refused", [False, True])
def test_breaker_probe_that_is_cancelled_leaves_its_turn(begins_refused: bool) -> None:
    """It has told nothing: the next call may try at once."""
    breaker, now = opened(), FIRST_OPEN_S
    if begins_refused:
        breaker.refused(entered(breaker, now), now)
        now += REFUSED_OPEN_S
    breaker.left(entered(breaker, now), now)
    assert BreakerState.OPEN is breaker.state
    assert entered(breaker, now).is_probe
