"""What a decision may have seen is judged against the orders: each planted violation is found, and nothing else."""

from decimal import Decimal
from typing import Any

import msgspec
import pytest

from app.decisions.context import raw
from app.decisions.record import DecisionRecord, Hops
from app.serving.base import Features, Freshness, OwnEvent
from tests.faults.orders import DEADLINE_MS, Blind, wrong_decisions
from tests.reference import SourceRecord

T0 = 1_700_000_010_000
SOURCE = [SourceRecord(3, offset, T0 + offset * 1_000, b"u-1", b"{}") for offset in range(3)]
OUTAGE = [Blind("killed", T0 + 10_000, T0 + 20_000)]
SHOWN: dict[str, Any] = {"count": 3, "freshness": Freshness.FRESH, "own_event": OwnEvent.SEEN}


def features(count: int, freshness: Freshness, own_event: OwnEvent) -> Features:
    return Features(
        view="user_features",
        entity="u-1",
        values={"order_count_5m": count, "order_value_5m": Decimal("1.00")},
        window_end_ms=T0 + 3_000,
        as_of_ms=T0,
        age_ms=3_000,
        freshness=freshness,
        own_event=own_event,
    )


def approval(*seen: Features, event_ms: int = T0 + 2_000, took_ms: int = 500) -> DecisionRecord:
    """Of the order at offset 2."""
    return DecisionRecord(
        agent="judge",
        alert_id="high_value_order:u-1:o-2",
        alert_type="high_value_order",
        entity="u-1",
        alert_topic="processed.alerts",
        alert_partition=0,
        alert_offset=0,
        origin="raw.orders/3/2",
        mode="live",
        decision=raw({"action": "approve"}),
        answered=raw({"action": "approve"}),
        policy=None,
        reasons=(),
        attempt=1,
        features=seen,
        models=(),
        hops=Hops(event_ms, event_ms, event_ms, event_ms, event_ms, event_ms + took_ms),
        alert=msgspec.Raw(b"{}"),
        writer="w",
        number=1,
        previous="",
    )


def test_judged_approval_with_fresh_and_whole_features_nothing_found() -> None:
    """Also while the store recovers: an approval after the outage, of an order from within it."""
    seen = features(**SHOWN)
    assert [] == list(wrong_decisions([approval(seen)], SOURCE, OUTAGE))
    assert [] == list(wrong_decisions([approval(seen, event_ms=T0 + 19_900)], SOURCE, OUTAGE))


@pytest.mark.parametrize(
    ("decision", "found"),
    [
        (approval(features(**SHOWN | {"count": 2})), "orders before its own are missing"),
        (approval(features(**SHOWN | {"freshness": Freshness.STALE})), "approved with features stale"),
        (approval(features(**SHOWN | {"own_event": OwnEvent.NOT_SEEN})), "own event not seen"),
        (approval(), "approved without features"),
        (approval(features(**SHOWN), event_ms=T0 + 11_000), "approved while the store was killed"),
        (approval(features(**SHOWN), took_ms=DEADLINE_MS + 1_001), "took 21001 ms"),
    ],
)
def test_judged_planted_violation_is_found(decision: DecisionRecord, found: str) -> None:
    """Each in the words that the row says."""
    (said,) = wrong_decisions([decision], SOURCE, OUTAGE)
    assert found in said
