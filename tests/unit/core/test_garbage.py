"""What lasts is not looked at again, and garbage in cycles is still found while it is young."""

import gc
import weakref
from collections.abc import Iterator

import pytest

from app.core.garbage import THRESHOLDS, exempt_what_lasts


class Node:
    def __init__(self) -> None:
        self.other: Node | None = None


@pytest.fixture(autouse=True)
def as_before() -> Iterator[None]:
    """Other tests have the collector that they had."""
    thresholds, callbacks = gc.get_threshold(), list(gc.callbacks)
    yield
    gc.unfreeze()
    gc.set_threshold(*thresholds)
    gc.callbacks[:] = callbacks


def test_exempt_what_lasts_leaves_little_to_look_at() -> None:
    """However many entries there are, the oldest generation that is looked at stays small."""
    exempt_what_lasts()
    exempt_what_lasts()
    gc.freeze()
    before = gc.get_freeze_count()
    table = [[number] for number in range(500_000)]
    assert gc.get_freeze_count() - before > 300_000
    assert len(gc.get_objects(generation=2)) < THRESHOLDS[0] * THRESHOLDS[1] * 2
    del table
    assert gc.get_freeze_count() - before < 300_000, "it is freed when nobody refers to it"


def test_exempt_what_lasts_young_cycles_are_collected() -> None:
    """As those of tasks and exceptions."""
    gc.collect()
    exempt_what_lasts()
    one, other = Node(), Node()
    one.other, other.other = other, one
    seen = weakref.ref(one)
    del one, other
    kept = [[number] for number in range(2 * THRESHOLDS[0])]
    assert kept
    assert seen() is None
