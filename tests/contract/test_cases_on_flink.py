"""The use cases on Flink, with the commands of a user: jobs, a worker beside them, and the demo's scenario at its own pace."""

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import pytest

from agents import app
from app.broker.base import Broker
from app.broker.kafka import KafkaBroker
from app.broker.publisher import HEARTBEAT
from app.core.clock import SystemClock
from app.core.record import TopicPartition
from app.decisions.decision import Reason
from app.local.services import Addresses, own_directory, running
from app.sources.generator import play
from features.demo import scenario
from tests.cases_kit import listening
from tests.flink_kit import wait_until_written
from tests.pagerduty import PATH, ROUTING_KEY, PagerDuty
from tests.parity.meaning import SourceRecord
from tests.parity.written import Written, read_back

pytestmark = [pytest.mark.flink, pytest.mark.kafka, pytest.mark.redis, pytest.mark.slow, pytest.mark.timeout(600)]

EVENTS, SEED = 2_000, 7
WITHIN_S = 240

MILD_ENDS = {"abandoned_cart": "remind", "left_empty_handed": "offer", "service_recovered": "resolve"}
OLD_CONTEXT = {Reason.FEATURES_STALE.value, Reason.FEATURES_MISSING.value, Reason.OWN_EVENT_NOT_SEEN.value}

Variables = Mapping[str, str]


@pytest.fixture
def variables(kafka_address: str, redis_address: str, flink_address: str) -> Iterator[dict[str, str]]:
    """Of servers whose topics nobody else uses; the cluster is the session's. kafka_address, redis_address: skip this where one is
    missing."""
    with running(own_directory("cases")) as addresses:
        yield variables_of(addresses) | {"HEADRACE_FLINK": flink_address}


def variables_of(addresses: Addresses) -> dict[str, str]:
    return {**os.environ, "HEADRACE_BROKER": addresses.kafka, "HEADRACE_STORE": addresses.redis_socket}


async def command(variables: Variables, *arguments: str) -> str:
    """What it prints; it must succeed."""
    whole = [sys.executable, "-m", *arguments]
    done = await asyncio.to_thread(
        subprocess.run, whole, env=variables, capture_output=True, text=True, check=False, timeout=WITHIN_S
    )
    assert 0 == done.returncode, done.stderr
    return str(done.stdout)


@contextmanager
def working(variables: Variables) -> Iterator[None]:
    """A worker with everything but the streams, which ends in order."""
    process = subprocess.Popen(
        [sys.executable, "-m", "app", "worker", "--model", "rules", "--engine", "flink"], env=variables
    )
    try:
        yield
    finally:
        process.terminate()
        code = process.wait(WITHIN_S)
    assert 0 == code


async def published(broker: Broker) -> list[SourceRecord]:
    """The scenario, then a heartbeat in each partition, at one moment behind all of it."""
    clock, producer = SystemClock(), broker.producer()
    await producer.start()
    told = scenario(EVENTS, SEED, clock.now_ms())
    publications = [
        one for one in told if not (one.value or b"").startswith(b"[")
    ]  # which counts on Flink (docs/validity.md)
    await play(publications, producer, clock)
    end_ms = max(one.timestamp_ms for one in publications) + 1
    for name, source in app.sources.items():
        for partition in range(source.spec.partitions):
            await producer.send(name, HEARTBEAT, None, partition=partition, timestamp_ms=end_ms)
    assert [] == await producer.flush()
    await producer.close()
    return await read_sources(broker)


async def read_sources(broker: Broker) -> list[SourceRecord]:
    """Everything in them: where a record without a key went, its producer alone has decided."""
    reader, records = broker.reader(), list[SourceRecord]()
    for name, source in app.sources.items():
        places = [TopicPartition(name, partition) for partition in range(source.spec.partitions)]
        for place, end in (await reader.end_offsets(places)).items():
            async for batch in reader.read(place, 0, end):
                records += [SourceRecord(*place, one.offset, one.timestamp_ms, one.key, one.value) for one in batch]
    await reader.close()
    return records


async def decided(variables: Variables, alerts: int) -> list[dict[str, Any]]:
    """The decisions about so many alerts, whose effects have come to their end."""
    listing = ("app", "decisions", "list", "--since", "1h", "--limit", "100000", "--json")
    async with asyncio.timeout(WITHIN_S):
        while True:
            found = [json.loads(line) for line in (await command(variables, *listing)).splitlines()]
            is_open = await command(variables, *listing, "--effects", "open")
            if len({one["alert_id"] for one in found}) >= alerts and not is_open:
                return found


async def test_cases_on_flink_are_alerts_of_the_reference_decided_and_acted_on(
    variables: dict[str, str],
) -> None:
    """Every alert, tile, row and late reference of the demo's streams; a decision about each alert; incidents that begin and end."""
    broker, pager = KafkaBroker(variables["HEADRACE_BROKER"], SystemClock(), replication=1), PagerDuty()
    await command(variables, "app", "topics", "create")
    topics = {spec.name: spec.partitions for spec in app.topics.all()}

    async def written() -> dict[str, list[Written]]:
        return await read_back(broker, topics)

    async with listening({PATH: pager.receive}) as address:
        pages = {"HEADRACE_PAGERDUTY_URL": f"{address}{PATH}", "HEADRACE_PAGERDUTY_ROUTING_KEY": ROUTING_KEY}
        try:
            await command(variables, "flink_jobs", "submit")
            with working(variables | pages):
                records = await published(broker)
                expected = await wait_until_written(app.pipelines, records, written)
                decisions = await decided(variables, len(expected.alerts))
        finally:
            await command(variables, "flink_jobs", "stop")
            await broker.close()
    assert {alert.alert_id for alert in expected.alerts} == {one["alert_id"] for one in decisions}
    require_actions(decisions, pager)


def require_actions(decisions: list[dict[str, Any]], pager: PagerDuty) -> None:
    """Of each case what its rules say. Where a checkpoint took long enough, its features were stale, and policy says: then not
    the mild end, and nothing else may excuse its absence."""
    actions = {one["action"] for one in decisions}
    assert {"block", "hold", "page"} <= actions, actions
    for kind, action in MILD_ENDS.items():
        judged = [one for one in decisions if one["alert_id"].startswith(f"{kind}:")]
        assert judged, kind
        assert action in actions or any(OLD_CONTEXT & set(one["reasons"]) for one in judged), judged
    assert [] == pager.refused
    assert pager.called
    assert ("resolved" in pager.incidents.values()) is ("resolve" in actions)
