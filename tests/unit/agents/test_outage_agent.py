"""The outage agent: who is called when, and what PagerDuty is told from the beginning of an incident to its end."""

from typing import Any

import pytest

from agents.outage import (
    OutageDecision,
    incident_key,
    judge_by_rules,
    judge_outage,
    judge_recovery,
    only_a_recovery_resolves,
    summary_of,
)
from app.core.clock import SystemClock
from app.core.instants import instant
from app.decisions.actions import ActionsWork
from app.decisions.decision import Reason
from app.decisions.effects import Receivers
from app.decisions.handling import AgentWork
from app.decisions.policy import judge
from app.http.client import HttpClient
from app.models.base import FailureCode, ModelFailure, ModelRequest
from app.models.gate import ModelGate
from app.models.rules import RulesModel
from app.serving.base import Features
from features.outage import FailureBurst, HighErrorRate, ServiceRecovered
from tests.cases_kit import features_of, listening
from tests.decisions_kit import START_MS, World, until
from tests.pagerduty import PATH, ROUTING_KEY, Acknowledge, PagerDuty, Resolve, Trigger

AT = instant(START_MS)
BURST = FailureBurst(alert_id="failure_burst:checkout:1", triggered_at=AT, service="checkout")
RATE = HighErrorRate(
    alert_id="high_error_rate:checkout:1",
    triggered_at=AT,
    service="checkout",
    requests=100,
    failures=40,
    mean_latency_ms=900,
)
RECOVERED = ServiceRecovered(alert_id="service_recovered:checkout:1", triggered_at=AT, service="checkout", failures=40)


def health(failures: int, requests: int) -> Features:
    return features_of("service_health", "checkout", failures_5m=failures, requests_5m=requests)


@pytest.mark.parametrize(
    ("failures", "requests", "action", "risk"),
    [
        (10, 101, "watch", "MEDIUM"),
        (10, 100, "page", "HIGH"),
        (49, 99, "page", "HIGH"),
        (50, 100, "page", "CRITICAL"),
        (0, 0, "page", "CRITICAL"),
    ],
)
def test_judge_by_rules_looks_at_the_share(failures: int, requests: int, action: str, risk: str) -> None:
    """One request in ten calls somebody, and so does a service of which nothing is heard."""
    decision = judge_by_rules(BURST, health(failures, requests))
    assert (action, risk) == (decision.action, decision.risk_level)


def test_judge_by_rules_takes_a_window_by_its_own_figures() -> None:
    """What has happened since is no part of it."""
    assert "page" == judge_by_rules(RATE, health(0, 1_000)).action


@pytest.mark.parametrize(("failures", "action"), [(0, "resolve"), (4, "resolve"), (5, "watch")])
def test_judge_recovery_leaves_a_newer_outage_alone(failures: int, action: str) -> None:
    """A recovery that is read behind the alerts of the next outage does not end its incident."""
    assert action == judge_recovery(RECOVERED, health(failures, 100)).action


def test_only_a_recovery_resolves() -> None:
    """A model that is talked into ending an incident calls somebody."""
    resolve = OutageDecision(action="resolve", risk_level="LOW", reason="all is well, says the log")
    for trouble in (BURST, RATE):
        assert "page" == only_a_recovery_resolves(trouble, resolve)
        assert "page" == judge(judge_outage.policy, trouble, resolve, (), judge_outage.fallback).decision.action
    assert only_a_recovery_resolves(RECOVERED, resolve) is None


@pytest.mark.parametrize("concern", [Reason.FEATURES_STALE, Reason.FEATURES_MISSING, Reason.OWN_EVENT_NOT_SEEN])
def test_watching_without_seeing_calls_somebody(concern: Reason) -> None:
    """Figures that nobody can trust are no reason to wait."""
    watch = OutageDecision(action="watch", risk_level="LOW", reason="r")
    assert "page" == judge(judge_outage.policy, BURST, watch, (concern,), judge_outage.fallback).decision.action


def test_incident_key_is_one_a_service() -> None:
    """Whichever rule has seen it, from its beginning to its end; it fits for the longest name."""
    assert {"outage:checkout"} == {incident_key(alert) for alert in (BURST, RATE, RECOVERED)}
    assert len("outage:" + "x" * 200) <= 255


def test_summary_names_the_figures_of_the_alert() -> None:
    """A person who was just woken reads no ids."""
    assert "40 of 100 requests failed in five minutes" == summary_of(RATE)
    assert ("ten requests failed within a minute", True) == (summary_of(BURST), "40 requests" in summary_of(RECOVERED))


class _Health:
    """A feature reader of one service, as it is now."""

    def __init__(self, features: Features) -> None:
        self.now = features

    async def read(self, view: str, entity: str) -> Features:
        return self.now

    async def read_with_own_event(self, view: str, entity: str, origin: object, wait_ms: int) -> Features:
        return self.now


async def a_world(features: Features, model: Any = None) -> tuple[World, AgentWork, _Health]:
    world, reader = await World.create(SystemClock()), _Health(features)
    work = AgentWork(
        judge_outage,
        producer=world.broker.producer(),
        reader=world.broker.reader(),
        features=reader,
        gate=ModelGate(model or RulesModel({"judge_outage": judge_by_rules}), concurrency=4, attempt_ms=1_000),
        clock=world.clock,
        declared=tuple(judge_outage.alert_types),
        partitions=1,
        switches=world.switches,
    )
    return world, work, reader


def acting(world: World, client: HttpClient, address: str, routing_key: str = ROUTING_KEY) -> ActionsWork:
    return ActionsWork(
        [judge_outage],
        producer=world.broker.producer(),
        reader=world.broker.reader(),
        poster=client,
        receivers=Receivers({}, "bearer-s3cret", 2_000, f"{address}{PATH}", routing_key),
        clock=world.clock,
        switches=world.switches,
    )


def everything_written(world: World) -> bytes:
    return b"".join((record.value or b"") + (record.key or b"") for log in world.broker.logs.values() for record in log)


async def test_incident_is_triggered_acknowledged_and_resolved_under_one_key(caplog: pytest.LogCaptureFixture) -> None:
    """Over real HTTP, at a receiver that is busy at first: two alerts of one outage call somebody once, and its recovery ends it.
    The routing key stands in no topic and no log, and the bearer token goes to nobody else."""
    caplog.set_level("DEBUG")
    service = PagerDuty(busy=1)
    world, agent, service_health = await a_world(health(40, 100))
    async with (
        listening({PATH: service.receive}) as address,
        HttpClient() as client,
        world.running(agent, acting(world, client, address)),
    ):
        world.send(BURST, key="checkout")
        world.send(RATE, key="checkout")
        await until(lambda: len(service.events) == 2, 30)
        service_health.now = health(0, 100)
        world.send(RECOVERED, key="checkout")
        await until(lambda: len(service.events) == 4, 30)
        await until(lambda: set(world.states().values()) == {"done"}, 30)
    assert [Trigger, Trigger, Acknowledge, Resolve] == [type(event) for event in service.events]
    assert {"outage:checkout"} == {event.dedup_key for event in service.events}
    assert (["outage:checkout"], {"outage:checkout": "resolved"}, []) == (
        service.called,
        service.incidents,
        service.refused,
    )
    assert isinstance(service.events[0], Trigger)
    first = service.events[0].payload
    assert ("checkout: ten requests failed within a minute", "checkout", "error", AT) == (
        first.summary,
        first.source,
        first.severity,
        first.timestamp,
    )
    assert 4 == len({headers["idempotency-key"] for headers in service.headers})
    assert [] == [headers for headers in service.headers if "authorization" in headers]
    assert (False, False) == (ROUTING_KEY.encode() in everything_written(world), ROUTING_KEY in caplog.text)


async def test_incident_that_is_over_is_not_opened_again_by_a_window_behind_its_recovery() -> None:
    """Final rows of windows and of sessions are written by different operators, in no order: nobody is called for what was
    resolved, since no further recovery would end it."""
    service = PagerDuty()
    world, agent, service_health = await a_world(health(40, 100))
    async with (
        listening({PATH: service.receive}) as address,
        HttpClient() as client,
        world.running(agent, acting(world, client, address)),
    ):
        world.send(BURST, key="checkout")
        await until(lambda: world.decided() == ["page"], 30)
        service_health.now = health(4, 100)
        world.send(RECOVERED, key="checkout")
        world.send(RATE, key="checkout")
        await until(lambda: len(world.decisions()) == 3 and len(service.events) == 3, 30)
        await until(lambda: set(world.states().values()) == {"done"}, 30)
    assert ["page", "resolve", "watch"] == world.decided()
    assert (["outage:checkout"], {"outage:checkout": "resolved"}) == (service.called, service.incidents)


@pytest.mark.parametrize(("failures", "is_asked"), [(5, True), (4, False)])
async def test_judge_outage_asks_about_trouble_that_goes_on(failures: int, is_asked: bool) -> None:
    """As many failures as make a recovery, or its alert is read behind the last one."""
    world, agent, _ = await a_world(health(failures, 10))
    async with world.running(agent):
        world.send(RATE, key="checkout")
        await until(lambda: len(world.decisions()) == 1, 30)
    assert (["page"] if is_asked else ["watch"], int(is_asked)) == (
        world.decided(),
        len(world.decisions()[0].models),
    )


async def test_incident_that_is_refused_is_for_a_person() -> None:
    """A wrong routing key is no reason to try again: somebody is asked at once."""
    service = PagerDuty()
    world, agent, _ = await a_world(health(40, 100))
    async with (
        listening({PATH: service.receive}) as address,
        HttpClient() as client,
        world.running(agent, acting(world, client, address, "f" * 32)),
    ):
        world.send(BURST, key="checkout")
        await until(lambda: world.states() == {"page_on_call": "failed"}, 30)
    (request,) = world.reviews()
    assert (["routing key"], "effect", "checkout") == (service.refused, request.kind, request.entity)
    assert "answered 400" in request.reason


async def test_incident_without_a_routing_key_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    """Nobody is called, and that is said."""
    caplog.set_level("INFO")
    service = PagerDuty()
    world, agent, _ = await a_world(health(40, 100))
    async with (
        listening({PATH: service.receive}) as address,
        HttpClient() as client,
        world.running(agent, acting(world, client, address, "")),
    ):
        world.send(BURST, key="checkout")
        await until(lambda: world.states() == {"page_on_call": "logged"}, 30)
    assert [] == service.headers
    assert (
        "effect page_on_call judge_outage:page_on_call:failure_burst:checkout:1 has no routing key, logged only"
        in caplog.text
    )


class _Away:
    """A model that does not answer."""

    name = "away-1"

    async def decide(self, request: ModelRequest) -> Any:
        raise ModelFailure(FailureCode.BAD_REQUEST, "refused")

    async def close(self) -> None:
        """Nothing is open."""


async def test_failing_model_calls_somebody_and_a_recovery_needs_none() -> None:
    """Whatever is wrong with the model, an outage is not slept through, and an incident still ends."""
    service = PagerDuty()
    world, agent, service_health = await a_world(health(40, 1_000), _Away())
    async with (
        listening({PATH: service.receive}) as address,
        HttpClient() as client,
        world.running(agent, acting(world, client, address)),
    ):
        world.send(BURST, key="checkout")
        await until(lambda: world.decided() == ["page"], 30)
        service_health.now = health(1, 1_000)
        world.send(RECOVERED, key="checkout")
        await until(lambda: service.incidents == {"outage:checkout": "resolved"}, 30)
    assert ["page", "resolve"] == world.decided()
    assert (1, 0) == tuple(len(decision.models) for decision in world.decisions())
