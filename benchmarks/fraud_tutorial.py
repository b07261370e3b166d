"""The fraud job as PyFlink's tutorials write it, to compare with: the DataStream API with Python functions. Runs under PyFlink's own
Python, and imports nothing of ours; `benchmarks.fraud_job` starts it.

    python fraud_tutorial.py <bootstrap servers> <job manager's host> <its port> <process or thread>

Events are parsed by json.loads, keyed by their user, and judged by one KeyedProcessFunction, so that they cross from Java to Python
as seldom as they can. It has the state that tutorials have, a MapState or ListState a purpose, each with a time to live, and writes
through Kafka sinks. It judges no validity and names no late records; of valid records on time it makes the same alerts, tiles and rows.
"""

import json
import sys
import sysconfig
from collections.abc import Iterator
from typing import Any

from pyflink.common import Duration, Time, Types, WatermarkStrategy
from pyflink.common.configuration import Configuration
from pyflink.common.serialization import SimpleStringSchema
from pyflink.datastream import KeyedProcessFunction, OutputTag, RuntimeContext, StreamExecutionEnvironment
from pyflink.datastream.connectors.base import DeliveryGuarantee
from pyflink.datastream.connectors.kafka import (
    KafkaOffsetsInitializer,
    KafkaRecordSerializationSchema,
    KafkaSink,
    KafkaSource,
)
from pyflink.datastream.state import ListStateDescriptor, MapStateDescriptor, StateTtlConfig
from pyflink.java_gateway import get_gateway
from pyflink.util.java_utils import to_jarray

LIMIT_CENTS = 1_000_000
SECOND_MS, MINUTE_MS = 1_000, 60_000
OUT_OF_ORDERNESS = Duration.of_seconds(5)

FEATURES = OutputTag("features", Types.STRING())
PAYMENTS = OutputTag("payments", Types.STRING())
RATES = OutputTag("rates", Types.STRING())
OUTPUTS = {FEATURES: "features.user_features", PAYMENTS: "features.user_payments", RATES: "features.order_rate_5m"}
PREFIX = "tutorial."


class Fraud(KeyedProcessFunction):  # type: ignore[misc]
    """All that is asked of the orders and payments of one user."""

    def open(self, runtime_context: RuntimeContext) -> None:
        ttl = StateTtlConfig.new_builder(Time.hours(1)).build()

        def map_state(name: str, key: Any, value: Any) -> Any:
            descriptor = MapStateDescriptor(name, key, value)
            descriptor.enable_time_to_live(ttl)
            return runtime_context.get_map_state(descriptor)

        def list_state(name: str) -> Any:
            descriptor = ListStateDescriptor(name, Types.LONG())
            descriptor.enable_time_to_live(ttl)
            return runtime_context.get_list_state(descriptor)

        pair = Types.TUPLE([Types.LONG(), Types.LONG()])
        self.seen = map_state("seen", Types.STRING(), Types.LONG())
        self.order_times = list_state("order times")
        self.failed_times = list_state("failed times")
        self.orders = map_state("orders", Types.STRING(), pair)
        self.payments = map_state("payments", Types.STRING(), Types.TUPLE([Types.STRING(), *[Types.LONG()] * 2]))
        self.order_tiles = map_state("order tiles", Types.LONG(), pair)
        self.payment_tiles = map_state("payment tiles", Types.LONG(), Types.TUPLE([Types.LONG()] * 3))
        self.windows = map_state("windows", Types.LONG(), pair)

    def process_element(self, event: dict[str, Any], context: KeyedProcessFunction.Context) -> Iterator[Any]:
        time_ms, cents = context.timestamp(), round(event["amount_usd"] * 100)
        event_id = event.get("payment_id") or event["order_id"]
        if self.seen.contains(event_id):
            return
        self.seen.put(event_id, time_ms)
        if "payment_id" in event:
            yield from self.payment(event, cents, time_ms)
        else:
            yield from self.order(event, cents, time_ms, context)

    def order(
        self, event: dict[str, Any], cents: int, time_ms: int, context: KeyedProcessFunction.Context
    ) -> Iterator[Any]:
        user, order_id = event["user_id"], event["order_id"]
        is_placed = event["status"] == "placed"
        if is_placed:
            if cents > LIMIT_CENTS:
                yield alert("high_value_order", time_ms, user, order_id, amount_usd=cents / 100)
            if completes(self.order_times, time_ms, 5, 5 * MINUTE_MS):
                yield alert("order_burst", time_ms, user, order_id, amount_usd=cents / 100)
            self.orders.put(order_id, (time_ms, cents))
            paid = self.payments.get(order_id)
            if paid:
                yield from other_amount(user, order_id, (time_ms, cents), paid)
        tile = time_ms - time_ms % (30 * SECOND_MS)
        count, total = self.order_tiles.get(tile) or (0, 0)
        if is_placed:
            count, total = count + 1, total + cents
        self.order_tiles.put(tile, (count, total))
        row = {"user_id": user, "tile": tile, "order_count_5m": count, "order_value_5m": total / 100}
        yield FEATURES, json.dumps(row)
        if not is_placed:
            return
        start = time_ms - time_ms % (5 * MINUTE_MS)
        count, total = self.windows.get(start) or (0, 0)
        self.windows.put(start, (count + 1, total + cents))
        context.timer_service().register_event_time_timer(start + 5 * MINUTE_MS - 1)

    def payment(self, event: dict[str, Any], cents: int, time_ms: int) -> Iterator[Any]:
        user, payment_id, order_id = event["user_id"], event["payment_id"], event["order_id"]
        is_authorized, is_failed = event["status"] == "authorized", event["status"] == "failed"
        if is_failed and completes(self.failed_times, time_ms, 3, 10 * MINUTE_MS):
            yield alert("failed_payments", time_ms, user, payment_id, order_id=order_id, amount_usd=cents / 100)
        if is_authorized:
            paid = payment_id, time_ms, cents
            self.payments.put(order_id, paid)
            placed = self.orders.get(order_id)
            if placed:
                yield from other_amount(user, order_id, placed, paid)
        tile = time_ms - time_ms % MINUTE_MS
        authorized, failed, largest = self.payment_tiles.get(tile) or (0, 0, -1)
        authorized, failed = authorized + is_authorized, failed + is_failed
        largest = max(largest, cents) if is_failed else largest
        self.payment_tiles.put(tile, (authorized, failed, largest))
        row = {"user_id": user, "tile": tile, "authorized_30m": authorized, "failed_30m": failed}
        yield PAYMENTS, json.dumps({**row, "largest_failed_usd_30m": largest / 100 if largest >= 0 else None})

    def on_timer(self, timestamp: int, context: KeyedProcessFunction.OnTimerContext) -> Iterator[Any]:
        start = timestamp + 1 - 5 * MINUTE_MS
        count, total = self.windows.get(start)
        self.windows.remove(start)
        row = {"user_id": context.get_current_key(), "window_start": start, "window_end": timestamp + 1}
        yield RATES, json.dumps({**row, "order_count_5m": count, "order_value_5m": total / 100})


def completes(times: Any, time_ms: int, count: int, within_ms: int) -> bool:
    """Whether the last so many times, this one among them, lie so close together, and those before it did not."""
    known = [*times.get(), time_ms][-count - 1 :]
    times.update(known)
    now, before = known[-count:], known[-count - 1 : -1]
    return is_burst(now, count, within_ms) and not is_burst(before, count, within_ms)


def is_burst(times: list[int], count: int, within_ms: int) -> bool:
    return len(times) == count and max(times) - min(times) <= within_ms


def other_amount(user: str, order_id: str, placed: tuple[int, int], paid: tuple[str, int, int]) -> Iterator[str]:
    (placed_ms, cents), (payment_id, paid_ms, paid_cents) = placed, paid
    if -MINUTE_MS <= paid_ms - placed_ms <= 10 * MINUTE_MS and cents != paid_cents:
        amounts = {"amount_usd": cents / 100, "paid_usd": paid_cents / 100}
        yield alert("paid_other_amount", max(placed_ms, paid_ms), user, order_id, payment_id, **amounts)


def alert(alert_type: str, time_ms: int, user: str, *natural: str, **fields: Any) -> str:
    alert_id = ":".join((alert_type, user, *natural))
    return json.dumps(
        {"alert_type": alert_type, "alert_id": alert_id, "user_id": user, "triggered_at": time_ms, **fields}
    )


def sink(bootstrap_servers: str, topic: str) -> KafkaSink:
    serializer = KafkaRecordSerializationSchema.builder().set_topic(topic)
    serializer = serializer.set_value_serialization_schema(SimpleStringSchema())
    return (
        KafkaSink.builder()
        .set_bootstrap_servers(bootstrap_servers)
        .set_record_serializer(serializer.build())
        .set_delivery_guarantee(DeliveryGuarantee.AT_LEAST_ONCE)
        .build()
    )


def submit(bootstrap_servers: str, host: str, port: str, mode: str, jar: str) -> str:
    gateway = get_gateway()
    remote = gateway.jvm.org.apache.flink.streaming.api.environment.StreamExecutionEnvironment.createRemoteEnvironment
    environment = StreamExecutionEnvironment(remote(host, int(port), to_jarray(gateway.jvm.String, [jar])))
    configuration = Configuration()
    configuration.set_string("python.executable", sys.executable)
    configuration.set_string("python.execution-mode", mode)
    configuration.set_string(
        "python.pythonpath", sysconfig.get_path("purelib")
    )  # a thread's Python knows no environment
    environment.configure(configuration)
    environment.set_parallelism(1)
    environment.enable_checkpointing(1_000)
    source = (
        KafkaSource.builder()
        .set_bootstrap_servers(bootstrap_servers)
        .set_topics("raw.orders", "raw.payments")
        .set_group_id("tutorial")
        .set_starting_offsets(KafkaOffsetsInitializer.earliest())
        .set_value_only_deserializer(SimpleStringSchema())
        .build()
    )
    watermarks = WatermarkStrategy.for_bounded_out_of_orderness(OUT_OF_ORDERNESS)
    events = environment.from_source(source, watermarks, "orders and payments").map(json.loads)
    alerts = (
        events.filter(lambda event: "heartbeat" not in event)
        .key_by(lambda event: event["user_id"], key_type=Types.STRING())
        .process(Fraud(), output_type=Types.STRING())
    )
    alerts.sink_to(sink(bootstrap_servers, PREFIX + "processed.alerts"))
    for tag, topic in OUTPUTS.items():
        alerts.get_side_output(tag).sink_to(sink(bootstrap_servers, PREFIX + topic))
    return str(environment.execute_async("fraud-tutorial").get_job_id())


if __name__ == "__main__":
    sys.stdout.write(submit(*sys.argv[1:]) + "\n")
