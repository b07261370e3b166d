"""Events of incidents: what PagerDuty's Events API v2 takes, and the routing key for nobody else."""

import msgspec
import pytest

from app.core.clock import Clock, run_virtual
from app.core.codec import encode
from app.core.errors import Rejected
from app.core.instants import instant
from app.decisions.effects import Receivers
from app.decisions.incidents import Incident, Problem
from app.decisions.record import EffectState
from tests.decisions_kit import START_MS, World
from tests.pagerduty import ROUTING_KEY, Acknowledge, Event, Resolve, Trigger
from tests.unit.decisions.test_effects import Listening, effects_of

PROBLEM = Problem(summary="s", source="checkout", severity="critical", happened_at=instant(START_MS), details={"n": 1})


def sent(incident: Incident) -> Event:
    event: Event = msgspec.json.decode(encode(incident.event(ROUTING_KEY)), type=Event)
    return event


def test_event_of_a_trigger_has_its_problem() -> None:
    """Every field that is required, and the time it happened."""
    event = sent(Incident("trigger", "outage:checkout", PROBLEM))
    assert isinstance(event, Trigger)
    assert ("outage:checkout", "s", "checkout", "critical", instant(START_MS), {"n": 1}) == (
        event.dedup_key,
        event.payload.summary,
        event.payload.source,
        event.payload.severity,
        event.payload.timestamp,
        event.payload.custom_details,
    )


@pytest.mark.parametrize(("action", "kind"), [("acknowledge", Acknowledge), ("resolve", Resolve)])
def test_event_of_a_change_has_the_key_alone(action: str, kind: type) -> None:
    """There is no problem to tell of."""
    assert kind is type(sent(Incident(action, "outage:checkout")))  # type: ignore[arg-type]


@pytest.mark.parametrize("summary", ["x" * 5_000, "\u202e" * 5_000, "a\nb"])
def test_event_summary_is_one_visible_line_of_bounded_length(summary: str) -> None:
    """A name of a service that somebody has chosen cannot have the event refused."""
    problem = Problem(summary=summary, source="s", severity="info", happened_at=instant(START_MS))
    event = sent(Incident("trigger", "k", problem))
    assert isinstance(event, Trigger)
    assert event.payload.summary.isprintable()


def test_report_incident_goes_to_pagerduty_without_the_bearer_token() -> None:
    """Under the idempotency key, as every effect; addresses of actions are not asked."""

    async def main(clock: Clock) -> None:
        poster = Listening()
        receivers = Receivers({"stop": "http://a.test/"}, "secret", 1_000, "http://pages.test/", ROUTING_KEY)
        effects = effects_of(await World.create(clock), poster, receivers)
        await effects.report_incident(Incident("resolve", "k"))
        assert [{"idempotency-key": "judge:stop:a:0"}] == poster.headers
        assert EffectState.DONE is effects.outcome
        with pytest.raises(Rejected, match="second effect"):
            await effects.post({})

    run_virtual(main, START_MS)
