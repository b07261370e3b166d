"""Permits grow with successes, are halved once an epoch, and begin with one after a pause."""

import math

import pytest

from app.models.permits import Permits


def grown(most: int, successes: int) -> Permits:
    permits = Permits(most)
    for _ in range(successes):
        permits.succeeded(0, 0.0)
    return permits


def test_permits_begin_with_one_and_double_in_the_time_of_a_call() -> None:
    """Each success allows one more, up to the bound."""
    assert [1, 2, 3, 4, 4] == [grown(4, successes).allowed(0.0) for successes in range(5)]


def test_permits_taken_up_wait_until_one_is_back() -> None:
    """Time alone brings none."""
    permits = grown(4, 1)
    permits.take(0.0)
    assert 0.0 == permits.wait_s(0.0)
    permits.take(0.0)
    assert math.inf == permits.wait_s(0.0)
    permits.give_back()
    assert 0.0 == permits.wait_s(0.0)


def test_permits_overload_halves_once_an_epoch() -> None:
    """Sixty-four calls that fail together are one sign, not six."""
    permits = grown(64, 63)
    epochs = [permits.take(0.0) for _ in range(64)]
    for epoch in epochs:
        permits.overloaded(epoch, 0.0)
    assert 32 == permits.allowed(0.0)
    permits.overloaded(permits.take(0.0), 0.0)
    assert 16 == permits.allowed(0.0)


def test_permits_after_an_overload_grow_by_one_a_round() -> None:
    """Above the threshold as many successes as permits allow one more."""
    permits = grown(32, 7)
    permits.overloaded(0, 0.0)
    assert 4 == permits.allowed(0.0)
    epoch = permits.take(0.0)
    for _ in range(4):
        permits.succeeded(epoch, 0.0)
    assert 4 == permits.allowed(0.0)
    permits.succeeded(epoch, 0.0)
    assert 5 == permits.allowed(0.0)


@pytest.mark.parametrize(("most", "successes", "least"), [(4, 3, 1), (64, 63, 8), (64, 0, 1)])
def test_permits_overload_leaves_an_eighth(most: int, successes: int, least: int) -> None:
    """However often it fails, somebody tries; what has begun with one is not raised by it."""
    permits = grown(most, successes)
    for _ in range(10):
        permits.overloaded(permits.take(0.0), 0.0)
    assert least == permits.allowed(0.0)


def test_permits_successes_of_an_earlier_epoch_do_not_count() -> None:
    """They were measured at the old number."""
    permits = grown(8, 7)
    permits.overloaded(0, 0.0)
    for _ in range(20):
        permits.succeeded(0, 0.0)
    assert 4 == permits.allowed(0.0)


def test_permits_pause_closes_for_all_then_begins_with_one() -> None:
    """No permit until the end of it, though many are free; the longest of several pauses counts."""
    permits = grown(8, 7)
    permits.close(10.0)
    permits.close(7.0)
    assert 2.5 == permits.wait_s(7.5)
    assert 2.5 == permits.closed_s(7.5)
    assert 1 == permits.allowed(0.0)
    assert 0.0 == permits.wait_s(10.0)


def test_permits_double_each_second_while_nothing_is_heard() -> None:
    """A first call that hangs does not hold up all others; the first word ends it, and counts from there."""
    permits = Permits(32)
    epoch = permits.take(5.0)
    assert [1, 1, 2, 4, 32, 32] == [permits.allowed(at) for at in (5.0, 5.9, 6.0, 7.0, 11.0, 100.0)]
    assert 0.5 == permits.wait_s(5.5)
    permits.overloaded(epoch, 8.0)
    assert [4, 4] == [permits.allowed(at) for at in (8.0, 100.0)]
    assert 0.0 == permits.wait_s(8.0)
    for _ in range(3):
        permits.take(8.0)
    assert math.inf == permits.wait_s(8.0)


def test_permits_silence_after_a_pause_counts_from_the_first_call() -> None:
    """Not from the pause."""
    permits = grown(8, 7)
    permits.close(10.0)
    permits.take(50.0)
    assert [1, 2] == [permits.allowed(at) for at in (50.5, 51.0)]
