"""The demo: what shoppers order, pay and click, and how the shop's services do; one sequence under one seed.

Orders and payments happen as they are published. Clicks and service events begin earlier and are published faster than they
happened, until they have caught up: as where a worker was away for a while. So half an hour is seen in a few seconds.
"""

from collections.abc import Iterator
from heapq import merge
from itertools import islice
from operator import attrgetter

from app.sources.generator import Publication
from features import scenario as orders
from features.demo import clicks, payments, services

CASES = (orders.scenario, payments.scenario, clicks.scenario, services.scenario)


def scenario(events: int, seed: int, start_ms: int) -> Iterator[Publication]:
    """Exactly `events` publications from `start_ms` (wall time, ms since 1970 UTC) on; the same for the same arguments."""
    told = (case(events, seed, start_ms) for case in CASES)
    return islice(merge(*told, key=attrgetter("at_ms")), events)
