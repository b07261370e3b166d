"""Outage: services whose requests fail, and their recovery.

Every alert of trouble lies in a run of failures less than five minutes apart, and such a run ends once: so each incident is
followed by exactly one recovery, when no request of the service has failed for five minutes.
"""

from app.streams.expressions import col
from app.streams.graph import Alert, count, maximum, mean
from features.records import Id, service_events


class FailureBurst(Alert, frozen=True):
    """Ten failed requests of a service within a minute; the first such burst in five minutes."""

    service: Id


class HighErrorRate(Alert, frozen=True):
    """Five minutes in which one request in ten failed, or more."""

    service: Id
    requests: int
    failures: int
    mean_latency_ms: int


class ServiceRecovered(Alert, frozen=True):
    """Failures of a service that have been over for five minutes."""

    service: Id
    failures: int


failed = col.status == "failed"
requests = service_events.once("event_id", within="1m")
failures = requests.where(failed)

failure_bursts = failures.burst(count=10, within="1m").alert(FailureBurst, at_most_once_per="5m")

error_rates = (
    requests.hopping("5m", step="1m")
    .aggregate(requests=count(), failures=count(when=failed), mean_latency_ms=mean(col.latency_ms))
    .having((col.failures >= 10) & (col.failures * 10 >= col.requests))
    .alert(HighErrorRate)
)

# Fewer failures than make an alert: one that comes late counts in a window's step, and may no more count here.
recoveries = failures.session(gap="5m").aggregate(failures=count()).having(col.failures >= 5).alert(ServiceRecovered)

# A tile is no longer than the out-of-orderness: so a recovery finds no failure of its own in here any more.
service_health = (
    requests.live("5m", tile="5s")
    .aggregate(
        requests_5m=count(),
        failures_5m=count(when=failed),
        mean_latency_ms_5m=mean(col.latency_ms),
        slowest_ms_5m=maximum(col.latency_ms),
    )
    .serve("service_health")
)
