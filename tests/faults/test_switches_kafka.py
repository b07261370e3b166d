"""Two processes on a real broker: what one switches off, the other does no more within two seconds, nor after its restart."""

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import msgspec
import pytest

from agents import app
from agents.fraud import FraudDecision
from app.broker.base import Producer
from app.broker.kafka import KafkaBroker
from app.core.clock import SystemClock
from app.core.record import TopicPartition
from app.decisions.context import raw
from app.decisions.log import DecisionLog, Link
from app.decisions.record import DecisionRecord, Hops, ReviewRequest
from features.fraud import HighValueOrder

pytestmark = [pytest.mark.kafka, pytest.mark.timeout(180)]

PROJECT = Path(__file__).parents[2]
EVERY_S = 0.02
ACTS_WITHIN_MS = 2_000
PATIENCE_S = 40.0


@pytest.fixture
async def broker(kafka_address: str) -> AsyncIterator[KafkaBroker]:
    """The session's cluster, with the application's topics as long as this test lasts."""
    made = KafkaBroker(kafka_address, SystemClock())
    admin = made.admin()
    await admin.create(app.topics.all())
    yield made
    await admin.delete([spec.name for spec in app.topics.all()])
    await admin.close()
    await made.close()


class Payments:
    """The receiver of blocks: when each came, wall ms, by its key."""

    def __init__(self) -> None:
        self.came: list[tuple[int, str]] = []
        self.url = ""
        self._clock = SystemClock()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while head := await reader.readuntil(b"\r\n\r\n"):
                headers = dict(line.lower().split(": ", 1) for line in head.decode().split("\r\n")[1:] if line)
                self.came.append((self._clock.now_ms(), headers["idempotency-key"]))
                await reader.readexactly(int(headers["content-length"]))
                writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n")
        except (asyncio.IncompleteReadError, ConnectionError):
            writer.close()


@pytest.fixture
async def payments() -> AsyncIterator[Payments]:
    """The receiver, listening."""
    made = Payments()
    server = await asyncio.start_server(made.serve, "127.0.0.1", 0)
    made.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/block"
    yield made
    server.close()


def start_worker(address: str, payments: Payments) -> "subprocess.Popen[bytes]":
    command = [sys.executable, "-m", "app", "worker", "--only", "actions", "--broker", address, "--store", "memory://"]
    environment = {"HEADRACE_LOG_LEVEL": "warning", "HEADRACE_ACTION_URL_BLOCK_TRANSACTION": payments.url}
    return subprocess.Popen(command, cwd=PROJECT, env={**os.environ, **environment})


async def command(address: str, *arguments: str) -> list[dict[str, Any]]:
    """A command of another process: the objects that it prints."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "app", *arguments, "--broker", address),
        cwd=PROJECT,
        stdout=asyncio.subprocess.PIPE,
    )
    out, _ = await process.communicate()
    assert 0 == process.returncode
    return [json.loads(line) for line in out.splitlines()]


async def decide_for_ever(producer: Producer) -> None:
    """A live block every 20 ms, as an agent writes them."""
    log, number = DecisionLog(producer, "test"), 0
    while True:
        number += 1
        await log.write(lambda link, number=number: block(number, link))  # type: ignore[misc]
        await asyncio.sleep(EVERY_S)


def block(number: int, link: Link) -> DecisionRecord:
    alert = HighValueOrder(
        alert_id=f"high_value_order:u-{number}:o-{number}",
        triggered_at=datetime.now(UTC),  # noqa: TID251 - a test of wall time
        order_id=f"o-{number}",
        user_id=f"u-{number}",
        amount_usd=Decimal("99000.00"),
    )
    decision = FraudDecision(action="block", risk_level="HIGH", reason="a test")
    return DecisionRecord(
        agent="judge_order",
        alert_id=alert.alert_id,
        alert_type="high_value_order",
        entity=alert.user_id,
        alert_topic="processed.alerts",
        alert_partition=number % app.topics.named("processed.alerts").partitions,
        alert_offset=number,
        origin="",
        mode="live",
        decision=raw(decision),
        answered=raw(decision),
        policy=None,
        reasons=(),
        attempt=1,
        features=(),
        models=(),
        hops=Hops(0, 0, 0, 0, 0, 0),
        alert=raw(alert),
        **link._asdict(),
    )


async def until_more(payments: Payments, count: int) -> None:
    """Until so many more blocks have come."""
    wanted = len(payments.came) + count
    async with asyncio.timeout(PATIENCE_S):
        while len(payments.came) < wanted:
            await asyncio.sleep(0.05)


async def reviews(broker: KafkaBroker) -> list[ReviewRequest]:
    reader = broker.reader()
    places = [TopicPartition("agent.reviews", n) for n in range(app.topics.named("agent.reviews").partitions)]
    return [
        msgspec.json.decode(record.value or b"", type=ReviewRequest)
        for place, end in (await reader.end_offsets(places)).items()
        async for batch in reader.read(place, 0, end)
        for record in batch
    ]


async def test_switch_off_reaches_another_process_within_two_seconds(
    kafka_address: str, broker: KafkaBroker, payments: Payments
) -> None:
    """Blocks stop, a worker that is killed and started again makes none, people are asked, and `on` begins them again."""
    producer = broker.producer()
    await producer.start()
    worker = start_worker(kafka_address, payments)
    deciding = asyncio.ensure_future(decide_for_ever(producer))
    try:
        await until_more(payments, 50)
        (told,) = await command(kafka_address, "switch", "off", "block", "--reason", "a test", "--json")
        assert ("switch", "block", "off", 1, 0) == tuple(
            told[name] for name in ("record", "name", "state", "workers", "behind")
        )
        last_ms = payments.came[-1][0]
        assert last_ms - told["at_ms"] < ACTS_WITHIN_MS
        stopped_at = len(payments.came)

        worker.send_signal(signal.SIGKILL)
        worker.wait()
        worker = start_worker(kafka_address, payments)
        asked = len(await reviews(broker))
        async with asyncio.timeout(PATIENCE_S):
            while len(await reviews(broker)) < asked + 50:
                await asyncio.sleep(0.2)
        assert stopped_at == len(payments.came)
        listed = {row["switch"]: row for row in await command(kafka_address, "switch", "list", "--json")}
        assert ("off", "a test") == (listed["block"]["state"], listed["block"]["reason"])
        assert "on" == listed["review"]["state"]

        await command(kafka_address, "switch", "on", "block", "--json")
        await until_more(payments, 20)
        withheld = {asked.review_id for asked in await reviews(broker)}
        assert set() == withheld & {key for _, key in payments.came}
        assert all("block was switched off by" in asked.reason for asked in await reviews(broker))
    finally:
        deciding.cancel()
        worker.kill()
        worker.wait()
        await producer.close()
