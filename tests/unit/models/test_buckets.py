"""Buckets fill evenly, are never below what the API says, and are shared by partitions."""

import pytest

from app.models.base import RateLimit, RateLimits
from app.models.buckets import LONGEST_REFILL_S, Amounts, Bucket, Buckets


def test_bucket_without_a_limit_never_waits() -> None:
    """Until a header tells one."""
    bucket = Bucket(0)
    bucket.take(0.0, 1_000_000_000)
    assert 0.0 == bucket.wait_s(0.0, 1_000_000_000)


def test_bucket_fills_evenly_over_a_minute() -> None:
    """Sixty a minute: all at once, then one a second."""
    bucket = Bucket(60)
    bucket.take(0.0, 60)
    assert 1.0 == pytest.approx(bucket.wait_s(0.0, 1))
    assert 0.0 == bucket.wait_s(1.0, 1)
    assert 60.0 == pytest.approx(bucket.left(100.0))


def test_bucket_settles_by_what_was_used() -> None:
    """Too much reserved comes back; too little is a debt that later calls wait for."""
    bucket = Bucket(6_000)
    bucket.take(0.0, 1_000)
    bucket.settle(0.0, 1_000, 200)
    assert (5_800, 0) == (bucket.left(0.0), bucket.reserved)
    bucket.take(0.0, 100)
    bucket.settle(0.0, 100, 7_000)
    assert -1_200 == bucket.left(0.0)
    assert 13.0 == pytest.approx(bucket.wait_s(0.0, 100))


def test_bucket_call_larger_than_the_whole_waits_for_a_full_one() -> None:
    """It cannot wait for more than there will ever be."""
    bucket = Bucket(600)
    bucket.take(0.0, 300)
    assert 30.0 == pytest.approx(bucket.wait_s(0.0, 5_000))
    bucket.take(30.0, 5_000)
    assert -4_400 == bucket.left(30.0)


def test_bucket_headers_take_away_and_never_give() -> None:
    """Somebody else uses the same account; what we have reserved ourselves stays reserved."""
    bucket = Bucket(0)
    bucket.correct(0.0, RateLimit(1_000, 400))
    assert (1_000, 400) == (bucket.size, bucket.left(0.0))
    bucket.correct(0.0, RateLimit(1_000, 900))
    assert 400 == bucket.left(0.0)
    bucket.correct(0.0, RateLimit(0, 0))
    assert 1_000 == bucket.size


def test_bucket_least_of_configured_and_told_limit_counts() -> None:
    """A setting keeps below the API's limit; the API's limit below a setting that is too bold."""
    modest, bold = Bucket(100), Bucket(9_000)
    for bucket in (modest, bold):
        bucket.correct(0.0, RateLimit(1_000, 1_000))
    assert (100, 1_000) == (modest.size, bold.size)


def test_bucket_reset_far_away_slows_the_filling() -> None:
    """Nine tenths are used and come back in three minutes, not in one; near full the header's seconds are too coarse."""
    bucket = Bucket(0)
    bucket.correct(0.0, RateLimit(1_000, 100, 180_000))
    assert 150 == pytest.approx(bucket.left(10.0))
    bucket.correct(10.0, RateLimit(1_000, 990, 1_000))
    assert 150 + 1_000 / 6 == pytest.approx(bucket.left(20.0))


def test_bucket_share_divides_limit_and_rest() -> None:
    """Half of the partitions: half of everything, and the other half when they come."""
    bucket = Bucket(600)
    bucket.take(0.0, 200)
    bucket.set_share(0.0, 0.5)
    assert (300, 200) == (bucket.size, bucket.left(0.0))
    bucket.correct(0.0, RateLimit(600, 100))
    assert 50 == bucket.left(0.0)
    bucket.set_share(0.0, 1.0)
    assert (600, 100) == (bucket.size, bucket.left(0.0))


def test_buckets_wait_for_the_slowest_and_take_all() -> None:
    """A call needs its request and both kinds of tokens."""
    buckets = Buckets(60, 6_000, 600)
    buckets.take(0.0, Amounts(1, 1_000, 600))
    assert 10.0 == pytest.approx(buckets.wait_s(0.0, Amounts(1, 1_000, 100)))
    buckets.settle(0.0, Amounts(1, 1_000, 600), Amounts(1, 900, 100))
    assert 0.0 == buckets.wait_s(0.0, Amounts(1, 1_000, 100))
    assert (59, 5_100, 500) == tuple(
        bucket.left(0.0) for bucket in (buckets.requests, buckets.input_tokens, buckets.output_tokens)
    )


def test_buckets_correct_what_the_headers_say_and_nothing_else() -> None:
    """A proxy may pass some headers only."""
    buckets = Buckets(0, 100, 0)
    buckets.correct(0.0, RateLimits(requests=RateLimit(50, 10)))
    assert (10, 100) == (buckets.requests.left(0.0), buckets.input_tokens.left(0.0))


def test_bucket_reset_out_of_all_proportion_counts_as_five_minutes() -> None:
    """A reset in thirty days must not shut the gate for as long."""
    bucket = Bucket(0)
    bucket.correct(0.0, RateLimit(50, 0, 30 * 86_400_000))
    assert LONGEST_REFILL_S / 50 == pytest.approx(bucket.wait_s(0.0, 1))
