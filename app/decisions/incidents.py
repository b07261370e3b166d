"""What is reported of an incident, as PagerDuty's Events API v2 takes it: one key from its beginning to its end.

Whoever reports it again under its key adds to the incident that is open, or opens a new one when none is. A key that nobody
knows may be acknowledged or resolved: nothing follows. So every event may be repeated.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Literal

from app.core.text import one_line

MAX_SUMMARY_CHARACTERS = 1_024

IncidentSeverity = Literal["critical", "error", "warning", "info"]


@dataclass(frozen=True, kw_only=True)
class Problem:
    """What somebody is called for. summary: one line. source: what has failed. details: whatever helps, by name."""

    summary: str
    source: str
    severity: IncidentSeverity
    happened_at: datetime
    details: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Incident:
    """One event of an incident: it is there (`trigger`, with its problem), nobody more is to be called (`acknowledge`), it is
    over (`resolve`). key: the same for all of them, 255 characters at most."""

    event_action: Literal["trigger", "acknowledge", "resolve"]
    key: str
    problem: Problem | None = None

    def event(self, routing_key: str) -> dict[str, Any]:
        """As it is sent."""
        event: dict[str, Any] = {
            "routing_key": routing_key,
            "event_action": self.event_action,
            "dedup_key": self.key,
        }
        if self.problem is not None:
            event["payload"] = {
                "summary": one_line(self.problem.summary, MAX_SUMMARY_CHARACTERS)[:MAX_SUMMARY_CHARACTERS],
                "source": self.problem.source,
                "severity": self.problem.severity,
                "timestamp": self.problem.happened_at,
                "custom_details": self.problem.details,
            }
        return event
