"""When an attempt is made again."""

from random import Random

import pytest
from hypothesis import given
from hypothesis.strategies import floats, integers

from app.core.errors import SetupError
from app.dispatch.retries import LONGEST_ASKED_MS, RetryPolicy


def test_retry_policy_without_jitter_doubles_to_longest() -> None:
    """Each delay is twice the one before, up to the longest."""
    policy = RetryPolicy(first_delay_ms=100, longest_delay_ms=1_000, jitter=0)
    assert [100, 200, 400, 800, 1_000, 1_000] == [policy.delay_ms(failures, Random(1)) for failures in range(1, 7)]


@given(failures=integers(1, 10_000), seed=integers(0, 1_000), jitter=floats(0, 1))
def test_retry_policy_any_delay_is_within_bounds(failures: int, seed: int, jitter: float) -> None:
    """Never zero, so that nothing spins, and never above the longest, however often something failed."""
    policy = RetryPolicy(first_delay_ms=50, longest_delay_ms=5_000, jitter=jitter)
    assert 1 <= policy.delay_ms(failures, Random(seed)) <= 5_000


def test_retry_policy_full_jitter_spreads_delays() -> None:
    """Records that failed together do not come back together."""
    policy = RetryPolicy(first_delay_ms=1_000, longest_delay_ms=1_000)
    random = Random(5)
    delays_ms = sorted(policy.delay_ms(1, random) for _ in range(1_000))
    assert delays_ms[100] < 200
    assert delays_ms[900] > 800


def test_retry_policy_what_was_asked_the_same_is_spread() -> None:
    """Everybody was told to come in a second: none comes before, and they do not come together."""
    policy = RetryPolicy(first_delay_ms=1_000, longest_delay_ms=1_000)
    random = Random(5)
    delays_ms = sorted(policy.delay_ms(1, random, 1_000) for _ in range(1_000))
    assert delays_ms[0] >= 1_000
    assert delays_ms[100] < 1_200
    assert delays_ms[900] > 1_800


@given(failures=integers(1, 100), asked_ms=integers(0, 100_000), left_ms=integers(0, 100_000))
def test_retry_policy_any_wait_leaves_time_for_an_attempt(failures: int, asked_ms: int, left_ms: int) -> None:
    """Or it is not waited for."""
    policy = RetryPolicy()
    if not policy.is_too_late(asked_ms, left_ms):
        delay_ms = policy.delay_ms(failures, Random(failures), asked_ms, left_ms)
        assert delay_ms <= left_ms - (left_ms - min(asked_ms, LONGEST_ASKED_MS)) / 2
        assert delay_ms >= min(asked_ms, LONGEST_ASKED_MS)


def test_retry_policy_waits_as_long_as_a_server_asks() -> None:
    """Never shorter than was asked, unless that is out of all proportion, and never shorter than without asking."""
    policy = RetryPolicy(first_delay_ms=100, longest_delay_ms=1_000, jitter=0)
    asked = (None, 50, 7_000, 10**9)
    assert [100, 100, 7_000, LONGEST_ASKED_MS] == [policy.delay_ms(1, Random(1), asked_ms) for asked_ms in asked]


@pytest.mark.parametrize(
    ("setting", "value"),
    [("max_attempts", 0), ("first_delay_ms", 0), ("first_delay_ms", 40_000), ("jitter", 1.5), ("within_ms", 0)],
)
def test_retry_policy_impossible_setting_is_named(setting: str, value: float) -> None:
    """A wrong bound is refused at the start, by name."""
    with pytest.raises(SetupError, match=setting):
        RetryPolicy(**{setting: value})  # type: ignore[arg-type]
