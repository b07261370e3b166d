"""Rows become records: columns, constants, derived ids, and what is refused."""

from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import msgspec
import pytest

from app.core.codec import Usd
from app.core.errors import SetupError
from app.sources.mapping import plan_mapping
from app.sources.rows import BadRow
from features.records import OrderEvent, UserEvent

MOMENT = datetime(1997, 1, 1, tzinfo=UTC)
CDNOW = ("customer_id", "date", "quantity", "amount_usd")


def plan(**changed: Any) -> Any:
    asked: dict[str, Any] = {
        "record_type": OrderEvent,
        "file_columns": CDNOW,
        "mapped": {"user_id": "customer_id", "timestamp": "date"},
        "constants": {"status": "placed"},
        "id_field": "order_id",
    }
    return plan_mapping(**(asked | changed))


def test_record_mapping_row_becomes_a_record() -> None:
    """Mapped columns, columns of a field's own name, constants and the derived id; other columns are ignored."""
    fields = {"customer_id": "00001", "date": "1997-01-01", "quantity": "1", "amount_usd": "11.70"}
    order = plan().record(fields, MOMENT, "cdnow.csv#2")
    assert OrderEvent("cdnow.csv#2", "00001", Decimal("11.70"), "placed", MOMENT) == order
    assert "11.70" == str(order.amount_usd)


@pytest.mark.parametrize("amount", ["-1", "1.005", "NaN", "a lot", "10000000000.01", ["1"], "1e999999999"])
def test_record_mapping_bad_amount_is_a_bad_row(amount: Any) -> None:
    """Amounts are judged as the gate judges them."""
    with pytest.raises(BadRow):
        plan().record({"customer_id": "u", "amount_usd": amount}, MOMENT, "x#1")


def test_record_mapping_missing_or_wrong_field_says_which() -> None:
    """A missing field and a wrong choice are named."""
    with pytest.raises(BadRow, match="user_id"):
        plan().record({"amount_usd": "1"}, MOMENT, "x#1")
    with pytest.raises(BadRow, match="status"):
        plan(constants={"status": "lost"}).record({"customer_id": "u", "amount_usd": "1"}, MOMENT, "x#1")


def test_record_mapping_optional_field_keeps_its_default() -> None:
    """A field with a default needs no column."""
    mapping = plan(
        record_type=UserEvent,
        file_columns=("event_id", "user_id", "kind", "timestamp"),
        mapped={},
        constants={},
        id_field=None,
    )
    event = mapping.record({"event_id": "e", "user_id": "u", "kind": "view"}, MOMENT, "x#1")
    assert UserEvent("e", "u", "view", MOMENT, "") == event


def test_record_mapping_optional_money_is_judged_too() -> None:
    """An amount that may be absent is judged where it is there."""

    class Refund(msgspec.Struct):
        key: str
        timestamp: datetime
        amount: Usd | None = None

    mapping = plan(record_type=Refund, file_columns=None, mapped={}, constants={}, id_field=None)
    assert mapping.record({"key": "k"}, MOMENT, "").amount is None
    with pytest.raises(BadRow):
        mapping.record({"key": "k", "amount": "1.001"}, MOMENT, "")


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"mapped": {"usr": "customer_id"}}, "--map usr: OrderEvent has only order_id"),
        ({"mapped": {"user_id": "client"}}, "--map user_id=client: the file has no such column, only customer_id"),
        ({"constants": {"state": "x"}}, "--constant state: OrderEvent has only"),
        ({"constants": {"user_id": "x", "status": "placed"}}, "--constant user_id: the field has its value from --map"),
        ({"id_field": "number"}, "--id number: OrderEvent has only"),
        ({"id_field": None}, "--map order_id=COLUMN: is needed: the file has no column order_id, only customer_id"),
        (
            {"constants": {"status": "placed", "timestamp": "1"}, "mapped": {"user_id": "customer_id"}},
            "event times come",
        ),
    ],
)
def test_plan_mapping_wrong_option_is_named(changed: dict[str, Any], message: str) -> None:
    """Whatever is wrong with an option is one line that names it and what there is."""
    with pytest.raises(SetupError) as raised:
        plan(**changed)
    assert message in str(raised.value)
