"""The checker finds alerts of one key that are handled at once, or out of their order, under one owner."""

import pytest

from tests.faults.checker import check
from tests.faults.history import Call, Decided, Fault, History, Owned, Published

FIRST, SECOND, OTHER = "order:u-1:o-1", "order:u-1:o-2", "order:u-2:o-3"
ENDED_MS = 1_500
"""When the first one's decision was in the log."""
ONE = (Owned("worker-1", 0, 900, 9_000),)
AFTER_A_DEATH = (Owned("worker-1", 0, 900, 0), Owned("worker-2", 0, 1_300, 9_000))
DEATH = Fault("kill -9", "worker-1", 1_200)


def decided(alert_id: str, offset: int, at_ms: int) -> Decided:
    return Decided(
        alert_id=alert_id,
        partition=0,
        offset=offset,
        at_ms=at_ms,
        mode="live",
        action="review",
        reason="",
        is_fallback=False,
    )


def out_of_order(*calls: Call, owned: tuple[Owned, ...] = ONE, faults: tuple[Fault, ...] = ()) -> int:
    """Of three alerts, the first two of one key."""
    history = History(
        published=[Published(alert_id, 0, offset, 950) for offset, alert_id in enumerate((FIRST, SECOND, OTHER))],
        calls=list(calls),
        decisions=[decided(FIRST, 0, ENDED_MS), decided(SECOND, 1, 3_000), decided(OTHER, 2, 3_000)],
        owned=list(owned),
        faults=list(faults),
    )
    return check(history).out_of_order


@pytest.mark.parametrize(
    ("calls", "expected"),
    [
        ([(FIRST, 1_000), (SECOND, 1_501)], 0),
        ([(FIRST, 1_000), (SECOND, 1_400)], 1),
        ([(SECOND, 1_000), (FIRST, 1_400)], 1),
        ([(FIRST, 1_000), (FIRST, 1_300), (SECOND, 1_501)], 0),
        ([(FIRST, 1_000), (SECOND, 1_200), (FIRST, 1_300)], 1),
        ([(FIRST, 1_000), (OTHER, 1_001)], 0),
        ([(SECOND, 1_000)], 0),
    ],
)
def test_order_of_one_key_under_one_owner(calls: list[tuple[str, int]], expected: int) -> None:
    """The next begins when the one before has its decision in the log; other keys, and what asked no model, are free."""
    assert expected == out_of_order(*(Call(alert_id, 1, at_ms, at_ms + 10) for alert_id, at_ms in calls))


def test_order_counts_again_from_the_next_owner_on() -> None:
    """What a worker had begun when it died is no reason against the order of its successor, and no excuse for it."""
    before, again = Call(FIRST, 1, 1_000, 0), Call(FIRST, 2, 1_400, 1_450)
    late, early = Call(SECOND, 1, 1_501, 1_600), Call(SECOND, 1, 1_450, 1_600)
    assert 0 == out_of_order(before, again, late, owned=AFTER_A_DEATH, faults=(DEATH,))
    assert 1 == out_of_order(before, again, early, owned=AFTER_A_DEATH, faults=(DEATH,))
