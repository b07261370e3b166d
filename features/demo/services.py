"""Service events of the demo: requests that succeed, one that fails now and then, and outages, short and long.

They begin half an hour ago.
"""

from collections.abc import Iterator
from datetime import datetime

from app.sources.generator import Publication
from features.demo.stories import Stories
from features.records import ServiceEvent, service_events

TOPIC = service_events.source.spec.name
SERVICES = ("catalog", "checkout", "login", "search", "shipping")
GAPS_MS = range(30, 91)
BEHIND_MS = 1_800_000
BETWEEN_MS = (50, 120)
"""Between two failures of an outage as they are published."""


def scenario(events: int, seed: int, start_ms: int) -> Iterator[Publication]:
    """So many publications from `start_ms` on."""
    return _Services(seed, start_ms).publications(events)


class _Services:
    def __init__(self, seed: int, start_ms: int) -> None:
        self._stories = Stories(f"services {seed}", start_ms, GAPS_MS, BEHIND_MS)
        self._random = self._stories.random
        self._requests = 0

    def publications(self, events: int) -> Iterator[Publication]:
        stories = [(self._succeeds, 600), (self._fails, 2), (self._short_outage, 5), (self._long_outage, 1)]
        return self._stories.publications(events, stories)

    def _succeeds(self, at_ms: int) -> None:
        self._request(at_ms, self._random.choice(SERVICES), failed=False)

    def _fails(self, at_ms: int) -> None:
        """One request alone."""
        self._request(at_ms, self._random.choice(SERVICES), failed=True)

    def _short_outage(self, at_ms: int) -> None:
        """A service that fails for a second or two."""
        self._outage(at_ms, self._random.randint(12, 20))

    def _long_outage(self, at_ms: int) -> None:
        """A service that fails until somebody has mended it."""
        self._outage(at_ms, self._random.randint(60, 120))

    def _outage(self, at_ms: int, failures: int) -> None:
        service = self._random.choice(SERVICES)
        for _ in range(failures):
            self._request(at_ms, service, failed=True)
            at_ms += self._random.randint(*BETWEEN_MS)

    def _request(self, at_ms: int, service: str, *, failed: bool) -> None:
        self._requests += 1
        event, latency_ms = (
            f"r-{self._requests}",
            self._random.randint(1_000, 5_000) if failed else self._random.randint(5, 300),
        )

        def make(happened: datetime) -> ServiceEvent:
            return ServiceEvent(event, service, "failed" if failed else "ok", latency_ms, happened)

        again_after_ms = self._random.randint(50, 250) if self._random.random() < 0.02 else None
        self._stories.add(at_ms, TOPIC, service, make, again_after_ms=again_after_ms)
