"""Outage: somebody is called when a service fails, and told when it works again.

All that is reported of a service is one incident, whichever rule has seen it: who is called once need not be called twice. It
ends with the service's recovery, about which no model is asked.
"""

from collections.abc import Mapping
from typing import ClassVar, Literal

from agents.registry import app
from app.decisions.context import Context
from app.decisions.decision import Decision, Fallback, RiskName, Severity
from app.decisions.effects import Effects
from app.decisions.incidents import Incident, IncidentSeverity, Problem
from app.decisions.policy import Limit, Policy
from app.models.budget import Budget
from app.serving.base import Features
from features.outage import FailureBurst, HighErrorRate, ServiceRecovered

PROMPT = """\
You decide whether somebody is called because a service of an online shop fails, for the engineers on call.

You are shown the alert (`alert`; its `alert_type` says which one it is):
- failure_burst: ten requests of the service failed within a minute.
- high_error_rate: in five minutes `failures` of `requests` failed; `mean_latency_ms` is their mean time.
You are shown, too, how the service has been in the last five minutes (`health`: `requests_5m`, `failures_5m`, the mean and the
longest time of a request, `mean_latency_ms_5m` and `slowest_ms_5m`, null where there was none).

Decide one action:
- page: shoppers are harmed now, and somebody should look at once, at whatever hour.
- watch: a small part of the requests fails, and it can wait until the morning.

Never answer resolve: that an incident is over is not yours to say. Weigh the share of failed requests more than their number. A
service without any request in the last five minutes is down: page. When you are unsure, page. Give the reason in one or two
sentences that somebody who was just woken can act on, and name the figures that decided it."""

FAILING = 5
PAGE_PERCENT = 10
CRITICAL_PERCENT = 50

PAGED_AS: Mapping[RiskName, IncidentSeverity] = {
    "LOW": "info",
    "MEDIUM": "warning",
    "HIGH": "error",
    "CRITICAL": "critical",
}

Trouble = FailureBurst | HighErrorRate
ServiceAlert = Trouble | ServiceRecovered


class OutageDecision(Decision, frozen=True, kw_only=True):
    """Whether somebody is called. The mild ends are those at which nobody is: nothing that failed ends there."""

    action: Literal["watch", "resolve", "page"]
    severities: ClassVar[Mapping[str, Severity]] = {
        "watch": Severity.APPROVE,
        "resolve": Severity.APPROVE,
        "page": Severity.REVIEW,
    }


def judge_by_rules(alert: Trouble, health: Features) -> OutageDecision:
    """The offline stand-in for a model: the share of failed requests, of the alert's window or of the last five minutes."""
    if isinstance(alert, HighErrorRate):
        failures, requests = alert.failures, alert.requests
    else:
        failures, requests = health.values["failures_5m"], health.values["requests_5m"]
    figures = f"{failures} of {requests} requests failed in five minutes"
    if 100 * failures < PAGE_PERCENT * requests:
        return OutageDecision(action="watch", risk_level="MEDIUM", reason=f"a small part: {figures}")
    risk: RiskName = "CRITICAL" if 100 * failures >= CRITICAL_PERCENT * requests else "HIGH"
    return OutageDecision(action="page", risk_level=risk, reason=f"shoppers are harmed: {figures}")


def only_a_recovery_resolves(alert: ServiceAlert, decision: OutageDecision) -> str | None:
    """An answer that ends an incident while the service fails calls somebody instead."""
    if decision.action == "resolve" and not isinstance(alert, ServiceRecovered):
        return "page"
    return None


@app.agent(
    "processed.alerts",
    alert=ServiceAlert,
    decides=OutageDecision,
    fallback=Fallback("page"),
    policy=Policy(
        rules=(only_a_recovery_resolves,),
        limits=(Limit("watch", an_entity=30, within="1h"),),  # whoever watches for so long should look
    ),
    budget=Budget(usd_a_day=25),
    concurrency=16,
    rules=judge_by_rules,
)
async def judge_outage(alert: ServiceAlert, context: Context) -> OutageDecision:
    """Looks at the service's last five minutes and asks the model; a recovery speaks for itself, and so does what is over."""
    health = await context.features("service_health", alert.service)
    if isinstance(alert, ServiceRecovered):
        return judge_recovery(alert, health)
    if not is_failing(health):
        return judge_trouble_that_is_over(alert, health)
    return await context.decide(PROMPT, alert=alert, health=health)


def judge_recovery(alert: ServiceRecovered, health: Features) -> OutageDecision:
    """Ends the incident, unless the service fails again by now: then this recovery is an old one, read behind the alerts of a
    newer outage, whose incident is not over."""
    if is_failing(health):
        failing = health.values["failures_5m"]
        return OutageDecision(
            action="watch", risk_level="MEDIUM", reason=f"fails again: {failing} requests in five minutes"
        )
    reason = f"no request has failed for five minutes, after {alert.failures} that did"
    return OutageDecision(action="resolve", risk_level="LOW", reason=reason)


def is_failing(health: Features) -> bool:
    """Whether so many requests have failed in the last five minutes that their recovery is still to come."""
    return bool(health.values["failures_5m"] >= FAILING)


def judge_trouble_that_is_over(alert: Trouble, health: Features) -> OutageDecision:
    """Calls nobody. An alert of trouble may be read behind the recovery of its outage, since each is computed by itself: who was
    called then would hear of no second recovery. In the other order the recovery is at hand. (Policy calls somebody where the
    figures are stale, or lack the alert's own request.)"""
    reason = (
        f"is over: {health.values['failures_5m']} requests failed in the last five minutes; {summary_of(alert)} before"
    )
    return OutageDecision(action="watch", risk_level="MEDIUM", reason=reason)


def incident_key(alert: ServiceAlert) -> str:
    """One incident a service, from the first alert to its recovery."""
    return f"outage:{alert.service}"


@judge_outage.action("page", may_repeat=True)
async def page_on_call(decision: OutageDecision, effects: Effects) -> None:
    """Calls somebody, or adds to the incident that is open."""
    alert: ServiceAlert = effects.alert
    problem = Problem(
        summary=f"{alert.service}: {summary_of(alert)}",
        source=alert.service,
        severity=PAGED_AS[decision.risk_level],
        happened_at=alert.triggered_at,
        details={"alert_id": alert.alert_id, "reason": decision.reason},
    )
    await effects.report_incident(Incident("trigger", incident_key(alert), problem))


@judge_outage.action("resolve", may_repeat=True)
async def acknowledge_incident(decision: OutageDecision, effects: Effects) -> None:
    """Calls nobody more, also where the end of the incident cannot be reported at once."""
    await effects.report_incident(Incident("acknowledge", incident_key(effects.alert)))


@judge_outage.action("resolve", may_repeat=True)
async def resolve_incident(decision: OutageDecision, effects: Effects) -> None:
    """Ends the incident: what fails after this is a new one, for which somebody is called again."""
    await effects.report_incident(Incident("resolve", incident_key(effects.alert)))


def summary_of(alert: ServiceAlert) -> str:
    """What is wrong, in the words of the rule that has seen it."""
    match alert:
        case FailureBurst():
            return "ten requests failed within a minute"
        case HighErrorRate():
            return f"{alert.failures} of {alert.requests} requests failed in five minutes"
        case ServiceRecovered():
            return f"{alert.failures} requests failed; its recovery could not be judged"
