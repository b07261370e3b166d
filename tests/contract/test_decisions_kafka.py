"""Decisions on a real cluster, by the commands that people type: listed, replayed by another model, tampered with, and
forgotten until compaction has removed every byte."""

import asyncio
import json
import os
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
from confluent_kafka.admin import (  # type: ignore[attr-defined]
    AdminClient,
    AlterConfigOpType,
    ConfigEntry,
    ConfigResource,
    ResourceType,
)

from app.broker.base import Broker
from app.broker.kafka import KafkaBroker
from app.broker.topics import TopicSpec
from app.core.clock import Clock, SystemClock, run_virtual
from app.core.record import Record, TopicPartition
from app.decisions.record import DECISIONS, EFFECTS, REVIEWS
from app.local.messages_api import messages_api
from app.local.messages_schema import MessagesRequest
from app.local.services import Addresses, own_directory, running
from tests.contract.conftest import read_range
from tests.decisions_kit import START_MS, World, answering, large_order, make_agent, until, with_actions
from tests.unit.cli.test_decisions import APP

pytestmark = [pytest.mark.kafka, pytest.mark.redis, pytest.mark.slow]

ROOT = Path(__file__).resolve().parents[2]
PARTITION = 1
QUICKLY = {"min.compaction.lag.ms": "0", "max.compaction.lag.ms": "1", "delete.retention.ms": "0"}
FORGETTING = (DECISIONS, EFFECTS, REVIEWS)


@pytest.fixture(scope="module")
def addresses(kafka_address: str, redis_address: str) -> Iterator[Addresses]:
    """Servers of this module's own, since topics of decisions have fixed names. The fixtures skip where one is missing."""
    with running(own_directory("decisions")) as addresses:
        yield addresses


def decided() -> World:
    """Six decisions about three people, effects at their end, as workers write them."""

    async def main(clock: Clock) -> World:
        world = await World.create(clock, answering("review"))
        agent = with_actions(make_agent())
        for number in range(6):
            user = f"u-{number % 3}"
            world.send(large_order(user, f"o-{number}", f"{12_000 + number}.50"), key=user)
        async with world.running(world.agent_work(agent), world.actions_work(agent)):
            await until(lambda: len(world.reviews()) == 6 and len(world.effects()) == 12)
        return world

    return run_virtual(main, START_MS)


class Shop:
    """The cluster with those decisions, and the commands that look at it."""

    def __init__(self, broker: Broker, folder: Path, addresses: Addresses) -> None:
        self.broker = broker
        self._folder = folder
        self._environment = os.environ | {
            "PYTHONPATH": f"{ROOT}:{folder}",
            "HEADRACE_BROKER": addresses.kafka,
            "HEADRACE_STORE": addresses.redis_socket,
            "ANTHROPIC_API_KEY": "any",
        }

    async def command(self, *words: str) -> tuple[int | None, list[Any], str]:
        """Exit code, the objects it printed, and what it said beside them."""
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "app", *words,
            cwd=self._folder, env=self._environment, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
        )  # fmt: skip
        out, err = await process.communicate()
        return process.returncode, [json.loads(line) for line in out.splitlines()], err.decode()

    async def read(self, topic: str) -> list[Record]:
        reader = self.broker.reader()
        described = (await self.broker.admin().describe([topic]))[topic]
        assert described is not None
        places = [TopicPartition(topic, partition) for partition in range(described.partitions)]
        return [record for place in places for record in await read_range(reader, place, 0, 1_000_000)]

    async def write(self, *records: Record) -> None:
        producer = self.broker.producer()
        await producer.start()
        for record in records:
            await producer.confirm(
                record.topic, record.value, record.key, partition=record.partition, headers=record.headers
            )
        await producer.close()


@pytest.fixture
async def shop(addresses: Addresses, tmp_path: Path) -> AsyncIterator[Shop]:
    """The topics that are needed, and the decisions; all of it gone at the end."""
    (tmp_path / "decisions_shop.py").write_text(APP)
    broker = KafkaBroker(addresses.kafka, SystemClock())
    shop = Shop(broker, tmp_path, addresses)
    world = await asyncio.to_thread(decided)
    await broker.admin().create([*world.broker.specs.values(), TopicSpec(name="features.user_features", partitions=12)])
    await shop.write(*(record for topic in FORGETTING for record in world.records(topic)))
    yield shop
    admin = broker.admin()
    await admin.delete(await admin.list())
    await broker.close()


async def test_decisions_are_listed_replayed_and_found_whole(shop: Shop) -> None:
    """The stub in the place of another model blocks the first half of the orders: those come out otherwise."""

    def answer(asked: MessagesRequest) -> object:
        early = any(f'"o-{number}"' in asked.turns_text for number in range(3))
        return {"action": "block" if early else "review", "risk_level": "HIGH", "reason": "by the other model"}

    code, listed, _ = await shop.command("decisions", "list", "--json")
    assert (0, 6) == (code, len(listed))
    assert sorted((one["written_ms"] for one in listed), reverse=True) == [one["written_ms"] for one in listed]
    code, (*_, summary), err = await shop.command("decisions", "replay", "-A", "decisions_shop:app", "--json")
    assert (0, 6, {}) == (code, summary["identical"], summary["changed"]), err
    async with messages_api(answer=answer) as api:
        code, (*each, summary), err = await shop.command(
            *("decisions", "replay", "-A", "decisions_shop:app", "--json"),
            *("--model", "claude-sonnet-4-6", "--model-url", api.address),
        )
    assert (0, {"review -> block": 3, "review -> review": 3}) == (code, summary["actions"]), err
    changed = {one["alert_id"].rsplit(":")[-1] for one in each if not one["identical"]}
    assert {"o-0", "o-1", "o-2"} == changed
    assert (6, True) == (summary["calls"], float(summary["usd"]) > 0)
    assert 6 == len(await shop.read(DECISIONS))
    code, (verified,), _ = await shop.command("decisions", "verify", "--json")
    assert (0, 6, 0) == (code, verified["decisions"], verified["broken_count"])


async def test_decisions_that_somebody_wrote_over_or_took_back_are_named(shop: Shop) -> None:
    """Whoever may write to the topic can hide a decision from readers, and not from the check."""
    first, second, *_ = [one for one in await shop.read(DECISIONS) if one.partition == PARTITION]
    forged = (first.value or b"").replace(b'"review"', b'"approve"')
    await shop.write(Record(DECISIONS, PARTITION, 0, 0, first.key, forged, first.headers))
    await shop.write(Record(DECISIONS, PARTITION, 0, 0, second.key, None))
    code, (*broken, summary), _ = await shop.command("decisions", "verify", "--json")
    assert (1, len(broken)) == (code, summary["broken_count"])
    said = " ".join(one["broken"] for one in broken)
    assert "two records have number 0" in said
    assert "a tombstone" in said


async def test_forgotten_person_is_gone_when_compaction_has_run(shop: Shop, addresses: Addresses) -> None:
    """No key, value or header of the topics that can lose them names the person; others' stay and the chains hold."""
    admin = shop.broker.admin()
    for topic in FORGETTING:
        await admin.configure(topic, QUICKLY)
    await asyncio.to_thread(clean_often, addresses.kafka)
    code, (said,), err = await shop.command("decisions", "forget", "u-1", "-A", "decisions_shop:app", "--yes", "--json")
    assert (0, True, []) == (code, said["removed"], said["waits"]), err
    assert dict.fromkeys(FORGETTING, 2) == said["records"]
    async with asyncio.timeout(60):
        while left := [record for topic in FORGETTING for record in await shop.read(topic) if names(record, b"u-1")]:
            places = {(record.topic, record.partition) for record in left}  # others go on, which closes segments
            await shop.write(*(Record(*place, 0, 0, b"filler", b"{}") for place in places))
            await asyncio.sleep(0.2)
    kept = [record for record in await shop.read(DECISIONS) if record.key != b"filler"]
    assert (6, 2) == (len(kept), sum(record.header("forgotten") is not None for record in kept))
    assert 4 == len([record for record in await shop.read(REVIEWS) if record.value not in (None, b"{}")])
    code, (*broken, summary), _ = await shop.command("decisions", "verify", "--json")
    assert (4, 2) == (summary["decisions"], summary["forgotten"])
    assert not [one for one in broken if "is no decision" not in one["broken"]]


def names(record: Record, person: bytes) -> bool:
    return any(person in (part or b"") for part in (record.key, record.value, *(value for _, value in record.headers)))


def clean_often(address: str) -> None:
    """The broker looks for what to compact five times a second, and not every 15 s."""
    admin = AdminClient({"bootstrap.servers": address.removeprefix("kafka://")})
    entry = ConfigEntry("log.cleaner.backoff.ms", "200", incremental_operation=AlterConfigOpType.SET)
    resource = ConfigResource(ResourceType.BROKER, "1", incremental_configs=[entry])
    for answer in admin.incremental_alter_configs([resource]).values():
        answer.result(10)
