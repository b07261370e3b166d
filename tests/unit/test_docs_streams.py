"""What docs/streams.md declares can be declared, and every step, window and aggregate that there is stands in it."""

import re
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any

import msgspec

from app.core.codec import Usd
from app.streams import aggregates
from app.streams.expressions import col
from app.streams.graph import Alert, Stream, Topic, count, maximum, mean, minimum, total
from app.streams.pipelines import Pipeline
from features.fraud import HighValueOrder
from features.records import Id, OrderEvent, payment_events, service_events, user_events

PAGE = (Path(__file__).parents[2] / "docs" / "streams.md").read_text()


class OrderBurst(Alert, frozen=True):
    order_id: Id


class ServiceFails(Alert, frozen=True):
    service: Id


class ErrorRate(Alert, frozen=True):
    service: Id
    n: int
    window_end: Annotated[datetime, msgspec.Meta(tz=True)]


class PaidOtherAmount(Alert, frozen=True):
    order_id: Id
    amount_usd: Usd
    paid_usd: Usd


class AbandonedCart(Alert, frozen=True):
    item_id: str


def test_streams_page_code_declares_pipelines() -> None:
    """One block after the other, as a reader would."""
    names: dict[str, Any] = {
        **{kind.__name__: kind for kind in (HighValueOrder, OrderBurst, ServiceFails, ErrorRate, PaidOtherAmount)},
        **{made.__name__: made for made in (count, total, minimum, maximum, mean)},
        "AbandonedCart": AbandonedCart,
        "OrderEvent": OrderEvent,
        "Topic": Topic,
        "col": col,
        "payments": payment_events,
        "requests": service_events,
        "failures": service_events.where(col.status == "failed"),
        "clicks": user_events,
        "adds": user_events.where(col.kind == "cart_add"),
        "checkouts": user_events.where(col.kind == "checkout"),
    }
    for block in re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL):
        exec(block, names)
    made = {name for name, value in names.items() if isinstance(value, Pipeline)}
    assert {
        "large", "series", "storm", "user_features", "error_rate", "lost_visits", "paid_otherwise", "left_behind"
    } == made  # fmt: skip


def test_streams_page_names_every_operator() -> None:
    """A step or an aggregate that nobody reads of is not there."""
    steps = {name for name in vars(Stream) if not name.startswith("_")} - {"source", "once_rule", "steps", "fields"}
    functions = {"count", "total", "minimum", "maximum", "mean"} & vars(aggregates).keys()
    assert set() == {name for name in {*steps, *functions, "having", "missing", "serve"} if f"{name}(" not in PAGE}
