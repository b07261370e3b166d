"""Fraud that no single order shows: bursts of orders, payments that fail again and again, orders paid with another amount."""

from app.core.codec import Usd
from app.streams.expressions import col
from app.streams.graph import Alert, count, maximum
from features.fraud import placed
from features.records import Id, payment_events


class OrderBurst(Alert, frozen=True):
    """Five orders within five minutes; this one completes them."""

    order_id: Id
    user_id: Id
    amount_usd: Usd


class FailedPayments(Alert, frozen=True):
    """Three failed payments within ten minutes; this one completes them."""

    payment_id: Id
    order_id: Id
    user_id: Id
    amount_usd: Usd


class PaidOtherAmount(Alert, frozen=True):
    """An order, and a payment of it that is not its amount."""

    order_id: Id
    payment_id: Id
    user_id: Id
    amount_usd: Usd
    paid_usd: Usd


payments = payment_events.once("payment_id", within="1m")
authorized, failed = col.status == "authorized", col.status == "failed"

order_bursts = placed.burst(count=5, within="5m").alert(OrderBurst, id="order_id")

failed_payments = payments.where(failed).burst(count=3, within="10m").alert(FailedPayments, id="payment_id")

# An order waits here until its ten minutes are over by the clock of raw.payments: that topic needs records, or heartbeats.
other_amounts = (
    placed.join(payments.where(authorized), on="order_id", within=("-1m", "10m"), prefix="paid_")
    .where(col.amount_usd != col.paid_amount_usd)
    .alert(
        PaidOtherAmount,
        id=("order_id", "paid_payment_id"),
        payment_id=col.paid_payment_id,
        paid_usd=col.paid_amount_usd,
    )
)

user_payments = (
    payments.live("30m", tile="1m")
    .aggregate(
        authorized_30m=count(when=authorized),
        failed_30m=count(when=failed),
        largest_failed_usd_30m=maximum(col.amount_usd, when=failed),
    )
    .serve("user_payments")
)
